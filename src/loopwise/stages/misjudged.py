"""The rows that a judge gets wrong, written out for readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopwise.data.judged import Example
from loopwise.evaluate.judged import JudgedRows
from loopwise.evaluate.mistakes import margin_histogram, mistakes
from loopwise.models.policy import Policy

MOST = 10
PAIRS_SHOWN = 5
LONGEST = 500
"""Characters of a text that are written out."""


def misjudged(
    judged: JudgedRows, policy: Policy, split: str, temperature: float, examples: Sequence[Example]
) -> dict[str, Any]:
    """What a judge gets wrong on a split, whose rows are ``examples`` [N]: each frequent mistake with a row that shows
    it, or the pairs ranked wrong that it was surest of; of pairs the margins as well."""
    logits, pairs = judged.logits(policy, split), judged.kind == "preference"
    told = mistakes(logits / temperature, judged.truth(split), MOST, PAIRS_SHOWN if pairs else 1)
    found: dict[str, Any] = {
        "mistakes": [
            {
                "truth": judged.names[one.truth],
                "found": judged.names[one.found],
                "count": one.count,
                "rows": [{**_shown(examples[place]), "confidence": confidence} for place, confidence in one.rows],
            }
            for one in told
        ]
    }
    return found | {"margins": asdict(margin_histogram(logits[:, 1] - logits[:, 0]))} if pairs else found


def _shown(example: Example) -> dict[str, Any]:
    """Where a row stands, its prompt where the judge reads one, and its text, or both of a pair."""
    first, second = example.readings[0]
    texts = [one if other is None else other for one, other in example.readings]
    return {
        "place": Path(example.place).name,
        "prompt": None if second is None else _cut(first),
        "texts": [_cut(text) for text in texts],
    }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
