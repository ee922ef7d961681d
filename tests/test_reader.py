"""A process beside the daemon reads for it: the same comes out, whoever is killed."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from os import getpid, kill
from pathlib import Path
from typing import BinaryIO

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import FileChanged, FileRefused, FileVanished, StopRequested
from ingestd.models import Reject, Transaction
from ingestd.pipeline.batches import Batch, Reading, read_batches
from ingestd.pipeline.beside import Reader
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.read import Digest, open_source, sha256_of

from .conftest import (
    DATABASES,
    Clock,
    Databases,
    Did,
    DropFile,
    Voting,
    csv_of,
    rolled_back,
    terms_in,
    zip_of,
)
from .oracle import differences, snapshot, unsound
from .running import Running, Start, is_empty, jobs_on, open_sessions, soon, states_on
from .test_workers import drop, is_alive

ROWS = 2_400  # more than a megabyte
BATCH_ROWS = 100
FROZEN_WITH_A_READER = {
    "INGEST__READER_FROM_MB": "1",
    "INGEST__BATCH_ROWS": str(BATCH_ROWS),
    "TEST__FREEZE_AT": "recorded:1 stored:4",
}


def readers_of(parent: int) -> list[int]:
    """The readers that a process has."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [
        each for each in children if b"reader.live" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]


def waits_for_words(process: int) -> bool:
    """Whether a reader has imported all and hears its pipe."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    ignored = int(status["SigIgn"], 16) & 1 << (signal.SIGTERM - 1)
    return bool(ignored) and status["State"].startswith("S")


def reading_of(path: Path, contract: str) -> Reading:
    """What is read of a file in a test: batches of ten rows."""
    terms = terms_in(path.parent)
    source = open_source(path, terms.read)
    (csv,) = source.csvs()
    return Reading(
        path=path,
        stamp=source.stamp,
        csv=csv,
        contract_id=contract,
        from_byte=0,
        from_line=0,
        limits=replace(terms.read, max_line_bytes=5_000),
        batch_rows=10,
        batch_bytes=terms.batch_bytes,
        max_entries=terms.max_entries,
        max_json_depth=terms.max_json_depth,
        max_field_bytes=terms.max_field_bytes,
        raw_text_bytes=terms.raw_text_bytes,
    )


def read_beside(reader: Reader, reading: Reading) -> list[Batch]:
    """All batches of a file."""
    source = open_source(reading.path, reading.limits)
    batches = reader.batches(source, reading, on_open=lambda: None, should_stop=lambda: False)
    return list(batches)


def of_all_kinds(voting: Voting) -> bytes:
    """A file with good and bad rows, rollbacks, blanks, marks of its encoding and no last end."""
    rows = voting.ballots(8, 20)
    odd = [rolled_back(rows[3]), "", rows[5], "a;b", "x" * 6_000, voting.create(1), "\udcff\x00"]
    text = "\r\n".join([*rows, *odd, *voting.ballots(9, 20)])
    return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogateescape")


def test_what_comes_from_the_reader_is_what_would_be_read_here(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """Records, rejects, blanks; from the start and from a checkpoint; file after file."""
    path = tmp_path / "a.csv"
    path.write_bytes(of_all_kinds(voting))
    start = reading_of(path, voting.contract)
    here = list(read_batches(open_source(path, start.limits), start))
    rest = start.behind(here[2])
    assert here == read_beside(reader, start)
    assert here[3:] == read_beside(reader, rest)
    assert {"Record", "Reject", "Blank"} == {
        type(outcome).__name__ for batch in here for outcome in batch.outcomes
    }
    path.write_bytes(b"")
    empty = reading_of(path, voting.contract)
    assert list(read_batches(open_source(path, empty.limits), empty)) == read_beside(reader, empty)


def test_what_goes_wrong_in_the_reader_is_raised_here(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """A refusal comes with its fields, and the same reader takes the next file."""
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffa;b\n".encode("utf-16-le"))
    wide = reading_of(path, voting.contract)
    with pytest.raises(FileRefused, match="UTF-16") as refused:
        read_beside(reader, wide)
    assert ("encoding", 1) == (refused.value.kind, refused.value.line)
    path.write_bytes(csv_of(voting.ballots(8, 1)))
    with pytest.raises(FileChanged):
        read_beside(reader, wide)
    good = reading_of(path, voting.contract)
    assert [2] == [len(batch.outcomes) for batch in read_beside(reader, good)]
    source = open_source(path, good.limits)
    path.unlink()
    gone = reader.batches(source, good, on_open=lambda: None, should_stop=lambda: False)
    with pytest.raises(FileVanished):
        next(gone)
    assert 1 == len(readers_of(getpid()))


def hours_of(voting: Voting, folder: Path) -> list[Reading]:
    """Four small files, the third of them no CSV."""
    readings = []
    for hour in range(4):
        path = folder / voting.name(hour)
        path.write_bytes(csv_of(voting.ballots(hour, 3)) if hour != 2 else b"PK\x03\x04 no more")
        readings.append(replace(reading_of(path, voting.contract), batch_rows=100))
    return readings


def test_a_run_is_read_in_advance_and_what_is_not_asked_for_is_passed_over(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """In their order; a file that was not announced comes behind them all, and so does the next."""
    run = hours_of(voting, tmp_path)
    here = [list(read_batches(open_source(run[at].path, run[at].limits), run[at])) for at in (1, 3)]
    reader.read_ahead(run, 0)
    # Two are in the slots by now, whoever asks.
    run[0].path.write_bytes(b"")
    assert here[0] == read_beside(reader, run[1])
    assert reader.wants(run[3], -1)
    assert here[1] == read_beside(reader, run[3])
    assert not reader.wants(run[3], -1)
    reader.read_ahead(run, 0)
    alone = replace(run[1], from_byte=here[0][0].outcomes[1].end, from_line=2)
    assert not reader.wants(alone, -1)
    assert [4] == [len(batch.outcomes) for batch in read_beside(reader, alone)]
    assert 1 == len(readers_of(getpid()))


def test_what_is_wrong_with_a_file_of_a_run_is_raised_where_it_is_asked_for(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """And costs no other one anything."""
    run = hours_of(voting, tmp_path)
    reader.read_ahead(run, 0)
    for at, reading in enumerate(run):
        if at == 2:
            with pytest.raises(FileRefused):
                read_beside(reader, reading)
        else:
            assert [6] == [len(batch.outcomes) for batch in read_beside(reader, reading)]
    assert 1 == len(readers_of(getpid()))


def test_a_run_that_is_small_is_read_by_whoever_stores_it(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """From an eighth of a large file on it is worth a way through a pipe."""
    run = hours_of(voting, tmp_path)
    reader.from_bytes = 8_000
    reader.read_ahead(run, 999)
    assert [False] * 4 == [reader.wants(reading, 999) for reading in run]
    reader.read_ahead(run, 1_000)
    assert [True] * 4 == [reader.wants(reading, 999) for reading in run]


def test_runs_that_nobody_comes_back_for_do_not_fill_the_pipe(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """The reader ends with them, and the next is asked for nothing but what is wanted."""
    run = hours_of(voting, tmp_path) * 16
    reader.read_ahead(run, 0)
    (process,) = readers_of(getpid())
    reader.read_ahead(run, 0)
    reader.read_ahead(run, 0)
    assert not is_alive(process)
    assert [6] == [len(batch.outcomes) for batch in read_beside(reader, run[0])]


def test_a_reader_that_dies_in_a_run_costs_no_file_anything(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """What it had not handed over is read here, or by the next one."""
    run = hours_of(voting, tmp_path)
    reader.read_ahead(run, 0)
    assert [6] == [len(batch.outcomes) for batch in read_beside(reader, run[0])]
    (process,) = readers_of(getpid())
    kill(process, signal.SIGKILL)
    soon(lambda: not is_alive(process))
    for at in (1, 3):
        assert [6] == [len(batch.outcomes) for batch in read_beside(reader, run[at])]


def large(voting: Voting, folder: Path, *hours: int) -> list[Reading]:
    """Files of some batches each, as they come behind one another."""
    readings = []
    for hour in hours:
        path = folder / voting.name(hour)
        path.write_bytes(csv_of(voting.ballots(hour, 30)))
        readings.append(reading_of(path, voting.contract))
    return readings


def digest_of(reader: Reader, reading: Reading, *, is_stopping: bool = False) -> Digest | None:
    """What the reader has found for the file that lies there now."""
    with closing(open_source(reading.path, reading.limits)) as source:
        return reader.hash_of(source, reading.csv, lambda: is_stopping)


def hashed_here(reading: Reading) -> Digest:
    """The same, found here."""
    content = reading.path.read_bytes()
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


def test_the_next_large_file_is_hashed_and_begun_behind_this_one(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """Its hash and its batches are those that it has; it is not told twice."""
    files = large(voting, tmp_path, 8, 9, 10)
    (process,) = readers_of(getpid())
    for at, reading in enumerate(files):
        here = list(read_batches(open_source(reading.path, reading.limits), reading))
        assert (hashed_here(reading) if at else None) == digest_of(reader, reading)
        reader.coming = files[at + 1] if at < 2 else None
        assert here == read_beside(reader, reading)
    assert [process] == readers_of(getpid())


def test_a_large_file_that_came_in_vain_is_not_read_on(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """The next one, large or of a run, has another reader; nobody has died."""
    first, unwanted, wanted = large(voting, tmp_path, 8, 9, 10)
    run = hours_of(voting, tmp_path)
    for behind in (wanted, run[0]):
        soon(reader.is_ready)
        reader.coming = unwanted
        read_beside(reader, first)
        (process,) = readers_of(getpid())
        if behind is not wanted:
            reader.read_ahead(run, 0)
        here = list(read_batches(open_source(behind.path, behind.limits), behind))
        assert here == read_beside(reader, behind)
        assert not is_alive(process)
    for _death in range(3):
        reader.coming = unwanted
        read_beside(reader, first)
        read_beside(reader, wanted)
        soon(reader.is_ready)


def test_the_hash_of_another_file_is_not_taken(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """Written anew behind it, gone meanwhile, or without a reader: we hash what is there."""
    first, changed, gone = large(voting, tmp_path, 8, 9, 10)
    reader.coming = changed
    read_beside(reader, first)
    changed.path.write_bytes(csv_of(voting.ballots(9, 31)))
    assert digest_of(reader, changed) is None
    soon(reader.is_ready)
    again = reading_of(changed.path, voting.contract)
    assert [62] == [sum(len(batch.outcomes) for batch in read_beside(reader, again))]
    source = open_source(gone.path, gone.limits)
    soon(reader.is_ready)
    reader.coming = gone
    gone.path.rename(tmp_path / "elsewhere")
    read_beside(reader, first)
    assert reader.hash_of(source, gone.csv, lambda: False) is None
    reader.close()
    assert digest_of(reader, first) is None


def test_who_waits_for_a_hash_heeds_a_stop_and_a_death(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """A reader that hangs ends with the stop; of one that was killed nobody expects anything."""
    first, coming = large(voting, tmp_path, 8, 9)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        soon(reader.is_ready)
        (process,) = readers_of(getpid())
        reader.coming = coming
        source = open_source(first.path, first.limits)
        batches = reader.batches(source, first, on_open=lambda: None, should_stop=lambda: False)
        next(batches)  # its slots are full, so that it has not come to the hash
        kill(process, number)
        if number == signal.SIGSTOP:
            with pytest.raises(StopRequested):
                digest_of(reader, coming, is_stopping=True)
        else:
            assert digest_of(reader, coming) is None
        assert not is_alive(process)


def test_a_reader_that_always_dies_behind_a_file_is_done_without(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """What it had put into its slots before makes no good reader of it."""
    (reading,) = large(voting, tmp_path, 8)
    reading = replace(reading, batch_rows=100)
    for _ in range(3):
        soon(reader.is_ready)
        reader.read_ahead([reading], 0)
        (process,) = readers_of(getpid())
        time.sleep(0.2)  # the file is in a slot, all of it
        kill(process, signal.SIGKILL)
        soon(lambda process=process: not is_alive(process))  # type: ignore[misc]  # bound now
        assert [60] == [len(batch.outcomes) for batch in read_beside(reader, reading)]
    assert not reader.is_ready()
    assert [] == readers_of(getpid())


def test_where_no_process_can_be_started_files_are_read_here(
    voting: Voting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without room for one more costs no file an attempt."""

    def bear(*_told: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr("ingestd.pipeline.child.bear", bear)
    reader = Reader(0)
    run = hours_of(voting, tmp_path)
    reader.read_ahead(run, 0)
    assert [6] == [len(batch.outcomes) for batch in read_beside(reader, run[0])]


def test_a_reader_ends_with_a_file_that_is_left_and_when_it_is_idle(
    reader: Reader, voting: Voting, tmp_path: Path
) -> None:
    """Nobody wants what it would go on with; the next file starts another."""
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(voting.ballots(8, 100)))
    reading = reading_of(path, voting.contract)
    source = open_source(path, reading.limits)
    batches = reader.batches(source, reading, on_open=lambda: None, should_stop=lambda: False)
    next(batches)
    batches.close()
    assert [] == readers_of(getpid())
    soon(reader.is_ready)
    reader.rest()
    assert 1 == len(readers_of(getpid()))
    reader.idle_seconds = 0
    reader.rest()
    assert [] == readers_of(getpid())


def test_who_waits_for_a_batch_heeds_a_stop(reader: Reader, voting: Voting, tmp_path: Path) -> None:
    """A reader that hangs, as on a file system that is away, keeps nobody."""
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(voting.ballots(8, 5)))
    reading = reading_of(path, voting.contract)
    source = open_source(path, reading.limits)
    (process,) = readers_of(getpid())
    kill(process, signal.SIGSTOP)
    batches = reader.batches(source, reading, on_open=lambda: None, should_stop=lambda: True)
    with pytest.raises(StopRequested):
        next(batches)
    assert not is_alive(process)


@pytest.mark.promise(1)
def test_a_reader_that_dies_again_and_again_is_done_without(
    reader: Reader, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Each time the rest is read here, or by the next one; after three times always here."""
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(voting.ballots(8, 200)))
    reading = reading_of(path, voting.contract)
    source = open_source(path, reading.limits)
    killed = []
    read = []
    for batch in reader.batches(source, reading, on_open=lambda: None, should_stop=lambda: False):
        read.append(batch)
        for process in readers_of(getpid()):
            kill(process, signal.SIGKILL)
            killed.append(process)
            soon(lambda process=process: not is_alive(process))  # type: ignore[misc]  # bound now
    did("the reader killed behind each batch", kills=len(killed))
    assert list(read_batches(source, reading)) == read
    assert 3 == len(killed)


@pytest.mark.parametrize("kind", DATABASES)
def test_both_ways_of_reading_give_the_same_tables(
    databases: Databases, reader: Reader, voting: Voting, drop_file: DropFile, kind: str
) -> None:
    """With a reader from the first byte, and without one."""
    found = drop_file(voting.name(8), of_all_kinds(voting))
    terms = replace(terms_in(found.root, is_archiving=False), batch_rows=10, max_reject_rows=99)
    tables = []
    for who in (None, reader):
        with databases.fresh(kind) as url, open_sessions(url) as sessions:
            Ingest(sessions, terms, Clock(), "me:1", reader=who).take(found)
            tables.append(snapshot(sessions))
            assert [] == unsound(sessions)
    assert [] == differences(*tables)


def whole_votings() -> dict[str, bytes]:
    """Bare, alone in a ZIP, again under another name, two in a ZIP, damaged, empty, nameless."""
    csvs = {}
    for number in range(7):
        voting = Voting(rng=random.Random(number))
        csvs[f"{voting.contract}.csv"] = of_all_kinds(voting)
    names = list(csvs)
    return {
        names[0]: csvs[names[0]],
        "1.zip": zip_of({names[1]: csvs[names[1]]}),
        f"again/{names[1]}": csvs[names[1]],
        names[2]: csvs[names[2]],
        "3.zip": zip_of({names[3]: csvs[names[3]], names[4]: csvs[names[4]]}),
        "4.zip": zip_of({names[5]: csvs[names[5]]})[:-30],
        names[5]: csvs[names[5]],
        f"empty/{names[5]}": b"",
        "nameless.csv": csvs[names[6]],
        names[6]: csvs[names[6]],
    }


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is small enough to be looked at with others."""
    monkeypatch.setattr("ingestd.pipeline.ahead._MOST_BYTES", 0)


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("kind", DATABASES)
def test_what_is_begun_behind_a_file_gives_the_same_tables_and_jobs(
    databases: Databases, reader: Reader, drop_file: DropFile, kind: str
) -> None:
    """Whatever comes behind one: each file ends as it does where nobody reads in advance."""
    files = whole_votings()
    tables, ends = [], []
    for who in (None, reader):
        run = [drop_file(name, content) for name, content in files.items()]
        terms = replace(terms_in(run[0].root, is_archiving=False), batch_rows=10)
        terms = replace(terms, max_reject_rows=99)
        with databases.fresh(kind) as url, open_sessions(url) as sessions:
            ingest = Ingest(sessions, terms, Clock(), "me:1", reader=who)
            ingest.look_ahead(run)
            for found in run:
                ingest.take(found)
                if who:
                    soon(reader.is_ready)
            tables.append(snapshot(sessions))
            jobs = jobs_on(url)
            ends.append({(job.path, job.member, job.sha256, job.status) for job in jobs})
            assert [] == unsound(sessions)
    assert [] == differences(*tables)
    assert ends[0] == ends[1]
    assert {"completed", "duplicate", "superseded", "quarantined"} == {end[-1] for end in ends[0]}


@pytest.mark.usefixtures("all_are_large")
def test_a_file_that_comes_behind_one_is_not_hashed_again(
    ingest: Ingest, reader: Reader, drop_file: DropFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except the first, whose hash nobody could know."""
    ingest.reader = reader
    run = [drop_file(name, content) for name, content in list(whole_votings().items())[:2]]
    hashed = []

    def counted(stream: BinaryIO, heard: Callable[[bytes], None]) -> Digest:
        hashed.append(stream)
        return sha256_of(stream, heard)

    monkeypatch.setattr("ingestd.pipeline.look.sha256_of", counted)
    ingest.look_ahead(run)
    jobs = [job for found in run for job in ingest.take(found)]
    assert ["completed"] * 2 == [job.status for job in jobs]
    # Of the ZIP its container.
    assert 2 == len(hashed)


def test_a_file_that_is_refused_in_the_middle_leaves_nothing(
    sessions: sessionmaker[Session],
    ingest: Ingest,
    reader: Reader,
    voting: Voting,
    drop_file: DropFile,
) -> None:
    """Too many rejects come out behind some batches; the next file is read by a new reader."""
    ingest.reader = reader
    ingest.terms = replace(ingest.terms, batch_rows=10)
    bad = ["a;b"] * 300
    (refused,) = ingest.take(drop_file(voting.name(8), [*voting.ballots(8, 50), *bad]))
    (taken,) = ingest.take(drop_file(voting.name(9), voting.ballots(9, 50)))
    assert ("quarantined", "completed") == (refused.status, taken.status)
    with sessions() as session:
        assert 100 == session.scalar(select(func.count(Transaction.id)))
        assert 0 == session.scalar(select(func.count(Reject.id)))
    assert [] == unsound(sessions)


# Real processes -----------------------------------------------------------------------------


def frozen_in_a_file(start: Start, voting: Voting) -> tuple[Running, int]:
    """A daemon that has stored four batches of a large file, and the reader of it."""
    daemon = start(wait=True, **FROZEN_WITH_A_READER)
    drop(daemon.inbox, voting.name(8), csv_of(voting.ballots(8, ROWS // 2)))
    daemon.wait_until_frozen()
    (process,) = readers_of(daemon.process.pid)
    soon(lambda: waits_for_words(process))
    daemon.thaw()
    daemon.wait_until_frozen()
    assert [process] == [line["process"] for line in daemon.log("reader_started")]
    return daemon, process


def ends_well(daemon: Running) -> None:
    """The file is completed, without an attempt, and the tables are sound."""
    soon(lambda: is_empty(daemon.inbox))
    (job,) = jobs_on(daemon.url)
    assert ("completed", ROWS, 0) == (job.status, job.rows_stored, job.attempts)
    with open_sessions(daemon.url) as sessions:
        assert [] == unsound(sessions)


@pytest.mark.slow
@pytest.mark.promise(1)
def test_a_killed_reader_costs_nothing(start_on_each: Start, voting: Voting, did: Did) -> None:
    """The daemon reads on where it was, in the same file, without an attempt."""
    daemon, process = frozen_in_a_file(start_on_each, voting)
    kill(process, signal.SIGKILL)
    daemon.thaw()
    did("SIGKILL to the reader in a file", kills=1, rows=ROWS)
    ends_well(daemon)
    assert [-signal.SIGKILL] == [line["status"] for line in daemon.log("reader_died")]


@pytest.mark.slow
@pytest.mark.promise(1, 3)
def test_a_reader_ends_with_its_daemon(start: Start, voting: Voting, did: Did) -> None:
    """Killed with -9 it leaves no orphan; the next one goes on at the checkpoint."""
    daemon, process = frozen_in_a_file(start, voting)
    daemon.kill()
    soon(lambda: not is_alive(process))
    did("SIGKILL to a daemon with a reader in a file", kills=1, rows=ROWS)
    assert ["processing"] == [job.status for job in jobs_on(daemon.url)]
    ends_well(start(INGEST__READER_FROM_MB="1"))


@pytest.mark.slow
@pytest.mark.promise(29)
def test_a_stop_in_a_file_ends_the_reader_too(start: Start, voting: Voting, did: Did) -> None:
    """The job is handed back at its checkpoint."""
    daemon, process = frozen_in_a_file(start, voting)
    assert 0 == daemon.stop()
    did("SIGTERM to a daemon with a reader in a file", rows=ROWS)
    assert not is_alive(process)
    (job,) = jobs_on(daemon.url)
    assert ("pending", 4 * BATCH_ROWS) == (job.status, job.rows_read)
    ends_well(start(INGEST__READER_FROM_MB="1"))


@pytest.mark.slow
@pytest.mark.promise(9)
def test_a_file_that_changes_while_the_reader_has_it_is_read_anew(
    start: Start, voting: Voting, did: Did
) -> None:
    """What was stored of the former bytes is taken out."""
    daemon, _ = frozen_in_a_file(start, voting)
    (path,) = daemon.inbox.iterdir()
    rows = voting.ballots(8, 7)
    path.write_bytes(csv_of(rows))
    daemon.thaw()
    soon(lambda: is_empty(daemon.inbox))
    did("a file written anew while the reader has it", rows=ROWS)
    assert {("vanished", 0), ("completed", 14)} == {
        (status, stored) for _, status, stored in states_on(daemon.url)
    }
    with open_sessions(daemon.url) as sessions:
        assert [] == unsound(sessions)
