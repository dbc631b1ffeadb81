"""The n-gram floor: what counting alone predicts of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loopwise.models.ngram import KneserNey

ORDER = 5
MOST_TOKENS = 5_000_000
"""About how many tokens of training text are counted at most: memory grows with them, the floor hardly sinks."""
PIECE = 10_000
"""Tokens that are counted or left out together, where there are too many."""


@dataclass(frozen=True)
class Floor:
    """Log-probabilities (nats) of every prediction in each split, laid end to end as ``evaluation_windows`` lays them,
    by a model that has counted ``trained_on`` tokens."""

    logps: Mapping[str, np.ndarray]
    trained_on: int


def measure_floor(
    train: Sequence[np.ndarray], held_out: Mapping[str, Sequence[np.ndarray]], vocabulary_size: int
) -> Floor:
    """Modified Kneser-Ney of order 5 over ids below ``vocabulary_size``.

    ``train`` and the splits are framed documents. Of more than about 5 million training tokens, evenly spread pieces
    are counted, so that each source and each long document has its share.
    """
    counted = _spread(train, MOST_TOKENS)
    model = KneserNey.fit(counted, ORDER, vocabulary_size)
    logps = {
        split: np.concatenate([model.logps(document)[1:] for document in documents if len(document) > 1])
        for split, documents in held_out.items()
    }
    return Floor(logps, sum(map(len, counted)))


def _spread(documents: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
    total = sum(map(len, documents))
    if total <= tokens:
        return list(documents)
    pieces = [document[first : first + PIECE] for document in documents for first in range(0, len(document), PIECE)]
    count = max(1, len(pieces) * tokens // total)
    return [pieces[place * len(pieces) // count] for place in range(count)]
