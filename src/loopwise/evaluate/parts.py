"""One part of the feedback: how it is called, and what its failures do to a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal, Protocol

from loopwise.errors import LoopwiseError, RewardError
from loopwise.evaluate.contract import Batch, BoundReward, CallError, Outcome, classified
from loopwise.evaluate.groups import group_members
from loopwise.types import Preference, Problem, Sample

MOST_LOST_WORKERS = 3
"""Workers that may be lost while a failed batch is repeated sample by sample, before the rest of it is masked."""
Kind = Literal["reward", "critic"]


class Caller(Protocol):
    """Calls one reward function on a batch. Raises CallError and nothing else."""

    async def __call__(self, batch: Batch) -> Outcome: ...

    def close(self) -> None: ...


class LocalReward:
    """A reward called in this process: built-in rules and Python callables. Nothing here can cut off a hang."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._reward = BoundReward.of(function)

    async def __call__(self, batch: Batch) -> Outcome:
        outcome = Outcome()
        with classified(None):
            returned = self._reward.start(batch, outcome)
            if inspect.isawaitable(returned):
                returned = await returned
            self._reward.take(returned, len(batch), outcome)
        return outcome

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class Judged:
    """What one part said about S samples; ``errors`` maps the spoiled ones to the reason.

    ``abstained`` are positions about which nothing may be said, as where a vote is tied: masked in every part as those
    in ``errors`` are, but no failure. A reward that is None besides is left out of the sum, as TRL has it.

    ``critiques`` [S] say where an answer went wrong, None: nothing to say against it. ``preferences`` are positions
    among the S samples.
    """

    rewards: list[float | None]
    extra: list[dict[str, Any]]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    abstained: set[int] = field(default_factory=set)
    critiques: list[str | None] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)

    @staticmethod
    def nothing(count: int) -> Judged:
        return Judged([None] * count, [{} for _ in range(count)], critiques=[None] * count)

    def take(self, positions: Sequence[int], outcome: Outcome) -> None:
        for offset, position in enumerate(positions):
            self.rewards[position] = outcome.rewards[offset]
            self.extra[position] |= {column: values[offset] for column, values in outcome.extra.items()}
            if outcome.critiques:
                self.critiques[position] = outcome.critiques[offset]
        for name, values in outcome.metrics.items():
            self.metrics.setdefault(name, []).extend(values)

    def put(self, positions: Sequence[int], said: Judged) -> None:
        """Enter what was said of the samples at ``positions``."""
        self.take(positions, Outcome(said.rewards, said.critiques, metrics=said.metrics))
        for offset, position in enumerate(positions):
            self.extra[position] |= said.extra[offset]
        self.errors |= {positions[offset]: reason for offset, reason in said.errors.items()}
        self.abstained |= {positions[offset] for offset in said.abstained}
        self.preferences += [
            replace(pair, chosen=positions[pair.chosen], rejected=positions[pair.rejected]) for pair in said.preferences
        ]


class Judge(Protocol):
    """Judges samples ``[S]``, whole groups of them; ``problems`` ``[S]`` are theirs, in the same order.

    What it cannot judge stands in ``Judged.errors``, and is masked. One that asks the policy itself has a method
    ``asking(policy) -> Judge`` besides; one with figures of a whole set has ``report(problems, samples)``, which gives
    them by name, or None. ``close`` ends what it holds; harmless when done twice.
    """

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged: ...

    def close(self) -> None: ...


class Part(Protocol):
    """One part of the feedback: a reward of the sum, or a critic. ``compares``: it sets samples of one problem beside
    each other."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def uses_reference(self) -> bool: ...

    @property
    def compares(self) -> bool: ...

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged: ...

    async def check(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged: ...

    def asking(self, policy: Any) -> Part: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RewardPart:
    """A function in TRL's signature. Columns in ``hidden`` never reach it."""

    name: str
    weight: float
    uses_reference: bool
    call: Caller
    hidden: frozenset[str] = frozenset()
    compares: bool = False
    kind: Kind = "reward"

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Call it during a run: whatever fails spoils only its samples."""
        return await judge_part(self, self.batch(problems, samples))

    async def check(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Call it before a run. Raises RewardError on whatever fails."""
        return await check_part(self, self.batch(problems, samples))

    def asking(self, policy: Any) -> RewardPart:
        """Itself: a function is asked alike whatever the policy."""
        return self

    def close(self) -> None:
        """End the process it runs in."""
        self.call.close()

    def batch(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Batch:
        """The arguments of a call on ``samples`` [S]; ``problems`` [S] are theirs, in the same order."""
        names = dict.fromkeys(name for problem in problems for name in problem.columns if name not in self.hidden)
        return Batch(
            prompts=[p.prompt if isinstance(p.prompt, str) else [dict(m) for m in p.prompt] for p in problems],
            completions=[
                s.text if isinstance(p.prompt, str) else [{"role": "assistant", "content": s.text}]
                for p, s in zip(problems, samples, strict=True)
            ],
            completion_ids=[list(sample.token_ids) for sample in samples],
            columns={name: [problem.columns.get(name) for problem in problems] for name in names},
        )


@dataclass(frozen=True)
class JudgePart:
    """A judge of samples. Columns in ``hidden`` never reach it."""

    name: str
    weight: float
    uses_reference: bool
    source: Judge
    hidden: frozenset[str] = frozenset()
    compares: bool = False
    kind: Kind = "reward"

    async def judge(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Ask it during a run: whatever it cannot judge spoils only its samples.

        Where a call fails it is repeated group by group, since a judge may set the samples of one beside each other.
        """
        try:
            return await self.source.judge(self._seen(problems), samples)
        except LoopwiseError:
            raise
        except Exception as error:  # a judge of somebody else's may raise anything, and the run goes on
            groups = group_members(samples)
            judged = Judged.nothing(len(samples))
            if len(groups) == 1:
                judged.errors = dict.fromkeys(range(len(samples)), f"it raised {type(error).__name__}: {error}")
            else:
                for members in groups:
                    own = await self.judge([problems[n] for n in members], [samples[n] for n in members])
                    judged.put(members, own)
            return judged

    async def check(self, problems: Sequence[Problem], samples: Sequence[Sample]) -> Judged:
        """Ask it before a run. Raises RewardError on whatever it cannot judge."""
        try:
            judged = await self.source.judge(self._seen(problems), samples)
        except LoopwiseError:
            raise
        except Exception as error:  # a judge of somebody else's may raise anything, and so may a model it stands on
            raise RewardError(f'{self.kind} "{self.name}" raised {type(error).__name__}: {error}') from error
        for position, reason in judged.errors.items():
            shown = str(problems[position].prompt)[:120]
            raise RewardError(f'{self.kind} "{self.name}", on prompt "{shown}": {reason.removesuffix(".")}.')
        return judged

    def asking(self, policy: Any) -> JudgePart:
        """The same part, which asks ``policy`` where it asks the policy itself."""
        asking = getattr(self.source, "asking", None)
        return self if asking is None else replace(self, source=asking(policy))

    def close(self) -> None:
        """End what the judge holds."""
        self.source.close()

    def _seen(self, problems: Sequence[Problem]) -> Sequence[Problem]:
        if not self.hidden:
            return problems
        return [
            replace(problem, columns={k: v for k, v in problem.columns.items() if k not in self.hidden})
            for problem in problems
        ]


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names of parts, a number at the end of those that an earlier part has."""
    distinct: list[str] = []
    for name in names:
        others = (f"{name}_{number}" for number in count(2))
        distinct.append(name if name not in distinct else next(other for other in others if other not in distinct))
    return distinct


async def judge_part(part: RewardPart, batch: Batch) -> Judged:
    """Call a part during a run: whatever fails spoils only its samples."""
    judged = Judged.nothing(len(batch))
    if not len(batch):
        return judged
    try:
        judged.take(range(len(batch)), await part.call(batch))
        return judged
    except CallError as failure:
        if len(batch) == 1:
            judged.errors[0] = failure.reason
            return judged
    lost = 0
    for position in range(len(batch)):
        if lost == MOST_LOST_WORKERS:
            judged.errors[position] = "not judged: its reward hung or crashed too often on this batch"
            continue
        try:
            judged.take([position], await part.call(batch.row(position)))
        except CallError as failure:
            judged.errors[position] = failure.reason
            lost += failure.lost_worker
    return judged


async def check_part(part: RewardPart, batch: Batch) -> Judged:
    """Call a part before a run. Raises RewardError on whatever fails."""
    judged = Judged.nothing(len(batch))
    if not len(batch):
        return judged
    try:
        judged.take(range(len(batch)), await part.call(batch))
    except CallError as failure:
        index = failure.index if failure.index is not None else await _first_failing(part, batch)
        where = f"on all {len(batch)} samples at once, the first prompt being" if index is None else "on prompt"
        prompt = str(batch.prompts[index or 0])
        shown = prompt if len(prompt) <= 120 else f"{prompt[:120]}…"
        raise RewardError(f'{part.kind} "{part.name}": {failure.reason}, {where} "{shown}". {failure.mend}') from None
    return judged


async def _first_failing(part: RewardPart, batch: Batch) -> int | None:
    """The first sample that fails alone too; None where only the batch does."""
    if len(batch) == 1:
        return 0
    for index in range(len(batch)):
        try:
            await part.call(batch.row(index))
        except CallError:
            return index
    return None
