"""Kneser-Ney: a case by hand, a slow second implementation, distributions that sum to one, real text."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.errors import DataError
from loopwise.models.ngram import FALLBACK, KneserNey

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
VOCABULARY = 4
Documents = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=12), min_size=1, max_size=6).filter(any)


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(document, dtype=np.int64) for document in documents]


def slow(documents: list[list[int]], order: int, context: tuple[int, ...], token: int) -> float:
    """p(token | context) by recursion over dictionaries, straight from the definition; -1 is the boundary."""
    grams: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        text = [-1] * max(1, order - 1) + document
        for place in range(max(1, order - 1), len(text)):
            grams[tuple(text[place - order + 1 : place + 1])] += 1
    levels = [grams]
    while len(next(iter(levels[0]))) > 1:
        levels.insert(0, Counter(gram[1:] for gram in levels[0]))
    probability = 1 / VOCABULARY
    for length, counts in enumerate(levels, start=1):
        seen = Counter(counts.values())
        discounts = FALLBACK
        if seen[1] and seen[2] and seen[3]:
            share = seen[1] / (seen[1] + 2 * seen[2])
            found = tuple(k - (k + 1) * share * seen[k + 1] / seen[k] for k in (1, 2, 3))
            discounts = found if all(0 <= found[k] <= k + 1 for k in range(3)) else FALLBACK
        before = context[len(context) - length + 1 :]
        following = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == before}
        if following:
            total = sum(following.values())
            withheld = sum(discounts[min(count, 3) - 1] for count in following.values())
            count = following.get(token, 0)
            own = count - discounts[min(count, 3) - 1] if count else 0.0
            probability = own / total + withheld / total * probability
    return probability


@settings(max_examples=60, deadline=None)
@given(documents=Documents, order=st.integers(1, 4), probe=st.lists(st.integers(0, VOCABULARY - 1), max_size=6))
def test_it_equals_a_slow_one(documents: list[list[int]], order: int, probe: list[int]) -> None:
    found = KneserNey.fit(arrays(documents), order, VOCABULARY).logps(np.array(probe, dtype=np.int64))
    padded = [-1] * (order - 1) + probe
    contexts = [tuple(padded[place : place + order - 1]) for place in range(len(probe))]
    expected = [log(slow(documents, order, context, token)) for context, token in zip(contexts, probe, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(documents=Documents, order=st.integers(1, 4), context=st.lists(st.integers(0, VOCABULARY - 1), max_size=5))
def test_what_follows_any_context_sums_to_one(documents: list[list[int]], order: int, context: list[int]) -> None:
    model = KneserNey.fit(arrays(documents), order, VOCABULARY)
    total = sum(np.exp(model.logps(np.array([*context, token]))[-1]) for token in range(VOCABULARY))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_case_by_hand() -> None:
    # "aab", order 2, over {a, b}; | is the boundary. Bigrams |a, aa, ab, once each: too few for estimates, so 0.5 is
    # taken from a count of 1 and 1.0 from a count of 2.
    # Lowest order: a follows 2 different tokens, b follows 1; (1.0 + 0.5) / 3 goes to the uniform 1/2.
    a = (2 - 1.0) / 3 + 1.5 / 3 * 0.5
    b = (1 - 0.5) / 3 + 1.5 / 3 * 0.5
    assert a + b == pytest.approx(1)
    # After |: one of one, 0.5 withheld. After a: two of two, 2 * 0.5 withheld. After b: nothing, so the lower order.
    model = KneserNey.fit(arrays([[0, 0, 1]]), 2, 2)
    expected = [0.5 + 0.5 * a, 0.25 + 0.5 * a, 0.25 + 0.5 * b, a]
    assert np.exp(model.logps(np.array([0, 0, 1, 0]))).tolist() == pytest.approx(expected)


def test_no_context_crosses_documents() -> None:
    forwards = KneserNey.fit(arrays([[0, 1, 2, 3], [3, 3], [1, 2]]), 3, VOCABULARY)
    backwards = KneserNey.fit(arrays([[1, 2], [], [3, 3], [0, 1, 2, 3]]), 3, VOCABULARY)
    for probe in product(range(VOCABULARY), repeat=3):
        assert np.array_equal(forwards.logps(np.array(probe)), backwards.logps(np.array(probe)))
    # 3 is followed by 3 in one document, and by 1 only across a boundary.
    after = {token: forwards.logps(np.array([3, token]))[1] for token in (1, 3)}
    assert after[3] > after[1]


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(DataError, match="no tokens"):
        KneserNey.fit(arrays([[]]), 2, VOCABULARY)
    with pytest.raises(ValueError, match="at least 1"):
        KneserNey.fit(arrays([[1]]), 0, VOCABULARY)
    for bad in (-1, VOCABULARY):
        with pytest.raises(ValueError, match="between 0 and 3"):
            KneserNey.fit(arrays([[1, bad]]), 2, VOCABULARY)
        with pytest.raises(ValueError, match="between 0 and 3"):
            KneserNey.fit(arrays([[1]]), 2, VOCABULARY).logps(np.array([bad]))


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs tinyshakespeare.txt in ../shared/data")
def test_characters_of_real_text() -> None:
    text = SHAKESPEARE.read_text(encoding="utf-8")
    alphabet = {character: place for place, character in enumerate(sorted(set(text)))}
    ids = np.array([alphabet[character] for character in text])
    split = int(0.9 * len(ids))
    loss = {}
    for order in (2, 5):
        model = KneserNey.fit([ids[:split]], order, len(alphabet))
        loss[order] = -float(model.logps(ids[split:]).mean())
    assert loss[2] == pytest.approx(2.484, abs=0.01)
    assert loss[5] == pytest.approx(1.561, abs=0.01)
