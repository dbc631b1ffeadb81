"""Shared words with reference texts: ROUGE and token F1, Chinese by characters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from loopwise.evaluate.metrics.words import words

KINDS = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def rouge(text: str, references: Sequence[str]) -> dict[str, float] | None:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), of each the best over the references.

    None where no reference has words.
    """
    references = [reference for reference in references if words(reference)]
    if not references:
        return None
    found = _scorer().score_multi(references, text)
    return {kind: float(found[kind].fmeasure) for kind in KINDS}


def token_f1(text: str, references: Sequence[str]) -> float | None:
    """Harmonic mean of the shares of words that text and reference have in common, without articles and punctuation
    (Rajpurkar et al. 2016), the best over the references.

    Two texts without words are equal. None without references.
    """
    own = _answer_words(text)
    return max((_f1(own, _answer_words(reference)) for reference in references), default=None)


def same_answer(text: str, references: Sequence[str]) -> bool:
    """Whether a text has the words of a reference in their order, without articles and punctuation."""
    own = _answer_words(text)
    return any(own == _answer_words(reference) for reference in references)


def _answer_words(text: str) -> list[str]:
    return words(_ARTICLES.sub(" ", text))


def _f1(text: Sequence[str], reference: Sequence[str]) -> float:
    if not text or not reference:
        return float(not text and not reference)
    shared = (Counter(text) & Counter(reference)).total()
    return 2 * shared / (len(text) + len(reference))


class _Words:
    """What rouge-score takes for a tokenizer; its own drops all that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(KINDS), tokenizer=_Words())
