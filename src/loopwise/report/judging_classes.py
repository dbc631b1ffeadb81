"""What a judge gets right and wrong on held-out rows, class by class and row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.report import numbers
from loopwise.report.samples import SHORT_PROMPT, Text, text

MOST_CLASSES = 20


@dataclass(frozen=True)
class ClassRow:
    """A class of ``n`` held-out rows, or the mean of several under one name."""

    name: Text
    n: str
    precision: str
    recall: str
    f1: str


@dataclass(frozen=True)
class Classes:
    """The classes that stand in the held-out rows, the worst first. ``others`` are those not shown, as one row.

    ``absent`` labels have no held-out row.
    """

    rows: tuple[ClassRow, ...]
    others: ClassRow | None
    macro_f1: str
    absent: int


@dataclass(frozen=True)
class WrongRow:
    """A row that was misjudged, and how sure the judge was of it."""

    place: str
    prompt: Text | None
    texts: tuple[Text, ...]
    confidence: str


@dataclass(frozen=True)
class Mistake:
    """Rows of class ``truth`` that were taken for ``found``, ``count`` of them, with some of these."""

    truth: Text
    found: Text
    count: int
    rows: tuple[WrongRow, ...]


def classes(figures: Mapping[str, Any], labels: int) -> Classes | None:
    """The classes of a split's ``figures``, of ``labels`` that there are; None of pairs, which have none."""
    if "classes" not in figures:
        return None
    present = {name: entry for name, entry in figures["classes"].items() if entry["n"]}
    ordered = sorted(present.items(), key=lambda item: (item[1]["f1"], -item[1]["n"], item[0]))
    # A line for one class that is left out would take the room of the class itself.
    shown = len(ordered) if len(ordered) <= MOST_CLASSES + 1 else MOST_CLASSES
    return Classes(
        rows=tuple(_class(name, [entry]) for name, entry in ordered[:shown]),
        others=_others([entry for _, entry in ordered[shown:]]),
        macro_f1=numbers.percent(figures["macro_f1"]),
        absent=labels - len(present),
    )


def _others(entries: Sequence[Mapping[str, Any]]) -> ClassRow | None:
    return _class(f"the {len(entries)} others, on average", entries) if entries else None


def _class(name: str, entries: Sequence[Mapping[str, Any]]) -> ClassRow:
    """Several ``entries`` as the mean of each."""

    def mean(figure: str) -> str:
        return numbers.percent(sum(entry[figure] for entry in entries) / len(entries))

    return ClassRow(
        text(name), numbers.whole(sum(entry["n"] for entry in entries)), mean("precision"), mean("recall"), mean("f1")
    )


def wrong(figures: Mapping[str, Any]) -> tuple[Mistake, ...]:
    """The mistakes of a split's ``figures``, the most frequent first."""
    return tuple(
        Mistake(text(one["truth"]), text(one["found"]), one["count"], tuple(map(_row, one["rows"])))
        for one in figures["mistakes"]
    )


def _row(row: Mapping[str, Any]) -> WrongRow:
    prompt = row["prompt"]
    return WrongRow(
        place=text(row["place"]).whole,
        prompt=None if prompt is None else text(prompt, SHORT_PROMPT),
        texts=tuple(text(one, SHORT_PROMPT) for one in row["texts"]),
        confidence=numbers.percent(row["confidence"]),
    )
