"""``loopwise tune``: supervised fine-tuning, round by round through the same loop, gate and checkpoints."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loopwise.config import TuneRecipe, load_recipe
from loopwise.errors import ConfigError
from loopwise.evaluate.rewards import RewardSum, load_feedback
from loopwise.generate.check import check_sampling
from loopwise.generate.local import LocalGenerator
from loopwise.loop import Position
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_fitting
from loopwise.results import Result, conclude
from loopwise.runtime import Runtime, make_runtime
from loopwise.session import (
    TRIAL_PROBLEMS,
    Observer,
    Parts,
    Session,
    Stages,
    recorded_threads,
    reward_fingerprint,
    start_policy,
    try_rewards,
)
from loopwise.tasks.streams import Streams, open_streams
from loopwise.update.rows import labelled_rows
from loopwise.update.sft import SFT
from loopwise.workspace import Workspace, open_workspace

RUN_ID = "tune"


@dataclass(frozen=True)
class Prepared:
    """A recipe with everything resolved, before anything is written."""

    recipe: TuneRecipe
    runtime: Runtime
    streams: Streams
    base: Policy
    update: SFT
    feedback: RewardSum


def tune(
    recipe: TuneRecipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Fine-tune on a recipe's labelled rows into the new folder ``out`` (or go on with it); the best round wins.

    Raises LoopwiseError for anything a person can mend, before anything is written.
    """
    began = time.monotonic()
    out, observer = Path(out), observer or Observer()
    if not isinstance(recipe, TuneRecipe):
        recipe = load_recipe(TuneRecipe, recipe)
    with ExitStack() as stack:
        prepared = prepare(stack, recipe, recorded_threads(out, RUN_ID, resume=resume))
        workspace = stack.enter_context(
            open_workspace(out, resume=resume, note=observer.note, disk_wait=recipe.runtime.disk_wait)
        )
        stages, position = tune_in(workspace, prepared, observer)
        return conclude(workspace, RUN_ID, recipe, stages, position, began)


def tune_in(workspace: Workspace, prepared: Prepared, observer: Observer) -> tuple[Stages, Position]:
    """The rounds of a prepared recipe in an open workspace: figures before and after, and where they ended."""
    recipe = prepared.recipe
    files = workspace.run(RUN_ID, recipe.runtime.keep_checkpoints)
    fingerprint = {
        **prepared.streams.fingerprint,
        **reward_fingerprint(recipe.rewards),
        "model": prepared.base.id,
    }
    files.enter("tune", recipe, fingerprint, prepared.runtime)
    generator = LocalGenerator(prepared.runtime)
    parts = Parts(recipe, prepared.streams, prepared.runtime, prepared.update, generator, prepared.feedback)
    session = Session(parts, files, observer)
    position = session.run(prepared.base)
    first = "untrained" if recipe.model.create else "base"
    stages = {
        first: session.stage(prepared.base, 0, first),
        "tuned": session.stage(position.incumbent, position.incumbent_round, "tuned"),
    }
    workspace.store(lambda: workspace.journal.set_status(RUN_ID, "finished"))
    return stages, position


def prepare(stack: ExitStack, recipe: TuneRecipe, threads: int | None = None) -> Prepared:
    """Resolve everything a recipe names. Writes nothing; reward workers are entered on ``stack``."""
    if recipe.gate.metric == "reward" and not recipe.rewards:
        raise ConfigError('key "gate.metric": reward needs rewards to measure. Add them, or use metric: likelihood.')
    runtime = make_runtime(recipe.runtime, recipe.seed, threads)
    streams = open_streams(recipe.data, recipe.seed, supervised=True)
    base = start_policy(recipe.model, runtime)
    completions = [streams.completion(problem) for problem in streams.labelled]
    rows = labelled_rows(base, streams.labelled, completions, recipe.update.max_length)
    for name, problems in streams.held_out.items():
        if recipe.gate.metric == "reward":
            encode_fitting(base, problems, recipe.sampling.max_tokens, name)
        else:
            labelled_rows(base, problems, [streams.completion(problem) for problem in problems], None)
    if recipe.rewards:
        check_sampling(base, runtime)
    feedback = load_feedback(recipe.rewards, reference_columns=streams.reference_columns, label_free=False)
    stack.enter_context(feedback)
    if recipe.rewards and threads is None:
        try_rewards(recipe, base, LocalGenerator(runtime), streams.labelled[:TRIAL_PROBLEMS], feedback)
    return Prepared(recipe, runtime, streams, base, SFT(recipe.update, rows, recipe.rounds), feedback)
