"""Opening the journal's database: engine, PRAGMAs, transactions, and bringing its tables up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import DatabaseError

from loopwise.errors import ConfigError
from loopwise.runs.files import fsync
from loopwise.runs.schema import SCHEMA_VERSION

WRITES = "loopwise_writes"
MIGRATIONS = Path(__file__).parent / "migrations"
_UNUSABLE = {"SQLITE_NOTADB": "it is no SQLite database", "SQLITE_CORRUPT": "it is damaged"}


def open_engine(path_or_url: str | Path, *, create: bool = False, read_only: bool = False) -> Engine:
    """An engine on an up-to-date journal. A plain path means SQLite; a URL goes to SQLAlchemy as it is.

    A transaction is a writing one where the engine carries the execution option ``WRITES``. Raises ConfigError where
    the file is missing (and ``create`` is false), is no journal, or was written by a newer loopwise.
    """
    place = str(path_or_url)
    url: URL | str = place
    if "://" not in place:
        url = _sqlite_url(Path(path_or_url), create, read_only)
    engine = sqlalchemy.create_engine(url)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, read_only)
    try:
        _bring_up_to_date(engine, place, read_only)
    except DatabaseError as error:
        engine.dispose()
        fault = _UNUSABLE.get(getattr(error.orig, "sqlite_errorname", ""))
        if fault:
            raise ConfigError(f"{place}: cannot be read as a journal: {fault}. Name a run's journal.db.") from error
        raise
    except BaseException:
        engine.dispose()
        raise
    if "://" not in place and create:
        fsync(Path(path_or_url).parent)
    return engine


def _sqlite_url(path: Path, create: bool, read_only: bool) -> URL:
    if not path.is_file() and (read_only or not create):
        raise ConfigError(f"{path}: no such journal. Name the journal.db in a run's folder (its --out).")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist. Create {path.parent} first.")
    if not read_only:
        return URL.create("sqlite", database=str(path))
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "ro", "uri": "true"})


def _prepare_sqlite(engine: Engine, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # sqlite3 would begin its own transactions, too late and only for some
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock at once: one that reads first and then writes fails instead of waiting its turn.
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _bring_up_to_date(engine: Engine, place: str, read_only: bool) -> None:
    with engine.connect() as connection:
        version = _version(connection, place)
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{place}: written by a newer loopwise (schema {version}, this one knows {SCHEMA_VERSION}). "
            "Upgrade loopwise."
        )
    if version == SCHEMA_VERSION:
        return
    if read_only:
        raise ConfigError(
            f"{place}: written by an older loopwise (schema {version}, this one needs {SCHEMA_VERSION}). "
            "Open it once for writing, for example with `loopwise runs resume`."
        )
    upgrade(engine)


def upgrade(engine: Engine) -> None:
    """Run the migrations that the database has not seen, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(connection: Connection, place: str) -> int:
    tables = sqlalchemy.inspect(connection).get_table_names()
    if not tables:
        return 0
    if "alembic_version" not in tables:
        raise ConfigError(f"{place}: a database, but no journal of loopwise. Name a run's journal.db.")
    return int(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one())
