"""Content to HTML. Everything is escaped but the style sheet and the pictures drawn here."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from loopwise.report.content import Content
from loopwise.report.figures import NARROW, WIDE, progress_figure, small_figure


def render(content: Content) -> str:
    """The report as one HTML page."""
    folder = resources.files("loopwise.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    share = content.outcome.measure.kind == "share"
    pictures = [progress_figure(content.curves, share=share, size=size) for size in (WIDE, NARROW) if content.curves]
    return template.render(
        content=content,
        style=Markup((folder / "style.css").read_text(encoding="utf-8")),
        progress=[Markup(picture) for picture in pictures],
        multiples=[(series, Markup(small_figure(series))) for series in content.series],
    )
