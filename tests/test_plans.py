"""PostgreSQL plans for the tables as they are, not for those of a minute ago."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import grown_tables
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.touched import among, listed, sighting
from ingestd.storage import PlanWatch

from .conftest import DropFile, Voting

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
