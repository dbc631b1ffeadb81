"""How every stage that trains begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from loopwise.config.reading import load_recipe
from loopwise.config.recipes import ImproveRecipe, JudgeRecipe, PretrainRecipe, TuneRecipe
from loopwise.observer import Observer
from loopwise.starting import recorded_threads, take_place
from loopwise.workspace import Workspace, open_workspace

Kind = TypeVar("Kind", PretrainRecipe, TuneRecipe, ImproveRecipe, JudgeRecipe)


@dataclass(frozen=True)
class Beginning(Generic[Kind]):
    """A stage whose recipe is read and whose folder was looked at; nothing is written yet.

    ``stack`` closes what is entered on it when the stage ends. ``observer`` is told of the run: the caller's on the
    first rank, nobody on others. ``threads`` are those that a resumed run was started with, None for a new one.
    ``began`` is the ``time.monotonic()`` of the start.
    """

    recipe: Kind
    out: Path
    resume: bool
    stack: ExitStack
    observer: Observer
    threads: int | None
    began: float

    def open_workspace(self) -> Workspace:
        """The run's folder, open until the stage ends; a new one is made. Raises RunBusyError, OutputExistsError."""
        wait = self.recipe.runtime.disk_wait
        return self.stack.enter_context(
            open_workspace(self.out, resume=self.resume, note=self.observer.note, disk_wait=wait)
        )


@contextmanager
def beginning(
    kind: type[Kind],
    recipe: Kind | str | Path,
    out: str | Path,
    run_id: str,
    *,
    resume: bool,
    observer: Observer | None,
) -> Iterator[Beginning[Kind]]:
    """Begin the stage of a ``recipe`` (or of the file that holds it), whose run in ``out`` is ``run_id``.

    It joins the ranks that were started together, if any, until it ends. Raises ConfigError, OutputExistsError where
    ``out`` is taken and ``resume`` is not asked for, ResumeError where it holds another run.
    """
    began = time.monotonic()
    out = Path(out)
    read = load_recipe(kind, recipe) if isinstance(recipe, str | Path) else recipe
    with ExitStack() as stack:
        told = take_place(stack, observer)
        threads = recorded_threads(out, run_id, resume=resume)
        yield Beginning(read, out, resume, stack, told, threads, began)
