"""Loading: a batch of records into `transaction`, idempotent by the transaction's own id.

An ordinary row (first seen, +1, once) is one implicit sighting and pays for
no other; all else goes to `sightings`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Table, bindparam, exists, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, driver_at_work, is_postgresql
from ingestd.pipeline import copy_rows
from ingestd.pipeline.sightings import CONTENT_COLUMNS, JSON_COLUMNS, FileRef, recompute
from ingestd.pipeline.touched import (
    HOUR_MS,
    ON_CHAIN,
    Touched,
    among,
    content,
    insert_missing,
    listed,
    sighting,
    transaction,
)
from ingestd.pipeline.validate import Record
from ingestd.pipeline.verdict import status_of

# In the order of `_tuples`.
BULK_COLUMNS = (
    "id",
    "constituency_id",
    "timestamp",
    "status",
    "tally",
    "persons",
    "type",
    "tx_type",
    "version",
    "slot",
    "file_id",
    "line_number",
    "voter_key",
    "content_hash",
    "tx_id",
    "fee",
    "fee_asset_id",
    "sender",
    "signature",
    "extra",
    "raw_data",
    "operation_data",
)
_SHORTEST_GAMBLE = 200


@dataclass(slots=True)
class Loaded:
    """What became of a batch's records."""

    stored: int = 0
    known: int = 0
    rollbacks: int = 0
    collisions: list[Record] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)


def load_batch(
    session: Session, file: FileRef, records: Sequence[Record], *, expects_new: bool = False
) -> Loaded:
    """Store the records of one batch; the caller commits.

    Records that are already here become sightings. A record whose derived id
    belongs to another transaction id comes back in `collisions`. Where the
    caller `expects_new` transactions only, they are stored without a look
    first, and what that shows to be here is looked at then.
    """
    keys = {record.key for record in records}
    sighted = _sighted(session, keys)
    is_plain = len(keys) == len(records) and not sighted and all(each.shown for each in records)
    if records and is_plain and expects_new:
        if not is_postgresql(session):
            return _store_missing(session, file, records)
        if len(records) >= _SHORTEST_GAMBLE and (loaded := _store_all(session, file, records)):
            return loaded
    here = _rows_here(session, keys)
    batch = _Batch(file)
    if is_plain and not here:
        batch.fresh = list(records)
    else:
        batch.place_all(records, here, sighted)
    batch.write(session)
    return batch.loaded


def _store_all(session: Session, file: FileRef, records: Sequence[Record]) -> Loaded | None:
    """Store new transactions; None, and nothing is stored, if one is here already."""
    batch = _Batch(file, fresh=list(records))
    try:
        with session.connection().begin_nested():
            batch.write(session)
    except IntegrityError:
        return None
    return batch.loaded


def _store_missing(session: Session, file: FileRef, records: Sequence[Record]) -> Loaded:
    """Store those that are not here, then see which the others are.

    SQLite copies every page that is changed behind a savepoint into a file of its own, so that
    nothing is tried that may have to be taken back.
    """
    stored = _insert_transactions(session, file, records, may_be_here=True)
    batch = _Batch(file)
    fresh = records
    if stored < len(records):
        here = _rows_here(session, {record.key for record in records})
        lines = {key: row.line_number for key, row in here.items() if row.file_id == file.id}
        fresh = [record for record in records if lines.get(record.key) == record.line]
        known = [record for record in records if lines.get(record.key) != record.line]
        batch.place_all(known, here, set())
        batch.write(session)
    _count_fresh(batch.loaded, file, fresh)
    return batch.loaded


@dataclass(slots=True)
class _Batch:
    """What one batch adds to each table, and which transactions it moves."""

    file: FileRef
    loaded: Loaded = field(default_factory=Loaded)
    fresh: list[Record] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    contents: list[dict[str, Any]] = field(default_factory=list)
    slotted: list[dict[str, Any]] = field(default_factory=list)
    moved: list[uuid.UUID] = field(default_factory=list)

    def place_all(
        self, records: Sequence[Record], here: dict[str, AnyRow], sighted: set[str]
    ) -> None:
        """Place records of which some are known, rolled back or there twice."""
        times = Counter(record.key for record in records)
        groups: dict[str, list[Record]] = {}
        for record in records:
            key = record.key
            if times[key] == 1 and record.shown and key not in here and key not in sighted:
                self.fresh.append(record)
            else:
                groups.setdefault(key, []).append(record)
        for key, group in groups.items():
            self._place(here.get(key), group, is_sighted=key in sighted)

    def _place(self, row: AnyRow | None, group: list[Record], *, is_sighted: bool) -> None:
        """Place the records of one derived id; `row` is the transaction that is here, if any."""
        group = self._of_one_transaction(row.tx_id if row else group[0].tx_id, group)
        if row is not None:
            self._see_again(row.content_hash, group)
        else:
            first = next((record for record in group if record.shown), None)
            # Its first +1 row stays a transaction's implicit sighting.
            self.fresh += [first] if first else []
            rest = [record for record in group if record is not first]
            self._see_again(first.content_hash if first else None, rest)
        if row is not None and row.slot is None and self.file.is_cumulative:
            # Which cumulative file shows it may be another now: rules look at its hour again.
            self.loaded.touched.add(row.timestamp, None)
        if row is not None and not is_sighted and _is_quiet(row, group):
            self._take_slot(row)
        elif row is not None or is_sighted or len(group) > 1:
            self.moved.append(group[0].id)

    def _of_one_transaction(self, tx_id: str, group: list[Record]) -> list[Record]:
        """Keep what really is this transaction: the key is derived, the id has the last word."""
        self.loaded.collisions += [record for record in group if record.tx_id != tx_id]
        return [record for record in group if record.tx_id == tx_id]

    def _see_again(self, shown_hash: bytes | None, records: Iterable[Record]) -> None:
        for record in records:
            self.events.append(_event_row(self.file, record))
            self.loaded.known += record.sign > 0
            self.loaded.rollbacks += record.sign < 0
            if record.sign > 0 and record.content_hash != shown_hash:
                self.contents.append(_content_row(record))

    def _take_slot(self, row: AnyRow) -> None:
        """A transaction belongs to the first interval slot that holds it."""
        slot = self.file.interval_slot
        if slot and (row.slot is None or slot < row.slot):
            self.slotted.append({"key": row.id, "slot": slot})
            self.loaded.touched.add(row.timestamp, row.slot)
            self.loaded.touched.add(row.timestamp, slot)

    def write(self, session: Session) -> None:
        """Send it to the database, then let the moved transactions say what they now are."""
        if self.fresh:
            _insert_transactions(session, self.file, self.fresh)
            _count_fresh(self.loaded, self.file, self.fresh)
        _insert(session, sighting, self.events)
        insert_missing(session, content, self.contents)
        if self.slotted:
            session.connection().execute(
                update(transaction).where(transaction.c.id == bindparam("key")), self.slotted
            )
        self.loaded.touched.update(recompute(session, self.moved))


def _count_fresh(loaded: Loaded, file: FileRef, fresh: Sequence[Record]) -> None:
    """Note transactions that are stored, their hours and their slot."""
    loaded.stored += len(fresh)
    moments = {record.shown.milliseconds for record in fresh if record.shown}
    loaded.touched.hours |= {moment // HOUR_MS for moment in moments}
    if file.interval_slot:
        loaded.touched.slots.add(file.interval_slot)


_TOLD = "id tx_id content_hash status slot timestamp file_id line_number"
_HERE = [transaction.c[name] for name in _TOLD.split()]


def _rows_here(session: Session, keys: Iterable[str]) -> dict[str, AnyRow]:
    query = select(*_HERE).where(among(transaction.c.id, session))
    return {row.id.hex: row for row in session.execute(query, listed(keys, session))}


def _sighted(session: Session, keys: set[str]) -> set[str]:
    """Find which ids have explicit sightings; one probe says "none" for most files."""
    if not keys:
        return set()
    reach = {"low": uuid.UUID(min(keys)), "high": uuid.UUID(max(keys))}
    if not session.scalar(_SIGHTED_IN_REACH, reach):
        return set()
    query = select(sighting.c.transaction_id).where(among(sighting.c.transaction_id, session))
    return {key.hex for key in session.scalars(query.distinct(), listed(keys, session))}


_SIGHTED_IN_REACH = select(
    exists().where(sighting.c.transaction_id.between(bindparam("low"), bindparam("high")))
)


def _is_quiet(row: AnyRow, group: list[Record]) -> bool:
    """Say whether this is the same content once more, of a row that is on chain by one sighting."""
    return (
        len(group) == 1
        and group[0].sign > 0
        and group[0].content_hash == row.content_hash
        and row.status in ON_CHAIN
    )


def _event_row(file: FileRef, record: Record) -> dict[str, Any]:
    return {
        "transaction_id": record.id,
        "file_id": file.id,
        "line_number": record.line,
        "sign": record.sign,
        "content_hash": record.content_hash,
    }


def _content_row(record: Record) -> dict[str, Any]:
    values = record.values
    packed = {name: values[name] for name in CONTENT_COLUMNS}
    packed["timestamp"] = values["timestamp"].isoformat()
    packed |= {name: str(values[name]) for name in JSON_COLUMNS}
    return {
        "transaction_id": record.id,
        "content_hash": record.content_hash,
        "content": packed,
    }


def _insert_transactions(
    session: Session, file: FileRef, fresh: Sequence[Record], *, may_be_here: bool = False
) -> int:
    """Store new transactions in bulk, as the database takes them fastest; how many.

    The values are ready for the driver: an ordinary Core insert would spend
    more on preparing each of them again than the database spends on the row.
    Those that `may_be_here` SQLite passes over.
    """
    connection = session.connection()
    quote = connection.dialect.identifier_preparer.quote
    table = quote(transaction.name)
    if is_postgresql(session):
        names = ", ".join(map(quote, copy_rows.COLUMNS))
        statement = f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)"
        with (
            driver_at_work(connection) as driver,
            driver.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            for block in copy_rows.blocks(file, fresh):
                copy.write(block)
        return len(fresh)
    names, marks = ", ".join(map(quote, BULK_COLUMNS)), ", ".join("?" * len(BULK_COLUMNS))
    pass_over = " ON CONFLICT (id) DO NOTHING" if may_be_here else ""
    done = connection.exec_driver_sql(
        f"INSERT INTO {table} ({names}) VALUES ({marks}){pass_over}",  # noqa: S608 - our own names
        list(_tuples(file, fresh)),
    )
    return done.rowcount


def _tuples(file: FileRef, fresh: Sequence[Record]) -> Iterator[tuple[Any, ...]]:
    """Rows as SQLAlchemy's types would write them: UUIDs as hex, times as UTC text."""
    constituency, file_id = file.constituency_id.hex, file.id.hex
    slot = file.interval_slot
    for line, _end, key, tx_id, _sign, content_hash, shown in fresh:
        assert shown is not None  # noqa: S101 - a rollback stores no transaction
        milliseconds, tally, persons, operation, tx_type, version, voter_key, *own = shown
        second, rest = divmod(milliseconds, 1000)
        yield (
            key,
            constituency,
            f"{_second_text(second)}.{rest:03d}000",
            status_of(tally),
            tally,
            persons,
            operation,
            tx_type,
            version,
            slot,
            file_id,
            line,
            voter_key,
            content_hash,
            tx_id,
            *own,
        )


@lru_cache(maxsize=4096)
def _second_text(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M:%S}"


def _insert(session: Session, table: Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        session.connection().execute(insert(table), rows)
