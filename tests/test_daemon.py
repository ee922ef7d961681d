"""The daemon as a real process: how files arrive, and how it is stopped, told and disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import Transaction

from .conftest import Did, Voting, csv_of, zip_of
from .oracle import unsound
from .running import (
    SETTLE_SECONDS,
    Start,
    is_empty,
    jobs_on,
    open_sessions,
    soon,
    states_on,
)

Sessions = sessionmaker[Session]


# Arriving -----------------------------------------------------------------------------------


def copied(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """Cp."""
    (outside / name).write_bytes(content)
    shutil.copyfile(outside / name, inbox / name)


def moved(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """Mv from the same file system."""
    (outside / name).write_bytes(content)
    (outside / name).rename(inbox / name)


def renamed(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """Write under another name, then rename."""
    (inbox / f"{name}.tmp").write_bytes(content)
    time.sleep(1.5 * SETTLE_SECONDS)
    (inbox / f"{name}.tmp").rename(inbox / name)


def linked(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """A hard link."""
    (outside / name).write_bytes(content)
    (inbox / name).hardlink_to(outside / name)


def in_new_folders(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """Mkdir -p, and write at once."""
    folder = inbox / "90 - Край" / "Выборы" / "Округ №1_3"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


def folder_moved_in(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """A whole folder, moved in."""
    (outside / "folder").mkdir()
    (outside / "folder" / name).write_bytes(content)
    (outside / "folder").rename(inbox / "folder")


def written_slowly(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """A little at a time, flushed each time."""
    with (inbox / name).open("wb", buffering=0) as stream:
        for line in content.splitlines(keepends=True):
            stream.write(line)
            time.sleep(0.2)


def written_with_a_long_break(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """The writer holds the file open and says nothing for longer than the settle time."""
    middle = content.index(b"\n") + 1
    with (inbox / name).open("wb", buffering=0) as stream:
        stream.write(content[:middle])
        time.sleep(3 * SETTLE_SECONDS)
        stream.write(content[middle:])


def opened_again_and_again(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """A writer that closes the file after each line."""
    for line in content.splitlines(keepends=True):
        with (inbox / name).open("ab") as stream:
            stream.write(line)
        time.sleep(0.2)


WAYS = (
    copied,
    moved,
    renamed,
    linked,
    in_new_folders,
    folder_moved_in,
    written_slowly,
    written_with_a_long_break,
    opened_again_and_again,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_of_arriving_gives_one_job(
    start: Start,
    sqlite_url: str,
    voting: Voting,
    tmp_path: Path,
    way: Callable[[Path, str, bytes, Path], None],
) -> None:
    """And all of its rows: nothing is read early, nothing is missed, nothing is read twice."""
    daemon = start()
    (tmp_path / "outside").mkdir()
    way(daemon.inbox, voting.name(8), csv_of(voting.ballots(8, 4)), tmp_path / "outside")
    soon(lambda: is_empty(daemon.inbox))
    time.sleep(2 * SETTLE_SECONDS)
    (job,) = jobs_on(sqlite_url)
    assert ("completed", 8) == (job.status, job.rows_stored)
    assert job.evidence


def test_files_are_found_without_events(
    start_on_each: Start, migrated_url: str, voting: Voting
) -> None:
    """The full look finds all that events would have told."""
    daemon = start_on_each(WATCH__EVENTS="false")
    (daemon.inbox / "new").mkdir()
    (daemon.inbox / "new" / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 4)))
    (daemon.inbox / "hours.zip").write_bytes(
        zip_of({voting.name(hour): csv_of(voting.ballots(hour, 2)) for hour in (9, 10)})
    )
    soon(lambda: is_empty(daemon.inbox))
    assert ["completed"] * 3 == [job.status for job in jobs_on(migrated_url)]
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


def test_files_that_are_there_at_the_start_are_taken(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path
) -> None:
    """Also those in folders."""
    (tmp_path / "inbox" / "folder").mkdir()
    for folder, hour in ((".", 8), ("folder", 9)):
        path = tmp_path / "inbox" / folder / voting.name(hour)
        path.write_bytes(csv_of(voting.ballots(hour, 2)))
    daemon = start_on_each()
    soon(lambda: is_empty(daemon.inbox))
    assert [("completed", 4)] * 2 == [(job[1], job[2]) for job in states_on(migrated_url)]
    assert 0 == daemon.stop()


def test_left_files_are_taken_once(start: Start, sqlite_url: str, voting: Voting) -> None:
    """With `after = leave` they stay, also through a restart."""
    daemon = start(WATCH__AFTER="leave")
    (daemon.inbox / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 2)))
    soon(lambda: daemon.log("file_ingested"))
    daemon.stop()
    daemon = start(WATCH__AFTER="leave")
    (daemon.inbox / voting.name(9)).write_bytes(csv_of(voting.ballots(9, 2)))
    soon(lambda: len(daemon.log("file_ingested")) == 2)
    time.sleep(2 * SETTLE_SECONDS)
    assert 2 == len(daemon.log("file_ingested")) == len(jobs_on(sqlite_url))
    assert 2 == len(list(daemon.inbox.iterdir()))


def test_odd_files_are_said_or_taken_but_never_stop_it(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path
) -> None:
    """A pipe, a link, a name that is no text, a line break in a name."""
    (tmp_path / "secret.csv").write_bytes(csv_of(voting.ballots(7, 2)))
    daemon = start()
    os.mkfifo(daemon.inbox / voting.name(5))
    (daemon.inbox / voting.name(6)).symlink_to(tmp_path / "secret.csv")
    (daemon.inbox / "loop").symlink_to(daemon.inbox)
    names = [b"\xd0\xff " + voting.name(8).encode(), b"a\nb\x1b[31m " + voting.name(9).encode()]
    for hour, name in enumerate(names, start=8):
        (daemon.inbox / os.fsdecode(name)).write_bytes(csv_of(voting.ballots(hour, 2)))
    soon(lambda: len(daemon.log("file_ingested")) == 2)
    soon(lambda: len(list(daemon.inbox.iterdir())) == 3)
    assert {b"\xd0\xff ", b"a\nb\x1b[31m "} == {
        os.fsencode(path.name).split(voting.contract.encode())[0]
        for path in (tmp_path / "archive").iterdir()
    }
    assert [("completed", 4)] * 2 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    said = [line["path"] for line in daemon.log("not_a_regular_file")]
    assert sorted([voting.name(5), voting.name(6), "loop"]) == sorted(said)


# Being stopped and told ---------------------------------------------------------------------


def is_in_work(url: str, least: int = 1) -> bool:
    """Whether a job has some of its rows in the tables."""
    return any(job.status == "processing" and job.rows_read >= least for job in jobs_on(url))


@pytest.fixture(scope="module")
def long_file() -> tuple[str, bytes]:
    """A file that is long enough to be stopped in."""
    voting = Voting()
    return voting.name(8), csv_of(voting.ballots(8, 4_000))


@pytest.mark.promise(29)
def test_sigterm_in_a_file_stops_at_a_batch_and_the_next_start_goes_on(
    start_on_each: Start, migrated_url: str, long_file: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """Quickly, and no line is read into the tables twice."""
    did("SIGTERM in a file of 160 batches")
    name, content = long_file
    (tmp_path / "inbox" / name).write_bytes(content)
    daemon = start_on_each(wait=False, INGEST__BATCH_ROWS="50")
    soon(lambda: is_in_work(migrated_url))
    started = time.monotonic()
    assert 0 == daemon.stop()
    assert time.monotonic() - started < 3
    (job,) = jobs_on(migrated_url)
    assert ("pending", 0, None) == (job.status, job.attempts, job.owner)
    assert 0 < job.rows_read < 8_000
    assert 0 == job.rows_read % 50
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


def test_a_queued_file_that_was_deleted_has_vanished(
    start: Start, sqlite_url: str, long_file: tuple[str, bytes], tmp_path: Path
) -> None:
    """One log line, no row left, nothing stuck."""
    name, content = long_file
    (tmp_path / "inbox" / name).write_bytes(content)
    daemon = start(wait=False, INGEST__BATCH_ROWS="50")
    soon(lambda: is_in_work(sqlite_url))
    daemon.stop()
    (tmp_path / "inbox" / name).unlink()
    daemon = start()
    soon(lambda: daemon.log("file_vanished"))
    time.sleep(1)
    assert 1 == len(daemon.log("file_vanished"))
    assert [(name, "vanished", 0)] == states_on(sqlite_url)
    with open_sessions(sqlite_url) as sessions, sessions() as session:
        assert [] == list(session.scalars(select(Transaction.id)))


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
