"""What held-out figures mean, and how two stages compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loopwise.evaluate.stats import difference
from loopwise.report import numbers

Kind = Literal["gain", "none", "loss", "unmeasured"]
_MOST_NATS = 700.0


@dataclass(frozen=True)
class Measure:
    """What the held-out figures are: a ``share`` of problems, a mean ``reward``, or a mean log-``likelihood``.

    Of a judge they may be the mean log-probability of the right ``judgement``.

    ``nats`` are log-likelihoods of plain text, written as the nats a token that they cost: less is better.
    ``passed`` says what a problem of the share is: "right" or "passing"; ``noun`` what the problems are called.
    """

    kind: Literal["share", "reward", "likelihood", "nats", "judgement"]
    passed: str
    noun: str

    @property
    def title(self) -> str:
        """What a column of such figures is headed with."""
        names = {
            "share": f"Share {self.passed}",
            "reward": "Mean reward",
            "nats": "Nats a token",
            "judgement": "Mean log-probability of the right judgement",
        }
        return names.get(self.kind, "Mean log-probability a token")

    def value(self, value: float) -> str:
        """A figure with its unit."""
        if self.kind == "nats":
            return numbers.fixed(-value, 3)
        return numbers.percent(value) if self.kind == "share" else numbers.figure(value)

    def difference(self, value: float) -> str:
        """A signed difference of two figures."""
        if self.kind == "nats":
            return numbers.fixed(-value, 4, signed=True)
        return numbers.points(value) if self.kind == "share" else numbers.figure(value, signed=True)

    def level(self, value: float) -> str:
        """A figure in a sentence."""
        return {
            "share": f"{self.value(value)} {self.passed}",
            "reward": f"a mean reward of {self.value(value)}",
            "likelihood": f"a mean log-probability of {self.value(value)} a token",
            "nats": f"{self.value(value)} nats a token",
            "judgement": f"a mean log-probability of {self.value(value)} for the right judgement",
        }[self.kind]

    def aside(self, value: float) -> str:
        """A log-likelihood as a perplexity, for those who know that better; nothing for other figures."""
        likely = self.kind == "likelihood" and numbers.known(value) and value > -_MOST_NATS
        return f"perplexity {numbers.figure(math.exp(-value))}" if likely else ""

    def change(self, before: float, after: float) -> str:
        """Two figures in a sentence."""
        if self.kind == "share":
            return f"from {self.value(before)} to {self.value(after)} {self.passed}"
        return f"from {self.level(before)} to {self.value(after)}"


@dataclass(frozen=True)
class Comparison:
    """The mean paired difference over ``n`` problems, with its two-sided 95% interval."""

    difference: float
    low: float
    high: float
    n: int

    @property
    def shows(self) -> Kind:
        """What it shows: nothing, where the interval includes zero."""
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "none"

    def words(self, measure: Measure) -> str:
        """Difference and interval in a sentence."""
        if not numbers.known(self.low) or not numbers.known(self.high):
            return f"{measure.difference(self.difference)} (too few problems for an interval)"
        low, high = measure.difference(self.low), measure.difference(self.high)
        return f"{measure.difference(self.difference)} (95% interval {low.removesuffix(' points')} to {high})"


@dataclass(frozen=True)
class Standing:
    """A stage's figure on a split with its 95% interval, and its scores ``[P]`` where the journal has them."""

    value: float
    low: float
    high: float
    n: int
    scores: np.ndarray | None = None

    @property
    def is_share(self) -> bool:
        """Whether the scores are all 0 or 1, so that the figure is a share of the problems."""
        return self.scores is not None and zeros_and_ones(self.scores[~np.isnan(self.scores)])


def zeros_and_ones(scores: np.ndarray) -> bool:
    """Whether scores ``[P]`` are all 0 or 1."""
    return bool(np.all((scores == 0) | (scores == 1)))


def compare(after: Standing, before: Standing) -> Comparison | None:
    """Compare two stages problem by problem; None where the scores are not of the same problems."""
    if after.scores is None or before.scores is None or after.scores.shape != before.scores.shape:
        return None
    found = difference(after.scores, before.scores)
    return Comparison(found.value, found.low, found.high, found.n)
