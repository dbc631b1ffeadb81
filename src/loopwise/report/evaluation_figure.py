"""An evaluation as a picture that stands by itself: each figure as a point with its interval, the baseline's beside."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.report import evaluation_words as words
from loopwise.report import numbers

WIDTH = 540
"""Pixels: enough for a page, and the letters are large enough where it is shrunk to a telephone's width."""
_ROW, _HEAD, _FOOT, _LEGEND = 36, 34, 30, 30
_LEFT, _RIGHT = 170, 66
_MOST_ROWS = 60
_NAME = 22
_MODEL, _BASELINE, _INK, _MUTED, _LINE = "#0a7a5f", "#4c6183", "#1b1f24", "#5c6470", "#e4e1da"
_TITLES = {
    "share": "Share of problems that pass",
    "reward": "Mean reward",
    "likelihood": "Log-probability a token of the right answers",
    "bits_per_byte": "Bits per byte of text (less is better)",
}
_FAMILY = "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', sans-serif"


@dataclass(frozen=True)
class Row:
    """A figure of the model and, where there is one, of the baseline: value, low and high each."""

    name: str
    measure: str
    points: tuple[tuple[float, float, float], ...]


def evaluation_figure(found: Mapping[str, Any]) -> str | None:
    """The picture as an SVG document, its text as text; None where there is nothing to show."""
    panels = _panels(found["results"])
    if not panels:
        return None
    from matplotlib.figure import Figure

    both = "baseline" in found
    above = _LEGEND if both else 0
    heights = [_HEAD + _ROW * len(rows) + _FOOT for rows in panels.values()]
    height = above + sum(heights)
    # 72 dots an inch: one unit of the drawing is one pixel at its natural size.
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="white")
    top = above
    for (kind, rows), size in zip(panels.items(), heights, strict=True):
        bottom = height - top - size + _FOOT
        place = (_LEFT / WIDTH, bottom / height, 1 - (_LEFT + _RIGHT) / WIDTH, _ROW * len(rows) / height)
        _draw(figure.add_axes(place), kind, rows)
        top += size
    if both:
        _legend(figure, found, height)
    return _svg(figure)


def _panels(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """Rows by what they are measured in: shares, rewards that are none, likelihoods, bits per byte."""
    panels: dict[str, list[Row]] = {kind: [] for kind in _TITLES}
    for result in results:
        sides = [result["figures"], *([result["baseline"]["figures"]] if "baseline" in result else [])]
        shares = [name for name in result["figures"] if words.is_share(name)]
        told = [*shares, *(name for name in ("reward", "likelihood", "bits_per_byte") if name in result["figures"])]
        if words.repeats_share(result):
            told.remove("reward")
        if shares and "likelihood" in told:
            told.remove("likelihood")
        for measure in told:
            points = tuple(_point(side[measure]) for side in sides)
            if any(math.isfinite(point[0]) for point in points):
                kind = "share" if words.is_share(measure) else measure
                many = kind == "share" and len(shares) > 1
                name = _short(result["name"])
                panels[kind].append(Row(f"{name} {measure}" if many else name, measure, points))
    return {kind: rows[:_MOST_ROWS] for kind, rows in panels.items() if rows}


def _point(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    value = numbers.finite(figure["value"])
    low, high = map(numbers.finite, figure["ci95"] or (value, value))
    return value, low, high


def _short(name: str) -> str:
    """A name that fits beside the axes: of a path the last part, of that the end."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name
    last = "".join(character if character.isprintable() else "�" for character in last)
    return last if len(last) <= _NAME else f"…{last[1 - _NAME :]}"


def _draw(axes: Any, kind: str, rows: Sequence[Row]) -> None:
    """A panel: a line for each row, the model's point above the baseline's."""
    shift = 0.2 if any(len(row.points) > 1 for row in rows) else 0.0
    for line, row in enumerate(rows):
        for side, (value, low, high) in enumerate(row.points):
            if not math.isfinite(value):
                continue
            colour, marker = (_MODEL, "o") if side == 0 else (_BASELINE, "D")
            y = line - shift + 2 * shift * side
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([value], [y], marker=marker, markersize=7 if side == 0 else 6, color=colour, zorder=3)
            axes.annotate(
                words.value(row.measure, value),
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(10, 0),
                textcoords="offset points",
                va="center",
                fontsize=13,
                color=colour,
                annotation_clip=False,
            )
    axes.set_title(
        _TITLES[kind], loc="left", x=-_LEFT / (WIDTH - _LEFT - _RIGHT) + 0.02, fontsize=14, color=_INK, pad=9
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_literal(row.name) for row in rows])
    _scale(axes, kind, rows)


def _scale(axes: Any, kind: str, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ends = [end for row in rows for point in row.points for end in point if math.isfinite(end)]
    if kind == "share":
        axes.set_xlim(-0.015, 1.015)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    else:
        room = 0.08 * (max(ends) - min(ends)) or 0.1 * abs(ends[0]) or 0.1
        axes.set_xlim(min(ends) - room, max(ends) + room)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(length=0, labelsize=13, labelcolor=_INK)
    axes.tick_params(axis="x", labelsize=12, labelcolor=_MUTED)
    axes.grid(axis="x", color=_LINE, linewidth=1)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(figure: Any, found: Mapping[str, Any], height: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=2, label=_literal(_short(name)))
        for name, colour, marker in (
            (found["model"], _MODEL, "o"),
            (f"{found['baseline']['model']} (baseline)", _BASELINE, "D"),
        )
    ]
    figure.legend(
        handles=handles, loc="upper left", ncols=2, frameon=False, fontsize=13, borderaxespad=0.3, labelcolor=_INK
    )


def _literal(text: str) -> str:
    """Text that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def _svg(figure: Any) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "evaluation"}), warnings.catch_warnings():
        # The reader's own fonts draw the text; matplotlib's only measure it, and lack most scripts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return re.sub(r"font-family: [^;\"]*", f"font-family: {_FAMILY}", buffer.getvalue())
