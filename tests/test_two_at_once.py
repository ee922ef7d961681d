"""Files and processes that get into each other's way: replaced, twin, and competing files."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import StopRequested
from ingestd.models import FileProcessing, Transaction
from ingestd.pipeline.ingest import Found, Ingest
from ingestd.pipeline.read import open_source

from .conftest import Clock, DropFile, Voting, csv_of, terms_in, zip_of
from .oracle import unsound

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
