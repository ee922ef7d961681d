"""Jobs: read only; the ledger alone writes and moves them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from ingestd.crud.base import FIRST, Page, Reader, Window, contains_text
from ingestd.job_state import QUEUED, JobState
from ingestd.models import FileProcessing


@dataclass(frozen=True)
class Totals:
    """The books of several jobs added up."""

    jobs: int
    read: int
    stored: int
    known: int
    rollbacks: int
    rejected: int
    blank: int

    @property
    def is_balanced(self) -> bool:
        """Every row that was read is accounted for."""
        accounted = self.stored + self.known + self.rollbacks + self.rejected + self.blank
        return self.read == accounted


_BOOKS = (
    FileProcessing.rows_read,
    FileProcessing.rows_stored,
    FileProcessing.rows_known,
    FileProcessing.rows_rollbacks,
    FileProcessing.rows_rejected,
    FileProcessing.rows_blank,
)


class Jobs(Reader[FileProcessing]):
    """The ledger, looked at."""

    def find(
        self,
        session: Session,
        *,
        statuses: Collection[JobState] = (),
        path: str | None = None,
        window: Window = FIRST,
    ) -> Page[FileProcessing]:
        """Jobs in any of these states (none given: all) with this text in their path or member.

        The newest come first.
        """
        query = select(FileProcessing)
        if statuses:
            query = query.where(FileProcessing.status.in_(sorted(statuses)))
        if path:
            columns = (FileProcessing.path, FileProcessing.member)
            query = query.where(or_(*(contains_text(column, path) for column in columns)))
        return self.page(session, query, order=[FileProcessing.discovered_at.desc()], window=window)

    def paths_by_sha256(self, session: Session, hashes: Collection[str]) -> Mapping[str, str]:
        """Where files with these bytes were found; of several the first in sort order."""
        f = FileProcessing
        query = select(f.sha256, f.path, f.member).where(f.sha256.in_(sorted(hashes)))
        found: dict[str, str] = {}
        for row in session.execute(query.order_by(f.path.desc(), f.member.desc())):
            found[row.sha256] = f"{row.path} / {row.member}" if row.member else row.path
        return found

    def count_by_status(self, session: Session) -> Mapping[JobState, int]:
        """How many jobs stand in each state; none is 0, not absent."""
        query = select(FileProcessing.status, func.count()).group_by(FileProcessing.status)
        found = {JobState(status): count for status, count in session.execute(query)}
        return dict.fromkeys(JobState, 0) | found

    def totals(self, session: Session, *, statuses: Collection[JobState] = ()) -> Totals:
        """The books of the jobs in these states (none given: all) added up."""
        query = select(func.count(), *(func.coalesce(func.sum(each), 0) for each in _BOOKS))
        if statuses:
            query = query.where(FileProcessing.status.in_(sorted(statuses)))
        # PostgreSQL sums bigints as decimals.
        return Totals(*(int(count) for count in session.execute(query).one()))

    def oldest_queued(self, session: Session) -> FileProcessing | None:
        """The job that has waited longest of those that still ask for work."""
        # One look into the index for each state: over all of them at once, the database would
        # sort a backlog of 300 000 jobs to find its first.
        query = select(FileProcessing).order_by(FileProcessing.discovered_at).limit(1)
        oldest = [
            session.scalar(query.where(FileProcessing.status == status))
            for status in sorted(QUEUED)
        ]
        return min(
            (job for job in oldest if job is not None),
            key=lambda job: (job.discovered_at, job.id),
            default=None,
        )

    def last_finished(self, session: Session) -> FileProcessing | None:
        """The job that came to its end last, whichever end that was."""
        query = (
            select(FileProcessing)
            .where(FileProcessing.finished_at.is_not(None))
            .order_by(FileProcessing.finished_at.desc(), FileProcessing.id)
        )
        return session.scalars(query.limit(1)).first()


jobs = Jobs(
    FileProcessing,
    columns=[
        FileProcessing.path,
        FileProcessing.name,
        FileProcessing.sha256,
        FileProcessing.contract_id,
        FileProcessing.constituency_id,
        FileProcessing.slot,
        FileProcessing.status,
        FileProcessing.size,
        FileProcessing.rows_read,
        FileProcessing.rows_rejected,
        FileProcessing.discovered_at,
        FileProcessing.started_at,
        FileProcessing.finished_at,
    ],
    usual_order="-discovered_at",
)
