"""Engines and sessions for SQLite and PostgreSQL, tuned for one writer and many readers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.orm import Session, sessionmaker


class RawJson(str):
    """JSON text that was validated already and goes to the database as it stands."""

    __slots__ = ()


def dump_json(value: Any) -> str:
    """Serialise a JSON column; `RawJson` passes through byte for byte."""
    if isinstance(value, RawJson):
        return str.__str__(value)
    return orjson.dumps(value).decode()


def make_engine(
    url: str,
    *,
    writer: bool = False,
    cache_mb: int = 64,
    synchronous: str = "FULL",
    busy_timeout_seconds: float = 60,
) -> Engine:
    """Open a database by its URL.

    A `writer` on SQLite takes the write lock when its transaction begins, so
    that a read followed by a write can never fail half-way as "locked".
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            json_serializer=dump_json,
            pool_pre_ping=True,
        )
    engine = create_engine(
        parsed,
        json_serializer=dump_json,
        connect_args={"timeout": busy_timeout_seconds},
    )
    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"
    _tune_sqlite(engine, begin=begin, cache_mb=cache_mb, synchronous=synchronous)
    return engine


def _tune_sqlite(engine: Engine, *, begin: str, cache_mb: int, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        # The driver's own transaction handling would commit before DDL and
        # begin late; SQLAlchemy says when a transaction begins (below).
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            f"cache_size = {-1024 * cache_mb}",
            # What a recount sorts or collects may be large: it spills to disk.
            "temp_store = FILE",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after their commit."""
    return sessionmaker(engine, expire_on_commit=False)


def is_postgresql(session: Session) -> bool:
    """Say whether this session talks to PostgreSQL (else SQLite)."""
    return session.get_bind().dialect.name == "postgresql"


AnyRow = Any
"""A row of a result; the parameters of SQLAlchemy's own type differ between 2.0 and 2.1."""

Clock = Callable[[], datetime]
"""Tells the present time in UTC; given as an argument so that tests can set it."""
