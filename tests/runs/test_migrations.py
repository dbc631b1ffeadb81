"""The migrations lead from an empty file to the tables of ``schema.py``."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from loopwise.runs.database import MIGRATIONS, open_engine
from loopwise.runs.schema import SCHEMA_VERSION, metadata


def test_an_empty_file_becomes_the_schema(tmp_path):
    path = tmp_path / "journal.db"
    path.touch()
    engine = open_engine(path)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == f"{SCHEMA_VERSION:04d}"
    engine.dispose()


def test_the_newest_migration_is_the_schema_version():
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [f"{SCHEMA_VERSION:04d}"]


def test_a_failing_migration_leaves_the_file_empty(tmp_path, monkeypatch):
    path = tmp_path / "journal.db"
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_engine(path, create=True)
    engine = open_engine(path)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_every_table_names_its_run_and_compiles_for_postgresql():
    for table in metadata.tables.values():
        assert "run_id" in table.c
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))
