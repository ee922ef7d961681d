"""Several workers on PostgreSQL: each file once, in order where order tells, whoever is killed."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from ingestd.errors import (
    FileRefused,
    IngestError,
    ManifestNotMet,
    NotPutAway,
    StorageFault,
    WorkerDied,
)
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.lanes import lanes_of
from ingestd.pipeline.stats import constituency_id_of
from ingestd.pipeline.worker import Given, Outcome, Post, Ready
from ingestd.pipeline.workers import Offer, Workers, _hire, _Worker
from ingestd.simulate import Plan, defect_names

from .conftest import Databases, Did, DropFile, Voting, csv_of, simulated, terms_in, zip_of
from .oracle import differences, judge, snapshot, unsound, untrue
from .running import Running, Start, is_empty, jobs_on, open_sessions, soon, starter
from .test_any_order import ingest_all
from .test_crash import contents

pytestmark = pytest.mark.slow

ROWS = 200
TEAM = {"INGEST__WORKERS": "2", "INGEST__WORKERS_FROM_MB": "0", "INGEST__BATCH_ROWS": "20"}


@pytest.fixture
def url(databases: Databases) -> Iterator[str]:
    """A fresh PostgreSQL: only there are several workers."""
    with databases.fresh("postgresql") as url:
        yield url


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon on it."""
    yield from starter(tmp_path, url)


def at_work(start: Start) -> Running:
    """A daemon whose two workers have begun; two small files were what woke them."""
    daemon = start(wait=True, **TEAM)
    voting = Voting(random.Random(99))
    for hour in (1, 2):
        drop(daemon.folder / "first", voting.name(hour), csv_of(voting.ballots(hour, 1)))
    # Both at once: for a single file no worker is started.
    (daemon.folder / "first").rename(daemon.inbox / "first")
    soon(lambda: is_empty(daemon.inbox) and workers_of(daemon))
    return daemon


def drop(inbox: Path, name: str, content: bytes) -> None:
    """Put a file there in one move."""
    partial = inbox / f"{name}.part"
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    partial.rename(inbox / name)


def started(daemon: Running) -> list[int]:
    """All processes that ever began as workers."""
    return [line["process"] for line in daemon.log("worker_started")]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


def workers_of(daemon: Running) -> list[int]:
    """Both workers, once there are two."""
    alive = [process for process in started(daemon) if is_alive(process)]
    return alive if len(alive) == 2 else []


@dataclass(frozen=True)
class Gate:
    """Somebody else holds constituencies: who wants to store anything of them waits."""

    holder: psycopg.Connection

    def waiting(self) -> int:
        """How many wait."""
        asked = self.holder.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid"
            " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
        ).fetchone()
        assert asked is not None
        return int(asked[0])

    def open(self) -> None:
        """Let them go on."""
        self.holder.execute("SELECT pg_advisory_unlock_all()")


@contextmanager
def gate_before(url: str, *votings: Voting) -> Iterator[Gate]:
    """Hold these constituencies."""
    parsed = make_url(url)
    with psycopg.connect(
        host=str(parsed.query["host"]), user="postgres", dbname=parsed.database, autocommit=True
    ) as holder:
        for voting in votings:
            key = constituency_id_of(voting.contract).bytes[:8]
            number = int.from_bytes(key, "big", signed=True)
            holder.execute("SELECT pg_advisory_lock(%s)", (number,))
        yield Gate(holder)


@pytest.fixture
def votings() -> tuple[Voting, Voting]:
    """Two constituencies."""
    return Voting(random.Random(1)), Voting(random.Random(2))


def drop_hours(daemon: Running, votings: tuple[Voting, Voting]) -> None:
    """One file of many batches for each."""
    for voting in votings:
        drop(daemon.inbox, voting.name(8), csv_of(voting.ballots(8, ROWS // 2)))


def assert_all_stored(daemon: Running, *, hours: int = 2) -> None:
    """Each row once, no attempt burnt."""
    jobs = jobs_on(daemon.url)
    assert {("completed", 0)} == {(job.status, job.attempts) for job in jobs}
    assert hours * ROWS + 4 == sum(job.rows_stored for job in jobs)
    with open_sessions(daemon.url) as sessions:
        assert [] == unsound(sessions)


# What comes of it ---------------------------------------------------------------------------


@pytest.mark.promise(12)
def test_two_workers_make_of_an_election_what_one_does(
    start: Start, url: str, databases: Databases, tmp_path: Path, did: Did
) -> None:
    """With every defect that the simulator knows; both of them work."""
    plan = Plan(
        seed=31,
        constituencies=4,
        hours=4,
        voters_median=30,
        voters_max=60,
        whole=True,
        defects=defect_names(),
        transactions_in_truth=True,
    )
    election = simulated(tmp_path / "files", plan)
    with databases.fresh("sqlite") as alone, open_sessions(alone) as sessions:
        ingest_all(sessions, election.files, batch_rows=20)
        judge(sessions)
        assert [] == untrue(sessions, election.truth)
        expected = snapshot(sessions)
    daemon = start(wait=True, **TEAM)
    for name in ("drop", "drop-2"):
        outside = tmp_path / "outside"
        shutil.copytree(election.folder / name, outside)
        for entry in sorted(outside.iterdir()):
            if (daemon.inbox / entry.name).exists():
                soon(lambda: is_empty(daemon.inbox), seconds=120)
                shutil.rmtree(daemon.inbox / entry.name, ignore_errors=True)
            entry.rename(daemon.inbox / entry.name)
        soon(lambda: is_empty(daemon.inbox), seconds=120)
        shutil.rmtree(outside)
    assert 0 == daemon.stop()
    with open_sessions(url) as sessions:
        judge(sessions)
        assert [] == unsound(sessions)
        assert [] == untrue(sessions, election.truth)
        assert [] == differences(expected, snapshot(sessions))
    assert contents(election.folder / "drop", election.folder / "drop-2") == contents(
        tmp_path / "archive", tmp_path / "quarantine"
    )
    did("an election with every defect, 2 workers", files=len(election.files))


def test_publications_of_an_hour_keep_their_order_and_both_workers_work(
    start: Start, url: str
) -> None:
    """Each is newer than the one before it, whoever takes it; a ZIP of several waits its turn."""
    daemon = at_work(start)
    votings = [Voting(random.Random(seed)) for seed in range(6)]
    both = {voting.name(8): csv_of(voting.ballots(8, 2)) for voting in votings}
    outside = daemon.folder / "outside"
    for number in range(5):
        for voting in votings:
            name = f"{number}/{voting.name(8)}"
            drop(outside, name, csv_of(voting.ballots(8, 3 + number)))
            os.utime(outside / name, (1_700_000_000 + number,) * 2)
    drop(outside, "5.zip", zip_of({"inner.zip": zip_of(both)}))
    os.utime(outside / "5.zip", (1_700_000_009,) * 2)
    outside.rename(daemon.inbox / "all")
    soon(lambda: is_empty(daemon.inbox), seconds=120)
    of_hour = [job for job in jobs_on(url) if (job.slot or "").endswith("0800-0900")]
    orders = {
        job.contract_id: [
            each.path
            for each in sorted(of_hour, key=lambda each: each.publication)
            if each.contract_id == job.contract_id
        ]
        for job in of_hour
    }
    assert 6 == len(orders)
    for contract, order in orders.items():
        hour = f"{contract}_2024-09-06_0800-0900.csv"
        assert [*(f"all/{number}/{hour}" for number in range(5)), "all/5.zip"] == order
    assert {1, 2} <= {line.get("worker") for line in daemon.log("file_ingested")}


# Killed, stopped, cut off -------------------------------------------------------------------


@pytest.mark.promise(1)
def test_a_killed_worker_is_replaced_and_its_file_goes_on(
    start: Start, url: str, votings: tuple[Voting, Voting], did: Did
) -> None:
    """Both are killed in the middle of a commit; no attempt is burnt."""
    daemon = at_work(start)
    with gate_before(url, *votings) as gate:
        drop_hours(daemon, votings)
        soon(lambda: gate.waiting() == 2)
        for process in workers_of(daemon):
            os.kill(process, signal.SIGKILL)
        soon(lambda: len(daemon.log("worker_died")) == 2)
        soon(lambda: len(started(daemon)) == 4, seconds=60)
        gate.open()
        soon(lambda: is_empty(daemon.inbox), seconds=60)
    assert_all_stored(daemon)
    did("SIGKILL of both workers in a commit", kills=2)


@pytest.mark.promise(1)
def test_a_file_in_which_workers_die_again_and_again_waits_and_all_others_go_on(
    start: Start, url: str, votings: tuple[Voting, Voting], did: Did
) -> None:
    """It may be the reason: it is not tried without a pause, and the daemon never takes it."""
    daemon = at_work(start)
    deadly, other = votings
    with gate_before(url, deadly) as gate:
        drop(daemon.inbox, deadly.name(8), csv_of(deadly.ballots(8, ROWS // 2)))
        waited = 0
        # A worker that is about to be killed may take it over from the one before it.
        while not daemon.log("file_not_taken"):
            soon(lambda: gate.waiting() > waited or daemon.log("file_not_taken"))  # noqa: B023
            waited = gate.waiting()
            for process in started(daemon):
                if is_alive(process):
                    os.kill(process, signal.SIGKILL)
        drop(daemon.inbox, other.name(8), csv_of(other.ballots(8, ROWS // 2)))
        soon(lambda: not (daemon.inbox / other.name(8)).exists(), seconds=60)
        assert (daemon.inbox / deadly.name(8)).exists()
        gate.open()
        soon(lambda: is_empty(daemon.inbox), seconds=90)
    (said,) = daemon.log("file_not_taken")
    assert "3 workers died in it" in said["error"]
    assert_all_stored(daemon)
    did("SIGKILL of each worker that took a file, three times", kills=3)


@pytest.mark.promise(1)
def test_workers_end_with_their_daemon(
    start: Start, url: str, votings: tuple[Voting, Voting], did: Did
) -> None:
    """Kill -9 of the daemon leaves no process behind that writes; the next one goes on."""
    daemon = at_work(start)
    workers = workers_of(daemon)
    with gate_before(url, *votings) as gate:
        drop_hours(daemon, votings)
        soon(lambda: gate.waiting() == 2)
        daemon.kill()
        soon(lambda: not any(map(is_alive, workers)))
    start(wait=False, **TEAM)
    soon(lambda: is_empty(daemon.inbox), seconds=60)
    assert_all_stored(daemon)
    did("SIGKILL of a daemon with two workers in a commit", kills=1)


@pytest.mark.promise(29)
def test_sigterm_stops_workers_at_a_batch_border(
    start: Start, url: str, votings: tuple[Voting, Voting], did: Did
) -> None:
    """All processes get it, as from a service manager; the jobs are handed back."""
    daemon = at_work(start)
    workers = workers_of(daemon)
    with gate_before(url, *votings) as gate:
        drop_hours(daemon, votings)
        soon(lambda: gate.waiting() == 2)
        for process in (*workers, daemon.process.pid):
            os.kill(process, signal.SIGTERM)
        soon(lambda: daemon.log("workers_stopping"))
        gate.open()
    assert 0 == daemon.ended()
    assert not any(map(is_alive, workers))
    assert [] == daemon.log("worker_died")
    stopped = [job for job in jobs_on(url) if job.rows_read == 20]
    assert [("pending", 0, None)] * 2 == [(job.status, job.attempts, job.owner) for job in stopped]
    start(wait=False, **TEAM)
    soon(lambda: is_empty(daemon.inbox), seconds=60)
    assert_all_stored(daemon)
    did("SIGTERM of a daemon and its workers, in two files")


@pytest.mark.promise(22)
def test_workers_wait_for_a_database_that_is_away(
    start: Start, url: str, votings: tuple[Voting, Voting], did: Did
) -> None:
    """Their sessions are ended in a commit: the daemon says so once, and no attempt is burnt."""
    daemon = at_work(start)
    with gate_before(url, *votings) as gate:
        drop_hours(daemon, votings)
        soon(lambda: gate.waiting() == 2)
        gate.holder.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        soon(lambda: daemon.log("storage_away"))
        gate.open()
        soon(lambda: is_empty(daemon.inbox), seconds=60)
    assert 1 == len(daemon.log("storage_away"))
    assert_all_stored(daemon)
    did("the sessions of both workers ended in a commit", faults=2)


@pytest.mark.promise(1)
def test_kill_9_of_daemons_and_workers_at_any_moment_changes_nothing(
    start: Start, url: str, databases: Databases, tmp_path: Path, did: Did
) -> None:
    """Daemons with two workers die one after the other, or lose a worker."""
    plan = Plan(
        seed=5,
        constituencies=3,
        hours=4,
        rolls=(60, 80, 100),
        options=(2,),
        defects=defect_names(),
        transactions_in_truth=True,
    )
    election = simulated(tmp_path / "files", plan)
    with databases.fresh("sqlite") as alone, open_sessions(alone) as sessions:
        ingest_all(sessions, election.files, batch_rows=20)
        judge(sessions)
        assert [] == untrue(sessions, election.truth)
        expected = snapshot(sessions)
    rng = random.Random(8)
    for name in ("drop", "drop-2"):
        shutil.copytree(election.folder / name, tmp_path / "inbox", dirs_exist_ok=True)
        for kill_worker in (False, True, False):
            daemon = start(wait=False, **TEAM | {"WATCH__SETTLE_SECONDS": "0.1"})
            begun = len(started(daemon))
            soon(lambda: len(started(daemon)) > begun or is_empty(daemon.inbox), seconds=60)  # noqa: B023
            time.sleep(rng.uniform(0, 0.4))
            if kill_worker:
                for process in started(daemon):
                    if is_alive(process):
                        os.kill(process, signal.SIGKILL)
                time.sleep(rng.uniform(0, 0.5))
            daemon.kill()
        daemon = start(wait=False, **TEAM)
        soon(lambda: is_empty(daemon.inbox), seconds=120)  # noqa: B023
        daemon.stop()
    with open_sessions(url) as sessions:
        judge(sessions)
        assert [] == unsound(sessions)
        assert [] == untrue(sessions, election.truth)
        assert [] == differences(expected, snapshot(sessions))
    did("SIGKILL of daemons and workers at random instants", kills=8, files=len(election.files))


# The parts ----------------------------------------------------------------------------------


@contextmanager
def hired(post: Post) -> Iterator[_Worker]:
    """One worker by itself; the test is its daemon."""
    worker = _hire(post)
    try:
        assert isinstance(worker.pipe.recv(), Ready)
        yield worker
    finally:
        worker.pipe.close()
        worker.process.wait()


def outcome_of(worker: _Worker) -> Outcome:
    """What it tells next of a file."""
    while True:
        if isinstance(told := worker.pipe.recv(), Outcome):
            return told


def test_a_file_on_its_way_does_not_overtake_one_that_met_a_fault(
    sqlite_url: str, tmp_path: Path
) -> None:
    """The daemon, which has not heard of it, gives a later publication; both go back."""
    voting = Voting()
    runs = []
    for number in (1, 2):
        drop(tmp_path / "inbox", f"{number}/{voting.name(8)}", csv_of(voting.ballots(8, number)))
        runs.append(Found(tmp_path / "inbox", Path(f"{number}/{voting.name(8)}"), "asked"))
    post = Post(
        number=1,
        url=sqlite_url,
        busy_timeout_seconds=0.1,
        answer_timeout_seconds=10,
        stop_seconds=10,
        terms=terms_in(tmp_path),
        owner="daemon",
        log=("info", "json"),
    )
    first, second = runs
    with hired(post) as worker:
        with closing(sqlite3.connect(make_url(sqlite_url).database or "")) as locked:
            locked.execute("BEGIN IMMEDIATE")
            worker.pipe.send([Given(first, {})])
            away = outcome_of(worker)
        assert isinstance(away.error, StorageFault)
        worker.pipe.send([Given(second, {}, away.faults - 1)])
        again = outcome_of(worker)
        assert isinstance(again.error, StorageFault)
        worker.pipe.send([Given(found, {}, again.faults) for found in runs])
        jobs = [job for _ in runs for job in outcome_of(worker).jobs]
    assert ["completed"] * 2 == [job.status for job in jobs]
    numbers = {job.path[0]: job.publication for job in jobs_on(sqlite_url)}
    assert {"1": 1, "2": 2} == numbers


def test_what_was_picked_reaches_its_worker_whatever_the_next_file_is_like(
    ingest: Ingest, drop_file: DropFile
) -> None:
    """A folder that closes at that moment must not leave another file with nobody."""
    one, other = (drop_file(Voting(random.Random(seed)).name(8)) for seed in (1, 2))

    def refuse() -> Found | None:
        raise PermissionError(errno.EACCES, "closed a moment ago")

    ours, theirs = Pipe()
    with ours, theirs, subprocess.Popen(["/bin/true"]) as process:
        worker = _Worker(1, process, ours, is_ready=True)
        workers = Workers(ingest, lambda _number: pytest.fail("not hired"), _team=[worker])
        workers.offer(
            Offer(root=each.root, relative=each.relative, size=1, get_ready=get_ready)
            for each, get_ready in ((one, lambda: one), (other, refuse))
        )
        with pytest.raises(PermissionError):
            workers.next()
        assert theirs.poll()
        assert [one] == [given.found for given in theirs.recv()]
    assert {one.relative} == workers.in_work


def test_a_file_of_which_is_still_to_be_told_is_not_taken_again(
    ingest: Ingest, drop_file: DropFile
) -> None:
    """Its worker left it there, and says so at the moment in which the next look offers it."""
    found = drop_file(Voting().name(8))
    ours, theirs = Pipe()
    with ours, theirs, subprocess.Popen(["/bin/true"]) as process:
        worker = _Worker(1, process, ours, is_ready=True)
        workers = Workers(ingest, lambda _number: pytest.fail("not hired"), _team=[worker])

        def look() -> None:
            offer = Offer(root=found.root, relative=found.relative, size=1, get_ready=lambda: found)
            workers.offer([offer])

        look()
        assert [] == workers.next()  # it is with the worker
        theirs.send(Outcome())  # another daemon has it
        look()
        assert [found] == [taken.found for taken in workers.next()]
        assert not workers.is_busy
        look()
        assert workers.has_offers


def test_a_zip_that_is_gone_is_in_nobodys_way(tmp_path: Path) -> None:
    """Taken away, or put away by another daemon, since it was seen."""
    assert frozenset() == lanes_of(tmp_path, Path("gone.zip"), terms_in(tmp_path).read)


def test_lanes_are_the_constituencies_that_names_tell(tmp_path: Path) -> None:
    """What is told by no name may be of any constituency."""
    limits = terms_in(tmp_path).read
    one, other = Voting(random.Random(1)), Voting(random.Random(2))
    hour = csv_of(one.ballots(8, 1))
    files = {
        one.name(8): (hour, {one.contract}),
        f"{other.contract}/export.csv": (hour, {other.contract}),
        "export.csv": (hour, None),
        f"{other.contract}.zip": (zip_of({one.name(8): hour}), {one.contract}),
        f"{one.contract}_2024-09-06_0800-0900.zip": (zip_of({"a.csv": hour}), {one.contract}),
        "both.zip": (
            zip_of({voting.name(8): hour for voting in (one, other)}),
            {one.contract, other.contract},
        ),
        "some.zip": (zip_of({one.name(8): hour, "export.csv": hour}), None),
        "nested.zip": (zip_of({"inner.zip": zip_of({one.name(8): hour})}), None),
        "torn.zip": (zip_of({one.name(8): hour})[:-9], set()),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert {name: lanes for name, (_, lanes) in files.items()} == {
        name: lanes_of(tmp_path, Path(name), limits) for name in files
    }


@pytest.mark.parametrize(
    "error",
    [
        FileRefused("bad", kind="kind", line=3, field="ts", value="x"),
        ManifestNotMet("a", manifest="m", what="rows", expected="1", found="2"),
        NotPutAway(Path("a"), Path("b"), Path("c"), OSError(28, "full", "a")),
        StorageFault("away"),
        WorkerDied("killed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_a_pipe_whole(error: IngestError) -> None:
    """However it was made, its words and fields arrive."""
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(error), str(error)) == (type(arrived), str(arrived))
    assert {name: str(value) for name, value in vars(error).items()} == {
        name: str(value) for name, value in vars(arrived).items()
    }
