"""A run's rounds as figures: held-out scores with intervals, gate decisions, and what was logged beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from loopwise.evaluate.groups import group_means, group_members
from loopwise.report import numbers
from loopwise.report.measures import Standing, zeros_and_ones
from loopwise.report.samples import spread
from loopwise.report.series import Series
from loopwise.runs.journal import Journal, Place
from loopwise.runs.rows import REFINED, DecisionRow, EvaluationRow, RoundRow, RunRow

Mark = Literal["base", "best", "accepted", "rolled back", "none"]
NGRAM = "ngram"
"""The stage of the n-gram model beside a pretraining run, which is no round's."""
_GOLD_ROUNDS = 7


@dataclass(frozen=True)
class Point:
    """A round's candidate on dev; the interval is NaN where an earlier round measured the same policy."""

    round: int
    value: float
    low: float
    high: float
    mark: Mark


@dataclass(frozen=True)
class Curve:
    """Figures of a run, round by round, in the colour of stage ``key``."""

    key: str
    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class History:
    """What the journal has on a run but for its samples."""

    run: RunRow
    rounds: Sequence[RoundRow]
    decisions: Sequence[DecisionRow]
    evaluations: Sequence[EvaluationRow]

    @classmethod
    def read(cls, journal: Journal, run_id: str) -> History | None:
        """The history of a run, or None where the journal has none of this name."""
        run = journal.run(run_id)
        if run is None:
            return None
        rounds = [row for row in journal.rounds(run_id) if row.round > 0]
        return cls(run, rounds, journal.decisions(run_id), journal.evaluations(run_id))

    @property
    def is_share(self) -> bool:
        """Whether all held-out scores are 0 or 1, so that their means are shares of the problems."""
        return all(zeros_and_ones(row.evaluation.judged) for row in self.evaluations)

    @property
    def best_round(self) -> int:
        """The round whose model is the result; 0 is the start."""
        return max((row.round for row in self.decisions if row.decision.best), default=0)

    @cached_property
    def _measured(self) -> Mapping[tuple[int, str], EvaluationRow]:
        return {(row.round, row.evaluation.split): row for row in self.evaluations if row.stage != NGRAM}

    def evaluation(self, number: int, split: str, mean: float) -> EvaluationRow | None:
        """The evaluation of round ``number``, or the earlier one of the same policy, known by its ``mean``."""
        if row := self._measured.get((number, split)):
            return row
        alike = [
            row
            for row in self._measured.values()
            if row.evaluation.split == split and row.round <= number and row.evaluation.mean == mean
        ]
        return max(alike, key=lambda row: row.round, default=None)

    def standing(self, stage: Mapping[str, Any], split: str, number: int) -> Standing | None:
        """A stage of the summary on a split, with the scores of the round that it is the model of."""
        if not (figures := stage.get(split)):
            return None
        return _standing(figures, self.evaluation(number, split, numbers.finite(figures["accuracy"])))

    def refined(self, figures: Mapping[str, Any], split: str, number: int) -> Standing:
        """The figures of a round's revised answers on a split, with their scores."""
        return _standing(figures, self.evaluation(number, f"{split}{REFINED}", numbers.finite(figures["accuracy"])))

    def floor(self, stage: Mapping[str, Any], split: str) -> Standing | None:
        """The n-gram model's stage of the summary on a split, with its scores."""
        rows = (row for row in self.evaluations if row.stage == NGRAM and row.evaluation.split == split)
        return _standing(stage[split], next(rows, None)) if split in stage else None

    def dev(self) -> tuple[Point, ...]:
        """Base and candidates on dev, round by round."""
        found = []
        if start := self._measured.get((0, "dev")):
            found.append(Point(0, start.evaluation.mean, *start.interval, "base"))
        for row in self.decisions:
            if not row.decision.n:
                continue
            measured = self._measured.get((row.round, "dev"))
            low, high = measured.interval if measured else (math.nan, math.nan)
            found.append(Point(row.round, row.decision.candidate, low, high, mark(row)))
        return tuple(found)

    def gold(self, journal: Journal, split: str, number: int) -> Standing | None:
        """What the report's own reward said of round ``number`` on a split."""
        samples = list(journal.samples_at(Place(self.run.run_id, number, 0, split)).values())
        feedback = journal.feedback_at(Place(self.run.run_id, number, 0, split), samples, "report") if samples else None
        if feedback is None:
            return None
        scores = group_means(group_members(samples), feedback.totals)
        judged = scores[~np.isnan(scores)]
        mean = float(judged.mean()) if judged.size else math.nan
        return Standing(mean, math.nan, math.nan, int(judged.size), scores)

    def gold_series(self, journal: Journal) -> Series | None:
        """What the report's own reward said of dev after some of the rounds: each is a split's samples to read."""
        rounds = spread([0, *(row.round for row in self.rounds)], _GOLD_ROUNDS)
        found = {number: self.gold(journal, "dev", number) for number in rounds}
        known = {number: entry for number, entry in found.items() if entry and entry.n}
        if not known:
            return None
        line = ("", tuple(entry.value for entry in known.values()))
        share = all(entry.is_share for entry in known.values())
        hint = "Dev problems judged by the true answers, which decided nothing."
        return Series("By the truth", hint, tuple(known), (line,), share)


def mark(row: DecisionRow) -> Mark:
    """What became of a round's candidate."""
    return "best" if row.decision.best else "accepted" if row.decision.accepted else "rolled back"


def _standing(figures: Mapping[str, Any], row: EvaluationRow | None) -> Standing:
    low, high = (numbers.finite(bound) for bound in figures["ci95"])
    scores = row.evaluation.scores if row else None
    return Standing(numbers.finite(figures["accuracy"]), low, high, int(figures["n"]), scores)
