"""A database that older programs filled is upgraded whole, and taken on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, insert, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd import migrate
from ingestd.pipeline import outbox
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.outbox import Wanted

from .conftest import DropFile, Voting
from .oracle import judge, unsound

Rows = Mapping[str, Sequence[Mapping[str, Any]]]

OLDER = sorted(
    path.name[:4]
    for path in Path(migrate._folder(), "versions").glob("[0-9]*.py")  # noqa: SLF001 - every schema that there ever was
)[:-1]


def tables_of(engine: Engine) -> list[Table]:
    """The tables that are there, those that others refer to first."""
    found = MetaData()
    found.reflect(engine)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def rows_of(engine: Engine) -> Rows:
    """Every row of every table, as whoever looks from outside sees it."""
    tables = tables_of(engine)
    with engine.connect() as connection:
        return {
            table.name: [row._asdict() for row in connection.execute(select(table))]
            for table in tables
        }


def fill(engine: Engine, rows: Rows) -> Rows:
    """Put as much of these rows into the tables as an older schema has columns for."""
    filled = {}
    tables = tables_of(engine)
    with engine.begin() as connection:
        for table in tables:
            names = set(table.columns.keys())
            some = [{key: row[key] for key in row if key in names} for row in rows[table.name]]
            # A job refers to the one that it supersedes.
            some.sort(key=lambda row: row.get("supersedes_id") is not None)
            if some:
                connection.execute(insert(table), some)
            filled[table.name] = some
    return filled


def lost(before: Rows, after: Rows) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of before that are not there any more with all their values."""
    return [
        (name, row)
        for name, rows in before.items()
        for row in rows
        if not any(all(other[key] == row[key] for key in row) for other in after[name])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("revision", OLDER)
def test_rows_of_every_older_schema_are_there_after_an_upgrade_and_work_goes_on(
    sessions: sessionmaker[Session],
    migrated_url: str,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    revision: str,
) -> None:
    """Each value of each table; then the next files are taken, and all of it fits together."""
    engine: Engine = sessions.kw["bind"]
    outbox.telling(ingest.sessions, Wanted(channels=("duty",), at_once=frozenset({"critical"})))
    eight = voting.ballots(8, 10)
    for rows in ([*eight, "torn"], eight[:-1]):
        ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(voting.name(9), ["torn"] * 50))
    judge(sessions)
    whole = rows_of(engine)
    assert all(whole[name] for name in ("transaction", "reject", "alert", "notice"))
    migrate.downgrade(migrated_url, "base")
    migrate.upgrade(migrated_url, revision)
    before = fill(engine, whole)
    assert revision == migrate.current(engine)
    migrate.upgrade(migrated_url)
    assert [] == migrate.differences(engine)
    assert [] == lost(before, rows_of(engine))
    ingest.take(drop_file(voting.name(8), eight))
    ingest.take(drop_file(voting.name(10), voting.ballots(10, 5)))
    judge(sessions)
    assert [] == unsound(sessions)
