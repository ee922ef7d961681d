"""Rejects replayed: a row that a person mended enters as the row at its line of its file."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import CannotAmend
from ingestd.models import FileProcessing, HourlyStats, Reject, Transaction
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.replay import Answer, MendedRow, replay

from .conftest import Did, DropFile, Voting, rolled_back, tx_of
from .oracle import Snapshot, differences, snapshot, unsound

Sessions = sessionmaker[Session]

Deed = tuple[str, str]


class Deeds:
    """Keeps what would go into the audit log."""

    def __init__(self) -> None:
        """Begin with none."""
        self.told: list[Deed] = []

    def __call__(self, session: Session, action: str, subject: str, **images: Any) -> None:
        """Keep one."""
        del session, images
        self.told.append((action, subject))


def broken(row: str) -> str:
    """The row with a type that does not exist."""
    return row.replace(";104;", ";105;", 1)


def mended(job: FileProcessing, rows: dict[int, str]) -> Iterable[MendedRow]:
    """What a person's edited export says."""
    return [MendedRow(job.id, line, text) for line, text in rows.items()]


def take_back(ingest: Ingest, job: FileProcessing, rows: dict[int, str]) -> list[Answer]:
    """Replay rows of a job."""
    return list(replay(ingest, iter(mended(job, rows)), Deeds()))


def job_of(sessions: Sessions, job_id: uuid.UUID) -> FileProcessing:
    """The job as it now stands."""
    with sessions() as session:
        return session.get_one(FileProcessing, job_id)


def books(job: FileProcessing) -> tuple[int, ...]:
    """Stored, known, rollbacks, rejected."""
    return job.rows_stored, job.rows_known, job.rows_rollbacks, job.rows_rejected


def statuses(sessions: Sessions) -> dict[str, str]:
    """Where each transaction stands."""
    with sessions() as session:
        rows = session.execute(select(Transaction.tx_id, Transaction.status))
        return {row.tx_id: row.status for row in rows}


@pytest.mark.promise(14, 34)
def test_mended_rows_give_the_tables_that_a_sound_file_would_have_given(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    databases: Any,
    did: Did,
) -> None:
    """Stored, known and rolled back: hours, totals and alerts are those of the unbroken file."""
    rows = voting.ballots(8, 10)
    rows += [rows[0], rolled_back(rows[3])]
    bad = {3: rows[2], 21: rows[20], 22: rows[21], 10: rows[9]}
    text = [broken(row) if number in bad else row for number, row in enumerate(rows, 1)]
    text[21] = "x" + text[21]
    (job,) = ingest.take(drop_file(voting.name(8), text))
    assert (18, 0, 0, 4) == books(job)

    answers = take_back(ingest, job, bad)

    assert ["stored", "known", "rollback", "stored"] == [answer.became for answer in answers]
    assert (20, 1, 1, 0) == books(job_of(sessions, job.id))
    assert [] == unsound(sessions)
    repaired = snapshot(sessions)
    with sessions.begin() as session:
        for table in ("sighting", "transaction", "transaction_content", "hourly_stats", "reject"):
            session.connection().exec_driver_sql(f'DELETE FROM "{table}"')
        for table in ("alert", "file_processing", "constituency"):
            session.connection().exec_driver_sql(f'DELETE FROM "{table}"')
    ingest.take(drop_file(voting.name(8), rows))
    assert [] == differences(of_any_bytes(snapshot(sessions)), of_any_bytes(repaired))
    did("4 of 22 rows mended and replayed")


def of_any_bytes(tables: Snapshot) -> Snapshot:
    """Without the hashes by which findings cite a file: the broken one and the sound one differ."""
    cited = 0
    for alert in tables["alert"].values():
        for file in alert["details"].get("files", ()):
            cited += len(file.pop("sha256"))
    assert cited, "no finding cites a file"
    return tables


def test_replaying_twice_changes_nothing(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The second time every row was there already; another text for it is refused."""
    rows = voting.ballots(8, 2)
    (job,) = ingest.take(drop_file(voting.name(8), [broken(rows[0]), *rows[1:]]))
    take_back(ingest, job, {1: rows[0]})
    before = snapshot(sessions), books(job_of(sessions, job.id))

    (again,) = take_back(ingest, job, {1: rows[0]})
    (other,) = take_back(ingest, job, {1: voting.vote(500)})

    assert "replayed before" == again.became
    assert "still bad" == other.became
    assert "replayed at" in (other.reason or "")
    assert before == (snapshot(sessions), books(job_of(sessions, job.id)))


def test_a_row_that_is_still_bad_says_why_and_changes_nothing(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Each bad one by itself: what stands beside it is taken."""
    rows = voting.ballots(8, 2)
    (job,) = ingest.take(drop_file(voting.name(8), [broken(rows[0]), broken(rows[1]), *rows[2:]]))

    answers = take_back(
        ingest,
        job,
        {1: broken(rows[0]) + " ", 2: rows[1], 3: rows[2], 99: rows[3]},
    )

    assert ["still bad", "stored", "still bad", "still bad"] == [one.became for one in answers]
    assert ("type", "105") == (answers[0].field, answers[0].value)
    assert "no row of this line was refused" == answers[2].reason
    assert 1 == job_of(sessions, job.id).rows_rejected
    assert [] == unsound(sessions)


@pytest.mark.parametrize("text", ["", "a\nb", "a\rb", "{row}\n{row}"])
def test_what_is_not_one_row_is_refused(
    ingest: Ingest, drop_file: DropFile, voting: Voting, text: str
) -> None:
    """An edited cell may hold a line end, or nothing."""
    row = voting.vote(480)
    (job,) = ingest.take(drop_file(voting.name(8), [broken(row), voting.vote(481)]))
    (answer,) = take_back(ingest, job, {1: text.format(row=row)})
    assert "still bad" == answer.became


def test_a_row_that_nobody_mended_is_left_as_it_was(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Who mends some rows of an export need not delete the others."""
    row = broken(voting.vote(480))
    (job,) = ingest.take(drop_file(voting.name(8), [row, voting.vote(481)]))
    assert ["left as it was"] == [one.became for one in take_back(ingest, job, {1: row})]


def test_the_rejected_row_stays_as_evidence(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """What was refused and what it was mended to stand side by side, and a deed is noted."""
    row = voting.vote(480)
    (job,) = ingest.take(drop_file(voting.name(8), [broken(row), voting.vote(481)]))
    deeds = Deeds()
    list(replay(ingest, iter(mended(job, {1: row})), deeds))
    with sessions() as session:
        reject = session.scalars(select(Reject)).one()
    assert (broken(row), row) == (reject.raw_text, reject.replayed_text)
    assert [("replay", f"{job.id}:1")] == deeds.told


def test_rows_of_a_quarantined_file_are_refused_with_a_hint(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Nothing of it is in the tables: the whole file is mended instead."""
    rows = [broken(row) for row in voting.ballots(8, 200)]
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    assert "quarantined" == job.status
    with pytest.raises(CannotAmend, match="mend the file and drop it again"):
        take_back(ingest, job, {1: rows[0]})


@pytest.mark.promise(11, 12)
def test_a_mended_row_goes_with_its_file(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """The same bytes change nothing, a corrected publication supersedes, and may step back."""
    rows = voting.ballots(8, 3)
    text = [broken(rows[0]), *rows[1:]]
    (job,) = ingest.take(drop_file(voting.name(8), text))
    take_back(ingest, job, {1: rows[0]})
    before = snapshot(sessions)
    (same,) = ingest.take(drop_file(f"again/{voting.name(8)}", text))
    assert "duplicate" == same.status
    assert [] == differences(before, snapshot(sessions))

    ingest.take(drop_file(f"new/{voting.name(8)}", rows[2:]))
    assert ["withdrawn", "withdrawn"] == [statuses(sessions)[tx_of(row)] for row in rows[:2]]
    assert [] == unsound(sessions)

    ingest.make_current(job.id)
    assert {"accepted"} == set(statuses(sessions).values())
    assert [] == unsound(sessions)
    did("1 row replayed; its file repeated, superseded, made current")


@pytest.mark.promise(11)
def test_a_row_replayed_into_a_superseded_file_is_not_current(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """It is kept as withdrawn, and no hour counts it."""
    rows = voting.ballots(8, 3)
    (job,) = ingest.take(drop_file(voting.name(8), [broken(rows[0]), *rows[1:]]))
    ingest.take(drop_file(f"new/{voting.name(8)}", rows[2:]))
    (answer,) = take_back(ingest, job, {1: rows[0]})
    assert ("stored", "withdrawn") == (answer.became, statuses(sessions)[tx_of(rows[0])])
    with sessions() as session:
        assert 4 == sum(session.scalars(select(HourlyStats.transaction_count)))
    assert [] == unsound(sessions)


@pytest.mark.promise(12)
def test_replay_and_a_corrected_publication_come_to_the_same_in_either_order(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Mended before or after it was superseded: the same tables."""
    rows = voting.ballots(8, 3)
    text = [broken(rows[0]), *rows[1:]]
    seen = []
    for is_first in (True, False):
        (job,) = ingest.take(drop_file(voting.name(8), text))
        if is_first:
            take_back(ingest, job, {1: rows[0]})
        ingest.take(drop_file(f"new/{voting.name(8)}", rows[1:]))
        if not is_first:
            take_back(ingest, job, {1: rows[0]})
        seen.append(snapshot(sessions))
        with sessions.begin() as session:
            for table in ("sighting", "transaction", "transaction_content", "hourly_stats"):
                session.connection().exec_driver_sql(f'DELETE FROM "{table}"')
            for table in ("reject", "alert", "file_processing", "constituency"):
                session.connection().exec_driver_sql(f'DELETE FROM "{table}"')
    assert [] == differences(*seen)
