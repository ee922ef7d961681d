"""Statements that the driver sends itself mean what SQLAlchemy would have made of them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import Constituency, HourlyStats, table_of
from ingestd.pipeline.prepared import Prepared

Sessions = sessionmaker[Session]
KEY = uuid.UUID(int=7)
MOMENT = datetime(2024, 9, 6, 8, tzinfo=timezone(timedelta(hours=3)))


@pytest.fixture
def constituency(sessions: Sessions) -> uuid.UUID:
    """One constituency with one hour."""
    with sessions.begin() as session:
        connection = session.connection()
        place = {"id": KEY, "contract_id": "c", "dimension": [[1, 2]], "first_activity": MOMENT}
        connection.execute(insert(table_of(Constituency)), place)
        hour = {"id": KEY, "constituency_id": KEY, "hour": MOMENT, "z_votes": 0.5}
        connection.execute(insert(table_of(HourlyStats)), hour)
    return KEY


def test_a_row_is_read_by_its_types(sessions: Sessions, constituency: uuid.UUID) -> None:
    """UUIDs, times with their zone, JSON, numbers and nothing."""
    hour, place = table_of(HourlyStats), table_of(Constituency)
    query = (
        select(*hour.c, place.c.dimension, place.c.is_revote_blocked, place.c.first_activity)
        .join(place, place.c.id == hour.c.constituency_id)
        .where(hour.c.constituency_id == bindparam("key"), hour.c.status.in_(("open", "closed")))
    )
    with sessions() as session:
        (expected,) = session.execute(query, {"key": constituency}).all()
        (found,) = Prepared(query).all(session, {"key": constituency})
    assert tuple(expected) == tuple(found)
    assert MOMENT == found.hour
    assert UTC == found.hour.tzinfo
    assert [[1, 2]] == found.dimension


def test_a_change_sets_what_is_named(sessions: Sessions, constituency: uuid.UUID) -> None:
    """And nothing else, however often other columns were set before."""
    table = table_of(Constituency)
    change = Prepared(update(table).where(table.c.id == bindparam("key")))
    with sessions.begin() as session:
        assert 1 == change.change(session, {"key": constituency, "name": "a", "dimension": [3]})
        assert 1 == change.change(session, {"key": constituency, "last_activity": MOMENT})
        assert 0 == change.change(session, {"key": uuid.UUID(int=8), "name": "b"})
    with sessions() as session:
        row = session.get_one(Constituency, constituency)
        assert ("a", [3], MOMENT) == (row.name, row.dimension, row.last_activity)


def test_an_error_is_told_as_by_any_other_statement(
    sessions: Sessions, constituency: uuid.UUID
) -> None:
    """Who catches it must learn whose fault it is."""
    hour = table_of(HourlyStats)
    change = Prepared(update(hour).where(hour.c.id == bindparam("key")))
    with sessions() as session, pytest.raises(IntegrityError):
        change.change(session, {"key": constituency, "constituency_id": None})
