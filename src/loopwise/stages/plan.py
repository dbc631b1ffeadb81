"""``--dry-run``: everything a run would do, resolved and tried on three real samples. Nothing is trained or written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from loopwise.config import ImproveRecipe, TuneRecipe
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_completions, encode_prompts
from loopwise.runtime import Runtime
from loopwise.session import TRIAL_PROBLEMS
from loopwise.stages import finetune, improve
from loopwise.tasks.streams import Streams

GIB = 2.0**30


def plan(recipe: ImproveRecipe | TuneRecipe) -> dict[str, Any]:
    """Resolve a recipe and describe the run in sections of name and value.

    Raises what the run itself would raise before its first round.
    """
    with ExitStack() as stack:
        if isinstance(recipe, TuneRecipe):
            tuned = finetune.prepare(stack, recipe)
            common = _common(recipe, tuned.base, tuned.streams, tuned.runtime)
            return common | {"each round": dict(_supervised(recipe, len(tuned.streams.labelled)))}
        prepared = improve.prepare(stack, recipe)
        common = _common(recipe, prepared.base, prepared.streams, prepared.runtime)
        trial = dict(_trial(prepared))
        return common | {"each round": dict(_loop(recipe, prepared.streams)), "rewards on three real samples": trial}


def _common(
    recipe: ImproveRecipe | TuneRecipe, base: Policy, streams: Streams, runtime: Runtime
) -> dict[str, dict[str, str]]:
    assert base.weights is not None
    size = base.weights.parameter_count
    held_out = {name: f"{len(problems):,} problems" for name, problems in streams.held_out.items()}
    train = (
        f"{streams.train_count:,} rows" if streams.train_count is not None else f"task {recipe.data.task}, generated"
    )
    return {
        "model": {
            "from": recipe.model.path or f"created: {recipe.model.create}",
            "parameters": f"{size:,}",
            "context": f"{base.weights.context_length or 'unlimited'} tokens",
        },
        "data": {"train": train, **held_out, "labelled": f"{len(streams.labelled):,} rows"},
        "machine": {
            "device": runtime.device,
            "compute": runtime.dtype,
            "threads": str(runtime.threads),
            "memory": f"about {_memory(recipe, base, streams) / GIB:.2f} GiB (estimate)",
        },
    }


def _supervised(recipe: TuneRecipe, rows: int) -> Iterator[tuple[str, str]]:
    update = recipe.update
    trained = update.steps * update.batch_size
    yield "training", f"{update.steps} steps x {update.batch_size} rows = {trained:,} rows, {trained / rows:.1f} epochs"
    yield "micro-batches", f"{update.micro_batch_size or update.batch_size} rows a forward pass"
    yield "rounds", str(recipe.rounds)


def _loop(recipe: ImproveRecipe, streams: Streams) -> Iterator[tuple[str, str]]:
    update = recipe.update
    problems = min(recipe.problems, streams.train_count or recipe.problems)
    yield "sampling", f"{problems} problems x {recipe.samples} samples = {problems * recipe.samples:,} samples"
    if problems < recipe.problems:
        yield "note", f"{recipe.problems} problems a round asked for, the train rows are only {problems}"
    share = update.labelled_share if streams.labelled else 0.0
    yield (
        "training",
        f"{update.steps} steps x {update.batch_size} rows = {update.steps * update.batch_size:,} rows, "
        f"{share:.0%} of them labelled",
    )
    yield "rounds", f"{recipe.rounds}, and {len(recipe.controls)} controls of as many"


def _trial(prepared: improve.Prepared) -> Iterator[tuple[str, str]]:
    problems = list(prepared.streams.draw(1, TRIAL_PROBLEMS))[:TRIAL_PROBLEMS]
    totals = prepared.trial_feedback.totals
    for problem, sample, total in zip(problems, prepared.trial, totals.tolist(), strict=True):
        verdict = "could not be judged" if math.isnan(total) else f"{total:g}"
        yield f"{str(problem.prompt)[-40:]!r}", f"{sample.text[:60]!r} -> {verdict}"


def _memory(recipe: ImproveRecipe | TuneRecipe, base: Policy, streams: Streams) -> float:
    """Bytes: weights, gradients, two moments and three snapshots in fp32, and the activations of a micro-batch."""
    assert base.weights is not None
    config: Any = base.weights.module.config
    rows = recipe.update.micro_batch_size or recipe.update.batch_size
    some = [*streams.labelled[:50], *streams.watch]
    prompts = encode_prompts(base, some) if some else [[0]]
    length = max(map(len, prompts)) + (
        max(map(len, encode_completions(base, [streams.completion(p) for p in streams.labelled[:50]])), default=0)
        if streams.labelled
        else recipe.sampling.max_tokens
    )
    width = getattr(config, "hidden_size", 1024)
    layers = getattr(config, "num_hidden_layers", 12)
    activations = rows * length * (layers * width * 34 + 3 * config.vocab_size) * 4
    return float(7 * 4 * base.weights.parameter_count + activations)
