"""Loading: a batch of records into `transaction`, idempotent by the transaction's own id.

A transaction row is a pure function of its sightings in current files:
`decide` is that function, `recompute` applies it. An ordinary row (first seen,
+1, once) is a function of one implicit sighting and pays for no other.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    false,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, RawJson, is_postgresql
from ingestd.models import FileProcessing, Sighting, Transaction, TransactionContent, table_of
from ingestd.pipeline.validate import Record

transaction = table_of(Transaction)
sighting = table_of(Sighting)
content = table_of(TransactionContent)

_T = TypeVar("_T")

CHUNK = 2_000
"""Ids handled by one statement; far below both databases' limits on parameters."""

ACCEPTED, REJECTED, ROLLED_BACK, WITHDRAWN = "accepted", "rejected", "rolled_back", "withdrawn"
ON_CHAIN = (ACCEPTED, REJECTED)

# What a content says; the rest of a transaction row says where and whether it counts.
_CONTENT_COLUMNS = (
    "timestamp",
    "tally",
    "persons",
    "type",
    "tx_type",
    "version",
    "voter_key",
    "fee",
    "fee_asset_id",
    "sender",
    "signature",
)
_JSON_COLUMNS = ("extra", "raw_data", "operation_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """What loading must know of the file that a batch comes from."""

    id: uuid.UUID
    constituency_id: uuid.UUID
    is_cumulative: bool
    slot: str | None


@dataclass(slots=True)
class Touched:
    """Hours (since the epoch, UTC) and slots whose counts a change may have moved."""

    hours: set[int] = field(default_factory=set)
    slots: set[str] = field(default_factory=set)

    def add(self, moment: datetime, slot: str | None) -> None:
        """Note one transaction."""
        self.hours.add(hour_of(moment))
        if slot:
            self.slots.add(slot)

    def update(self, other: Touched) -> None:
        """Take over what another step touched."""
        self.hours |= other.hours
        self.slots |= other.slots

    def as_json(self) -> dict[str, Any]:
        """Write it for the ledger."""
        return {"hours": sorted(self.hours), "slots": sorted(self.slots)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Touched:
        """Read it from the ledger."""
        return cls(set(value.get("hours", ())), set(value.get("slots", ())))


@dataclass(slots=True)
class Loaded:
    """What became of a batch's records."""

    stored: int = 0
    known: int = 0
    rollbacks: int = 0
    collisions: list[Record] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)


class Event(NamedTuple):
    """One sighting: which file holds which event of a transaction."""

    file_id: uuid.UUID
    line: int
    sign: int
    content_hash: bytes | None


class SeenFile(NamedTuple):
    """What `decide` must know of a file."""

    is_cumulative: bool
    slot: str | None
    publication: int
    is_current: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a transaction's sightings say: where it stands and which event shows its content."""

    is_withdrawn: bool
    is_on_chain: bool
    shown: Event
    slot: str | None

    def status(self, tally: str | None) -> str:
        """Which status wins: withdrawn, rolled_back, rejected, accepted."""
        if self.is_withdrawn:
            return WITHDRAWN
        if not self.is_on_chain:
            return ROLLED_BACK
        return status_of(tally)


def status_of(tally: str | None) -> str:
    """Status of a content that is on chain."""
    return REJECTED if tally and tally.endswith("rejected") else ACCEPTED


def decide(events: Iterable[Event], files: Mapping[uuid.UUID, SeenFile]) -> Verdict | None:
    """Decide what a set of sightings means; None where none of them has a content.

    Net sign over interval files is a sum, over cumulative files the greatest;
    the content shown is that of the last +1 row by slot start, cumulative
    files last, then line. Source: docs/format.md, "What an observer counts".
    """

    def order(event: Event) -> tuple[Any, ...]:
        seen = files[event.file_id]
        place = (seen.is_cumulative, seen.slot or "", seen.publication)
        return (*place, event.file_id.hex, event.line)

    everything = list(events)
    current = [event for event in everything if files[event.file_id].is_current]
    contents = [event for event in current if event.sign > 0] or [
        event for event in everything if event.sign > 0
    ]
    if not contents:
        return None
    slots = [
        seen.slot
        for seen in (files[event.file_id] for event in contents)
        if seen.slot and not seen.is_cumulative
    ]
    return Verdict(
        is_withdrawn=not current,
        is_on_chain=_held(current, files, 1) > _held(current, files, -1),
        shown=max(contents, key=order),
        slot=min(slots, default=None),
    )


def _held(events: Iterable[Event], files: Mapping[uuid.UUID, SeenFile], sign: int) -> int:
    """Count the events of one sign: summed over interval files, the most of any cumulative one."""
    in_intervals = 0
    in_cumulative: dict[uuid.UUID, int] = {}
    for event in events:
        if event.sign == sign:
            if files[event.file_id].is_cumulative:
                in_cumulative[event.file_id] = in_cumulative.get(event.file_id, 0) + 1
            else:
                in_intervals += 1
    return max([in_intervals, *in_cumulative.values()])


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
            if record.values is not None and not self.file.is_cumulative:
                # Its slot may come to own this ballot later and must then know its hour.
                self.loaded.touched.hours.add(hour_of(record.values["timestamp"]))
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
    packed = {name: values[name] for name in _CONTENT_COLUMNS}
    packed["timestamp"] = values["timestamp"].isoformat()
    packed |= {name: str(values[name]) for name in _JSON_COLUMNS}
    return {
        "transaction_id": record.id,
        "content_hash": record.content_hash,
        "content": packed,
    }


_BULK = [column for column in transaction.columns if column.name != "block_height"]


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


def insert_missing(session: Session, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert what is not there yet."""
    if rows:
        dialect = postgresql if is_postgresql(session) else sqlite
        session.connection().execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def recompute(
    session: Session, ids: Sequence[uuid.UUID], *, without_file: uuid.UUID | None = None
) -> Touched:
    """Make the transaction rows of `ids` say again what their sightings say.

    `without_file` is a file that is being undone: its implicit sightings do
    not count (its explicit ones are deleted already).
    """
    touched = Touched()
    for chunk in chunks(ids):
        _recompute_chunk(session, chunk, without_file, touched)
    return touched


def _recompute_chunk(
    session: Session, ids: list[uuid.UUID], without_file: uuid.UUID | None, touched: Touched
) -> None:
    rows = session.execute(
        select(
            *(
                transaction.c[name]
                for name in ("id", "file_id", "line_number", "content_hash", "tally")
            ),
            transaction.c.status,
            transaction.c.slot,
            transaction.c.timestamp,
        ).where(transaction.c.id.in_(ids))
    ).all()
    events = _events_of(session, ids)
    for row in rows:
        if row.file_id != without_file:
            implicit = Event(row.file_id, row.line_number, 1, row.content_hash)
            known = events.setdefault(row.id, {})
            known.setdefault((row.file_id, row.line_number), implicit)
    files = _files_of(
        session, {event.file_id for known in events.values() for event in known.values()}
    )
    if without_file is not None:
        _forget_unused_contents(session, ids, events)
    changes: list[dict[str, Any]] = []
    for row in rows:
        verdict = decide(events.get(row.id, {}).values(), files)
        if verdict is None:
            _forget(session, row.id)
            touched.add(row.timestamp, row.slot)
            continue
        tally = row.tally
        is_other = verdict.shown.content_hash != row.content_hash
        if is_other:
            tally = _show(session, row, verdict.shown, events[row.id].values(), touched)
        status = verdict.status(tally)
        if (status, verdict.slot) != (row.status, row.slot) or row.file_id == without_file:
            touched.add(row.timestamp, row.slot)
            touched.add(row.timestamp, verdict.slot)
            # The row's own lineage is a sighting too: it moves only with the
            # content shown, or where its file is undone.
            has_moved = is_other or row.file_id == without_file
            lineage = verdict.shown[:2] if has_moved else (row.file_id, row.line_number)
            changes.append(
                {
                    "key": row.id,
                    "status": status,
                    "slot": verdict.slot,
                    "file_id": lineage[0],
                    "line_number": lineage[1],
                }
            )
    if changes:
        session.connection().execute(
            update(transaction).where(transaction.c.id == bindparam("key")), changes
        )


def _events_of(
    session: Session, ids: list[uuid.UUID]
) -> dict[uuid.UUID, dict[tuple[uuid.UUID, int], Event]]:
    events: dict[uuid.UUID, dict[tuple[uuid.UUID, int], Event]] = {}
    for row in session.execute(select(sighting).where(sighting.c.transaction_id.in_(ids))):
        event = Event(row.file_id, row.line_number, row.sign, row.content_hash)
        events.setdefault(row.transaction_id, {})[row.file_id, row.line_number] = event
    return events


def _files_of(session: Session, ids: set[uuid.UUID]) -> dict[uuid.UUID, SeenFile]:
    return {
        row.id: SeenFile(
            row.is_cumulative, row.slot, row.publication, is_current=row.status != "superseded"
        )
        for chunk in chunks(ids)
        for row in session.execute(
            select(
                FileProcessing.id,
                FileProcessing.is_cumulative,
                FileProcessing.slot,
                FileProcessing.publication,
                FileProcessing.status,
            ).where(FileProcessing.id.in_(chunk))
        )
    }


def _forget_unused_contents(
    session: Session,
    ids: list[uuid.UUID],
    events: Mapping[uuid.UUID, Mapping[tuple[uuid.UUID, int], Event]],
) -> None:
    """Drop kept contents that no sighting names any more."""
    for key, kept in session.execute(
        select(content.c.transaction_id, content.c.content_hash).where(
            content.c.transaction_id.in_(ids)
        )
    ).all():
        if all(event.content_hash != kept for event in events.get(key, {}).values()):
            session.execute(
                delete(content).where(
                    content.c.transaction_id == key, content.c.content_hash == kept
                )
            )


def _forget(session: Session, key: uuid.UUID) -> None:
    session.execute(delete(transaction).where(transaction.c.id == key))
    session.execute(delete(content).where(content.c.transaction_id == key))


def _show(
    session: Session, row: AnyRow, shown: Event, events: Iterable[Event], touched: Touched
) -> str | None:
    """Swap the content shown with one that was kept; returns the new tally."""
    old = _shown_content(session, row.id)
    kept = session.execute(
        select(content.c.content).where(
            content.c.transaction_id == row.id, content.c.content_hash == shown.content_hash
        )
    ).scalar_one()
    session.execute(
        delete(content).where(
            content.c.transaction_id == row.id, content.c.content_hash == shown.content_hash
        )
    )
    events = list(events)
    if any(event.content_hash == row.content_hash for event in events):
        insert_missing(
            session,
            content,
            [{"transaction_id": row.id, "content_hash": row.content_hash, "content": old}],
        )
        # The first sighting was implicit in the content that now steps back.
        lineage = next(
            (e for e in events if (e.file_id, e.line) == (row.file_id, row.line_number)), None
        )
        if lineage:
            insert_missing(
                session,
                sighting,
                [
                    {
                        "transaction_id": row.id,
                        "file_id": lineage.file_id,
                        "line_number": lineage.line,
                        "sign": 1,
                        "content_hash": lineage.content_hash,
                    }
                ],
            )
    values = unpacked(kept)
    session.connection().execute(
        update(transaction).where(transaction.c.id == row.id),
        {
            **values,
            "content_hash": shown.content_hash,
            "file_id": shown.file_id,
            "line_number": shown.line,
        },
    )
    touched.add(row.timestamp, row.slot)
    touched.add(values["timestamp"], row.slot)
    tally: str | None = values["tally"]
    return tally


def unpacked(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a kept content back into the columns of a transaction."""
    values = {name: packed[name] for name in _CONTENT_COLUMNS}
    values["timestamp"] = datetime.fromisoformat(packed["timestamp"])
    return values | {name: RawJson(packed[name]) for name in _JSON_COLUMNS}


def _shown_content(session: Session, key: uuid.UUID) -> dict[str, Any]:
    """Pack the content that a transaction row shows, its JSON as the database's text."""
    columns = [transaction.c[name] for name in _CONTENT_COLUMNS]
    texts = [cast(transaction.c[name], Text).label(name) for name in _JSON_COLUMNS]
    row = session.execute(select(*columns, *texts).where(transaction.c.id == key)).one()._asdict()
    row["timestamp"] = row["timestamp"].isoformat()
    return row


def recompute_file(session: Session, file: FileRef, hours: Iterable[int]) -> Touched:
    """Recompute every transaction that a file holds; its implicit sightings become explicit."""
    materialise(session, file, hours)
    touched = Touched()
    for ids in _ids_in_file(session, file.id):
        touched.update(recompute(session, ids))
    return touched


def undo_file(session: Session, file: FileRef, hours: Iterable[int]) -> Touched:
    """Take a file's rows and events out of the tables; what other files delivered stays."""
    materialise(session, file, hours)
    touched = Touched()
    for ids in _ids_in_file(session, file.id):
        session.execute(
            delete(sighting).where(
                sighting.c.file_id == file.id, sighting.c.transaction_id.in_(ids)
            )
        )
        touched.update(recompute(session, ids, without_file=file.id))
    return touched


def materialise(session: Session, file: FileRef, hours: Iterable[int]) -> None:
    """Write out the sightings of a file that were implicit in `transaction`.

    `hours` are those that the file touched: with them the time index finds
    its rows, and no index on `file_id` has to be kept for every row.
    """
    rows = select(
        transaction.c.id,
        transaction.c.file_id,
        transaction.c.line_number,
        bindparam("plus", 1),
        transaction.c.content_hash,
    ).where(within(file.constituency_id, hours), transaction.c.file_id == file.id)
    dialect = postgresql if is_postgresql(session) else sqlite
    session.execute(
        dialect.insert(sighting)
        .from_select(["transaction_id", "file_id", "line_number", "sign", "content_hash"], rows)
        .on_conflict_do_nothing()
    )


def within(constituency_id: uuid.UUID, hours: Iterable[int]) -> ColumnElement[bool]:
    """Condition: transactions of a constituency whose time lies in one of `hours`."""
    spans = [
        and_(transaction.c.timestamp >= start_of(first), transaction.c.timestamp < start_of(last))
        for first, last in spans_of(hours)
    ]
    return and_(transaction.c.constituency_id == constituency_id, or_(false(), *spans))


_MOST_SPANS = 200


def spans_of(hours: Iterable[int]) -> list[tuple[int, int]]:
    """Fold hours into half-open spans; too many of them into a single one."""
    spans: list[tuple[int, int]] = []
    for hour in sorted(hours):
        if spans and spans[-1][1] == hour:
            spans[-1] = (spans[-1][0], hour + 1)
        else:
            spans.append((hour, hour + 1))
    if len(spans) > _MOST_SPANS:
        return [(spans[0][0], spans[-1][1])]
    return spans


def _ids_in_file(session: Session, file_id: uuid.UUID) -> Iterator[list[uuid.UUID]]:
    """Walk the ids that a file holds, a chunk at a time, so that memory stays flat."""
    last: uuid.UUID | None = None
    while True:
        query = select(sighting.c.transaction_id).where(sighting.c.file_id == file_id).distinct()
        if last is not None:
            query = query.where(sighting.c.transaction_id > last)
        ids = list(session.scalars(query.order_by(sighting.c.transaction_id).limit(CHUNK)))
        if not ids:
            return
        last = ids[-1]
        yield ids


def hour_of(moment: datetime) -> int:
    """Number of the UTC hour since the epoch."""
    return int(moment.timestamp() // 3600)


def start_of(hour: int) -> datetime:
    """First moment of an hour since the epoch."""
    return datetime.fromtimestamp(hour * 3600, UTC)


def chunks(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Cut into lists that one statement can take."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
