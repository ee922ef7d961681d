"""Files and processes that get into each other's way: replaced, twin, and competing files."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import StopRequested
from ingestd.models import Alert, FileProcessing, Transaction
from ingestd.pipeline import ledger
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.read import open_source
from ingestd.pipeline.step import Step

from .conftest import Clock, Databases, Did, DropFile, Voting, csv_of, terms_in, zip_of
from .oracle import unsound
from .running import open_sessions

Sessions = sessionmaker[Session]


def states(sessions: Sessions) -> dict[str, str]:
    """The state of each job by the last part of its path, or its member."""
    with sessions() as session:
        jobs = session.scalars(select(FileProcessing))
        return {(job.member or job.path).rsplit("/", 1)[-1]: str(job.status) for job in jobs}


def by_status(sessions: Sessions) -> dict[str, int]:
    """How many transactions stand where."""
    with sessions() as session:
        query = select(Transaction.status, func.count()).group_by(Transaction.status)
        return {row[0]: row[1] for row in session.execute(query)}


def second(sessions: Sessions, folder: Path, clock: Clock, **terms: object) -> Ingest:
    """Another process on the same database."""
    held = replace(terms_in(folder), **terms)  # type: ignore[arg-type]  # names of Terms
    return Ingest(sessions, held, clock, "elsewhere:2")


def stop_after_a_batch(ingest: Ingest) -> None:
    """Ask for a stop as soon as something is committed."""

    def stop(_path: str, _read: int, _size: int) -> None:
        ingest.should_stop = lambda: True

    ingest.on_progress = stop


def go_on(ingest: Ingest) -> None:
    """Start again."""
    ingest.should_stop = lambda: False
    ingest.on_progress = lambda _path, _read, _size: None


def test_a_half_read_file_that_is_replaced_leaves_nothing_behind(
    sessions: Sessions, tmp_path: Path, clock: Clock, drop_file: DropFile, voting: Voting
) -> None:
    """Stopped in the middle, then overwritten: only the new bytes count, and the old may return."""
    rows = voting.ballots(8, 20)
    first = second(sessions, tmp_path, clock, batch_rows=10, is_archiving=False)
    stop_after_a_batch(first)
    with pytest.raises(StopRequested):
        first.take(drop_file(voting.name(8), rows))
    assert {"accepted": 10} == by_status(sessions)
    go_on(first)
    first.take(drop_file(voting.name(8), rows[20:]))
    assert {"accepted": 20} == by_status(sessions)
    (again,) = first.take(drop_file(f"again/{voting.name(8)}", rows))
    assert "completed" == again.status
    assert {"accepted": 40} == by_status(sessions)
    assert [] == unsound(sessions)


def test_a_file_that_was_taken_away_between_batches_is_undone_whole(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """All batches leave the tables, also the one after the last look."""
    ingest.terms = replace(ingest.terms, batch_rows=4)
    found = drop_file(voting.name(8), voting.ballots(8, 3) + voting.ballots(12, 3))

    def remove(_path: str, _read: int, _size: int) -> None:
        found.path.unlink(missing_ok=True)

    ingest.on_progress = remove
    assert [] == ingest.take(found)
    assert ({}, {found.label: "vanished"}) == (by_status(sessions), states(sessions))


@pytest.mark.parametrize("is_slotless_first", [True, False])
def test_twins_in_one_zip_give_the_same_in_either_order(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, is_slotless_first: bool
) -> None:
    """One names its slot, one does not; a later publication of the slot leaves rows out."""
    rows = voting.ballots(8, 3)
    members = [("export.csv", csv_of(rows)), (voting.name(8), csv_of(rows))]
    if not is_slotless_first:
        members.reverse()
    ingest.take(drop_file(f"{voting.contract}/both.zip", zip_of(dict(members))))
    ingest.take(drop_file(voting.name(8), rows[:4]))
    assert {"accepted": 4, "withdrawn": 2} == by_status(sessions)


@pytest.mark.parametrize("is_plain_first", [True, False])
def test_a_zip_under_a_name_that_tells_the_slot_is_not_the_same_zip(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, is_plain_first: bool
) -> None:
    """Where the ZIP's name decides, known bytes are not known enough."""
    packed = zip_of({"export.csv": csv_of(voting.ballots(8, 3))})
    names = [f"{voting.contract}/foo.zip", voting.name(8, ".zip")]
    for name in names if is_plain_first else names[::-1]:
        ingest.take(drop_file(name, packed))
    with sessions() as session:
        slots = set(session.scalars(select(Transaction.slot)))
    assert {"2024-09-06_0800-0900"} == slots
    assert [] == unsound(sessions)


def test_the_same_bytes_under_two_contracts_at_once_are_delivered_once(
    sessions: Sessions,
    ingest: Ingest,
    tmp_path: Path,
    clock: Clock,
    drop_file: DropFile,
    voting: Voting,
) -> None:
    """The misnamed twin came and went while the first was being read."""
    ingest.terms = replace(ingest.terms, batch_rows=4)
    rows = voting.ballots(8, 4)
    other = Voting(rng=random.Random(5))
    twin = drop_file(other.name(8), rows)
    rival = second(sessions, tmp_path, clock, batch_rows=4)

    def overtake(_path: str, _read: int, _size: int) -> None:
        rival.take(twin) if twin.path.exists() else None

    ingest.on_progress = overtake
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    assert "quarantined" == job.status
    assert other.contract in (job.first_error_message or "")
    assert {"accepted": 8} == by_status(sessions)


def test_a_nameless_file_that_comes_back_is_looked_at_again(
    sessions: Sessions, ingest: Ingest, inbox: Path, drop_file: DropFile, voting: Voting
) -> None:
    """A mount that was away for one look must not send a file to the archive unread."""
    found = drop_file("nameless.csv", voting.ballots(8, 2))
    source = open_source(found.path, ingest.terms.read)
    ingest._record(found, source)  # noqa: SLF001 - as far as a crash let it come
    hidden = inbox.with_name("elsewhere")
    inbox.rename(hidden)
    inbox.mkdir()
    assert 1 == ingest.note_missing(inbox)
    inbox.rmdir()
    hidden.rename(inbox)
    (job,) = ingest.take(found)
    assert "quarantined" == job.status


def test_a_stop_is_heeded_between_the_members_of_a_zip(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Thousands of small members must not outlast the stop time-out."""
    members = {voting.name(hour): csv_of(voting.ballots(hour, 2)) for hour in range(5)}
    found = drop_file("hours.zip", zip_of(members))
    stop_after_a_batch(ingest)
    with pytest.raises(StopRequested):
        ingest.take(found)
    assert 4 == by_status(sessions)["accepted"]
    go_on(ingest)
    assert 5 == len(ingest.take(found))
    assert 20 == by_status(sessions)["accepted"]


def test_a_date_beyond_all_calendars_is_a_date(ingest: Ingest, voting: Voting) -> None:
    """An mtime in the year 33658 is odd, but it is no reason to stop."""
    folder = Path("/dev/shm") / f"ingestd-{os.getpid()}"
    folder.mkdir()
    try:
        path = folder / voting.name(8)
        path.write_bytes(csv_of(voting.ballots(8, 2)))
        os.utime(path, ns=(0, 999_999_999_999 * 10**9))
        (job,) = ingest.take(Found(folder, Path(path.name), "asked"))
        assert "completed" == job.status
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


def test_a_path_longer_than_a_key_is_a_path(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """PostgreSQL indexes at most 2 700 bytes; Linux allows paths of 4 095."""
    name = "/".join([*(["x" * 240] * 13), voting.name(8)])
    (job,) = ingest.take(drop_file(name, voting.ballots(8, 2)))
    assert "completed" == job.status


# Two processes on PostgreSQL: between any two statements of one there may be a commit of the other


@pytest.fixture
def postgresql_sessions(databases: Databases) -> Iterator[Sessions]:
    """Sessions on PostgreSQL alone: on SQLite nothing comes between."""
    with databases.fresh("postgresql") as url, open_sessions(url) as sessions:
        yield sessions


@pytest.mark.promise(30)
def test_a_job_that_another_finishes_is_not_undone_by_who_saw_it_queued(
    postgresql_sessions: Sessions,
    tmp_path: Path,
    clock: Clock,
    drop_file: DropFile,
    voting: Voting,
    did: Did,
) -> None:
    """Its last batch, and its way to the archive, came between the look and the undo."""
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    worker = second(postgresql_sessions, tmp_path, clock, batch_rows=4)
    onlooker = second(postgresql_sessions, tmp_path, clock, batch_rows=4)
    worker.owner = onlooker.owner + "0"
    stop_after_a_batch(worker)
    with pytest.raises(StopRequested):
        worker.take(found)
    go_on(worker)

    def is_gone(job: FileProcessing) -> bool:
        """Tell the truth, after the file has been ingested and put away."""
        worker.take(found)
        return not ledger.is_there(job)

    assert 0 == onlooker._let_go(found.root, is_gone)  # noqa: SLF001 - `note_missing`, slowly
    assert {found.label: "completed"} == states(postgresql_sessions)
    assert {"accepted": 20} == by_status(postgresql_sessions)
    assert [] == unsound(postgresql_sessions)
    did("1 look at a job that was finished meanwhile")


@pytest.mark.promise(30)
def test_a_broken_zip_that_two_record_at_once_is_one_job_and_one_alert(
    sessions: Sessions, tmp_path: Path, clock: Clock, drop_file: DropFile, did: Did
) -> None:
    """Whoever comes second leaves it to the first."""
    broken = [drop_file(f"{number}.zip", b"PK\x03\x04" + bytes([number])) for number in range(20)]
    gate = threading.Barrier(2)
    errors: list[Exception] = []

    def take_all(name: str) -> None:
        ingest = second(sessions, tmp_path, clock)
        ingest.owner = name
        for found in broken:
            gate.wait(30)
            try:
                ingest.take(found)
            except FileNotFoundError:  # the other one has put it away
                continue
            except Exception as error:  # noqa: BLE001 - told by the test
                errors.append(error)

    threads = [threading.Thread(target=take_all, args=(name,)) for name in ("one:1", "two:2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
    assert {found.label: "quarantined" for found in broken} == states(sessions)
    with sessions() as session:
        assert len(broken) == session.scalar(select(func.count()).select_from(FileProcessing))
        assert len(broken) == session.scalar(select(func.count()).select_from(Alert))
    assert not any(found.path.exists() for found in broken)
    did(f"{len(broken)} broken ZIPs, 2 at once")


def broken_by(ingest: Ingest) -> None:
    """Something unforeseen."""
    del ingest
    raise RuntimeError("unforeseen")


def stopped_by(ingest: Ingest) -> None:
    """A stop."""
    ingest.should_stop = lambda: True


@pytest.mark.promise(30)
@pytest.mark.parametrize("end", [broken_by, stopped_by], ids=lambda value: value.__name__)
def test_an_owner_that_lost_its_job_neither_fails_nor_releases_it(
    sessions: Sessions,
    tmp_path: Path,
    clock: Clock,
    drop_file: DropFile,
    voting: Voting,
    end: Callable[[Ingest], None],
    did: Did,
) -> None:
    """Its lease was over, and another has the job."""
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    slow = second(sessions, tmp_path, clock, batch_rows=4)

    def overtaken(step: Step) -> None:
        if step != Step.STORED:
            return
        clock.advance(100)
        with sessions.begin() as session:
            assert 1 == ledger.release_dead(session, now=clock(), owner="there:2:2")
            job = session.scalars(select(FileProcessing)).one()
            books = ledger.Books.of(job)
            lease = timedelta(seconds=60)
            ledger.claim(session, job, owner="there:2:2", books=books, now=clock(), lease=lease)
        end(slow)

    slow.on_step = overtaken
    try:
        assert [] == slow.take(found)
    except StopRequested:
        assert end is stopped_by
    with sessions() as session:
        job = session.scalars(select(FileProcessing)).one()
        assert ("processing", "there:2:2", 0) == (job.status, job.owner, job.attempts)
    did("1 end of an owner that had lost its job")


@pytest.mark.promise(24)
def test_a_value_that_the_database_refuses_costs_attempts_and_then_the_file(
    postgresql_sessions: Sessions,
    tmp_path: Path,
    clock: Clock,
    drop_file: DropFile,
    voting: Voting,
    did: Did,
) -> None:
    """It is no fault of the database, so it is not waited for; its neighbour is stored."""
    with postgresql_sessions.begin() as session:
        session.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "IF NEW.version = 77 THEN RAISE numeric_value_out_of_range; END IF; "
                "RETURN NEW; END $$"
            )
        )
        session.execute(
            text(
                "CREATE TRIGGER refuse BEFORE INSERT ON transaction "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
    rows = voting.ballots(8, 4)
    fields = rows[5].split(";")
    rows[5] = ";".join([*fields[:3], "77", *fields[4:]])
    ingest = second(postgresql_sessions, tmp_path, clock, batch_rows=2)
    poison, neighbour = drop_file(voting.name(8), rows), drop_file(voting.name(9), [])
    for attempt in range(1, ingest.terms.attempts):
        (job,) = ingest.take(poison)
        assert ("failed", attempt) == (job.status, job.attempts)
        clock.advance(3600)
    (job,) = ingest.take(poison)
    assert ("quarantined", 0) == (job.status, job.rows_stored)
    assert "NumericValueOutOfRange" in (job.first_error_message or "")
    (job,) = ingest.take(neighbour)
    assert "completed" == job.status
    assert {} == by_status(postgresql_sessions)
    did(f"1 value out of range, {ingest.terms.attempts} attempts")


class _KilledError(BaseException):
    """Ends a process in the midst of a file: nothing is tidied up."""


def _dying(ingest: Ingest, found: Found) -> None:
    """Another process of the same name, such as a worker: killed behind its first batch."""

    def on_step(step: Step) -> None:
        if step is Step.STORED:
            raise _KilledError

    dying = Ingest(ingest.sessions, ingest.terms, ingest.clock, ingest.owner, on_step=on_step)
    with pytest.raises(_KilledError):
        dying.take(found)


@pytest.mark.promise(1, 24)
def test_a_batch_that_is_committed_after_its_killed_worker_was_replaced_is_read_once(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, voting: Voting
) -> None:
    """The server goes on with a commit whose answer nobody waits for; its hours count, too."""
    ingest.terms = replace(ingest.terms, batch_rows=4)
    rows = [row for hour in range(8, 12) for row in voting.ballots(hour, 2)]
    found = drop_file(voting.name(8), rows)
    _dying(ingest, found)
    has_come: list[Step] = []

    def commit_late(step: Step) -> None:
        if step is Step.OPENED and not has_come:
            has_come.append(step)
            _dying(ingest, found)

    heir = Ingest(ingest.sessions, ingest.terms, ingest.clock, ingest.owner, on_step=commit_late)
    assert [] == heir.take(found)
    (job,) = heir.take(found)
    assert (len(rows), 0) == (job.rows_stored, job.rows_known)
    assert [] == unsound(sessions)


@pytest.mark.parametrize("files", [1, 2], ids=["one by one", "looked ahead"])
def test_two_processes_that_record_publications_of_an_hour_number_them_one_after_the_other(
    databases: Databases, tmp_path: Path, clock: Clock, voting: Voting, files: int
) -> None:
    """Else none of them would be the newest: the second waits for the commit of the first."""
    with databases.fresh("postgresql") as url, open_sessions(url) as sessions:
        one, other = (second(sessions, tmp_path / name, clock) for name in ("one", "other"))
        found: dict[str, list[Found]] = {}
        for name in ("one", "other"):
            inbox = tmp_path / name / "inbox"
            inbox.mkdir(parents=True)
            for hour in range(8, 8 + files):
                content = csv_of(voting.ballots(hour, 2 if name == "one" else 3))
                (inbox / voting.name(hour)).write_bytes(content)
            names = sorted(path.name for path in inbox.iterdir())
            found[name] = [Found(inbox, Path(each), "settled") for each in names]
        # The constituency is known already: nobody waits for another who makes it.
        (tmp_path / "one" / "inbox" / voting.name(20)).write_bytes(b"")
        record(one, [Found(tmp_path / "one" / "inbox", Path(voting.name(20)), "settled")])
        of_other = threading.Thread(target=record, args=(other, found["other"]))

        def go(step: Step) -> None:
            if step is Step.NOTED:  # written down, not committed
                of_other.start()
                of_other.join(0.5)
                assert of_other.is_alive()

        one.on_step = go
        record(one, found["one"])
        of_other.join(60)
        with sessions() as session:
            told = session.execute(select(FileProcessing.slot, FileProcessing.publication)).all()
        assert 2 * files + 1 == len({tuple(each) for each in told})


def record(ingest: Ingest, files: list[Found]) -> None:
    """Write down the jobs of some files, and leave it at that."""
    if len(files) > 1:
        ingest.look_ahead(files)
        ingest.forget_ahead()
        return
    source = open_source(files[0].path, ingest.terms.read)
    try:
        ingest._record(files[0], source)  # noqa: SLF001 - what comes after is not asked for
    finally:
        source.close()
