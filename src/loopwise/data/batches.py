"""In which order rows are trained on. Every function is pure: the same arguments give the same rows, on any machine.

Random bits come from Philox (Salmon et al. 2011), whose stream NumPy guarantees across versions, unlike that of
``Generator.permutation``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from loopwise.errors import DataError
from loopwise.runtime import seed_key


def permutation(count: int, *key: object) -> np.ndarray:
    """The numbers 0 to ``count - 1`` in the random order that ``key`` names: int64 ``[count]``."""
    return np.argsort(_bits(count, *key), kind="stable")


# Consecutive steps ask for the same epoch or the next.
@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of ``count`` rows in an epoch: int64 ``[count]``, read-only."""
    order = permutation(count, "epoch", seed, epoch)
    order.setflags(write=False)
    return order


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The rows of optimizer step ``step`` (from 0): int64 ``[batch_size]``, each below ``count``.

    Epochs are walked back to back, so a batch may begin in one and end in another, and no row is dropped.
    Raises DataError where there are no rows.
    """
    if count < 1:
        raise DataError("no rows to make batches of. Give at least one.")
    first, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // count, (stop - 1) // count + 1):
        start = epoch * count
        parts.append(epoch_order(count, seed, epoch)[max(first - start, 0) : stop - start])
    return np.concatenate(parts)


def mixed_batch(
    labelled_count: int, pool_count: int, share: float, batch_size: int, seed: int, round: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """A batch drawn with replacement from labelled rows and pool: bool ``[batch_size]`` "is labelled" and int64
    ``[batch_size]``, each row's index in the one it is from.

    Each row is labelled with probability ``share``; all are where the pool is empty, none where nothing is labelled.
    Raises DataError where both are empty.
    """
    if not labelled_count and not pool_count:
        raise DataError("neither labelled rows nor a pool to train on. Name rows with data.labelled.")
    share = 0.0 if not labelled_count else share if pool_count else 1.0
    bits = _bits(2 * batch_size, "mixed", seed, round, step).reshape(2, batch_size)
    uniforms = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    is_labelled = uniforms[0] < share
    index = (uniforms[1] * np.where(is_labelled, labelled_count, pool_count)).astype(np.int64)
    return is_labelled, index


def _bits(count: int, *key: object) -> np.ndarray:
    return np.asarray(np.random.Philox(key=seed_key(*key)).random_raw(count))
