"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _run(*, key: bool = False) -> sa.Column[str]:
    return sa.Column("run_id", sa.String(), sa.ForeignKey("runs.run_id"), primary_key=key, nullable=False)


def _of_sample(column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["run_id", column], ["samples.run_id", "samples.id"])


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(), primary_key=True),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("updated", sa.String(32), nullable=False),
    )
    _create_rollouts()
    _create_rounds()


def _create_rollouts() -> None:
    op.create_table(
        "problems",
        _run(key=True),
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("prompt", sa.LargeBinary(), nullable=False),
        sa.Column("columns", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "samples",
        _run(key=True),
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("group", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("problem_id", sa.String(), nullable=False),
        sa.Column("policy_id", sa.String(), nullable=False),
        sa.Column("parent", sa.String()),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.Column("prompt_ids", sa.LargeBinary(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("loss_mask", sa.LargeBinary(), nullable=False),
        sa.Column("logps", sa.LargeBinary()),
        sa.Column("segments", sa.Text(), nullable=False),
        sa.Column("stats", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "problem_id"], ["problems.run_id", "problems.id"]),
    )
    place = ["phase", "round", "step", "group", "index", "id"]
    op.create_index("samples_by_place", "samples", ["run_id", *place])
    op.create_index("samples_by_problem", "samples", ["run_id", "problem_id", *place])
    op.create_table(
        "feedbacks",
        sa.Column("number", sa.Integer(), primary_key=True),
        _run(),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("parts", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
    )
    op.create_index("feedbacks_by_kind", "feedbacks", ["run_id", "kind"])
    op.create_table(
        "judgements",
        _run(key=True),
        sa.Column("sample_id", sa.String(), primary_key=True),
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("feedback", sa.Integer(), sa.ForeignKey("feedbacks.number"), nullable=False),
        sa.Column("rewards", sa.Text(), nullable=False),
        sa.Column("total", sa.Double()),
        sa.Column("notes", sa.LargeBinary(), nullable=False),
        _of_sample("sample_id"),
    )
    op.create_table(
        "preferences",
        sa.Column("number", sa.Integer(), primary_key=True),
        _run(),
        sa.Column("feedback", sa.Integer(), sa.ForeignKey("feedbacks.number"), nullable=False),
        sa.Column("chosen", sa.String(), nullable=False),
        sa.Column("rejected", sa.String(), nullable=False),
        sa.Column("weight", sa.Double()),
        _of_sample("chosen"),
        _of_sample("rejected"),
    )
    op.create_index("preferences_by_feedback", "preferences", ["feedback"])


def _create_rounds() -> None:
    op.create_table(
        "steps",
        _run(key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("step", sa.Integer(), primary_key=True),
        sa.Column("metrics", sa.Text(), nullable=False),
    )
    op.create_table(
        "rounds",
        _run(key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_table(
        "decisions",
        _run(key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.LargeBinary(), nullable=False),
        sa.Column("candidate", sa.Double()),
        sa.Column("incumbent", sa.Double()),
        sa.Column("difference", sa.Double()),
        sa.Column("upper", sa.Double()),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.Column("splits", sa.Text(), nullable=False),
    )
    op.create_table(
        "evaluations",
        _run(key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("stage", sa.String(), primary_key=True),
        sa.Column("split", sa.String(), primary_key=True),
        sa.Column("policy_id", sa.String(), nullable=False),
        sa.Column("mean", sa.Double()),
        sa.Column("low", sa.Double()),
        sa.Column("high", sa.Double()),
        sa.Column("scores", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "checkpoints",
        _run(key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer()),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("quarantined", sa.LargeBinary()),
    )
    op.create_table(
        "kept",
        _run(key=True),
        sa.Column("sample_id", sa.String(), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        _of_sample("sample_id"),
    )
    op.create_table(
        "events",
        sa.Column("number", sa.Integer(), primary_key=True),
        _run(),
        sa.Column("round", sa.Integer()),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
    )
    op.create_index("events_by_run", "events", ["run_id", "number"])
