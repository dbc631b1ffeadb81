"""Feedback on several lots of samples joined into one: work units, rollouts of a round, drafts and their revisions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from loopwise.types import Feedback, Preference


def joined_feedback(lots: Sequence[Feedback]) -> Feedback:
    """What was said about several lots of samples as feedback on all of them, lot after lot.

    A part that only some lots were judged by is masked in the others. Raises ValueError where two lots give a part
    different weights.
    """
    weights = _weights(lots)
    spans = list(pairwise([0, *accumulate(len(lot.rewards) for lot in lots)]))
    mask = np.zeros((sum(len(lot.rewards) for lot in lots), len(weights)), dtype=bool)
    rewards = np.full(mask.shape, np.nan)
    preferences: list[Preference] = []
    for (start, stop), lot in zip(spans, lots, strict=True):
        columns = [list(weights).index(part) for part in lot.parts]
        mask[start:stop, columns] = lot.mask
        # The journal keeps nothing of what a source puts where it could not judge; a resumed run would read NaN.
        rewards[start:stop, columns] = np.where(lot.mask, lot.rewards, np.nan)
        preferences += [replace(p, chosen=start + p.chosen, rejected=start + p.rejected) for p in lot.preferences]
    return Feedback(
        tuple(weights),
        tuple(weights.values()),
        rewards,
        mask,
        tuple(preferences),
        critiques=_of_all(lots, "critiques", None),
        edits=_of_all(lots, "edits", None),
        extra=_of_all(lots, "extra", {}) or (),
        metrics=joined_metrics((len(lot.rewards), lot.metrics) for lot in lots),
    )


def joined_metrics(lots: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Metrics of several lots of samples as those of all, from how many samples a lot has and its own metrics.

    Counts, called ``failed/…``, add up; others are means over the lots that have them, weighted by their samples.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for count, metrics in lots:
        for name, value in metrics.items():
            found.setdefault(name, []).append((count, value))
    return {name: _joined(name, found[name]) for name in sorted(found)}


def _joined(name: str, found: Sequence[tuple[int, float]]) -> float:
    if name.startswith("failed/"):
        return math.fsum(value for _, value in found)
    if len({value for _, value in found}) == 1:  # exact, whatever the weights
        return float(found[0][1])
    count = sum(count for count, _ in found)
    return math.fsum(count * value for count, value in found) / count if count else math.nan


def _weights(lots: Sequence[Feedback]) -> dict[str, float]:
    """The weight of each part, in the order in which the lots first name them."""
    weights: dict[str, float] = {}
    for lot in lots:
        for part, weight in zip(lot.parts, lot.weights, strict=True):
            if weights.setdefault(part, weight) != weight:
                raise ValueError(
                    f'part "{part}" weighs {weights[part]:g} in one lot of samples and {weight:g} in another. '
                    "Give it one weight, or the two of them different names."
                )
    return weights


def _of_all(lots: Sequence[Feedback], name: str, nothing: Any) -> Any:
    """The entries of a field for the samples of all lots, ``nothing`` where a lot has none; None where no lot has."""
    entries = [getattr(lot, name) for lot in lots]
    if not any(entries):
        return None
    own = (given or (nothing,) * len(lot.rewards) for given, lot in zip(entries, lots, strict=True))
    return tuple(chain.from_iterable(own))
