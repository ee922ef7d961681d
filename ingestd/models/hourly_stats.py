"""Hours: what happened in one constituency in one UTC hour, recounted from transactions."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, Float, ForeignKey, String, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column

from ingestd.models.base import Base


class HourlyStats(Base):
    """One hour; the whole table is derived: dropped and rebuilt it is the same.

    id = UUIDv5 of constituency and hour. The counts are written in the commit of each file, the
    columns from `coverage` on by the evaluator (`pipeline.evaluator`), seconds later.
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
    # No transaction lies in it: an hour of the voting that was empty, or whose file is missing.
    is_empty: Mapped[bool] = mapped_column(default=False, server_default=false())
    # Events per covered hour; null where nothing covers the hour.
    bulletin_velocity: Mapped[float | None] = mapped_column(Float)
    vote_velocity: Mapped[float | None] = mapped_column(Float)
    # The same smoothed for display: within the hours of the voting, a weight halves in two hours.
    bulletin_velocity_ewma: Mapped[float | None] = mapped_column(Float)
    vote_velocity_ewma: Mapped[float | None] = mapped_column(Float)
    cumulative_bulletins: Mapped[int] = mapped_column(BigInteger, default=0)
    cumulative_votes: Mapped[int] = mapped_column(BigInteger, default=0)
    # The share of the hour for which files are here; null until it was evaluated.
    coverage: Mapped[float | None] = mapped_column(Float)
    # open; closed; provisional (this hour or one before it is not here in full); missing.
    status: Mapped[str] = mapped_column(String(12), default="open")
    # What the peers make likely, the overdispersion behind it, and how unlikely the count is.
    expected_bulletins: Mapped[float | None] = mapped_column(Float)
    expected_votes: Mapped[float | None] = mapped_column(Float)
    phi: Mapped[float | None] = mapped_column(Float)
    z_bulletins: Mapped[float | None] = mapped_column(Float)
    z_votes: Mapped[float | None] = mapped_column(Float)

    __table_args__ = (UniqueConstraint("constituency_id", "hour"),)
