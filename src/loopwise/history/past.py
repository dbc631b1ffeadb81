"""Runs of the past: list, show, resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import COMMANDS
from loopwise.errors import ConfigError, ResumeError
from loopwise.observer import Observer
from loopwise.ranks import current_ranks
from loopwise.report.numbers import figure, finite, fixed
from loopwise.results import Result
from loopwise.runs.journal import Journal
from loopwise.runs.lock import is_locked
from loopwise.runs.rows import RunRow
from loopwise.stages.commands import run_command
from loopwise.stages.demo import RUN_ID as DEMO
from loopwise.stages.demo import demo
from loopwise.workspace import JOURNAL

DEPTH = 3
PRETRAIN = "pretrain"
TITLES = ("samples", "kept", "reward", "dev")
DEV_TITLES = ("dev",)
TEXT_TITLES = ("nats a token", "perplexity", "bits a byte")
TEXT_FIGURES = ("nats_per_token", "perplexity", "bits_per_byte")


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below ``folder``, to a depth of three folders; a journal that cannot be read is listed as unreadable.

    Raises ResumeError where there is no such folder.
    """
    if not folder.is_dir():
        raise ResumeError(f"{folder}: no such folder. Name one that holds runs.")
    journals = sorted({path for depth in range(DEPTH + 1) for path in folder.glob("*/" * depth + JOURNAL)})
    return [entry for path in journals for entry in _entries(path)]


def show_run(out: Path) -> dict[str, Any]:
    """Rounds and decisions of each run in a folder. Raises ResumeError where there is none."""
    with closing(open_run(out)) as journal:
        return {
            run.run_id: {
                "kind": run.kind,
                "status": _status(run.status, out),
                "rounds": [row.summary for row in journal.rounds(run.run_id) if row.round > 0],
                "decisions": [
                    {"round": row.round, "reason": row.decision.reason} for row in journal.decisions(run.run_id)
                ],
            }
            for run in journal.runs()
        }


def resume_run(out: Path, observer: Observer) -> Result:
    """Go on with the run in a folder, with the configuration its journal holds."""
    run = current_ranks().lead(lambda: _first_run(out))
    if run.kind == DEMO:
        return demo(out, **run.config, resume=True, observer=observer)
    kind: Any = COMMANDS[run.kind]
    return run_command(run.kind, parse_recipe(kind, run.config, str(out)), out, resume=True, observer=observer)


def _first_run(out: Path) -> RunRow:
    """What the folder was made for: the oldest run in it. A demo's stages and a loop's controls come after it."""
    with closing(open_run(out, read_only=False)) as journal:
        runs = journal.runs()
    if not runs:
        raise ResumeError(f"{out}: its run was stopped before it began. Remove the folder and start it again.")
    return runs[0]


def open_run(out: Path, *, read_only: bool = True) -> Journal:
    """The journal of the run in a folder. Raises ResumeError where there is none."""
    if not (out / JOURNAL).is_file():
        raise ResumeError(f"{out}: no run here, there is no {JOURNAL}. `loopwise runs list` shows where runs are.")
    return Journal.open(out / JOURNAL, read_only=read_only)


def run_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """``list_runs`` for the terminal."""
    table = Table(box=None, padding=(0, 2))
    for name in ("folder", "run", "status", "rounds", "dev", "started"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        dev = f"{entry['dev']:.3f}" if entry["dev"] is not None else "–"
        if entry["perplexity"] is not None:
            dev = f"perplexity {figure(entry['perplexity'])}"
        rounds = f"{entry['rounds']}" + (f"/{entry['of']}" if entry["of"] else "")
        started = entry["started"][:16].replace("T", " ") if entry["started"] else "–"
        table.add_row(*map(Text, (entry["folder"], entry["run"] or "–", entry["status"], rounds, dev, started)))
    return table


def show_tables(runs: Mapping[str, Any]) -> Iterator[Table | Text]:
    """``show_run`` for the terminal."""
    for run_id, run in runs.items():
        yield Text(f"\n{run_id} ({run['status']})", style="bold")
        titles, cells = _columns(run)
        table = Table(box=None, padding=(0, 2))
        for name in ("round", *titles, "gate"):
            table.add_column(name, justify="right" if name != "gate" else "left")
        reasons = {entry["round"]: entry["reason"] for entry in run["decisions"]}
        for row in run["rounds"]:
            table.add_row(*map(Text, (str(row["round"]), *cells(row), reasons.get(row["round"], ""))))
        if run["rounds"]:
            yield table


def _columns(run: Mapping[str, Any]) -> tuple[Sequence[str], Callable[[Mapping[str, Any]], list[str]]]:
    """Titles and cells of a run's rounds: of text, of rows where no samples are drawn, or of samples."""
    if run["kind"] == PRETRAIN:
        return TEXT_TITLES, _text_cells
    if not any(row["samples"] for row in run["rounds"]):
        return DEV_TITLES, _dev_cells
    return TITLES, _cells


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [str(row["samples"]), str(row["kept"]), fixed(finite(row.get("reward")), 3), *_dev_cells(row)]


def _dev_cells(row: Mapping[str, Any]) -> list[str]:
    return [fixed(finite(row.get("dev_accuracy")), 3)]


def _text_cells(row: Mapping[str, Any]) -> list[str]:
    nats, perplexity, bits = (finite(row.get(f"dev/{name}")) for name in TEXT_FIGURES)
    return [fixed(nats, 3), figure(perplexity), fixed(bits, 3)]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from _read_entries(path)
    except ConfigError:
        empty = {"run": None, "status": "unreadable", "rounds": 0, "of": None}
        yield {"folder": str(path.parent), **empty, "dev": None, "perplexity": None, "started": None}


def _read_entries(path: Path) -> Iterator[dict[str, Any]]:
    with closing(Journal.open(path, read_only=True)) as journal:
        for run in journal.runs():
            rounds = [row for row in journal.rounds(run.run_id) if row.round > 0]
            last = rounds[-1].summary if rounds else {}
            yield {
                "folder": str(path.parent),
                "run": run.run_id,
                "status": _status(run.status, path.parent),
                "rounds": len(rounds),
                "of": run.config.get("rounds"),
                "dev": None if run.kind == PRETRAIN else last.get("dev_accuracy"),
                "perplexity": last.get("dev/perplexity"),
                "started": run.created.isoformat(),
            }


def _status(status: str, out: Path) -> str:
    """What the journal says, unless the process that would have changed it is gone."""
    return "interrupted" if status == "running" and not is_locked(out) else status
