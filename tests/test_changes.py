"""Files that change while they are read, and while they are put away."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import Alert, FileProcessing, Transaction
from ingestd.pipeline import archive
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.step import Step
from ingestd.pipeline.writers import (
    Writers,
    writers_kept_out,
    writers_of,
)

from .conftest import Did, DropFile, Voting, csv_of, tx_of, zip_of
from .oracle import unsound
from .running import Start, is_empty, jobs_on, open_sessions, soon

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

Sessions = sessionmaker[Session]
LAST_BATCH = 3
BATCH_ROWS = 4


# While it is read ---------------------------------------------------------------------------


@dataclass
class Disturbance:
    """Does something to a file when a step is over for the n-th time."""

    step: Step
    turn: int
    do: Callable[[], None]
    told: Counter[Step] = field(default_factory=Counter)

    def __call__(self, step: Step) -> None:
        """Note a step."""
        self.told[step] += 1
        if (step, self.told[step]) == (self.step, self.turn):
            self.do()


def grow(path: Path, _old: list[str], new: list[str]) -> None:
    """Somebody appends."""
    with path.open("ab") as stream:
        stream.write(csv_of(new[-1:]))


def truncate(path: Path, _old: list[str], new: list[str]) -> None:
    """Its end is cut off."""
    os.truncate(path, len(csv_of(new)))


def overwrite(path: Path, _old: list[str], new: list[str]) -> None:
    """Other bytes of the same number in the same file, and its mtime is put back."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(csv_of(new))
    assert (status.st_size, status.st_ino) == (path.stat().st_size, path.stat().st_ino)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_rename(path: Path, _old: list[str], new: list[str]) -> None:
    """Another file gets its name."""
    other = path.with_name(f"{path.name}.tmp")
    other.write_bytes(csv_of(new))
    other.rename(path)


def make_again(path: Path, _old: list[str], new: list[str]) -> None:
    """It is deleted and written anew."""
    path.unlink()
    path.write_bytes(csv_of(new))


def delete(path: Path, _old: list[str], _new: list[str]) -> None:
    """It is taken away."""
    path.unlink()


def longer(voting: Voting, hour: int, old: list[str]) -> list[str]:
    """One row more."""
    return [*old, voting.vote(60 * hour + 30)]


def shorter(_voting: Voting, _hour: int, old: list[str]) -> list[str]:
    """The last rows are missing."""
    return old[:-3]


def as_long(_voting: Voting, _hour: int, old: list[str]) -> list[str]:
    """One vote was cast a few milliseconds later."""
    columns = old[1].split(";")
    columns[4] = str(int(columns[4]) + 7)
    return [old[0], ";".join(columns), *old[2:]]


def other(voting: Voting, hour: int, _old: list[str]) -> list[str]:
    """All other rows."""
    return voting.ballots(hour, 5)


def nothing(_voting: Voting, _hour: int, _old: list[str]) -> list[str]:
    """No row."""
    return []


Change = Callable[[Path, list[str], list[str]], None]
NewRows = Callable[[Voting, int, list[str]], list[str]]
CHANGES: tuple[tuple[Change, NewRows], ...] = (
    (grow, longer),
    (truncate, shorter),
    (overwrite, as_long),
    (replace_by_rename, other),
    (make_again, other),
    (delete, nothing),
)
MOMENTS = (
    (Step.LOOKED, 1),
    (Step.RECORDED, 1),
    (Step.READ, 1),
    (Step.STORED, 1),
    (Step.LOADED, 2),
    (Step.ADVANCED, LAST_BATCH),
    (Step.COMPLETED, 1),
    (Step.STORED, LAST_BATCH),
)
# From here on the old bytes are delivered, and what comes is another publication.
TOO_LATE = ((Step.COMPLETED, 1), (Step.STORED, LAST_BATCH))


def told(rows: list[str]) -> set[tuple[str, int]]:
    """Which transactions at which times the rows hold."""
    return {(tx_of(row), int(row.split(";")[4])) for row in rows}


def counted(sessions: Sessions, slot: str) -> set[tuple[str, int]]:
    """Which transactions at which times count in a slot."""
    with sessions() as session:
        rows = session.execute(
            select(Transaction.tx_id, Transaction.timestamp).where(
                Transaction.slot == slot, Transaction.status == "accepted"
            )
        )
        return {(row.tx_id, round(row.timestamp.timestamp() * 1000)) for row in rows}


def slot_of(hour: int) -> str:
    """The slot of an hour, as a name says it."""
    return f"2024-09-06_{hour:02}00-{hour + 1:02}00"


def take_all(ingest: Ingest, inbox: Path) -> None:
    """Take what lies there until nothing does."""
    for _ in range(5):
        for path in sorted(path for path in inbox.rglob("*") if path.is_file()):
            ingest.take(Found(inbox, path.relative_to(inbox), "asked"))


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("change", "new_rows"), CHANGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_file_that_changes_while_it_is_read_counts_as_it_is_in_the_end(
    sessions: Sessions,
    ingest: Ingest,
    inbox: Path,
    drop_file: DropFile,
    voting: Voting,
    did: Did,
    change: Change,
    new_rows: NewRows,
) -> None:
    """At whatever moment: no row of the old bytes stays, none of the new ones is missing."""
    did(f"{change.__name__} at {len(MOMENTS)} moments of a file of {LAST_BATCH} batches")
    ingest.terms = replace(ingest.terms, batch_rows=BATCH_ROWS)
    for hour, (step, turn) in enumerate(MOMENTS):
        old = voting.ballots(hour, 6)
        new = new_rows(voting, hour, old)
        found = drop_file(voting.name(hour), old)
        time.sleep(0.02)  # beyond the grain of a ctime
        disturbance = Disturbance(step, turn, lambda: change(found.path, old, new))  # noqa: B023
        ingest.on_step = disturbance
        ingest.take(found)
        assert turn <= disturbance.told[step]
        ingest.on_step = lambda _step: None
        is_delivered = (step, turn) in TOO_LATE
        # Right after the attempt: nothing, or all of the old bytes.
        assert (told(old) if is_delivered else set()) == counted(sessions, slot_of(hour))
        take_all(ingest, inbox)
        expected = old if change is delete and is_delivered else new
        assert told(expected) == counted(sessions, slot_of(hour)), (step, turn)
    assert not list(inbox.iterdir())
    assert [] == unsound(sessions)


@pytest.mark.promise(9)
def test_a_zip_that_is_replaced_while_it_is_read_is_read_anew(
    sessions: Sessions, ingest: Ingest, inbox: Path, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Its first member was delivered already; nothing of the old second one stays."""
    did("a ZIP of 2 CSVs is replaced in the second")
    ingest.terms = replace(ingest.terms, batch_rows=BATCH_ROWS)
    first, second, newer = (voting.ballots(hour, 6) for hour in (8, 9, 9))
    found = drop_file(
        "hours.zip", zip_of({voting.name(8): csv_of(first), voting.name(9): csv_of(second)})
    )
    fresh = zip_of({voting.name(8): csv_of(first), voting.name(9): csv_of(newer)})

    def exchange() -> None:
        (inbox / "hours.tmp").write_bytes(fresh)
        (inbox / "hours.tmp").rename(found.path)

    ingest.on_step = Disturbance(Step.STORED, LAST_BATCH + 1, exchange)
    ingest.take(found)
    assert (told(first), set()) == (counted(sessions, slot_of(8)), counted(sessions, slot_of(9)))
    ingest.on_step = lambda _step: None
    take_all(ingest, inbox)
    assert (told(first), told(newer)) == tuple(counted(sessions, slot_of(h)) for h in (8, 9))
    assert [] == unsound(sessions)


@pytest.mark.promise(9)
def test_bytes_that_are_gone_are_not_judged(
    sessions: Sessions, ingest: Ingest, inbox: Path, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """A ZIP that is overwritten while it is read looks damaged; no quarantine, no alert."""
    did("a ZIP of 3 MB is overwritten after its first row")
    rows = [voting.voters_list(60 * 8 + minute, 20_000) for minute in range(4)]
    found = drop_file("hours.zip", zip_of({voting.name(8): csv_of(rows)}))
    fresh = zip_of({voting.name(8): csv_of(rows[1:2])})
    ingest.terms = replace(ingest.terms, batch_rows=1)
    ingest.on_step = Disturbance(Step.STORED, 1, lambda: _overwrite_whole(found.path, fresh))
    ingest.take(found)
    ingest.on_step = lambda _step: None
    take_all(ingest, inbox)
    assert told(rows[1:2]) == counted(sessions, slot_of(8))
    with sessions() as session:
        assert [] == session.scalars(select(Alert.type)).all()
        states = session.scalars(select(FileProcessing.status).order_by(FileProcessing.status))
        assert ["completed", "vanished"] == list(states)
    assert [] == unsound(sessions)


@pytest.mark.promise(9)
def test_a_zip_that_changes_while_it_is_hashed_is_no_damaged_zip(
    sessions: Sessions, ingest: Ingest, inbox: Path, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Its list of members is that of the old bytes; the new bytes are read as what they are."""
    did("a ZIP of 2 CSVs is overwritten between the hashes of the two")
    rows = voting.ballots(8, 2)
    # Larger than what is read ahead of the first one.
    members = {voting.name(hour): csv_of([voting.voters_list(1, 20_000)]) for hour in (9, 10)}
    found = drop_file("hours.zip", zip_of(members))
    asked: list[int] = []

    def overwrite_at_the_second() -> bool:
        asked.append(1)
        if len(asked) == 2:
            _overwrite_whole(found.path, zip_of({voting.name(8): csv_of(rows)}))
        return False

    ingest.should_stop = overwrite_at_the_second
    assert [] == ingest.take(found)
    with sessions() as session:
        assert [] == session.scalars(select(FileProcessing)).all()
    take_all(ingest, inbox)
    assert told(rows) == counted(sessions, slot_of(8))
    assert [] == unsound(sessions)


def _overwrite_whole(path: Path, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.truncate()
        stream.write(content)


# While it is put away -----------------------------------------------------------------------


@pytest.mark.promise(9)
def test_a_file_that_somebody_holds_open_is_not_put_away(
    sessions: Sessions,
    ingest: Ingest,
    inbox: Path,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    did: Did,
) -> None:
    """Whoever writes on through his handle would write into the archive, where nobody reads."""
    did("opened before the last commit, 2 rows written after it, closed")
    old, more = voting.ballots(8, 3), voting.ballots(8, 1)
    found = drop_file(voting.name(8), old)
    handles: list[int] = []
    opened = Disturbance(
        Step.STORED, 1, lambda: handles.append(os.open(found.path, os.O_WRONLY | os.O_APPEND))
    )
    ingest.on_step = opened
    (job,) = ingest.take(found)
    assert ("completed", True) == (job.status, found.path.exists())
    os.write(handles[0], csv_of(more))
    ingest.take(found)
    assert found.path.exists()
    os.close(handles[0])
    take_all(ingest, inbox)
    assert told(old + more) == counted(sessions, slot_of(8))
    (put_away,) = (tmp_path / "archive").iterdir()
    assert csv_of(old + more) == put_away.read_bytes()
    assert [] == unsound(sessions)


@pytest.mark.promise(9)
def test_nobody_can_begin_to_write_between_the_last_look_and_the_move(
    ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """A read lease makes a writer wait; one that refuses to wait is told so."""
    did("open for writing between look and move: refused")
    refused: list[str] = []
    found = drop_file(voting.name(8), [f"{row};extra" for row in voting.ballots(8, 15)])

    def write() -> None:
        try:
            os.close(os.open(found.path, os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError:
            refused.append("would wait")

    # An unfit file has a step between the two: its reason is written.
    ingest.on_step = Disturbance(Step.EXPLAINED, 1, write)
    ingest.take(found)
    assert ["would wait"] == refused
    assert not found.path.exists()


@pytest.mark.promise(9)
def test_a_file_that_takes_the_name_before_the_move_is_put_back_and_read(
    sessions: Sessions,
    ingest: Ingest,
    inbox: Path,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    did: Did,
) -> None:
    """Another file was renamed to it in that very moment; it must not be put away unread."""
    did("renamed over between look and move")
    good = voting.ballots(8, 4)
    found = drop_file(voting.name(8), [f"{row};extra" for row in voting.ballots(8, 15)])
    change = Disturbance(Step.EXPLAINED, 1, lambda: replace_by_rename(found.path, [], good))
    ingest.on_step = change
    ingest.take(found)
    assert csv_of(good) == found.path.read_bytes()
    ingest.on_step = lambda _step: None
    take_all(ingest, inbox)
    assert told(good) == counted(sessions, slot_of(8))
    assert [found.path.name] == [path.name for path in (tmp_path / "archive").iterdir()]
    assert [] == unsound(sessions)


def test_what_is_put_back_never_replaces_what_has_come_meanwhile(tmp_path: Path) -> None:
    """Both are read, under two names of one slot."""
    (tmp_path / "away.csv").write_text("old")
    (tmp_path / "home.csv").write_text("new")
    back = archive.put_back(tmp_path / "away.csv", tmp_path / "home.csv")
    assert ("home (2).csv", "old") == (back.name, back.read_text())
    assert "new" == (tmp_path / "home.csv").read_text()


@pytest.mark.promise(9)
def test_a_copy_to_another_file_system_of_a_file_that_changes_is_given_up(
    ingest: Ingest, sessions: Sessions, inbox: Path, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """A file is renamed over it while it is copied; the copy goes, what came is read."""
    did("replaced while it is copied to another file system")
    elsewhere = Path("/dev/shm") / f"ingestd-{os.getpid()}-{random.random()}"
    ingest.terms = replace(ingest.terms, archive=elsewhere)
    old, new = voting.ballots(8, 4), voting.ballots(8, 5)
    path = inbox / voting.name(8)
    path.write_bytes(csv_of(old))
    try:
        ingest.on_step = Disturbance(Step.COPIED, 1, lambda: replace_by_rename(path, old, new))
        ingest.take(Found(inbox, Path(path.name), "asked"))
        assert (csv_of(new), []) == (path.read_bytes(), list(elsewhere.iterdir()))
        ingest.on_step = lambda _step: None
        take_all(ingest, inbox)
        assert told(new) == counted(sessions, slot_of(8))
        assert [csv_of(new)] == [path.read_bytes() for path in elsewhere.iterdir()]
    finally:
        for left in elsewhere.iterdir():
            left.unlink()
        elsewhere.rmdir()
    assert [] == unsound(sessions)


# Under a real writer ------------------------------------------------------------------------


def digests(*folders: Path) -> Counter[str]:
    """The SHA-256 of every CSV below the folders."""
    return Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*.csv")
    )


@pytest.mark.promise(8, 9)
def test_a_writer_that_opens_by_name_again_and_again_loses_no_row(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Whatever is taken when: each row lies in one archived file, which the ledger knows."""
    daemon = start_on_each(WATCH__SETTLE_SECONDS="0", WATCH__POLL_SECONDS="0.05")
    rng = random.Random(8)
    rows = voting.ballots(8, 50)
    path = daemon.inbox / voting.name(8)
    for number, row in enumerate(rows):
        if number % 25 == 24:
            soon(lambda: is_empty(daemon.inbox))
        with path.open("ab", buffering=0) as stream:
            half = len(row) // 2
            stream.write(row[:half].encode())
            time.sleep(rng.choice((0, 0, 0.03)))
            stream.write(f"{row[half:]}\n".encode())
        time.sleep(rng.choice((0, 0.001, 0.01)))
    soon(lambda: is_empty(daemon.inbox))
    assert 0 == daemon.stop()
    files = list((tmp_path / "archive").rglob("*.csv"))
    assert 5 <= len(files)
    did(f"100 rows in 100 openings at random times, taken in {len(files)} files")
    assert not list((tmp_path / "quarantine").iterdir())
    # A row that was read between its halves lies in two files, the one after the other.
    files.sort(key=lambda file: file.stat().st_mtime_ns)
    archived = b"".join(file.read_bytes() for file in files).decode().splitlines()
    assert rows == archived
    jobs = jobs_on(migrated_url)
    read = {job.sha256 for job in jobs if job.status in ("completed", "superseded")}
    # What grew between its commit and its move was read, and read again when it had grown.
    assert set(digests(tmp_path / "archive")) <= read
    with open_sessions(migrated_url) as sessions:
        with sessions() as session:
            found = session.execute(select(Transaction.tx_id, Transaction.status)).all()
        # A row that was read in two halves is two rejects; all others are in the tables. Those
        # that only a superseded file holds do not count, and say so.
        whole = {tx_of(row) for row in rows} & {tx_of(row) for row in archived}
        assert whole >= {row.tx_id for row in found}
        assert {"accepted", "withdrawn"} >= {row.status for row in found}
        assert [] == unsound(sessions)


@pytest.mark.promise(9)
def test_no_file_is_put_away_unread_however_often_it_is_replaced(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Somebody renames new files over one name all the time; the ledger knows all that left."""
    daemon = start(WATCH__SETTLE_SECONDS="0", WATCH__POLL_SECONDS="0.02")
    path = daemon.inbox / voting.name(8)
    contents = [csv_of(voting.ballots(8, 3)) for _ in range(200)]
    rng = random.Random(9)
    # From outside, since a rename inside the inbox is evidence by itself; both must do.
    outside = tmp_path / "outside.csv"
    for number, content in enumerate(contents):
        before = outside if number % 2 else daemon.inbox / "next.tmp"
        before.write_bytes(content)
        before.rename(path)
        time.sleep(rng.choice((0, 0.001, 0.004)))
    soon(lambda: is_empty(daemon.inbox))
    assert 0 == daemon.stop()
    jobs = jobs_on(sqlite_url)
    read = {job.sha256 for job in jobs if job.status in ("completed", "superseded")}
    archived = digests(tmp_path / "archive")
    did(f"{len(contents)} files renamed over one name, {len(read)} of them read")
    assert set(archived) <= read
    assert hashlib.sha256(contents[-1]).hexdigest() in archived
    with open_sessions(sqlite_url) as sessions:
        last = [row for row in contents[-1].decode().splitlines() if row]
        assert told(last) == counted(sessions, slot_of(8))
        assert [] == unsound(sessions)


# Who writes ---------------------------------------------------------------------------------


def test_who_has_a_file_open_for_writing_is_known(tmp_path: Path) -> None:
    """A reader is no writer, and where there is no file nobody can tell."""
    path = tmp_path / "a.csv"
    path.write_text("x")
    assert Writers.NONE is writers_of(path)
    with path.open("rb"):
        assert Writers.NONE is writers_of(path)
    with path.open("ab"):
        assert Writers.SOME is writers_of(path)
    assert Writers.NONE is writers_of(path)
    assert Writers.UNKNOWN is writers_of(tmp_path / "gone.csv")
    os.mkfifo(tmp_path / "fifo.csv")
    assert Writers.UNKNOWN is writers_of(tmp_path / "fifo.csv")
    (tmp_path / "link.csv").symlink_to(path)
    assert Writers.UNKNOWN is writers_of(tmp_path / "link.csv")


def test_a_writer_that_waits_goes_on_when_the_block_is_over(tmp_path: Path) -> None:
    """It is held back for a moment, not refused; the signal that tells us so ends nobody."""
    path = tmp_path / "a.csv"
    path.write_text("x")
    writer = threading.Thread(target=lambda: path.write_text("y"))
    with writers_kept_out(path) as writers:
        assert Writers.NONE is writers
        writer.start()
        time.sleep(0.2)
        assert "x" == path.read_text()
    writer.join(20)
    assert "y" == path.read_text()
