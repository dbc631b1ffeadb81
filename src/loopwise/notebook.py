"""A run as it happens, in a Jupyter cell."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwise.errors import ConfigError
from loopwise.observer import Observer
from loopwise.report import REPORT, numbers

COLOURS = {
    "pretrain": "#0a7a5f",
    "tune": "#4c6183",
    "improve": "#0a7a5f",
    "control-labelled": "#b8600f",
    "control-unfiltered": "#7d4bb3",
    "control-gold": "#8a7000",
}
"""The report's colours, by run."""

PANELS = {"dev_accuracy": "held-out (dev)", "reward": "reward", "kept": "samples kept"}
TEXT_PANELS = {"dev_accuracy": "held-out log-probability a token", "update/loss": "training loss"}
"""Of a pretraining run, which draws nothing to be rewarded."""
_OTHER = "#5c6470"


class LiveReport(Observer):
    """An observer that redraws one figure and one line of text in the cell it was made in, round by round.

    Raises ConfigError where IPython is not installed.
    """

    def __init__(self) -> None:
        self._rounds: dict[str, list[Mapping[str, Any]]] = {}
        self._totals: dict[str, int] = {}
        self._line = "starting"
        self._notes: list[str] = []
        self._handle = _ipython().display(self._page(), display_id=True)

    def run_started(self, run_id: str, rounds: int, done: int) -> None:
        self._rounds.setdefault(run_id, [])
        self._totals[run_id] = rounds
        self._say(f"{run_id}: round {done + 1} of {rounds} begins" if done < rounds else f"{run_id}: done before")

    def round_finished(self, run_id: str, summary: Mapping[str, Any]) -> None:
        self._rounds.setdefault(run_id, []).append(summary)
        self._say(self._sentence(run_id, summary))

    def note(self, level: str, message: str) -> None:
        self._notes.append(f"{level}: {message}")
        self._say(self._line)

    def _say(self, line: str) -> None:
        self._line = line
        self._handle.update(self._page())

    def _sentence(self, run_id: str, summary: Mapping[str, Any]) -> str:
        dev = numbers.figure(numbers.finite(summary.get("dev_accuracy")))
        kept = f", {numbers.whole(summary['kept'])} samples kept" if summary.get("kept") else ""
        of = self._totals.get(run_id, summary["round"])
        decision = "accepted" if summary.get("accepted") else "rolled back"
        seconds = numbers.duration(numbers.finite(summary.get("seconds")))
        return f"{run_id}: round {summary['round']} of {of}, dev {dev}, {decision}{kept}, {seconds}"

    def _page(self) -> Any:
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in (self._line, *self._notes))
        drawn = any(self._rounds.values())
        picture = (
            f'<img alt="rounds so far" width="760" src="data:image/png;base64,{self._picture()}">' if drawn else ""
        )
        return _ipython().HTML(f"{picture}{lines}")

    def _picture(self) -> str:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(9.5, 2.6), dpi=160, layout="constrained")
        panels = TEXT_PANELS if "pretrain" in self._rounds else PANELS
        for axes, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for run_id, summaries in self._rounds.items():
                values = [numbers.finite(summary.get(name)) for summary in summaries]
                colour = COLOURS.get(run_id, _OTHER)
                axes.plot([s["round"] for s in summaries], values, marker="o", markersize=3, color=colour, label=run_id)
            axes.set_title(title, loc="left", fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer)
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def show_report(out: str | Path, height: int = 720) -> Any:
    """The report of the run folder ``out`` inside the notebook, ``height`` pixels high."""
    page = (Path(out) / REPORT).read_text(encoding="utf-8")
    frame = f'<iframe sandbox srcdoc="{html.escape(page)}" width="100%" height="{height}" style="border:0"></iframe>'
    return _ipython().HTML(frame)


def _ipython() -> Any:
    try:
        from IPython import display
    except ImportError:
        raise ConfigError(
            "the live report needs IPython. Install it (pip install ipykernel), or run `loopwise demo` in a terminal."
        ) from None
    return display
