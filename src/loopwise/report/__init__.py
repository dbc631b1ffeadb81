"""The report of a run: one HTML file that needs nothing else and that a newcomer can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwise.runs.journal import Journal

JOURNAL = "journal.db"
REPORT = "report.html"


def write_report(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into the run folder ``out``, whole or not at all; returns its path.

    ``summary`` is the content of ``summary.json``; the rest is read from ``journal.db``, which is not written to.
    Raises ConfigError where the journal is missing, ValueError where it has no run of the summary's ``run_id``.
    """
    # What draws and fills in templates takes a second to import, which `loopwise --help` need not wait for.
    from loopwise.report.content import gather
    from loopwise.report.judging import gather_judge
    from loopwise.report.page import render, render_judge, render_text
    from loopwise.report.pretraining import gather_text
    from loopwise.report.source import JUDGE, PRETRAIN, Source
    from loopwise.runs.files import replace_file

    with Journal.open(out / JOURNAL, read_only=True) as journal:
        source = Source.read(journal, out, summary)
        if source.kind == PRETRAIN:
            page = render_text(gather_text(source))
        elif source.kind == JUDGE:
            page = render_judge(gather_judge(source))
        else:
            page = render(gather(source))
    replace_file(out / REPORT, lambda temporary: _write(temporary, page))
    return out / REPORT


def _write(path: Path, page: str) -> None:
    # A configuration may hold half a surrogate pair, which UTF-8 cannot.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
