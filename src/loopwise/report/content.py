"""What a report says, gathered from the journal into plain dataclasses, nothing of it formatted as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwise.report import numbers, wording
from loopwise.report.details import Details, details
from loopwise.report.history import History, Mark, Point, mark
from loopwise.report.measures import Measure
from loopwise.report.result import Outcome, outcome
from loopwise.report.samples import Example, TrainingRound, Watched, example, text, training, watched
from loopwise.report.series import Series, series
from loopwise.report.source import Source
from loopwise.runs.journal import Journal
from loopwise.runs.rows import DecisionRow


@dataclass(frozen=True)
class Heading:
    """Which run this is."""

    task: str
    seed: int
    started: str
    wall: str


@dataclass(frozen=True)
class Story:
    """What happened, for someone who has read nothing. ``reading`` says what the example's prompt means."""

    opening: str
    steps: tuple[wording.Step, ...]
    example: Example | None
    reading: str | None


@dataclass(frozen=True)
class Curve:
    """Dev figures of a run, round by round, in the colour of stage ``key``."""

    key: str
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class GateRow:
    """What the gate decided on a round, in figures ready to be read."""

    round: int
    mark: Mark
    before: str
    after: str
    difference: str
    upper: str
    reason: str


@dataclass(frozen=True)
class GateLog:
    """All decisions; ``splits`` were looked at for each, dev in all ``dev_uses`` times."""

    rows: tuple[GateRow, ...]
    splits: tuple[str, ...]
    enabled: bool
    dev_uses: int


@dataclass(frozen=True)
class Content:
    """The whole report. ``curves`` begin with the run's own; ``gold_shown``: answers carry the truth beside them."""

    heading: Heading
    outcome: Outcome
    story: Story
    curves: tuple[Curve, ...]
    series: tuple[Series, ...]
    watched: tuple[Watched, ...]
    gold_shown: bool
    training: tuple[TrainingRound, ...]
    gate: GateLog
    details: Details


def gather(journal: Journal, out: Path, summary: Mapping[str, Any]) -> Content:
    """Everything a report on the run of ``summary`` says. Raises ValueError where the journal has no such run."""
    source = Source.read(journal, out, summary)
    result = outcome(source)
    asked = [0, *(row.round for row in source.history.rounds)] if source.drawn else []
    return Content(
        heading=_heading(source),
        outcome=result,
        story=_story(source),
        curves=_curves(source),
        series=_series(source),
        watched=watched(journal, source.run_id, asked, source.threshold, source.has_gold),
        gold_shown=source.has_gold,
        training=training(journal, source.run_id, source.drawn, source.threshold),
        gate=_gate(source),
        details=details(source, result.held_out),
    )


def _heading(source: Source) -> Heading:
    return Heading(
        task=source.task,
        seed=int(source.summary["seed"]),
        started=f"{source.history.run.created:%Y-%m-%d %H:%M} UTC",
        wall=numbers.duration(numbers.finite(source.summary.get("wall_seconds"))),
    )


def _story(source: Source) -> Story:
    shown = example(source.journal, source.run_id, source.drawn, source.threshold)
    decided = [row.decision.accepted for row in source.history.decisions if row.decision.n]
    label_free = bool(source.config.get("label_free"))
    return Story(
        opening=wording.opening(source.history.run.kind, len(source.history.rounds), label_free),
        steps=wording.steps(source.config, source.parts, source.task, sum(decided), len(decided)),
        example=shown,
        reading=wording.reading(source.task, shown.prompt[-1].text.whole) if shown else None,
    )


def _curves(source: Source) -> tuple[Curve, ...]:
    histories = {source.ends[1]: source.history}
    for stage, run_id in wording.CONTROLS.items():
        control = History.read(source.journal, run_id) if stage in source.stages else None
        if control:
            histories[stage] = control
    curves = (Curve(stage, wording.STAGES[stage][0], history.dev()) for stage, history in histories.items())
    return tuple(curve for curve in curves if curve.points)


def _series(source: Source) -> tuple[Series, ...]:
    logged = series([(row.round, row.summary) for row in source.history.rounds], source.parts)
    truth = source.history.gold_series(source.journal) if source.has_gold else None
    return (truth, *logged) if truth else logged


def _gate(source: Source) -> GateLog:
    decisions = source.history.decisions
    decided = sum(row.decision.n > 0 for row in decisions)
    return GateLog(
        rows=tuple(_gate_row(row, source.measure) for row in decisions),
        splits=tuple(dict.fromkeys(split for row in decisions for split in row.decision.splits)),
        enabled=bool(source.config.get("gate", {}).get("enabled", True)),
        dev_uses=decided + 1 if decided else 0,
    )


def _gate_row(row: DecisionRow, measure: Measure) -> GateRow:
    decision = row.decision
    return GateRow(
        round=row.round,
        mark=mark(row),
        before=measure.value(decision.incumbent),
        after=measure.value(decision.candidate),
        difference=measure.difference(decision.difference),
        upper=measure.difference(decision.upper),
        reason=text(decision.reason).whole,
    )
