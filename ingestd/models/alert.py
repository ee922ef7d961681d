"""Alerts: findings of rules; the engine's side and a person's side never mix."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from ingestd.models.base import Base, Json, Timestamped

_OPEN = text("cleared_at IS NULL")


class Alert(Timestamped, Base):
    """One finding; id = UUIDv5 of rule, constituency and subject, so a re-run finds it again."""

    __tablename__ = "alert"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(50))
    alert_class: Mapped[str] = mapped_column("class", String(20))
    severity: Mapped[str] = mapped_column(String(10))
    constituency_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("constituency.id"))
    subject: Mapped[str] = mapped_column(Text)
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(Json)
    ruleset: Mapped[str] = mapped_column(String(20))
    # The engine's side, recomputed.
    detected_at: Mapped[datetime | None]  # data time, never the wall clock
    cleared_at: Mapped[datetime | None]
    cleared_reason: Mapped[str | None] = mapped_column(Text)
    # How grave it is: first the severity, then how much was found.
    gravity: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    # A person's side, never overwritten.
    status: Mapped[str] = mapped_column(String(20), default="active")
    notes: Mapped[list[Any]] = mapped_column(Json, default=list)
    assigned_to: Mapped[str | None] = mapped_column(String(200))
    resolved_at: Mapped[datetime | None]
    # The gravity that the decision was about: beyond it, there is new evidence.
    answered_gravity: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        # A constituency's alerts by rule: what each commit of a file compares.
        Index("ix_alert_constituency_type", "constituency_id", "type"),
        # Open alerts, the first question of every morning.
        Index("ix_alert_open", "severity", "type", postgresql_where=_OPEN, sqlite_where=_OPEN),
    )
