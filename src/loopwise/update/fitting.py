"""A round's optimizer steps in a row: booked, recorded, checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from loopwise.config.judge_blocks import JudgingConfig, MaskedConfig
from loopwise.config.methods import PairsConfig, PretrainConfig, SFTConfig
from loopwise.models.logps import TokenRow, token_logps
from loopwise.models.policy import Policy
from loopwise.types import Budget, Context, Updated
from loopwise.update.learner import Learner
from loopwise.update.losses import likelihood_loss
from loopwise.update.units import work_units

B = TypeVar("B")


@dataclass(frozen=True)
class Batch(Generic[B]):
    """What one optimizer step learns from: micro-batches whose losses add up to the batch's, reading ``tokens``.

    A loss may come with sums of what else is worth knowing, which are added up, too.
    """

    micro_batches: Sequence[B]
    loss: Callable[[nn.Module, B], torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor | float]]]
    tokens: int


@dataclass
class Means:
    """Means of metrics over the steps that told them, in the order of the steps; ``skipped`` is added up instead.

    ``asdict`` saves it, ``Means(**saved)`` restores it.
    """

    sums: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float]) -> None:
        """One more step."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps[name] = self.steps.get(name, 0) + 1

    def found(self) -> dict[str, float]:
        """What there is so far."""
        return {name: total if name == "skipped" else total / self.steps[name] for name, total in self.sums.items()}


def supervised(rows: Sequence[TokenRow], tokens_per_pass: int) -> Batch[Sequence[TokenRow]]:
    """A batch whose loss is the mean over its trained tokens, however its rows are cut into forward passes."""
    tokens = max(1, sum(row.trained_tokens for row in rows))

    def loss(module: nn.Module, part: Sequence[TokenRow]) -> torch.Tensor:
        return likelihood_loss(*token_logps(module, part), tokens)

    parts = [[rows[place] for place in unit] for unit in work_units(rows, tokens_per_pass)]
    return Batch(parts, loss, tokens_read(rows))


def train_round(
    policy: Policy,
    state: Any,
    context: Context,
    config: SFTConfig | PretrainConfig | PairsConfig | JudgingConfig | MaskedConfig,
    rounds: int,
    batch: Callable[[int, int], Batch[Any]],
) -> Updated:
    """A round of ``config.steps`` optimizer steps that draws no samples, from where it was interrupted.

    ``batch(seed, step)`` is what optimizer step ``step`` of the whole run learns from, counted from 0; the schedule
    spans its ``rounds``. The state is the learner's.
    """
    partial = context.partial
    source, moments = (partial.policy, partial.state["learner"]) if partial else (policy, state)
    module = source.trainable_module()
    steps = config.steps
    learner = Learner(module, config.optimizer, context.runtime, steps * rounds, moments, round=context.round)
    before = (context.round - 1) * steps

    def snapshot() -> Policy:
        return policy.with_module(learner.whole(module))

    metrics = fit(learner, steps, lambda step: batch(context.seed, before + step), context, snapshot)
    return Updated(snapshot(), learner.state(), metrics)


def fit(
    learner: Learner,
    steps: int,
    batch: Callable[[int], Batch[Any]],
    context: Context,
    snapshot: Callable[[], Policy],
) -> dict[str, float]:
    """The steps of a round from where it was interrupted; step s of ``steps`` learns from ``batch(s)``.

    Books tokens and FLOPs, records each step, and offers ``snapshot()`` to the context as a mid-round checkpoint, with
    the learner's state under ``learner``. Returns the round's means of what was recorded, its ``steps``, and how many
    of them were ``skipped``.
    """
    partial = context.partial
    start, means = (partial.step, Means(**partial.state["means"])) if partial else (0, Means())
    flops = flops_per_token(learner.module)
    for step in range(start, steps):
        work = batch(step)
        metrics = learner.step(work.micro_batches, work.loss)
        means.add(metrics)
        context.spend(Budget(tokens_trained=work.tokens, flops=flops * work.tokens))
        context.record(step + 1, metrics)
        context.checkpoint(step + 1, lambda: (snapshot(), {"learner": learner.state(), "means": asdict(means)}))
    return {"skipped": 0.0, **means.found(), "steps": float(steps)}


def tokens_read(rows: Sequence[TokenRow]) -> int:
    """Tokens of the rows of an optimizer step, each prompt counted once.

    Not of its forward passes: what is booked does not depend on how a step is cut.
    """
    return sum(map(len, {tuple(row.prompt_ids) for row in rows})) + sum(len(row.token_ids) for row in rows)


def flops_per_token(module: nn.Module) -> float:
    """Training FLOPs a token: 6 for a parameter that is trained, 4 for one that only passes gradients on."""
    return float(sum((6 if p.requires_grad else 4) * p.numel() for p in module.parameters()))


def flops_without_gradient(module: nn.Module, tokens: int) -> float:
    """FLOPs of a forward pass alone: 2 a parameter and token."""
    return 2.0 * sum(parameter.numel() for parameter in module.parameters()) * tokens
