"""Interpolated modified Kneser-Ney over token ids: the floor that every perplexity is shown beside.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999; sections and equations are
those of the report of 1998). Left out: discounts tuned on held-out text. Where the counts are too few for its
estimates, fixed discounts stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loopwise.errors import DataError

FALLBACK = (0.5, 1.0, 1.5)  # discounts of n-grams counted once, twice and more often, where no estimate is possible
_UNSEEN = -1


@dataclass(frozen=True)
class _Order:
    """All n-grams of one length, N of them after M contexts.

    ``keys`` int64 ``[N]``, sorted, hold ``context * symbols + token``; an n-gram's place among them is its id, and the
    context of the next order. ``shares`` ``[N]`` are the discounted shares of a context's count, ``rest`` ``[M]`` what
    the discounts leave to the next lower order (1 after a context that nothing followed).
    """

    keys: np.ndarray
    shares: np.ndarray
    rest: np.ndarray

    def find(self, contexts: np.ndarray, tokens: np.ndarray, symbols: int) -> np.ndarray:
        """Ids int64 ``[T]`` of n-grams given by context id and token; ``_UNSEEN`` for those never read."""
        wanted = np.where(contexts == _UNSEEN, _UNSEEN, contexts * symbols + tokens)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, places, _UNSEEN)


@dataclass(frozen=True)
class KneserNey:
    """An n-gram model of ``len(orders)`` tokens at a time over ids 0 to ``vocabulary_size - 1``."""

    vocabulary_size: int
    orders: tuple[_Order, ...]

    @staticmethod
    def fit(documents: Sequence[np.ndarray], order: int, vocabulary_size: int) -> KneserNey:
        """Count n-grams up to ``order`` tokens in documents of integer ids ``[T]``; no context crosses documents.

        Raises ValueError for an order below 1 or an id outside the vocabulary, DataError where there is no token.
        """
        if order < 1:
            raise ValueError(f"order must be at least 1, found {order}")
        for document in documents:
            _check(document, vocabulary_size)
        if not sum(len(document) for document in documents):
            raise DataError("there are no tokens to count n-grams of. Name a corpus with text in it.")
        text, real = _joined(documents, order, vocabulary_size)
        ids = np.zeros(len(text), dtype=np.int64)
        numbered = []
        for _ in range(order):
            keys, ids = np.unique(_contexts(ids) * (vocabulary_size + 1) + text, return_inverse=True)
            numbered.append((keys, ids))
        orders = []
        contexts = 1
        for length, (keys, ids) in enumerate(numbered, start=1):
            if length == order:
                counts = np.bincount(ids[real], minlength=len(keys))
            else:
                # Below the highest order an n-gram counts once for each different token before it (section 2.7).
                longer = numbered[length][1]
                _, firsts = np.unique(np.where(real, longer, _UNSEEN), return_index=True)
                counts = np.bincount(ids[firsts[real[firsts]]], minlength=len(keys))
            orders.append(_discounted(keys, counts, contexts, vocabulary_size + 1))
            contexts = len(keys)
        return KneserNey(vocabulary_size, tuple(orders))

    def logps(self, ids: np.ndarray) -> np.ndarray:
        """Natural-log probabilities float64 ``[T]`` of a document's ids ``[T]``, each after those before it.

        Each order is interpolated with the one below it, the lowest with the uniform distribution (section 3).
        Raises ValueError for an id outside the vocabulary.
        """
        _check(ids, self.vocabulary_size)
        symbols = self.vocabulary_size + 1
        text, real = _joined([ids], len(self.orders), self.vocabulary_size)
        found = np.zeros(len(text), dtype=np.int64)
        probabilities = np.full(len(text), 1.0 / self.vocabulary_size)
        for order in self.orders:
            contexts = _contexts(found)
            found = order.find(contexts, text, symbols)
            shares = np.where(found == _UNSEEN, 0.0, order.shares[found])
            rest = np.where(contexts == _UNSEEN, 1.0, order.rest[contexts])
            probabilities = shares + rest * probabilities
        return np.asarray(np.log(probabilities[real]))


def _joined(documents: Sequence[np.ndarray], order: int, boundary: int) -> tuple[np.ndarray, np.ndarray]:
    """All documents in a row, each after as many ``boundary`` symbols as a context has, and where the real tokens are.

    Contexts then never reach into the document before, and n-grams of every length have a token before them.
    """
    opening = np.full(max(1, order - 1), boundary, dtype=np.int64)
    text = np.concatenate([part for document in documents for part in (opening, np.asarray(document, dtype=np.int64))])
    return text, text != boundary


def _contexts(ids: np.ndarray) -> np.ndarray:
    """Ids of the n-grams that end one token earlier; the first position, a boundary, has none and gets id 0."""
    return np.concatenate([ids[:1] * 0, ids[:-1]])


def _discounted(keys: np.ndarray, counts: np.ndarray, contexts: int, symbols: int) -> _Order:
    """Discount the counts of one order; what is withheld from a context goes to the next lower one (section 3)."""
    before = keys // symbols
    totals = np.bincount(before, weights=counts, minlength=contexts)
    taken = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    withheld = np.bincount(before, weights=taken, minlength=contexts)
    known = totals > 0
    rest = np.divide(withheld, totals, out=np.ones(contexts), where=known)
    shares = np.divide(counts - taken, totals[before], out=np.zeros(len(keys)), where=known[before])
    return _Order(keys, shares, rest)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """D1, D2 and D3+ from how many n-grams were counted once to four times (equation 26); FALLBACK where too few."""
    once, twice, thrice, four = (int((counts == count).sum()) for count in range(1, 5))
    if not (once and twice and thrice):
        return FALLBACK
    share = once / (once + 2 * twice)
    found = (1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four / thrice)
    return found if all(0 <= discount <= count for count, discount in enumerate(found, start=1)) else FALLBACK


def _check(document: np.ndarray, vocabulary_size: int) -> None:
    if len(document) and not 0 <= int(np.min(document)) <= int(np.max(document)) < vocabulary_size:
        raise ValueError(
            f"ids must lie between 0 and {vocabulary_size - 1}, found {np.min(document)}..{np.max(document)}"
        )
