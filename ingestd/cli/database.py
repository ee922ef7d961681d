"""Databases that are there already, for commands that look and for those of a person's hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Engine, inspect, make_url
from sqlalchemy.orm import Session, sessionmaker

from ingestd import migrate
from ingestd.config import ConfigError, redacted_url
from ingestd.db import make_engine, make_sessions

if TYPE_CHECKING:
    from ingestd.config import Settings


@contextmanager
def reading(settings: Settings) -> Iterator[Session]:
    """A session in which every look sees the same moment.

    Raises ConfigError where there is no database yet, SchemaMismatch for another schema.
    """
    with opened(settings, writer=False) as engine, readers(engine).begin() as session:
        yield session


def readers(engine: Engine) -> sessionmaker[Session]:
    """Sessions that write nothing, each of which sees one moment of the database."""
    options: dict[str, object] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return make_sessions(engine.execution_options(**options))


@contextmanager
def opened(settings: Settings, *, writer: bool) -> Iterator[Engine]:
    """The engine of a database that has our tables; none is made for a command that looks."""
    database = settings.database
    if (file := sqlite_file(database.url)) is not None:
        _refuse_unreadable(file)
    engine = make_engine(
        database.url,
        writer=writer,
        cache_mb=database.sqlite_cache_mb,
        synchronous=database.sqlite_synchronous,
        busy_timeout_seconds=database.busy_timeout_seconds,
    )
    try:
        if migrate.current(engine) is None and not inspect(engine).get_table_names():
            raise ConfigError(
                f"{redacted_url(database.url)} is empty; `ingestd run` or `ingestd once` fills it"
            )
        migrate.ensure_current(engine, database.url)
        yield engine
    finally:
        engine.dispose()


def _refuse_unreadable(file: Path) -> None:
    """SQLite says "unable to open" to both, and not what to do."""
    if not file.exists():
        raise ConfigError(f"{file}: no database yet; `ingestd run` or `ingestd once` makes it")
    if not os.access(file, os.R_OK):
        raise ConfigError(
            f"{file}: uid {os.geteuid()} may not read it; say this as root or as its owner "
            f"(uid {file.stat().st_uid})"
        )


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for any other, and for one in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    if parsed.database == ":memory:" or parsed.database.startswith("file:"):
        return None
    return Path(parsed.database)
