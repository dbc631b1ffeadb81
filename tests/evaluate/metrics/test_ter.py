"""Translation edit rate: worked by hand, and equal to sacrebleu's wherever its beam covers everything."""

from __future__ import annotations

import random

import pytest
from sacrebleu.metrics.lib_ter import translation_edit_rate

from loopwise.evaluate.metrics.ter import edits
from loopwise.evaluate.metrics.translation import corpus_ter, ter

REFERENCE = list("abcdef")


@pytest.mark.parametrize(
    ("hypothesis", "count"),
    [
        ("a b c d e f", 0),
        ("", 6),
        ("a b c d e", 1),
        ("a b c d e f g", 1),
        ("a x c d e f", 1),
        ("d e f a b c", 1),  # one block moved
        ("f a b c d e", 1),
        ("e f a b d c", 2),  # a block and a word moved
    ],
)
def test_edits_by_hand(hypothesis: str, count: int) -> None:
    assert edits(hypothesis.split(), REFERENCE) == count


def test_without_a_reference_every_word_is_an_insertion() -> None:
    assert edits(["a", "b"], []) == 2
    assert edits([], []) == 0


def test_edits_equal_sacrebleus_on_texts_of_up_to_25_words() -> None:
    draw = random.Random(7)
    for _ in range(60):
        vocabulary = draw.choice([2, 4, 8, 20])
        reference = [str(draw.randrange(vocabulary)) for _ in range(draw.randint(1, 24))]
        hypothesis = [str(draw.randrange(vocabulary)) for _ in range(draw.randint(0, 24))]
        if draw.random() < 0.5:
            hypothesis = list(reference)
            for _ in range(draw.randint(1, 3)):
                hypothesis.insert(draw.randrange(len(reference)), hypothesis.pop(draw.randrange(len(reference))))
        assert edits(hypothesis, reference) == translation_edit_rate(hypothesis, reference)[0], (hypothesis, reference)


def test_rate_is_over_the_mean_length_of_the_references() -> None:
    assert ter("a b", ["a b c d", "a b"]) == 0.0
    assert ter("x y", ["a b c d", "a b"]) == pytest.approx(2 / 3)
    assert ter("a b", ["", " "]) is None
    assert corpus_ter(["a b", "x"], [["a b c d"], ["a b"]]) == {
        "ter": pytest.approx(100 * 4 / 6),
        "edits": 4,
        "reference_words": 6,
    }
    assert corpus_ter(["a"], [[]]) is None


def test_chinese_is_split_into_characters() -> None:
    assert ter("西陸蟬聲", ["西陸蟬聲唱"]) == pytest.approx(1 / 5)
    assert ter("西陸蟬聲", ["西陸蟬聲唱"], "tercom") == 1.0
