"""An update that learns from its own samples, rehearsed on a copy of the model: rounds on samples as long as they may
be, then on samples as the model draws them.

Their rewards are made up, half of each problem's 1 and half 0: no problem ties, which costs the most. What is said of
these rounds is their time and their memory, never what was learned.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from loopwise.models.policy import Policy, Weights
from loopwise.models.tokens import encode_prompts
from loopwise.runtime import Runtime
from loopwise.stages import probe
from loopwise.stages.probe import Steps, out_of_memory, synchronise
from loopwise.types import Budget, Context, Feedback, Problem, Sample, Scored, Update, Updated

RUN_ID = "rehearsal"


@dataclass(frozen=True)
class Rehearsal:
    """``update(steps)`` takes so many steps in a round of ``rounds``; ``longest`` is the heaviest rollout of a step.

    ``ordinary()`` draws one as the run would, or gives None where that takes too long.
    """

    base: Policy
    runtime: Runtime
    seed: int
    rounds: int
    update: Callable[[int], Update]
    longest: Scored
    ordinary: Callable[[], Scored | None]


def rehearse(rehearsal: Rehearsal) -> tuple[Steps, tuple[Any, ...]]:
    """Take two steps on the longest samples, then ordinary ones; what they cost, and what a run would be holding.

    A step's seconds are those after its rollout. Raises ConfigError where it does not fit into a GPU's memory.
    """
    base, runtime = rehearsal.base, rehearsal.runtime
    assert base.weights is not None
    policy, state = replace(base, weights=Weights(copy.deepcopy(base.weights.module))), None
    held: list[Any] = [policy]
    clock = _Clock(runtime)
    try:
        # Where the run has several rounds the second step is in another one, because what the first ended with stays.
        for number, steps in enumerate([1, 1] if rehearsal.rounds > 1 else [2], start=1):
            policy, state, _ = _round(rehearsal, clock, policy, state, rehearsal.longest, number, steps)
            held += [policy, state]
        drawn = rehearsal.ordinary() or rehearsal.longest
        clock.until = probe.STEP_SECONDS
        with contextlib.suppress(_EnoughError):
            _round(rehearsal, clock, policy, state, drawn, 3, probe.MOST_STEPS)
    except torch.OutOfMemoryError:
        raise out_of_memory(runtime) from None
    seconds, tokens = clock.seconds, clock.tokens
    weights = sum(tensor.nbytes for tensor in base.weights.module.parameters())
    # Samples that turn out alike may leave nothing to learn: then the longest ones, which never are, stand for them.
    ordinary = slice(2, None) if len(seconds) > 2 else slice(1, 2)
    medians = statistics.median(seconds[ordinary]), statistics.median(tokens[ordinary])
    return Steps(seconds[0], seconds[1], *medians, weights, _moments(state)), tuple(held)


def stretched(policy: Policy, problems: Sequence[Problem], each: int, count: int, most_tokens: int) -> Scored:
    """``each`` samples of ``most_tokens`` tokens for the ``count`` problems with the longest prompts.

    No two samples of a problem are alike.
    """
    assert policy.weights is not None
    module: Any = policy.weights.module
    prompts = encode_prompts(policy, problems)
    longest = sorted(range(len(problems)), key=lambda place: -len(prompts[place]))[:count]
    vocabulary = module.get_input_embeddings().num_embeddings
    samples = [
        _sample(problems[place], group, index, prompts[place], [(index + n) % vocabulary for n in range(most_tokens)])
        for group, place in enumerate(longest)
        for index in range(each)
    ]
    return made_up([problems[place] for place in longest], samples)


def made_up(problems: Sequence[Problem], samples: Sequence[Sample]) -> Scored:
    """Samples with a reward of 1 and of 0 in turn."""
    rewards = np.array([[float((sample.group + sample.index) % 2)] for sample in samples])
    feedback = Feedback(("made up",), (1.0,), rewards, np.ones_like(rewards, dtype=bool))
    return Scored(tuple(problems), tuple(samples), feedback)


class _EnoughError(Exception):
    """Enough steps were timed."""


@dataclass
class _Clock:
    """Seconds and trained tokens of each step, from the end of its rollout; it stops once ``until`` have passed."""

    runtime: Runtime
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    until: float | None = None
    _began: float = 0.0
    _read: int = 0

    def begin(self) -> None:
        self._began, self._read = time.perf_counter(), 0

    def spend(self, budget: Budget) -> None:
        self._read += budget.tokens_trained

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        synchronise(self.runtime)
        self.seconds.append(time.perf_counter() - self._began)
        self.tokens.append(self._read)
        if self.until is not None and sum(self.seconds[2:]) > self.until:
            raise _EnoughError
        self.begin()


def _round(
    rehearsal: Rehearsal, clock: _Clock, policy: Policy, state: Any, scored: Scored, number: int, steps: int
) -> Updated:
    """A round whose every rollout is ``scored``."""

    def rollout(policy: Any, problems: Sequence[Problem], k: int, *, step: int = 0, judged: bool = True) -> Scored:
        clock.begin()
        return scored

    context = Context(
        run_id=RUN_ID,
        seed=rehearsal.seed,
        round=number,
        runtime=rehearsal.runtime,
        spend=clock.spend,
        record=clock.record,
        keep=lambda ids: None,
        checkpoint=lambda step, progress: None,
        reference=rehearsal.base,
    )
    return rehearsal.update(steps)(policy, state, scored.problems * steps, rollout, context)


def _sample(problem: Problem, group: int, index: int, prompt: Sequence[int], ids: Sequence[int]) -> Sample:
    return Sample(
        id=f"{RUN_ID}/{group}/{index}",
        problem_id=problem.id,
        group=group,
        index=index,
        policy_id=RUN_ID,
        text="",
        # Not cut at its limit, for all that it reaches it: such samples may be left out.
        finish_reason="stop",
        prompt_ids=tuple(prompt),
        token_ids=tuple(ids),
        loss_mask=(1,) * len(ids),
        logps=(0.0,) * len(ids),
    )


def _moments(state: Any) -> int:
    """Bytes of an optimizer's moments in the state of an update."""
    learner = state.get("learner", state) if state else {}
    return sum(tensor.nbytes for entry in learner.get("moments", {}).values() for tensor in entry.values())
