"""The journal's tables. A change here needs a new file in ``migrations/versions`` and a higher SCHEMA_VERSION."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import (
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

SCHEMA_VERSION = 1


class ExactText(TypeDecorator[str]):
    """Any Python text, byte for byte. PostgreSQL's text refuses NUL, and both refuse halves of surrogate pairs.

    By hand in SQLite: ``select cast(text as text) from samples``.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else value.decode("utf-8", "surrogatepass")


class ExactJson(TypeDecorator[Any]):
    """JSON around texts from outside, each kept byte for byte."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value.decode("utf-8", "surrogatepass"))


class Json(TypeDecorator[Any]):
    """JSON of names and figures, readable in any SQL shell. NaN and infinity are written as Python writes them."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return json.dumps(value, default=_plain)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class Figure(TypeDecorator[float]):
    """A float whose NaN is NULL (SQLite has no NaN)."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or np.isnan(value) else float(value)

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return float("nan") if value is None else float(value)


class Whole(TypeDecorator[int]):
    """A whole number; SQLite would store NumPy's as bytes."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC as ISO text, which sorts."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value)


def _plain(value: Any) -> Any:
    """The JSON form of what a reward or a row file may hand over; the rest is kept as its text."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def _run(*, key: bool = False) -> Column[str]:
    return Column("run_id", String, ForeignKey("runs.run_id"), primary_key=key, nullable=False)


def _number() -> Column[int]:
    return Column("number", Integer, primary_key=True)


metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("schema_version", Whole, nullable=False),
    Column("kind", String, nullable=False),
    Column("status", String, nullable=False),
    Column("config", Json, nullable=False),
    Column("config_hash", String, nullable=False),
    Column("fingerprint", Json, nullable=False),
    Column("versions", Json, nullable=False),
    Column("threads", Whole, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("updated", UtcTime, nullable=False),
)

problems = Table(
    "problems",
    metadata,
    _run(key=True),
    Column("id", String, primary_key=True),
    Column("prompt", ExactJson, nullable=False),
    Column("columns", ExactJson, nullable=False),
)

samples = Table(
    "samples",
    metadata,
    _run(key=True),
    Column("id", String, primary_key=True),
    Column("phase", String, nullable=False),
    Column("round", Whole, nullable=False),
    Column("step", Whole, nullable=False),
    Column("group", Whole, nullable=False),
    Column("index", Whole, nullable=False),
    Column("problem_id", String, nullable=False),
    Column("policy_id", String, nullable=False),
    Column("parent", String),
    Column("finish_reason", String, nullable=False),
    Column("text", ExactText, nullable=False),
    Column("prompt_ids", LargeBinary, nullable=False),
    Column("token_ids", LargeBinary, nullable=False),
    Column("loss_mask", LargeBinary, nullable=False),
    Column("logps", LargeBinary),
    Column("segments", Json, nullable=False),
    Column("stats", Json, nullable=False),
    ForeignKeyConstraint(["run_id", "problem_id"], ["problems.run_id", "problems.id"]),
    # The id at the end lets a page's rows be found, however far down, without reading the samples before it.
    Index("samples_by_place", "run_id", "phase", "round", "step", "group", "index", "id"),
    Index("samples_by_problem", "run_id", "problem_id", "phase", "round", "step", "group", "index", "id"),
)

feedbacks = Table(
    "feedbacks",
    metadata,
    _number(),
    _run(),
    Column("kind", String, nullable=False),
    Column("parts", Json, nullable=False),
    Column("weights", Json, nullable=False),
    Column("metrics", Json, nullable=False),
    Index("feedbacks_by_kind", "run_id", "kind"),
)

judgements = Table(
    "judgements",
    metadata,
    _run(key=True),
    Column("sample_id", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("feedback", Integer, ForeignKey("feedbacks.number"), nullable=False),
    Column("rewards", Json, nullable=False),
    Column("total", Figure),
    Column("notes", ExactJson, nullable=False),
    ForeignKeyConstraint(["run_id", "sample_id"], ["samples.run_id", "samples.id"]),
)

preferences = Table(
    "preferences",
    metadata,
    _number(),
    _run(),
    Column("feedback", Integer, ForeignKey("feedbacks.number"), nullable=False),
    Column("chosen", String, nullable=False),
    Column("rejected", String, nullable=False),
    Column("weight", Figure),
    ForeignKeyConstraint(["run_id", "chosen"], ["samples.run_id", "samples.id"]),
    ForeignKeyConstraint(["run_id", "rejected"], ["samples.run_id", "samples.id"]),
    Index("preferences_by_feedback", "feedback"),
)

steps = Table(
    "steps",
    metadata,
    _run(key=True),
    Column("round", Whole, primary_key=True),
    Column("step", Whole, primary_key=True),
    Column("metrics", Json, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    _run(key=True),
    Column("round", Whole, primary_key=True),
    Column("summary", Json, nullable=False),
    Column("budget", Json, nullable=False),
    Column("created", UtcTime, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    _run(key=True),
    Column("round", Whole, primary_key=True),
    Column("accepted", Boolean, nullable=False),
    Column("reason", ExactText, nullable=False),
    Column("candidate", Figure),
    Column("incumbent", Figure),
    Column("difference", Figure),
    Column("upper", Figure),
    Column("n", Whole, nullable=False),
    Column("best", Boolean, nullable=False),
    Column("splits", Json, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    _run(key=True),
    Column("round", Whole, primary_key=True),
    Column("stage", String, primary_key=True),
    Column("split", String, primary_key=True),
    Column("policy_id", String, nullable=False),
    Column("mean", Figure),
    Column("low", Figure),
    Column("high", Figure),
    Column("scores", LargeBinary, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _run(key=True),
    Column("name", String, primary_key=True),
    Column("hash", String, nullable=False),
    Column("round", Whole, nullable=False),
    Column("step", Whole),
    Column("created", UtcTime, nullable=False),
    Column("quarantined", ExactText),
)

kept = Table(
    "kept",
    metadata,
    _run(key=True),
    Column("sample_id", String, primary_key=True),
    Column("round", Whole, primary_key=True),
    ForeignKeyConstraint(["run_id", "sample_id"], ["samples.run_id", "samples.id"]),
)

events = Table(
    "events",
    metadata,
    _number(),
    _run(),
    Column("round", Whole),
    Column("level", String, nullable=False),
    Column("message", ExactText, nullable=False),
    Column("time", UtcTime, nullable=False),
    Index("events_by_run", "run_id", "number"),
)
