"""Figures come with sensible digits, and a dash where there is none."""

import math

import pytest

from loopwise.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.128, "12.8%"), (0, "0%"), (1, "100%"), (0.9999, "100.0%"), (-0.05, "−5.0%"), (math.nan, "–"), (math.inf, "–")],
)
def test_percent(value, text):
    assert numbers.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (4.998, "5"),
        (100.0, "100"),
        (0.5, "0.500"),
        (0.0077, "0.0077"),
        (12.34, "12.3"),
        (-2.3456, "−2.35"),
        (1234.5, "1,234"),
        (1.2e-6, "1.2e−06"),
        (math.nan, "–"),
    ],
)
def test_figure(value, text):
    assert numbers.figure(value) == text


def test_signs():
    assert numbers.points(0.858) == "+85.8 points"
    assert numbers.points(-0.012) == "−1.2 points"
    assert numbers.figure(0.25, signed=True) == "+0.250"


@pytest.mark.parametrize(
    ("value", "text"), [(285856, "285,856"), (1888640, "1.89 million"), (5e12, "5 trillion"), (math.nan, "–")]
)
def test_amount(value, text):
    assert numbers.amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59.6, "1 min"), (272, "4 min 32 s"), (7380, "2 h 3 min"), (90000, "1 d 1 h"), (math.nan, "–")],
)
def test_duration(seconds, text):
    assert numbers.duration(seconds) == text


def test_finite():
    assert numbers.finite(3) == 3.0
    assert math.isnan(numbers.finite(None))
    assert math.isnan(numbers.finite("3"))
