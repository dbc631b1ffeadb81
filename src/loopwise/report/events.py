"""Warnings of a run, those of one kind told once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loopwise.report.samples import text
from loopwise.runs.rows import EventRow

_ROUND = re.compile(r"^round \d+: ")
_FIGURE = re.compile(r"\d[\d.,]*(e[-+]?\d+)?%?")
_MOST = 8


@dataclass(frozen=True)
class Notice:
    """What a person should look at: the newest of its kind, and in which rounds there was one."""

    message: str
    rounds: str


def warnings(events: Sequence[EventRow]) -> tuple[Notice, ...]:
    """The newest warnings of each kind, the kinds in order; two are alike where they differ in figures only."""
    kinds: dict[str, list[EventRow]] = {}
    for event in events:
        if event.level == "warning":
            kinds.setdefault(_FIGURE.sub("#", event.message), []).append(event)
    return tuple(_told(alike) for alike in list(kinds.values())[-_MOST:])


def _told(alike: Sequence[EventRow]) -> Notice:
    newest = alike[-1].message
    numbered = [match[0] for event in alike if (match := _ROUND.match(event.message))]
    rounds = ""
    if numbered:
        first, last = numbered[0].removesuffix(": "), numbered[-1].removesuffix(": ").removeprefix("round ")
        rounds = first if len(numbered) == 1 else f"{len(numbered)} rounds, from {first} to {last}; the last one"
    return Notice(text(_ROUND.sub("", newest)).whole, rounds)
