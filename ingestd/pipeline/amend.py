"""Amending: what a person changes after the fact, one constituency in one commit.

Replaying rows, forgetting a file and repairing all end as ingesting ends:
what was touched is counted anew, and the alerts say what now holds.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy.orm import Session

from ingestd.models import FileProcessing
from ingestd.pipeline import alerts, ledger, stats
from ingestd.pipeline.ingest import Ingest, hold_constituency
from ingestd.pipeline.sightings import FileRef, recompute_file
from ingestd.pipeline.touched import Touched
from ingestd.transient import database_at_work


class Note(Protocol):
    """Writes a line of the audit log into the commit of the deed."""

    def __call__(
        self,
        session: Session,
        action: str,
        subject: str,
        *,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> object:
        """Write it; the caller of the deed knows who does it."""


@dataclass(slots=True)
class Amendment:
    """One commit on one constituency; who changes something says so, and what it touched."""

    session: Session
    touched: Touched = field(default_factory=Touched)
    has_changed: bool = False

    def touch(self, touched: Touched) -> None:
        """Note a change; hours and slots may be none where only the ledger changed."""
        self.touched.update(touched)
        self.has_changed = True


@contextmanager
def amending(ingest: Ingest, constituency_id: uuid.UUID) -> Iterator[Amendment]:
    """One commit on a constituency that nobody else loads; what is touched is counted anew.

    Raises:
        StorageFault: the database did not answer; nothing has changed.
    """
    with database_at_work(), ingest.sessions.begin() as session:
        hold_constituency(session, constituency_id)
        amendment = Amendment(session)
        yield amendment
        if amendment.has_changed:
            count_anew(ingest, session, constituency_id, amendment.touched)


def count_anew(
    ingest: Ingest, session: Session, constituency_id: uuid.UUID, touched: Touched
) -> None:
    """Recount what was touched, and let the alerts of the constituency say what now holds."""
    session.flush()
    rolled_up = stats.roll_up(session, constituency_id, touched)
    alerts.evaluate(
        session,
        constituency_id,
        touched,
        rolled_up,
        has_history=True,
        now=ingest.clock(),
        held=ingest.terms.alerts,
    )


def let_newest_count(session: Session, publications: Sequence[FileProcessing]) -> Touched:
    """Let the newest publication of a slot count, and every transaction of the slot say so."""
    touched = Touched()
    if not publications:
        return touched
    ledger.make_newest_current(session, publications)
    for publication in publications:
        hours = Touched.from_json(publication.touched).hours
        touched.update(recompute_file(session, FileRef.of(publication), hours))
        if publication.slot and not publication.is_cumulative:
            touched.slots.add(publication.slot)
    return touched
