"""In which order rows are trained on. Every function is pure: the same arguments give the same rows, on any machine.

Random bits come from Philox (Salmon et al. 2011), whose stream NumPy guarantees across versions, unlike that of
``Generator.permutation``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loopwise.errors import ConfigError, DataError
from loopwise.runtime import seed_key

MIXTURE_BLOCK = 1024


@dataclass(frozen=True)
class MixtureBatch:
    """Rows drawn from several sources, int64 ``[batch_size]`` each: the source, the row's index in it, and how many
    times (``epoch``) the source has been walked through before."""

    source: np.ndarray
    index: np.ndarray
    epoch: np.ndarray


def permutation(count: int, *key: object) -> np.ndarray:
    """The numbers 0 to ``count - 1`` in the random order that ``key`` names: int64 ``[count]``."""
    return np.argsort(_bits(count, *key), kind="stable")


# Consecutive steps ask for the same epoch or the next, of each source of a mixture.
@lru_cache(maxsize=16)
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
    return _walk(count, seed, step * batch_size, (step + 1) * batch_size)


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


def mixture_batch(
    counts: Sequence[int], weights: Sequence[float], batch_size: int, seed: int, step: int
) -> MixtureBatch:
    """The rows of optimizer step ``step`` (from 0) from sources of ``counts`` rows, drawn in proportion to ``weights``.

    The endless sequence of rows falls into blocks of 1024. Each holds the same number of rows of a source, its share
    to within one row, spread evenly over the block; so a batch has nearly its shares too, and any step is found
    without walking through those before it. Each source is walked through in its own epochs, as by ``batch_indices``
    (which a single source equals), and none of its rows is dropped.
    Raises DataError where a source has no rows, ConfigError where its share is less than one row of a block.
    """
    for source, count in enumerate(counts):
        if count < 1:
            raise DataError(f"source {source + 1} of the mixture has no rows. Give it one, or leave it out.")
    quotas = _quotas(tuple(weights))
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    blocks = places // MIXTURE_BLOCK
    sources, ranks = np.empty_like(places), np.empty_like(places)
    for block in range(int(blocks[0]), int(blocks[-1]) + 1):
        own = blocks == block
        block_sources, block_ranks = _mixture_block(quotas, seed, block)
        inside = places[own] - block * MIXTURE_BLOCK
        sources[own] = block_sources[inside]
        ranks[own] = block_ranks[inside] + block * np.array(quotas)[block_sources[inside]]
    index = np.empty_like(places)
    for source in np.unique(sources).tolist():
        own = sources == source
        # A source's rows of consecutive places follow one another. The first source keeps the order it has alone.
        first, stop = int(ranks[own][0]), int(ranks[own][-1]) + 1
        index[own] = _walk(counts[source], seed_key("source", seed, source) if source else seed, first, stop)
    return MixtureBatch(sources, index, ranks // np.array(counts)[sources])


@lru_cache(maxsize=16)
def _quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Rows of each source in a block, by largest remainder: each less than one row from its exact share."""
    exact = np.array(weights) / sum(weights) * MIXTURE_BLOCK
    quotas = np.floor(exact).astype(np.int64)
    left = MIXTURE_BLOCK - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    for source, quota in enumerate(quotas):
        if not quota:
            raise ConfigError(
                f"source {source + 1} of the mixture: its weight {weights[source]:g} of {sum(weights):g} is less than "
                f"one row in {MIXTURE_BLOCK}. Raise the weight, or leave the source out."
            )
    return tuple(quotas.tolist())


@lru_cache(maxsize=4)
def _mixture_block(quotas: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """A block's sources in order, and of each row its rank among those of its source in the block."""
    sources = np.repeat(np.arange(len(quotas)), quotas)
    ranks = np.concatenate([np.arange(quota) for quota in quotas])
    # Rank r of q rows falls at random into the r-th of q equal parts of the block, so that no stretch lacks a source.
    uniforms = (_bits(MIXTURE_BLOCK, "mixture", seed, block) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    order = np.argsort((ranks + uniforms) / np.array(quotas)[sources], kind="stable")
    return sources[order], ranks[order]


def _walk(count: int, seed: int, first: int, stop: int) -> np.ndarray:
    """The rows at places ``[first, stop)`` of the endless walk through one epoch after the other."""
    parts = []
    for epoch in range(first // count, (stop - 1) // count + 1):
        start = epoch * count
        parts.append(epoch_order(count, seed, epoch)[max(first - start, 0) : stop - start])
    return np.concatenate(parts)


def _bits(count: int, *key: object) -> np.ndarray:
    return np.asarray(np.random.Philox(key=seed_key(*key)).random_raw(count))
