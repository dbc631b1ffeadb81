"""Samples worth showing: the same prompts across rounds, what was kept and rejected, one example in full.

Only what is shown is read: a run may have millions of samples.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from loopwise.report import numbers
from loopwise.runs.journal import Journal, Place
from loopwise.runs.rows import SampleRow
from loopwise.types import REWARD_ROUNDING, Prompt

LONGEST = 2500
SHORT = 90
SHORT_PROMPT = 280
_PAGE = 300
_PAGES = 4
_WATCH_LIMIT = 64
_SHOWN_OF_A_GROUP = 16


@dataclass(frozen=True)
class Text:
    """Text from outside, made visible: ``whole`` is cut at LONGEST characters, ``missing`` says how many are left.

    ``limit`` characters are shown at first.
    """

    whole: str
    missing: int = 0
    limit: int = SHORT

    @property
    def short(self) -> str:
        """The beginning, on one line."""
        line = " ".join(self.whole.split())
        return line if len(line) <= self.limit else f"{line[: self.limit].rstrip()}…"

    @property
    def long(self) -> bool:
        """Whether ``short`` leaves something out."""
        return self.missing > 0 or len(self.whole) > self.limit or "\n" in self.whole.strip()


@dataclass(frozen=True)
class Answer:
    """A sample as it is shown. ``passed`` is None where it could not be judged; ``count`` alike ones stand as one."""

    text: Text
    passed: bool | None
    reward: str
    parts: tuple[tuple[str, str], ...]
    status: str
    cut: bool
    gold: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Message:
    """A message of a prompt; a plain prompt is one without a role."""

    role: str
    text: Text


@dataclass(frozen=True)
class Watched:
    """A prompt and what the model answered after each of some rounds."""

    prompt: tuple[Message, ...]
    rounds: tuple[tuple[int, tuple[Answer, ...]], ...]


@dataclass(frozen=True)
class Shown:
    """A training sample with its prompt."""

    prompt: tuple[Message, ...]
    answer: Answer


@dataclass(frozen=True)
class TrainingRound:
    """Some of the samples a round learned from: what it took for good, and beside it what it took for worse."""

    round: int
    better: tuple[Shown, ...]
    worse: tuple[Shown, ...]


@dataclass(frozen=True)
class Example:
    """One problem of a round with all of its samples. ``differ``: their rewards are not all alike."""

    round: int
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    count: int
    passed: int
    kept: int
    differ: bool


def spread(rounds: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ``rounds``, evenly spread, the first and the last among them."""
    if len(rounds) <= most:
        return list(rounds)
    places = {round(place * (len(rounds) - 1) / (most - 1)) for place in range(most)}
    return [rounds[place] for place in sorted(places)]


def watched(journal: Journal, run_id: str, rounds: Sequence[int], threshold: float, gold: bool) -> tuple[Watched, ...]:
    """The prompts of phase ``watch`` across at most 13 of ``rounds``, or 5 where the answers are long."""
    first = journal.page_samples(run_id, phase="watch", round=rounds[0], limit=_WATCH_LIMIT) if rounds else []
    long = any(text(row.sample.text).long for row in first)
    prompts: dict[str, Prompt] = {}
    answers: dict[str, list[tuple[int, tuple[Answer, ...]]]] = defaultdict(list)
    for number in spread(rounds, 5 if long else 13):
        rows = journal.page_samples(run_id, phase="watch", round=number, limit=_WATCH_LIMIT)
        verdicts = _gold(journal, rows) if gold else {}
        for problem_id, members in _by_problem(rows).items():
            prompts[problem_id] = members[0].prompt
            shown = [replace(_answer(row, threshold), gold=verdicts.get(row.sample.id)) for row in members]
            answers[problem_id].append((number, _merged(shown)))
    return tuple(Watched(messages(prompts[id]), tuple(rows)) for id, rows in answers.items())


def training(
    journal: Journal, run_id: str, rounds: Sequence[int], threshold: float, telling: str = "kept"
) -> tuple[TrainingRound, ...]:
    """Up to four samples and four others beside them, each of another problem, of at most four of ``rounds``.

    ``telling``: ``kept`` and rejected ones, as ``contrast`` the best and the worst of a problem, or any of its ``own``.
    """
    found = (_training_round(journal, run_id, number, threshold, telling) for number in spread(rounds, 4))
    return tuple(entry for entry in found if entry.better or entry.worse)


def example(journal: Journal, run_id: str, rounds: Sequence[int], threshold: float) -> Example | None:
    """A problem of the first round on which the model was of two minds, or any where there is none."""
    for number in rounds[:1]:
        groups = list(_by_problem(next(_pages(journal, run_id, number), [])).values())
        if groups:
            return _example(number, max(groups, key=lambda rows: _telling(rows, threshold)), threshold)
    return None


def messages(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt as messages."""
    if isinstance(prompt, str):
        return (Message("", text(prompt, SHORT_PROMPT)),)
    return tuple(
        Message(str(message.get("role", "")), text(str(message.get("content", "")), SHORT_PROMPT)) for message in prompt
    )


def text(raw: str, limit: int = SHORT) -> Text:
    """Text from outside with its control characters and broken surrogates written out, cut at LONGEST."""
    visible = "".join(character if _printable(character) else _escaped(character) for character in raw[:LONGEST])
    return Text(visible, max(0, len(raw) - LONGEST), limit)


def _printable(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _pages(journal: Journal, run_id: str, number: int) -> Iterator[list[SampleRow]]:
    for page in range(_PAGES):
        rows = journal.page_samples(run_id, phase="train", round=number, limit=_PAGE, offset=page * _PAGE)
        if not rows:
            return
        yield rows


def _by_problem(rows: Sequence[SampleRow]) -> dict[str, list[SampleRow]]:
    groups: dict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        groups[row.sample.problem_id].append(row)
    return groups


def _training_round(
    journal: Journal, run_id: str, number: int, threshold: float, telling: str, most: int = 4
) -> TrainingRound:
    better: dict[str, SampleRow] = {}
    worse: dict[str, SampleRow] = {}
    for rows in _pages(journal, run_id, number):
        if telling == "kept":
            _kept(rows, threshold, better, worse)
        else:
            _compared(rows, better, worse if telling == "contrast" else None)
        if len(better) >= most and (len(worse) >= most or telling == "own"):
            break

    def shown(rows: Mapping[str, SampleRow]) -> tuple[Shown, ...]:
        answers = (_answer(row, threshold) for row in rows.values())
        if telling != "kept":
            # All that was drawn is learned from, each in its way.
            answers = (replace(answer, status="") for answer in answers)
        return tuple(Shown(messages(row.prompt), answer) for row, answer in zip(rows.values(), answers, strict=True))[
            :most
        ]

    return TrainingRound(number, shown(better), shown(worse))


def _kept(
    rows: Sequence[SampleRow], threshold: float, better: dict[str, SampleRow], worse: dict[str, SampleRow]
) -> None:
    for row in rows:
        if row.kept:
            better.setdefault(row.sample.problem_id, row)
        elif not _passed(row, threshold):
            worse.setdefault(row.sample.problem_id, row)


def _compared(rows: Sequence[SampleRow], better: dict[str, SampleRow], worse: dict[str, SampleRow] | None) -> None:
    """The best of each problem, and the worst where that is asked for: then only of problems on which they differ."""
    for problem, members in _by_problem(rows).items():
        judged = [row for row in members if row.total is not None]
        if worse is None:
            better.setdefault(problem, members[0])
        elif _differ(judged):
            better.setdefault(problem, max(judged, key=lambda row: row.total or 0.0))
            worse.setdefault(problem, min(judged, key=lambda row: row.total or 0.0))


def _differ(rows: Sequence[SampleRow]) -> bool:
    totals = [row.total for row in rows if row.total is not None]
    return len(totals) > 1 and max(totals) - min(totals) > REWARD_ROUNDING


def _telling(rows: Sequence[SampleRow], threshold: float) -> tuple[bool, int]:
    passed = sum(_passed(row, threshold) is True for row in rows)
    return any(row.kept for row in rows), min(passed, len(rows) - passed)


def _example(number: int, rows: Sequence[SampleRow], threshold: float) -> Example:
    return Example(
        round=number,
        prompt=messages(rows[0].prompt),
        answers=tuple(_answer(row, threshold) for row in rows[:_SHOWN_OF_A_GROUP]),
        count=len(rows),
        passed=sum(_passed(row, threshold) is True for row in rows),
        kept=sum(row.kept for row in rows),
        differ=_differ(rows),
    )


def _passed(row: SampleRow, threshold: float) -> bool | None:
    return None if row.total is None else row.total >= threshold - REWARD_ROUNDING


def _answer(row: SampleRow, threshold: float) -> Answer:
    passed = _passed(row, threshold)
    names = {(True, True): "kept", (False, True): "kept unchecked", (None, True): "kept unchecked"}
    names |= {(True, False): "passed, not kept", (False, False): "rejected", (None, False): "not judged"}
    return Answer(
        text=text(row.sample.text),
        passed=passed,
        reward=numbers.figure(numbers.finite(row.total)),
        parts=tuple((name, numbers.figure(numbers.finite(value))) for name, value in row.parts.items()),
        status=names[passed, row.kept],
        cut=row.sample.finish_reason == "length",
    )


def _merged(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Alike answers as one with a count, the most frequent first."""
    counts: dict[Answer, int] = defaultdict(int)
    for answer in answers:
        counts[answer] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return tuple(replace(answer, count=count) for answer, count in ordered)


def _gold(journal: Journal, rows: Sequence[SampleRow]) -> dict[str, str]:
    """What the report's own reward said of samples of one place, by their ids."""
    if not rows:
        return {}
    samples = [row.sample for row in rows]
    feedback = journal.feedback_at(Place(*rows[0].place), samples, "report")
    if feedback is None:
        return {}
    return {sample.id: _truth(float(total)) for sample, total in zip(samples, feedback.totals, strict=True)}


def _truth(total: float) -> str:
    return {0.0: "wrong", 1.0: "right"}.get(total, numbers.figure(total))
