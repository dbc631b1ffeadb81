"""What was logged round by round, as small charts: what makes reward hacking and collapse visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from loopwise.report import numbers
from loopwise.runs.rows import StepRow

_POINTS, _MOST_MARKS = 100, 30


@dataclass(frozen=True)
class Series:
    """A small chart: lines of ``(label, values)`` over ``rounds`` (or steps), NaN where there is none.

    ``marks`` are steps that ended a round.
    """

    title: str
    hint: str
    rounds: tuple[int, ...]
    lines: tuple[tuple[str, tuple[float, ...]], ...]
    share: bool = False
    marks: tuple[int, ...] = ()

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


class StepChart(NamedTuple):
    """A chart to be, over the steps: the names its lines have in their metrics.

    ``varying``: left out where all its values are one.
    """

    title: str
    hint: str
    names: tuple[str, ...]
    share: bool = False
    varying: bool = False


class _Chart(NamedTuple):
    """A chart to be: the names its lines have in the rounds' summaries. ``telling``: left out where all is zero."""

    title: str
    hint: str
    names: tuple[str, ...]
    share: bool = False
    telling: bool = False


def series(
    rounds: Sequence[tuple[int, Mapping[str, Any]]], parts: Sequence[str], *, imitates: bool = True
) -> tuple[Series, ...]:
    """The charts of a run's ``(round, summary)`` pairs; one without any figure is left out.

    ``imitates``: what it keeps of its samples is learned like labelled rows.
    """
    k = max((int(summary.get("k") or 0) for _, summary in rounds), default=0)
    drawn = []
    for chart in _charts(parts, k, imitates):
        lines = tuple((name, tuple(numbers.finite(summary.get(name)) for _, summary in rounds)) for name in chart.names)
        known = [value for _, values in lines for value in values if numbers.known(value)]
        if known and (any(known) or not chart.telling):
            drawn.append(Series(chart.title, chart.hint, tuple(number for number, _ in rounds), lines, chart.share))
    return tuple(drawn)


READING = (
    StepChart("Training loss", "Nats a token.", ("loss",)),
    StepChart("Learning rate", "AdamW’s.", ("learning_rate",), varying=True),
    StepChart("Gradient norm", "Before clipping.", ("grad_norm",)),
)
"""Step by step, what there is to see of learning text."""

LEARNING = (
    StepChart("Reward", "What the reward gave the answers a step drew.", ("reward",)),
    StepChart(
        "Tied problems",
        "Share of a step’s problems whose answers all scored alike: nothing is learned from them.",
        ("frac_reward_zero_std",),
        share=True,
    ),
    StepChart("Entropy", "How undecided it is, in nats a token. Near 0 it explores no more.", ("entropy",)),
    StepChart("KL", "How far it went from the reference, in nats a token.", ("kl",)),
    StepChart(
        "Clip share",
        "Tokens whose ratio was clipped above (solid) and below (dashed).",
        ("clip_ratio/high_mean", "clip_ratio/low_mean"),
        share=True,
    ),
    StepChart("Value error", "Of the value head, squared.", ("value_error",)),
    StepChart(
        "Margin", "How much more than the reference it prefers chosen to rejected answers.", ("rewards/margins",)
    ),
    StepChart(
        "Pairs ranked right",
        "Share of pairs of which it holds the chosen answer more than the reference does.",
        ("rewards/accuracies",),
        share=True,
    ),
    StepChart(
        "Chosen and rejected",
        "Log-probability of chosen (solid) and rejected (dashed) answers. Both falling: it forgets how to answer.",
        ("logps/chosen", "logps/rejected"),
    ),
    StepChart("Loss", "What the optimizer lowers. By policy gradient it stays about 0, and says little.", ("loss",)),
    StepChart("Learning rate", "AdamW’s.", ("learning_rate",), varying=True),
    StepChart("Gradient norm", "Before clipping.", ("grad_norm",)),
)
"""Step by step, what there is to see of learning answers."""


def step_series(steps: Sequence[StepRow], charts: Sequence[StepChart] = READING) -> tuple[Series, ...]:
    """Charts of a run's steps, at most 100 points each; one without any figure is left out."""
    size = max(1, -(-len(steps) // _POINTS))
    each = "" if size == 1 else f" Each point is the mean of {size} steps."
    places = tuple(range(size, len(steps) + size, size))
    ends = tuple(place for place in range(1, len(steps)) if steps[place].round != steps[place - 1].round)
    drawn = []
    for chart in charts:
        lines = tuple((name, _means(steps, name, size)) for name in chart.names)
        known = {value for _, values in lines for value in values if numbers.known(value)}
        if len(known) > chart.varying:
            at = tuple(min(stop, len(steps)) for stop in places)
            marks = ends if len(ends) < _MOST_MARKS else ()
            drawn.append(Series(chart.title, f"{chart.hint}{each}", at, lines, chart.share, marks))
    return tuple(drawn)


def _means(steps: Sequence[StepRow], name: str, size: int) -> tuple[float, ...]:
    """The mean of every ``size`` steps, NaN where none has the figure."""
    values = np.array([numbers.finite(row.metrics.get(name)) for row in steps])
    return tuple(_mean(values[start : start + size]) for start in range(0, len(steps), size))


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _charts(parts: Sequence[str], k: int, imitates: bool) -> list[_Chart]:
    several = parts if len(parts) > 1 else ()
    learned = (
        _Chart("Learned from", "How many of its answers it learned from.", ("kept",), telling=True),
        _Chart("Training loss", "Mean over the round's steps. Lower is a closer fit.", ("update/loss",)),
    )
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
        _Chart(
            "Tied problems",
            "Share of the problems whose answers all scored alike: to compare them teaches nothing.",
            ("frac_reward_zero_std",),
            share=True,
            telling=True,
        ),
        _Chart("Entropy", "How undecided it is, in nats a token. Near 0 it explores no more.", ("entropy",)),
        _Chart("Pairs", "How many pairs of a better and a worse answer there were.", ("update/pairs",)),
        *(learned if imitates else ()),
    ]


def _pass_chart(k: int) -> _Chart:
    if k < 2:
        return _Chart("pass@1", "Chance that an answer passes.", ("pass_at_1",), share=True)
    hint = (
        f"Chance that one answer passes (solid), and that one of {k} does (dashed). The second falling while the first "
        "rises: it sharpens, but learns nothing new."
    )
    return _Chart(f"pass@1 and pass@{k}", hint, ("pass_at_1", "pass_at_k"), share=True)
