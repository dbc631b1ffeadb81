"""Sums as the tiny model sees them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from loopwise.runtime import seed_key
from loopwise.tasks.addition import addition, make, operands


@pytest.mark.parametrize(
    ("first", "second", "digits", "prompt", "answer"),
    [
        (759, 468, 3, "957+864=", "7221"),
        (0, 0, 3, "000+000=", "0000"),
        (999, 999, 3, "999+999=", "8991"),
        (5, 12, 3, "500+210=", "7100"),
        (5, 7, 1, "5+7=", "21"),
    ],
)
def test_sums_by_hand(first: int, second: int, digits: int, prompt: str, answer: str) -> None:
    problem = make(first, second, digits)
    assert (problem.prompt, problem.columns["answer"]) == (prompt, answer)


def test_operands_in_another_order_are_the_same_problem() -> None:
    assert operands(make(1, 23)) == operands(make(23, 1))
    assert make(1, 23).id != make(23, 1).id
    assert operands(make(1, 23)) != operands(make(12, 3))


@pytest.mark.parametrize("digits", [1, 3])
def test_operands_cover_their_range_evenly(digits: int) -> None:
    problems = list(islice(addition(digits)(1), 5000))
    operands = np.array([[int(part) for part in problem.id.split("-")[1:]] for problem in problems])
    assert operands.min() >= 0
    assert operands.max() <= 10**digits - 1
    assert abs(operands.mean() / (10**digits - 1) - 0.5) < 0.02
    assert (np.bincount(operands.ravel() // 10 ** (digits - 1), minlength=10) > 850).all()


def test_the_demo_keeps_its_sums() -> None:
    sums = [problem.prompt for problem in islice(addition()(seed_key("task", "addition", "train-1", 0)), 3)]
    assert sums == ["333+781=", "066+784=", "435+251="]
