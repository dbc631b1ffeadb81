"""What a person sees in the terminal: progress with the time left, a line a round, closing tables, a model's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loopwise.observer import Observer
from loopwise.recipes.catalogue import ShippedRecipe
from loopwise.report import evaluation_words as words
from loopwise.report import numbers
from loopwise.runs.files import to_json

TITLES = {
    "pretrain": "Pretraining on plain text",
    "tune": "Supervised training on the labelled rows",
    "judge": "Training the judge",
    "masked": "Learning to read: masked tokens",
    "improve": "The loop: generate, evaluate, update, accept or roll back",
    "control-labelled": "Control: the same extra steps on the labelled rows alone",
    "control-unfiltered": "Control: the same steps on its own unfiltered samples",
    "control-gold": "Control (ceiling): the same steps on gold answers",
}
PRETRAIN = "pretrain"
MOST_NATS = 700.0
"""Beyond it the perplexity is no number."""
_DEV = "dev before → after        seconds"
PHASES = {"train": "sampling", "steps": "training", "dev": "evaluating", "test": "final test", "watch": "watching"}
STAGES = {
    "untrained": "untrained",
    "base": "base",
    "ngram": "n-gram floor",
    "pretrained": "pretrained",
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
        self._told: set[str] = set()
        self._bars = Progress(
            TextColumn("  {task.description:<34}", markup=False),
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
        self._heading = ""

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
        self._heading = ""

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
        line = Text(f"  {summary['round']:>5}  ")
        heading, figures = _line(run_id, summary)
        # Only a round's figures tell which columns there are.
        if heading != self._heading:
            self.console.print(Text(heading, style="dim"))
            self._heading = heading
        line.append(figures)
        line.append_text(verdict)
        line.append(" " * (12 - len(verdict)) + f"{summary['seconds']:>6.1f}")
        self.console.print(line)
        for name, count in summary.items():
            if name.startswith("failed/") and count:
                part = name.removeprefix("failed/")
                self.note("warning", f"reward {part} failed on {count:.0f} of {summary['samples']} samples (left out)")

    def note(self, level: str, message: str) -> None:
        if level == "info" and message in self._told:  # of the loop and of its controls alike
            return
        self._told.add(message)
        self.console.print(Text(f"  {level}: {message}", style="yellow" if level == "warning" else "dim"))


def _line(run_id: str, summary: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of a run's rounds, and what a round came to in them."""
    if run_id == PRETRAIN:
        return "  round  nats a token before → after  perplexity               seconds", _text_figures(summary)
    dev = f"{_share(summary.get('dev_before')):>6} → {_share(summary['dev_accuracy']):<6} "
    if not summary["samples"]:
        return f"  round  {_DEV}", dev
    drawn = f"{_share(summary['reward']):>6}  {_share(summary['pass_at_k']):>6}  "
    if not _compares(summary):
        return f"  round   kept  reward  pass@k  {_DEV}", f"{summary['kept']:>5,}  {drawn}{dev}"
    tied = f"{_share(summary.get('frac_reward_zero_std')):>6}  "
    if "update/pairs" in summary:
        return (
            f"  round  reward  pass@k    tied  pairs  {_DEV}",
            f"{drawn}{tied}{summary['update/pairs']:>5,.0f}  {dev}",
        )
    return f"  round  reward  pass@k    tied     kl  {_DEV}", f"{drawn}{tied}{_nats_apart(summary):>5}  {dev}"


def _compares(summary: Mapping[str, Any]) -> bool:
    """Whether a round learned from how its samples compare, and kept none by a threshold."""
    return "frac_reward_zero_std" in summary and "update/pool" not in summary


def _nats_apart(summary: Mapping[str, Any]) -> str:
    kl = summary.get("update/kl")
    return "–" if kl is None else f"{kl:.3f}" if abs(kl) < 10 else f"{kl:.0f}"


def _text_figures(summary: Mapping[str, Any]) -> str:
    """What a round of pretraining came to: nats a token of the dev text, which is what its log-probability lacks."""
    before, after = (_nats(summary.get(name)) for name in ("dev_before", "dev_accuracy"))
    perplexity = math.exp(min(after, MOST_NATS))
    return f"{_three(before):>19} → {_three(after):<6}  {_perplexity(perplexity):>10}  "


def stage_table(summary: Mapping[str, Any]) -> Table:
    """The closing table: each stage on what was held out, with its 95% interval or as perplexity and bits a byte."""
    stages = summary["stages"]
    splits = [split for split in ("dev", "test") if any(split in figures for figures in stages.values())]
    if summary["run_id"] == PRETRAIN:
        return _text_table(stages, splits)
    table = Table(title=None, box=None, padding=(0, 2), pad_edge=True)
    table.add_column("held-out problems right" if _is_accuracy(stages) else "mean held-out score")
    for split in splits:
        count = next(figures[split]["n"] for figures in stages.values() if split in figures)
        table.add_column(f"{split} (n = {count:,})", justify="right")
    for name, figures in stages.items():
        style = "bold green" if name in ("improved", "tuned", "pretrained") else ""
        own = [figures.get(split) for split in splits]
        table.add_row(Text(STAGES.get(name, name), style=style), *_score_cells(own, style))
        if any(figure and "refined" in figure for figure in own):
            revised = [figure and figure.get("refined") for figure in own]
            table.add_row(Text(f"{STAGES.get(name, name)}, revised", style=style), *_score_cells(revised, style))
    return table


def _score_cells(figures: Sequence[Mapping[str, Any] | None], style: str) -> Iterator[Text]:
    for figure in figures:
        low, high = figure["ci95"] if figure else (math.nan, math.nan)
        cell = f"{_share(figure['accuracy'])}  [{_share(low)}, {_share(high)}]" if figure else ""
        yield Text(cell, style=style)


def _text_table(stages: Mapping[str, Any], splits: Sequence[str]) -> Table:
    table = Table(title=None, box=None, padding=(0, 2), pad_edge=True)
    table.add_column("\nheld-out text")
    for split in splits:
        tokens = next(figures[split]["tokens"] for figures in stages.values() if split in figures)
        table.add_column(f"{split}\nperplexity", justify="right")
        table.add_column(f"{tokens:,} tokens\nbits a byte", justify="right")
    for name in sorted(stages, key=list(STAGES).index):
        style = "bold green" if name == "pretrained" else ""
        table.add_row(Text(STAGES[name], style=style), *_text_cells(stages[name], splits, style))
    return table


def _text_cells(figures: Mapping[str, Any], splits: Sequence[str], style: str) -> Iterator[Text]:
    for split in splits:
        figure = figures.get(split, {})
        for show, name in ((_perplexity, "perplexity"), (_three, "bits_per_byte")):
            yield Text(show(figure[name]) if figure else "", style=style)


def _is_accuracy(stages: Mapping[str, Any]) -> bool:
    values = [figure["accuracy"] for figures in stages.values() for figure in figures.values()]
    return all(0.0 <= value <= 1.0 for value in values)


def _share(value: float | None) -> str:
    """A share of one as a percentage; any other figure as it is."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.1f}%" if 0.0 <= value <= 1.0 else f"{value:.3f}"


def _nats(logp: float | None) -> float:
    return math.nan if logp is None else -logp


def _perplexity(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def plan_table(plan: Mapping[str, Mapping[str, str]]) -> Table:
    """A dry run's sections as one table."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for section, entries in plan.items():
        table.add_row(Text(section, style="bold"), "")
        for name, value in entries.items():
            table.add_row(Text(f"  {name}"), Text(value))
    return table


TERMINAL = {"likelihood": "log p a token"}
"""Measures whose names are too long for a terminal."""


def evaluation_table(found: Mapping[str, Any]) -> Group:
    """What ``loopwise evaluate`` measured, and in words how it compares and what the model had met before."""
    # Beside a baseline, what matters is the difference: the intervals of both ends are in the files of --out.
    other = "baseline" in found
    table = Table(box=None, padding=(0, 1) if other else (0, 2))
    more = ("baseline", "difference", "95% interval") if other else ("95% interval",)
    for title in ("", "n", "measure", "value", *more):
        table.add_column(title, justify="left" if title in ("", "measure") else "right", overflow="fold")
    for result in found["results"]:
        name = result["name"]
        for measure, figure in words.shown_figures(result):
            cells = [words.value(measure, figure["value"])]
            if other:
                gap = result["differences"].get(measure)
                cells.append(words.value(measure, result["baseline"]["figures"][measure]["value"]))
                cells.append(words.signed(measure, gap["value"]) if gap else numbers.DASH)
                cells.append(words.change_interval(measure, gap["ci95"]) if gap else numbers.DASH)
            else:
                cells.append(words.interval(measure, figure["ci95"]))
            table.add_row(Text(name), f"{figure['n']:,}", TERMINAL.get(measure, words.name_of(measure)), *cells)
            name = ""
    shown = [table] if found["results"] else []
    return Group(*shown, *(Text(line) for line in words.told(found)))


def _three(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def recipe_table(recipes: Sequence[ShippedRecipe]) -> Table:
    """What ``loopwise recipes list`` shows."""
    table = Table(box=None, padding=(0, 2))
    for title in ("recipe", "command", "time", "what it does"):
        table.add_column(title, overflow="fold")
    for recipe in recipes:
        table.add_row(*map(Text, (recipe.name, recipe.command, recipe.time or "–", recipe.summary)))
    return table


# Model text is untrusted: an escape sequence could retitle the terminal or rewrite what is above, and a change of
# direction could show a line in another order than it has.
_CONTROLS = [*(set(range(32)) - {ord("\n"), ord("\t")}), *range(127, 160), 0x2028, 0x2029]
_DIRECTIONS = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = {code: chr(code).encode("unicode_escape").decode() for code in (*_CONTROLS, *_DIRECTIONS)}
_IN_JSON = {code: f"\\u{code:04x}" for code in (*range(127, 160), 0x2028, 0x2029, *_DIRECTIONS)}


def visible(text: str) -> str:
    r"""Text with its control characters, line breaks and tabs apart, written as escapes such as ``\x1b``."""
    return text.translate(_VISIBLE)


def writer(stream: TextIO) -> Callable[[str], None]:
    """A function that writes text at once: made ``visible`` on a terminal, as it is into a file or pipe."""
    clean = visible if stream.isatty() else str

    def write(text: str) -> None:
        stream.write(clean(text))
        stream.flush()

    return write


def plain_json(value: Any) -> str:
    """Strict JSON on one line that a terminal can show: no character in it is a control character."""
    return to_json(value).translate(_IN_JSON)
