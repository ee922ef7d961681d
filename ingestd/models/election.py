"""Elections: what a folder name, or a person, says that the constituencies belong to."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ingestd.models.base import Base, Timestamped

if TYPE_CHECKING:
    from ingestd.models.constituency import Constituency


class Election(Timestamped, Base):
    """One election by its tidied name; id = UUIDv5 of that name."""

    __tablename__ = "election"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    country: Mapped[str | None] = mapped_column(String(100))
    type: Mapped[str | None] = mapped_column(String(50))
    status: Mapped[str] = mapped_column(String(20), default="active")
    description: Mapped[str | None] = mapped_column(Text)
    timezone: Mapped[str | None] = mapped_column(String(50))
    start_date: Mapped[datetime | None]
    end_date: Mapped[datetime | None]

    constituencies: Mapped[list[Constituency]] = relationship(
        back_populates="election", lazy="select"
    )
