"""``loopwise demo``: a tiny transformer learns a little from few labels, then teaches itself the rest."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path

from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe, TuneRecipe, config_hash
from loopwise.errors import ConfigError, ResumeError
from loopwise.observer import Observer
from loopwise.ranks import launched
from loopwise.results import Result
from loopwise.runtime import versions
from loopwise.stages import finetune, improve
from loopwise.starting import recorded_threads
from loopwise.types import Budget
from loopwise.workspace import Workspace, open_workspace

RUN_ID = "demo"
ALL_CONTROLS = ("labelled", "unfiltered", "gold")


def demo(
    out: str | Path,
    *,
    seed: int = 0,
    rounds: int | None = None,
    all_controls: bool = False,
    resume: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Run both stages and the controls into the new folder ``out``; 10 rounds unless told otherwise.

    ``all_controls`` adds the model's own unfiltered samples and, as the ceiling, gold answers.
    """
    began = time.monotonic()
    if launched().world > 1:
        raise ConfigError("the demo is too small to share: start it as one process, without torchrun.")
    out, observer = Path(out), observer or Observer()
    tuning, improving = demo_recipes(seed, rounds, all_controls)
    threads = recorded_threads(out, RUN_ID, resume=resume)
    with ExitStack() as stack:
        before = finetune.prepare(stack, tuning, threads, trial=not resume)
        workspace = stack.enter_context(
            open_workspace(out, resume=resume, note=observer.note, disk_wait=tuning.runtime.disk_wait)
        )
        _enter(workspace, seed, improving, all_controls, before.runtime.threads)
        stages, base = finetune.tune_in(workspace, before, observer)
        workspace.store(lambda: workspace.journal.set_status(finetune.RUN_ID, "finished"))
        given = improve.Given(policy=base.incumbent)
        after = improve.prepare(stack, improving, before.runtime.threads, given, trial=False)
        ended = improve.improve_in(workspace, after, observer)
        stages = {"untrained": stages["untrained"], **ended.stages}
        everything = replace(ended.position, budget=_sum(workspace))
        ended = replace(ended, stages=stages, position=everything)
        result = improve.finish(workspace, improving, ended, began)
        workspace.store(lambda: workspace.journal.set_status(RUN_ID, "finished"))
        return result


def demo_recipes(seed: int, rounds: int | None, all_controls: bool) -> tuple[TuneRecipe, ImproveRecipe]:
    """The two recipes of the demo, as shipped in ``loopwise/recipes``."""
    folder = resources.files("loopwise.recipes")
    with (
        resources.as_file(folder / "addition-base.yaml") as first,
        resources.as_file(folder / "addition.yaml") as second,
    ):
        tuning = load_recipe(TuneRecipe, first, [f"seed={seed}"])
        changes = [f"seed={seed}"] + ([f"rounds={rounds}"] if rounds is not None else [])
        if all_controls:
            changes.append(f"controls=[{', '.join(ALL_CONTROLS)}]")
        improving = load_recipe(ImproveRecipe, second, changes)
    return tuning, improving


def _enter(workspace: Workspace, seed: int, improving: ImproveRecipe, all_controls: bool, threads: int) -> None:
    """Write down how the demo was called, so that it can be resumed; refuse to resume another one."""
    config = {"seed": seed, "rounds": improving.rounds, "all_controls": all_controls}
    known = workspace.journal.run(RUN_ID)
    if known is None:
        workspace.store(
            lambda: workspace.journal.create_run(
                RUN_ID, "demo", config, config_hash(improving), {}, versions(), threads
            )
        )
    elif known.config != config:
        raise ResumeError(
            f"{workspace.out}: this demo was started with {known.config}, not {config}. Use the same flags."
        )


def _sum(workspace: Workspace) -> Budget:
    """What all runs of the journal spent together."""
    total = Budget()
    for run in workspace.journal.runs():
        rounds = workspace.journal.rounds(run.run_id)
        if rounds:
            total = total + rounds[-1].budget
    return total
