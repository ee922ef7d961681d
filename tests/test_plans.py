"""PostgreSQL plans for the tables as they are, not for those of a minute ago."""

from __future__ import annotations

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import grown_tables
from ingestd.pipeline.ingest import Ingest
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
