"""Notices: read only; the outbox writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from ingestd.crud.base import Reader
from ingestd.models import Notice


@dataclass(frozen=True, slots=True)
class Standing:
    """How one channel stands; `error` is of the message that is tried again, or was given up."""

    channel: str
    waiting: int
    sent: int
    failed: int
    oldest_waiting: datetime | None
    last_sent: datetime | None
    attempts: int
    next_try_at: datetime | None
    error: str | None


class Notices(Reader[Notice]):
    """Notices, the newest first."""

    def standings(self, session: Session, channels: Iterable[str] = ()) -> Sequence[Standing]:
        """These channels, and every other one that ever had a notice, by name."""
        nothing = {name: Standing(name, 0, 0, 0, None, None, 0, None, None) for name in channels}
        found = nothing | {each.channel: each for each in self._found(session)}
        return [each for _, each in sorted(found.items())]

    def _found(self, session: Session) -> Sequence[Standing]:
        is_waiting = Notice.status == "waiting"

        def count(status: str) -> object:
            return func.sum(case((Notice.status == status, 1), else_=0))

        query = select(  # type: ignore[call-overload]  # ten columns, whatever they are
            Notice.channel,
            *(count("waiting"), count("sent"), count("failed")),
            func.min(case((is_waiting, Notice.at))),
            func.max(Notice.sent_at),
            func.max(case((is_waiting, Notice.attempts), else_=0)),
            func.min(case((is_waiting, Notice.next_try_at))),
            func.max(case((Notice.status != "sent", Notice.last_error))),
        ).group_by(Notice.channel)
        return [
            Standing(
                channel,
                int(waiting),
                int(sent),
                int(failed),
                oldest,
                last,
                int(tries),
                again,
                error,
            )
            for channel, waiting, sent, failed, oldest, last, tries, again, error in (
                session.execute(query)
            )
        ]


notices = Notices(
    Notice,
    columns=[
        *(Notice.at, Notice.channel, Notice.kind, Notice.severity, Notice.status),
        *(Notice.alert_id, Notice.message_id, Notice.sent_at),
    ],
    usual_order="-at",
)
