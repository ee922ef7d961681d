"""Two daemons on one inbox: each file once, and a job whose owner is gone is taken over."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import StopRequested
from ingestd.models import FileProcessing
from ingestd.pipeline import ledger
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.step import Step

from .conftest import Clock, Databases, Did, DropFile, Voting, csv_of, zip_of
from .oracle import unsound
from .running import Start, is_empty, jobs_on, open_sessions, soon
from .test_crash import contents
from .test_database_faults import assert_whole, starting
from .test_two_at_once import second

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

Sessions = sessionmaker[Session]

SMALL_FILES, ZIPS, LARGE_ROWS = 150, 10, 1_200
ROWS = 600


@pytest.mark.promise(30)
def test_two_daemons_on_one_inbox_take_each_file_once(
    start_on_each: Start, migrated_url: str, tmp_path: Path, did: Did
) -> None:
    """Hundreds of small files, ZIPs, and one of many batches; all of them are put away once."""
    outside = tmp_path / "outside"
    outside.mkdir()
    votings = [Voting(random.Random(seed)) for seed in range(10)]
    for number in range(SMALL_FILES):
        voting = votings[number % 10]
        (outside / voting.name(number // 10)).write_bytes(csv_of(voting.ballots(number // 10, 1)))
    for voting in votings[:ZIPS]:
        hours = {voting.name(hour): csv_of(voting.ballots(hour, 1)) for hour in (20, 21)}
        (outside / f"{voting.contract}.zip").write_bytes(zip_of(hours))
    large = csv_of(votings[0].ballots(22, LARGE_ROWS // 2))
    (outside / votings[0].name(22)).write_bytes(large)
    dropped = contents(outside)
    daemons = [start_on_each(INGEST__BATCH_ROWS="20") for _ in range(2)]
    for file in sorted(outside.iterdir()):
        file.rename(tmp_path / "inbox" / file.name)
    soon(lambda: is_empty(tmp_path / "inbox"), seconds=180)
    assert [0, 0] == [daemon.stop() for daemon in daemons]
    jobs = jobs_on(migrated_url)
    assert {"completed"} == {job.status for job in jobs}
    assert SMALL_FILES + 2 * ZIPS + 1 == len(jobs)
    assert 2 * SMALL_FILES + 4 * ZIPS + LARGE_ROWS == sum(job.rows_stored for job in jobs)
    assert dropped == contents(tmp_path / "archive")
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
    assert set() == {line["event"] for line in daemons[0].log() if line["level"] != "info"} - {
        # watchdog 7.1 at its end, when an event comes a moment too late
        "InotifyEmitter.queue_events() called when the thread is inactive"
    }
    did(f"{SMALL_FILES} files, {ZIPS} ZIPs, 1 file of {LARGE_ROWS // 20} batches, 2 daemons")


# Taken over ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hour() -> tuple[str, bytes]:
    """A file of many small batches."""
    voting = Voting()
    return voting.name(8), csv_of(voting.ballots(8, ROWS // 2))


def at_work(url: str) -> FileProcessing | None:
    """The job that somebody is working on, once some of it is in the tables."""
    found = [job for job in jobs_on(url) if job.status == "processing" and job.rows_read]
    return found[0] if found else None


def owned_by(url: str, process: int) -> bool:
    """Whether a process works on the job."""
    job = at_work(url)
    return job is not None and f":{process}:" in (job.owner or "")


@pytest.mark.promise(30)
def test_a_killed_daemon_s_job_is_taken_over_by_its_neighbour_long_before_its_lease_is_over(
    start_on_each: Start, migrated_url: str, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """On one host a dead process is seen; its file goes on at the checkpoint."""
    name, content = hour
    (tmp_path / "inbox" / name).write_bytes(content)
    lease = {"INGEST__LEASE_SECONDS": "600"}
    frozen = {"INGEST__BATCH_ROWS": "2", "TEST__FREEZE_AT": "stored:2"}
    killed = start_on_each(wait=False, **frozen, **lease).wait_until_frozen()
    assert owned_by(migrated_url, killed.process.pid)
    killed.process.kill()  # and not yet waited for: a zombie is dead, too
    neighbour = start_on_each(wait=False, **lease)
    soon(lambda: is_empty(tmp_path / "inbox"))
    (taken,) = neighbour.log("jobs_taken_over")
    assert 1 == taken["jobs"]
    killed.kill()
    assert_whole(migrated_url, rows=ROWS)
    did(f"1 SIGKILL in a file of {ROWS // 2} batches, lease 600 s")


def on_another_host(name: str) -> tuple[str, ...]:
    """Run under another host name; without root in a user namespace of its own."""
    rename = (
        f"import os, socket, sys; socket.sethostname('{name}'); os.execv(sys.argv[1], sys.argv[1:])"
    )
    alone = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ("unshare", *alone, "--uts", sys.executable, "-c", rename)


@pytest.mark.promise(30)
def test_a_job_of_another_host_is_free_after_its_lease_and_not_before(
    databases: Databases, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """Nobody can see whether a process of another host lives."""
    with databases.fresh("postgresql") as url, starting(tmp_path, url) as start:
        name, content = hour
        (tmp_path / "inbox" / name).write_bytes(content)
        brief = {"INGEST__BATCH_ROWS": "2", "INGEST__LEASE_SECONDS": "3"}
        elsewhere = on_another_host("elsewhere")
        killed = start(wait=False, under=elsewhere, TEST__FREEZE_AT="stored:2", **brief)
        killed.wait_until_frozen().kill()
        left = at_work(url)
        assert left is not None
        assert left.lease_until is not None
        assert (left.owner or "").startswith("elsewhere:")
        neighbour = start(wait=False, **brief)
        soon(lambda: is_empty(tmp_path / "inbox"))
        (taken,) = neighbour.log("jobs_taken_over")
        assert datetime.fromisoformat(taken["timestamp"]) >= left.lease_until.astimezone(UTC)
        assert_whole(url, rows=ROWS)
    did("1 SIGKILL on another host, lease 3 s")


@pytest.mark.promise(30)
def test_an_owner_that_was_stopped_for_longer_than_its_lease_commits_nothing_more(
    start_on_each: Start, migrated_url: str, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """It wakes up while its successor is at work on the same file."""
    name, content = hour
    (tmp_path / "inbox" / name).write_bytes(content)
    brief = {"INGEST__LEASE_SECONDS": "1", "TEST__FREEZE_AT": "stored:2"}
    slow = start_on_each(wait=False, INGEST__BATCH_ROWS="2", **brief).wait_until_frozen()
    assert owned_by(migrated_url, slow.process.pid)
    successor = start_on_each(wait=False, INGEST__BATCH_ROWS="2", **brief).wait_until_frozen()
    assert owned_by(migrated_url, successor.process.pid)
    slow.thaw()
    successor.thaw()
    soon(lambda: is_empty(tmp_path / "inbox"))
    assert [0, 0] == [daemon.stop() for daemon in (slow, successor)]
    assert_whole(migrated_url, rows=ROWS)
    did("1 SIGSTOP beyond a lease of 1 s, SIGCONT in the successor's batches")


# Who is dead --------------------------------------------------------------------------------


def held_by(sessions: Sessions, ingest: Ingest, drop_file: DropFile, owner: str) -> None:
    """Leave a job behind that somebody was working on a moment ago."""
    voting = Voting()
    ingest.owner = owner
    ingest.on_step = lambda step: stop(ingest) if step == Step.RECORDED else None
    with pytest.raises(StopRequested):
        ingest.take(drop_file(voting.name(8), voting.ballots(8, 2)))
    with sessions.begin() as session:
        job = session.scalars(select(FileProcessing)).one()
        ledger.claim(
            session,
            job,
            owner=owner,
            books=ledger.Books.of(job),
            now=ingest.clock(),
            lease=timedelta(minutes=1),
        )


def living() -> str:
    """This process, as it names itself."""
    return ledger.owner_name()


def reused() -> str:
    """A pid that is another process by now."""
    return living().rpartition(":")[0] + ":1"


def gone() -> str:
    """A process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return f"{socket.gethostname()}:{process.pid}:1"


def named_as_before() -> str:
    """This process, as older versions named it: without its start."""
    return f"{socket.gethostname()}:{os.getpid()}"


def elsewhere() -> str:
    """A process of another host."""
    return "elsewhere:1:1"


@pytest.mark.promise(30)
@pytest.mark.parametrize(
    ("who", "freed"),
    [(living, 0), (reused, 1), (gone, 1), (named_as_before, 0), (elsewhere, 0)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_job_is_freed_when_its_owner_is_gone(
    sessions: Sessions,
    ingest: Ingest,
    clock: Clock,
    drop_file: DropFile,
    who: Callable[[], str],
    freed: int,
    did: Did,
) -> None:
    """And a pid that came again does not keep it; after the lease it is free in any case."""
    held_by(sessions, ingest, drop_file, who())
    with sessions.begin() as session:
        assert freed == ledger.release_dead(
            session, now=clock(), owner=f"{socket.gethostname()}:1:1"
        )
    clock.advance(61)
    with sessions.begin() as session:
        assert 1 - freed == ledger.release_dead(
            session, now=clock(), owner=f"{socket.gethostname()}:1:1"
        )
    did("1 owner that is " + who.__name__.replace("_", " "))


# In between ---------------------------------------------------------------------------------


@pytest.mark.promise(30)
def test_a_slow_owner_whose_successor_came_further_and_let_go_again_starts_anew_from_there(
    sessions: Sessions,
    ingest: Ingest,
    tmp_path: Path,
    clock: Clock,
    drop_file: DropFile,
    voting: Voting,
    did: Did,
) -> None:
    """The job is free, but its checkpoint is not where the slow one believes it to be."""
    found = drop_file(voting.name(8), voting.ballots(8, 20))
    slow = second(sessions, tmp_path, clock, batch_rows=10)
    successor = second(sessions, tmp_path, clock, batch_rows=10)
    slow.owner, successor.owner = "here:1:1", "there:2:2"

    def overtaken(step: Step) -> None:
        """After its first batch: its lease ends, another does a batch and hands the job back."""
        if step != Step.STORED:
            return
        slow.on_step = lambda _step: None
        clock.advance(100)
        with sessions.begin() as session:
            assert 1 == ledger.release_dead(session, now=clock(), owner=successor.owner)
        successor.on_progress = lambda _path, _read, _size: stop(successor)
        with pytest.raises(StopRequested):
            successor.take(found)

    slow.on_step = overtaken
    assert [] == slow.take(found)
    (job,) = slow.take(found)
    assert ("completed", 40, 40, 0) == (job.status, job.rows_read, job.rows_stored, job.rows_known)
    assert [] == unsound(sessions)
    did("1 job handed on and back between two batches")


def stop(ingest: Ingest) -> None:
    """Ask for a stop."""
    ingest.should_stop = lambda: True
