"""Rivals side by side: each run in a process of its own, alternated, told as medians and ratios of medians.

A benchmark is a file beside this one with a ``BENCHMARK``; ``__main__.py`` lists them.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopwise.threads import CALM

ROOT = Path(__file__).resolve().parent.parent
NOT_REACHED = "not reached"
NOTHING = "–"
_LAST_LINES = 15
Run = Mapping[str, float | None]
"""The figures of one run; None is what it was to reach and did not."""


class BenchmarkError(RuntimeError):
    """A rival that cannot run."""


@dataclass(frozen=True)
class Settings:
    """What ``make bench`` was asked for.

    ``data`` is the folder of texts; ``quick``: sizes that only try it out; ``bf16``: measure that too, even where the
    processor emulates it.
    """

    data: Path
    repeats: int
    threads: int
    quick: bool
    bf16: bool = False


@dataclass(frozen=True)
class Section:
    """What a benchmark found: Markdown to print, and ``content`` for the JSON file."""

    markdown: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and the files it needs in the folder of texts."""

    files: tuple[str, ...]
    run: Callable[[Settings], Section]


@dataclass(frozen=True)
class Rival:
    """One side. ``worker`` is ``module:function``: options (a mapping that JSON can hold) to the figures of a run.

    To the ``options`` of its own come ``repeat`` (0, 1, ...: the seed), ``threads``, and ``folder`` for what it writes.
    """

    name: str
    worker: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """The median of some runs' values with the lowest and the highest; infinity stands for "not reached"."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        return Spread(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass(frozen=True)
class Measurement:
    """All runs of one rival, in order."""

    rival: str
    runs: tuple[Run, ...]

    def values(self, key: str) -> list[float] | None:
        """A figure run by run, infinite where it was not reached; None where the rival does not have it."""
        if not all(key in run for run in self.runs):
            return None
        return [math.inf if (value := run[key]) is None else value for run in self.runs]

    def spread(self, key: str) -> Spread | None:
        """A figure's median over the runs."""
        values = self.values(key)
        return Spread.of(values) if values else None

    def with_figure(self, key: str, derive: Callable[[Run], float | None]) -> Measurement:
        """The same runs with one figure more."""
        return self.with_runs(lambda run: {**run, key: derive(run)})

    def with_runs(self, change: Callable[[Run], Run]) -> Measurement:
        """The same runs, each as ``change`` makes it."""
        return Measurement(self.rival, tuple(map(change, self.runs)))


@dataclass(frozen=True)
class Figure:
    """A column of the table: the ``key`` of a run's figure, its heading (with the unit), how a number is written."""

    key: str
    heading: str
    format: str = ".1f"

    def cell(self, spread: Spread | None) -> str:
        """The median, with lowest and highest where they are written differently."""
        if spread is None:
            return NOTHING
        median, low, high = (
            NOT_REACHED if math.isinf(value) else format(value, self.format)
            for value in (spread.median, spread.low, spread.high)
        )
        return median if low == high else f"{median} ({low}-{high})"


def ratio(first: Measurement, second: Measurement, key: str) -> Spread | None:
    """Median of the first divided by that of the second, with the extremes of the quotients of runs made in turn.

    None where either lacks the figure, or has a run that did not reach it.
    """
    above, below = first.values(key), second.values(key)
    if not above or not below or not all(math.isfinite(value) for value in above + below) or not all(below):
        return None
    quotients = [a / b for a, b in zip(above, below, strict=True)]
    return Spread(statistics.median(above) / statistics.median(below), min(quotients), max(quotients))


def run_alternating(rivals: Sequence[Rival], repeats: int, threads: int) -> tuple[Measurement, ...]:
    """Run the rivals in turn (A B A B ...), ``repeats`` times each, so that a machine that drifts drifts for all.

    Every run is a process of its own with ``threads`` OpenMP threads that sleep when idle. Beside its own figures it
    has ``process_seconds`` (from start to end, imports included) and ``load_before``. Raises BenchmarkError with the
    end of what a process said that failed.
    """
    runs: list[list[Run]] = [[] for _ in rivals]
    for repeat in range(repeats):
        for place, rival in enumerate(rivals):
            print(f"{rival.name}: run {repeat + 1} of {repeats} ...", end=" ", file=sys.stderr, flush=True)
            run = _run(rival, repeat, threads)
            print(f"{run['process_seconds']:.0f} s", file=sys.stderr)
            runs[place].append(run)
    return tuple(Measurement(rival.name, tuple(made)) for rival, made in zip(rivals, runs, strict=True))


def _run(rival: Rival, repeat: int, threads: int) -> Run:
    environment = {**os.environ, **CALM, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = Path(folder) / "figures.json"
        options = {**rival.options, "repeat": repeat, "threads": threads, "folder": folder}
        load = os.getloadavg()[0]
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", rival.worker, str(result)],
            input=json.dumps(options),
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
        if ended.returncode:
            last = "\n".join((ended.stdout + ended.stderr).strip().splitlines()[-_LAST_LINES:])
            raise BenchmarkError(f"{rival.name} ended with exit status {ended.returncode}:\n{last}")
        figures: dict[str, float | None] = json.loads(result.read_text(encoding="utf-8"))
    return {**figures, "process_seconds": seconds, "load_before": load}


def table(
    measurements: Sequence[Measurement], figures: Sequence[Figure], references: Mapping[str, Mapping[str, float]]
) -> str:
    """Markdown: a row for each rival, the ratios of the first to each other one, then the ``references``.

    A reference is a figure by key that somebody else gave for a rival, not measured in this run.
    """
    rows = [[m.rival, *(figure.cell(m.spread(figure.key)) for figure in figures)] for m in measurements]
    first = measurements[0]
    for other in measurements[1:]:
        cells = [Figure(figure.key, "", ".2f").cell(ratio(first, other, figure.key)) for figure in figures]
        rows.append([f"ratio: {first.rival} / {other.rival}", *cells])
    for name, given in references.items():
        cells = [figure.cell(Spread.of([given[figure.key]]) if figure.key in given else None) for figure in figures]
        rows.append([f"{name} (given, not measured in this run)", *cells])
    return markdown(["", *(figure.heading for figure in figures)], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns stand below one another."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def as_content(measurements: Sequence[Measurement], figures: Sequence[Figure]) -> dict[str, Any]:
    """The same for JSON: every run, the spread of every figure, the ratios of the first rival to each other one."""
    first = measurements[0]

    def spreads(find: Callable[[str], Spread | None]) -> dict[str, Any]:
        found = {figure.key: find(figure.key) for figure in figures}
        return {key: None if spread is None else _finite(asdict(spread)) for key, spread in found.items()}

    return {
        "headings": {figure.key: figure.heading for figure in figures},
        "rivals": {m.rival: {"runs": list(m.runs), "figures": spreads(m.spread)} for m in measurements},
        "ratios": {
            f"{first.rival} / {other.rival}": spreads(functools.partial(ratio, first, other))
            for other in measurements[1:]
        },
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
