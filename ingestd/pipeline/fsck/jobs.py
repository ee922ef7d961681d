"""Jobs: the ledger held against itself, and its books against the events that were counted."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ingestd.job_state import DELIVERED, QUEUED, JobState
from ingestd.models import FileProcessing, Reject
from ingestd.pipeline import ledger
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.fsck.rows import Held
from ingestd.pipeline.stats import constituency_id_of
from ingestd.pipeline.touched import Touched

PAGE = 500


def all_jobs(session: Session, *, after: uuid.UUID | None) -> Sequence[FileProcessing]:
    """The next page of jobs, in the order of their ids."""
    query = select(FileProcessing).order_by(FileProcessing.id).limit(PAGE)
    if after is not None:
        query = query.where(FileProcessing.id > after)
    return session.scalars(query).all()


def name_of(job: FileProcessing) -> str:
    """How a person finds a job."""
    return f"job {job.id} ({job.path}{f' / {job.member}' if job.member else ''})"


def check_jobs(
    session: Session, jobs: Sequence[FileProcessing], *, owner: str, now: datetime
) -> Iterator[Difference]:
    """Look at each job by itself, and at what it names."""
    ids = [job.id for job in jobs]
    counted = select(Reject.file_id, func.count().label("number")).where(
        Reject.file_id.in_(ids), Reject.replayed_at.is_(None)
    )
    rejects = {row.file_id: row.number for row in session.execute(counted.group_by(Reject.file_id))}
    for job in jobs:
        yield from _identity(job)
        yield from _books(job, rejects.get(job.id, 0))
        if job.status == JobState.DUPLICATE:
            yield from _duplicate(session, job)
        if ledger.is_abandoned(job, now=now, owner=owner):
            what = f"it is processing, but {job.owner or 'its owner'} no longer works on it"
            yield about_job(job, "job_stuck", what, Mend.RELEASE)


def _identity(job: FileProcessing) -> Iterator[Difference]:
    """The id of a job is derived from what it is about."""
    if job.contract_id is None or job.duplicate_of_id is not None:
        return
    is_itself = ledger.job_id(job.contract_id, job.slot, job.sha256) == job.id
    if not is_itself or job.constituency_id != constituency_id_of(job.contract_id):
        what = "its id is not that of its contract, slot and SHA-256"
        yield about_job(job, "identity_wrong", what, Mend.IDENTITY)


def _books(job: FileProcessing, rejects: int) -> Iterator[Difference]:
    books = ledger.Books.of(job)
    entered = books.stored + books.known + books.rollbacks + books.rejected + books.blank
    is_delivered = job.status in DELIVERED
    mend = Mend.REREAD if is_delivered else None
    if entered != books.read:
        what = f"{books.read} rows were read, {entered} are accounted for"
        yield about_job(job, "books_wrong", what, mend)
    if books.rejected != rejects:
        what = f"{books.rejected} rows were rejected, {rejects} rejects are kept"
        yield about_job(job, "rejects_wrong", what, mend)
    if is_delivered and books.read != job.checkpoint_line:
        what = f"{books.read} rows were read, its checkpoint is line {job.checkpoint_line}"
        yield about_job(job, "checkpoint_wrong", what, mend)
    is_beyond = job.checkpoint_byte > job.size
    if is_beyond or (is_delivered and books.read and job.checkpoint_byte != job.size):
        what = f"its checkpoint is byte {job.checkpoint_byte} of {job.size}"
        yield about_job(job, "checkpoint_wrong", what, mend)


def _duplicate(session: Session, job: FileProcessing) -> Iterator[Difference]:
    named = job.duplicate_of_id
    original = session.get(FileProcessing, named) if named else None
    if original is None or original.status == JobState.DUPLICATE:
        yield about_job(
            job, "duplicate_of_nothing", f"it is a duplicate of {named}, which is no job"
        )
    elif job.sha256 not in (original.sha256, original.container_sha256):
        yield about_job(job, "duplicate_of_nothing", f"{named} has other bytes")


def check_held(
    session: Session, constituency_id: uuid.UUID, held: Mapping[uuid.UUID, Held]
) -> Iterator[Difference]:
    """Compare the books of a constituency's jobs with the events that the tables hold of them."""
    query = select(FileProcessing).where(
        FileProcessing.constituency_id == constituency_id,
        FileProcessing.status != JobState.DUPLICATE,
    )
    slots: dict[str, list[FileProcessing]] = defaultdict(list)
    for job in session.scalars(query.order_by(FileProcessing.publication, FileProcessing.id)):
        found = held.get(job.id, Held())
        yield from _holds(job, found)
        if job.status in DELIVERED:
            slots[job.slot or f"-{job.id}"].append(job)
    for publications in slots.values():
        yield from _chain(session, publications)


def _holds(job: FileProcessing, found: Held) -> Iterator[Difference]:
    plus, minus = job.rows_stored + job.rows_known, job.rows_rollbacks
    if job.status in DELIVERED or job.status in QUEUED:
        mend = Mend.REREAD if job.status in DELIVERED else None
        if (plus, minus) != (found.plus, found.minus):
            what = (
                f"its books say {plus} rows and {minus} rollbacks, "
                f"the tables hold {found.plus} and {found.minus}"
            )
            yield about_job(job, "books_wrong", what, mend)
        missing = found.hours - Touched.from_json(job.touched).hours
        if missing:
            what = f"it does not know {len(missing)} of the hours that its rows stand in"
            yield about_job(job, "touched_wrong", what, mend)
    elif found.plus or found.minus:
        what = f"it is {job.status}, and the tables hold {found.plus + found.minus} rows of it"
        yield about_job(job, "rows_of_refused", what)


def _chain(session: Session, publications: Sequence[FileProcessing]) -> Iterator[Difference]:
    """The newest publication of a slot is current, and each names the one before it."""
    newest = publications[-1]
    is_outdone = newest.slot is None and ledger.is_outdone(session, newest)
    wanted = JobState.SUPERSEDED if is_outdone else JobState.COMPLETED
    faults = [job for job in publications[:-1] if job.status != JobState.SUPERSEDED]
    if newest.status != wanted:
        faults.append(newest)
    if publications[0].supersedes_id is not None:
        faults.append(publications[0])
    faults += [b for a, b in pairwise(publications) if b.supersedes_id != a.id]
    for job in dict.fromkeys(faults):
        what = f"it is {job.status} as publication {job.publication} of {len(publications)}"
        yield about_job(
            job, "publications_wrong", f"{what} and names {job.supersedes_id}", Mend.REREAD
        )


def about_job(job: FileProcessing, code: str, what: str, mend: Mend | None = None) -> Difference:
    """Name a difference that concerns one job as a whole."""
    return Difference(
        code=code,
        about=name_of(job),
        what=what,
        mend=mend,
        constituency_id=job.constituency_id,
        job_ids=(job.id,),
    )
