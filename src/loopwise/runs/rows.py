"""What the journal gives back: frozen rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from loopwise.types import Budget, Decision, Evaluation, Prompt, Sample

REFINED = " refined"
"""What follows a split's name where its answers were revised before they were judged."""


class Place(NamedTuple):
    """Where in a run samples were drawn. ``phase`` is train, dev, test, watch, monitor or ``skill:NAME``."""

    run_id: str
    round: int
    step: int
    phase: str


@dataclass(frozen=True)
class RunRow:
    """One run. ``status`` is running, paused, failed or finished; times are UTC."""

    run_id: str
    kind: str
    status: str
    config: Mapping[str, Any]
    config_hash: str
    fingerprint: Mapping[str, Any]
    versions: Mapping[str, Any]
    threads: int
    schema_version: int
    created: datetime
    updated: datetime


@dataclass(frozen=True)
class StepRow:
    """The metrics of one optimizer step."""

    round: int
    step: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class RoundRow:
    """A committed round; ``budget`` is what the run had spent by its end."""

    round: int
    summary: Mapping[str, Any]
    budget: Budget
    created: datetime


@dataclass(frozen=True)
class DecisionRow:
    """What the gate decided on a round."""

    round: int
    decision: Decision


@dataclass(frozen=True)
class EvaluationRow:
    """Scores of a stage (untrained, base, control, improved …) with the interval of their mean."""

    round: int
    stage: str
    evaluation: Evaluation
    interval: tuple[float, float]


@dataclass(frozen=True)
class CheckpointRow:
    """A committed checkpoint. ``step`` is how many steps of the round it holds, None at the round's end."""

    name: str
    hash: str
    round: int
    step: int | None
    created: datetime


@dataclass(frozen=True)
class EventRow:
    """Something a person may want to know of: a warning, a pause, a checkpoint in quarantine."""

    round: int | None
    level: str
    message: str
    time: datetime


@dataclass(frozen=True)
class SampleRow:
    """A sample with its rewards (``total`` is their weighted sum), None where it was not or could not be judged.

    ``kept`` says whether some round learned from it.
    """

    place: Place
    prompt: Prompt
    sample: Sample
    total: float | None
    parts: Mapping[str, float | None]
    kept: bool
