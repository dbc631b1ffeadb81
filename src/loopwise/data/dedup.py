"""Texts that are the same, exactly or nearly. Every function is pure: the same texts give the same answer anywhere."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from loopwise.runtime import seed_key

SHINGLE = 5
HASHES = 128
MISSED_AT_MOST = 1e-3
_CHUNK = 2**16
_GOLDEN, _MIX, _MIX_AGAIN = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def normalised(text: str) -> str:
    """The text in Unicode NFKC with white space collapsed: what two texts that are the same have in common."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def text_key(text: str) -> str:
    """What makes two texts the same one: a hash (32 hex digits) of the normalised text."""
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def near_duplicates(texts: Sequence[str], threshold: float, *, kept: int = 0) -> dict[int, int]:
    """The texts to drop so that no two left are near: the place of each, and of the earlier text it repeats.

    Two texts are near where the sets of their 5-character shingles, after normalisation, have a Jaccard similarity of
    at least ``threshold`` (in (0, 1]). Texts are walked in order and compared with those left so far; the first
    ``kept`` are never dropped. Pairs to compare are found by MinHash (Broder 1997) of 128 hashes in bands
    (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4), which misses a pair at the threshold with a
    probability of 0.1% (from a threshold of 0.06), one above it less often; every pair found is then counted exactly.
    """
    if len(texts) <= max(kept, 1):
        return {}
    buckets = _shared_buckets(np.concatenate([_band_keys(chunk, threshold) for chunk in _signatures(texts)]))
    shingles = {place: np.unique(_hashes([texts[place]])[0]) for place, own in enumerate(buckets) if own}
    members: dict[int, list[int]] = {}
    repeats: dict[int, int] = {}
    for place, own in enumerate(buckets):
        if place >= kept:
            candidates = sorted({other for bucket in own for other in members.get(bucket, ())})
            first = _first_near(place, candidates, shingles, threshold) if candidates else None
            if first is not None:
                repeats[place] = first
                continue
        for bucket in own:
            members.setdefault(bucket, []).append(place)
    return repeats


def _signatures(texts: Sequence[str]) -> Iterator[np.ndarray]:
    """MinHash signatures uint64 ``[C, 128]`` of chunks of texts that fit the processor's cache."""
    # Odd multipliers permute the 64-bit numbers, so that the least product picks a random shingle of the set.
    factors = np.random.Philox(key=seed_key("minhash")).random_raw(HASHES) | np.uint64(1)
    first = size = 0
    for place, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _CHUNK or place == len(texts):
            hashes, starts = _hashes(texts[first:place])
            yield np.stack([np.minimum.reduceat(hashes * factor, starts) for factor in factors], axis=1)
            first, size = place, 0


def _hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the normalised texts' 5-character shingles, one text after the other: uint64, and where each begins.

    A shorter text is one shingle.
    """
    padded = [normalised(text).ljust(SHINGLE, "\0") for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(points) - SHINGLE + 1, dtype=np.uint64)
    for shift in range(SHINGLE):
        hashes = _mixed(hashes ^ points[shift : shift + len(hashes)])
    lengths = np.array([len(text) for text in padded])
    inside = np.ones(len(hashes), dtype=bool)
    inside[(np.cumsum(lengths)[:-1, None] - np.arange(1, SHINGLE)).ravel()] = False
    counts = lengths - SHINGLE + 1
    return hashes[inside], np.cumsum(counts) - counts


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function, a one-to-one scramble of uint64 numbers."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX
    state = (state ^ (state >> np.uint64(27))) * _MIX_AGAIN
    return np.asarray(state ^ (state >> np.uint64(31)))


def _band_keys(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """One key per text and band, uint64 ``[C, bands]``; near texts share at least one with high probability."""
    rows = max(
        (rows for rows in range(1, 17) if (1 - threshold**rows) ** (HASHES // rows) <= MISSED_AT_MOST),
        default=1,
    )
    bands = signatures[:, : HASHES // rows * rows].reshape(len(signatures), HASHES // rows, rows)
    keys = np.broadcast_to(np.arange(bands.shape[1], dtype=np.uint64), bands.shape[:2])
    for row in range(rows):
        keys = _mixed(keys ^ bands[:, :, row])
    return keys


def _shared_buckets(keys: np.ndarray) -> list[list[int]]:
    """Of each text the numbers of those of its buckets that it shares with another: most texts have none."""
    _, bucket, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    bucket = bucket.reshape(keys.shape)
    shared = sizes[bucket] > 1
    return [row[mask].tolist() for row, mask in zip(bucket, shared, strict=True)]


def _first_near(place: int, candidates: list[int], shingles: dict[int, np.ndarray], threshold: float) -> int | None:
    """The first of the candidates whose Jaccard similarity with the text reaches the threshold."""
    own = shingles[place]
    close = [c for c in candidates if min(len(own), len(shingles[c])) >= threshold * max(len(own), len(shingles[c]))]
    if not close:
        return None
    sizes = np.array([len(shingles[other]) for other in close])
    joined = np.concatenate([shingles[other] for other in close])
    found = own[np.minimum(np.searchsorted(own, joined), len(own) - 1)] == joined
    shared = np.add.reduceat(found.astype(np.int64), np.cumsum(sizes) - sizes)
    near = np.flatnonzero(shared >= threshold * (len(own) + sizes - shared))
    return close[near[0]] if len(near) else None
