"""Figures of a classification, worked by hand and beside scikit-learn."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from loopwise.evaluate.metrics.labels import classification, closeness

SCALE = ["low", "middle", "high", "top"]


def test_by_hand() -> None:
    pairs = [("a", "a"), ("a", "a"), ("b", "a"), ("b", "b"), (None, "b")]
    found = classification(pairs, ["a", "b", "c"])
    assert found is not None
    assert found["accuracy"] == pytest.approx(3 / 5)
    # F1 of a: 2 * 2 / (2 + 3); of b: 2 * 1 / (2 + 2); c is nobody's truth.
    assert found["macro_f1"] == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert found["unread"] == pytest.approx(1 / 5)
    assert found["labels"] == ["a", "b", "c"]
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    assert "kappa" not in found
    assert classification([], ["a", "b"]) is None


def test_kappa_and_f1_equal_scikit_learns() -> None:
    draw = random.Random(3)
    truths = [draw.choice(SCALE) for _ in range(200)]
    answers = [truth if draw.random() < 0.5 else draw.choice(SCALE) for truth in truths]
    found = classification(list(zip(answers, truths, strict=True)), SCALE, ordinal=True)
    assert found is not None
    ranks = [[SCALE.index(label) for label in labels] for labels in (truths, answers)]
    assert found["kappa"] == pytest.approx(cohen_kappa_score(*ranks, weights="quadratic"))
    assert found["macro_f1"] == pytest.approx(f1_score(truths, answers, average="macro"))


def test_kappa_is_of_the_answers_that_name_a_label() -> None:
    pairs = [("low", "low"), ("top", "top"), (None, "middle")]
    found = classification(pairs, SCALE, ordinal=True)
    assert found is not None
    assert found["kappa"] == pytest.approx(1.0)
    assert found["accuracy"] == pytest.approx(2 / 3)
    for without in ([("low", "low")], [(None, "low")]):
        found = classification(without, SCALE, ordinal=True)
        assert found is not None
        assert "kappa" not in found


def test_closeness_adds_up_to_kappas_agreement() -> None:
    assert [closeness(answer, "low", SCALE) for answer in SCALE] == pytest.approx([1, 1 - 1 / 9, 1 - 4 / 9, 0])
