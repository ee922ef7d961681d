"""Rejects: read only; the pipeline writes them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ingestd.crud.base import FIRST, Page, Reader, Window
from ingestd.models import Reject


class Rejects(Reader[Reject]):
    """Rejects of a file, or of a kind."""

    def find(
        self,
        session: Session,
        *,
        file_id: uuid.UUID | None = None,
        kind: str | None = None,
        window: Window = FIRST,
    ) -> Page[Reject]:
        """The rejects of a file, of a kind, or of both: by file, and there by line."""
        query = select(Reject)
        if file_id is not None:
            query = query.where(Reject.file_id == file_id)
        if kind is not None:
            query = query.where(Reject.kind == kind)
        return self.page(session, query, order=[Reject.file_id, Reject.line_number], window=window)

    def walk(self, session: Session, *, file_id: uuid.UUID, at_once: int) -> Iterator[Reject]:
        """The rejects of a file that nobody has replayed, in order, so many in memory at once."""
        last = -1
        while True:
            query = select(Reject).where(
                Reject.file_id == file_id,
                Reject.line_number > last,
                Reject.replayed_at.is_(None),
            )
            some = session.scalars(query.order_by(Reject.line_number).limit(at_once)).all()
            if not some:
                return
            last = some[-1].line_number
            yield from some

    def count_by_kind(
        self, session: Session, *, file_id: uuid.UUID | None = None
    ) -> Mapping[str, int]:
        """How many there are of each kind, the most frequent first."""
        query = select(Reject.kind, func.count())
        if file_id is not None:
            query = query.where(Reject.file_id == file_id)
        most_first = query.group_by(Reject.kind).order_by(func.count().desc(), Reject.kind)
        return dict(session.execute(most_first).all())


rejects = Rejects(
    Reject,
    columns=[Reject.file_id, Reject.line_number, Reject.field, Reject.kind],
    usual_order="line_number",
)
