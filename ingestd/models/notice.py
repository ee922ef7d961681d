"""The outbox: what people are to be told, by which channel, and what came of it."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from ingestd.models.base import Base

_WAITING = text("status = 'waiting'")


class Notice(Base):
    """One change of one alert, or one trouble of the daemon, for one channel.

    Written in the commit that changes the alert. What goes in one message shares a `message_id`,
    by which the other end knows a message that it gets twice.
    """

    __tablename__ = "notice"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    channel: Mapped[str] = mapped_column(String(60))
    kind: Mapped[str] = mapped_column(String(10))
    severity: Mapped[str] = mapped_column(String(10))
    # Told as soon as may be; else it waits for the digest.
    is_urgent: Mapped[bool]
    alert_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("alert.id"))
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, default="")
    status: Mapped[str] = mapped_column(String(10), default="waiting")
    message_id: Mapped[uuid.UUID | None]
    # Since then that message is tried; what waited long before it is given as many tries.
    claimed_at: Mapped[datetime | None]
    # Here, not in memory, so that a restart goes on with the same pauses.
    attempts: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    sent_at: Mapped[datetime | None]

    __table_args__ = (
        # What the sender asks every other second.
        Index(
            "ix_notice_waiting",
            *("channel", "message_id", "at"),
            postgresql_where=_WAITING,
            sqlite_where=_WAITING,
        ),
        # How much was sent lately, and what may go.
        Index("ix_notice_sent_at", "sent_at"),
        # Who was told of an alert before.
        Index("ix_notice_alert_id", "alert_id", "channel"),
    )
