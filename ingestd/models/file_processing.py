"""The ledger's table: one job for each CSV, bare or a ZIP's member."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, CheckConstraint, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ingestd.models.base import Base, Json, Timestamped

if TYPE_CHECKING:
    from ingestd.models.constituency import Constituency
    from ingestd.models.reject import Reject

BOOKS = "rows_read = rows_stored + rows_known + rows_rollbacks + rows_rejected + rows_blank"


class FileProcessing(Timestamped, Base):
    """The life of one file's content; id = UUIDv5 of slot and SHA-256.

    A duplicate has an id of its own and names its original.
    """

    __tablename__ = "file_processing"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    # Where it was found: `root` is the watched folder, `path` the rest of the
    # way as a label that both databases can store, `member` the way inside a ZIP.
    root: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    member: Mapped[str | None] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    container_sha256: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    mtime: Mapped[datetime | None]
    # device:inode:size:mtime:ctime of the file, to know it again without reading it.
    stamp: Mapped[str] = mapped_column(String(120))
    evidence: Mapped[str | None] = mapped_column(String(40))
    archived_to: Mapped[str | None] = mapped_column(Text)

    contract_id: Mapped[str | None] = mapped_column(String(64))
    constituency_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("constituency.id"))
    slot: Mapped[str | None] = mapped_column(String(24))
    is_cumulative: Mapped[bool] = mapped_column(default=False)
    publication: Mapped[int] = mapped_column(Integer, default=1)
    supersedes_id: Mapped[uuid.UUID | None]
    duplicate_of_id: Mapped[uuid.UUID | None]

    status: Mapped[str] = mapped_column(String(20), default="pending")
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    retry_at: Mapped[datetime | None]
    owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None]

    rows_read: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_stored: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_known: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_rollbacks: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_rejected: Mapped[int] = mapped_column(BigInteger, default=0)
    rows_blank: Mapped[int] = mapped_column(BigInteger, default=0)
    checkpoint_byte: Mapped[int] = mapped_column(BigInteger, default=0)
    checkpoint_line: Mapped[int] = mapped_column(BigInteger, default=0)
    # {"hours": UTC hours since the epoch, "slots": names} of what this file put in or
    # changed: kept with each batch, because memory is lost on a kill.
    touched: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    # On-chain ballots first delivered in this slot; recounted like an hour.
    slot_bulletins: Mapped[int] = mapped_column(BigInteger, default=0)
    slot_votes: Mapped[int] = mapped_column(BigInteger, default=0)
    # A quarantined attempt's counts, kept as evidence after its rows were undone.
    attempt_counts: Mapped[dict[str, Any] | None] = mapped_column(Json)

    encoding: Mapped[str | None] = mapped_column(String(20))
    first_error_line: Mapped[int | None] = mapped_column(BigInteger)
    first_error_field: Mapped[str | None] = mapped_column(Text)
    first_error_message: Mapped[str | None] = mapped_column(Text)

    discovered_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    throughput: Mapped[float | None] = mapped_column(Float)

    constituency: Mapped[Constituency | None] = relationship(lazy="select")
    rejects: Mapped[list[Reject]] = relationship(back_populates="file", lazy="select")

    __table_args__ = (
        CheckConstraint(f"status NOT IN ('completed', 'superseded') OR {BOOKS}", name="books"),
        Index("ix_file_processing_status", "status", "discovered_at"),  # jobs by state
        # What arrived and what was finished last: `ingestd jobs`, `ingestd status`.
        Index("ix_file_processing_discovered_at", "discovered_at"),
        Index("ix_file_processing_finished_at", "finished_at"),
        # Known without reading; a hash, since a path may be longer than a key.
        Index("ix_file_processing_path", "path", postgresql_using="hash"),
        Index("ix_file_processing_sha256", "sha256"),  # known by content
        Index("ix_file_processing_container", "container_sha256"),
        Index("ix_file_processing_slot", "constituency_id", "slot"),  # publications of a slot
    )
