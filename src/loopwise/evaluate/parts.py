"""One reward of several: how it is called, and what its failures do to a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from loopwise.errors import RewardError
from loopwise.evaluate.contract import Batch, BoundReward, CallError, Outcome, checked_rewards, classified
from loopwise.types import Problem, Sample

MOST_LOST_WORKERS = 3
"""Workers that may be lost while a failed batch is repeated sample by sample, before the rest of it is masked."""


class Caller(Protocol):
    """Calls one reward function on a batch. Raises CallError and nothing else."""

    async def __call__(self, batch: Batch) -> Outcome: ...

    def close(self) -> None: ...


class LocalReward:
    """A reward called in this process: built-in rules and Python callables. Nothing here can cut off a hang."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._reward = BoundReward.of(function)

    async def __call__(self, batch: Batch) -> Outcome:
        outcome = Outcome()
        with classified(None):
            returned = self._reward.start(batch, outcome)
            if inspect.isawaitable(returned):
                returned = await returned
            outcome.rewards = checked_rewards(returned, len(batch))
        return outcome

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class RewardPart:
    """One reward of the sum. Columns in ``hidden`` never reach it."""

    name: str
    weight: float
    uses_reference: bool
    call: Caller
    hidden: frozenset[str] = frozenset()

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


@dataclass
class Judged:
    """What one part said about S samples; ``errors`` maps the spoiled ones to the reason."""

    rewards: list[float | None]
    extra: list[dict[str, Any]]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def nothing(count: int) -> Judged:
        return Judged([None] * count, [{} for _ in range(count)])

    def take(self, positions: Sequence[int], outcome: Outcome) -> None:
        for offset, position in enumerate(positions):
            self.rewards[position] = outcome.rewards[offset]
            self.extra[position] |= {column: values[offset] for column, values in outcome.extra.items()}
        for name, values in outcome.metrics.items():
            self.metrics.setdefault(name, []).extend(values)


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
        raise RewardError(f'reward "{part.name}": {failure.reason}, {where} "{shown}". {failure.mend}') from None
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
