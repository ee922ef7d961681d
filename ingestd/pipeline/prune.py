"""Pruning: bytes that another archived file holds as well need not be kept twice for ever.

A file goes only when everything in it is in a file that stays, and whose SHA-256 was found
right a moment ago: a duplicate goes for its original, an earlier publication for the one that
superseded it and repeats each of its rows. No job, row, reject or alert ever goes.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Subquery, and_, exists, func, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import Clock
from ingestd.errors import LostClaim
from ingestd.job_state import JobState
from ingestd.models import AuditLog, FileProcessing
from ingestd.pipeline import ledger
from ingestd.pipeline.amend import Note
from ingestd.pipeline.found import label_of
from ingestd.pipeline.fsck.lines import hash_of
from ingestd.pipeline.ledger import paths_of
from ingestd.pipeline.touched import sighting

PRUNE = "prune"
"""The word of the audit log; `ingestd fsck` knows by it whose bytes are no longer here."""

_PAGE = 500
_MAY_GO = (JobState.DUPLICATE, JobState.SUPERSEDED)


@dataclass(frozen=True, slots=True)
class Redundant:
    """A file that may go, its jobs, and the files that stay and hold all that it holds."""

    path: Path
    size: int
    job_ids: tuple[uuid.UUID, ...]
    kept_by: tuple[Path, ...]


@dataclass(slots=True, kw_only=True)
class Prune:
    """Finds what is kept twice, and takes one of the two away."""

    sessions: sessionmaker[Session]
    clock: Clock
    # Files whose last job was done within this time stay.
    keep: timedelta

    def found(self) -> Iterator[Redundant]:
        """Every file that may go, with its size; nothing is read and nothing is changed."""
        after: str | None = None
        while labels := self._page(after):
            for label in labels:
                with self.sessions.begin() as session:
                    redundant = self._redundant(session, label)
                if redundant is not None:
                    yield redundant
            after = labels[-1]

    def take_away(self, redundant: Redundant, note: Note) -> bool:
        """Remove a file, if what it holds is sound where it stays; says whether it is gone.

        The note is committed first. A kill between the two leaves a file that `leftovers` finds.
        """
        if not all(map(self._is_sound, redundant.kept_by)):
            return False
        try:
            with self.sessions.begin() as session:
                jobs = _jobs(session, redundant.job_ids)
                for job in jobs:
                    before = {
                        "name": job.name,
                        "archived_to": job.archived_to,
                        "sha256": job.container_sha256 or job.sha256,
                        "kept_by": [os.fspath(path) for path in redundant.kept_by],
                    }
                    note(session, PRUNE, str(job.id), before=before, after=None)
                ledger.note_archived(session, jobs, None)
        except LostClaim:
            return False
        redundant.path.unlink()
        return True

    def leftovers(self) -> Iterator[Path]:
        """Files that were noted as pruned by a process that was killed before it removed them."""
        with self.sessions.begin() as session:
            query = select(AuditLog.before).where(AuditLog.action == PRUNE)
            images = [image or {} for image in session.scalars(query)]
        for label, digest in {(image.get("archived_to"), image.get("sha256")) for image in images}:
            path = _lying(label)
            if path is None or hash_of(path) != digest:
                continue
            with self.sessions.begin() as session:
                f = FileProcessing
                is_known = session.scalar(select(exists().where(f.archived_to == label)))
            if not is_known:
                yield path

    def _page(self, after: str | None) -> list[str]:
        """The next places of files of which one job at least may go."""
        f = FileProcessing
        query = select(f.archived_to).where(f.status.in_(_MAY_GO), f.archived_to.is_not(None))
        if after is not None:
            query = query.where(f.archived_to > after)
        with self.sessions.begin() as session:
            places = session.scalars(query.distinct().order_by(f.archived_to).limit(_PAGE))
            return [place for place in places if place]

    def _redundant(self, session: Session, label: str) -> Redundant | None:
        """What a file is, and what holds all of it; None while something needs it."""
        path = _lying(label)
        if path is None:
            return None
        query = select(FileProcessing).where(FileProcessing.archived_to == label)
        jobs = session.scalars(query.order_by(FileProcessing.id)).all()
        kept_by: set[Path] = set()
        for job in jobs:
            keeper = self._keeper(session, job, path)
            if keeper is None:
                return None
            kept_by.add(keeper)
        ids = tuple(job.id for job in jobs)
        return Redundant(path, path.stat().st_size, ids, tuple(sorted(kept_by)))

    def _keeper(self, session: Session, job: FileProcessing, path: Path) -> Path | None:
        """A file that stays and holds all that this job's holds."""
        if job.status not in _MAY_GO or not self._is_old(job):
            return None
        content = _original(session, job) if job.status == JobState.DUPLICATE else job
        if content is None:
            return None
        candidates = [content] if content is not job else []
        if content.status == JobState.SUPERSEDED:
            candidates += [each for each in [_repeating(session, content)] if each]
        for candidate in candidates:
            kept = _lying(candidate.archived_to)
            if kept is not None and not kept.samefile(path) and self._is_old(candidate):
                return kept
        return None

    def _is_old(self, job: FileProcessing) -> bool:
        return job.finished_at is not None and job.finished_at <= self.clock() - self.keep

    def _is_sound(self, kept: Path) -> bool:
        """Read the file that stays: it must be what its job says."""
        with self.sessions.begin() as session:
            query = select(FileProcessing).where(FileProcessing.archived_to.is_not(None))
            jobs = session.scalars(query.where(FileProcessing.archived_to == label_of(kept))).all()
        try:
            return {job.container_sha256 or job.sha256 for job in jobs} == {hash_of(kept)}
        except OSError:
            return False


def pruned_jobs(session: Session, ids: list[str]) -> set[str]:
    """Which of these jobs have no bytes any more because other files hold the same."""
    query = select(AuditLog.subject).where(AuditLog.action == PRUNE, AuditLog.subject.in_(ids))
    return set(session.scalars(query))


def _jobs(session: Session, ids: tuple[uuid.UUID, ...]) -> list[FileProcessing]:
    query = select(FileProcessing).where(FileProcessing.id.in_(ids)).with_for_update()
    jobs = list(session.scalars(query.order_by(FileProcessing.id)))
    if len(jobs) != len(ids) or any(job.status not in _MAY_GO for job in jobs):
        message = "one of its jobs was forgotten, or counts again, since it was looked at"
        raise LostClaim(message)
    return jobs


def _original(session: Session, job: FileProcessing) -> FileProcessing | None:
    """The job that has the same bytes: as a CSV, or as a whole ZIP."""
    original = session.get(FileProcessing, job.duplicate_of_id) if job.duplicate_of_id else None
    if original is None or job.sha256 not in (original.sha256, original.container_sha256):
        return None
    return original


def _repeating(session: Session, old: FileProcessing) -> FileProcessing | None:
    """The current publication of a slot, where it repeats every row of an earlier one.

    Refused rows are evidence that the tables keep cut: a file that has some stays.
    """
    f = FileProcessing
    if old.slot is None or old.rows_rejected:
        return None
    current = session.scalar(
        select(f).where(
            f.constituency_id == old.constituency_id,
            f.slot == old.slot,
            f.status == JobState.COMPLETED,
        )
    )
    if current is None:
        return None
    mine, theirs = _events(old.id), _events(current.id)
    is_same = and_(
        theirs.c.transaction_id == mine.c.transaction_id,
        theirs.c.sign == mine.c.sign,
        theirs.c.content_hash.is_not_distinct_from(mine.c.content_hash),
        theirs.c.times >= mine.c.times,
    )
    # All of its events stand written out, since its slot has another publication.
    repeated = session.scalar(select(func.sum(mine.c.times)).join(theirs, is_same))
    is_whole = (repeated or 0) == old.rows_stored + old.rows_known + old.rows_rollbacks
    return current if is_whole else None


def _events(file_id: uuid.UUID) -> Subquery:
    """How often a file holds each event."""
    same = (sighting.c.transaction_id, sighting.c.sign, sighting.c.content_hash)
    query = select(*same, func.count().label("times")).where(sighting.c.file_id == file_id)
    return query.group_by(*same).subquery()


def _lying(label: object) -> Path | None:
    """Where a file lies whose job names this place; None where it does not."""
    if not isinstance(label, str):
        return None
    ways = paths_of(label)
    return next((path for path in ways if path.is_file() and not path.is_symlink()), None)
