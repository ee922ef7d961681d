"""Transactions: read only; the pipeline writes them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, literal_column, select
from sqlalchemy.orm import Session

from ingestd.crud.base import FIRST, AnyColumn, Page, Reader, Window, within
from ingestd.models import Constituency, Transaction
from ingestd.models.transaction import BALLOT_TYPES

# SQLite took 999 bound values in one statement until 2020.
_KEYS_AT_ONCE = 900

# Word for word the condition of the partial index: SQLite uses it only for a query that says so
# itself, and a bound value says nothing when the query is planned.
_IS_NO_BALLOT = Transaction.type.not_in([literal_column(f"'{type_}'") for type_ in BALLOT_TYPES])

Derive = Callable[[str, str], uuid.UUID]
"""The id of a transaction by its contract id and its tx_id."""


class Transactions(Reader[Transaction]):
    """Transactions by tx_id, and those of a constituency."""

    def by_tx_id(self, session: Session, tx_id: str, *, derive: Derive) -> Sequence[Transaction]:
        """Every transaction with this tx_id: one, or a finding (an id in two contracts).

        There is no index on tx_id; the id that it would have in each constituency is tried, a
        few thousand look-ups of the primary key.
        """
        contracts = session.scalars(select(Constituency.contract_id))
        return self.by_ids(session, [derive(each, tx_id) for each in contracts], tx_id=tx_id)

    def by_ids(
        self, session: Session, ids: Sequence[uuid.UUID], *, tx_id: str
    ) -> Sequence[Transaction]:
        """Those of these ids that really have this tx_id, of which an id holds only a part."""
        return [
            found
            for some in _portions(ids)
            for found in session.scalars(
                select(Transaction)
                .where(Transaction.id.in_(some), Transaction.tx_id == tx_id)
                .order_by(Transaction.id)
            )
        ]

    def of_constituency(  # noqa: PLR0913 - each one narrows the list
        self,
        session: Session,
        constituency_id: uuid.UUID,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        types: Sequence[str] = (),
        statuses: Sequence[str] = (),
        window: Window = FIRST,
    ) -> Page[Transaction]:
        """A constituency's transactions by time, from `since` on and before `until`."""
        query = select(Transaction).where(
            Transaction.constituency_id == constituency_id,
            *within(Transaction.timestamp, since, until),
        )
        if types:
            query = query.where(_any_of(Transaction.type, types))
            if not set(types) & set(BALLOT_TYPES):
                query = query.where(_IS_NO_BALLOT)
        if statuses:
            query = query.where(_any_of(Transaction.status, statuses))
        return self.page(session, query, order=[Transaction.timestamp], window=window)


def _any_of(column: AnyColumn, values: Sequence[str]) -> ColumnElement[bool]:
    # `=` for one value: then the index gives the order by time, too.
    return column == values[0] if len(values) == 1 else column.in_(values)


def _portions(ids: Sequence[uuid.UUID]) -> Iterator[Sequence[uuid.UUID]]:
    return (ids[at : at + _KEYS_AT_ONCE] for at in range(0, len(ids), _KEYS_AT_ONCE))


transactions = Transactions(
    Transaction,
    columns=[
        Transaction.constituency_id,
        Transaction.timestamp,
        Transaction.type,
        Transaction.tx_type,
        Transaction.status,
        Transaction.tally,
        Transaction.file_id,
        Transaction.line_number,
    ],
)
