"""What the monitors saw on held-out problems, round after round, as small charts that begin with the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from loopwise.report import numbers
from loopwise.report.series import Series


class _Chart(NamedTuple):
    title: str
    hint: str
    names: tuple[str, ...]
    share: bool = False


_REWARD = _Chart("Reward", "Mean reward of its samples.", ("reward",))
_TRUTH = _Chart(
    "Reward and truth",
    "Mean reward of its samples (solid), and what the truth says of the same ones (dashed), which decided "
    "nothing. The first rising while the second falls: it has found a hole in the reward.",
    ("reward", "truth"),
)
_CHARTS = (
    _Chart(
        "pass@1 and pass@{k}",
        "Chance that one sample is right (solid), and that one of {k} is (dashed). The second falling: answers it once "
        "could find are lost.",
        ("pass_at_1", "pass_at_k"),
        share=True,
    ),
    _Chart("KL from the base", "How far it went, in nats a token of its own samples.", ("kl",)),
    _Chart("Entropy", "How undecided it is, in nats a token.", ("entropy",)),
    _Chart("Distinct answers", "Share of different texts among {k} samples.", ("distinct",), share=True),
    _Chart("Vote share", "Samples that agree with the most frequent one.", ("vote_share",), share=True),
    _Chart("Length", "Mean length of a sample.", ("length",)),
    _Chart("Self-certainty", "How far from even its next-token probabilities are, in nats.", ("self_certainty",)),
)


def monitor_series(rounds: Sequence[tuple[int, Mapping[str, Any]]], samples: int) -> tuple[Series, ...]:
    """The charts of a run's ``(round, summary)`` pairs; one without any figure is left out.

    ``samples`` were drawn of each problem.
    """
    seen = [(number, summary) for number, summary in rounds if any(name.startswith("monitor/") for name in summary)]
    if not seen:
        return ()
    points = [(0, _of("monitor_base/", seen[0][1])), *((number, _of("monitor/", summary)) for number, summary in seen)]
    first = _TRUTH if any("monitor/truth" in summary for _, summary in seen) else _REWARD
    drawn = []
    for chart in (first, *_CHARTS):
        lines = tuple((name, tuple(numbers.finite(values.get(name)) for _, values in points)) for name in chart.names)
        if any(numbers.known(value) for _, values in lines for value in values):
            title, hint = chart.title.format(k=samples), chart.hint.format(k=samples)
            drawn.append(Series(title, hint, tuple(number for number, _ in points), lines, chart.share))
    return tuple(drawn)


def _of(prefix: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in summary.items() if name.startswith(prefix)}
