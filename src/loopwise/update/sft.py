"""Supervised fine-tuning on labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.blocks import SFTConfig
from loopwise.data.batches import mixture_batch
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.types import Context, Problem, Rollout, Updated
from loopwise.update.fitting import Batch, fit, supervised
from loopwise.update.learner import Learner


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
        partial = context.partial
        source, moments = (partial.policy, partial.state) if partial else (policy, state)
        module = source.trainable_module()
        total = self.config.steps * self.rounds
        learner = Learner(module, self.config.optimizer, context.runtime, total, moments, round=context.round)
        before = (context.round - 1) * self.config.steps

        def progress() -> tuple[Policy, Any]:
            return policy.with_module(module), learner.state()

        metrics = fit(
            learner,
            self.config.steps,
            lambda step: self.batch(context.seed, before + step),
            context,
            progress,
            partial.step if partial else 0,
        )
        return Updated(policy.with_module(module), learner.state(), metrics)

    def batch(self, seed: int, step: int) -> Batch[Sequence[TokenRow]]:
        """The rows of optimizer step ``step`` of the run, counted from 0."""
        sources = self.sources or ((len(self.labelled), 1.0),)
        counts = [count for count, _ in sources]
        drawn = mixture_batch(counts, [weight for _, weight in sources], self.config.batch_size, seed, step)
        rows = []
        for source, index, epoch in zip(drawn.source.tolist(), drawn.index.tolist(), drawn.epoch.tolist(), strict=True):
            place = sum(counts[:source]) + index
            rows.append(self.changed(place, epoch) if self.changed else self.labelled[place])
        return supervised(rows, self.config.micro_batch_size)
