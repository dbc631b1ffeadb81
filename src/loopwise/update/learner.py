"""The only place that accumulates gradients and steps an optimizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from loopwise.config import OptimizerConfig
from loopwise.models.logps import TokenRow, token_logps
from loopwise.runtime import Runtime, seed_key
from loopwise.types import Budget, Context
from loopwise.update.losses import likelihood_loss
from loopwise.update.muon import Muon

B = TypeVar("B")


class Learner:
    """A module under training with its optimizers. ``state()`` is all that a resumed learner needs besides weights.

    ``round`` keeps the dropout of learners apart that start at step 0 in every round.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        runtime: Runtime,
        total_steps: int,
        state: Any = None,
        *,
        round: int = 0,
    ) -> None:
        self.module = module
        self.config = config
        self.runtime = runtime
        self.total_steps = total_steps
        self.round = round
        self.steps_done = 0
        self.losses: list[float] = []
        self.skipped: list[bool] = []
        self._draws = draws_in_training(module)
        self._names = {parameter: name for name, parameter in module.named_parameters()}
        matrices = block_matrices(module) if config.name == "muon" else []
        chosen = set(matrices)
        rest = [parameter for parameter in module.parameters() if parameter not in chosen]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = Muon(matrices, config.matrix_lr, config.momentum, config.weight_decay)
            self._optimizers.append((muon, config.matrix_lr))
        adamw = torch.optim.AdamW(rest, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
        self._optimizers.append((adamw, config.lr))
        if state is not None:
            self._load(state)

    def step(self, micro_batches: Sequence[B], loss: Callable[[nn.Module, B], torch.Tensor]) -> dict[str, float]:
        """One optimizer step. The losses of the micro-batches must add up to the loss of the batch.

        Returns ``loss``, ``grad_norm`` (before clipping), ``learning_rate``. A gradient that is not finite is not
        applied: ``skipped`` is then 1.
        """
        total = 0.0
        for place, batch in enumerate(micro_batches):
            with self._seeded(place), self.runtime.autocast():
                value = loss(self.module, batch)
            value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip))
        share = rate_share(self.config, self.steps_done, self.total_steps)
        finite = math.isfinite(norm)
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        self.losses.append(total)
        self.skipped.append(not finite)
        metrics = {"loss": total, "grad_norm": norm, "learning_rate": self.config.lr * share}
        return metrics if finite else {**metrics, "skipped": 1.0}

    @contextlib.contextmanager
    def _seeded(self, micro_batch: int) -> Iterator[None]:
        """Make what the module draws (dropout) a pure function of seed, round, step and micro-batch."""
        if not self._draws:
            yield
            return
        device = self.runtime.torch_device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            key = seed_key("dropout", self.runtime.seed, self.round, self.steps_done, micro_batch)
            torch.manual_seed(key % 2**63)
            yield

    def state(self) -> dict[str, Any]:
        """Steps done, losses and skips of the round so far, and the moments of every parameter by name, copied."""
        moments = {
            self._names[parameter]: {key: value.clone() for key, value in entry.items()}
            for optimizer, _ in self._optimizers
            for parameter, entry in optimizer.state.items()
        }
        return {
            "steps_done": self.steps_done,
            "losses": list(self.losses),
            "skipped": list(self.skipped),
            "moments": moments,
        }

    def _load(self, state: Any) -> None:
        self.steps_done = state["steps_done"]
        self.losses = list(state["losses"])
        self.skipped = list(state["skipped"])
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    entry = state["moments"].get(self._names[parameter])
                    if entry is not None:
                        optimizer.state[parameter] = {key: value.clone() for key, value in entry.items()}


def block_matrices(module: nn.Module) -> list[torch.Tensor]:
    """The weight matrices inside the blocks: those of linear layers, without embeddings and output layer."""
    from transformers.pytorch_utils import Conv1D

    outside = {id(layer.weight) for layer in (_layer(module, "input"), _layer(module, "output")) if layer is not None}
    return [
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear | Conv1D) and id(layer.weight) not in outside
    ]


def draws_in_training(module: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers: dropout in layers, or in attributes that name it."""
    return any(
        (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
        # Attention and several architectures drop by function, at a rate that is a plain attribute.
        or any("drop" in name and isinstance(value, int | float) and value > 0 for name, value in vars(part).items())
        for part in module.modules()
    )


def rate_share(config: OptimizerConfig, step: int, total: int) -> float:
    """Share of the learning rate at a step (counted from 0): linear warm-up times the schedule down to its end."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(1.0, step / total)
    if config.schedule == "linear":
        return warm * max(config.final_share, 1.0 - progress)
    if config.schedule == "cosine":
        return warm * (config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress)))
    return warm


def fit(
    learner: Learner,
    steps: int,
    batch_rows: Callable[[int], list[TokenRow]],
    micro_batch_size: int | None,
    context: Context,
    progress: Callable[[], tuple[Any, Any]],
    start: int,
) -> dict[str, float]:
    """Supervised steps ``start`` to ``steps``; step s trains on ``batch_rows(s)``.

    Returns the round's mean ``loss``, its ``steps``, and how many of them were ``skipped``.

    Books tokens and FLOPs, records each step, and offers ``progress`` to the context as a mid-round checkpoint.
    """
    del learner.losses[start:], learner.skipped[start:]
    parameters = sum(parameter.numel() for parameter in learner.module.parameters())
    for step in range(start, steps):
        rows = batch_rows(step)
        tokens = max(1, sum(row.trained_tokens for row in rows))
        size = micro_batch_size or len(rows)

        def loss(module: nn.Module, batch: list[TokenRow], tokens: int = tokens) -> torch.Tensor:
            return likelihood_loss(*token_logps(module, batch), tokens)

        metrics = learner.step([rows[place : place + size] for place in range(0, len(rows), size)], loss)
        read = sum(row.total_tokens for row in rows)
        context.spend(Budget(tokens_trained=read, flops=6.0 * parameters * read))
        context.record(step + 1, metrics)
        context.checkpoint(step + 1, progress)
    return {
        "loss": sum(learner.losses) / len(learner.losses),
        "steps": float(steps),
        "skipped": float(sum(learner.skipped)),
    }


def _layer(module: nn.Module, side: str) -> Any:
    return getattr(module, f"get_{side}_embeddings")()
