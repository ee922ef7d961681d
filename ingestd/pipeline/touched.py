"""What a change touches: hours and slots to count anew, and the statements' common words."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    collate,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ingestd.db import is_postgresql
from ingestd.models import Sighting, Transaction, TransactionContent, table_of

transaction = table_of(Transaction)
sighting = table_of(Sighting)
content = table_of(TransactionContent)

ACCEPTED, REJECTED, ROLLED_BACK, WITHDRAWN = "accepted", "rejected", "rolled_back", "withdrawn"
ON_CHAIN = (ACCEPTED, REJECTED)

CHUNK = 2_000
"""Ids handled by one statement; far below both databases' limits on parameters."""

_MOST_SPANS = 200
_T = TypeVar("_T")


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


def among(column: ColumnElement[uuid.UUID], session: Session) -> ColumnElement[bool]:
    """Condition: an id is one of `listed`; one parameter, however many they are.

    A join, on both databases. Held against an array by `= ANY`, each row of a table that
    PostgreSQL still believes to be small would be compared with all the ids.
    """
    ids = bindparam("ids", type_=Text)
    if is_postgresql(session):
        return column.in_(select(func.unnest(cast(ids, ARRAY(Uuid)))))
    return column.in_(select(func.json_each(ids).table_valued("value").c.value))


def listed(keys: Iterable[str], session: Session) -> dict[str, str]:
    """The parameter of `among`: ids in hex."""
    if is_postgresql(session):
        return {"ids": f"{{{','.join(keys)}}}"}
    return {"ids": '["' + '","'.join(keys) + '"]'}


def by_bytes(column: ColumnElement[str], session: Session) -> ColumnElement[str]:
    """Order a text as Python and SQLite do, whatever language the database is in."""
    return collate(column, "C") if is_postgresql(session) else column


def within(spans: int) -> ColumnElement[bool]:
    """Condition: transactions of a constituency in one of so many spans of time.

    Its parameters are those of `bounds`, so that a statement is built once
    for each number of spans and not for each file.
    """
    t = transaction.c
    ranges = [
        and_(t.timestamp >= bindparam(f"since_{n}"), t.timestamp < bindparam(f"until_{n}"))
        for n in range(spans)
    ]
    return and_(t.constituency_id == bindparam("constituency"), or_(false(), *ranges))


def bounds(constituency_id: uuid.UUID, spans: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The parameters of `within` for these spans of hours (see `spans_of`)."""
    values: dict[str, Any] = {"constituency": constituency_id}
    for number, (since, until) in enumerate(spans):
        values[f"since_{number}"] = start_of(since)
        values[f"until_{number}"] = start_of(until)
    return values


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


HOUR_MS = 3_600_000


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


def insert_missing(session: Session, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert what is not there yet."""
    if rows:
        dialect = postgresql if is_postgresql(session) else sqlite
        session.connection().execute(dialect.insert(table).on_conflict_do_nothing(), rows)
