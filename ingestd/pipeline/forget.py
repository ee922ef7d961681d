"""Forgetting: a file leaves the tables as if it had never been dropped.

Its rows, rejects and duplicates go, an earlier publication of its slot counts
again. The bytes stay where they were put; the audit log keeps the job.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from ingestd.elections import Elections
from ingestd.errors import CannotAmend
from ingestd.job_state import DELIVERED, QUEUED, JobState
from ingestd.models import FileProcessing
from ingestd.pipeline import alerts, ledger, stats
from ingestd.pipeline.amend import Amendment, Note, amending, let_newest_count
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.look import places_of
from ingestd.pipeline.sightings import FileRef, recompute_file, undo_file
from ingestd.pipeline.slot import Place
from ingestd.pipeline.touched import Touched
from ingestd.transient import database_at_work

FORGET = "forget"
"""The word of the audit log; `ingestd fsck` knows by it whose bytes may lie about."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What left the tables, and where the bytes of it lie."""

    duplicates: int
    rejects: int
    files: tuple[str, ...]


def forget(ingest: Ingest, job_id: uuid.UUID, note: Note) -> Forgotten:
    """Take a job and what hangs on it out of the tables, in one commit.

    Raises:
        CannotAmend: there is no such job, or it is in work.
    """
    with database_at_work(), ingest.sessions.begin() as session:
        constituency_id = _idle(session, job_id).constituency_id
    with _commit(ingest, constituency_id) as amendment:
        session = amendment.session
        job = _idle(session, job_id)
        duplicates = ledger.duplicates_of(session, job)
        rejects = ledger.count_rejects(session, job)
        for each in (job, *duplicates):
            note(session, FORGET, str(each.id), before=_image(each), after=None)
        if job.status in DELIVERED:
            _undo(amendment, job)
        ledger.forget(session, [*duplicates, job])
        if job.status in DELIVERED:
            _let_others_count(amendment, job)
        if job.status == JobState.QUARANTINED:
            held = ingest.terms.alerts
            alerts.note_forgotten_file(session, job, ingest.clock(), held)
        if constituency_id is not None:
            known = ingest.terms.elections
            _forget_names(session, constituency_id, [job, *duplicates], known)
    if constituency_id is not None:
        with database_at_work(), ingest.sessions.begin() as session:
            stats.drop_if_unused(session, constituency_id)
    lie = (each.archived_to for each in (job, *duplicates))
    return Forgotten(len(duplicates), rejects, tuple(sorted({path for path in lie if path})))


@contextmanager
def _commit(ingest: Ingest, constituency_id: uuid.UUID | None) -> Iterator[Amendment]:
    """A file without contract touches no constituency."""
    if constituency_id is not None:
        with amending(ingest, constituency_id) as amendment:
            yield amendment
        return
    with database_at_work(), ingest.sessions.begin() as session:
        yield Amendment(session)


def _idle(session: Session, job_id: uuid.UUID) -> FileProcessing:
    job = session.get(FileProcessing, job_id, with_for_update=True)
    if job is None:
        message = f"{job_id}: no such job; `ingestd jobs` lists them"
        raise CannotAmend(message)
    if job.status in QUEUED:
        message = f"{job_id} is {job.status}: take its file out of the inbox, or let it finish"
        raise CannotAmend(message)
    return job


def _undo(amendment: Amendment, job: FileProcessing) -> None:
    own = Touched.from_json(job.touched)
    amendment.touch(own)
    amendment.touch(undo_file(amendment.session, FileRef.of(job), own.hours))
    if job.slot and not job.is_cumulative:
        amendment.touched.slots.add(job.slot)


def _let_others_count(amendment: Amendment, job: FileProcessing) -> None:
    """Let an earlier publication, and a twin without a slot, stand where they stood before."""
    session = amendment.session
    if job.slot is not None:
        amendment.touch(let_newest_count(session, ledger.publications_of(session, job)))
    for twin in ledger.twins_set_free(session, job):
        ledger.move(session, twin, JobState.COMPLETED)
        hours = Touched.from_json(twin.touched).hours
        amendment.touch(recompute_file(session, FileRef.of(twin), hours))


def _image(job: FileProcessing) -> dict[str, Any]:
    """Every column of a job, as JSON can hold it."""
    values = {column.key: getattr(job, column.key) for column in FileProcessing.__table__.columns}
    return {
        name: value if isinstance(value, (str, int, float, dict, type(None))) else str(value)
        for name, value in values.items()
    }


def _forget_names(
    session: Session,
    constituency_id: uuid.UUID,
    forgotten: Sequence[FileProcessing],
    known: Elections,
) -> None:
    """Take back the names that only the forgotten files told."""
    told = {place.path for job in forgotten for place in _places(job)}
    if stats.named_by(session, constituency_id) in told:
        jobs = ledger.jobs_of(session, constituency_id)
        places = [place for job in jobs for place in _places(job)]
        stats.name_anew(session, constituency_id, places, known)


def _places(job: FileProcessing) -> list[Place]:
    return places_of(Found(Path(job.root), Path(job.path), ""), job.member)
