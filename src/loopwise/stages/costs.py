"""What a whole run will take: seconds, memory and disk, worked out from the pieces that the probe measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.config.blocks import OptimizerConfig
from loopwise.config.methods import optimizer_of
from loopwise.config.recipes import ImproveRecipe, Recipe
from loopwise.measuring import Parts
from loopwise.models.policy import Policy
from loopwise.monitors import monitored
from loopwise.session import WATCH_SAMPLES
from loopwise.stages.controls import KEEPS
from loopwise.stages.memory import PeakMemory
from loopwise.stages.probe import Steps, Timed, Training, find_rate, take_steps, time_samples
from loopwise.stages.rehearsal import Rehearsal, rehearse
from loopwise.starting import sampling_of
from loopwise.types import Problem
from loopwise.update.rates import Sweep, rates


@dataclass(frozen=True)
class Subject:
    """A prepared run, as it is measured: ``evaluations`` time each held-out split, ``sampling`` a round's samples.

    ``base`` is None where a model elsewhere draws the samples, untimed; ``training`` where no weights change.
    ``steps`` are those of a round. ``unswept`` says why no learning rate is looked for, where none is. ``passes`` are
    the forward passes of a step on the longest rows, None where they are not known before.
    """

    parts: Parts
    base: Policy | None
    training: Training | Rehearsal | None
    steps: int
    evaluations: Mapping[str, Callable[[], Timed]]
    sampling: Callable[[], Timed] | None = None
    unswept: str | None = None
    passes: int | None = None


@dataclass(frozen=True)
class Costs:
    """What was measured. ``before`` and ``peak`` are bytes of memory: of the process, or of torch on a GPU.

    ``each_round`` is how many steps a round has, ``load`` the processes that wanted a core meanwhile, ours among them,
    for each core. Without a ``sweep``, ``unswept`` may say why.
    """

    steps: Steps
    each_round: int
    evaluations: Mapping[str, Timed]
    sampling: Timed | None
    watching: Timed | None
    monitoring: Timed | None
    before: int
    peak: int
    exact: bool
    load: float
    sweep: Sweep | None
    unswept: str | None = None
    passes: int | None = None


def measure(subject: Subject) -> Costs:
    """Take the steps, evaluate, sample; then sweep the learning rate, which is not part of a run's memory."""
    parts, training = subject.parts, subject.training
    memory = PeakMemory(parts.runtime)
    steps, held = Steps.none(subject.base), ()
    if training is not None:
        steps, held = rehearse(training) if isinstance(training, Rehearsal) else take_steps(training)
    evaluations = {split: evaluate() for split, evaluate in subject.evaluations.items()}
    sampling = subject.sampling() if subject.sampling else None
    watching = _sampled(subject, parts.watched, WATCH_SAMPLES)
    monitoring = None
    if isinstance(parts.recipe, ImproveRecipe):
        monitoring = _sampled(subject, monitored(parts.recipe, parts.streams), parts.recipe.monitors.samples)
    peak = memory.read()
    del held
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    sweep = None
    if isinstance(training, Training) and subject.unswept is None:
        sweep = find_rate(training, steps.seconds)
    return Costs(
        steps=steps,
        each_round=subject.steps,
        evaluations=evaluations,
        sampling=sampling,
        watching=watching,
        monitoring=monitoring,
        before=memory.before,
        peak=peak,
        exact=memory.exact,
        load=load,
        sweep=sweep,
        unswept=subject.unswept,
        passes=subject.passes,
    )


def _sampled(subject: Subject, problems: Sequence[Problem], each: int) -> Timed | None:
    """So many samples of each problem, drawn after every round."""
    if not problems or subject.base is None:
        return None
    recipe, runtime = subject.parts.recipe, subject.parts.runtime
    unit = recipe.runtime.generate_batch
    return time_samples(subject.base, problems, each, sampling_of(recipe), runtime, unit)


def run_seconds(recipe: Recipe, costs: Costs) -> dict[str, float]:
    """Seconds of a whole run by what they go into, and in ``total``; rewards, checkpoints and report are left out."""
    test = costs.evaluations.get("test")
    each_round = sum(timed.seconds for split, timed in costs.evaluations.items() if split != "test")
    last = test.seconds if test else 0.0
    shared = {
        "training": recipe.rounds * costs.each_round * costs.steps.seconds,
        "watching": (recipe.rounds + 1) * costs.watching.seconds if costs.watching else 0.0,
        "monitors": (recipe.rounds + 1) * costs.monitoring.seconds if costs.monitoring else 0.0,
    }
    sampling = recipe.rounds * costs.sampling.seconds if costs.sampling else 0.0
    found = {**shared, "evaluation": (recipe.rounds + 1) * each_round + 2 * last, "sampling": sampling}
    if isinstance(recipe, ImproveRecipe) and recipe.held_out_revisions:
        # The answers of the base and of the result are revised; those of the rounds between are not.
        once = sum(costs.evaluations[split].seconds for split in ("dev", "test") if split in costs.evaluations)
        found["revising"] = 2 * recipe.held_out_revisions * once
    loop = sum(found.values())
    if not isinstance(recipe, ImproveRecipe) or not recipe.controls:
        return {**found, "total": loop}
    one = sum(shared.values()) + (recipe.rounds + 1) * each_round + last
    controls = sum(one + (sampling if KEEPS[name] == "all" else 0.0) for name in recipe.controls)
    beside = recipe.runtime.processes - 1
    total = max(loop, controls / min(beside, len(recipe.controls))) if beside else loop + controls
    return {**found, "controls": controls, "total": total}


def disk_bytes(recipe: Recipe, costs: Costs) -> dict[str, int]:
    """Bytes of a checkpoint after a round, and the most that all checkpoints and models of a run hold at one time.

    In the middle of a round there is a half-trained model too; one more checkpoint is written before the oldest goes.
    """
    weights, moments = costs.steps.weights, costs.steps.moments
    runs = 1 + (len(recipe.controls) if isinstance(recipe, ImproveRecipe) else 0)
    models = 2 if isinstance(recipe, ImproveRecipe) else 1
    most = runs * (recipe.runtime.keep_checkpoints + 1) * 2 * (weights + moments) + models * weights
    return {"checkpoint": weights + moments, "most": most}


def figures(recipe: Recipe, costs: Costs) -> dict[str, Any]:
    """All numbers, for programs: seconds, bytes, learning rates."""
    steps = costs.steps
    return {
        "first_step_seconds": steps.first,
        "second_step_seconds": steps.second,
        "step_seconds": steps.seconds,
        "steps_a_round": costs.each_round,
        "forward_passes_a_step": costs.passes,
        "tokens_per_second": steps.tokens / steps.seconds if steps.seconds else 0.0,
        "memory_bytes": {"before": costs.before, "peak": costs.peak},
        "disk_bytes": disk_bytes(recipe, costs),
        "run_seconds": run_seconds(recipe, costs),
        "run_seconds_are_at_most": is_at_most(recipe, costs),
        "load_per_core": costs.load,
        "learning_rate": _rates(optimizer_of(recipe.update), costs.sweep),
    }


def is_at_most(recipe: Recipe, costs: Costs) -> bool:
    """Whether samples were cut short, or there may be fewer of them, and the run may take less."""
    if isinstance(recipe, ImproveRecipe) and recipe.held_out_revisions:
        return True
    drawn = costs.sampling, costs.watching, costs.monitoring
    return any(timed.at_most for timed in (*costs.evaluations.values(), *drawn) if timed)


def _rates(optimizer: OptimizerConfig | None, sweep: Sweep | None) -> dict[str, Any] | None:
    """What the sweep found, beside the rates of the recipe; None where none was taken."""
    if optimizer is None or sweep is None:
        return None

    def at(factor: float | None) -> dict[str, float] | None:
        return None if factor is None else rates(optimizer, factor)

    swept = {name: (sweep.factors * rate).tolist() for name, rate in rates(optimizer).items()}
    return {
        "recipe": rates(optimizer),
        "steepest": at(sweep.steepest),
        "largest": at(sweep.largest),
        "suggested": at(sweep.suggested),
        "warning": sweep.warning,
        "sweep": {**swept, "loss": sweep.losses.tolist(), "smoothed_loss": sweep.smoothed.tolist()},
    }
