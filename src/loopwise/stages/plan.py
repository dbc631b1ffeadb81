"""``--dry-run``: everything a run would do, resolved, tried on three real samples and measured on a copy of the model.
Nothing is kept and nothing is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from loopwise.config.methods import DistillConfig, OnlineConfig, optimizer_of
from loopwise.config.recipes import ImproveRecipe, PretrainRecipe, Recipe, TuneRecipe
from loopwise.models.policy import Policy
from loopwise.report.numbers import duration, whole
from loopwise.runtime import Runtime
from loopwise.stages import arithmetic, finetune, improve, pretrain
from loopwise.stages.costs import Costs, disk_bytes, figures, is_at_most, measure, run_seconds
from loopwise.stages.subjects import improving, pretraining, tuning
from loopwise.starting import TRIAL_PROBLEMS
from loopwise.tasks.base import Streams
from loopwise.types import Update
from loopwise.update.distill import Distill
from loopwise.update.rates import Sweep, rates

GIB, MIB = 2**30, 2**20
BUSY = 1.5
BARS, MOST_BARS = "▁▂▃▄▅▆▇█", 30
Sections = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Plan:
    """A run to come: ``sections`` of names and values for people, ``figures`` for programs."""

    sections: Sections
    figures: dict[str, Any]


def examine(recipe: Recipe) -> Plan:
    """Resolve a recipe and measure what it would cost.

    Raises what the run itself would raise before its first round.
    """
    with ExitStack() as stack:
        if isinstance(recipe, PretrainRecipe):
            text = pretrain.prepare(recipe)
            costs = measure(pretraining(text))
            sections = _common(recipe, text.base, text.runtime, costs, dict(_corpus(text)))
            sections["each round"] = dict(_windows(text))
        elif isinstance(recipe, TuneRecipe):
            tuned = finetune.prepare(stack, recipe)
            costs = measure(tuning(tuned))
            sections = _common(recipe, tuned.base, tuned.runtime, costs, dict(_problems(recipe, tuned.streams)))
            sections["each round"] = dict(arithmetic.tuned(recipe, len(tuned.update.labelled), costs.passes))
        else:
            looped = improve.prepare(stack, recipe)
            costs = measure(improving(looped))
            sections = _common(recipe, looped.base, looped.runtime, costs, dict(_problems(recipe, looped.streams)))
            sections["model"] |= dict(_teacher(recipe, looped.update))
            counted = looped.streams.train_count
            problems = recipe.problems if counted is None else min(recipe.problems, counted)
            labelled = bool(looped.streams.labelled)
            sections["each round"] = dict(arithmetic.looped(recipe, problems, labelled, costs.passes))
            sections["rewards on three real samples"] = dict(_trial(looped))
        sections["measured on two steps" if recipe.update.trains else "measured"] = dict(_measured(recipe, costs))
        sections["the whole run, from these"] = dict(_whole(recipe, costs))
        sections["learning rate"] = dict(_rates(recipe, costs))
        return Plan(sections, figures(recipe, costs))


def _common(recipe: Recipe, base: Policy, runtime: Runtime, costs: Costs, data: dict[str, str]) -> Sections:
    return {
        "model": dict(_model(recipe, base)),
        "data": data,
        "machine": {
            "device": runtime.device,
            "compute": runtime.dtype,
            "threads": str(runtime.threads),
            "memory": _memory(runtime, costs),
        },
    }


def _model(recipe: Recipe, base: Policy) -> Iterator[tuple[str, str]]:
    if base.weights is None:
        yield "from", f"elsewhere: endpoint {recipe.model.endpoint}"
        return
    yield "from", recipe.model.path or f"created: {recipe.model.create}"
    yield "parameters", f"{base.weights.parameter_count:,}"
    yield "context", f"{base.weights.context_length or 'unlimited'} tokens"


def _teacher(recipe: ImproveRecipe, update: Update) -> Iterator[tuple[str, str]]:
    if isinstance(recipe.update, DistillConfig) and isinstance(update, Distill) and update.teacher.weights is not None:
        size = sum(tensor.nbytes for tensor in update.teacher.weights.module.parameters())
        count = update.teacher.weights.parameter_count
        yield "teacher", f"{recipe.update.teacher}, {count:,} parameters, {_size(size)} beside the model's"


def _problems(recipe: ImproveRecipe | TuneRecipe, streams: Streams) -> Iterator[tuple[str, str]]:
    counted = streams.train_count is not None
    yield "train", f"{streams.train_count:,} rows" if counted else f"task {recipe.data.task}, generated"
    for name, problems in streams.held_out.items():
        yield name, f"{len(problems):,} problems"
    yield "labelled", f"{len(streams.labelled):,} rows"


def _corpus(prepared: pretrain.Prepared) -> Iterator[tuple[str, str]]:
    tokens = sum(text.tokens for text in prepared.texts)
    yield "train", f"{tokens:,} tokens of {prepared.corpus.counts['train/documents']:,} documents"
    for name, text in prepared.held_out.items():
        yield name, f"{text.windows.tokens:,} tokens of {len(text.documents):,} documents"


def _windows(prepared: pretrain.Prepared) -> Iterator[tuple[str, str]]:
    update, rounds = prepared.recipe.update, prepared.recipe.rounds
    window = prepared.texts[0].window
    trained = update.steps * update.batch_size * window
    epochs = trained / sum(text.tokens for text in prepared.texts)
    each = f"{update.batch_size} windows x {window} tokens"
    yield "training", f"{update.steps} steps x {each} = {trained:,} tokens, {epochs:.1f} epochs"
    yield "micro-batches", f"{update.micro_batch_size or update.batch_size} windows a forward pass"
    yield "rounds", str(rounds)


def _trial(prepared: improve.Prepared) -> Iterator[tuple[str, str]]:
    problems = {problem.id: problem for problem in prepared.streams.draw(1, TRIAL_PROBLEMS)[:TRIAL_PROBLEMS]}
    totals = prepared.trial.feedback.totals
    for sample, total in zip(prepared.trial.samples, totals.tolist(), strict=True):
        verdict = "could not be judged" if math.isnan(total) else f"{total:g}"
        which = "" if sample.index == 0 else f", sample {sample.index + 1}"
        yield f"{str(problems[sample.problem_id].prompt)[-40:]!r}{which}", f"{sample.text[:60]!r} -> {verdict}"


def _memory(runtime: Runtime, costs: Costs) -> str:
    whose = "of this process" if runtime.torch_device.type == "cpu" else "on the GPU"
    how = "measured" if costs.exact else "measured, maybe while loading: this system cannot tell"
    run = f"{_size(costs.peak - costs.before)} of it for the run with its longest rows"
    return f"{_size(costs.peak)} {whose} at the peak, {run} ({how})"


def _measured(recipe: Recipe, costs: Costs) -> Iterator[tuple[str, str]]:
    steps, update = costs.steps, recipe.update
    rehearsed = isinstance(recipe, ImproveRecipe) and not update.imitates_rows
    rows = " on samples of sampling.max_tokens tokens, after drawing them" if rehearsed else " on the longest rows"
    if isinstance(recipe, PretrainRecipe):
        rows = ""
    if steps.seconds:
        yield "first step", f"{steps.first:.3g} s{rows}"
        yield "second step", f"{steps.second:.3g} s{rows}"
        after = f"{steps.seconds:.3g} s each, {whole(steps.tokens / steps.seconds)} tokens a second"
        yield "steps after them", f"{after}, at most: as if no problem's samples tied" if rehearsed else after
    if costs.sampling:
        if isinstance(recipe.update, OnlineConfig):
            yield "samples of a step", _seconds(costs.sampling.seconds / costs.each_round, costs.sampling.at_most)
        yield "samples of a round", _seconds(costs.sampling.seconds, costs.sampling.at_most)
    for split, timed in costs.evaluations.items():
        yield f"evaluating {split}", _seconds(timed.seconds, timed.at_most)


def _whole(recipe: Recipe, costs: Costs) -> Iterator[tuple[str, str]]:
    found = run_seconds(recipe, costs)
    for name, seconds in found.items():
        if seconds and name != "total":
            yield name, duration(seconds)
    if found["total"]:
        taken = _seconds(found["total"], is_at_most(recipe, costs))
        yield "time", f"{taken}; rewards, checkpoints and the report come on top"
    else:
        yield "time", "not known: a model elsewhere draws the samples"
    if costs.load > BUSY:
        yield (
            "note",
            f"other programs kept the machine busy (load {costs.load:.1f} a core): on a quiet one it takes less",
        )
    if isinstance(recipe, ImproveRecipe) and recipe.controls and recipe.runtime.processes > 1:
        yield "beside it", "controls, in processes of their own that take as much memory each"
    disk = disk_bytes(recipe, costs)
    yield "disk", f"up to {_size(disk['most'])}; a checkpoint after a round has {_size(disk['checkpoint'])}"


def _rates(recipe: Recipe, costs: Costs) -> Iterator[tuple[str, str]]:
    optimizer, sweep = optimizer_of(recipe.update), costs.sweep
    if optimizer is None:
        yield "none", f"{costs.unswept}"
        return

    def at(factor: float) -> str:
        return ", ".join(f"{name} {rate:.1e}" for name, rate in rates(optimizer, factor).items())

    yield "of the recipe", at(1.0)
    if sweep is None:
        yield "sweep", f"left out: {costs.unswept or 'steps are too slow'}"
        return
    if not len(sweep.losses):
        yield "warning", "the loss is not a finite number from the start: look at the model and its rows"
        return
    yield "sweep", f"{sweep_line(sweep)}  loss of {len(sweep.losses)} steps, {_ends(sweep, optimizer.lr)}"
    if sweep.suggested is None or sweep.steepest is None:
        yield "suggested", "none: no rate lowers the loss clearly"
    else:
        yield "steepest", at(sweep.steepest)
        yield "suggested", f"{at(sweep.suggested)} (the last before four fifths of the descent)"
    yield "largest", "training diverged at none" if sweep.largest is None else f"{at(sweep.largest)} before divergence"
    if sweep.warning:
        yield "warning", f"{sweep.warning}. Set update.optimizer, or see whether dev agrees."


def sweep_line(sweep: Sweep) -> str:
    """The smoothed losses of a sweep as a row of bars; what is over the first loss is cut off at it."""
    every = -(-len(sweep.smoothed) // MOST_BARS)
    losses = np.minimum(sweep.smoothed, sweep.smoothed[:1])[::every]
    span = float(np.ptp(losses)) or 1.0
    return "".join(BARS[round((len(BARS) - 1) * (loss - losses.min()) / span)] for loss in losses.tolist())


def _ends(sweep: Sweep, rate: float) -> str:
    return f"lr {sweep.factors[0] * rate:.0e} to {sweep.factors[-1] * rate:.0e}"


def _seconds(seconds: float, at_most: bool) -> str:
    return f"{'at most ' if at_most else 'about '}{duration(seconds)}"


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
