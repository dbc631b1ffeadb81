"""``python -m loopwise.stages.control_run OUT NAME``: one control of a run, in a process of its own."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from loopwise.config import ImproveRecipe, parse_recipe
from loopwise.errors import LoopwiseError
from loopwise.runs.journal import Journal
from loopwise.runs.lock import run_lock
from loopwise.stages.controls import EventWriter, run_id, stage_name
from loopwise.stages.improve import BASE, RUN_ID, control, prepare, run_prepared
from loopwise.workspace import JOURNAL, Workspace


def run_control(out: Path, name: str, observer: EventWriter) -> None:
    """Run the control ``name`` of the improve run in ``out`` from the base saved there; send its figures."""
    with ExitStack() as stack:
        journal = stack.enter_context(closing(Journal.open(out / JOURNAL)))
        started = journal.run(RUN_ID)
        assert started is not None
        recipe = parse_recipe(ImproveRecipe, started.config, str(out))
        recipe = recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"path": str(out / BASE), "create": None})}
        )
        folder = out / "checkpoints" / run_id(name)
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(run_lock(folder))
        prepared = prepare(stack, recipe, started.threads, trial=False)
        workspace = Workspace(out, journal, observer.note, recipe.runtime.disk_wait)
        session, position = run_prepared(control(prepared, name), workspace, run_id(name), observer)
        figures = session.stage(position.incumbent, position.incumbent_round, stage_name(name))
        observer.send("figures", figures=figures)


def main() -> None:
    """Read the arguments; end with the parent."""
    out, name = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What user code prints must not come between the events.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        run_control(Path(out), name, EventWriter(channel.write))
    except LoopwiseError as error:
        sys.exit(str(error))


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held by a daemon thread, would abort a clean exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
