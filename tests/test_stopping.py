"""A stop that is asked for at a bad moment: in a lock, in a pause, in silence, in `once`."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from ingestd.db import make_engine
from ingestd.pipeline.stop import Asked

from .conftest import Databases, Did, PostgreSQL, Voting, csv_of
from .proxy import proxy_before
from .running import Start, environment, is_empty, jobs_on, soon, wait_until_frozen
from .steps import FREEZE_VARIABLE
from .test_database_faults import (
    ROWS,
    assert_whole,
    end_sessions,
    session_on,
    starting,
)

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hour() -> tuple[str, bytes]:
    """A file of many small batches."""
    voting = Voting()
    return voting.name(8), csv_of(voting.ballots(8, ROWS // 2))


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else holds the database, and does not let go."""
    if url.startswith("sqlite"):
        path = make_url(url).database or ""
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            return
    engine = make_engine(url)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE file_processing IN ACCESS EXCLUSIVE MODE"))
        yield
    engine.dispose()


@pytest.mark.promise(29)
def test_sigterm_is_heeded_while_a_lock_is_waited_for(
    start_on_each: Start, migrated_url: str, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """A lock may be waited for for minutes, a stop may not; and nothing is lost by it."""
    name, content = hour
    daemon = start_on_each(INGEST__STOP_SECONDS="0.5", DATABASE__BUSY_TIMEOUT_SECONDS="600")
    with locked(migrated_url):
        (daemon.inbox / name).write_bytes(content)
        time.sleep(1.5)
        assert 0 == daemon.stop()
    assert [] == jobs_on(migrated_url)
    daemon = start_on_each()
    soon(lambda: is_empty(daemon.inbox))
    assert_whole(migrated_url)
    did("SIGTERM while another program held a lock")


@pytest.mark.promise(29)
def test_sigterm_is_heeded_in_the_pause_before_a_database_is_asked_again(
    tmp_path: Path, did: Did
) -> None:
    """However long the pause has become."""
    with starting(tmp_path, f"postgresql+psycopg://postgres@/x?host={tmp_path}") as start:
        daemon = start(wait=False)
        soon(lambda: daemon.log("storage_away"))
        time.sleep(3)
        assert 0 == daemon.stop()
    did("SIGTERM in a pause of seconds")


@pytest.mark.promise(29)
def test_sigterm_is_heeded_while_a_server_says_nothing_and_a_second_one_at_once(
    databases: Databases, postgresql: PostgreSQL, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """The batch in work has its time; who asks again does not want to wait."""
    name, content = hour
    with databases.fresh("postgresql") as url, proxy_before(postgresql.socket_folder) as proxy:
        with starting(tmp_path, proxy.url(url)) as start:
            (tmp_path / "inbox" / name).write_bytes(content)
            patient = {"INGEST__STOP_SECONDS": "600", "TEST__FREEZE_AT": "claimed:3"}
            daemon = start(wait=False, INGEST__BATCH_ROWS="4", **patient).wait_until_frozen()
            proxy.hang()
            daemon.thaw()
            time.sleep(0.5)
            daemon.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            assert None is daemon.process.poll()
            assert 0 == daemon.stop()
            proxy.go_on()
            daemon = start()
            soon(lambda: is_empty(daemon.inbox))
        assert_whole(url)
    did("2 SIGTERMs while a statement had no answer")


def test_a_stop_is_overdue_after_its_time_or_when_it_is_asked_for_again() -> None:
    """Not before, and not when nobody asked."""
    stop = Asked()
    assert (False, False) == (stop.is_set(), stop.is_overdue(0))
    stop.ask(signal.SIGTERM)
    assert (True, False, True) == (stop.is_set(), stop.is_overdue(60), stop.is_overdue(0))
    stop.ask(signal.SIGTERM)
    assert stop.is_overdue(60)
    stop.clear()
    assert (False, False) == (stop.is_set(), stop.is_overdue(0))


# The command line as it is, but for an ear for the steps.
ONCE = """
from functools import partial
from ingestd import cli, once
from tests.steps import armed
once.once = partial(once.once, on_step=armed())
cli.main()
"""


def once(folder: Path, url: str, **settings: str) -> subprocess.Popen[str]:
    """Run `ingestd once` there; it freezes at its second batch if that is asked for."""
    return subprocess.Popen(
        [sys.executable, "-c", ONCE, "once"],
        env=environment(folder, url, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.promise(29)
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=str,
)
def test_once_stops_at_a_batch_and_says_so(
    sqlite_url: str,
    hour: tuple[str, bytes],
    inbox: Path,
    tmp_path: Path,
    did: Did,
    number: signal.Signals,
    status: int,
) -> None:
    """Its exit status is that of a stopped program; the next run goes on where it was."""
    name, content = hour
    (inbox / name).write_bytes(content)
    small = {"INGESTD_INGEST__BATCH_ROWS": "2", FREEZE_VARIABLE: "stored:2"}
    with once(tmp_path, sqlite_url, **small) as process:
        wait_until_frozen(process)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        told, _ = process.communicate(timeout=60)
    assert status == process.returncode
    assert f"waiting: {name}: stopped in it" in told
    (job,) = jobs_on(sqlite_url)
    assert ("pending", 0, None) == (job.status, job.attempts, job.owner)
    assert 4 == job.rows_read
    with once(tmp_path, sqlite_url) as process:
        process.communicate(timeout=60)
    assert 0 == process.returncode
    assert_whole(sqlite_url)
    did(f"{number.name} in `once`, in a file of 200 batches")


def test_once_asks_a_database_again_that_was_away_for_a_moment(
    databases: Databases, hour: tuple[str, bytes], inbox: Path, tmp_path: Path
) -> None:
    """A killed session is no reason to leave a file behind."""
    name, content = hour
    (inbox / name).write_bytes(content)
    with databases.fresh("postgresql") as url, session_on(url) as session:
        small = {"INGESTD_INGEST__BATCH_ROWS": "4", FREEZE_VARIABLE: "loaded:3"}
        with once(tmp_path, url, **small) as process:
            wait_until_frozen(process)
            end_sessions(session)
            process.send_signal(signal.SIGCONT)
            process.communicate(timeout=60)
        assert 0 == process.returncode
        assert_whole(url)
