"""Reading and small writes that every entity shares. Nothing here commits: callers own that."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, delete, func, inspect, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ingestd.models import Base
from ingestd.schemas.base import Changes, Incoming

ModelT = TypeVar("ModelT", bound=Base)
CreateT = TypeVar("CreateT", bound=Incoming)
UpdateT = TypeVar("UpdateT", bound=Changes)
ItemT = TypeVar("ItemT")

DEFAULT_LIMIT = 100
LIMIT_CAP = 1000

AnyColumn = InstrumentedAttribute[Any]
Order = Sequence[ColumnElement[Any] | AnyColumn]


class UnknownColumnError(ValueError):
    """A filter or an order that the entity does not have; the message names those it has."""


@dataclass(frozen=True)
class Window:
    """Which part of an ordered list is asked for; a limit beyond the cap is cut to it."""

    offset: int = 0
    limit: int = DEFAULT_LIMIT

    def __post_init__(self) -> None:
        """Bring both into their bounds."""
        object.__setattr__(self, "offset", max(0, self.offset))
        object.__setattr__(self, "limit", max(1, min(self.limit, LIMIT_CAP)))


FIRST = Window()


@dataclass(frozen=True)
class Page(Generic[ItemT]):
    """A part of a list; `total` counts the whole, `limit` is the one that was kept to."""

    items: Sequence[ItemT]
    total: int
    offset: int
    limit: int


class Reader(Generic[ModelT]):
    """By-id reads and lists of one entity.

    `columns` are the names that a caller may filter and order by: nothing that comes from
    outside becomes part of a statement.
    """

    def __init__(
        self, model: type[ModelT], *, columns: Sequence[AnyColumn], usual_order: str | None = None
    ) -> None:
        """Take the model, its columns open to callers, and the order unless told (`-` = down)."""
        self.model = model
        self.columns = {column.key: column for column in columns}
        self.usual_order = usual_order
        self._key: tuple[ColumnElement[Any], ...] = tuple(inspect(model).primary_key)

    def get(self, session: Session, id: uuid.UUID) -> ModelT | None:
        """The one with this id."""
        return session.get(self.model, id)

    def list(
        self,
        session: Session,
        *,
        filters: Mapping[str, object] | None = None,
        order: str | None = None,
        window: Window = FIRST,
    ) -> Page[ModelT]:
        """A page of those whose columns have these values (a list: any of them; None: null).

        `order` names a column, with `-` before it the greatest first. Raises UnknownColumnError.
        """
        query = select(self.model)
        for name, value in (filters or {}).items():
            query = query.where(self._is(name, value))
        return self.page(session, query, window=window, order=self._order(order))

    def page(
        self,
        session: Session,
        query: Select[ModelT],
        *,
        order: Order,
        window: Window = FIRST,
    ) -> Page[ModelT]:
        """Run a query for one page; the id settles ties, so that no row is on two pages."""
        counted = query.with_only_columns(func.count(), maintain_column_froms=True)
        total = session.scalar(counted) or 0
        part = query.order_by(*order, *self._key).offset(window.offset).limit(window.limit)
        return Page(session.scalars(part).all(), total, window.offset, window.limit)

    def _is(self, name: str, value: object) -> ColumnElement[bool]:
        column = self._column(name)
        if value is None:
            return column.is_(None)
        if isinstance(value, str) or not isinstance(value, Sequence):
            return column == value
        return column.in_(value)

    def _order(self, order: str | None) -> Order:
        if not (order := order or self.usual_order):
            return ()
        column = self._column(order.removeprefix("-"))
        return [column.desc() if order.startswith("-") else column.asc()]

    def _column(self, name: str) -> AnyColumn:
        try:
            return self.columns[name]
        except KeyError:
            known = ", ".join(sorted(self.columns))
            raise UnknownColumnError(
                f"{self.model.__tablename__} has no {name!r}; known: {known}"
            ) from None


class Crud(Reader[ModelT], Generic[ModelT, CreateT, UpdateT]):
    """The same, with the small writes of people. Each is flushed, none is committed."""

    def create(self, session: Session, new: CreateT, *, id: uuid.UUID) -> ModelT:
        """Store a new one; the caller derives the id, because ids say what a row is about."""
        row = self.model(id=id, **new.model_dump())
        session.add(row)
        session.flush()
        return row

    def update(self, session: Session, id: uuid.UUID, changes: UpdateT) -> ModelT | None:
        """Change what the changes name and nothing else; None where there is no such row."""
        row = self.get(session, id)
        return row and changed(session, row, changes.model_dump(exclude_unset=True))

    def delete(self, session: Session, id: uuid.UUID) -> bool:
        """Delete one; the database refuses (IntegrityError) while others refer to it."""
        # Not session.delete(): that would quietly unlink the rows that refer to it.
        (key,) = self._key
        return bool(session.execute(delete(self.model).where(key == id)).rowcount)  # type: ignore[attr-defined]  # a DELETE's result is a cursor


def changed(session: Session, row: ModelT, values: Mapping[str, Any]) -> ModelT:
    """Write values into a row, and read back what the database set (`updated_at`)."""
    for name, value in values.items():
        setattr(row, name, value)
    session.flush()
    session.refresh(row)
    return row


def contains_text(column: AnyColumn, text: str) -> ColumnElement[bool]:
    """The column holds this text somewhere; `%` and `_` mean themselves.

    SQLite folds ASCII letters only and PostgreSQL none: the usual ways to write a word are
    tried, which finds «Округ» by «округ» on both.
    """
    ways = sorted({text, text.lower(), text.upper(), text.capitalize(), text.title()})
    return or_(*(column.contains(way, autoescape=True) for way in ways))


def within(
    column: AnyColumn, since: datetime | None, until: datetime | None
) -> Sequence[ColumnElement[bool]]:
    """From `since` on and before `until`; an end that is None is open."""
    found = []
    if since is not None:
        found.append(column >= since)
    if until is not None:
        found.append(column < until)
    return found
