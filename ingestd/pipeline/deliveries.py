"""Deliveries: which files of every constituency are here, read once and kept between two looks.

A whole country has 367 000 of them. What is kept is brought up to date by the jobs that were
finished since; where a person did something by hand, or the ledger then counts otherwise,
everything is read again.
"""

from __future__ import annotations

import uuid
from array import array
from bisect import bisect_left
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, String, and_, cast, func, or_, select, type_coerce
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, is_postgresql
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import AuditLog, FileProcessing, table_of
from ingestd.pipeline.prune import PRUNE
from ingestd.pipeline.slot import WHOLE

_f = table_of(FileProcessing).c
_TOLD = (*DELIVERED, JobState.QUARANTINED)
_IS_COPY = and_(_f.status == JobState.DUPLICATE, _f.is_cumulative.is_(False), _f.slot.is_not(None))
# What people did by hand stands in the audit log, written in the same commit: a publication that
# counts again, a file that is forgotten, rows that were mended. Pruning takes only bytes away.
DEEDS = select(func.count()).select_from(AuditLog).where(AuditLog.action != PRUNE)
# So long a commit may take: what was finished in it has the time of its beginning.
_COMMITS_TAKE = timedelta(seconds=60)
_ROWS_AT_ONCE = 5_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Written = int
"""A time in microseconds since 1970: what the database makes of it costs no object."""


@dataclass(slots=True)
class Names:
    """The names of all slots, numbered once for everybody."""

    of: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, slot: str) -> int:
        """Give the number of a slot; a new one gets the next."""
        if slot not in self.numbers:
            self.numbers[slot] = len(self.of)
            self.of.append(slot)
        return self.numbers[slot]


class BySlot(Mapping[str, int]):
    """A number for each slot, in twelve bytes; in a dict it takes more than a hundred."""

    __slots__ = ("_names", "_places", "_values")

    def __init__(self, names: Names) -> None:
        """Begin without any; `names` are those of all constituencies."""
        self._names = names
        self._places = array("i")  # in order
        self._values = array("q")

    def _at(self, slot: str) -> tuple[int, bool]:
        number = self._names.numbers.get(slot, -1)
        at = bisect_left(self._places, number)
        return at, at < len(self._places) and self._places[at] == number

    def __getitem__(self, slot: str) -> int:
        """Give the number of a slot."""
        at, is_here = self._at(slot)
        if not is_here:
            raise KeyError(slot)
        return self._values[at]

    def __setitem__(self, slot: str, value: int) -> None:
        """Keep a number for a slot."""
        at, is_here = self._at(slot)
        if is_here:
            self._values[at] = value
            return
        number = self._names.number(slot)
        at = bisect_left(self._places, number)
        self._places.insert(at, number)
        self._values.insert(at, value)

    def __contains__(self, slot: object) -> bool:
        """Say whether there is a number for a slot."""
        return isinstance(slot, str) and self._at(slot)[1]

    def __iter__(self) -> Iterator[str]:
        """Give the slots in the order in which they were first seen."""
        return (self._names.of[number] for number in self._places)

    def __len__(self) -> int:
        """Count the slots."""
        return len(self._places)

    @property
    def total(self) -> int:
        """The sum of all numbers."""
        return sum(self._values)


@dataclass(slots=True)
class Owned:
    """The files of one constituency."""

    rows: BySlot  # of the current hourly file of a slot
    written: BySlot  # the first time, by slot
    others: set[str] = field(default_factory=set)  # current files that are no hourly ones
    refused: set[str] = field(default_factory=set)
    has_whole: bool = False
    first: str = ""
    last: str = ""

    @property
    def slots(self) -> int:
        """How many hours are here."""
        return len(self.rows)

    @property
    def total(self) -> int:
        """Rows of all its hours."""
        return self.rows.total


@dataclass(slots=True)
class Hour:
    """One slot over all constituencies."""

    delivered: int = 0
    rows: int = 0
    empty: int = 0
    least: Written | None = None
    most: Written | None = None


@dataclass(slots=True)
class Deliveries:
    """All files; `changed` are the constituencies that the last look found changed."""

    owners: dict[uuid.UUID, Owned] = field(default_factory=dict)
    hours: dict[str, Hour] = field(default_factory=dict)
    rows: int = 0
    nobodys: set[str] = field(default_factory=set)
    changed: set[uuid.UUID] = field(default_factory=set)
    is_anew: bool = True
    _until: datetime | None = None
    _deeds: int = 0
    _off_by: int = 0
    _keys: dict[str, uuid.UUID] = field(default_factory=dict)
    _names: Names = field(default_factory=Names)

    def refresh(self, session: Session) -> None:
        """Bring up to date what is kept."""
        self.changed = set()
        self.is_anew = self._until is None
        deeds = session.scalar(DEEDS) or 0
        until = session.scalar(select(func.max(_f.finished_at)))
        if self._until is None or deeds != self._deeds:
            self._read_all(session)
            self._off_by = 0
        else:
            since = _f.finished_at >= self._until - _COMMITS_TAKE
            self._note(session.execute(_jobs(session).where(since)).all())
            # Another commit may come between two questions, so one difference is no proof. Two
            # are: of what was finished behind a clock that was set back, each time tells less.
            off_by = self._count(session) - self._counted()
            if off_by < 0 or (off_by and self._off_by):
                self._read_all(session)
                off_by = 0
            self._off_by = off_by
        self._until, self._deeds = until, deeds

    @property
    def state(self) -> Hashable:
        """Something that is another when the files are."""
        return self._until, self._deeds, self.rows, self._counted()

    def _read_all(self, session: Session) -> None:
        self.owners, self.hours, self.nobodys = {}, {}, set()
        self.rows, self.is_anew = 0, True
        result = session.execute(_jobs(session), execution_options={"yield_per": _ROWS_AT_ONCE})
        for part in result.partitions():
            self._note(part)

    def _count(self, session: Session) -> int:
        states = (JobState.COMPLETED, JobState.QUARANTINED)
        return session.scalar(select(func.count()).where(_f.status.in_(states))) or 0

    def _counted(self) -> int:
        known = (len(one.rows) + len(one.others) + len(one.refused) for one in self.owners.values())
        return sum(known, len(self.nobodys))

    def _note(self, jobs: Sequence[AnyRow]) -> None:
        for key, owner, status, slot, is_cumulative, rows, written in jobs:
            if owner is None:  # refused before anybody knew whose it was
                self.nobodys.add(key)
                continue
            if owner not in self._keys:
                self._keys[owner] = uuid.UUID(owner)
            found = self._keys[owner]
            self.changed.add(found)
            if found not in self.owners:
                self.owners[found] = Owned(BySlot(self._names), BySlot(self._names))
            mine = self.owners[found]
            if status == JobState.DUPLICATE:
                # Which of two copies came first is chance; the one written first tells the time.
                _stamp(mine, self.hours.setdefault(slot, Hour()), slot, written)
                continue
            if status == JobState.QUARANTINED:
                mine.refused.add(key)
                continue
            mine.refused.discard(key)
            if is_cumulative or slot is None:
                if status == JobState.COMPLETED:
                    mine.others.add(key)
                    mine.has_whole |= slot == WHOLE
                else:
                    mine.others.discard(key)
                continue
            hour = self.hours.setdefault(slot, Hour())
            if status == JobState.COMPLETED:
                self._take(mine, hour, slot, int(rows))
            _stamp(mine, hour, slot, written)

    def _take(self, mine: Owned, hour: Hour, slot: str, rows: int) -> None:
        """One hourly file is current; the one that it supersedes is not any more."""
        former = mine.rows.get(slot)
        if former is None:
            hour.delivered += 1
            mine.first = min(mine.first, slot) if mine.first else slot
            mine.last = max(mine.last, slot)
        else:
            hour.empty -= not former
        hour.rows += rows - (former or 0)
        self.rows += rows - (former or 0)
        hour.empty += not rows
        mine.rows[slot] = rows


def _stamp(mine: Owned, hour: Hour, slot: str, written: Any) -> None:
    """Keep when a slot's first file was written, and between what times those of the hour."""
    if written is None:
        return
    written = int(written)
    if slot in mine.written:
        written = min(written, mine.written[slot])
    mine.written[slot] = written
    hour.least = written if hour.least is None else min(hour.least, written)
    hour.most = written if hour.most is None else max(hour.most, written)


def _jobs(session: Session) -> Any:
    return select(
        *(_text(session, _f.id), _text(session, _f.constituency_id), _f.status, _f.slot),
        *(_f.is_cumulative, _f.rows_read, _time(session)),
    ).where(or_(_f.status.in_(_TOLD), _IS_COPY))


def _text(session: Session, column: ColumnElement[Any]) -> ColumnElement[str]:
    """An id as text: making objects of hundreds of thousands takes a second."""
    return cast(column, String) if is_postgresql(session) else type_coerce(column, String)


def _time(session: Session) -> ColumnElement[Any]:
    if is_postgresql(session):
        return cast(func.extract("epoch", _f.mtime) * 1_000_000, BigInteger)
    # As SQLAlchemy writes it there: 2024-09-06 08:00:00.123456.
    micros = cast(func.substr(type_coerce(_f.mtime, String), 21), BigInteger)
    return cast(func.strftime("%s", _f.mtime), BigInteger) * 1_000_000 + micros


def moment_of(written: Written) -> datetime:
    """The time that is kept as a number."""
    return _EPOCH + timedelta(microseconds=written)


def hours_of(owned: Mapping[uuid.UUID, Owned]) -> int:
    """The most hours that anybody has delivered."""
    return max((one.slots for one in owned.values()), default=0)
