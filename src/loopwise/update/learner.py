"""The only place that accumulates gradients and steps an optimizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from loopwise.config.blocks import OptimizerConfig
from loopwise.models.policy import is_adapter
from loopwise.runtime import Runtime, seed_key
from loopwise.update.muon import Muon
from loopwise.update.reduction import GradientSum
from loopwise.update.sharding import Sharded, gathered, scattered

B = TypeVar("B")
T = TypeVar("T")
Sums = Mapping[str, torch.Tensor | float]
Loss = Callable[[nn.Module, B], torch.Tensor | tuple[torch.Tensor, Sums]]
"""The loss of a micro-batch, alone or with sums of what else is worth knowing, which are added over micro-batches."""


@dataclass(frozen=True)
class _Part:
    """What came of a micro-batch: its place in the batch, its loss, and sums by name."""

    place: int
    loss: float
    sums: Mapping[str, float]


class Learner:
    """A module under training with its optimizers. ``state()`` is all that a resumed learner needs besides weights.

    ``round`` keeps the dropout of learners apart that start at step 0 in every round. Where ``runtime`` says so, the
    module is sharded in place, and ``whole`` is how to copy it.
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
        self._draws = draws_in_training(module)
        self._shards = Sharded(module, runtime) if runtime.sharded else None
        self._names = {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
        matrices = block_matrices(module) if config.name == "muon" else []
        matrices = [matrix for matrix in matrices if matrix in self._names]
        chosen = set(matrices)
        rest = [parameter for parameter in self._names if parameter not in chosen]
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = Muon(matrices, config.matrix_lr, config.momentum, config.weight_decay)
            self._optimizers.append((muon, config.matrix_lr))
        adamw = torch.optim.AdamW(rest, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
        self._optimizers.append((adamw, config.lr))
        if state is not None:
            self._load(state)

    def step(self, micro_batches: Sequence[B], loss: Loss[B]) -> dict[str, float]:
        """One optimizer step. The losses of the micro-batches must add up to the loss of the batch.

        Returns ``loss``, ``grad_norm`` (before clipping), ``learning_rate``, and the loss function's sums under their
        names. A gradient that is not finite is not applied: ``skipped`` is then 1. Ranks deal the micro-batches out and
        end with one gradient, whose bits are those of one process unless it is sharded.
        """
        parts = self._accumulate(micro_batches, loss)
        total = sum((part.loss for part in parts), 0.0)
        sums: dict[str, float] = {}
        for part in parts:
            for name, value in part.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        norm = float(gathered(nn.utils.clip_grad_norm_(list(self._names), self.config.clip)))
        share = rate_share(self.config, self.steps_done, self.total_steps)
        finite = math.isfinite(norm)
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        metrics = {**sums, "loss": total, "grad_norm": norm, "learning_rate": self.config.lr * share}
        return metrics if finite else {**metrics, "skipped": 1.0}

    def read(self, units: Sequence[B], work: Callable[[nn.Module, B], T]) -> list[T]:
        """``work(module, unit)`` of every unit, in order, without gradients or dropout. Ranks deal the units out."""
        ranks = self.runtime.ranks
        found: list[T] = []
        mode = self.module.training
        self.module.eval()
        with torch.no_grad(), self.runtime.autocast():
            for wave in ranks.waves(units):
                own = wave[min(ranks.rank, len(wave) - 1)]
                # Sharded weights are whole for all ranks at a time: one without a unit takes part with another's.
                result = self._with_weights(work, own) if ranks.rank < len(wave) or self._shards else None
                found += ranks.gather(result)[: len(wave)]  # type: ignore[arg-type]  # None lies beyond the wave
        self.module.train(mode)
        return found

    def whole(self, part: nn.Module) -> nn.Module:
        """``part`` of the module as it is now, to be copied or sampled from: itself, or a whole copy of a sharded one.

        All ranks must ask together.
        """
        return self._shards.whole(part) if self._shards else part

    def _accumulate(self, micro_batches: Sequence[B], loss: Loss[B]) -> list[_Part]:
        """Leave the batch's gradient in ``grad`` on every rank; what came of each micro-batch, in order."""
        ranks = self.runtime.ranks
        if ranks.world == 1:
            return [self._backward(place, batch, loss) for place, batch in enumerate(micro_batches)]
        reduction = None if self._shards else GradientSum(list(self._names), ranks)
        own: list[_Part] = []
        for number, wave in enumerate(ranks.waves(micro_batches)):
            place = number * ranks.world + ranks.rank
            if ranks.rank < len(wave):
                own.append(self._backward(place, wave[ranks.rank], loss))
            elif self._shards:
                # Sharded passes are of all ranks together: one without a unit repeats one, for nothing.
                self._backward(place, wave[-1], loss, weight=0.0)
            if reduction:
                reduction.add(len(wave))
        if reduction:
            reduction.finish()
        return sorted((part for parts in ranks.gather(own) for part in parts), key=lambda part: part.place)

    def _backward(self, place: int, batch: B, loss: Loss[B], weight: float | None = None) -> _Part:
        with self._seeded(place), self.runtime.autocast():
            found = self._with_weights(loss, batch)
        value, sums = found if isinstance(found, tuple) else (found, {})
        (value if weight is None else value * weight).backward()  # type: ignore[no-untyped-call]
        return _Part(place, float(value.detach()), {name: float(entry) for name, entry in sums.items()})

    def _with_weights(self, work: Callable[[nn.Module, B], T], batch: B) -> T:
        if self._shards is None:
            return work(self.module, batch)
        result: T = self._shards(lambda module: work(module, batch))
        return result

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
        """Steps done, and the moments of every parameter by name, copied."""
        moments = {
            self._names[parameter]: {key: gathered(value).clone() for key, value in entry.items()}
            for optimizer, _ in self._optimizers
            for parameter, entry in optimizer.state.items()
        }
        return {"steps_done": self.steps_done, "moments": moments}

    def _load(self, state: Any) -> None:
        self.steps_done = state["steps_done"]
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    entry = state["moments"].get(self._names[parameter])
                    if entry is not None:
                        optimizer.state[parameter] = {
                            key: scattered(value, parameter).clone()
                            if value.shape == parameter.shape
                            else value.clone()
                            for key, value in entry.items()
                        }


def block_matrices(module: nn.Module) -> list[torch.Tensor]:
    """The weight matrices inside the blocks: those of linear layers, without embeddings and output layer.

    Not those of adapters, whose product is the update and not they; nor an LSTM's, which are four gates' in a stack.
    """
    from transformers.pytorch_utils import Conv1D

    outside = {id(layer.weight) for layer in (_layer(module, "input"), _layer(module, "output")) if layer is not None}
    return [
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and id(layer.weight) not in outside and not is_adapter(name)
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


def _layer(module: nn.Module, side: str) -> Any:
    return getattr(module, f"get_{side}_embeddings")()
