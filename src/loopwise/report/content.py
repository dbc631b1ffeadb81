"""What a report on tuning or the loop says, gathered into plain dataclasses, nothing of it formatted as HTML."""

from __future__ import annotations

from dataclasses import dataclass

from loopwise.report import wording
from loopwise.report.details import Details, details
from loopwise.report.events import Notice, warnings
from loopwise.report.gate_log import GateLog, gate_log
from loopwise.report.history import Curve, History
from loopwise.report.lessons import Lesson, lesson, of_example
from loopwise.report.monitors import monitor_series
from loopwise.report.result import Outcome, outcome
from loopwise.report.samples import Example, TrainingRound, Watched, example, training, watched
from loopwise.report.series import LEARNING, Series, series, step_series
from loopwise.report.source import Heading, Source


@dataclass(frozen=True)
class Story:
    """What happened, for someone who has read nothing.

    ``reading`` says what the example's prompt means, ``learned`` what was learned from its answers.
    """

    opening: str
    steps: tuple[wording.Step, ...]
    example: Example | None
    reading: str | None
    learned: str | None


@dataclass(frozen=True)
class Content:
    """The whole report. ``curves`` begin with the run's own; ``gold_shown``: answers carry the truth beside them.

    ``series`` are figures by round, ``steps`` by step, ``monitors`` of held-out samples by round; ``lesson`` says how
    the samples of ``training`` are shown.
    """

    heading: Heading
    outcome: Outcome
    story: Story
    curves: tuple[Curve, ...]
    warnings: tuple[Notice, ...]
    series: tuple[Series, ...]
    steps: tuple[Series, ...]
    monitors: tuple[Series, ...]
    watched: tuple[Watched, ...]
    gold_shown: bool
    lesson: Lesson
    training: tuple[TrainingRound, ...]
    gate: GateLog
    details: Details


def gather(source: Source) -> Content:
    """Everything the report says."""
    journal, result, shown = source.journal, outcome(source), lesson(source.config)
    asked = [0, *(row.round for row in source.history.rounds)] if source.drawn else []
    return Content(
        heading=source.heading,
        outcome=result,
        story=_story(source),
        curves=_curves(source),
        warnings=warnings(journal.events(source.run_id)),
        series=_series(source),
        steps=step_series(journal.steps(source.run_id), LEARNING),
        monitors=_monitors(source),
        watched=watched(journal, source.run_id, asked, source.threshold, source.has_gold),
        gold_shown=source.has_gold,
        lesson=shown,
        training=training(journal, source.run_id, source.drawn, source.threshold, shown.telling),
        gate=gate_log(source),
        details=details(source, _cautions(source, result.held_out)),
    )


def _story(source: Source) -> Story:
    shown = example(source.journal, source.run_id, source.drawn, source.threshold)
    decided = [row.decision.accepted for row in source.history.decisions if row.decision.n]
    return Story(
        opening=wording.opening(source.history.run.kind, len(source.history.rounds), source.config),
        steps=wording.steps(source.config, source.parts, source.task, sum(decided), len(decided)),
        example=shown,
        reading=wording.reading(source.task, shown.prompt[-1].text.whole) if shown else None,
        learned=of_example(source.config, shown) if shown else None,
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
    imitates = lesson(source.config).telling == "kept"
    logged = series([(row.round, row.summary) for row in source.history.rounds], source.parts, imitates=imitates)
    truth = source.history.gold_series(source.journal) if source.has_gold else None
    return (truth, *logged) if truth else logged


def _monitors(source: Source) -> tuple[Series, ...]:
    samples = source.config.get("monitors", {}).get("samples", 1)
    return monitor_series([(row.round, row.summary) for row in source.history.rounds], samples)


def _cautions(source: Source, held_out: int) -> tuple[str, ...]:
    return wording.cautions(source.config, list(source.stages), source.split, held_out, source.parts)
