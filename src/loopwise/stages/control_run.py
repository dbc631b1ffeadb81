"""``python -m loopwise.stages.control_run OUT NAME``: one control of a run, in a process of its own."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import LoopwiseError, ResumeError
from loopwise.models.folders import load_policy
from loopwise.runs.journal import Journal
from loopwise.runs.lock import run_lock
from loopwise.runtime import make_runtime
from loopwise.stages.controls import EventWriter, run_id
from loopwise.stages.improve import RUN_ID, Given, prepare, run_control
from loopwise.workspace import BASE, JOURNAL, Workspace


def run_apart(out: Path, name: str, observer: EventWriter) -> None:
    """Run the control ``name`` of the improve run in ``out`` from the base saved there; send its figures.

    Raises ResumeError where that base is not the one the run began with.
    """
    with ExitStack() as stack:
        journal = stack.enter_context(closing(Journal.open(out / JOURNAL)))
        started = journal.run(RUN_ID)
        assert started is not None
        recipe = parse_recipe(ImproveRecipe, started.config, str(out))
        folder = out / "checkpoints" / run_id(name)
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(run_lock(folder))
        base = load_policy(out / BASE, make_runtime(recipe.runtime, recipe.seed, started.threads))
        if base.id != started.fingerprint["model"]:
            raise ResumeError(
                f"{out / BASE}: not the model that this run began with. Put it back, or start a new run with another "
                "--out."
            )
        begun = any(row.round > 0 for row in journal.rounds(run_id(name)))
        prepared = prepare(stack, recipe, started.threads, Given(policy=base), trial=not begun)
        workspace = Workspace(out, journal, observer.note, recipe.runtime.disk_wait)
        prepared.attach(workspace, run_id(name))
        observer.send("figures", figures=run_control(prepared, workspace, name, observer))


def main() -> None:
    """Read the arguments; end with the parent."""
    out, name = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What user code prints must not come between the events.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        run_apart(Path(out), name, EventWriter(channel.write))
    except LoopwiseError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held by a daemon thread, would abort a clean exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
