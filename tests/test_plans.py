"""What databases plan for: tables as they are, and not what they were or might be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import grown_tables
from ingestd.models import FileProcessing
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.touched import among, listed, sighting
from ingestd.storage import PlanWatch

from .conftest import Clock, Databases, DropFile, Voting, terms_in
from .running import open_sessions

TABLES = ("transaction", "file_processing")


def test_a_table_that_has_grown_is_looked_at_at_once(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A statement that was planned for an empty table would read all of it for each file."""
    engine: Engine = sessions.kw["bind"]
    watch = PlanWatch(engine)
    watch.look()
    ingest.take(drop_file(voting.name(8), voting.ballots(8, 300)))
    if engine.dialect.name != "postgresql":
        watch.look()  # nothing to be done, and nothing that fails
        return
    assert ["transaction"] == [name for name, _ in grown_tables(engine, TABLES)]
    PlanWatch(engine).look()
    assert [] == grown_tables(engine, TABLES)
    with engine.connect() as connection:
        known = text("SELECT reltuples FROM pg_class WHERE relname = 'transaction'")
        assert 600 == connection.scalar(known)


def test_ids_are_looked_up_by_a_join(sessions: sessionmaker[Session]) -> None:
    """Compared with a list of thousands row by row, a table that grows would take minutes."""
    engine: Engine = sessions.kw["bind"]
    if engine.dialect.name != "postgresql":
        return
    with sessions() as session:
        query = select(sighting.c.transaction_id).where(among(sighting.c.transaction_id, session))
        asked = str(query.compile(engine))
        parameters = listed([uuid4().hex for _ in range(2_000)], session)
        explained = session.connection().exec_driver_sql(f"EXPLAIN {asked}", parameters)
        plan = "\n".join(explained.scalars())
    assert " Join " in plan or "Nested Loop" in plan, plan
    assert "ANY" not in plan, plan


def test_sizes_are_asked_for_once_a_second(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """However many files are taken meanwhile."""
    engine: Engine = sessions.kw["bind"]
    now = 100.0
    watch = PlanWatch(engine, clock=lambda: now)
    watch.look()
    ingest.take(drop_file(voting.name(8), voting.ballots(8, 300)))
    watch.look()
    if engine.dialect.name == "postgresql":
        assert grown_tables(engine, TABLES)
        now = 101.0
        watch.look()
        assert [] == grown_tables(engine, TABLES)


def test_a_file_costs_sqlite_the_same_however_many_others_were_taken(
    databases: Databases, drop_file: DropFile
) -> None:
    """SQLite has no statistics, and would read all jobs of a state for those of a constituency."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        taken = Ingest(sessions, terms_in(drop_file("other").root), Clock(), "me:1")
        steps = []
        for number, jobs in enumerate((1, 1_000, 10_000)):
            voting = Voting(random.Random(number))
            with sessions.begin() as session:
                session.execute(insert(FileProcessing), [other_job() for _ in range(jobs)])
            found = drop_file(voting.name(8), voting.ballots(8, 5))
            with counted_steps(sessions.kw["bind"]) as counted:
                (job,) = taken.take(found)
            assert job.status == "completed"
            steps.append(len(counted))
    _first, few, many = steps
    assert many < 1.2 * few


def other_job() -> dict[str, object]:
    """A completed job of a constituency that has no other."""
    return {
        "id": uuid4(),
        "discovered_at": datetime(2024, 9, 9, tzinfo=UTC),
        "root": "/elsewhere",
        "path": (name := uuid4().hex),
        "name": name,
        "sha256": uuid4().hex * 2,
        "size": 1,
        "stamp": name,
        "evidence": "asked",
        "status": "completed",
    }


@contextmanager
def counted_steps(engine: Engine) -> Iterator[list[None]]:
    """One element for each hundred steps that SQLite takes meanwhile."""
    steps: list[None] = []

    def on_steps() -> int:
        steps.append(None)
        return 0

    with closing(engine.raw_connection()) as connection:
        driver: Any = connection.driver_connection
        driver.set_progress_handler(on_steps, 100)
    try:
        yield steps
    finally:
        driver.set_progress_handler(None, 0)
