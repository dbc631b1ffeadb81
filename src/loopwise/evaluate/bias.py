"""Probes of bias: prompts in pairs that differ in one word, from a file or built in, and what the answers differ in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from loopwise.data.dedup import normalised
from loopwise.data.formats import read_rows
from loopwise.data.row import Row, describe
from loopwise.errors import ConfigError, ProblemFileError, nearest
from loopwise.evaluate.bias_templates import templates

BUILT_IN = {"builtin": ("en", "zh"), "builtin-en": ("en",), "builtin-zh": ("zh",)}
SLOT = "{word}"
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_OWN = ("prompt_a", "prompt_b", "template", "words", "word_a", "word_b", "completions", "completion")


@dataclass(frozen=True)
class Probe:
    """Two prompts that differ in a word, ``words`` being the two. ``completions``: what may follow both.

    Of two completions the first is the favourable one. ``columns`` are for rewards.
    """

    prompts: tuple[str, str]
    words: tuple[str, str]
    completions: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


def open_probes(name: str) -> list[Probe]:
    """The probes of a row file, or built-in ones (see BUILT_IN).

    A row has ``prompt_a`` and ``prompt_b`` (and ``word_a``, ``word_b``: what they differ in, to be told by), or a
    ``template`` with {word} and its ``words``, of which each two make a pair: a list, or text with commas.
    ``completions`` (a list) or ``completion`` (text) may follow. Raises ConfigError, ProblemFileError.
    """
    if name in BUILT_IN:
        return [
            probe
            for language in BUILT_IN[name]
            for template, words, completions in templates(language)
            for probe in _filled(template, words, completions, {})
        ]
    if not any(mark in name for mark in "./\\"):
        raise ConfigError(f'--bias "{name}": no such built-in probes, and no file. {nearest(name, BUILT_IN)}')
    return [probe for row in read_rows(name) for probe in _of_row(row)]


def same_answer(probe: Probe, first: str, second: str) -> bool:
    """Whether two answers say the same, the words that the prompts differ in aside."""
    ours, theirs = (normalised(text).casefold() for text in (first, second))
    return ours == theirs or _without(ours, probe.words[0]) == _without(theirs, probe.words[1])


def _without(text: str, word: str) -> str:
    """A text with SLOT for a word: wherever it stands in Han text or kana, else only where it is a whole word."""
    word = normalised(word).casefold()
    if _UNSPACED.search(word):
        return text.replace(word, SLOT)
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: SLOT, text)


def leaning(logps: np.ndarray) -> np.ndarray:
    """How far prompt a makes the first completion likelier than prompt b does: nats ``[N]``, of log-probabilities
    ``[N, 2, C]`` of C completions; of two completions, of how far the first is ahead of the second."""
    ahead = logps[:, :, 0] - logps[:, :, 1] if logps.shape[2] > 1 else logps[:, :, 0]
    return np.asarray(ahead[:, 0] - ahead[:, 1])


def _of_row(row: Row) -> Iterator[Probe]:
    columns = {name: value for name, value in row.columns.items() if name not in _OWN}
    completions = _completions(row)
    if "template" in row.columns:
        template = _text(row, "template")
        if SLOT not in template:
            raise ProblemFileError(f'{row.place}, column "template": has no {SLOT}. Say where the word goes.')
        words = row.columns.get("words")
        words = [word.strip() for word in words.split(",")] if isinstance(words, str) else words
        if not isinstance(words, list) or len(words) < 2 or not all(isinstance(w, str) and w for w in words):
            raise ProblemFileError(
                f'{row.place}, column "words": expected two words or more, found {describe(row.columns.get("words"))}. '
                "Give a list of texts, or words with commas between them."
            )
        yield from _filled(template, tuple(words), completions, columns)
        return
    prompts = _text(row, "prompt_a"), _text(row, "prompt_b")
    if "word_a" in row.columns or "word_b" in row.columns:
        yield Probe(prompts, (_text(row, "word_a"), _text(row, "word_b")), completions, columns)
    else:
        yield Probe(prompts, _differing(*prompts), completions, columns)


def _filled(
    template: str, words: Sequence[str], completions: tuple[str, ...], columns: Mapping[str, Any]
) -> Iterator[Probe]:
    for first, second in combinations(words, 2):
        prompts = template.replace(SLOT, first), template.replace(SLOT, second)
        yield Probe(prompts, (first, second), completions, columns)


def _completions(row: Row) -> tuple[str, ...]:
    given = row.columns.get("completions", row.columns.get("completion"))
    if given is None or given == "":
        return ()
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not 1 <= len(given) <= 2 or not all(isinstance(c, str) and c for c in given):
        raise ProblemFileError(
            f'{row.place}, column "completions": expected one text or a list of two, the favourable one first, '
            f"found {describe(given)}. Mend it, or leave it out."
        )
    return tuple(given)


def _differing(first: str, second: str) -> tuple[str, str]:
    """What two prompts differ in, from the first word (without spaces: character) that does to the last."""
    joint = " " if " " in first and " " in second else ""
    ours, theirs = (text.split() if joint else list(text) for text in (first, second))
    shared = min(len(ours), len(theirs))
    start = next((place for place in range(shared) if ours[place] != theirs[place]), shared)
    stop = next((place for place in range(shared - start) if ours[-1 - place] != theirs[-1 - place]), shared - start)
    parts = (joint.join(own[start : len(own) - stop]) for own in (ours, theirs))
    return tuple(part or whole for part, whole in zip(parts, (first, second), strict=True))  # type: ignore[return-value]


def _text(row: Row, column: str) -> str:
    value = row.columns.get(column)
    if not isinstance(value, str) or not value.strip():
        known = "" if column in row.columns else f" {nearest(column, row.columns)}" if row.columns else ""
        raise ProblemFileError(
            f'{row.place}, column "{column}": expected text, found {describe(value)}.{known} A row of probes has '
            "prompt_a and prompt_b, or template and words."
        )
    return value
