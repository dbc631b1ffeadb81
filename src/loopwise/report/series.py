"""What was logged round by round, as small charts: what makes reward hacking and collapse visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from loopwise.report import numbers
from loopwise.runs.rows import StepRow

_POINTS = 100


@dataclass(frozen=True)
class Series:
    """A small chart: lines of ``(label, values)`` over ``rounds`` (or optimizer steps), NaN where there is none."""

    title: str
    hint: str
    rounds: tuple[int, ...]
    lines: tuple[tuple[str, tuple[float, ...]], ...]
    share: bool = False

    @property
    def counts(self) -> bool:
        """Whether all values are whole numbers."""
        return all(value.is_integer() for _, values in self.lines for value in values if numbers.known(value))

    @property
    def ends(self) -> str:
        """First and last value of the first line."""
        values = [value for value in self.lines[0][1] if numbers.known(value)]
        write = numbers.percent if self.share else numbers.whole if self.counts else numbers.figure
        return " → ".join(write(value) for value in (values[:1] + values[1:][-1:]))


class _Chart(NamedTuple):
    """A chart to be: the names its lines have in the rounds' summaries. ``telling``: left out where all is zero."""

    title: str
    hint: str
    names: tuple[str, ...]
    share: bool = False
    telling: bool = False


def series(rounds: Sequence[tuple[int, Mapping[str, Any]]], parts: Sequence[str]) -> tuple[Series, ...]:
    """The charts of a run's ``(round, summary)`` pairs; one without any figure is left out."""
    k = max((int(summary.get("k") or 0) for _, summary in rounds), default=0)
    drawn = []
    for chart in _charts(parts, k):
        lines = tuple((name, tuple(numbers.finite(summary.get(name)) for _, summary in rounds)) for name in chart.names)
        known = [value for _, values in lines for value in values if numbers.known(value)]
        if known and (any(known) or not chart.telling):
            drawn.append(Series(chart.title, chart.hint, tuple(number for number, _ in rounds), lines, chart.share))
    return tuple(drawn)


def step_series(steps: Sequence[StepRow]) -> tuple[Series, ...]:
    """The charts of a run's optimizer steps, at most 100 points each; one without any figure is left out."""
    size = max(1, -(-len(steps) // _POINTS))
    each = "" if size == 1 else f" Each point is the mean of {size} steps."
    places = tuple(range(size, len(steps) + size, size))
    charts = (
        ("Training loss", f"Nats a token, over the optimizer steps.{each}", "loss"),
        ("Learning rate", f"AdamW’s, over the optimizer steps.{each}", "learning_rate"),
        ("Gradient norm", f"Before clipping, over the optimizer steps.{each}", "grad_norm"),
    )
    drawn = []
    for title, hint, name in charts:
        values = np.array([numbers.finite(row.metrics.get(name)) for row in steps])
        means = tuple(_mean(values[stop - size : stop]) for stop in places)
        if any(map(numbers.known, means)):
            drawn.append(Series(title, hint, tuple(min(stop, len(steps)) for stop in places), ((name, means),)))
    return tuple(drawn)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _charts(parts: Sequence[str], k: int) -> list[_Chart]:
    several = parts if len(parts) > 1 else ()
    return [
        _Chart("Reward", "What the reward gave this round's answers.", ("reward",)),
        *(_Chart(f"Reward: {part}", "One part of the reward.", (f"rewards/{part}/mean",)) for part in several),
        _pass_chart(k),
        _Chart(
            "Distinct answers",
            f"Share of different texts among {k} answers to a problem. Least when it always says the same: "
            "good if right, collapse if not.",
            ("distinct",),
            share=True,
        ),
        _Chart("Length", "Mean tokens an answer. Growth without gain is suspect.", ("completions/mean_length",)),
        _Chart(
            "Length", "Mean characters an answer. Growth without gain is suspect.", ("completions/mean_characters",)
        ),
        _Chart(
            "Cut off", "Answers that hit the token limit.", ("completions/clipped_ratio",), share=True, telling=True
        ),
        _Chart("Entropy", "How undecided it is, in nats a token. Near 0 it explores no more.", ("entropy",)),
        _Chart("Samples kept", "How many of its answers it learned from.", ("kept",), telling=True),
        _Chart("Training loss", "Mean over the round's steps. Lower is a closer fit.", ("update/loss",)),
    ]


def _pass_chart(k: int) -> _Chart:
    if k < 2:
        return _Chart("pass@1", "Chance that an answer passes.", ("pass_at_1",), share=True)
    hint = (
        f"Chance that one answer passes (solid), and that one of {k} does (dashed). The second falling while the first "
        "rises: it sharpens, but learns nothing new."
    )
    return _Chart(f"pass@1 and pass@{k}", hint, ("pass_at_1", "pass_at_k"), share=True)
