"""The n-gram floor: what counting alone predicts of held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loopwise.models.ngram import KneserNey

ORDER = 5
MOST_TOKENS = 5_000_000
"""Counting stops after so many tokens of training text: memory grows with them, the floor hardly sinks."""


def floor_logps(
    train: Sequence[np.ndarray], held_out: Mapping[str, Sequence[np.ndarray]], vocabulary_size: int
) -> dict[str, np.ndarray]:
    """Log-probabilities (nats) of every prediction in each split, laid end to end as ``evaluation_windows`` lays them.

    ``train`` and the splits are framed documents; modified Kneser-Ney of order 5, fitted on the first 5 million
    training tokens.
    """
    model = KneserNey.fit(_first(train, MOST_TOKENS), ORDER, vocabulary_size)
    return {
        split: np.concatenate([model.logps(document)[1:] for document in documents if len(document) > 1])
        for split, documents in held_out.items()
    }


def _first(documents: Sequence[np.ndarray], tokens: int) -> list[np.ndarray]:
    chosen = []
    for document in documents:
        chosen.append(document[:tokens])
        tokens -= len(chosen[-1])
        if tokens <= 0:
            break
    return chosen
