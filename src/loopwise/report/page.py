"""Content to HTML. Everything is escaped but the style sheet and the pictures drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loopwise.report.content import Content
from loopwise.report.figures import NARROW, WIDE, progress_figure, small_figure
from loopwise.report.judging import JudgeContent
from loopwise.report.judging_figures import margin_figure, reliability_figure
from loopwise.report.pretraining import TextContent
from loopwise.report.series import Series


def render(content: Content) -> str:
    """The report on tuning or on the loop as one HTML page."""
    share = content.outcome.measure.kind == "share"
    pictures = [progress_figure(content.curves, share=share, size=size) for size in (WIDE, NARROW) if content.curves]
    return _page("report.html.j2", content, pictures, by_step=_drawn(content.steps), monitors=_drawn(content.monitors))


def render_text(content: TextContent) -> str:
    """The report on pretraining as one HTML page."""
    curves, floor = content.curves, content.floor
    pictures = [progress_figure(curves, share=False, size=size, floor=floor) for size in (WIDE, NARROW) if curves]
    return _page("pretrain.html.j2", content, pictures)


def render_judge(content: JudgeContent) -> str:
    """The report on a judge as one HTML page."""
    share, curves, sure = content.measure.kind == "share", content.curves, content.calibration
    pictures = [progress_figure(curves, share=share, size=size) for size in (WIDE, NARROW) if curves]
    return _page(
        "judge.html.j2",
        content,
        pictures,
        by_step=_drawn(content.steps),
        reading=_drawn(content.reading),
        reliability=Markup(reliability_figure(sure.before, sure.after, least=sure.least)) if sure else None,
        margins=Markup(margin_figure(content.margins)) if content.margins else None,
    )


def _page(template: str, content: Any, pictures: list[str], **more: Any) -> str:
    loader = PackageLoader("loopwise", "report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    return environment.get_template(template).render(
        content=content,
        style=Markup((resources.files("loopwise.report") / "style.css").read_text(encoding="utf-8")),
        progress=[Markup(picture) for picture in pictures],
        multiples=_drawn(content.series),
        **more,
    )


def _drawn(charts: Sequence[Series]) -> list[tuple[Series, Markup]]:
    return [(series, Markup(small_figure(series))) for series in charts]
