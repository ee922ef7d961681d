"""Forgetting: a file leaves the tables as if it had never been dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import CannotAmend, StopRequested
from ingestd.models import Alert, Constituency, FileProcessing, Reject, Sighting, Transaction
from ingestd.pipeline.forget import Forgotten, forget
from ingestd.pipeline.ingest import Ingest

from .conftest import Did, DropFile, Voting, rolled_back, tx_of, zip_of
from .oracle import differences, snapshot, unsound
from .test_two_at_once import stop_after_a_batch

Sessions = sessionmaker[Session]


def note_nothing(session: Session, action: str, subject: str, **images: Any) -> None:
    """Keep no audit log."""


def let_go(ingest: Ingest, job: FileProcessing) -> Forgotten:
    """Forget a job."""
    return forget(ingest, job.id, note_nothing)


def states(sessions: Sessions) -> list[str]:
    """The states of all jobs."""
    with sessions() as session:
        return sorted(session.scalars(select(FileProcessing.status)))


def number_of(sessions: Sessions, model: type) -> int:
    """How many rows a table has."""
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


@pytest.mark.promise(11, 12)
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_forgotten_file_leaves_the_tables_as_they_would_be_without_it(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    which: int,
    did: Did,
) -> None:
    """Hours that share rows, a rollback in another file, a second publication: in any place."""
    first, second = voting.ballots(8, 6), voting.ballots(9, 6)
    files = [
        (voting.name(8), first),
        (voting.name(9), [*second, first[0], rolled_back(first[2])]),
        (f"new/{voting.name(8)}", [*first[1:], voting.vote(500), voting.row("odd", 501)]),
        (f"{voting.contract}/90 - Край/Выборы/Округ/{voting.contract}.csv", [*first, *second]),
    ]
    jobs = [ingest.take(drop_file(name, rows))[0] for name, rows in files]
    assert [] == unsound(sessions)

    let_go(ingest, jobs[which])

    assert [] == unsound(sessions)
    found = snapshot(sessions)
    with sessions.begin() as session:
        for table in ("sighting", "transaction", "transaction_content", "hourly_stats", "reject"):
            session.connection().exec_driver_sql(f'DELETE FROM "{table}"')
        for table in ("alert", "file_processing", "constituency", "election"):
            session.connection().exec_driver_sql(f'DELETE FROM "{table}"')
    for number, (name, rows) in enumerate(files):
        if number != which:
            ingest.take(drop_file(name, rows))
    assert [] == differences(snapshot(sessions), found)
    did("1 of 4 entangled files forgotten, each in turn")


def test_an_earlier_publication_counts_again(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """What the later one withdrew is back."""
    rows = voting.ballots(8, 3)
    ingest.take(drop_file(voting.name(8), rows))
    (newer,) = ingest.take(drop_file(f"new/{voting.name(8)}", rows[2:]))
    let_go(ingest, newer)
    assert ["completed"] == states(sessions)
    with sessions() as session:
        assert {"accepted"} == set(session.scalars(select(Transaction.status)))
        assert [None] == list(session.scalars(select(FileProcessing.supersedes_id)))
        assert not session.scalar(select(Alert.id).where(Alert.cleared_at.is_(None)))


def test_its_duplicates_and_rejects_go_with_it_and_its_bytes_stay(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """No row remembers it but a cleared alert's; the files lie where they were put."""
    rows = [*voting.ballots(8, 2), "no row"]
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    ingest.take(drop_file(f"again/{voting.name(8)}", rows))

    gone = let_go(ingest, job)

    assert (1, 1) == (gone.duplicates, gone.rejects)
    assert [2] == [len(gone.files)]
    assert all(Path(path).is_file() for path in gone.files)
    models = (FileProcessing, Transaction, Sighting, Reject)
    assert {0} == {number_of(sessions, model) for model in models}
    # That rows were rejected stays as history, and so does whose they were.
    with sessions() as session:
        (told,) = session.scalars(select(Alert))
    assert ("reject_share", True) == (told.type, told.cleared_at is not None)
    assert 1 == number_of(sessions, Constituency)


def test_a_forgotten_file_can_be_dropped_again(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """It is the same job once more."""
    rows = voting.ballots(8, 2)
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    before = snapshot(sessions)
    let_go(ingest, job)
    (again,) = ingest.take(drop_file(voting.name(8), rows))
    assert (job.id, "completed", 4) == (again.id, again.status, again.rows_stored)
    assert [] == differences(before, snapshot(sessions))


def test_a_quarantined_file_is_forgotten_with_its_alert(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile
) -> None:
    """Nobody has to look at it any longer."""
    (job,) = ingest.take(drop_file("nameless.csv", b"no row\n"))
    let_go(ingest, job)
    assert [] == states(sessions)
    with sessions() as session:
        assert not session.scalar(select(Alert.id).where(Alert.cleared_at.is_(None)))


def test_a_twin_without_a_slot_takes_its_place_again(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Had the other never come, it would count."""
    rows = voting.ballots(8, 2)
    ingest.take(drop_file(f"{voting.contract}/export.csv", rows))
    before = snapshot(sessions)
    (named,) = ingest.take(drop_file(voting.name(8), rows))
    let_go(ingest, named)
    assert ["completed"] == states(sessions)
    assert [] == differences(before, snapshot(sessions))


def test_one_member_of_a_zip_is_forgotten_by_itself(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Its neighbours stay, and the ZIP brings it back when it is dropped again."""
    hours = {voting.name(hour): voting.ballots(hour, 2) for hour in (8, 9)}
    packed = zip_of(
        {name: "".join(f"{r}\n" for r in rows).encode() for name, rows in hours.items()}
    )
    jobs = ingest.take(drop_file("hours.zip", packed))
    before = snapshot(sessions)
    let_go(ingest, jobs[0])
    with sessions() as session:
        held = set(session.scalars(select(Transaction.tx_id)))
    assert {tx_of(row) for row in hours[voting.name(9)]} == held
    again = ingest.take(drop_file("hours.zip", packed))
    assert ["completed", "duplicate"] == sorted(job.status for job in again)
    assert [] == differences(before, snapshot(sessions))


def test_a_job_in_work_is_not_forgotten(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Its file would only be found again."""
    ingest.terms = replace(ingest.terms, batch_rows=3)
    stop_after_a_batch(ingest)
    with pytest.raises(StopRequested):
        ingest.take(drop_file(voting.name(8), voting.ballots(8, 4)))
    with sessions() as session:
        job = session.scalars(select(FileProcessing)).one()
    with pytest.raises(CannotAmend, match="is pending"):
        let_go(ingest, job)
