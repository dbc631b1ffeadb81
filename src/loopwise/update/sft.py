"""Supervised fine-tuning on labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from loopwise.config.methods import SFTConfig
from loopwise.data.batches import mixture_batch
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.types import Context, Problem, Rollout, Updated
from loopwise.update.fitting import Batch, supervised, train_round

T = TypeVar("T")


@dataclass(frozen=True)
class SFT:
    """``config.steps`` optimizer steps a round; epochs are walked back to back, in an order fixed by the seed.

    ``rounds`` is the run's number of rounds: the schedule spans them all. ``sources`` are the counts and weights of the
    sources that ``labelled`` is the concatenation of, none for a single one. ``changed(place, epoch)`` is row ``place``
    as augmentation makes it in an epoch.
    """

    config: SFTConfig
    labelled: tuple[TokenRow, ...]
    rounds: int
    sources: tuple[tuple[int, float], ...] = ()
    changed: Callable[[int, int], TokenRow] | None = None
    needs = frozenset({"weights"})

    def __call__(
        self, policy: Policy, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        return train_round(policy, state, context, self.config, self.rounds, self.batch)

    def batch(self, seed: int, step: int) -> Batch[Sequence[TokenRow]]:
        """The rows of optimizer step ``step`` of the run, counted from 0."""
        rows = drawn(self.labelled, self.sources, self.changed, self.config.batch_size, seed, step)
        return supervised(rows, self.config.tokens_per_pass)


def drawn(
    labelled: Sequence[T],
    sources: Sequence[tuple[int, float]],
    changed: Callable[[int, int], T] | None,
    batch_size: int,
    seed: int,
    step: int,
) -> list[T]:
    """What optimizer step ``step`` of a run learns of its labelled rows; the arguments are as SFT has them."""
    sources = sources or ((len(labelled), 1.0),)
    counts = [count for count, _ in sources]
    batch = mixture_batch(counts, [weight for _, weight in sources], batch_size, seed, step)
    rows = []
    for source, index, epoch in zip(batch.source.tolist(), batch.index.tolist(), batch.epoch.tolist(), strict=True):
        place = sum(counts[:source]) + index
        rows.append(changed(place, epoch) if changed else labelled[place])
    return rows
