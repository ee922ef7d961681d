"""Rows: every transaction, in the order of its key, held against its sightings.

Keys of one constituency are neighbours, so one walk over them counts its
hours, slots and files on the way and never holds more than a page.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Text, cast, func, select, union
from sqlalchemy.orm import Session

from ingestd.db import AnyRow
from ingestd.models import FileProcessing
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.touched import (
    ON_CHAIN,
    ROLLED_BACK,
    chunks,
    content,
    hour_of,
    sighting,
    transaction,
)
from ingestd.pipeline.validate import (
    constituency_prefix,
    meaning_of,
    transaction_id,
    voter_key,
)
from ingestd.pipeline.verdict import Event, SeenFile, decide

PAGE = 1_000
_MOST_TOLD_AT_ONCE = 1_000
_COUNTED = {
    "bulletin": "bulletins_issued",
    "vote": "votes_cast",
    "vote_rejected": "votes_rejected",
    "issue_rejected": "issues_rejected",
}
_LISTED = ("list_added", "list_removed")
COUNTS = (*_COUNTED.values(), "rolled_back", *_LISTED, "transaction_count")


class FileFacts(NamedTuple):
    """What the walk must know of a file."""

    constituency_id: uuid.UUID | None
    seen: SeenFile
    # Its slot has other publications, so that all of its sightings stand written out.
    is_compared: bool


@dataclass(slots=True)
class Counted:
    """What the transactions of one constituency come to."""

    hours: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    slots: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    first: datetime | None = None
    last: datetime | None = None

    def add(self, row: AnyRow) -> None:
        """Count one transaction."""
        counts = self.hours[hour_of(row.timestamp)]
        if row.status == ROLLED_BACK:
            counts["rolled_back"] += 1
        if row.status not in ON_CHAIN:
            return
        counts["transaction_count"] += 1
        if row.tally in _COUNTED:
            counts[_COUNTED[row.tally]] += 1
        if row.tally in _LISTED:
            counts[row.tally] += row.persons or 0
        if row.slot and row.tally in ("bulletin", "vote"):
            self.slots[row.slot][row.tally] += 1
        self.first = min(self.first or row.timestamp, row.timestamp)
        self.last = max(self.last or row.timestamp, row.timestamp)


@dataclass(slots=True)
class Held:
    """The events of one file in the tables."""

    plus: int = 0
    minus: int = 0
    hours: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Walk:
    """One walk over a range of keys; afterwards it knows what it counted."""

    session: Session
    contracts: Mapping[uuid.UUID, str]
    counted: dict[uuid.UUID, Counted] = field(default_factory=lambda: defaultdict(Counted))
    held: dict[uuid.UUID, Held] = field(default_factory=lambda: defaultdict(Held))
    rows: int = 0

    def differences(self, low: uuid.UUID, high: uuid.UUID) -> Iterator[Difference]:
        """Walk the keys from `low` to `high`, both included."""
        for page in self._pages(low, high):
            yield from page.differences()
        yield from self._lines_twice(low, high)

    def _pages(self, low: uuid.UUID, high: uuid.UUID) -> Iterator[_Page]:
        after: uuid.UUID | None = None
        while True:
            begin = transaction.c.id >= low if after is None else transaction.c.id > after
            rows = self.session.execute(
                _transactions().where(begin, transaction.c.id <= high).limit(PAGE)
            ).all()
            until = rows[-1].id if len(rows) == PAGE else high
            yield self._page(rows, after, low, until)
            if until == high:
                return
            after = until

    def _page(
        self, rows: Sequence[AnyRow], after: uuid.UUID | None, low: uuid.UUID, until: uuid.UUID
    ) -> _Page:
        events: dict[uuid.UUID, dict[tuple[uuid.UUID, int], Event]] = {}
        kept: dict[uuid.UUID, set[bytes]] = {}
        key = sighting.c.transaction_id
        begin = key >= low if after is None else key > after
        for row in self.session.execute(select(sighting).where(begin, key <= until)):
            event = Event(row.file_id, row.line_number, row.sign, row.content_hash)
            events.setdefault(row.transaction_id, {})[row.file_id, row.line_number] = event
        key = content.c.transaction_id
        begin = key >= low if after is None else key > after
        for row in self.session.execute(
            select(key, content.c.content_hash).where(begin, key <= until)
        ):
            kept.setdefault(row.transaction_id, set()).add(row.content_hash)
        self.rows += len(rows)
        ids = {row.file_id for row in rows} | {each for one in events.values() for each, _ in one}
        return _Page(self, rows, events, kept, files_of(self.session, ids))

    def _lines_twice(self, low: uuid.UUID, high: uuid.UUID) -> Iterator[Difference]:
        """Find lines of files of which more than one transaction says that it was there."""
        t, s = transaction.c, sighting.c
        own = union(
            select(t.id, t.file_id, t.line_number).where(t.id.between(low, high)),
            select(s.transaction_id, s.file_id, s.line_number).where(
                s.transaction_id.between(low, high)
            ),
        ).subquery()
        columns = (own.c.file_id, own.c.line_number)
        query = select(*columns, func.count().label("number")).group_by(*columns)
        for row in self.session.execute(query.having(func.count() > 1).limit(_MOST_TOLD_AT_ONCE)):
            yield Difference(
                code="line_twice",
                about=f"line {row.line_number} of job {row.file_id}",
                what=f"{row.number} transactions say that they stand there",
                mend=Mend.REREAD,
                job_ids=(row.file_id,),
            )


def _transactions() -> Any:
    names = ("id", "tx_id", "constituency_id", "timestamp", "status", "tally", "persons", "type")
    more = ("tx_type", "slot", "file_id", "line_number", "voter_key", "content_hash", "sender")
    columns = [transaction.c[name] for name in (*names, *more)]
    # As text: what somebody wrote into the column need not be JSON.
    texts = [cast(transaction.c[name], Text).label(name) for name in ("raw_data", "operation_data")]
    return select(*columns, *texts).order_by(transaction.c.id)


def files_of(session: Session, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, FileFacts]:
    """Read what the walk must know of files."""
    f = FileProcessing
    columns = (f.id, f.constituency_id, f.is_cumulative, f.slot, f.publication, f.status)
    return {
        row.id: FileFacts(
            row.constituency_id,
            SeenFile(
                row.is_cumulative, row.slot, row.publication, is_current=row.status != "superseded"
            ),
            row.status == "superseded" or row.supersedes_id is not None,
        )
        for chunk in chunks(ids)
        for row in session.execute(select(*columns, f.supersedes_id).where(f.id.in_(chunk)))
    }


@dataclass(slots=True)
class _Page:
    walk: Walk
    rows: Sequence[AnyRow]
    events: dict[uuid.UUID, dict[tuple[uuid.UUID, int], Event]]
    kept: dict[uuid.UUID, set[bytes]]
    files: Mapping[uuid.UUID, FileFacts]
    seen: dict[uuid.UUID, SeenFile] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = {key: facts.seen for key, facts in self.files.items()}

    def differences(self) -> Iterator[Difference]:
        for row in self.rows:
            implicit = Event(row.file_id, row.line_number, 1, row.content_hash)
            events = self.events.pop(row.id, {})
            told = events.setdefault((row.file_id, row.line_number), implicit)
            finding = self._look_at(row, events, is_implicit=told is implicit)
            if finding is not None:
                yield finding
            self._count(row, events.values())
        for key, orphans in self.events.items():
            yield from self._look_at_orphan(key, list(orphans.values()))
        for key in self.kept:
            yield self._about(key, "content_wrong", "contents are kept of no transaction", ())

    def _count(self, row: AnyRow | None, events: Iterable[Event]) -> None:
        for event in events:
            held = self.walk.held[event.file_id]
            held.plus += event.sign > 0
            held.minus += event.sign < 0
        if row is not None:
            self.walk.held[row.file_id].hours.add(hour_of(row.timestamp))
            self.walk.counted[row.constituency_id].add(row)

    def _look_at(
        self, row: AnyRow, events: Mapping[Any, Event], *, is_implicit: bool
    ) -> Difference | None:
        """Hold one transaction against its sightings; the first thing that is wrong is told."""
        kept = self.kept.pop(row.id, set())
        known = [event for event in events.values() if event.file_id in self.files]
        fault = self._misplaced(row, known, len(events)) or self._misjudged(row, known, kept)
        if fault is None and is_implicit and self.files[row.file_id].is_compared:
            fault = "sighting_missing", "its slot was published again, and its line is not noted"
        if fault is None:
            return None
        files = [event.file_id for event in known]
        return self._about(row.id, fault[0], fault[1], files, row.tx_id)

    def _misplaced(self, row: AnyRow, known: list[Event], number: int) -> tuple[str, str] | None:
        contract = self.walk.contracts.get(row.constituency_id)
        if contract is None:
            return "constituency_unknown", "its constituency is not there"
        if transaction_id(constituency_prefix(contract), row.tx_id) != row.id:
            return "key_wrong", "its key is not that of its id and contract"
        if len(known) < number:
            return "file_id_unknown", "a file of it is in no ledger"
        if {self.files[event.file_id].constituency_id for event in known} != {row.constituency_id}:
            return "transaction_stray", "it is in a file of another constituency"
        what = _misread(row, contract)
        return ("transaction_altered", what) if what else None

    def _misjudged(
        self, row: AnyRow, known: list[Event], kept: set[bytes]
    ) -> tuple[str, str] | None:
        own = next(e for e in known if e[:2] == (row.file_id, row.line_number))
        if own.sign != 1 or own.content_hash != row.content_hash:
            return "transaction_altered", "its own sighting says otherwise"
        verdict = decide(known, self.seen)
        assert verdict is not None  # noqa: S101 - its own sighting is a +1
        if verdict.shown.content_hash != row.content_hash:
            return "transaction_altered", "another content should be shown"
        wanted = {e.content_hash for e in known if e.sign > 0} - {row.content_hash}
        if wanted != kept:
            what = f"{len(kept)} other contents are kept, {len(wanted)} are in its files"
            return "content_wrong", what
        found, told = (row.status, row.slot), (verdict.status(row.tally), verdict.slot)
        if found != told:
            what = f"it is {found[0]} in {found[1]}, its files say {told[0]} in {told[1]}"
            return "status_wrong", what
        return None

    def _look_at_orphan(self, key: uuid.UUID, events: list[Event]) -> Iterator[Difference]:
        """A rollback may come before its row; a +1 makes one."""
        self._count(None, events)
        files = [event.file_id for event in events if event.file_id in self.files]
        kept = self.kept.pop(key, set())
        if any(event.sign > 0 for event in events):
            what = "a file holds it, but the row is gone"
            yield self._about(key, "transaction_missing", what, files)
        elif len(files) < len(events):
            yield self._about(key, "file_id_unknown", "a file of it is in no ledger", files)
        elif kept:
            yield self._about(key, "content_wrong", "contents are kept of no transaction", files)

    def _about(
        self,
        key: uuid.UUID,
        code: str,
        what: str,
        files: Iterable[uuid.UUID],
        name: str | None = None,
    ) -> Difference:
        return Difference(
            code=code,
            about=f"transaction {name or key}",
            what=what,
            mend=Mend.REREAD,
            job_ids=tuple(sorted(set(files))),
            transaction_ids=(key,),
        )


def _misread(row: AnyRow, contract: str) -> str | None:
    """Say which column is not what the stored entries and the sender make it."""
    try:
        raw, diff = orjson.loads(row.raw_data), orjson.loads(row.operation_data)
        meaning = meaning_of(row.tx_type, raw, diff)
    except (TypeError, ValueError, KeyError, AttributeError):
        return "its params or diff are not entries"
    found = (row.type, row.tally, row.persons)
    if meaning != found:
        return f"type, tally, persons are {found}, its params and diff say {meaning}"
    voter = voter_key(constituency_prefix(contract), row.sender) if row.type == "vote" else None
    if voter != row.voter_key:
        return "its voter key is not that of its sender"
    return None
