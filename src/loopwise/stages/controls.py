"""Controls: the same start, steps and gate as the loop, learning from something else; beside it on spare cores."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopwise.config.blocks import MonitorsConfig
from loopwise.config.methods import HindsightConfig, ILFConfig, OnlineConfig, ReflexionConfig, RFTConfig
from loopwise.config.recipes import ImproveRecipe
from loopwise.errors import ControlError, DiskFullError, LoopwiseError
from loopwise.observer import Observer

KEEPS = {"labelled": "none", "unfiltered": "all", "gold": "gold"}
MOST_SHOWN = 2000
"""Characters shown of what a control said when it stopped."""
Figures = dict[str, dict[str, Any]]


def control_recipe(recipe: ImproveRecipe, name: str) -> ImproveRecipe:
    """The recipe of a control: imitation of labelled rows alone, of every sample, or of the gold answers.

    It takes as many optimizer steps on as many rows as the recipe's own update, with the same optimizer.
    """
    changed = _imitation(recipe).model_copy(update={"keep": KEEPS[name]})
    # Nothing of a control reads what critics say, and its monitors would warn of what is no news.
    unread = {"controls": (), "critics": (), "refine": None, "monitors": MonitorsConfig(problems=0)}
    return recipe.model_copy(update={"update": changed, **unread})


def _imitation(recipe: ImproveRecipe) -> RFTConfig:
    update = recipe.update
    if isinstance(update, RFTConfig):
        return update
    assert not isinstance(update, ReflexionConfig), "refused before: it has no optimizer steps to take"
    share = update.labelled_share if isinstance(update, ILFConfig | HindsightConfig) else None
    shared: dict[str, Any] = {
        "optimizer": update.optimizer,
        "threshold": update.threshold,
        "tokens_per_pass": update.tokens_per_pass,
        # Others learn from no labelled rows; where a control has nothing else, it takes them all the same.
        "labelled_share": 0.0 if share is None else share,
    }
    if isinstance(update, OnlineConfig):
        steps = recipe.steps(recipe.problems) * update.updates_per_rollout
        problems = min(recipe.problems, update.problems_per_step)
        rows = max(1, problems * recipe.samples // update.minibatches)
        return RFTConfig(steps=steps, batch_size=rows, **shared)
    rows_of = {name: getattr(update, name) for name in ("steps", "max_length", "too_long", "end_of_text")}
    each = 1 if share is not None else recipe.samples if update.method == "rrhf" else 2
    return RFTConfig(batch_size=update.batch_size * each, **rows_of, **shared)


def stage_name(name: str) -> str:
    """A control's key among the stages of ``summary.json``."""
    return "control" if name == "labelled" else f"control_{name}"


def run_id(name: str) -> str:
    """A control's run in the journal."""
    return f"control-{name}"


class OneAtATime(Observer):
    """Hands the events of several threads on to ``observer``, which need not be made for that."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        with self._lock:
            self._observer.run_started(run_id, rounds, done)

    def progress(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._observer.progress(what, done, total)

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        with self._lock:
            self._observer.round_finished(run_id, summary)

    def note(self, level: str, message: str) -> None:
        with self._lock:
            self._observer.note(level, message)


@dataclass
class SideRuns:
    """Runs controls in processes of their own, ``limit`` at a time; their rounds wait until they are asked for.

    Notes do not wait: ``observer`` gets them at once, from other threads. A child process ends with this one, however
    this one ends: it reads end-of-file on its standard input.
    """

    out: Path
    limit: int
    observer: OneAtATime
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

    def finish(self, name: str) -> Figures:
        """Wait for a control, telling the observer of its rounds.

        Raises ControlError where it ended without figures, DiskFullError where that was for want of room.
        """
        result = self._results[name]
        while True:
            try:
                _tell(self.observer, self._events[name].get(timeout=0.1))
            except queue.Empty:
                if result.done():
                    break
        return result.result()

    def _run(self, name: str) -> Figures:
        # -P keeps the working folder out of its module path, which is to be ours.
        command = [sys.executable, "-P", "-m", "loopwise.stages.control_run", str(self.out), name]
        errors: list[str] = []
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        # A session of its own: Ctrl-C reaches only us, and is not taken for a failure of the control.
        with subprocess.Popen(
            command, text=True, encoding="utf-8", env=_environment(), start_new_session=True, **pipes
        ) as child:
            self._children.append(child)
            if self._closed.is_set():
                child.kill()
            assert child.stdout is not None
            assert child.stderr is not None
            reader = threading.Thread(target=errors.extend, args=(child.stderr,), daemon=True)
            reader.start()
            figures = self._listen(name, child.stdout)
            code = child.wait()
            reader.join()
        if code != 0 or figures is None:
            raise self._failure(name, code, "".join(errors).strip())
        return figures

    def _listen(self, name: str, lines: Iterable[str]) -> Figures | None:
        figures: Figures | None = None
        for line in lines:
            if not line.endswith("\n"):
                break  # cut short: the child was killed while it wrote
            event = json.loads(line)
            if event["kind"] == "figures":
                figures = event["figures"]
            elif event["kind"] == "note":
                _tell(self.observer, event)
            else:
                self._events[name].put(event)
        return figures

    def _failure(self, name: str, code: int, errors: str) -> LoopwiseError:
        ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        reason = errors[-MOST_SHOWN:] or ending
        message = f"control {name} stopped: {reason}"
        if not self._closed.is_set():
            self.observer.note("warning", message)
        return DiskFullError(message) if code == DiskFullError.exit_code else ControlError(message)


def failure_of(failures: Sequence[LoopwiseError], out: Path) -> LoopwiseError | None:
    """The error to end with, once the loop's own result is in ``out``; None where no control failed."""
    if not failures:
        return None
    # A full disk is mended by making room, whatever else went wrong: it decides the exit code.
    kind = next((type(error) for error in failures if isinstance(error, DiskFullError)), ControlError)
    reasons = "; ".join(map(str, failures))
    return kind(
        f"{reasons}\nThe loop itself is done: {out / 'model'} and report.html are there, all but the control. "
        "Mend the cause and start the same command with --resume to add it."
    )


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


def _environment() -> dict[str, str]:
    """Ours, with our module path: what a recipe names must be found there as it is found here."""
    path = [os.path.abspath(entry) for entry in sys.path]
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *([inherited] if inherited else [])])}


def _tell(observer: Observer, event: dict[str, Any]) -> None:
    kind = event.pop("kind")
    getattr(observer, kind)(**event)
