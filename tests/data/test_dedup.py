"""Exact and near duplicates."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.data.dedup import SHINGLE, near_duplicates, normalised, text_key

BANKING = Path(__file__).resolve().parents[3] / "shared" / "data" / "banking77_train.csv"


def jaccard(one: str, other: str) -> float:
    sets = []
    for text in (one, other):
        whole = normalised(text)
        sets.append({whole[place : place + SHINGLE] for place in range(max(len(whole) - SHINGLE + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a b", " a \n b ", True),
        ("ﬁne ①", "fine 1", True),
        ("e\u0301", "é", True),
        ("A", "a", False),
        ("ab", "a b", False),
    ],
)
def test_what_makes_two_texts_the_same(one: str, other: str, same: bool) -> None:
    assert (text_key(one) == text_key(other)) == same


def test_the_first_of_near_texts_stays() -> None:
    fox = "the quick brown fox jumps over the lazy dog and runs away into the dark forest"
    texts = [fox, "something else entirely, about cards", fox + "s", fox.replace("dark", "deep"), "the", "the", ""]
    assert jaccard(fox, texts[3]) < 0.85 < jaccard(fox, texts[2])
    assert near_duplicates(texts, 0.85) == {2: 0, 5: 4}
    assert near_duplicates(texts, 0.7) == {2: 0, 3: 0, 5: 4}


def test_dropped_texts_do_not_drop_others() -> None:
    """Each is near to the one before it, the third not to the first: it stays, because the second went."""
    words = [f"word{number:02d}" for number in range(30)]
    texts = [" ".join(words[first : first + 24]) for first in (0, 2, 4)]
    assert jaccard(texts[0], texts[2]) < 0.75 < min(jaccard(texts[0], texts[1]), jaccard(texts[1], texts[2]))
    assert near_duplicates(texts, 0.75) == {1: 0}


def test_kept_texts_are_never_dropped_and_drop_others() -> None:
    texts = ["the same sentence", "the same sentence", "the same sentence", "another one"]
    assert near_duplicates(texts, 0.8) == {1: 0, 2: 0}
    assert near_duplicates(texts, 0.8, kept=2) == {2: 0}
    assert near_duplicates(texts, 0.8, kept=4) == {}


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 1.0])
def test_equals_the_comparison_of_all_pairs(threshold: float) -> None:
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)]
    texts: list[str] = []
    for _ in range(60):
        base = random.choice(words, size=25).tolist()
        for edits in range(4):
            base[int(random.integers(25))] = f"edit{edits}"
            texts.append(" ".join(base))
    left: list[int] = []
    expected = {}
    for place, text in enumerate(texts):
        near = [other for other in left if jaccard(text, texts[other]) >= threshold]
        if near:
            expected[place] = near[0]
        else:
            left.append(place)
    found = near_duplicates(texts, threshold)
    assert found.keys() == expected.keys()
    assert all(jaccard(texts[place], texts[other]) >= threshold for place, other in found.items())
    assert bool(expected) == (threshold < 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=8), st.sampled_from([0.5, 1.0]))
def test_on_any_text(texts: list[str], threshold: float) -> None:
    found = near_duplicates(texts, threshold)
    kept = [text for place, text in enumerate(texts) if place not in found]
    assert len({normalised(text) for text in kept}) == len(kept)
    assert near_duplicates(kept, threshold) == {}


@pytest.mark.skipif(not BANKING.is_file(), reason="the folder shared/data beside the repository is absent")
def test_ten_thousand_questions_in_seconds() -> None:
    with BANKING.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    started = time.process_time()
    found = near_duplicates(texts, 0.8)
    assert time.process_time() - started < 15
    assert len(found) == 106
    assert all(jaccard(texts[place], texts[other]) >= 0.8 for place, other in found.items())
