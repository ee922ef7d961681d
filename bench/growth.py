"""A large table from a small one: copies of one constituency that ingestd took in.

Each copy has the rows, hours and jobs of the first under ids that begin with four other bytes, as
the ids of another constituency would; the JSON of its ballots is left out, so that ten million
rows fit a small disk. What a step of ingestd reads by index or counts is all there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from itertools import islice

import psycopg
from psycopg.sql import SQL
from sqlalchemy import Column, LargeBinary, Table, Uuid

from bench.databases import ask, dsn_of, file_of, is_postgresql
from ingestd.models import Constituency, FileProcessing, HourlyStats, Transaction, table_of

TABLES: Sequence[Table] = tuple(
    map(table_of, (Constituency, FileProcessing, Transaction, HourlyStats))
)
COPIES_A_COMMIT = 20
# What names a file or a constituency: else every copy would be found under the names of the first.
_NAMED = ("contract_id", "sha256", "container_sha256", "path", "stamp")
_LEFT_OUT = ("raw_data", "operation_data")
_SHARED = ("election_id",)


def grow(url: str, *, to_rows: int) -> int:
    """Copy the first constituency until the table holds so many rows; gives their number."""
    ((template, rows),) = ask(
        url,
        'SELECT constituency_id, count(*) FROM "transaction" GROUP BY 1'
        " ORDER BY count(*) DESC LIMIT 1",
    )
    ((held,),) = ask(url, 'SELECT count(*) FROM "transaction"')
    assert isinstance(held, int)  # noqa: S101 - a count is a number
    assert isinstance(rows, int)  # noqa: S101
    prefixes = _prefixes(first=held // rows, last=-(-to_rows // rows))
    if is_postgresql(url):
        _grow_postgresql(url, str(template), prefixes)
    else:
        _grow_sqlite(url, str(template), prefixes)
    ((held,),) = ask(url, 'SELECT count(*) FROM "transaction"')
    assert isinstance(held, int)  # noqa: S101
    return held


def statements(*, postgresql: bool) -> list[str]:
    """One for each table; `:prefix` is eight hex digits, `:number` their first six as a number."""
    return [_statement(table, postgresql=postgresql) for table in TABLES]


def _statement(table: Table, *, postgresql: bool) -> str:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    values = ", ".join(_value(column, postgresql=postgresql) for column in table.columns)
    where = "id" if table.name == "constituency" else "constituency_id"
    order = ' ORDER BY "timestamp"' if table.name == "transaction" else ""
    # ruff: noqa: S608 - made of our own columns
    return (
        f'INSERT INTO "{table.name}" ({names}) SELECT {values} FROM "{table.name}"'
        f" WHERE {where} = :template{order}"
    )


def _value(column: Column[object], *, postgresql: bool) -> str:
    name = f'"{column.name}"'
    if column.name in _LEFT_OUT:
        return "'[]'"
    if column.name in _SHARED:
        return name
    if isinstance(column.type, Uuid):
        other = f"substr({name}::text, 9)" if postgresql else f"substr({name}, 9)"
        return f"(:prefix || {other})::uuid" if postgresql else f":prefix || {other}"
    if column.name in _NAMED:
        return f":prefix || substr({name}, 9)"
    if column.name == "voter_key":
        # Three bytes of the constituency, five of the sender.
        number = ":number::bigint" if postgresql else ":number"
        return f"({number} << 40) | ({name} & 1099511627775)"
    if isinstance(column.type, LargeBinary):
        return name
    return name


def _prefixes(*, first: int, last: int) -> Iterator[str]:
    """Eight hex digits for each copy, spread like the hashes of contracts."""
    return (sha256(f"copy {number}".encode()).hexdigest()[:8] for number in range(first, last))


def _number(prefix: str) -> int:
    return int.from_bytes(bytes.fromhex(prefix)[:3], "big", signed=True)


def _grow_postgresql(url: str, template: str, prefixes: Iterator[str]) -> None:
    named = ("template", "prefix", "number")
    ready = [SQL(_as_psycopg(statement, named)) for statement in statements(postgresql=True)]
    with psycopg.connect(dsn_of(url)) as connection:
        while some := list(islice(prefixes, COPIES_A_COMMIT)):
            for prefix in some:
                values = {"template": template, "prefix": prefix, "number": _number(prefix)}
                for statement in ready:
                    connection.execute(statement, values)
            connection.commit()


def _as_psycopg(statement: str, names: Sequence[str]) -> str:
    for name in names:
        statement = statement.replace(f":{name}", f"%({name})s")
    return statement


def _grow_sqlite(url: str, template: str, prefixes: Iterator[str]) -> None:
    with closing(sqlite3.connect(file_of(url), isolation_level=None)) as connection:
        # It is measured after this; a power cut may cost it.
        for pragma in ("journal_mode = WAL", "synchronous = OFF", "cache_size = -262144"):
            connection.execute(f"PRAGMA {pragma}")
        while some := list(islice(prefixes, COPIES_A_COMMIT)):
            connection.execute("BEGIN")
            for prefix in some:
                values = {"template": template, "prefix": prefix, "number": _number(prefix)}
                for statement in statements(postgresql=False):
                    connection.execute(statement, values)
            connection.execute("COMMIT")
