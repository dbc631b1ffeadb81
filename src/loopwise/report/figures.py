"""The pictures, as SVG to be put inside a page: text stays text, and colours come from the page's style sheet.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables, so that one drawing serves light and
dark. Shapes come out the same for the same content: ids are salted with the figure's name.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopwise.report.history import Curve, Point
    from loopwise.report.series import Series

WIDE, NARROW, SMALL = (1000, 400), (360, 300), (240, 130)
_STAGES = (
    *("untrained", "base", "ngram", "training", "control", "control_unfiltered", "control_gold"),
    *("improved", "tuned", "pretrained", "trained"),
)
_VARIABLES = ("ink", "muted", "line", "card", "lost", *_STAGES)
COLOURS = {name: f"#0102{place:02x}" for place, name in enumerate(_VARIABLES)}
"""Stand-ins for the page's colours."""
_CROWDED = 60
_DECIMALS = 3
_STEPS = (1, 2, 2.5, 5, 10)


def progress_figure(curves: Sequence[Curve], *, share: bool, size: tuple[int, int], floor: float | None = None) -> str:
    """Dev figures per round with their intervals, and the gate's decisions as marks.

    A line stands at the ``floor`` of the n-gram model, or else where the run started.
    """
    narrow = size[0] < 500
    figure, axes = blank_figure(size, (46, 6, 42, 8) if narrow else (56, 10, 46, 10))
    for curve in reversed(curves):
        main = curve is curves[0]
        _draw_curve(axes, curve, main=main, narrow=narrow)
    start = curves[0].points[0]
    level = (floor, "ngram") if floor is not None else (start.value, "base") if start.mark == "base" else None
    if level:
        axes.axhline(level[0], color=COLOURS[level[1]], linewidth=1.3, dashes=(5, 4), zorder=1)
    points = [point for curve in curves for point in curve.points]
    _limit(axes, [*(v for p in points for v in (p.low, p.high, p.value)), *(level or ())[:1]], share)
    axes.set_xlabel("round", color=COLOURS["muted"], fontsize=12)
    finish_axes(axes, share, ticks=6 if narrow else 14, fontsize=12 if narrow else 13)
    return inline_svg(figure, f"progress-{size[0]}", "Held-out figures per round")


def small_figure(series: Series) -> str:
    """One of the small multiples."""
    figure, axes = blank_figure(SMALL, (42, 4, 24, 8))
    lone = len(series.rounds) == 1
    for mark in series.marks:
        axes.axvline(mark, color=COLOURS["muted"], linewidth=1, alpha=0.4, zorder=0)
    for place, (_, values) in enumerate(series.lines):
        axes.plot(
            series.rounds,
            values,
            color=COLOURS["improved"],
            linewidth=1.8,
            linestyle="-" if place == 0 else (0, (3, 2)),
            marker="o" if lone else None,
            markersize=5,
        )
    _limit(axes, [value for _, values in series.lines for value in values], series.share)
    finish_axes(axes, series.share, ticks=6, fontsize=11, levels=3, whole=series.counts and not series.share)
    return inline_svg(figure, f"small-{series.title}", series.title)


def blank_figure(size: tuple[int, int], margins: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """A figure of ``size`` pixels and its axes; ``margins`` left, right, bottom, top."""
    from matplotlib.figure import Figure

    # 72 dots an inch: one unit of the drawing is one pixel at its natural size.
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
    figure.patch.set_visible(False)
    left, right, bottom, top = margins
    width, height = size
    # Fixed margins: a layout engine would draw everything twice, and the report has seconds.
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    axes.patch.set_visible(False)
    return figure, axes


def _draw_curve(axes: Any, curve: Curve, *, main: bool, narrow: bool) -> None:
    colour = COLOURS[curve.key]
    rounds = [point.round for point in curve.points]
    lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
    axes.fill_between(rounds, lows, highs, color=colour, alpha=0.16 if main else 0.1, linewidth=0)
    axes.plot(rounds, [point.value for point in curve.points], color=colour, linewidth=2.4 if main else 1.6)
    size = (3.0 if narrow else 4.0) if len(curve.points) > _CROWDED else (5.0 if narrow else 7.0)
    for mark, style in _marks(colour, size if main else 0.75 * size).items():
        marked: list[Point] = [point for point in curve.points if point.mark == mark]
        if marked:
            axes.plot([p.round for p in marked], [p.value for p in marked], linestyle="none", zorder=3, **style)


def _marks(colour: str, size: float) -> dict[str, dict[str, Any]]:
    edge = max(1.2, size / 4)
    hollow = {"marker": "o", "markersize": size, "markerfacecolor": COLOURS["card"], "markeredgewidth": edge}
    return {
        "base": {"marker": "s", "markersize": size, "color": COLOURS["base"]},
        "best": {"marker": "o", "markersize": size, "color": colour},
        "accepted": {**hollow, "markeredgecolor": colour},
        "rolled back": {
            "marker": "x",
            "markersize": size,
            "markeredgewidth": edge * 1.2,
            "color": COLOURS["lost"],
        },
    }


def _limit(axes: Any, values: Sequence[float], share: bool) -> None:
    """Limits around the values; from zero where that costs little room, and never so near that noise looks large."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    least = 0.1 * max(abs(low), abs(high))
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    if 0 <= low < 0.35 * high or low == high == 0:
        low = 0.0
    room = 0.07 * (high - low) or 0.07 * abs(high) or 0.05
    bottom = low if low == 0 else low - room
    if share:
        axes.set_ylim(max(bottom, 0.0) - (min(0.02, room) if bottom <= 0 else 0), min(high + room, 1.03))
    else:
        axes.set_ylim(bottom - (room if low == 0 else 0), high + room)


def finish_axes(axes: Any, share: bool, *, ticks: int, fontsize: int, levels: int = 5, whole: bool = False) -> None:
    """Ticks, grid and labels; ``share``: values are written as percentages."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(levels, steps=_STEPS, integer=whole))
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(low - 1, high + 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _level(value, share, axes)))
    axes.tick_params(length=0, pad=6, labelsize=fontsize, labelcolor=COLOURS["muted"])
    axes.grid(axis="y", color=COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(COLOURS["muted"])
    axes.margins(x=0.02)


def _level(value: float, share: bool, axes: Any) -> str:
    low, high = axes.get_ylim()
    step = (high - low) * (100 if share else 1) / 5
    decimals = min(6, max(0, math.ceil(-math.log10(step)))) if step > 0 else 0
    shown = 100 * value if share else value
    # More decimals would not fit beside the axis.
    text = f"{shown:,.{decimals}f}" if decimals <= _DECIMALS else _scientific(shown)
    text = text.replace("-", "−")
    return f"{text}%" if share else text


def _scientific(value: float) -> str:
    if not value:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value / 10**exponent:.3g}e{exponent}"


def inline_svg(figure: Any, name: str, label: str) -> str:
    """A finished figure as an ``svg`` element; ``name`` salts its ids, ``label`` is read out for the blind."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _inline(buffer.getvalue(), label)


def _inline(document: str, label: str) -> str:
    """The ``svg`` element alone, without size, metadata and fixed font, its colours those of the page."""
    drawing = document[document.index("<svg") :]
    drawing = re.sub(r"<(metadata|style)[ >].*?</\1>", "", drawing, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None
    drawing = re.sub(
        r"<svg[^>]*>", f'<svg {box.group()} role="img" aria-label="{html.escape(label)}">', drawing, count=1
    )
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)
    drawing = re.sub(r"font-family: [^;\"]*;? ?", "", drawing)
    drawing = re.sub(r' transform="rotate\(-0 [^"]*"', "", drawing)
    drawing = re.sub(r"<!--.*?-->\s*", "", drawing, flags=re.DOTALL)
    for variable, colour in COLOURS.items():
        drawing = drawing.replace(colour, f"var(--{variable.replace('_', '-')})")
    return re.sub(r"\s*\n\s*", "\n", drawing)
