"""Engines and sessions for SQLite and PostgreSQL, tuned for one writer and many readers."""

from __future__ import annotations

import math
import select
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson
from sqlalchemy import (
    JSON,
    URL,
    ColumnElement,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from ingestd.errors import StorageFault

T = TypeVar("T")


class RawJson(str):
    """JSON text that was validated already and goes to the database as it stands."""

    __slots__ = ()


def dump_json(value: Any) -> str:
    """Serialise a JSON column; `RawJson` passes through byte for byte."""
    if isinstance(value, RawJson):
        return str.__str__(value)
    return orjson.dumps(value).decode()


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a daemon waits for its database before it gives the attempt up.

    `answer_seconds` is for one statement; `give_up` is asked a few times a
    second while it waits, and True ends the wait at once.
    """

    answer_seconds: float = 600
    give_up: Callable[[], bool] = _never


def make_engine(
    url: str,
    *,
    writer: bool = False,
    cache_mb: int = 48,
    synchronous: str = "FULL",
    busy_timeout_seconds: float = 60,
    patience: Patience | None = None,
) -> Engine:
    """Open a database by its URL.

    A `writer` on SQLite takes the write lock when its transaction begins, so
    that a read followed by a write can never fail half-way as "locked". With
    `patience` no statement and no lock is waited for without end.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return _postgresql(parsed, busy_timeout_seconds, patience)
    engine = create_engine(
        parsed,
        json_serializer=dump_json,
        connect_args={
            "timeout": busy_timeout_seconds
            if patience is None
            else min(busy_timeout_seconds, _SQLITE_WAIT_SECONDS)
        },
    )
    _tune_sqlite(engine, cache_mb=cache_mb, synchronous=synchronous)
    if patience is not None:
        _stay_with_file(engine, parsed.database)
        _interrupt(engine, patience.give_up)
    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"
    _begin_by(engine, begin, busy_timeout_seconds, patience)
    return engine


# SQLite -------------------------------------------------------------------------------------

# While SQLite itself waits for a lock no signal is heeded: it waits in short turns.
_SQLITE_WAIT_SECONDS = 0.25
_INSTRUCTIONS_BETWEEN_LOOKS = 200_000


def _tune_sqlite(engine: Engine, *, cache_mb: int, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        # The driver's own transaction handling would commit before DDL and
        # begin late; SQLAlchemy says when a transaction begins (below).
        connection.isolation_level = None
        for pragma in (
            # Of a new database: a row takes 2 to 3 kB, and where only one fits into a page nearly
            # half of it stays empty.
            "page_size = 8192",
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            f"cache_size = {-1024 * cache_mb}",
            # Of our pages: the commit that makes the log 32 MB long copies it, unless a daemon has
            # done so before, beside its commits.
            "wal_autocheckpoint = 4096",
            # What a recount sorts or collects may be large: it spills to disk.
            "temp_store = FILE",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")


def _begin_by(
    engine: Engine, begin: str, busy_timeout_seconds: float, patience: Patience | None
) -> None:
    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        until = time.monotonic() + busy_timeout_seconds
        while True:
            try:
                connection.exec_driver_sql(begin)
            except OperationalError as error:
                is_over = patience is None or patience.give_up() or time.monotonic() >= until
                if is_over or sqlite_code(error.orig) != sqlite3.SQLITE_BUSY:
                    raise
            else:
                return


def _interrupt(engine: Engine, give_up: Callable[[], bool]) -> None:
    """End a statement that outlasts the daemon's stop."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        connection.set_progress_handler(give_up, _INSTRUCTIONS_BETWEEN_LOOKS)


def _stay_with_file(engine: Engine, database: str | None) -> None:
    """Notice when the path no longer is the file that is open.

    SQLite goes on writing into a file that was deleted, and makes a new and
    empty one for the next connection.
    """
    path = Path(database or "")
    known: set[tuple[int, int]] = set()

    def look() -> None:
        if known and _identity(path) not in known:
            message = (
                f"the database {path} was deleted or replaced while it was open; put the very "
                "file back, or stop ingestd, put a copy there and start it again"
            )
            raise StorageFault(message)

    @event.listens_for(engine, "do_connect")
    def before_connect(*_arguments: object) -> None:
        look()

    @event.listens_for(engine, "connect")
    def on_connect(_connection: Any, _record: object) -> None:
        if not known and (identity := _identity(path)):
            known.add(identity)

    @event.listens_for(engine, "begin")
    def on_begin(_connection: Connection) -> None:
        look()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def sqlite_code(error: BaseException | None) -> int | None:
    """The primary result code of SQLite, such as `sqlite3.SQLITE_BUSY`; None for all else."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def wal_bytes(engine: Engine) -> int:
    """How large SQLite's write-ahead log is; 0 where there is none."""
    if engine.dialect.name != "sqlite":
        return 0
    try:
        return Path(f"{engine.url.database}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def backfill(connection: PoolProxiedConnection) -> None:
    """Copy SQLite's write-ahead log into the database, as far as no reader is in the way."""
    with closing(connection.cursor()) as cursor:
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")


def empty_wal(engine: Engine) -> bool:
    """Copy SQLite's write-ahead log into the database and cut it; False while a reader pins it."""
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            answer = cursor.fetchone()
        except sqlite3.OperationalError:
            return False
    is_busy: int = answer[0] if answer else 1
    return not is_busy


# PostgreSQL ---------------------------------------------------------------------------------

GROWTH = 4  # so many times as large, and a table deserves other plans
_LEAST_PAGES = 4
_GROWN = text(
    "SELECT relname, pg_relation_size(pg_class.oid) / 8192 AS pages FROM pg_class"
    " WHERE pg_class.oid IN (SELECT to_regclass(quote_ident(name))"
    " FROM unnest(CAST(:names AS text[])) AS name)"
    " AND pg_relation_size(pg_class.oid) / 8192 > :growth * greatest(relpages, :least)"
)


def grown_tables(engine: Engine, names: Sequence[str]) -> list[tuple[str, int]]:
    """Which of these tables have grown since PostgreSQL last looked, and to how many pages."""
    with engine.begin() as connection:
        asked = {"names": list(names), "growth": GROWTH, "least": _LEAST_PAGES}
        return [(row.relname, row.pages) for row in connection.execute(_GROWN, asked)]


def analyze(engine: Engine, table: Table) -> None:
    """Let PostgreSQL look at a table, and plan anew what was planned for it.

    It need not look at JSON, which no statement looks for rows by, and which takes longer than
    all the rest.
    """
    quote = engine.dialect.identifier_preparer.quote
    names = [column.name for column in table.columns if not isinstance(column.type, JSON)]
    columns = ", ".join(map(quote, names))
    with engine.begin() as connection:
        connection.execute(text(f"ANALYZE {quote(table.name)} ({columns})"))


# A connection whose other end is gone without a word is noticed within a minute. What the URL
# says wins.
_NOTICED = {
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
_READ_ONLY = "25006"
_IDLE_SINCE = "ingestd_idle_since"
_TRUSTED_SECONDS = 0.5
_LOOK_MS = 100


def _postgresql(url: URL, busy_timeout_seconds: float, patience: Patience | None) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        json_serializer=dump_json,
        connect_args={name: value for name, value in _NOTICED.items() if name not in url.query},
    )

    @event.listens_for(engine, "handle_error")
    def on_error(context: ExceptionContext) -> None:
        if _is_read_only(context.original_exception):
            context.is_disconnect = True

    _ask_idle_ones(engine)
    if patience is not None:
        _answer_or_leave(engine, patience)
        _limit_sessions(engine, busy_timeout_seconds, patience.answer_seconds)
    return engine


def _is_read_only(error: BaseException) -> bool:
    """After a fail-over a connection stays with the server that was the primary."""
    return getattr(error, "sqlstate", None) == _READ_ONLY


@contextmanager
def driver_at_work(connection: Connection) -> Iterator[Any]:
    """The driver's own connection, for what SQLAlchemy has no words for, such as COPY.

    Raises:
        DBAPIError: as for any other statement, so that who catches it learns whose fault it is.
    """
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - a connection in use has one
    raised = connection.dialect.loaded_dbapi.Error
    try:
        yield driver
    except raised as error:
        is_lost = _is_read_only(error) or connection.dialect.is_disconnect(error, driver, None)
        if is_lost:
            # Or the rollback would be tried on it, and tell of a connection that is closed.
            connection.invalidate(error)
        told = DBAPIError.instance(
            None, None, error, raised, connection_invalidated=is_lost, dialect=connection.dialect
        )
        raise told from error


def _ask_idle_ones(engine: Engine) -> None:
    """Ask a connection that lay idle whether it still lives; one used a moment ago will tell."""

    @event.listens_for(engine, "checkin")
    def on_checkin(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_IDLE_SINCE] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def on_checkout(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        if time.monotonic() - record.info.get(_IDLE_SINCE, math.inf) < _TRUSTED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # The pool then opens another.
            raise DisconnectionError(str(error)) from error


def _limit_sessions(engine: Engine, lock_seconds: float, answer_seconds: float) -> None:
    """Let the server, too, end what takes too long: it holds our locks until it does."""
    limits = {
        "lock_timeout": lock_seconds,
        "statement_timeout": answer_seconds,
        # A process that is stopped, or a host that is gone, keeps others waiting.
        "idle_in_transaction_session_timeout": lock_seconds,
    }

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: object) -> None:
        for name, seconds in limits.items():
            milliseconds = str(max(1, round(seconds * 1000)))
            connection.execute("SELECT set_config(%s, %s, false)", (name, milliseconds))
        connection.commit()


def _answer_or_leave(engine: Engine, patience: Patience) -> None:
    """Leave a server that takes statements but never answers: a hung host, proxy or disk."""
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is used

    class Answered(psycopg.Connection[Any]):
        left_because = ""

        # Instead of psycopg's own, which waits for ever.
        def wait(self, gen: Generator[int, Any, T], *_rest: Any, **_more: Any) -> T:
            if self.left_because:
                # Whoever cleans up after the first error must not hide it behind "is closed".
                gen.close()
                raise psycopg.OperationalError(self.left_because)
            try:
                return _wait(gen, self.pgconn.socket, patience)
            except TimeoutError as late:
                gen.close()
                self.left_because = str(late)
                self.close()
                raise psycopg.OperationalError(self.left_because) from late

    @event.listens_for(engine, "do_connect")
    def on_connect(
        _dialect: object, _record: object, arguments: list[Any], named: dict[str, Any]
    ) -> psycopg.Connection[Any]:
        if patience.give_up():
            raise psycopg.OperationalError("a stop was asked for; the database was not asked again")
        return Answered.connect(*arguments, **named)


# As psycopg spells what it waits for and what has come.
_READ, _WRITE = 1, 2


def _wait(wishes: Generator[int, Any, T], socket: int, patience: Patience) -> T:
    """Do what psycopg wishes for until it is done.

    Raises:
        TimeoutError: the other end said nothing for too long, or nobody wants to wait for it.
    """
    poll = select.poll()
    try:
        wish = next(wishes)
        while True:
            read = select.POLLIN if wish & _READ else 0
            write = select.POLLOUT if wish & _WRITE else 0
            poll.register(socket, read | write)
            wish = wishes.send(_happened(poll, patience))
    except StopIteration as end:
        value: T = end.value
        return value


def _happened(poll: select.poll, patience: Patience) -> int:
    until = time.monotonic() + patience.answer_seconds
    while not (events := poll.poll(_LOOK_MS)):
        if time.monotonic() >= until:
            message = f"no answer within {patience.answer_seconds:g} s"
            raise TimeoutError(message)
        if patience.give_up():
            raise TimeoutError("a stop was asked for; this answer was not waited for")
    happened = events[0][1]
    if happened == select.POLLIN:
        return _READ
    # An error shows when libpq reads or writes.
    return _WRITE if happened == select.POLLOUT else _READ | _WRITE


# Statements ---------------------------------------------------------------------------------


def not_searched(column: ColumnElement[str]) -> ColumnElement[str]:
    """A text to filter by without an index.

    SQLite keeps no statistics: of the state of a job and its constituency it takes the index by the
    state, in which nearly all jobs are alike, and reads the whole ledger for each file.
    """
    return column.concat("")


# Sessions -----------------------------------------------------------------------------------


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
