"""The nouns of loopwise: frozen dataclasses over plain Python and NumPy, and the protocols of the loop's steps.

Nothing here imports torch, so a text-only run (remote model, prompt evolution) never loads it.
Shape letters used across the package: S samples, R reward parts, P problems, G samples of one problem, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

Message = Mapping[str, str]
Prompt = str | tuple[Message, ...]
Completion = str | Sequence[Message]
"""What follows a prompt: text, or the rest of a conversation, which the assistant begins."""
REWARD_ROUNDING = 1e-9
"""Rewards this close are equal: weights such as 0.7, 0.2 and 0.1 add up to a hair under 1."""
LOST = "error"
"""The ``finish_reason`` of a sample that could not be drawn, as where a remote model timed out. It is never judged."""


@dataclass(frozen=True)
class Problem:
    """A prompt (text or chat messages) and its free columns; ``id`` is unique in its stream.

    ``shown`` is what the policy is shown where that is not the prompt: a draft with its critique, to be revised. Judges
    see the prompt. ``parent`` is the sample that one of this problem goes on from. ``place`` is where it stands, as
    ``prompts.jsonl line 17``, for errors alone.
    """

    id: str
    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)
    shown: Prompt | None = None
    parent: str | None = None


@dataclass(frozen=True)
class Segment:
    """A span ``[start, stop)`` of a sample's ``token_ids`` by one author: ``model``, ``tool`` or ``user``."""

    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Sample:
    """One completion as it was generated: a trajectory of segments, never assumed to be contiguous model text.

    ``token_ids``, ``loss_mask`` and ``logps`` have one entry per token after the prompt (end-of-text included);
    ``loss_mask`` is 1 where the model wrote the token; ``logps`` are natural-log probabilities in fp32 under
    ``softmax(logits / temperature)`` before top-k or top-p, or ``None`` where the generator offers none.
    ``index`` is the sample's place in its group; ``group`` the group's place in the rollout.
    """

    id: str
    problem_id: str
    group: int
    index: int
    policy_id: str
    text: str
    finish_reason: str
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    loss_mask: tuple[int, ...] = ()
    logps: tuple[float, ...] | None = None
    parent: str | None = None
    segments: tuple[Segment, ...] = ()
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """Sample ``chosen`` is better than sample ``rejected`` (positions in the rollout)."""

    chosen: int
    rejected: int
    weight: float = 1.0


@dataclass(frozen=True)
class Feedback:
    """What was said about S samples.

    ``rewards`` float64 ``[S, R]``; ``mask`` bool ``[S, R]``, False where a part could not be judged (its reward is
    then NaN and never counts as 0); ``parts`` and ``weights`` have R entries. ``critiques`` and ``edits`` have S.
    """

    parts: tuple[str, ...]
    weights: tuple[float, ...]
    rewards: np.ndarray
    mask: np.ndarray
    preferences: tuple[Preference, ...] = ()
    critiques: tuple[str | None, ...] | None = None
    edits: tuple[str | None, ...] | None = None
    extra: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def totals(self) -> np.ndarray:
        """Weighted sum of the judged parts, float64 ``[S]``; NaN where no part could be judged."""
        weighted = np.where(self.mask, self.rewards, 0.0) @ np.asarray(self.weights, dtype=np.float64)
        return np.where(self.mask.any(axis=1), weighted, np.nan)

    @staticmethod
    def empty(count: int) -> Feedback:
        """Feedback that says nothing about ``count`` samples."""
        return Feedback((), (), np.zeros((count, 0)), np.zeros((count, 0), dtype=bool))

    def at(self, places: Sequence[int]) -> Feedback:
        """Feedback on the samples at ``places``, each named once, in that order; the metrics stay those of all.

        Preferences go with their samples, and are dropped where one of the two is not there.
        """

        def picked(values: Any) -> Any:
            return tuple(values[place] for place in places) if values else values

        rows = np.asarray(places, dtype=np.intp)
        now = {before: place for place, before in enumerate(places)}
        pairs = [pair for pair in self.preferences if pair.chosen in now and pair.rejected in now]
        return replace(
            self,
            rewards=self.rewards[rows],
            mask=self.mask[rows],
            preferences=tuple(replace(pair, chosen=now[pair.chosen], rejected=now[pair.rejected]) for pair in pairs),
            critiques=picked(self.critiques),
            edits=picked(self.edits),
            extra=picked(self.extra),
        )


@dataclass(frozen=True)
class Scored:
    """Samples of a rollout, group after group, with the feedback on them (same order)."""

    problems: tuple[Problem, ...]
    samples: tuple[Sample, ...]
    feedback: Feedback

    def groups(self) -> Iterator[tuple[Problem, list[int]]]:
        """Each problem with the positions of its samples."""
        members: list[list[int]] = [[] for _ in self.problems]
        for position, sample in enumerate(self.samples):
            members[sample.group].append(position)
        return zip(self.problems, members, strict=True)


@dataclass(frozen=True)
class PromptState:
    """The part of a policy that lives in its prompt: a system prompt, worked examples, remembered lessons.

    ``memory`` is for every problem; ``lessons`` are pairs (task, lesson) for problems of that task alone, which their
    column ``task`` names, or their id. ``suffix`` follows a text prompt, or a conversation's last message.
    """

    system: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    memory: tuple[str, ...] = ()
    lessons: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


@dataclass(frozen=True)
class Sampling:
    """How to draw completions. Temperature 0 is greedy; ``top_k`` 0 and ``top_p`` 1 truncate nothing."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One completion to be generated. ``key`` (64 bits) seeds its uniforms: a pure function of run and place."""

    sample_id: str
    problem: Problem
    group: int
    index: int
    key: int


@dataclass(frozen=True)
class Budget:
    """What was spent. ``flops`` counts 2 per parameter and generated or read token, 6 per trained token."""

    tokens_generated: int = 0
    tokens_trained: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    judge_calls: int = 0

    def __add__(self, other: Budget) -> Budget:
        return Budget(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Budget)))


@dataclass(frozen=True)
class Evaluation:
    """Scores of one policy on one held-out split: float64 ``[P]``, NaN where a problem could not be judged."""

    split: str
    policy_id: str
    scores: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        return np.asarray(self.scores[~np.isnan(self.scores)])

    @property
    def mean(self) -> float:
        return float(self.judged.mean()) if self.judged.size else float("nan")


@dataclass(frozen=True)
class Decision:
    """What the gate decided on a round's candidate, in words and figures."""

    accepted: bool
    reason: str
    candidate: float
    incumbent: float
    difference: float
    upper: float
    n: int
    best: bool
    splits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Partial:
    """Where a round was interrupted: ``step`` optimizer steps done, the half-trained policy and its state."""

    step: int
    policy: Any
    state: Any


@dataclass(frozen=True)
class Context:
    """What an update may use besides its arguments; everything with an effect goes through these functions.

    ``spend(Budget)`` books cost; ``record(step, metrics)`` logs one step; ``keep(sample_ids)`` marks the samples that
    were learned from; ``checkpoint(step, policy, state)`` saves mid-round progress (and decides itself whether it is
    time: it takes functions, called only when it is); ``partial`` is that progress on resume.
    """

    run_id: str
    seed: int
    round: int
    runtime: Any
    spend: Callable[[Budget], None]
    record: Callable[[int, Mapping[str, float]], None]
    keep: Callable[[Sequence[str]], None]
    checkpoint: Callable[[int, Callable[[], tuple[Any, Any]]], None]
    partial: Partial | None = None
    reference: Any = None


class Updated(NamedTuple):
    """What an update returns."""

    candidate: Any
    state: Any
    metrics: Mapping[str, float]


class Rollout(Protocol):
    """Generate and evaluate: k scored samples of each problem, journaled before they are returned.

    Without ``judged`` nobody is asked: for text that is no answer, as a lesson.
    """

    def __call__(
        self, policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True
    ) -> Scored: ...


class Update(Protocol):
    """One way of learning from a round. ``needs`` is a subset of weights, logprobs, token_ids, text, reference."""

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(
        self, policy: Any, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated: ...


class Generator(Protocol):
    """Draws completions. ``offers`` is a subset of weights, logprobs, token_ids, text."""

    offers: frozenset[str]

    async def generate(self, policy: Any, requests: Sequence[Request], sampling: Sampling) -> list[Sample]: ...


class FeedbackSource(Protocol):
    """Judges whole groups of samples. References reach it only where ``uses_reference`` is true.

    One that asks the policy itself has a method ``asking(policy) -> FeedbackSource`` besides, which is called with the
    policy that drew the samples.
    """

    name: str
    uses_reference: bool

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Feedback: ...


def compares(source: FeedbackSource) -> bool:
    """Whether it sets the samples of one problem beside each other, as its attribute ``compares`` says if it has it."""
    return bool(getattr(source, "compares", False))


def asking(source: FeedbackSource, policy: Any) -> FeedbackSource:
    """The source as it judges what ``policy`` drew: one that asks the policy itself is told which."""
    ask = getattr(source, "asking", None)
    return source if ask is None else ask(policy)
