"""The notebook runs as it is stored, and the live report redraws one cell."""

import ast
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from loopwise import notebook
from loopwise.errors import ConfigError
from loopwise.notebook import LiveReport, show_report

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "demo.ipynb"


class Cell:
    """Stands in for ``IPython.display``: keeps what is shown."""

    def __init__(self):
        self.shown = []

    def display(self, page, display_id):
        assert display_id
        self.shown.append(page)
        return SimpleNamespace(update=self.shown.append)

    def HTML(self, page):  # noqa: N802 (IPython's name)
        return page


@pytest.fixture
def cell(monkeypatch):
    cell = Cell()
    monkeypatch.setattr(notebook, "_ipython", lambda: cell)
    return cell


def summary(number, **changes):
    figures = {"round": number, "dev_accuracy": 0.5, "reward": 0.25, "kept": 55, "accepted": True, "seconds": 8.8}
    return {**figures, **changes}


def test_live_report_follows_the_rounds(cell):
    live = LiveReport()
    live.run_started("improve", 12, 0)
    assert "<img" not in cell.shown[-1]
    live.round_finished("improve", summary(1))
    assert "<img" in cell.shown[-1]
    assert "improve: round 1 of 12, dev 0.500, accepted, 55 samples kept, 8.8 s" in cell.shown[-1]
    live.round_finished("improve", summary(2, accepted=False, dev_accuracy=None, reward=None, kept=0))
    assert "round 2 of 12, dev –, rolled back, 8.8 s" in cell.shown[-1]


def test_live_report_of_pretraining_shows_loss_for_rewards(cell, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axes, title, **style: titles.append(title))
    live = LiveReport()
    live.run_started("pretrain", 2, 0)
    live.round_finished("pretrain", summary(1, reward=None, kept=0, dev_accuracy=-2.31, **{"update/loss": 2.5}))
    assert titles == ["held-out log-probability a token", "training loss"]


def test_live_report_escapes_notes(cell):
    LiveReport().note("warning", "<script>alert(1)</script>")
    assert "warning: &lt;script&gt;" in cell.shown[-1]


def test_the_report_is_shown_in_a_frame_that_cannot_reach_out(cell, tmp_path):
    (tmp_path / "report.html").write_text('<p class="a">hello</p>')
    shown = show_report(tmp_path, height=300)
    assert shown.startswith("<iframe sandbox srcdoc=")
    assert "&lt;p class=&quot;a&quot;&gt;hello" in shown


def test_missing_ipython_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(ConfigError, match="needs IPython"):
        LiveReport()


def test_the_notebook_is_valid_and_stored_without_outputs():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert len(code) >= 4
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    for cell in code:
        compile(cell.source, str(NOTEBOOK), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.slow
# The kernel's own files and sockets are none of ours.
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs(monkeypatch, tmp_path):
    from nbclient import NotebookClient

    monkeypatch.setenv("LOOPWISE_DEMO_ROUNDS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    run = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(run, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [str(cell.outputs) for cell in run.cells if cell.cell_type == "code"]
    assert "round 1 of 1" in outputs[0]
    assert "improved" in outputs[1]
    assert "759 + 468 = " in outputs[3]
    assert "<iframe" in outputs[4]
