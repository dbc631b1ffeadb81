"""The gate's decisions on a run, in figures ready to be read."""

from __future__ import annotations

from dataclasses import dataclass

from loopwise.report.history import Mark, mark
from loopwise.report.measures import Measure
from loopwise.report.samples import text
from loopwise.report.source import Source
from loopwise.runs.rows import DecisionRow


@dataclass(frozen=True)
class GateRow:
    """What the gate decided on a round. ``measured``: from held-out figures, and not because there were none."""

    round: int
    mark: Mark
    before: str
    after: str
    difference: str
    upper: str
    reason: str
    measured: bool


@dataclass(frozen=True)
class GateLog:
    """All decisions; ``splits`` were looked at for each, dev in all ``dev_uses`` times."""

    rows: tuple[GateRow, ...]
    splits: tuple[str, ...]
    enabled: bool
    dev_uses: int


def gate_log(source: Source) -> GateLog:
    """The decisions on a run's rounds."""
    decisions = source.history.decisions
    decided = sum(row.decision.n > 0 for row in decisions)
    return GateLog(
        rows=tuple(_row(row, source.measure) for row in decisions),
        splits=tuple(dict.fromkeys(split for row in decisions for split in row.decision.splits)),
        enabled=bool(source.config.get("gate", {}).get("enabled", True)),
        dev_uses=decided + 1 if decided else 0,
    )


def _row(row: DecisionRow, measure: Measure) -> GateRow:
    decision = row.decision
    return GateRow(
        round=row.round,
        mark=mark(row),
        before=measure.value(decision.incumbent),
        after=measure.value(decision.candidate),
        difference=measure.difference(decision.difference),
        upper=measure.difference(decision.upper),
        reason=text(decision.reason).whole,
        measured=decision.n > 0,
    )
