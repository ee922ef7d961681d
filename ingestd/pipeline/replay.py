"""Replaying: a refused row that a person mended enters as the row at its line of its file.

Its sighting names that file and line, so that superseding, undoing and
rollbacks work by themselves. The reject stays as evidence, with the mended
text beside it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from sqlalchemy.orm import Session

from ingestd.errors import CannotAmend
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import FileProcessing
from ingestd.models import Reject as StoredReject
from ingestd.pipeline import ledger
from ingestd.pipeline.amend import Amendment, Note, amending
from ingestd.pipeline.ingest import Ingest, Terms
from ingestd.pipeline.ledger import Books
from ingestd.pipeline.load import load_batch
from ingestd.pipeline.read import Row
from ingestd.pipeline.sightings import FileRef, recompute_file
from ingestd.pipeline.touched import Touched
from ingestd.pipeline.validate import Record, Reject, Validator
from ingestd.transient import database_at_work

_ROWS_IN_ONE_COMMIT = 500

Became = Literal["stored", "known", "rollback", "replayed before", "left as it was", "still bad"]


@dataclass(frozen=True, slots=True)
class MendedRow:
    """A line of a job's file as a person wrote it anew."""

    job_id: uuid.UUID
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one mended row; field, value and reason where it changed nothing."""

    row: MendedRow
    became: Became
    field: str | None = None
    value: str | None = None
    reason: str | None = None


def replay(ingest: Ingest, rows: Iterator[MendedRow], note: Note) -> Iterator[Answer]:
    """Take mended rows in, a few hundred of one job in each commit; what became of each.

    Raises:
        CannotAmend: a job that is not there, or whose rows are not in the tables.
    """
    for job_id, group in groupby(rows, key=lambda row: row.job_id):
        chunk: list[MendedRow] = []
        for row in group:
            chunk.append(row)
            if len(chunk) == _ROWS_IN_ONE_COMMIT:
                yield from _replay_some(ingest, job_id, chunk, note)
                chunk = []
        if chunk:
            yield from _replay_some(ingest, job_id, chunk, note)


def _replay_some(
    ingest: Ingest, job_id: uuid.UUID, rows: Sequence[MendedRow], note: Note
) -> list[Answer]:
    with database_at_work(), ingest.sessions.begin() as session:
        constituency_id = FileRef.of(_delivered(session, job_id)).constituency_id
    with amending(ingest, constituency_id) as amendment:
        job = _delivered(amendment.session, job_id)
        rejects = ledger.rejects_at(amendment.session, job, [row.line for row in rows])
        replaying = _Replaying(amendment, ingest, job, validator_of(job, ingest.terms), note)
        answers = [replaying.take(row, rejects.get(row.line)) for row in rows]
        replaying.finish()
    return answers


def _delivered(session: Session, job_id: uuid.UUID) -> FileProcessing:
    job = session.get(FileProcessing, job_id, populate_existing=True)
    if job is None:
        message = f"{job_id}: no such job; was this file written by `ingestd rejects export`?"
        raise CannotAmend(message)
    if job.status not in DELIVERED:
        hint = "only rows of a completed or superseded job can be replayed"
        if job.status == JobState.QUARANTINED:
            hint = "nothing of a refused file is in the tables: mend the file and drop it again"
        message = f"{job_id} is {job.status}: {hint}"
        raise CannotAmend(message)
    return job


def validator_of(job: FileProcessing, terms: Terms) -> Validator:
    """The validator for the rows of a job that has a contract."""
    return Validator(
        job.contract_id or "",
        max_entries=terms.max_entries,
        max_json_depth=terms.max_json_depth,
        raw_text_bytes=terms.raw_text_bytes,
    )


def row_of(line: int, text: str, terms: Terms) -> Row:
    """A mended text as the row at its line."""
    raw = text.encode("utf-8", "surrogatepass")
    return Row(line, 0, raw, len(raw) > terms.read.max_line_bytes)


@dataclass(slots=True)
class _Replaying:
    """One commit's mended rows of one job."""

    amendment: Amendment
    ingest: Ingest
    job: FileProcessing
    validator: Validator
    note: Note
    books: Books = field(init=False)

    def __post_init__(self) -> None:
        self.books = Books.of(self.job)

    def take(self, row: MendedRow, reject: StoredReject | None) -> Answer:
        """Enter one row, or say why not."""
        if reject is None:
            return Answer(row, "still bad", reason="no row of this line was refused")
        if reject.replayed_at is not None:
            if reject.replayed_text == row.text:
                return Answer(row, "replayed before")
            reason = f"it was replayed at {reject.replayed_at:%Y-%m-%d %H:%M:%SZ} with another text"
            return Answer(row, "still bad", reason=reason)
        if "\n" in row.text or "\r" in row.text:
            return Answer(row, "still bad", reason="a row is one line; this has line ends in it")
        outcome = self.validator.check(row_of(row.line, row.text, self.ingest.terms))
        if isinstance(outcome, Record):
            return self._enter(row, reject, outcome)
        is_same = row.text == reject.raw_text
        became: Became = "left as it was" if is_same else "still bad"
        if isinstance(outcome, Reject):
            return Answer(row, became, outcome.field, outcome.value, outcome.reason)
        return Answer(row, became, reason="a blank line mends nothing")

    def _enter(self, row: MendedRow, reject: StoredReject, record: Record) -> Answer:
        loaded = load_batch(self.amendment.session, FileRef.of(self.job), [record])
        if loaded.collisions:
            reason = "another transaction id has the same derived key"
            return Answer(row, "still bad", "nestedTxId", record.tx_id, reason)
        self.books.stored += loaded.stored
        self.books.known += loaded.known
        self.books.rollbacks += loaded.rollbacks
        self.books.rejected -= 1
        self.amendment.touch(loaded.touched)
        became: Became = "stored" if loaded.stored else "known" if loaded.known else "rollback"
        ledger.note_replayed(self.amendment.session, reject, row.text, now=self.ingest.clock())
        self.note(
            self.amendment.session,
            "replay",
            f"{self.job.id}:{row.line}",
            before={"rejected": reject.reason, "raw_text_sha256": _sha256(reject.raw_text)},
            after={"became": became, "tx_id": record.tx_id, "text_sha256": _sha256(row.text)},
        )
        return Answer(row, became)

    def finish(self) -> None:
        """Write the books, and let the rows count as far as their file does."""
        amendment, session = self.amendment, self.amendment.session
        if not amendment.has_changed:
            return
        file = FileRef.of(self.job)
        own = Touched.from_json(self.job.touched)
        own.update(amendment.touched)
        ledger.rewrite_books(session, self.job, books=self.books, touched=own.as_json())
        if file.interval_slot:
            amendment.touched.slots.add(file.interval_slot)
        is_alone = len(ledger.publications_of(session, self.job)) == 1
        if self.job.status == JobState.SUPERSEDED or not is_alone:
            amendment.touch(recompute_file(session, file, own.hours))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
