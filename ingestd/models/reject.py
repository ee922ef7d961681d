"""Rejects: rows that did not pass, with all that is needed to argue about them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ingestd.models.base import Base

if TYPE_CHECKING:
    from ingestd.models.file_processing import FileProcessing


class Reject(Base):
    """One refused line of one file; `raw_text` is cut at a limit that `is_cut` admits.

    id = UUIDv5 of file and line.
    """

    __tablename__ = "reject"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    file_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("file_processing.id"))
    line_number: Mapped[int] = mapped_column(BigInteger)
    field: Mapped[str | None] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(40))
    value: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    raw_text: Mapped[str] = mapped_column(Text)
    is_cut: Mapped[bool] = mapped_column(default=False)
    # The row as a person mended it. It is stored as the row at this line; what
    # was refused stays here as evidence and no longer counts as rejected.
    replayed_at: Mapped[datetime | None]
    replayed_text: Mapped[str | None] = mapped_column(Text)

    file: Mapped[FileProcessing] = relationship(back_populates="rejects", lazy="select")

    # The rejects of a file, in order; and no line can be refused twice.
    __table_args__ = (UniqueConstraint("file_id", "line_number"),)
