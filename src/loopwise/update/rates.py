"""Which learning rate? A sweep over all of them on a model that is thrown away afterwards.

The range test of Smith 2015, "Cyclical learning rates for training neural networks", section 3.3: the rate grows with
every step, and the loss shows which rates are too low, right and too high. Left out: the cyclical schedule. The rate
grows exponentially, and the suggestion is worked out rather than read off by eye.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from loopwise.config.blocks import OptimizerConfig
from loopwise.runtime import Runtime
from loopwise.update.fitting import Batch
from loopwise.update.learner import Learner

DECADES = 6
LOWEST = {"lr": 1e-6, "matrix_lr": 1e-5}
"""Where a sweep begins; under Muon with the rate that has the longer way to go."""
DESCENT = 0.8
"""The suggestion is the last rate before so much of the descent is done. The rate with the lowest loss is no guide:
valleys are flat, and a loss that still falls owes it to the rates before."""
FAR_OFF = 5.0
"""A rate so many times above or below the suggestion is worth a warning."""
# Decades over which losses are averaged.
_SMOOTHING = 0.2
# Divergence loses half of what was gained, and more than a twentieth of the first loss and the noise of the batches.
_OF_GAIN, _OF_FIRST, _NOISE = 0.5, 0.05, 3.0
# Times the first loss; what is higher is cut off.
_HIGHEST = 1.5


@dataclass(frozen=True)
class Sweep:
    """Losses (nats a token) under growing rates: float64 ``[N]`` each, as many as there were before the model broke.

    ``factors`` multiply the optimizer's own rates. ``losses`` were measured on the batch after a step at that factor,
    ``smoothed`` over a fifth of a decade, the highest ones cut off. The rest are factors too: of the ``steepest``
    descent, the ``largest`` before divergence (None: it never diverged), the ``suggested`` one (None, as ``steepest``
    is, where no rate lowers the loss).
    """

    factors: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float | None
    largest: float | None
    suggested: float | None

    @property
    def warning(self) -> str | None:
        """What is wrong with the optimizer's own rate; None where nothing is."""
        if self.largest is not None and self.largest < 1:
            return "training diverged at this rate"
        if self.suggested is None or 1 / FAR_OFF <= self.suggested <= FAR_OFF:
            return None
        times, side = (self.suggested, "below") if self.suggested > 1 else (1 / self.suggested, "above")
        return f"{times:.0f} times {side} the suggested rate"


def sweep_rates(
    module: nn.Module, config: OptimizerConfig, runtime: Runtime, batch: Callable[[int], Batch[Any]], steps: int
) -> Sweep:
    """Train ``module``, which is spoiled, for ``steps`` steps at rates that grow exponentially over six decades.

    Step s learns from ``batch(s)``; one batch more shows what the last step did. Under Muon both rates grow by a
    common factor. The schedule is left out. A pure function of its arguments.
    """
    factors = first_factor(config) * 10.0 ** (np.arange(steps) * DECADES / (steps - 1))
    losses: list[float] = []
    moments: Any = None
    for step, factor in enumerate([*factors.tolist(), 0.0]):
        # A learner for each rate: one has the rates of its schedule alone.
        learner = Learner(module, scaled(config, factor), runtime, steps, moments)
        work = batch(step)
        losses.append(learner.step(work.micro_batches, work.loss)["loss"])
        if not math.isfinite(losses[-1]):
            break
        moments = learner.state()
    return read_sweep(factors, np.array(losses))


def first_factor(config: OptimizerConfig) -> float:
    """What the recipe's rates are multiplied by at the beginning of a sweep."""
    return min(LOWEST[name] / rate for name, rate in rates(config).items())


def rates(config: OptimizerConfig, factor: float = 1.0) -> dict[str, float]:
    """The rates that a configuration uses, by their keys, times ``factor``."""
    names = ("lr", "matrix_lr") if config.name == "muon" else ("lr",)
    return {name: getattr(config, name) * factor for name in names}


def scaled(config: OptimizerConfig, factor: float) -> OptimizerConfig:
    """The configuration at a constant ``factor`` of its rates, without warm-up."""
    return config.model_copy(update={**rates(config, factor), "schedule": "constant", "warmup_steps": 0})


def read_sweep(factors: np.ndarray, losses: np.ndarray) -> Sweep:
    """Find the rates in a sweep: ``factors`` float64 ``[N]``, ``losses`` ``[N + 1]`` before and after each step.

    Losses may be fewer and end in one that is not finite, where the model broke.
    """
    finite = int(np.isfinite(losses).sum())
    after = losses[1:finite]
    factors = factors[: max(0, len(losses) - 1)]
    broke = len(after) < len(factors)
    logs = np.log10(factors[: len(after)])
    if len(after) < 3:
        return Sweep(factors[: len(after)], after, after, None, float(factors[0]) if len(factors) else None, None)
    # The first third of the rates is too low to move anything: what changes there is the batches.
    early = losses[: max(5, len(factors) // 3)]
    start, noise = float(early[: len(early) // 2 + 1].mean()), float(np.diff(early).std() / math.sqrt(2))
    # How high a loss is that diverged says nothing, and would spread to the losses beside it.
    smoothed = _smooth(logs, np.minimum(after, _HIGHEST * start))
    best = np.minimum.accumulate(np.minimum(smoothed, start))
    tolerated = np.maximum(_OF_GAIN * (start - best), max(_OF_FIRST * start, _NOISE * noise))
    worse = np.flatnonzero(smoothed > best + tolerated)
    end = int(worse[0]) if len(worse) else len(after)
    diverged = broke or len(worse) > 0
    largest = float(factors[max(end - 1, 0)]) if diverged else None
    lowest = int(smoothed[: max(end, 1)].argmin())
    descent = start - smoothed[lowest]
    steepest = suggested = None
    if descent > _NOISE * noise:
        steepest = float(factors[int(np.gradient(smoothed, logs)[: lowest + 1].argmin())])
        done = int((smoothed <= start - DESCENT * descent).argmax())
        suggested = float(factors[max(done - 1, 0)])
    return Sweep(factors[: len(after)], after, smoothed, steepest, largest, suggested)


def _smooth(logs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Losses float64 ``[N]`` averaged with their neighbours on both sides: a running mean would lag behind."""
    nearness = np.exp(-0.5 * ((logs[:, None] - logs[None]) / _SMOOTHING) ** 2)
    return np.asarray(nearness @ losses / nearness.sum(1))
