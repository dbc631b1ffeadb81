"""What a person sees in the terminal: progress with the time left, a line a round, a closing table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loopwise.session import Observer

TITLES = {
    "tune": "Supervised training on the labelled rows",
    "improve": "The loop: generate, evaluate, update, accept or roll back",
    "control-labelled": "Control: the same extra steps on the labelled rows alone",
    "control-unfiltered": "Control: the same steps on its own unfiltered samples",
    "control-gold": "Control (ceiling): the same steps on gold answers",
}
PHASES = {"train": "sampling", "steps": "training", "dev": "evaluating", "test": "final test", "watch": "watching"}
STAGES = {
    "untrained": "untrained",
    "base": "base",
    "tuned": "tuned",
    "control": "control: labels alone",
    "control_unfiltered": "control: unfiltered",
    "control_gold": "ceiling: gold answers",
    "improved": "improved",
}


class ConsoleObserver(Observer):
    """Shows a run with rich. Lines are printed once; the bar below them lives only in a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("  {task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._rounds: TaskID | None = None
        self._phase: TaskID | None = None
        self._phase_name = ""

    def __enter__(self) -> ConsoleObserver:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        for task in (self._rounds, self._phase):
            if task is not None:
                self._bars.remove_task(task)
        self._phase, self._phase_name = None, ""
        self._rounds = self._bars.add_task("rounds", total=rounds, completed=done)
        self.console.print()
        self.console.print(Text(TITLES.get(run_id, run_id), style="bold"))
        if done:
            self.console.print(f"  resumed after round {done} of {rounds}")
        self.console.print(Text("  round   kept  reward  pass@k  dev before → after        seconds", style="dim"))

    def progress(self, what: str, done: int, total: int) -> None:
        if what != self._phase_name or self._phase is None:
            if self._phase is not None:
                self._bars.remove_task(self._phase)
            self._phase = self._bars.add_task(PHASES.get(what, what), total=total)
            self._phase_name = what
        self._bars.update(self._phase, completed=done, total=total)

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        if self._rounds is not None:
            self._bars.update(self._rounds, completed=summary["round"])
        verdict = Text("accepted", "green") if summary["accepted"] else Text("rolled back", "yellow")
        line = Text(f"  {summary['round']:>5}  {_count(summary):>5}  {_share(summary['reward']):>6}  ")
        line.append(f"{_share(summary['pass_at_k']):>6}  ")
        line.append(f"{_share(summary.get('dev_before')):>6} → {_share(summary['dev_accuracy']):<6} ")
        line.append_text(verdict)
        line.append(" " * (12 - len(verdict)) + f"{summary['seconds']:>6.1f}")
        self.console.print(line)
        for name, count in summary.items():
            if name.startswith("failed/") and count:
                part = name.removeprefix("failed/")
                self.note("warning", f"reward {part} failed on {count:.0f} of {summary['samples']} samples (left out)")

    def note(self, level: str, message: str) -> None:
        self.console.print(Text(f"  {level}: {message}", style="yellow" if level == "warning" else "dim"))


def stage_table(summary: Mapping[str, Any]) -> Table:
    """The closing table: each stage on held-out problems with its 95% interval."""
    stages = summary["stages"]
    splits = [split for split in ("dev", "test") if any(split in figures for figures in stages.values())]
    table = Table(title=None, box=None, padding=(0, 2), pad_edge=True)
    table.add_column("held-out problems right" if _is_accuracy(stages) else "mean held-out score")
    for split in splits:
        count = next(figures[split]["n"] for figures in stages.values() if split in figures)
        table.add_column(f"{split} (n = {count:,})", justify="right")
    for name, figures in stages.items():
        cells = []
        for split in splits:
            figure = figures.get(split)
            low, high = figure["ci95"] if figure else (math.nan, math.nan)
            cells.append(f"{_share(figure['accuracy'])}  [{_share(low)}, {_share(high)}]" if figure else "")
        style = "bold green" if name in ("improved", "tuned") else ""
        table.add_row(Text(STAGES.get(name, name), style=style), *(Text(cell, style=style) for cell in cells))
    return table


def _is_accuracy(stages: Mapping[str, Any]) -> bool:
    values = [figure["accuracy"] for figures in stages.values() for figure in figures.values()]
    return all(0.0 <= value <= 1.0 for value in values)


def _count(summary: Mapping[str, Any]) -> str:
    return f"{summary['kept']:,}" if summary["samples"] else "–"


def _share(value: float | None) -> str:
    """A share of one as a percentage; any other figure as it is."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.1f}%" if 0.0 <= value <= 1.0 else f"{value:.3f}"


def plan_table(plan: Mapping[str, Mapping[str, str]]) -> Table:
    """A dry run's sections as one table."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for section, entries in plan.items():
        table.add_row(Text(section, style="bold"), "")
        for name, value in entries.items():
            table.add_row(Text(f"  {name}"), Text(value))
    return table
