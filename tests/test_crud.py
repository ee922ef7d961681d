"""Reads and small writes for the command line and the API, on both databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ingestd import crud
from ingestd.crud import LIMIT_CAP, NationalHour, Totals, UnknownColumnError, Window
from ingestd.db import make_engine, make_sessions
from ingestd.job_state import JobState
from ingestd.models import (
    Alert,
    Base,
    Constituency,
    Election,
    FileProcessing,
    HourlyStats,
    Reject,
    Transaction,
)
from ingestd.schemas import AlertUpdate, ConstituencyUpdate, ElectionCreate, ElectionUpdate

NOW = datetime(2024, 9, 6, 5, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
HERE, THERE = "C" * 43, "D" * 43


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    """A session on the models' tables; nobody commits."""
    engine = make_engine(database_url)
    Base.metadata.create_all(engine)
    with make_sessions(engine)() as session:
        yield session
    engine.dispose()


@pytest.fixture
def election(session: Session) -> Election:
    """An election of two constituencies."""
    found = Election(id=UUID(int=1), name="Выборы 2024")
    session.add(found)
    session.flush()
    session.add_all(
        [
            Constituency(
                id=derive(contract, ""),
                contract_id=contract,
                election_id=found.id,
                name=name,
                region_code=region,
            )
            for contract, name, region in ((HERE, "Округ №1_3", "90"), (THERE, "Округ №2%", "77"))
        ]
    )
    session.flush()
    return found


def derive(contract: str, tx_id: str) -> UUID:
    """An id from a contract and a tx_id; without the latter the constituency's."""
    return uuid5(NAMESPACE_OID, contract + tx_id)


def put_job(session: Session, name: str, **values: object) -> FileProcessing:
    """Store one job."""
    job = FileProcessing(
        **{
            "id": derive(name, "job"),
            "root": "/inbox",
            "path": name,
            "name": name,
            "sha256": "0" * 64,
            "size": 1,
            "stamp": "",
            "discovered_at": NOW,
        }
        | values
    )
    session.add(job)
    session.flush()
    return job


def put_transaction(session: Session, tx_id: str, **values: object) -> Transaction:
    """Store one vote HERE."""
    row = Transaction(
        **{
            "id": derive(HERE, tx_id),
            "tx_id": tx_id,
            "constituency_id": derive(HERE, ""),
            "timestamp": NOW,
            "status": "accepted",
            "type": "vote",
            "tx_type": 104,
            "version": 4,
            "file_id": uuid4(),
            "line_number": 1,
            "content_hash": b"0" * 16,
            "fee": 0,
            "fee_asset_id": "",
            "sender": "",
            "signature": "",
            "extra": {},
            "raw_data": [],
            "operation_data": [],
        }
        | values
    )
    session.add(row)
    session.flush()
    return row


def put_alert(session: Session, subject: str, **values: object) -> Alert:
    """Store one open warning."""
    alert = Alert(
        **{
            "id": derive(subject, "alert"),
            "type": "late_file",
            "alert_class": "feed",
            "severity": "warning",
            "subject": subject,
            "title": subject,
            "description": "",
            "details": {},
            "ruleset": "1",
            "detected_at": NOW,
        }
        | values
    )
    session.add(alert)
    session.flush()
    return alert


# Lists --------------------------------------------------------------------------------------


def test_pages_hold_every_row_once(session: Session) -> None:
    """Equal names leave the order to the id, so that no row is on two pages."""
    for number in range(5):
        session.add(Election(id=UUID(int=number), name="Выборы"))
    session.flush()
    pages = [
        crud.elections.list(session, window=Window(offset=at, limit=2)) for at in range(0, 6, 2)
    ]
    assert list(range(5)) == [each.id.int for page in pages for each in page.items]
    assert {5} == {page.total for page in pages}


@pytest.mark.parametrize(("asked", "kept"), [(10**9, LIMIT_CAP), (0, 1), (-1, 1), (7, 7)])
def test_a_limit_is_kept_within_its_bounds(asked: int, kept: int) -> None:
    """Nobody gets a million rows by asking for them, and an offset starts at zero."""
    assert Window(offset=0, limit=kept) == Window(offset=-5, limit=asked)


def test_a_list_is_filtered_and_ordered(session: Session, election: Election) -> None:
    """One value, any of several, and null."""

    def contracts(order: str | None = None, **filters: object) -> list[str]:
        page = crud.constituencies.list(session, filters=filters, order=order)
        return [each.contract_id for each in page.items]

    assert [HERE, THERE] == contracts(election_id=election.id)
    assert [THERE, HERE] == contracts(order="-contract_id")
    assert [THERE, HERE] == contracts(order="region_code", region_code=["77", "90"])
    assert [HERE] == contracts(region_code="90")
    assert [] == contracts(region_code=None)


@pytest.mark.parametrize("name", ["password", "name; DROP TABLE election", "-", "metadata"])
def test_only_known_columns_order_and_filter(session: Session, name: str) -> None:
    """The message names those that do."""
    with pytest.raises(UnknownColumnError, match=r"election has no .* known: country, end_date"):
        crud.elections.list(session, order=name)
    with pytest.raises(UnknownColumnError):
        crud.elections.list(session, filters={name: 1})


# Small writes -------------------------------------------------------------------------------


def test_an_election_is_created_changed_and_deleted(session: Session) -> None:
    """What a change doesn't name stays."""
    made = crud.elections.create(session, ElectionCreate(name="А", country="RU"), id=UUID(int=1))
    assert made is crud.elections.by_name(session, "А")
    changed = crud.elections.update(session, made.id, ElectionUpdate(status="completed"))
    assert changed is not None
    assert ("completed", "RU") == (changed.status, changed.country)
    assert crud.elections.delete(session, made.id)
    assert crud.elections.by_name(session, "А") is None


def test_what_is_not_there_is_not_changed(session: Session) -> None:
    """None and False, no exception."""
    assert crud.elections.get(session, UUID(int=9)) is None
    assert crud.elections.update(session, UUID(int=9), ElectionUpdate(country="RU")) is None
    assert not crud.elections.delete(session, UUID(int=9))


def test_nothing_is_committed(session: Session) -> None:
    """The caller owns the commit, and may take everything back."""
    crud.elections.create(session, ElectionCreate(name="А"), id=UUID(int=1))
    session.rollback()
    assert crud.elections.by_name(session, "А") is None


def test_a_changed_row_can_be_read_after_its_session(session: Session, election: Election) -> None:
    """Also what the database itself set."""
    changed = crud.constituencies.update(
        session, derive(HERE, ""), ConstituencyUpdate(name="Округ №1")
    )
    session.close()
    assert changed is not None
    assert changed.updated_at >= changed.created_at


def test_an_election_with_constituencies_is_not_deleted(
    session: Session, election: Election
) -> None:
    """The database refuses; nothing is unlinked in silence."""
    with pytest.raises(IntegrityError):
        crud.elections.delete(session, election.id)


# Constituencies -----------------------------------------------------------------------------


def test_a_constituency_is_found_by_contract_and_region(
    session: Session, election: Election
) -> None:
    """The contract is the identity."""
    found = crud.constituencies.by_contract(session, HERE)
    assert found is not None
    assert [found] == list(crud.constituencies.by_region(session, "90").items)
    assert crud.constituencies.by_contract(session, "E" * 43) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("округ", [THERE, HERE]),  # by region, then name
        ("ОКРУГ №1", [HERE]),
        ("1_3", [HERE]),
        ("%", [THERE]),
        ("№_", []),
        (HERE[:40], [HERE]),
    ],
)
def test_a_search_takes_text_as_it_stands(
    session: Session, election: Election, text: str, found: list[str]
) -> None:
    """In Cyrillic too, large or small; wildcards mean themselves."""
    page = crud.constituencies.search(session, text)
    assert found == [each.contract_id for each in page.items]


# Jobs ---------------------------------------------------------------------------------------


def test_jobs_are_found_by_state_and_path_newest_first(session: Session) -> None:
    """Text in the path or in the member, wildcards as they stand."""
    put_job(session, "a_1.csv", status="failed")
    put_job(session, "a21.zip", member="b_1.csv", status="completed", discovered_at=NOW + HOUR)
    put_job(session, "a_2.csv", status="completed", discovered_at=NOW + 2 * HOUR)

    def found(**query: object) -> list[str]:
        return [each.name for each in crud.jobs.find(session, **query).items]  # type: ignore[arg-type]  # any of them

    assert ["a_2.csv", "a21.zip", "a_1.csv"] == found()
    assert ["a_2.csv", "a21.zip"] == found(statuses={JobState.COMPLETED})
    assert ["a_2.csv", "a21.zip", "a_1.csv"] == found(
        statuses=[JobState.COMPLETED, JobState.FAILED]
    )
    assert ["a21.zip", "a_1.csv"] == found(path="_1")
    assert ["a_1.csv"] == found(path="_1", statuses={JobState.FAILED})


def test_jobs_are_counted_in_every_state(session: Session) -> None:
    """A state without jobs is 0, not absent."""
    put_job(session, "a.csv")
    counts = crud.jobs.count_by_status(session)
    assert set(JobState) == set(counts)
    assert (1, 0) == (counts[JobState.PENDING], counts[JobState.FAILED])


def test_the_books_of_all_jobs_add_up(session: Session) -> None:
    """Of all, of some states, and of none."""
    assert Totals(0, 0, 0, 0, 0, 0, 0) == crud.jobs.totals(session)
    put_job(session, "a.csv", rows_read=10, rows_stored=4, rows_known=3, status="processing")
    put_job(
        session,
        "b.csv",
        status="completed",
        rows_read=6,
        rows_stored=1,
        rows_known=2,
        rows_rollbacks=1,
        rows_rejected=1,
        rows_blank=1,
    )
    assert Totals(2, 16, 5, 5, 1, 1, 1) == crud.jobs.totals(session)
    assert not crud.jobs.totals(session).is_balanced
    completed = crud.jobs.totals(session, statuses={JobState.COMPLETED})
    assert Totals(1, 6, 1, 2, 1, 1, 1) == completed
    assert completed.is_balanced


def test_the_oldest_waiting_job_is_known(session: Session) -> None:
    """Of all states that still ask for work; finished ones don't wait."""
    assert crud.jobs.oldest_queued(session) is None
    put_job(session, "done.csv", status="completed", discovered_at=NOW - HOUR)
    put_job(session, "young.csv")
    oldest = put_job(session, "old.csv", status="failed", discovered_at=NOW - HOUR / 2)
    assert oldest is crud.jobs.oldest_queued(session)


def test_the_last_finished_job_is_known(session: Session) -> None:
    """By the time of its end; one that never ended is not last."""
    assert crud.jobs.last_finished(session) is None
    put_job(session, "a.csv", finished_at=NOW)
    last = put_job(session, "b.csv", finished_at=NOW + HOUR)
    put_job(session, "c.csv")
    assert last is crud.jobs.last_finished(session)


# Rejects ------------------------------------------------------------------------------------


def test_rejects_are_found_by_file_and_kind(session: Session) -> None:
    """In the order of the lines."""
    first, second = put_job(session, "a.csv"), put_job(session, "b.csv")
    for job, line, kind in ((first, 9, "json"), (first, 2, "time"), (second, 1, "json")):
        session.add(
            Reject(id=uuid4(), file_id=job.id, line_number=line, kind=kind, reason="", raw_text="")
        )
    session.flush()

    def lines(**query: object) -> list[int]:
        return [each.line_number for each in crud.rejects.find(session, **query).items]  # type: ignore[arg-type]  # any of them

    assert [2, 9] == lines(file_id=first.id)
    assert [9] == lines(file_id=first.id, kind="json")
    assert [1, 9] == sorted(lines(kind="json"))
    assert [("json", 2), ("time", 1)] == list(crud.rejects.count_by_kind(session).items())
    assert {"json": 1} == crud.rejects.count_by_kind(session, file_id=second.id)


# Alerts -------------------------------------------------------------------------------------


def test_open_alerts_come_worst_first(session: Session) -> None:
    """Critical, warning, info: not the order of the alphabet; then the newest."""
    put_alert(session, "info", severity="info")
    put_alert(session, "old warning", detected_at=NOW - HOUR)
    put_alert(session, "undated warning", detected_at=None)
    put_alert(session, "warning")
    put_alert(session, "critical", severity="critical")
    put_alert(session, "cleared", severity="critical", cleared_at=NOW)
    put_alert(session, "resolved", severity="critical", status="resolved")
    expected = ["critical", "warning", "old warning", "undated warning", "info"]
    assert expected == [each.subject for each in crud.alerts.open(session).items]
    assert {"critical": 1, "warning": 3, "info": 1} == crud.alerts.open_by_severity(session)


def test_open_alerts_are_narrowed(session: Session, election: Election) -> None:
    """By severity, type and contract."""
    ours = put_alert(session, "ours", constituency_id=derive(HERE, ""), type="missing_hour")
    put_alert(session, "theirs", constituency_id=derive(THERE, ""), severity="info")
    assert [ours] == list(crud.alerts.open(session, contract_id=HERE).items)
    assert [ours] == list(crud.alerts.open(session, severity="warning").items)
    assert [ours] == list(crud.alerts.open(session, type="missing_hour").items)
    assert crud.alerts.open(session, contract_id="E" * 43).total == 0


def test_a_resolved_alert_says_when(session: Session) -> None:
    """Opened again it doesn't, and a note changes nothing but the notes."""
    alert = put_alert(session, "a")
    for answer, resolved_at in (
        (AlertUpdate(status="resolved"), NOW),
        (AlertUpdate(notes=["seen"]), NOW),
        (AlertUpdate(status="resolved"), NOW),
        (AlertUpdate(status="investigating", assigned_to="Анна"), None),
    ):
        at = NOW if alert.resolved_at is None else NOW + HOUR
        assert alert is crud.alerts.answer(session, alert.id, answer, at=at)
        assert resolved_at == alert.resolved_at
    assert (["seen"], "Анна") == (alert.notes, alert.assigned_to)
    assert crud.alerts.answer(session, UUID(int=9), AlertUpdate(), at=NOW) is None


# Hours --------------------------------------------------------------------------------------


def test_hours_are_found_by_range_and_summed_over_the_country(
    session: Session, election: Election
) -> None:
    """A range holds its start and not its end."""
    for contract, number, votes in ((HERE, 0, 5), (HERE, 1, 7), (THERE, 1, 11), (THERE, 2, 1)):
        session.add(
            HourlyStats(
                id=uuid4(),
                constituency_id=derive(contract, ""),
                hour=NOW + number * HOUR,
                votes_cast=votes,
                transaction_count=votes,
            )
        )
    session.flush()
    ours = crud.hours.of_contract(session, HERE)
    assert [5, 7] == [each.votes_cast for each in ours]
    assert ours[:1] == crud.hours.of_contract(session, HERE, since=NOW, until=NOW + HOUR)
    assert [] == crud.hours.of_contract(session, "E" * 43)
    assert [
        NationalHour(NOW + HOUR, 2, 0, 18, 0, 0, 0, 0, 0, 0, 18),
        NationalHour(NOW + 2 * HOUR, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1),
    ] == crud.hours.national(session, since=NOW + HOUR)


# Transactions -------------------------------------------------------------------------------


def test_a_transaction_is_found_by_its_tx_id_alone(session: Session, election: Election) -> None:
    """In whatever constituency it is; in two it is found twice."""
    row = put_transaction(session, "65db")
    put_transaction(session, "other")
    assert [row] == crud.transactions.by_tx_id(session, "65db", derive=derive)
    assert [] == crud.transactions.by_tx_id(session, "none", derive=derive)
    put_transaction(session, "65db", id=derive(THERE, "65db"), constituency_id=derive(THERE, ""))
    assert len(crud.transactions.by_tx_id(session, "65db", derive=derive)) == 2


def test_an_id_that_two_transactions_share_is_not_enough(session: Session) -> None:
    """An id holds a part of the tx_id, so the whole is compared."""
    put_transaction(session, "65db", id=UUID(int=1))
    assert [] == crud.transactions.by_ids(session, [UUID(int=1)], tx_id="65dc")


def test_a_transaction_is_looked_for_among_thousands_of_ids(session: Session) -> None:
    """More than a statement takes at once."""
    row = put_transaction(session, "65db", id=UUID(int=40_000))
    ids = [UUID(int=number) for number in range(40_001)]
    assert [row] == crud.transactions.by_ids(session, ids, tx_id="65db")


def test_a_constituencys_transactions_come_by_time(session: Session) -> None:
    """Narrowed by range, type and status."""
    put_transaction(session, "c", timestamp=NOW + HOUR)
    put_transaction(session, "a", type="startVoting")
    put_transaction(session, "b", type="results", status="withdrawn", timestamp=NOW + HOUR / 2)
    put_transaction(session, "d", constituency_id=uuid4())

    def found(**query: object) -> list[str]:
        page = crud.transactions.of_constituency(session, derive(HERE, ""), **query)  # type: ignore[arg-type]  # any of them
        return [each.tx_id for each in page.items]

    assert ["a", "b", "c"] == found()
    assert ["a", "b"] == found(since=NOW, until=NOW + HOUR)
    assert ["c"] == found(types=["vote"])
    assert ["a", "b"] == found(types=["startVoting", "results"])
    assert ["b", "c"] == found(types=["vote", "results"])
    assert ["b"] == found(statuses=["withdrawn"])
    assert ["a", "c"] == found(statuses=["accepted", "rolled_back"])


# Audit log ----------------------------------------------------------------------------------


def test_deeds_are_kept_in_the_order_of_their_time(session: Session) -> None:
    """Who did what, before and after; the newest is shown first."""
    for number, action in enumerate(("retry", "resolve")):
        crud.audit.append(
            session,
            who="anna",
            action=action,
            subject="alert 1",
            before={"status": "active"} if number else None,
            after={"status": "resolved"},
            at=NOW + number * HOUR,
        )
    shown = crud.audit.list(session).items
    assert ["resolve", "retry"] == [each.action for each in shown]
    assert [{"status": "active"}, None] == [each.before for each in shown]
