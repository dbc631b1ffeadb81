"""Sums as the tiny model sees them."""

from __future__ import annotations

import numpy as np
import pytest

from loopwise.tasks.addition import addition, make, operands


@pytest.mark.parametrize(
    ("first", "second", "prompt", "answer"),
    [
        (759, 468, "957+864=", "7221"),
        (0, 0, "000+000=", "0000"),
        (999, 999, "999+999=", "8991"),
        (5, 12, "500+210=", "7100"),
    ],
)
def test_sums_by_hand(first: int, second: int, prompt: str, answer: str) -> None:
    problem = make(first, second)
    assert (problem.prompt, problem.columns["answer"]) == (prompt, answer)


def test_operands_in_another_order_are_the_same_problem() -> None:
    assert operands(make(1, 23)) == operands(make(23, 1))
    assert make(1, 23).id != make(23, 1).id
    assert operands(make(1, 23)) != operands(make(12, 3))


def test_operands_cover_their_range_evenly() -> None:
    generator = np.random.Generator(np.random.Philox(key=1))
    problems = [addition(generator) for _ in range(5000)]
    operands = np.array([[int(part) for part in problem.id.split("-")[1:]] for problem in problems])
    assert operands.min() >= 0
    assert operands.max() <= 999
    assert abs(operands.mean() - 499.5) < 15
    assert (np.bincount(operands.ravel() // 100, minlength=10) > 850).all()
