"""Sightings: keeping every transaction row what its sightings in current files say.

`verdict.decide` is the pure function; here it is applied after a row was seen
again, a publication superseded, a file undone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Text, bindparam, cast, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, RawJson, is_postgresql
from ingestd.models import FileProcessing
from ingestd.pipeline.touched import (
    CHUNK,
    Touched,
    bounds,
    chunks,
    content,
    insert_missing,
    sighting,
    spans_of,
    transaction,
    within,
)
from ingestd.pipeline.verdict import Event, SeenFile, decide

# What a content says; the rest of a transaction row says where and whether it counts.
CONTENT_COLUMNS = (
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
JSON_COLUMNS = ("extra", "raw_data", "operation_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """What loading must know of the file that a batch comes from."""

    id: uuid.UUID
    constituency_id: uuid.UUID
    is_cumulative: bool
    slot: str | None

    @property
    def interval_slot(self) -> str | None:
        """The slot that its ballots belong to; none of a cumulative file."""
        return None if self.is_cumulative else self.slot

    @classmethod
    def of(cls, job: FileProcessing) -> FileRef:
        """Take it from a job, which has a contract: it would have been refused without."""
        assert job.constituency_id is not None  # noqa: S101 - see above
        return cls(
            id=job.id,
            constituency_id=job.constituency_id,
            is_cumulative=job.is_cumulative,
            slot=job.slot,
        )


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
            transaction.c.voter_key,
        ).where(transaction.c.id.in_(ids))
    ).all()
    events = events_of(session, ids)
    for row in rows:
        if row.file_id != without_file:
            implicit = Event(row.file_id, row.line_number, 1, row.content_hash)
            known = events.setdefault(row.id, {})
            known.setdefault((row.file_id, row.line_number), implicit)
    files = seen_files(
        session, {event.file_id for known in events.values() for event in known.values()}
    )
    if without_file is not None:
        _forget_unused_contents(session, ids, events)
    changes: list[dict[str, Any]] = []
    left: set[int | None] = set()
    for row in rows:
        verdict = decide(events.get(row.id, {}).values(), files)
        if verdict is None:
            _forget(session, row.id)
            touched.add(row.timestamp, row.slot)
            left.add(row.voter_key)
            continue
        tally = row.tally
        is_other = verdict.shown.content_hash != row.content_hash
        if is_other:
            tally = _show(session, row, verdict.shown, events[row.id].values(), touched)
            left.add(row.voter_key)
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
    _touch_votes_of(session, {key for key in left if key is not None}, touched)


def _touch_votes_of(session: Session, voter_keys: set[int], touched: Touched) -> None:
    """Touch the other votes of senders that lost one: a revote may be the only vote now."""
    if voter_keys:
        query = select(transaction.c.timestamp).where(transaction.c.voter_key.in_(voter_keys))
        for moment in session.scalars(query):
            touched.add(moment, None)


def events_of(
    session: Session, ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, dict[tuple[uuid.UUID, int], Event]]:
    """Read the explicit sightings of transactions, by file and line."""
    events: dict[uuid.UUID, dict[tuple[uuid.UUID, int], Event]] = {}
    for row in session.execute(select(sighting).where(sighting.c.transaction_id.in_(ids))):
        event = Event(row.file_id, row.line_number, row.sign, row.content_hash)
        events.setdefault(row.transaction_id, {})[row.file_id, row.line_number] = event
    return events


def seen_files(session: Session, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, SeenFile]:
    """Read what `decide` must know of files."""
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
    values = _unpacked(kept)
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


def _unpacked(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a kept content back into the columns of a transaction."""
    values = {name: packed[name] for name in CONTENT_COLUMNS}
    values["timestamp"] = datetime.fromisoformat(packed["timestamp"])
    return values | {name: RawJson(packed[name]) for name in JSON_COLUMNS}


def _shown_content(session: Session, key: uuid.UUID) -> dict[str, Any]:
    """Pack the content that a transaction row shows, its JSON as the database's text."""
    columns = [transaction.c[name] for name in CONTENT_COLUMNS]
    texts = [cast(transaction.c[name], Text).label(name) for name in JSON_COLUMNS]
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
    spans = spans_of(hours)
    rows = select(
        transaction.c.id,
        transaction.c.file_id,
        transaction.c.line_number,
        bindparam("plus", 1),
        transaction.c.content_hash,
    ).where(within(len(spans)), transaction.c.file_id == bindparam("file"))
    dialect = postgresql if is_postgresql(session) else sqlite
    session.execute(
        dialect.insert(sighting)
        .from_select(["transaction_id", "file_id", "line_number", "sign", "content_hash"], rows)
        .on_conflict_do_nothing(),
        bounds(file.constituency_id, spans) | {"file": file.id},
    )


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
