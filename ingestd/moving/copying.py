"""A database copied whole into another one, SQLite or PostgreSQL, in flat memory.

One snapshot of the source is read table by table and written in the order in which tables
refer to each other. Then the copy is read back, and every row compared by a digest that does
not depend on how a database writes JSON, times or keys.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import (
    JSON,
    Connection,
    Engine,
    Table,
    Text,
    cast,
    func,
    insert,
    literal,
    make_url,
    select,
    text,
)

from ingestd import migrate
from ingestd.db import RawJson, empty_wal, make_engine
from ingestd.errors import NotMoved
from ingestd.models import AuditLog, Base, FileProcessing, table_of
from ingestd.moving.place import give_to_owner_of_its_folder, made_whole

Progress = Callable[[str, int, int], None]
"""Is told the stage, how much is done, and of how much (0: nobody knows)."""

_ROWS_AT_ONCE = 100  # a row may hold a voters list of megabytes
_ROWS_IN_COMMIT = 5_000
_CACHE_MB = 8  # rows come in the order of their keys: no page is needed twice
_DIGEST_BYTES = 16
_DIGESTS = 1 << (8 * _DIGEST_BYTES)


@dataclass(slots=True)
class Digest:
    """How many rows a table has, and the sum of their hashes, whatever their order."""

    rows: int = 0
    total: int = 0

    def add(self, row: Iterable[object]) -> None:
        """Count one row; JSON comes as text."""
        plain = orjson.dumps([_plain(value) for value in row])
        found = hashlib.blake2b(plain, digest_size=_DIGEST_BYTES).digest()
        self.rows += 1
        self.total = (self.total + int.from_bytes(found, "big")) % _DIGESTS


@dataclass(slots=True)
class Copied:
    """What was copied: a digest of each table, and whether the source went on meanwhile."""

    tables: dict[str, Digest] = field(default_factory=dict)
    is_behind: bool = False

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables.values())


def copy(source: Engine, url: str, *, on_progress: Progress) -> Copied:
    """Copy a database whose schema is this program's; the target has nothing, or empty tables.

    Raises:
        NotMoved: the target is not empty, or what was read back is not what was written.
    """
    copied = Copied()
    with _snapshot(source) as reading:
        before = _latest(reading)
        with _target(url) as writing:
            for table in Base.metadata.sorted_tables:
                copied.tables[table.name] = _copy_table(table, reading, writing, on_progress)
            for table in Base.metadata.sorted_tables:
                _compare(table, writing, copied.tables[table.name], on_progress)
    with _snapshot(source) as reading:
        copied.is_behind = before != _latest(reading)
    return copied


@contextmanager
def _snapshot(source: Engine) -> Iterator[Connection]:
    """Every look sees the same moment; no writer waits for it."""
    options: dict[str, Any] = {}
    if source.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with source.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def _latest(reading: Connection) -> tuple[object, ...]:
    """What changes with every file and every deed: tells whether somebody was at work."""
    jobs, deeds = table_of(FileProcessing), table_of(AuditLog)
    counted = select(func.count(), func.max(jobs.c.updated_at)).select_from(jobs)
    done = select(func.count()).select_from(deeds)
    return (*reading.execute(counted).one(), reading.scalar(done))


# Tables -------------------------------------------------------------------------------------


def _copy_table(
    table: Table, reading: Connection, writing: Connection, on_progress: Progress
) -> Digest:
    digest = Digest()
    total = reading.scalar(select(func.count()).select_from(table)) or 0
    rows = _told(_rows(reading, table, digest), f"copying {table.name}", digest, total, on_progress)
    if writing.dialect.name == "postgresql":
        _copy_in(table, writing, rows)
    else:
        _insert(table, writing, rows)
    return digest


def _compare(table: Table, writing: Connection, wanted: Digest, on_progress: Progress) -> None:
    found = Digest()
    rows = _rows(writing, table, found)
    for _row in _told(rows, f"reading back {table.name}", found, wanted.rows, on_progress):
        pass
    if found != wanted:
        raise NotMoved(
            f"the copy of {table.name} is not what was read ({found.rows} rows of {wanted.rows}); "
            "nothing was left there: try again, and look at the disk and its memory"
        )


def _rows(reading: Connection, table: Table, digest: Digest) -> Iterator[Sequence[Any]]:
    """All rows in the order of their keys, JSON as the text that the database gives."""
    columns = [
        cast(column, Text).label(column.name) if isinstance(column.type, JSON) else column
        for column in table.columns
    ]
    query = select(*columns).order_by(*table.primary_key)
    for row in reading.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE}):
        digest.add(_canonical(table, row))
        yield row


def _told(
    rows: Iterator[Sequence[Any]], stage: str, digest: Digest, total: int, on_progress: Progress
) -> Iterator[Sequence[Any]]:
    on_progress(stage, 0, total)
    for row in rows:
        if digest.rows % _ROWS_AT_ONCE == 0:
            on_progress(stage, digest.rows, total)
        yield row


def _copy_in(table: Table, writing: Connection, rows: Iterator[Sequence[Any]]) -> None:
    """PostgreSQL's COPY takes several times as many rows a second as any INSERT."""
    from psycopg.sql import SQL, Identifier  # noqa: PLC0415 - only where PostgreSQL is used

    names = SQL(", ").join(Identifier(column.name) for column in table.columns)
    statement = SQL("COPY {} ({}) FROM STDIN").format(Identifier(table.name), names)
    driver: Any = writing.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy(statement) as copying:
        for row in rows:
            copying.write_row(row)


def _insert(table: Table, writing: Connection, rows: Iterator[Sequence[Any]]) -> None:
    names = [column.name for column in table.columns]
    json = {column.name for column in table.columns if isinstance(column.type, JSON)}
    statement, held = insert(table), 0
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        values = [dict(zip(names, row, strict=True)) for row in some]
        for each in values:
            each.update({name: RawJson(each[name]) for name in json if each[name] is not None})
        writing.execute(statement, values)
        held += len(some)
        if held >= _ROWS_IN_COMMIT:  # else SQLite's log grows as large as the database
            writing.commit()
            held = 0
    writing.commit()


def _canonical(table: Table, row: Sequence[Any]) -> Iterator[object]:
    for column, value in zip(table.columns, row, strict=True):
        if value is not None and isinstance(column.type, JSON):
            yield _canonical_json(value)
        else:
            yield value


def _canonical_json(told: str) -> str:
    """Mean the same, be the same: jsonb orders keys and writes numbers in its own way."""
    try:
        return orjson.dumps(orjson.loads(told), option=orjson.OPT_SORT_KEYS).decode()
    except ValueError:
        return told


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case uuid.UUID():
            return value.hex
        case bytes() | memoryview():
            return bytes(value).hex()
    return value


# Targets ------------------------------------------------------------------------------------


@contextmanager
def _target(url: str) -> Iterator[Connection]:
    """A database with empty tables; what was written stays only if the block ends well."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        with _on_postgresql(url) as connection:
            yield connection
        return
    with made_whole(Path(parsed.database or "")) as partial:
        at = parsed.set(database=str(partial)).render_as_string(hide_password=False)
        migrate.upgrade(at)
        # It is synced when it is whole.
        engine = make_engine(at, writer=True, synchronous="OFF", cache_mb=_CACHE_MB)
        try:
            with engine.connect() as connection:
                with _without_indexes(connection):
                    yield connection
                connection.commit()
            empty_wal(engine)
        finally:
            engine.dispose()
        give_to_owner_of_its_folder(partial)


@contextmanager
def _on_postgresql(url: str) -> Iterator[Connection]:
    engine = make_engine(url, writer=True)
    try:
        migrate.ensure_current(engine, url)
        with engine.begin() as connection:
            _take_empty(connection)
            with _without_indexes(connection):
                yield connection
        with engine.begin() as connection:
            connection.execute(text("ANALYZE"))
    finally:
        engine.dispose()


def _take_empty(connection: Connection) -> None:
    """Keep everybody else from writing until the end; see that nobody has written before."""
    quote = connection.dialect.identifier_preparer.quote
    names = ", ".join(quote(table.name) for table in Base.metadata.sorted_tables)
    connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    for table in Base.metadata.sorted_tables:
        if connection.scalar(select(literal(1)).select_from(table).limit(1)) is not None:
            raise NotMoved(
                f"{connection.engine.url.database} is not empty: {table.name} has rows; "
                "name a database that has none"
            )


@contextmanager
def _without_indexes(connection: Connection) -> Iterator[None]:
    """An index that is made in one go is smaller, and costs less than row by row."""
    indexes = [index for table in Base.metadata.sorted_tables for index in table.indexes]
    for index in indexes:
        index.drop(connection)
    yield
    for index in indexes:
        index.create(connection)
