"""The straightforward pipeline: one Pydantic model and one `session.add` a row, commit per 1 000.

It keeps no ledger, knows no duplicates across files, counts nothing. Runs in an environment of
its own; prints rows and seconds, imports and making the table left out.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import JSON, DateTime, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

COLUMNS = 12
ROWS_A_COMMIT = 1_000


class Base(DeclarativeBase):
    """The root of the models."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own name


class Transaction(Base):
    """One row of an export."""

    __tablename__ = "transaction"

    tx_id: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[int]
    signature: Mapped[str]
    version: Mapped[int]
    timestamp: Mapped[datetime] = mapped_column(index=True)
    sender: Mapped[str]
    fee: Mapped[int]
    fee_asset_id: Mapped[str]
    params: Mapped[list[Any]]
    diff: Mapped[list[Any]]
    extra: Mapped[dict[str, Any]]
    rollback: Mapped[int | None]


class TransactionRow(BaseModel):
    """The same, validated."""

    tx_id: str = Field(min_length=42, max_length=44)
    type: int
    signature: str
    version: int
    timestamp: datetime
    sender: str
    fee: int
    fee_asset_id: str
    params: list[dict[str, Any]]
    diff: list[dict[str, Any]]
    extra: dict[str, Any]
    rollback: int | None


def parsed(line: str) -> TransactionRow:
    """One line of the CSV."""
    cells = line.rstrip("\n").split(";")
    if len(cells) != COLUMNS:
        message = f"{len(cells)} columns"
        raise ValueError(message)
    return TransactionRow(
        tx_id=cells[0],
        type=int(cells[1]),
        signature=cells[2],
        version=int(cells[3]),
        timestamp=datetime.fromtimestamp(int(cells[4]) / 1000, UTC),
        sender=cells[5],
        fee=int(cells[6]),
        fee_asset_id=cells[7],
        params=json.loads(cells[8]),
        diff=json.loads(cells[9]),
        extra=json.loads(cells[10]),
        rollback=int(cells[11]) if cells[11] else None,
    )


def main(url: str, files: list[str]) -> None:
    """Load the files."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    began, rows = time.monotonic(), 0
    with Session(engine) as session:
        for file in files:
            with Path(file).open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    session.add(Transaction(**parsed(line).model_dump()))
                    rows += 1
                    if rows % ROWS_A_COMMIT == 0:
                        session.commit()
        session.commit()
    print(json.dumps({"rows": rows, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
