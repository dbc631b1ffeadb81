"""Two models on the same problems: the paired difference of each figure, and what it says in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopwise.evaluate.stats import Difference, difference, holm
from loopwise.report import evaluation_words as words

ALPHA = 0.05


def differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], kept: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """The paired difference of each figure's scores ``[P]``, of all problems or those that bool ``kept`` [P] keeps."""
    return {
        name: entry(difference(scores, theirs[name]) if kept is None else difference(scores[kept], theirs[name][kept]))
        for name, scores in ours.items()
        if name in theirs
    }


def entry(found: Difference) -> dict[str, Any]:
    """A difference as the figures have it."""
    return {"value": found.value, "ci95": [found.low, found.high], "p": found.p, "n": found.n}


def judge(results: Sequence[dict[str, Any]], *, same: bool) -> dict[str, Any]:
    """Add ``measure``, ``verdict`` and ``sentence`` to each result that was compared; the comparison as a whole.

    A verdict of better or worse is held to Holm's correction over all that was compared, and leaves out what either
    model has met in training; intervals stand each by itself. ``same``: both are the same model.
    """
    compared = [result for result in results if "differences" in result]
    heads = [headline(result) for result in compared]
    gaps = [words.deciding(result, head) for result, head in zip(compared, heads, strict=True)]
    tested = [place for place, gap in enumerate(gaps) if gap["p"] is not None and gap["n"]]
    corrected = dict(zip(tested, holm([gaps[place]["p"] for place in tested]), strict=True))
    for place, (result, head) in enumerate(zip(compared, heads, strict=True)):
        verdict = "same" if same else _verdict(head, gaps[place], corrected.get(place))
        result |= {"measure": head, "verdict": verdict, "p_holm": corrected.get(place)}
        result["sentence"] = words.sentence(result)
    sentences = [result["sentence"] for result in compared]
    return {"summary": "; ".join(sentences), "comparisons": len(compared), "correction": "holm", "alpha": ALPHA}


def headline(result: Mapping[str, Any]) -> str:
    """The figure that a comparison is told by: the share of passes, or the reward where no sample of either passes."""
    gaps = result["differences"]
    for share in ("accuracy", "pass@1"):
        if share in gaps:
            sides = (result["figures"][share]["value"], result["baseline"]["figures"][share]["value"])
            return share if any(sides) or not gaps["reward"]["n"] else "reward"
    if "reward" in gaps:
        return "reward"
    return "bits_per_byte" if "bits_per_byte" in gaps else "likelihood"


def _verdict(measure: str, gap: Mapping[str, Any], p: float | None) -> str:
    if gap["ci95"] is None or not gap["n"] or math.isnan(gap["value"]):
        return "unknown"
    low, high = gap["ci95"]
    if p is None or p >= ALPHA or low <= 0 <= high:
        return "none"
    return "better" if (gap["value"] > 0) != (measure in words.LESS_IS_BETTER) else "worse"
