"""A journal, and a finished run in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.report.finished_runs import IMPROVE, Finished, Recorder, figures, scores, summarise

from loopwise.runs.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", create=True) as journal:
        yield journal


@pytest.fixture
def improved(journal: Journal, tmp_path: Path) -> Finished:
    """Three rounds from 10% to 90%, the second rolled back, with the labelled control at 20%."""
    main = Recorder(journal, "improve", IMPROVE)
    main.start(dev=scores(0.1), test=scores(0.1))
    for number, share in enumerate((0.5, 0.3, 0.9), start=1):
        main.round(number, scores(share))
    main.evaluate(3, "test", scores(0.9), "improved")
    control = Recorder(journal, "control-labelled", IMPROVE)
    control.start(dev=scores(0.1), test=scores(0.1))
    control.round(1, scores(0.2), drawn=False)
    control.evaluate(1, "test", scores(0.2), "control")
    stages = {
        "base": {"dev": figures(scores(0.1)), "test": figures(scores(0.1))},
        "control": {"dev": figures(scores(0.2)), "test": figures(scores(0.2))},
        "improved": {"dev": figures(scores(0.9)), "test": figures(scores(0.9))},
    }
    return Finished(tmp_path, summarise("improve", stages))
