"""Controls: the same start, steps and gate as the loop, learning from something else; beside it on spare cores."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopwise.config import ImproveRecipe
from loopwise.errors import LoopwiseError
from loopwise.session import Observer

KEEPS = {"labelled": "none", "unfiltered": "all", "gold": "gold"}
Figures = dict[str, dict[str, Any]]


def control_recipe(recipe: ImproveRecipe, name: str) -> ImproveRecipe:
    """The recipe of a control: what is kept of a round is nothing, everything, or the gold answers."""
    changed = recipe.update.model_copy(update={"keep": KEEPS[name]})
    return recipe.model_copy(update={"update": changed, "controls": ()})


def stage_name(name: str) -> str:
    """A control's key among the stages of ``summary.json``."""
    return "control" if name == "labelled" else f"control_{name}"


def run_id(name: str) -> str:
    """A control's run in the journal."""
    return f"control-{name}"


@dataclass
class SideRuns:
    """Runs controls in processes of their own, ``limit`` at a time; their events wait until somebody is watching.

    A child process ends with this one, however this one ends: it reads end-of-file on its standard input.
    """

    out: Path
    limit: int
    _events: dict[str, queue.SimpleQueue[dict[str, Any]]] = field(default_factory=dict)
    _results: dict[str, Future[Figures]] = field(default_factory=dict)
    _children: list[subprocess.Popen[str]] = field(default_factory=list)
    _closed: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> SideRuns:
        self._pool = ThreadPoolExecutor(self.limit, thread_name_prefix="control")
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for child in self._children:
            if child.poll() is None:
                child.kill()
        self._pool.shutdown(cancel_futures=True)

    def start(self, names: Sequence[str]) -> None:
        """Begin to run the named controls."""
        for name in names:
            self._events[name] = queue.SimpleQueue()
            self._results[name] = self._pool.submit(self._run, name)

    def finish(self, name: str, observer: Observer) -> Figures:
        """Wait for a control, telling ``observer`` all that happened in it. Raises LoopwiseError if it failed."""
        result = self._results[name]
        while True:
            try:
                _tell(observer, self._events[name].get(timeout=0.1))
            except queue.Empty:
                if result.done():
                    break
        return result.result()

    def _run(self, name: str) -> Figures:
        command = [sys.executable, "-m", "loopwise.stages.control_run", str(self.out), name]
        errors: list[str] = []
        figures: Figures | None = None
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, text=True, encoding="utf-8", **pipes) as child:
            self._children.append(child)
            if self._closed.is_set():
                child.kill()
            assert child.stdout is not None
            assert child.stderr is not None
            reader = threading.Thread(target=errors.extend, args=(child.stderr,), daemon=True)
            reader.start()
            for line in child.stdout:
                event = json.loads(line)
                if event["kind"] == "figures":
                    figures = event["figures"]
                else:
                    self._events[name].put(event)
            code = child.wait()
            reader.join()
        if code != 0 or figures is None:
            raise LoopwiseError(f"control {name} stopped with exit code {code}: {''.join(errors).strip()[-2000:]}")
        return figures


class EventWriter(Observer):
    """In a control's process: hands every event on as a line of JSON."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def send(self, kind: str, **fields: Any) -> None:
        """Hand one event on."""
        self._write(json.dumps({"kind": kind, **fields}) + "\n")

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        self.send("run_started", run_id=run_id, rounds=rounds, done=done)

    def round_finished(self, run_id: str, summary: Any) -> None:
        self.send("round_finished", run_id=run_id, summary=summary)

    def note(self, level: str, message: str) -> None:
        self.send("note", level=level, message=message)


def _tell(observer: Observer, event: dict[str, Any]) -> None:
    kind = event.pop("kind")
    getattr(observer, kind)(**event)
