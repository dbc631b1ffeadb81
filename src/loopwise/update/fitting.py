"""A round's optimizer steps in a row: booked, recorded, checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from loopwise.methods import PairsConfig, PretrainConfig, SFTConfig
from loopwise.models.logps import TokenRow, token_logps
from loopwise.types import Budget, Context, Updated
from loopwise.update.learner import Learner
from loopwise.update.losses import likelihood_loss
from loopwise.update.units import work_units

B = TypeVar("B")


def as_they_are(metrics: Mapping[str, float]) -> Mapping[str, float]:
    """No change."""
    return metrics


@dataclass(frozen=True)
class Batch(Generic[B]):
    """What one optimizer step learns from: micro-batches whose losses add up to the batch's, reading ``tokens``.

    A loss may come with sums of what else is worth knowing, which are added up, too; ``summarise`` turns the step's
    metrics with those sums into the ones to record.
    """

    micro_batches: Sequence[B]
    loss: Callable[[nn.Module, B], torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor | float]]]
    tokens: int
    summarise: Callable[[Mapping[str, float]], Mapping[str, float]] = as_they_are


def supervised(rows: Sequence[TokenRow], tokens_per_pass: int) -> Batch[Sequence[TokenRow]]:
    """A batch whose loss is the mean over its trained tokens, however its rows are cut into forward passes."""
    tokens = max(1, sum(row.trained_tokens for row in rows))

    def loss(module: nn.Module, part: Sequence[TokenRow]) -> torch.Tensor:
        return likelihood_loss(*token_logps(module, part), tokens)

    parts = [[rows[place] for place in unit] for unit in work_units(rows, tokens_per_pass)]
    return Batch(parts, loss, sum(row.total_tokens for row in rows))


def train_round(
    policy: Any,
    state: Any,
    context: Context,
    config: SFTConfig | PretrainConfig | PairsConfig,
    rounds: int,
    batch: Callable[[int, int], Batch[Any]],
) -> Updated:
    """A round of ``config.steps`` optimizer steps that draws no samples, from where it was interrupted.

    ``batch(seed, step)`` is what optimizer step ``step`` of the whole run learns from, counted from 0; the schedule
    spans its ``rounds``. The state is the learner's.
    """
    partial = context.partial
    source, moments = (partial.policy, partial.state) if partial else (policy, state)
    module = source.trainable_module()
    steps = config.steps
    learner = Learner(module, config.optimizer, context.runtime, steps * rounds, moments, round=context.round)
    before = (context.round - 1) * steps

    def progress() -> tuple[Any, Any]:
        return policy.with_module(learner.whole(module)), learner.state()

    start = partial.step if partial else 0
    metrics = fit(learner, steps, lambda step: batch(context.seed, before + step), context, progress, start)
    return Updated(policy.with_module(learner.whole(module)), learner.state(), metrics)


def fit(
    learner: Learner,
    steps: int,
    batch: Callable[[int], Batch[Any]],
    context: Context,
    progress: Callable[[], tuple[Any, Any]],
    start: int,
) -> dict[str, float]:
    """Steps ``start`` to ``steps`` of a round; step s learns from ``batch(s)``.

    Books tokens and FLOPs, records each step, and offers ``progress`` to the context as a mid-round checkpoint.
    Returns the round's mean ``loss``, its ``steps``, and how many of them were ``skipped``.
    """
    del learner.losses[start:], learner.skipped[start:]
    flops = flops_per_token(learner.module)
    for step in range(start, steps):
        work = batch(step)
        metrics = work.summarise(learner.step(work.micro_batches, work.loss))
        context.spend(Budget(tokens_trained=work.tokens, flops=flops * work.tokens))
        context.record(step + 1, metrics)
        context.checkpoint(step + 1, progress)
    return {
        "loss": sum(learner.losses) / len(learner.losses),
        "steps": float(steps),
        "skipped": float(sum(learner.skipped)),
    }


def flops_per_token(module: nn.Module) -> float:
    """Training FLOPs a token: 6 for a parameter that is trained, 4 for one that only passes gradients on."""
    return float(sum((6 if p.requires_grad else 4) * p.numel() for p in module.parameters()))
