"""Learning to judge: labels of texts, which of two texts is better, whether a text is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopwise.config.judge_blocks import JudgingConfig
from loopwise.data.batches import batch_indices
from loopwise.models.judges import TokenIds, read_texts
from loopwise.models.logps import TokenRow
from loopwise.types import Context, Problem, Rollout, Updated
from loopwise.update.fitting import Batch, train_round
from loopwise.update.losses import bradley_terry_loss, hinge_loss, label_loss, logistic_loss
from loopwise.update.units import work_units


@dataclass(frozen=True)
class JudgedRow:
    """The token ids of a text, or of the chosen and the rejected one, with the judgement."""

    texts: tuple[tuple[int, ...], ...]
    label: int = 0
    margin: float = 0.0


Told = tuple[torch.Tensor, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Judging:
    """``config.steps`` optimizer steps a round on ``config.batch_size`` rows each, epoch after epoch.

    ``kind`` is labels, preference or unpaired. Which rows a step sees is a pure function of seed and step; rows of like
    length share a forward pass. ``rounds`` is the run's number of rounds: the schedule spans them all.
    """

    config: JudgingConfig
    kind: str
    rows: tuple[JudgedRow, ...]
    rounds: int
    needs = frozenset({"weights"})

    def __call__(
        self, policy: Any, state: Any, problems: Sequence[Problem], rollout: Rollout, context: Context
    ) -> Updated:
        return train_round(policy, state, context, self.config, self.rounds, self.batch)

    def batch(self, seed: int, step: int) -> Batch[Sequence[JudgedRow]]:
        """The rows of optimizer step ``step`` of the run, counted from 0; the loss is their mean."""
        rows = [self.rows[place] for place in batch_indices(len(self.rows), self.config.batch_size, seed, step)]
        tell = {"labels": _labels, "preference": self._pairs, "unpaired": _unpaired}[self.kind]

        def loss(module: nn.Module, part: Sequence[JudgedRow]) -> Told:
            return _per_row(len(rows), tell, module, part)

        texts = len(rows[0].texts)
        lengths = [max(row.texts, key=len) for row in rows]
        units = units_of(lengths, max(1, self.config.tokens_per_pass // texts))
        tokens = sum(len(text) for row in rows for text in row.texts)
        return Batch([[rows[place] for place in unit] for unit in units], loss, tokens)

    def _pairs(self, module: nn.Module, rows: Sequence[JudgedRow]) -> Told:
        scores = read_texts(module, [text for row in rows for text in row.texts])
        chosen, rejected = scores[0::2], scores[1::2]
        margins = torch.tensor([self.config.margin + row.margin for row in rows]).to(scores)
        loss = {"bradley_terry": bradley_terry_loss, "hinge": hinge_loss}[self.config.loss]
        told = {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/margins": (chosen - rejected).sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
        }
        return loss(chosen, rejected, margins), told


def units_of(texts: Sequence[TokenIds], tokens_per_pass: int) -> list[list[int]]:
    """Positions of texts, cut into forward passes of at most ``tokens_per_pass`` padded tokens, by length."""
    return work_units([TokenRow(text, ()) for text in texts], tokens_per_pass)


def _labels(module: nn.Module, rows: Sequence[JudgedRow]) -> Told:
    logits = read_texts(module, [row.texts[0] for row in rows])
    labels = _judgements(rows, logits)
    return label_loss(logits, labels), {"accuracy": (logits.argmax(-1) == labels).sum()}


def _unpaired(module: nn.Module, rows: Sequence[JudgedRow]) -> Told:
    scores = read_texts(module, [row.texts[0] for row in rows])
    labels = _judgements(rows, scores)
    return logistic_loss(scores, labels), {"accuracy": ((scores > 0) == (labels > 0)).sum()}


def _judgements(rows: Sequence[JudgedRow], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([row.label for row in rows], device=like.device)


def _per_row(
    count: int,
    tell: Callable[[nn.Module, Sequence[JudgedRow]], Told],
    module: nn.Module,
    part: Sequence[JudgedRow],
) -> Told:
    """Loss and sums of a part of ``count`` rows, which add up to the means over all of them."""
    loss, sums = tell(module, part)
    return loss.sum() / count, {name: value.detach() / count for name, value in sums.items()}
