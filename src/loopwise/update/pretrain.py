"""Next-token prediction on packed windows of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopwise.config.methods import PretrainConfig
from loopwise.data.batches import mixture_batch
from loopwise.data.windows import Packed, Windows, gather
from loopwise.models.logps import window_logps
from loopwise.types import Context, Problem, Rollout, Updated
from loopwise.update.fitting import Batch, train_round


@dataclass(frozen=True)
class Pretrain:
    """``config.steps`` optimizer steps a round on ``config.batch_size`` windows each, drawn from ``texts`` by weight.

    Each text walks its own epochs; which windows a step sees is a pure function of seed and step. ``rounds`` is the
    run's number of rounds: the schedule spans them all.
    """

    config: PretrainConfig
    texts: tuple[Packed, ...]
    weights: tuple[float, ...]
    rounds: int
    needs = frozenset({"weights"})

    def __call__(
        self, policy: Any, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        return train_round(policy, state, context, self.config, self.rounds, self.batch)

    def batch(self, seed: int, step: int) -> Batch[Windows]:
        """The windows of optimizer step ``step`` of the run, counted from 0."""
        drawn = mixture_batch([text.windows for text in self.texts], self.weights, self.config.batch_size, seed, step)
        return window_batch(gather(self.texts, drawn, seed), self.config.micro_batch_size)


def window_batch(windows: Windows, micro_batch_size: int | None) -> Batch[Windows]:
    """A batch whose loss is the mean over all its predicted tokens (nats a token)."""
    count = len(windows.input_ids)
    size = micro_batch_size or count

    def loss(module: nn.Module, part: Windows) -> torch.Tensor:
        return -window_logps(module, part).sum() / windows.targets.size

    return Batch(
        [_part(windows, slice(first, first + size)) for first in range(0, count, size)], loss, windows.input_ids.size
    )


def _part(windows: Windows, rows: slice) -> Windows:
    positions = windows.position_ids
    return Windows(windows.input_ids[rows], windows.targets[rows], None if positions is None else positions[rows])
