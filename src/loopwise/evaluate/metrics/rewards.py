"""The metrics as rules: rewards in TRL's signature, most in [0, 1], each with its figures of a whole set."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.metrics import labels as label_metrics
from loopwise.evaluate.metrics import overlap, translation, variety
from loopwise.evaluate.metrics.words import plain
from loopwise.evaluate.options import require, require_one_of
from loopwise.evaluate.references import (
    Figures,
    MetricReward,
    Report,
    RewardFunction,
    Rewards,
    against,
    against_all,
    alone,
    column_values,
    completion_text,
    named,
    reference_texts,
    truth_for,
)

UNITS = ("tokens", "characters")
_LONGEST_RUN = 8


def bleu(column: str = "answer", tokenize: str = "auto") -> RewardFunction:
    """Sentence BLEU / 100 against the text, or the best of the texts, in ``column``; None where a row has none."""
    require('rule "bleu"', str, column=column)
    require_one_of('rule "bleu"', "tokenize", tokenize, translation.TOKENIZERS)
    judge = partial(translation.bleu, tokenize=tokenize)
    return _like("bleu", column, judge, partial(translation.corpus_bleu, tokenize=tokenize))


def chrf(column: str = "answer") -> RewardFunction:
    """Sentence chrF2 / 100 against the text, or the best of the texts, in ``column``; None where a row has none."""
    require('rule "chrf"', str, column=column)
    return _like("chrf", column, translation.chrf, translation.corpus_chrf)


def ter(column: str = "answer", tokenize: str = "auto") -> RewardFunction:
    """1 - translation edit rate, 0 at least, against the text or texts in ``column``; None where a row has none."""
    require('rule "ter"', str, column=column)
    require_one_of('rule "ter"', "tokenize", tokenize, translation.TER_TOKENIZERS)

    def judge(text: str, references: Sequence[str]) -> float | None:
        rate = translation.ter(text, references, tokenize)
        return None if rate is None else max(0.0, 1.0 - rate)

    return _like("ter", column, judge, partial(translation.corpus_ter, tokenize=tokenize))


def rouge(column: str = "answer", kind: str = "rougeL") -> RewardFunction:
    """ROUGE F-measure of ``kind`` rouge1, rouge2 or rougeL against ``column``; None where a row has no words there."""
    require('rule "rouge"', str, column=column)
    require_one_of('rule "rouge"', "kind", kind, overlap.KINDS)

    def judge(text: str, references: Sequence[str]) -> float | None:
        found = overlap.rouge(text, references)
        return None if found is None else found[kind]

    def report(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Figures | None:
        found = [marks for pair in zip(texts, references, strict=True) if (marks := overlap.rouge(*pair))]
        return {name: statistics.fmean(marks[name] for marks in found) for name in overlap.KINDS} if found else None

    return _like("rouge", column, judge, report)


def token_f1(column: str = "answer") -> RewardFunction:
    """F1 of the words shared with the text, or the best of the texts, in ``column``; None where a row has none."""
    require('rule "token_f1"', str, column=column)

    def report(texts: Sequence[str], references: Sequence[Sequence[str]]) -> Figures | None:
        pairs = [pair for pair in zip(texts, references, strict=True) if pair[1]]
        if not pairs:
            return None
        marks = [mark for text, several in pairs if (mark := overlap.token_f1(text, several)) is not None]
        same = [overlap.same_answer(text, several) for text, several in pairs]
        return {"f1": statistics.fmean(marks), "exact_match": statistics.fmean(same)}

    return _like("token_f1", column, overlap.token_f1, report)


def length(
    target: int | None = None, least: int | None = None, most: int | None = None, unit: str = "tokens"
) -> RewardFunction:
    """1.0 from ``least`` to ``most`` (or at ``target``) tokens or characters; less in proportion below, 0 at twice as
    many. Tokens count the end-of-text."""
    given = {"target": target, "least": least, "most": most}
    require('rule "length"', int, **{name: value for name, value in given.items() if value is not None})
    require_one_of('rule "length"', "unit", unit, UNITS)
    if (target is None) == (least is None and most is None):
        raise ConfigError('rule "length": give "target", or "least" or "most" or both of them.')
    low, high = (target, target) if target is not None else (least or 0, most)
    if low < 0 or (high is not None and high < max(1, low)):
        raise ConfigError(f'rule "length": no length is from {low} to {high}. Mend "least" and "most".')

    def lengths(completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> list[int | None]:
        if unit == "characters":
            return [len(completion_text(completion)) for completion in completions]
        return [len(ids) or None for ids in columns.get("completion_ids", [()] * len(completions))]

    def reward(completions: Sequence[Any], **columns: Sequence[Any]) -> Rewards:
        found = lengths(completions, columns)
        return [None if count is None else variety.fitting(count, low, high) for count in found]

    def report(completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Figures | None:
        known = [count for count in lengths(completions, columns) if count is not None]
        if not known:
            return None
        spread = {"mean": statistics.fmean(known), "median": float(statistics.median(known))}
        return {**spread, "least": min(known), "most": max(known), "unit": unit}

    return MetricReward(named(reward, "length"), report)


def distinct(n: int = 2) -> RewardFunction:
    """The share of different runs of ``n`` words (or of all its words, if fewer) in a completion; 0 for an empty one.

    Short texts repeat little: put a ``length`` beside it.
    """
    require('rule "distinct"', int, n=n)
    if not 1 <= n <= _LONGEST_RUN:
        raise ConfigError(f'rule "distinct": option "n" must be from 1 to {_LONGEST_RUN}, found {n}.')

    def judge(text: str) -> float:
        shares = (variety.distinct([text], size) for size in range(n, 0, -1))
        return next((share for share in shares if share is not None), 0.0)

    def report(completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Figures | None:
        found = {f"distinct_{size}": variety.distinct(completions, size) for size in sorted({1, 2, n})}
        return {name: share for name, share in found.items() if share is not None} or None

    return MetricReward(alone("distinct", judge), report)


def label(
    column: str = "label", labels: Sequence[str] | None = None, ordinal: Sequence[str] | None = None
) -> RewardFunction:
    """1.0 where the completion is the label in ``column``, but for case, spaces and punctuation.

    With ``ordinal``, labels in order of rank, a near one earns more than a far one: 1 - squared distance. None where a
    row has no label, or none of ``labels``.
    """
    require('rule "label"', str, column=column)
    known = _known_labels("labels", labels)
    scale = _known_labels("ordinal", ordinal)
    if known and scale:
        raise ConfigError('rule "label": options "labels" and "ordinal" both name the labels. Leave one out.')
    every = scale or known

    def truth_of(reference: Any) -> str | None:
        found = plain(str(reference))
        return found if found and (not every or found in every) else None

    def judge(text: str, reference: Any) -> float | None:
        answer, truth = plain(text), truth_of(reference)
        if truth is None:
            return None
        return label_metrics.closeness(answer, truth, scale) if answer in scale else float(answer == truth)

    def report(completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Figures | None:
        answers = zip(map(plain, completions), column_values(column, columns), strict=True)
        judged = [(answer, truth_for(answer, value, truth_of)) for answer, value in answers]
        pairs = [(answer, truth) for answer, truth in judged if truth is not None]
        found = every or sorted({truth for _, truth in pairs})
        read = [(answer if answer in found else None, truth) for answer, truth in pairs]
        return label_metrics.classification(read, found, ordinal=bool(scale))

    return MetricReward(against("label", column, judge), report)


def _known_labels(option: str, labels: Any) -> list[str]:
    """Labels as they are compared. Raises ConfigError where they are no list of two or more different texts."""
    if labels is None:
        return []
    if isinstance(labels, str) or not isinstance(labels, Sequence) or len(labels) < 2:
        raise ConfigError(f'rule "label": option "{option}" must be a list of two labels or more, found {labels!r}.')
    found = [plain(str(one)) for one in labels]
    if len(set(found)) < len(found) or not all(found):
        raise ConfigError(f'rule "label": option "{option}" has labels that are empty or read alike: {labels!r}.')
    return found


def _like(
    name: str,
    column: str,
    judge: Callable[[str, Sequence[str]], float | None],
    corpus: Callable[[Sequence[str], Sequence[Sequence[str]]], Figures | None],
) -> RewardFunction:
    """A reward against the texts of a column, and the report of a metric of texts and their references."""

    def report(completions: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Figures | None:
        return corpus(completions, [reference_texts(value) for value in column_values(column, columns)])

    checked: Report = report
    return MetricReward(against_all(name, column, lambda text, value: judge(text, reference_texts(value))), checked)
