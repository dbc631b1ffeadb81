"""Calibration against numbers worked out by hand, and temperatures known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loopwise.evaluate.calibration import (
    bound_of,
    expected_calibration_error,
    fit_temperature,
    label_report,
    log_loss,
    reliability,
    two_classes,
)


def logits_of(*probabilities: float) -> np.ndarray:
    """Two classes, of which the second has these probabilities."""
    return two_classes(np.array([math.log(p / (1 - p)) for p in probabilities]))


def test_the_calibration_error_is_the_weighted_distance_of_confidence_and_accuracy() -> None:
    # Confidences 0.9, 0.9, 0.9 (two right) and 0.6 (wrong), the first three in one of five bins.
    logits = logits_of(0.9, 0.9, 0.9, 0.6)
    table = reliability(logits, np.array([1, 1, 0, 0]), bins=5)
    assert [(one.low, one.count, round(one.accuracy, 4)) for one in table] == [(0.4, 1, 0.0), (0.8, 3, 0.6667)]
    assert expected_calibration_error(table) == pytest.approx((3 * (0.9 - 2 / 3) + 1 * 0.6) / 4)


def test_a_bin_holds_its_upper_end() -> None:
    [one] = reliability(logits_of(0.8), np.array([1]), bins=5)
    assert (one.low, one.high) == (0.6, 0.8)


def test_no_judgements_have_no_error() -> None:
    assert math.isnan(expected_calibration_error(()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_logits_were_spoiled_by_is_found(temperature: float) -> None:
    draw = np.random.default_rng(0)
    honest = draw.normal(size=(20_000, 4)) * 2
    probabilities = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    labels = (probabilities.cumsum(axis=1) > draw.random((20_000, 1))).argmax(axis=1)
    spoiled = honest * temperature
    found = fit_temperature(spoiled, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    assert log_loss(spoiled / found, labels) <= log_loss(spoiled, labels)
    assert expected_calibration_error(reliability(spoiled / found, labels)) < 0.02


def test_the_report_counts_each_class() -> None:
    logits = np.eye(3)[[0, 0, 1, 1, 1]] * 5.0
    found = label_report(logits, np.array([0, 1, 1, 1, 0]), ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["classes"].keys() == {"a", "b"}
    assert found["classes"]["a"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 2}
    assert found["classes"]["b"]["f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    low, high = found["ci95"]
    assert low < 0.6 < high


def test_a_temperature_at_a_bound_is_named() -> None:
    truth = np.arange(40) % 2
    logits = two_classes(np.where(truth == 1, 1.0, -1.0))
    some = np.where(np.arange(40) < 10, 1 - truth, truth)
    for labels, bound in ((truth, "coldest"), (1 - truth, "hottest"), (some, None)):
        assert bound_of(logits, labels, fit_temperature(logits, labels)) == bound
    faint = logits * 1e-6
    assert bound_of(faint, some, fit_temperature(faint, some)) == "coldest"
