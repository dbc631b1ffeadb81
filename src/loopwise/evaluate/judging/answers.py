"""Which answer a completion gives, so that two completions can be said to give the same one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from loopwise.errors import ConfigError, nearest
from loopwise.evaluate.parsing import last_number, settled_choice
from loopwise.types import Sample

Extract = Callable[[str], str | None]
KINDS = ("text", "number", "choice", "regex")


def extractor(source: str, extract: str, pattern: str, labels: str | Sequence[str]) -> Extract:
    """A function from a completion to its answer as text, None where it gives none.

    ``extract``: ``text`` (all of it, without the space around it), ``number`` (its last one), ``choice`` (which of
    ``labels`` it settles on), ``regex`` (the last match of ``pattern``, or of its first group). Raises ConfigError,
    which names ``source``.
    """
    if extract not in KINDS:
        raise ConfigError(f'source "{source}": unknown extract "{extract}". {nearest(str(extract), KINDS)}')
    if (extract == "regex") != bool(pattern):
        raise ConfigError(f'source "{source}": "pattern" goes with extract: regex. Give both or neither.')
    if (
        not labels
        or not isinstance(labels, Sequence)
        or not all(isinstance(one, str) and one.strip() for one in labels)
    ):
        raise ConfigError(f'source "{source}": "labels" must be letters or a list of texts, found {labels!r}.')
    if extract == "text":
        return lambda text: text.strip() or None
    if extract == "number":
        return _number
    if extract == "choice":
        return lambda text: settled_choice(text, labels)
    return _matched(source, pattern)


def groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The positions of each problem's samples, problem after problem."""
    ordered = sorted(range(len(samples)), key=lambda place: (samples[place].group, place))
    return [list(members) for _, members in groupby(ordered, key=lambda place: samples[place].group)]


def _number(text: str) -> str | None:
    # 3.5% and 3.5 are one answer: read either way, "the same" would hold of two pairs and not of the third.
    found = last_number(text)
    return None if found is None else str(found.value)


def _matched(source: str, pattern: Any) -> Extract:
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ConfigError(
            f'source "{source}": pattern {pattern!r} is no regular expression ({error}). Mend it.'
        ) from None

    def matched(text: str) -> str | None:
        last = None
        for last in compiled.finditer(text):  # noqa: B007 - only the last one counts
            pass
        return None if last is None else last[1 if compiled.groups else 0]

    return matched
