"""Distinct-n, self-BLEU and lengths."""

from __future__ import annotations

import pytest
import sacrebleu

from loopwise.evaluate.metrics.variety import distinct, fitting, self_bleu


def test_distinct() -> None:
    assert distinct(["a b a b"], 1) == pytest.approx(2 / 4)
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["a b", "b a", "a b"], 2) == pytest.approx(2 / 3), "no run crosses from one text to the next"
    assert distinct(["月光月光"], 2) == pytest.approx(2 / 3)
    assert distinct(["a", ""], 2) is None


def test_self_bleu() -> None:
    texts = ["the cat sat on the mat", "the cat sat on the rug", "birds sing in the old tree"]
    expected = [sacrebleu.sentence_bleu(text, [x for x in texts if x != text]).score / 100 for text in texts]
    assert self_bleu(texts) == pytest.approx(expected)
    assert self_bleu(["same words in both", "same words in both"]) == pytest.approx([1.0, 1.0])
    assert self_bleu(["a", ""]) == [None, None]


def test_fitting() -> None:
    assert [fitting(length, 4, 8) for length in (0, 2, 4, 8, 12, 16, 99)] == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert fitting(99, 4, None) == fitting(0, 0, 8) == 1.0
