"""Likeness to reference texts: BLEU and chrF by sacrebleu, TER; each of one text in [0, 1] and of a corpus.

A corpus has S texts and, for each, one or more references; those without any are left out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from loopwise.evaluate.metrics.ter import edits
from loopwise.evaluate.metrics.words import mostly_han, mostly_unspaced
from loopwise.evaluate.references import Figures

TOKENIZERS = ("auto", "13a", "zh", "char", "intl", "none")
"""sacrebleu's; ``auto``: ``zh`` where the references are mostly Chinese characters, ``char`` where those and kana are
most of them, else ``13a``."""
TER_TOKENIZERS = ("auto", "tercom", "zh")
"""``zh`` splits Chinese into characters and sets punctuation apart, ``tercom`` leaves words as they are written."""


def bleu(text: str, references: Sequence[str], tokenize: str = "auto") -> float | None:
    """Sentence BLEU / 100 (Papineni et al. 2002) with exponential smoothing and as many orders as the text has words
    for; None without a reference that has text."""
    references = _written(references)
    if not references:
        return None
    score = float(_bleu(_tokenizer(tokenize, references), True).sentence_score(text, references).score) / 100
    # Rounding takes an equal text beyond 1.
    return min(1.0, max(0.0, score))


def chrf(text: str, references: Sequence[str]) -> float | None:
    """Sentence chrF2 / 100 (Popović 2015); None without a reference that has text."""
    references = _written(references)
    return min(1.0, float(_chrf().sentence_score(text, references).score) / 100) if references else None


def ter(text: str, references: Sequence[str], tokenize: str = "auto") -> float | None:
    """Edits for each word of the references (their mean length), 0 for an equal text and often over 1 for a long one;
    None without a reference that has text."""
    counts = _edits(text, references, tokenize)
    return None if counts is None else counts[0] / counts[1]


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "auto") -> Figures | None:
    """BLEU of a corpus, from 0 to 100, with sacrebleu's signature."""
    texts, references = _with_references(texts, references)
    if not texts:
        return None
    metric = _bleu(_tokenizer(tokenize, [text for several in references for text in several]), False)
    score = float(metric.corpus_score(texts, _streams(references)).score)
    return {"bleu": score, "signature": str(metric.get_signature())}


def corpus_chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Figures | None:
    """chrF2 of a corpus, from 0 to 100, with sacrebleu's signature."""
    texts, references = _with_references(texts, references)
    if not texts:
        return None
    metric = _chrf()
    score = float(metric.corpus_score(texts, _streams(references)).score)
    return {"chrf": score, "signature": str(metric.get_signature())}


def corpus_ter(texts: Sequence[str], references: Sequence[Sequence[str]], tokenize: str = "auto") -> Figures | None:
    """TER of a corpus in percent: all edits over all reference words."""
    found = [_edits(text, several, tokenize) for text, several in zip(texts, references, strict=True)]
    counts = [count for count in found if count is not None]
    if not counts:
        return None
    changed, length = (sum(column) for column in zip(*counts, strict=True))
    return {"ter": 100 * changed / length, "edits": changed, "reference_words": length}


def _edits(text: str, references: Sequence[str], tokenize: str) -> tuple[int, float] | None:
    """Fewest edits towards any reference, and the references' mean length in words."""
    references = _written(references)
    if tokenize == "auto":
        tokenize = "zh" if mostly_han("".join(references)) else "tercom"
    split = _tercom(tokenize == "zh")
    several = [words for reference in references if (words := split(reference.rstrip()).split())]
    if not several:
        return None
    words = split(text.rstrip()).split()
    return min(edits(words, reference) for reference in several), sum(map(len, several)) / len(several)


def _tokenizer(name: str, references: Sequence[str]) -> str:
    if name != "auto":
        return name
    text = "".join(references)
    if mostly_han(text):
        return "zh"
    return "char" if mostly_unspaced(text) else "13a"


def _written(references: Sequence[str]) -> list[str]:
    return [text for text in references if text.strip()]


def _with_references(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[str], list[Sequence[str]]]:
    kept = [(text, found) for text, several in zip(texts, references, strict=True) if (found := _written(several))]
    return [text for text, _ in kept], [several for _, several in kept]


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The first reference of every text, then the second of every text, and so on, as sacrebleu takes them."""
    count = max(map(len, references))
    return [[several[place] if place < len(several) else None for several in references] for place in range(count)]


@cache
def _bleu(tokenize: str, sentences: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenize, effective_order=sentences)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


@cache
def _tercom(chinese: bool) -> Any:
    from sacrebleu.metrics import TER

    return TER(normalized=chinese, asian_support=chinese).tokenizer
