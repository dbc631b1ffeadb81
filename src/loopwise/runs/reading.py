"""The reading side of the journal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Engine, Select, and_, case, exists, func, select
from sqlalchemy.sql.selectable import FromClause

from loopwise.runs import schema
from loopwise.runs.packing import Act, Judged, merge_feedback, unpack_prompt, unpack_sample
from loopwise.runs.rows import (
    CheckpointRow,
    DecisionRow,
    EvaluationRow,
    EventRow,
    Place,
    RoundRow,
    RunRow,
    SampleRow,
    StepRow,
)
from loopwise.types import REWARD_ROUNDING, Budget, Decision, Evaluation, Feedback, Problem, Sample

REWARD = "reward"
_BATCH = 1000
_ORDER = ("phase", "round", "step", "group", "index", "id")


class JournalReader:
    """Questions to the journal. Each is answered from one consistent view, also while a run writes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, run_id: str) -> RunRow | None:
        """The run, or None where the journal has none of this name."""
        found = self._all(select(schema.runs).where(schema.runs.c.run_id == run_id))
        return RunRow(**found[0]._mapping) if found else None

    def runs(self) -> list[RunRow]:
        """All runs, oldest first."""
        query = select(schema.runs).order_by(schema.runs.c.created, schema.runs.c.run_id)
        return [RunRow(**row._mapping) for row in self._all(query)]

    def problems(self, run_id: str, ids: Collection[str] | None = None) -> dict[str, Problem]:
        """The run's problems by id: all of them, or those of ``ids`` that it has."""
        table = schema.problems
        query = select(table.c.id, table.c.prompt, table.c["columns"]).where(table.c.run_id == run_id)
        if ids is None:
            rows = self._all(query)
        else:
            rows = [row for page in _pages(list(ids)) for row in self._all(query.where(table.c.id.in_(page)))]
        return {id: Problem(id, unpack_prompt(prompt), columns) for id, prompt, columns in rows}

    def samples_at(self, place: Place) -> dict[str, Sample]:
        """The samples drawn at ``place`` by id, group after group; equal to those handed to ``add_samples``."""
        query = select(schema.samples).where(_at(place)).order_by(*_by_place(schema.samples))
        return {row.id: unpack_sample(row) for row in self._all(query)}

    def feedback_at(self, place: Place, samples: Sequence[Sample], kind: str = REWARD) -> Feedback | None:
        """The feedback on ``samples``, in their order; None unless all of them are judged.

        Preferences are those between two of ``samples``. Raises ValueError where they were judged by different rewards.
        """
        table, feedbacks, pairs = schema.judgements, schema.feedbacks, schema.preferences
        with self._engine.connect() as connection:

            def found(query: Select[Any], column: ColumnElement[Any], wanted: Sequence[Any]) -> list[Any]:
                return [row for page in _pages(wanted) for row in connection.execute(query.where(column.in_(page)))]

            # By id and not by place: a rollout asks unit by unit, and must not read all its units each time.
            query = select(table.c.sample_id, table.c.feedback, table.c.rewards, table.c.notes)
            rows = found(query.where(_judged_at(place, kind)), table.c.sample_id, [sample.id for sample in samples])
            judged = {row.sample_id: Judged(*row) for row in rows}
            if not all(sample.id in judged for sample in samples):
                return None
            numbers = sorted({row.feedback for row in judged.values()})
            acts = {
                row.number: Act(tuple(row.parts), tuple(row.weights), row.metrics)
                for row in found(select(feedbacks), feedbacks.c.number, numbers)
            }
            query = select(pairs.c.number, pairs.c.chosen, pairs.c.rejected, pairs.c.weight)
            preferences = sorted(found(query, pairs.c.feedback, numbers), key=lambda row: row.number)
        return merge_feedback(samples, judged, acts, [(row.chosen, row.rejected, row.weight) for row in preferences])

    def reward_parts(self, run_id: str) -> list[str]:
        """The names of all reward parts that the run's samples were judged in, in order of appearance."""
        table = schema.feedbacks
        query = select(table.c.parts).where(table.c.run_id == run_id, table.c.kind == REWARD).order_by(table.c.number)
        return list(dict.fromkeys(part for row in self._all(query) for part in row.parts))

    def checkpoints(self, run_id: str) -> list[CheckpointRow]:
        """The committed checkpoints that are not in quarantine, newest first: a round's end before its steps."""
        table = schema.checkpoints
        query = (
            select(table.c.name, table.c.hash, table.c.round, table.c.step, table.c.created)
            .where(table.c.run_id == run_id, table.c.quarantined.is_(None))
            .order_by(table.c.round.desc(), table.c.step.is_not(None), table.c.step.desc())
        )
        return [CheckpointRow(**row._mapping) for row in self._all(query)]

    def steps(self, run_id: str) -> list[StepRow]:
        """The optimizer steps' metrics, in order."""
        table = schema.steps
        return [
            StepRow(row.round, row.step, row.metrics)
            for row in self._all(_of(table, run_id, table.c.round, table.c.step))
        ]

    def rounds(self, run_id: str) -> list[RoundRow]:
        """The committed rounds, in order."""
        table = schema.rounds
        rows = self._all(_of(table, run_id, table.c.round))
        return [RoundRow(row.round, row.summary, Budget(**row.budget), row.created) for row in rows]

    def decisions(self, run_id: str) -> list[DecisionRow]:
        """The gate's decisions, in order of their rounds."""
        table = schema.decisions
        rows = [dict(row._mapping) for row in self._all(_of(table, run_id, table.c.round))]
        return [DecisionRow(row.pop("round"), Decision(**_without(row, "run_id"))) for row in rows]

    def evaluations(self, run_id: str) -> list[EvaluationRow]:
        """Evaluations by round, stage and split."""
        table = schema.evaluations
        return [
            EvaluationRow(
                row.round,
                row.stage,
                Evaluation(row.split, row.policy_id, np.frombuffer(row.scores, dtype="<f8")),
                (row.low, row.high),
            )
            for row in self._all(_of(table, run_id, table.c.round, table.c.stage, table.c.split))
        ]

    def kept(self, run_id: str) -> set[str]:
        """The ids of all samples that a committed round learned from."""
        return {row.sample_id for row in self._all(_of(schema.kept, run_id))}

    def pass_rates(self, run_id: str, before_round: int, threshold: float) -> dict[str, tuple[int, int, int]]:
        """Of each problem trained on before a round: the last round that drew it, its samples passed, and judged.

        A sample passes with a total reward of at least ``threshold``; one that could not be judged is not counted, nor
        is one that goes on from another: a revision or a lesson says nothing of how hard the problem is.
        """
        samples, judgements = schema.samples, schema.judgements
        judgement = and_(
            judgements.c.run_id == samples.c.run_id, judgements.c.sample_id == samples.c.id, judgements.c.kind == REWARD
        )
        # Weights such as 0.7, 0.2 and 0.1 add up to a hair under 1.
        passed = func.sum(case((judgements.c.total >= threshold - REWARD_ROUNDING, 1), else_=0))
        query = (
            select(samples.c.problem_id, samples.c.round, passed, func.count(judgements.c.total))
            .join_from(samples, judgements, judgement)
            .where(
                samples.c.run_id == run_id,
                samples.c.phase == "train",
                samples.c.round < before_round,
                samples.c.parent.is_(None),
            )
            .group_by(samples.c.problem_id, samples.c.round)
            .order_by(samples.c.round, samples.c.problem_id)
        )
        return {problem_id: (round, passed, judged) for problem_id, round, passed, judged in self._all(query)}

    def drawn(self, run_id: str) -> list[str]:
        """The ids of the problems that samples of training were drawn for, in any round."""
        samples = schema.samples
        chosen = samples.c.run_id == run_id, samples.c.phase == "train", samples.c.parent.is_(None)
        return [row.problem_id for row in self._all(select(samples.c.problem_id).where(*chosen).distinct())]

    def events(self, run_id: str) -> list[EventRow]:
        """Events in the order they happened."""
        table = schema.events
        rows = self._all(_of(table, run_id, table.c.number))
        return [EventRow(row.round, row.level, row.message, row.time) for row in rows]

    def page_samples(
        self,
        run_id: str,
        *,
        phase: str | None = None,
        round: int | None = None,
        problem_id: str | None = None,
        limit: int,
        offset: int = 0,
    ) -> list[SampleRow]:
        """A page of the run's samples by phase, round, step, group and index, filtered where a filter is given."""
        table = schema.samples
        wanted = {"phase": phase, "round": round, "problem_id": problem_id}
        chosen = [table.c[name] == value for name, value in wanted.items() if value is not None]
        page = (
            select(table.c.id)
            .where(table.c.run_id == run_id, *chosen)
            .order_by(*_by_place(table))
            .limit(limit)
            .offset(offset)
        )
        return [_sample_row(row) for row in self._all(_full_samples(run_id).where(table.c.id.in_(page)))]

    def all_samples(self, run_id: str) -> Iterator[SampleRow]:
        """All of the run's samples in the order of ``page_samples``, read as they are asked for."""
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=_BATCH).execute(_full_samples(run_id)):
                yield _sample_row(row)

    def _all(self, query: Select[Any]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _pages(wanted: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts of ``wanted`` that are short enough for one query's IN."""
    return (wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH))


def _of(table: FromClause, run_id: str, *order: ColumnElement[Any]) -> Select[Any]:
    return select(table).where(table.c.run_id == run_id).order_by(*order)


def _without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def _by_place(table: FromClause) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in _ORDER]


def _at(place: Place) -> ColumnElement[bool]:
    table = schema.samples
    return and_(*(table.c[name] == value for name, value in place._asdict().items()))


def _judged_at(place: Place, kind: str) -> ColumnElement[bool]:
    table, samples = schema.judgements, schema.samples
    there = exists().where(samples.c.id == table.c.sample_id, _at(place))
    return and_(table.c.run_id == place.run_id, table.c.kind == kind, there)


def _full_samples(run_id: str) -> Select[Any]:
    samples, problems, judgements, kept = schema.samples, schema.problems, schema.judgements, schema.kept
    problem = and_(problems.c.run_id == samples.c.run_id, problems.c.id == samples.c.problem_id)
    judgement = and_(
        judgements.c.run_id == samples.c.run_id, judgements.c.sample_id == samples.c.id, judgements.c.kind == REWARD
    )
    learned = exists().where(kept.c.run_id == samples.c.run_id, kept.c.sample_id == samples.c.id)
    return (
        select(samples, problems.c.prompt, judgements.c.rewards, judgements.c.total, learned.label("learned"))
        .join_from(samples, problems, problem)
        .join(judgements, judgement, isouter=True)
        .where(samples.c.run_id == run_id)
        .order_by(*_by_place(samples))
    )


def _sample_row(row: Any) -> SampleRow:
    return SampleRow(
        place=Place(row.run_id, row.round, row.step, row.phase),
        prompt=unpack_prompt(row.prompt),
        sample=unpack_sample(row),
        total=None if np.isnan(row.total) else row.total,
        parts=row.rewards or {},
        kept=bool(row.learned),
    )
