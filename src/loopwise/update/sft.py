"""Supervised fine-tuning on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.config import SFTConfig
from loopwise.data.batches import batch_indices
from loopwise.models.logps import TokenRow
from loopwise.models.policy import Policy
from loopwise.types import Context, Problem, Rollout, Updated
from loopwise.update.learner import Learner, fit


@dataclass(frozen=True)
class SFT:
    """``config.steps`` optimizer steps a round; epochs are walked back to back, in an order fixed by the seed.

    ``rounds`` is the run's number of rounds: the schedule spans them all.
    """

    config: SFTConfig
    labelled: tuple[TokenRow, ...]
    rounds: int
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

        def batch(step: int) -> list[TokenRow]:
            order = batch_indices(len(self.labelled), self.config.batch_size, context.seed, before + step)
            return [self.labelled[place] for place in order.tolist()]

        def progress() -> tuple[Policy, Any]:
            return policy.with_module(module), learner.state()

        start = partial.step if partial else 0
        metrics = fit(learner, self.config.steps, batch, self.config.micro_batch_size, context, progress, start)
        return Updated(policy.with_module(module), learner.state(), metrics)
