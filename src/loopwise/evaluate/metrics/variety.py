"""Variety and length of texts: distinct-n, self-BLEU, how far a length is from the one that is wanted."""

from __future__ import annotations

from collections.abc import Sequence

from loopwise.evaluate.metrics.translation import bleu
from loopwise.evaluate.metrics.words import words


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016): different runs of ``n`` words in all texts, over all such runs; None without any."""
    runs = [run for text in texts for run in _runs(words(text), n)]
    return len(set(runs)) / len(runs) if runs else None


def self_bleu(texts: Sequence[str], tokenize: str = "auto") -> list[float | None]:
    """Self-BLEU (Zhu et al. 2018) of each of G texts, in [0, 1]: its BLEU with all the others for references.

    None for a text without words, and where no other text has any.
    """
    found: list[float | None] = []
    for place, text in enumerate(texts):
        others = [other for at, other in enumerate(texts) if at != place]
        found.append(bleu(text, others, tokenize) if text.strip() else None)
    return found


def fitting(length: float, least: float, most: float | None) -> float:
    """1 for a length from ``least`` to ``most``, less the further it is away: 0 at none, and at twice ``most``."""
    if length < least:
        return length / least
    if most is None or length <= most:
        return 1.0
    return max(0.0, 2.0 - length / most)


def _runs(row: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(row[start : start + n]) for start in range(len(row) - n + 1)]
