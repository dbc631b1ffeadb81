"""The journal: everything a run did, in one database, written by the training process alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from loopwise.errors import ConfigError
from loopwise.runs import schema
from loopwise.runs.database import WRITES, open_engine
from loopwise.runs.export import export_metrics, export_samples
from loopwise.runs.packing import pack_feedback, pack_problem, pack_sample
from loopwise.runs.reading import REWARD, JournalReader
from loopwise.runs.rows import Place
from loopwise.types import Budget, Decision, Evaluation, Feedback, Problem, Sample

__all__ = ["Journal", "Place", "STATUSES"]

STATUSES = ("running", "paused", "failed", "finished")


class Journal(JournalReader):
    """Writes a run's history; reads it through its base. Each call is one transaction: all of it happened or none."""

    def __init__(self, engine: Engine, *, read_only: bool = False) -> None:
        super().__init__(engine)
        self._writer = None if read_only else engine.execution_options(**{WRITES: True})
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    @classmethod
    def open(cls, path_or_url: str | Path, *, create: bool = False, read_only: bool = False) -> Self:
        """Open the journal in a SQLite file, or behind a SQLAlchemy URL, and bring its tables up to date.

        Raises ConfigError where the file is missing and ``create`` is false, is no journal, or is of a newer loopwise.
        """
        return cls(open_engine(path_or_url, create=create, read_only=read_only), read_only=read_only)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_run(
        self,
        run_id: str,
        kind: str,
        config: Mapping[str, Any],
        config_hash: str,
        fingerprint: Mapping[str, Any],
        versions: Mapping[str, Any],
        threads: int,
    ) -> None:
        """Begin a run, with status running. Raises ConfigError where the journal has one of this name."""
        now = datetime.now(UTC)
        row = {
            "run_id": run_id,
            "schema_version": schema.SCHEMA_VERSION,
            "kind": kind,
            "status": "running",
            "config": config,
            "config_hash": config_hash,
            "fingerprint": fingerprint,
            "versions": versions,
            "threads": threads,
            "created": now,
            "updated": now,
        }
        try:
            with self._writing() as connection:
                connection.execute(insert(schema.runs).values(row))
        except IntegrityError:
            raise ConfigError(
                f'the journal has a run "{run_id}" already. Resume it, or name the new one otherwise.'
            ) from None

    def set_status(self, run_id: str, status: str) -> None:
        """Set a run's status, one of STATUSES."""
        if status not in STATUSES:
            raise ValueError(f'status "{status}": expected one of {", ".join(STATUSES)}')
        with self._writing() as connection:
            changed = connection.execute(
                update(schema.runs)
                .where(schema.runs.c.run_id == run_id)
                .values(status=status, updated=datetime.now(UTC))
            )
            if changed.rowcount == 0:
                raise ConfigError(f'the journal has no run "{run_id}". `loopwise runs list` shows those it has.')

    def add_problems(self, run_id: str, problems: Sequence[Problem]) -> None:
        """Add problems; one whose id is there already is left as it is."""
        if not problems:
            return
        with self._writing() as connection:
            rows = [pack_problem(run_id, problem) for problem in problems]
            connection.execute(self._insert(schema.problems).on_conflict_do_nothing(), rows)

    def add_samples(self, place: Place, samples: Sequence[Sample]) -> None:
        """Add freshly drawn samples. Raises ValueError, adding none, where an id is there already."""
        rows = [pack_sample(place, sample) for sample in samples]
        if not rows:
            return
        try:
            with self._writing() as connection:
                connection.execute(insert(schema.samples), rows)
        except IntegrityError as error:
            raise ValueError(
                f"{place}: a sample is journaled already, or its problem is not yet ({error.orig}). "
                "Read samples_at before drawing, and add_problems before add_samples."
            ) from error

    def add_feedback(self, place: Place, samples: Sequence[Sample], feedback: Feedback, kind: str = REWARD) -> None:
        """Add what was said about ``samples``, drawn at ``place``.

        ``kind`` tells apart independent judges of the same samples. Raises ValueError, adding nothing, where feedback
        and samples do not fit, or a sample has feedback of this kind already.
        """
        rows = pack_feedback(place.run_id, samples, feedback)
        if not rows:
            return
        ids = [sample.id for sample in samples]
        act = {
            "run_id": place.run_id,
            "kind": kind,
            "parts": feedback.parts,
            "weights": feedback.weights,
            "metrics": feedback.metrics,
        }
        try:
            with self._writing() as connection:
                adding = insert(schema.feedbacks).values(act).returning(schema.feedbacks.c.number)
                number = connection.execute(adding).scalar_one()
                common = {"run_id": place.run_id, "feedback": number}
                connection.execute(insert(schema.judgements), [row | common | {"kind": kind} for row in rows])
                pairs = [
                    common | {"chosen": ids[pair.chosen], "rejected": ids[pair.rejected], "weight": pair.weight}
                    for pair in feedback.preferences
                ]
                if pairs:
                    connection.execute(insert(schema.preferences), pairs)
        except IntegrityError as error:
            raise ValueError(
                f"{place}: a sample has {kind} feedback already, or is not journaled yet ({error.orig}). "
                "Ask feedback_at before judging, and add_samples before add_feedback."
            ) from error

    def commit_round(
        self,
        run_id: str,
        *,
        round: int,
        summary: Mapping[str, Any],
        decision: Decision | None,
        checkpoint: tuple[str, str],
        step_metrics: Sequence[tuple[int, Mapping[str, Any]]],
        kept: Sequence[str],
        budget: Budget,
    ) -> None:
        """Commit a round whose ``checkpoint`` (name, hash) lies on the disk: from now on resume starts after it.

        ``kept`` are the samples it learned from, ``budget`` what the run has spent. A round committed again (its
        checkpoint was damaged and it was run once more) replaces what it said before.
        """
        key = {"run_id": run_id, "round": round}
        with self._writing() as connection:
            row = key | {"summary": summary, "budget": asdict(budget), "created": datetime.now(UTC)}
            self._replace(connection, schema.rounds, [row])
            for table in (schema.kept, schema.decisions):
                connection.execute(delete(table).where(table.c.run_id == run_id, table.c.round == round))
            if kept:
                rows = [key | {"sample_id": sample_id} for sample_id in dict.fromkeys(kept)]
                connection.execute(insert(schema.kept), rows)
            if decision is not None:
                connection.execute(insert(schema.decisions).values(key | asdict(decision)))
            self._commit_steps(connection, run_id, round, step_metrics, checkpoint, None)

    def commit_progress(
        self,
        run_id: str,
        *,
        round: int,
        step: int,
        checkpoint: tuple[str, str],
        step_metrics: Sequence[tuple[int, Mapping[str, Any]]],
    ) -> None:
        """Commit a checkpoint (name, hash) of ``step`` steps into a round: from now on resume starts there."""
        with self._writing() as connection:
            self._commit_steps(connection, run_id, round, step_metrics, checkpoint, step)

    def quarantine(self, run_id: str, name: str, reason: str) -> None:
        """Mark a checkpoint as damaged, so that ``checkpoints`` leaves it out, and note it among the events."""
        table = schema.checkpoints
        where = (table.c.run_id == run_id, table.c.name == name)
        with self._writing() as connection:
            number = connection.execute(select(table.c.round).where(*where)).scalar_one()
            connection.execute(update(table).where(*where).values(quarantined=reason))
            _add_event(connection, run_id, number, "warning", f"checkpoint {name} is in quarantine: {reason}")

    def add_evaluation(
        self, run_id: str, round: int, stage: str, evaluation: Evaluation, interval: tuple[float, float]
    ) -> None:
        """Add the scores of a stage on a split, or replace those of this round, stage and split."""
        low, high = interval
        row = {
            "run_id": run_id,
            "round": round,
            "stage": stage,
            "split": evaluation.split,
            "policy_id": evaluation.policy_id,
            "mean": evaluation.mean,
            "low": low,
            "high": high,
            "scores": evaluation.scores.astype("<f8").tobytes(),
        }
        with self._writing() as connection:
            self._replace(connection, schema.evaluations, [row])

    def add_event(self, run_id: str, round: int | None, level: str, message: str) -> None:
        """Note something a person may want to know of. ``level`` is info, warning or error."""
        with self._writing() as connection:
            _add_event(connection, run_id, round, level, message)

    def export_metrics(self, run_id: str, path: Path) -> None:
        """Write ``metrics.jsonl``; see ``export.export_metrics``."""
        export_metrics(self, run_id, path)

    def export_samples(self, run_id: str, path: Path) -> None:
        """Write the samples as Parquet; see ``export.export_samples``."""
        export_samples(self, run_id, path)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._writer is None:
            raise ConfigError("the journal was opened for reading only. Open it with read_only=False.")
        with self._writer.begin() as connection:
            yield connection

    def _commit_steps(
        self,
        connection: Connection,
        run_id: str,
        round: int,
        step_metrics: Sequence[tuple[int, Mapping[str, Any]]],
        checkpoint: tuple[str, str],
        step: int | None,
    ) -> None:
        name, checkpoint_hash = checkpoint
        now = datetime.now(UTC)
        rows = [{"run_id": run_id, "round": round, "step": at, "metrics": metrics} for at, metrics in step_metrics]
        if rows:
            self._replace(connection, schema.steps, rows)
        row = {"run_id": run_id, "name": name, "hash": checkpoint_hash, "round": round, "step": step, "created": now}
        self._replace(connection, schema.checkpoints, [row | {"quarantined": None}])
        connection.execute(update(schema.runs).where(schema.runs.c.run_id == run_id).values(updated=now))

    def _replace(self, connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
        statement = self._insert(table)
        keys = [column.name for column in table.primary_key]
        changed = {column.name: statement.excluded[column.name] for column in table.c if column.name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def _add_event(connection: Connection, run_id: str, round: int | None, level: str, message: str) -> None:
    row = {"run_id": run_id, "round": round, "level": level, "message": message, "time": datetime.now(UTC)}
    connection.execute(insert(schema.events).values(row))
