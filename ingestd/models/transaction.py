"""Transactions, the sightings that they are a function of, and the contents not shown."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Index, Integer, LargeBinary, SmallInteger, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ingestd.models.base import Base, Json

if TYPE_CHECKING:
    from ingestd.models.constituency import Constituency
    from ingestd.models.file_processing import FileProcessing

BALLOT_TYPES = ("vote", "blindSigIssue")
_NOT_A_BALLOT = text("type NOT IN ('vote', 'blindSigIssue')")
_OFF_CHAIN = text("status IN ('rolled_back', 'withdrawn')")
_HAS_VOTER = text("voter_key IS NOT NULL")


class Transaction(Base):
    """The voting system's record of one transaction, as its current files show it.

    A pure function of its sightings in current files, lineage (`file_id`,
    `line_number`) apart. There are no foreign keys on purpose: the database
    would check them once a row at several microseconds each, and only the
    ledger writes here; `constituency_id` and `file_id` are held by tests.
    """

    __tablename__ = "transaction"

    # Small columns first: SQLite then counts without reading the ballot pages.
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    constituency_id: Mapped[uuid.UUID]
    timestamp: Mapped[datetime]
    status: Mapped[str] = mapped_column(String(12))
    tally: Mapped[str | None] = mapped_column(String(16))
    persons: Mapped[int | None] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(Text)
    tx_type: Mapped[int] = mapped_column(SmallInteger)
    version: Mapped[int] = mapped_column(BigInteger)
    slot: Mapped[str | None] = mapped_column(String(24))
    file_id: Mapped[uuid.UUID]
    line_number: Mapped[int] = mapped_column(BigInteger)
    voter_key: Mapped[int | None] = mapped_column(BigInteger)
    content_hash: Mapped[bytes] = mapped_column(LargeBinary(16))
    tx_id: Mapped[str] = mapped_column(String(64))
    fee: Mapped[int] = mapped_column(BigInteger)
    fee_asset_id: Mapped[str] = mapped_column(Text)
    block_height: Mapped[int | None] = mapped_column(BigInteger)
    sender: Mapped[str] = mapped_column(String(100))
    signature: Mapped[str] = mapped_column(String(100))
    extra: Mapped[dict[str, Any]] = mapped_column(Json)
    raw_data: Mapped[list[Any]] = mapped_column(Json)
    operation_data: Mapped[list[Any]] = mapped_column(Json)

    constituency: Mapped[Constituency] = relationship(
        primaryjoin="foreign(Transaction.constituency_id) == Constituency.id",
        lazy="select",
        viewonly=True,
    )
    file: Mapped[FileProcessing] = relationship(
        primaryjoin="foreign(Transaction.file_id) == FileProcessing.id",
        lazy="select",
        viewonly=True,
    )

    __table_args__ = (
        # A constituency's transactions by time; the recount of an hour reads
        # nothing but this index.
        Index(
            "ix_transaction_constituency_time", "constituency_id", "timestamp", "tally", "status"
        ),
        # Lists, start, finish, results and operations never seen before:
        # under one row in fifty, so the index is small and ballots do not pay.
        Index(
            "ix_transaction_constituency_type",
            "constituency_id",
            "type",
            "timestamp",
            postgresql_where=_NOT_A_BALLOT,
            sqlite_where=_NOT_A_BALLOT,
        ),
        # What was rolled back or withdrawn: rare, and asked for by every report.
        Index(
            "ix_transaction_off_chain",
            "constituency_id",
            "status",
            postgresql_where=_OFF_CHAIN,
            sqlite_where=_OFF_CHAIN,
        ),
        # All votes of one voter key, for revotes: eight bytes that begin with
        # the constituency, so neighbours stay neighbours.
        Index(
            "ix_transaction_voter_key",
            "voter_key",
            postgresql_where=_HAS_VOTER,
            sqlite_where=_HAS_VOTER,
        ),
    )


class Sighting(Base):
    """One event of one transaction in one file: +1 (delivered) or -1 (rolled back).

    The first plain +1 of a transaction stays implicit in `transaction`
    (`file_id`, `line_number`, `content_hash`); all else stands here. There is
    no foreign key to `transaction`: a rollback may come before its row.
    """

    __tablename__ = "sighting"

    transaction_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    file_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    line_number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    sign: Mapped[int] = mapped_column(SmallInteger)
    content_hash: Mapped[bytes | None] = mapped_column(LargeBinary(16))

    __table_args__ = (
        # What one file holds: to compare publications and to undo a file.
        Index("ix_sighting_file", "file_id", "transaction_id"),
    )


class TransactionContent(Base):
    """A content of a transaction other than the one shown; its JSON columns as text."""

    __tablename__ = "transaction_content"

    transaction_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    content_hash: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    content: Mapped[dict[str, Any]] = mapped_column(Json)
