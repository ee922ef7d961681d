"""Constituencies: one smart contract each; the contract id alone is the identity."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Float, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ingestd.models.base import Base, Json, Timestamped

if TYPE_CHECKING:
    from ingestd.models.election import Election


class Constituency(Timestamped, Base):
    """One voting (contract) with its totals, recounted in the commit of each file."""

    __tablename__ = "constituency"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    contract_id: Mapped[str] = mapped_column(String(64), unique=True)
    election_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("election.id"), index=True)
    name: Mapped[str | None] = mapped_column(Text)
    region_code: Mapped[str | None] = mapped_column(String(10))
    region_name: Mapped[str | None] = mapped_column(Text)
    # The path that gave the names: the smallest in sort order, so that names
    # do not depend on which file came first.
    named_by: Mapped[str | None] = mapped_column(Text)
    # The zone of its clocks, where the settings name one; display only.
    timezone: Mapped[str | None] = mapped_column(String(50))
    type: Mapped[str | None] = mapped_column(String(50))
    status: Mapped[str] = mapped_column(String(20), default="inactive")
    # Null while no voters list has been delivered: unknown is not zero.
    registered_voters: Mapped[int | None] = mapped_column(BigInteger)
    bulletins_issued: Mapped[int] = mapped_column(BigInteger, default=0)
    votes_cast: Mapped[int] = mapped_column(BigInteger, default=0)
    votes_rejected: Mapped[int] = mapped_column(BigInteger, default=0)
    participation_rate: Mapped[float | None] = mapped_column(Float)
    anomaly_score: Mapped[float | None] = mapped_column(Float)
    first_activity: Mapped[datetime | None]
    last_activity: Mapped[datetime | None]
    voting_start: Mapped[datetime | None]
    voting_end: Mapped[datetime | None]
    dimension: Mapped[list[Any] | None] = mapped_column(Json)
    published_results: Mapped[list[Any] | None] = mapped_column(Json)
    is_revote_blocked: Mapped[bool | None]

    election: Mapped[Election | None] = relationship(back_populates="constituencies", lazy="select")
