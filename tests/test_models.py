"""The models: times with a zone, lazy relationships, and the index for each question."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from ingestd import crud
from ingestd.db import make_engine
from ingestd.job_state import JobState
from ingestd.models import AuditLog, Base, Election

NOW = datetime(2024, 9, 6, 5, 0, tzinfo=UTC)
SOMEWHERE = UUID(int=7)


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    """A session on the models' tables; rolled back."""
    engine = make_engine(database_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
def sqlite() -> Iterator[Engine]:
    """An SQLite database in memory with the models' tables."""
    engine = make_engine("sqlite://")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_a_time_without_zone_is_refused(session: Session) -> None:
    """Its meaning would depend on the machine."""
    session.add(Election(id=uuid4(), name="А", start_date=datetime(2024, 9, 6)))  # noqa: DTZ001 - the point
    with pytest.raises(StatementError, match="a time needs its zone"):
        session.flush()


def test_a_time_comes_back_in_utc(session: Session) -> None:
    """Eight in Kamchatka is twenty hours of the day before."""
    eight = datetime(2024, 9, 6, 8, tzinfo=timezone(timedelta(hours=12)))
    session.add(Election(id=UUID(int=1), name="А", start_date=eight))
    session.flush()
    session.expire_all()
    found = session.get_one(Election, UUID(int=1))
    assert datetime(2024, 9, 5, 20, tzinfo=UTC) == found.start_date
    assert UTC == found.start_date.tzinfo
    assert UTC == found.created_at.tzinfo


def test_times_compare_and_sort(session: Session) -> None:
    """Microseconds and whole seconds are in one order on both databases."""
    times = [NOW, NOW + timedelta(microseconds=1), NOW + timedelta(seconds=1)]
    for number, at in enumerate(reversed(times)):
        session.add(AuditLog(id=UUID(int=number), at=at, who="", action="", subject=""))
    session.flush()
    query = select(AuditLog.at).where(AuditLog.at > NOW).order_by(AuditLog.at)
    assert times[1:] == session.scalars(query).all()


def test_no_json_is_null_and_not_the_word(session: Session) -> None:
    """An absent `before` answers to IS NULL."""
    session.add(AuditLog(id=uuid4(), at=NOW, who="", action="", subject="", before=None))
    session.flush()
    assert session.scalar(select(AuditLog.before.is_(None)))


def test_relationships_are_lazy() -> None:
    """Nothing is loaded that nobody asked for."""
    assert {"select"} == {
        each.lazy for mapper in Base.registry.mappers for each in mapper.relationships
    }


Question = Callable[[Session], object]


@pytest.mark.parametrize(
    ("question", "index"),
    [
        (
            lambda session: crud.transactions.of_constituency(
                session, SOMEWHERE, since=NOW, until=NOW
            ),
            "ix_transaction_constituency_time",
        ),
        (
            lambda session: crud.transactions.of_constituency(
                session, SOMEWHERE, since=NOW, types=["results"]
            ),
            "ix_transaction_constituency_type",
        ),
        (lambda session: crud.alerts.open(session, severity="critical"), "ix_alert_open"),
        (crud.alerts.open, "ix_alert_open"),
        (
            lambda session: crud.jobs.find(session, statuses={JobState.PENDING}),
            "ix_file_processing_status",
        ),
        (crud.jobs.oldest_queued, "ix_file_processing_status"),
        (crud.jobs.count_by_status, "ix_file_processing_status"),
        (
            lambda session: crud.rejects.find(session, file_id=SOMEWHERE),
            "autoindex_reject_2",  # SQLite's own for unique (file_id, line_number)
        ),
        (
            lambda session: crud.hours.of_constituency(session, SOMEWHERE, since=NOW),
            "autoindex_hourly_stats_2",
        ),
        (lambda session: crud.hours.national(session, since=NOW), "ix_hourly_stats_hour"),
        (
            lambda session: crud.transactions.by_ids(session, [SOMEWHERE], tx_id="a"),
            "autoindex_transaction_1",
        ),
    ],
)
def test_a_question_is_answered_from_its_index(
    sqlite: Engine, question: Question, index: str
) -> None:
    """No statement of it reads the whole table."""
    asked: list[tuple[str, tuple[object, ...]]] = []
    with Session(sqlite) as session:
        event.listen(
            sqlite, "before_cursor_execute", lambda *said: asked.append((said[2], said[3]))
        )
        question(session)
    selects = [(statement, bound) for statement, bound in asked if "SELECT" in statement]
    assert selects
    with sqlite.connect() as connection:
        for statement, bound in selects:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", bound).all()
            assert index in " ".join(step.detail for step in plan), statement


def test_an_hour_is_recounted_without_reading_ballots(sqlite: Engine) -> None:
    """Tally, status and time of a constituency's transactions stand in the index itself."""
    query = (
        'SELECT tally, status, count(*) FROM "transaction" '
        "WHERE constituency_id = 'a' AND timestamp >= 'b' AND timestamp < 'c' GROUP BY 1, 2"
    )
    with sqlite.connect() as connection:
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
    assert "USING COVERING INDEX ix_transaction_constituency_time" in plan[0].detail
