"""The daemon as a real process: how files arrive, and how it is stopped, told and disturbed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import Transaction

from .conftest import Did, Voting, csv_of
from .oracle import unsound
from .running import (
    Start,
    is_empty,
    jobs_on,
    open_sessions,
    soon,
    states_on,
)

Sessions = sessionmaker[Session]


# Being stopped and told ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_file() -> tuple[str, bytes]:
    """A file that is long enough to be stopped in."""
    voting = Voting()
    return voting.name(8), csv_of(voting.ballots(8, 4_000))


@pytest.mark.promise(29)
def test_sigterm_in_a_file_stops_at_a_batch_and_the_next_start_goes_on(
    start_on_each: Start, migrated_url: str, long_file: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """The batch that it is in is stored, no other, and no line is read into the tables twice."""
    did("SIGTERM in a file of 160 batches")
    name, content = long_file
    (tmp_path / "inbox" / name).write_bytes(content)
    daemon = start_on_each(wait=False, INGEST__BATCH_ROWS="50", TEST__FREEZE_AT="read:3")
    assert 0 == daemon.wait_until_frozen().stop()
    (job,) = jobs_on(migrated_url)
    assert ("pending", 0, None, 150) == (job.status, job.attempts, job.owner, job.rows_read)
    start_on_each(INGEST__BATCH_ROWS="5000")
    soon(lambda: is_empty(tmp_path / "inbox"))
    (job,) = jobs_on(migrated_url)
    assert ("completed", 8_000, 8_000, 0) == (
        job.status,
        job.rows_read,
        job.rows_stored,
        job.rows_known,
    )
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


@pytest.mark.promise(32)
def test_a_queued_file_that_was_deleted_has_vanished(
    start: Start, sqlite_url: str, long_file: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """One log line, no row left, nothing stuck."""
    name, content = long_file
    (tmp_path / "inbox" / name).write_bytes(content)
    daemon = start(wait=False, INGEST__BATCH_ROWS="50", TEST__FREEZE_AT="stored:2")
    daemon.wait_until_frozen().stop()
    (tmp_path / "inbox" / name).unlink()
    daemon = start()
    soon(lambda: daemon.log("file_vanished"))
    time.sleep(1)
    assert 1 == len(daemon.log("file_vanished"))
    assert [(name, "vanished", 0)] == states_on(sqlite_url)
    with open_sessions(sqlite_url) as sessions, sessions() as session:
        assert [] == list(session.scalars(select(Transaction.id)))
    did("a half-read file deleted before a restart", faults=1)


@pytest.mark.promise(29)
def test_sighup_with_a_broken_configuration_keeps_the_old_one(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """It says what is wrong, and goes on."""
    did("1 SIGHUP, 1 typing mistake")
    config = tmp_path / "ingestd.toml"
    config.write_text("[ingest]\nbatch_rows = 7\n")
    daemon = start(CONFIG=str(config))
    config.write_text("[ingest]\nbatch_rows = 'many'\n")
    daemon.process.send_signal(signal.SIGHUP)
    soon(lambda: daemon.log("configuration_refused"))
    assert "batch_rows" in daemon.log("configuration_refused")[0]["error"]
    (daemon.inbox / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 2)))
    soon(lambda: is_empty(daemon.inbox))
    assert [(voting.name(8), "completed", 4)] == states_on(sqlite_url)
    assert 0 == daemon.stop()


@pytest.mark.promise(29)
def test_sighup_reads_the_configuration_again(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """A file that was refused by the old error budget passes the new one."""
    did("1 SIGHUP, a wider error budget")
    config = tmp_path / "ingestd.toml"
    config.write_text("[ingest]\nmax_reject_rows = 0\nmax_reject_ratio = 0\n")
    daemon = start(CONFIG=str(config))
    content = csv_of([*voting.ballots(8, 2), "torn"])
    (daemon.inbox / voting.name(8)).write_bytes(content)
    soon(lambda: daemon.log("file_quarantined"))
    config.write_text("[ingest]\nmax_reject_rows = 1\n")
    daemon.process.send_signal(signal.SIGHUP)
    soon(lambda: daemon.log("configuration_reloaded"))
    (daemon.inbox / voting.name(8)).write_bytes(content)
    soon(lambda: daemon.log("file_ingested"))
    assert [(voting.name(8), "completed", 4)] == states_on(sqlite_url)
