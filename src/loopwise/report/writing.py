"""What a model writes of its own: the final model's samples in full, and one of each beginning round after round."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopwise.report.history import History, mark
from loopwise.report.samples import spread, text
from loopwise.runs.journal import Journal
from loopwise.runs.rows import SampleRow

_MOST_SAMPLES = 64
_MOST_ROUNDS = 6
_EXCERPT, _EXCERPT_LINES = 160, 3
_COLUMN = 25


@dataclass(frozen=True)
class Specimen:
    """A text that the model wrote. ``language`` is a BCP 47 tag, empty where unknown; ``count`` alike ones are one."""

    text: str
    language: str
    cut: bool
    missing: int
    count: int = 1


@dataclass(frozen=True)
class Beginning:
    """What a model was given to go on from (empty: nothing), and what it wrote."""

    given: str
    language: str
    specimens: tuple[Specimen, ...]


@dataclass(frozen=True)
class Growth:
    """The first text written from a beginning after each of some rounds; ``undone`` where the round was."""

    given: str
    language: str
    rounds: tuple[tuple[int, bool, Specimen], ...]


@dataclass(frozen=True)
class Writing:
    """What the model of ``round`` wrote, ``more`` beginnings left out, and how it came to it.

    ``broad``: its lines would not fit into four columns.
    """

    round: int
    beginnings: tuple[Beginning, ...]
    growth: tuple[Growth, ...]
    more: int

    @property
    def broad(self) -> bool:
        lines = [
            line
            for beginning in self.beginnings
            for specimen in beginning.specimens
            for line in (beginning.given + specimen.text).split("\n")
        ]
        return any(map(_is_broad, lines))


def writing(journal: Journal, history: History, prompts: int) -> Writing:
    """The samples of phase ``watch`` of a run of ``prompts`` beginnings; the final model's are its best round's."""
    run_id = history.run.run_id
    groups = _groups(journal, run_id, history.best_round)
    beginnings = tuple(_beginning(rows) for rows in groups.values())
    return Writing(history.best_round, beginnings, _growth(journal, history), prompts - len(groups))


def language(content: str) -> str:
    """The language of a text as far as its script tells: ja, ko, zh, or "" for any other."""
    scripts = Counter(unicodedata.name(character, "").split(" ")[0] for character in content if character.isalpha())
    east = {"CJK": "zh", "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja"}
    found = {tag: sum(scripts[script] for script in east if east[script] == tag) for tag in east.values()}
    # Japanese text is largely Han characters, and a quote in an English text does not make that Chinese.
    if found["ja"] * 10 > found["zh"] and found["ja"]:
        found["ja"] += found["zh"]
    most = max(found, key=lambda tag: found[tag])
    return most if found[most] * 3 > scripts.total() else ""


def _groups(journal: Journal, run_id: str, number: int) -> Mapping[str, Sequence[SampleRow]]:
    """The watched samples of a round by beginning; the last beginning is left out where only part of it was read."""
    groups: dict[str, list[SampleRow]] = defaultdict(list)
    for row in journal.page_samples(run_id, phase="watch", round=number, limit=_MOST_SAMPLES):
        groups[row.sample.problem_id].append(row)
    sizes = [len(rows) for rows in groups.values()]
    if len(sizes) > 1 and sizes[-1] < sizes[0]:
        groups.popitem()
    return groups


def _beginning(rows: Sequence[SampleRow]) -> Beginning:
    counts = Counter(_specimen(row) for row in rows)
    given = _given(rows[0])
    specimens = tuple(
        Specimen(specimen.text, specimen.language, specimen.cut, specimen.missing, count)
        for specimen, count in counts.items()
    )
    return Beginning(given, language(given), specimens)


def _specimen(row: SampleRow) -> Specimen:
    written = text(row.sample.text)
    # A text begins with no blank line; where one goes on from a beginning, its line breaks are part of it.
    body = written.whole.rstrip() if row.prompt else written.whole.strip()
    return Specimen(body, language(row.sample.text), row.sample.finish_reason == "length", written.missing)


def _given(row: SampleRow) -> str:
    return text(row.prompt).whole if isinstance(row.prompt, str) else ""


def _growth(journal: Journal, history: History) -> tuple[Growth, ...]:
    undone = {row.round for row in history.decisions if mark(row) == "rolled back"}
    found: dict[str, list[tuple[int, bool, Specimen]]] = defaultdict(list)
    given: dict[str, str] = {}
    for number in spread([0, *(row.round for row in history.rounds)], _MOST_ROUNDS):
        for problem_id, rows in _groups(journal, history.run.run_id, number).items():
            given[problem_id] = _given(rows[0])
            found[problem_id].append((number, number in undone, _excerpt(_specimen(rows[0]))))
    return tuple(Growth(given[key], language(given[key]), tuple(rounds)) for key, rounds in found.items())


def _excerpt(specimen: Specimen) -> Specimen:
    """The first lines of a text."""
    lines = specimen.text[:_EXCERPT].split("\n")[:_EXCERPT_LINES]
    start = "\n".join(lines).rstrip()
    whole = start == specimen.text
    return Specimen(start if whole else f"{start}…", specimen.language, False, 0)


def _is_broad(line: str) -> bool:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line) > _COLUMN
