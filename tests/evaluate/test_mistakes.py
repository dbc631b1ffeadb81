"""What a judge takes for what, and how far apart it holds pairs."""

from __future__ import annotations

import numpy as np
import pytest

from loopwise.evaluate.mistakes import margin_histogram, mistakes


def test_frequent_mistakes_come_first_with_the_row_that_was_surest() -> None:
    logits = np.log(
        [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]
    )
    labels = np.array([0, 0, 0, 1, 2, 1])
    first, second = mistakes(logits, labels, most=5, each=1)
    assert (first.truth, first.found, first.count) == (0, 1, 2)
    assert [row for row, _ in first.rows] == [2]
    assert first.rows[0][1] == pytest.approx(0.7)
    assert (second.truth, second.found, second.count, second.rows[0][0]) == (1, 2, 1, 3)
    assert len(mistakes(logits, labels, most=1, each=1)) == 1
    assert [row for row, _ in mistakes(logits, labels, most=1, each=2)[0].rows] == [2, 1]
    assert mistakes(logits, logits.argmax(axis=1), most=5, each=1) == ()


@pytest.mark.parametrize(
    "margins",
    [np.zeros(3), np.array([0.5]), np.array([-2.0, -1.0]), np.array([-0.013, 4.2, 4.2, 0.0]), np.arange(-500.0, 300.0)],
)
def test_every_pair_is_counted_once_and_zero_is_an_edge(margins: np.ndarray) -> None:
    found = margin_histogram(margins)
    assert sum(found.counts) == len(margins)
    assert len(found.edges) == len(found.counts) + 1 <= 24
    assert 0.0 in found.edges
    wrong = sum(count for edge, count in zip(found.edges, found.counts, strict=False) if edge < 0)
    assert wrong == (margins < 0).sum() + (0 if found.edges[-1] > 0 else (margins == 0).sum())
