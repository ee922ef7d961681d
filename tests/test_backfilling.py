"""SQLite's write-ahead log is copied into the database beside the commits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ingestd.db import Patience, make_engine
from ingestd.errors import StorageFault
from ingestd.storage import backfilling
from ingestd.transient import database_at_work

from .running import soon

ROWS, BYTES = 300, 4_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of a test lies."""
    return tmp_path / "ingestd.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    """An engine as a daemon has it, on a database with a table."""
    engine = make_engine(f"sqlite:///{path}", writer=True, patience=Patience())
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE line (content TEXT)"))
    yield engine
    engine.dispose()


def write(engine: Engine) -> None:
    """Commit a megabyte."""
    with engine.begin() as connection:
        rows = [{"content": "x" * BYTES}] * ROWS
        connection.execute(text("INSERT INTO line VALUES (:content)"), rows)


def copiers() -> list[threading.Thread]:
    """The threads that copy."""
    return [each for each in threading.enumerate() if each.name == "backfill"]


def test_what_is_committed_reaches_the_database_without_a_commit_that_copies(
    engine: Engine, path: Path
) -> None:
    """By a thread that ends with what it is for; without it the log holds what is committed."""
    write(engine)
    assert path.stat().st_size < ROWS * BYTES
    with backfilling(engine):
        assert 1 == len(copiers())
        for number in (2, 3):
            write(engine)
            soon(lambda number=number: path.stat().st_size > number * ROWS * BYTES)  # type: ignore[misc]  # bound now
    assert [] == copiers()
    write(engine)
    assert path.stat().st_size < 4 * ROWS * BYTES


def test_a_log_that_is_copied_in_time_does_not_grow(engine: Engine, path: Path) -> None:
    """It begins anew once all of it is in the database."""
    log = path.with_name(f"{path.name}-wal")

    def is_shorter() -> bool:
        write(engine)
        return path.stat().st_size > 2 * log.stat().st_size

    with backfilling(engine):
        soon(is_shorter)


def test_a_database_that_goes_away_does_not_end_it(engine: Engine, path: Path) -> None:
    """Who writes hears of it; when it is back, it is copied again."""
    away = path.with_name("away.db")
    with backfilling(engine):
        write(engine)
        soon(lambda: path.stat().st_size > ROWS * BYTES)
        path.rename(away)
        with pytest.raises(StorageFault), database_at_work():
            write(engine)
        away.rename(path)
        write(engine)
        soon(lambda: path.stat().st_size > 2 * ROWS * BYTES)
        assert 1 == len(copiers())


def test_a_reader_holds_back_what_it_may_still_read(engine: Engine, path: Path) -> None:
    """It reads what it began with, while others commit; then all of it is copied."""
    reading = make_engine(f"sqlite:///{path}")
    with backfilling(engine):
        write(engine)
        with reading.connect() as connection:
            count = text("SELECT count(*) FROM line")
            assert ROWS == connection.scalar(count)
            write(engine)
            assert ROWS == connection.scalar(count)
        write(engine)
        soon(lambda: path.stat().st_size > 3 * ROWS * BYTES)
    reading.dispose()


def test_postgresql_does_that_by_itself() -> None:
    """No thread is started for it."""
    engine = make_engine("postgresql+psycopg:///nowhere", writer=True)
    with backfilling(engine):
        assert [] == copiers()
    engine.dispose()
