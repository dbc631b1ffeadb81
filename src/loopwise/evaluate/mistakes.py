"""What a judge gets wrong: what it takes for what, where it was surest of it, and by how much it tells pairs apart."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from loopwise.evaluate.calibration import log_softmax

_BARS = 20
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Mistake:
    """``count`` rows of class ``truth`` were taken for ``found``. ``rows`` are places of those it was surest of, with
    the probability that it gave to its mistake."""

    truth: int
    found: int
    count: int
    rows: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Histogram:
    """``counts`` of the values between ``edges``, which are one more; 0 is an edge."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def mistakes(logits: np.ndarray, labels: np.ndarray, most: int, each: int) -> tuple[Mistake, ...]:
    """The ``most`` frequent mistakes, each with the ``each`` rows that the judge was surest of.

    logits ``[N, C]``, already divided by the temperature; labels int ``[N]``.
    """
    found = logits.argmax(axis=1)
    confidence = np.exp(log_softmax(logits).max(axis=1))
    counted = Counter(zip(labels[found != labels].tolist(), found[found != labels].tolist(), strict=True))
    told = []
    for (truth, wrong), count in sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))[:most]:
        places = np.flatnonzero((labels == truth) & (found == wrong))
        surest = places[np.argsort(-confidence[places], kind="stable")][:each]
        told.append(Mistake(truth, wrong, count, tuple((int(place), float(confidence[place])) for place in surest)))
    return tuple(told)


def margin_histogram(margins: np.ndarray) -> Histogram:
    """How many pairs have which margin (the chosen one's score less the rejected one's): margins ``[N]``, N > 0."""
    low, high = min(float(margins.min()), 0.0), max(float(margins.max()), 0.0)
    width = _round_number((high - low) / _BARS) if high > low else 1.0
    first, last = math.floor(low / width), max(math.ceil(high / width), math.floor(low / width) + 1)
    edges = np.arange(first, last + 1) * width
    counts, _ = np.histogram(margins, edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _round_number(least: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is no smaller than ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in _STEPS if step * power >= least * (1 - 1e-9))
