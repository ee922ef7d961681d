"""Loading: a batch of records into `transaction`, idempotent by the transaction's own id.

An ordinary row (first seen, +1, once) is one implicit sighting and pays for
no other; all else goes to `sightings`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Table, bindparam, exists, insert, select, update
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, is_postgresql
from ingestd.pipeline.sightings import CONTENT_COLUMNS, JSON_COLUMNS, FileRef, recompute
from ingestd.pipeline.touched import (
    ON_CHAIN,
    Touched,
    chunks,
    content,
    insert_missing,
    sighting,
    transaction,
)
from ingestd.pipeline.validate import Record
from ingestd.pipeline.verdict import status_of

_BULK = [column for column in transaction.columns if column.name != "block_height"]


@dataclass(slots=True)
class Loaded:
    """What became of a batch's records."""

    stored: int = 0
    known: int = 0
    rollbacks: int = 0
    collisions: list[Record] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)


def load_batch(session: Session, file: FileRef, records: Sequence[Record]) -> Loaded:
    """Store the records of one batch; the caller commits.

    Records that are already here become sightings. A record whose derived id
    belongs to another transaction id comes back in `collisions`.
    """
    by_id: dict[uuid.UUID, list[Record]] = {}
    for record in records:
        by_id.setdefault(record.id, []).append(record)
    here = _rows_here(session, by_id)
    sighted = _sighted(session, by_id)
    batch = _Batch(file)
    for key, group in by_id.items():
        batch.place(here.get(key), group, is_sighted=key in sighted)
    batch.write(session)
    return batch.loaded


@dataclass(slots=True)
class _Batch:
    """What one batch adds to each table, and which transactions it moves."""

    file: FileRef
    loaded: Loaded = field(default_factory=Loaded)
    fresh: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)
    slotted: list[dict[str, Any]] = field(default_factory=list)
    moved: list[uuid.UUID] = field(default_factory=list)

    def place(self, row: AnyRow | None, group: list[Record], *, is_sighted: bool) -> None:
        """Place the records of one derived id; `row` is the transaction that is here, if any."""
        group = self._of_one_transaction(row.tx_id if row else group[0].tx_id, group)
        if row is not None:
            self._see_again(row.content_hash, group)
        else:
            first = self._begin(group)
            rest = [record for record in group if record is not first]
            self._see_again(first.content_hash if first else None, rest)
        if row is not None and not is_sighted and _is_quiet(row, group):
            self._take_slot(row)
        elif row is not None or is_sighted or len(group) > 1:
            self.moved.append(group[0].id)

    def _of_one_transaction(self, tx_id: str, group: list[Record]) -> list[Record]:
        """Keep what really is this transaction: the key is derived, the id has the last word."""
        self.loaded.collisions += [record for record in group if record.tx_id != tx_id]
        return [record for record in group if record.tx_id == tx_id]

    def _begin(self, group: list[Record]) -> Record | None:
        """Store a transaction by its first +1 row, which stays its implicit sighting."""
        first = next((record for record in group if record.sign > 0), None)
        if first is not None and first.values is not None:
            self.fresh.append(_new_row(self.file, first))
            self.loaded.stored += 1
            self.loaded.touched.add(first.values["timestamp"], self.file.slot)
        return first

    def _see_again(self, shown_hash: bytes | None, records: Iterable[Record]) -> None:
        for record in records:
            self.events.append(_event_row(self.file, record))
            self.loaded.known += record.sign > 0
            self.loaded.rollbacks += record.sign < 0
            if record.sign > 0 and record.content_hash != shown_hash:
                self.contents.append(_content_row(record))

    def _take_slot(self, row: AnyRow) -> None:
        """A transaction belongs to the first interval slot that holds it."""
        slot = self.file.slot
        if slot and not self.file.is_cumulative and (row.slot is None or slot < row.slot):
            self.slotted.append({"key": row.id, "slot": slot})
            self.loaded.touched.add(row.timestamp, row.slot)
            self.loaded.touched.add(row.timestamp, slot)

    def write(self, session: Session) -> None:
        """Send it to the database, then let the moved transactions say what they now are."""
        _insert_transactions(session, self.fresh)
        _insert(session, sighting, self.events)
        insert_missing(session, content, self.contents)
        if self.slotted:
            session.connection().execute(
                update(transaction).where(transaction.c.id == bindparam("key")), self.slotted
            )
        self.loaded.touched.update(recompute(session, self.moved))


def _rows_here(session: Session, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, AnyRow]:
    columns = [
        transaction.c[name]
        for name in ("id", "tx_id", "content_hash", "status", "slot", "timestamp")
    ]
    return {
        row.id: row
        for chunk in chunks(ids)
        for row in session.execute(select(*columns).where(transaction.c.id.in_(chunk)))
    }


def _sighted(session: Session, ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Find which ids have explicit sightings; one probe says "none" for most files."""
    keys = list(ids)
    if not keys:
        return set()
    in_reach = sighting.c.transaction_id.between(min(keys), max(keys))
    if not session.scalar(select(exists().where(in_reach))):
        return set()
    return {
        key
        for chunk in chunks(keys)
        for key in session.scalars(
            select(sighting.c.transaction_id).where(sighting.c.transaction_id.in_(chunk)).distinct()
        )
    }


def _is_quiet(row: AnyRow, group: list[Record]) -> bool:
    """Say whether this is the same content once more, of a row that is on chain by one sighting."""
    return (
        len(group) == 1
        and group[0].sign > 0
        and group[0].content_hash == row.content_hash
        and row.status in ON_CHAIN
    )


def _new_row(file: FileRef, record: Record) -> dict[str, Any]:
    values = record.values or {}
    return {
        **values,
        "id": record.id,
        "content_hash": record.content_hash,
        "status": status_of(values["tally"]),
        "slot": None if file.is_cumulative else file.slot,
        "file_id": file.id,
        "line_number": record.line,
    }


def _event_row(file: FileRef, record: Record) -> dict[str, Any]:
    return {
        "transaction_id": record.id,
        "file_id": file.id,
        "line_number": record.line,
        "sign": record.sign,
        "content_hash": record.content_hash,
    }


def _content_row(record: Record) -> dict[str, Any]:
    values = record.values or {}
    packed = {name: values[name] for name in CONTENT_COLUMNS}
    packed["timestamp"] = values["timestamp"].isoformat()
    packed |= {name: str(values[name]) for name in JSON_COLUMNS}
    return {
        "transaction_id": record.id,
        "content_hash": record.content_hash,
        "content": packed,
    }


def _insert_transactions(session: Session, rows: list[dict[str, Any]]) -> None:
    """Store new transactions in bulk, as the database takes them fastest.

    The values are ready for the driver: an ordinary Core insert would spend
    more on preparing each of them again than the database spends on the row.
    """
    if not rows:
        return
    connection = session.connection()
    quote = connection.dialect.identifier_preparer.quote
    table, names = quote(transaction.name), ", ".join(quote(column.name) for column in _BULK)
    if is_postgresql(session):
        driver = connection.connection.driver_connection
        assert driver is not None  # noqa: S101 - a connection in use has one
        with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([row[column.name] for column in _BULK])
        return
    marks = ", ".join("?" * len(_BULK))
    connection.exec_driver_sql(
        f"INSERT INTO {table} ({names}) VALUES ({marks})",  # noqa: S608 - names of our own columns
        [tuple(_for_sqlite(row[column.name]) for column in _BULK) for row in rows],
    )


def _for_sqlite(value: Any) -> Any:
    """Write a value as SQLAlchemy's types would: UUIDs as hex, times as UTC text."""
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(" ", "microseconds")[:-6]
    return value


def _insert(session: Session, table: Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.connection().execute(insert(table), rows)
