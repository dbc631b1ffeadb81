"""The pictures of a report on a judge: how sure it is beside how often it is right, and by how much pairs differ."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from loopwise.evaluate.stats import wilson
from loopwise.report.figures import COLOURS, blank_figure, finish_axes, inline_svg

if TYPE_CHECKING:
    from loopwise.report.judging import Margins, Reliability

_SIZE = (430, 320)
_SMALLEST, _LARGEST = 5.0, 13.0
_FONT = 12
_FEW_CLASSES, _MANY_CLASSES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0)
"""Ticks of how sure a judge is: of two classes at least half."""


def reliability_figure(before: Reliability, after: Reliability | None, *, least: float) -> str:
    """How often a judge is right (up) by how sure it is (across), before and after its temperature.

    The larger a dot, the more rows it stands for; ``after`` (or ``before``, where there was no temperature) has 95%
    intervals. The scale begins at ``least``, below which no judge can be: it names the likeliest of its classes.
    """
    from matplotlib.ticker import FuncFormatter

    figure, axes = blank_figure(_SIZE, (56, 12, 48, 10))
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1.3, dashes=(5, 4), zorder=1)
    for part, name in ((before, "base" if after else "trained"), (after, "trained")):
        if part:
            _dots(axes, part, COLOURS[name], whiskers=part is (after or before))
    axes.set_ylim(-0.03, 1.03)
    finish_axes(axes, True, ticks=6, fontsize=_FONT)
    axes.set_xlim(least - 0.03, 1.03)
    axes.set_xticks(_FEW_CLASSES if least >= _FEW_CLASSES[0] else _MANY_CLASSES)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))
    axes.set_xlabel("how sure it is", color=COLOURS["muted"], fontsize=_FONT)
    return inline_svg(figure, "reliability", "How often the judge is right, by how sure it is")


def _dots(axes: Any, part: Reliability, colour: str, *, whiskers: bool) -> None:
    most = max(part.counts)
    if whiskers:
        for sure, right, count in zip(part.sure, part.right, part.counts, strict=True):
            axes.plot([sure, sure], wilson(round(right * count), count), color=colour, linewidth=1.4, alpha=0.55)
    axes.plot(part.sure, part.right, color=colour, linewidth=1.6, zorder=2)
    for sure, right, count in zip(part.sure, part.right, part.counts, strict=True):
        size = _SMALLEST + (_LARGEST - _SMALLEST) * (count / most) ** 0.5
        edge = {"markerfacecolor": colour if whiskers else COLOURS["card"], "markeredgecolor": colour}
        axes.plot([sure], [right], marker="o", markersize=size, markeredgewidth=1.6, zorder=3, **edge)


def margin_figure(margins: Margins) -> str:
    """How many pairs have which margin: those told apart to the right of 0, those ranked wrong to its left."""
    figure, axes = blank_figure(_SIZE, (56, 12, 48, 10))
    edges = margins.edges
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    colours = [COLOURS["trained"] if middle > 0 else COLOURS["lost"] for middle in middles]
    axes.bar(middles, margins.counts, width=0.88 * (edges[1] - edges[0]), color=colours, zorder=2)
    axes.axvline(0, color=COLOURS["muted"], linewidth=1.3, dashes=(5, 4), zorder=1)
    finish_axes(axes, False, ticks=6, fontsize=_FONT, whole=True)
    _signed_ticks(axes)
    axes.set_xlabel("score of the chosen, less that of the rejected", color=COLOURS["muted"], fontsize=_FONT)
    return inline_svg(figure, "margins", "Pairs by the margin between their scores")


def _signed_ticks(axes: Any) -> None:
    """Ticks of a scale of any size, which ``finish_axes`` takes for rounds."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
