"""Hours: what happened in one constituency in one UTC hour, recounted from transactions."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, Float, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from ingestd.models.base import Base


class HourlyStats(Base):
    """One hour; the whole table is derived: dropped and rebuilt it is the same.

    id = UUIDv5 of constituency and hour.
    """

    __tablename__ = "hourly_stats"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    constituency_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("constituency.id"))
    hour: Mapped[datetime] = mapped_column(index=True)
    bulletins_issued: Mapped[int] = mapped_column(BigInteger, default=0)
    votes_cast: Mapped[int] = mapped_column(BigInteger, default=0)
    votes_rejected: Mapped[int] = mapped_column(BigInteger, default=0)
    issues_rejected: Mapped[int] = mapped_column(BigInteger, default=0)
    revotes: Mapped[int] = mapped_column(BigInteger, default=0)
    rolled_back: Mapped[int] = mapped_column(BigInteger, default=0)
    list_added: Mapped[int] = mapped_column(BigInteger, default=0)
    list_removed: Mapped[int] = mapped_column(BigInteger, default=0)
    transaction_count: Mapped[int] = mapped_column(BigInteger, default=0)
    # Events per covered hour; null where nothing covers the hour.
    bulletin_velocity: Mapped[float | None] = mapped_column(Float)
    vote_velocity: Mapped[float | None] = mapped_column(Float)
    cumulative_bulletins: Mapped[int] = mapped_column(BigInteger, default=0)
    cumulative_votes: Mapped[int] = mapped_column(BigInteger, default=0)
    coverage: Mapped[float | None] = mapped_column(Float)
    status: Mapped[str] = mapped_column(String(12), default="open")
    expected_bulletins: Mapped[float | None] = mapped_column(Float)
    expected_votes: Mapped[float | None] = mapped_column(Float)
    phi: Mapped[float | None] = mapped_column(Float)
    z_bulletins: Mapped[float | None] = mapped_column(Float)
    z_votes: Mapped[float | None] = mapped_column(Float)

    __table_args__ = (UniqueConstraint("constituency_id", "hour"),)
