"""The rules about files: late, silent, missing twins; and a look reads only what is new."""

from __future__ import annotations

import os
import random
import tracemalloc
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import permutations
from typing import Any, cast

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from ingestd import crud
from ingestd.cli.jobs import note
from ingestd.models import Alert, Constituency, FileProcessing, Notice, Reject, table_of
from ingestd.pipeline import outbox
from ingestd.pipeline.deliveries import Deliveries, moment_of
from ingestd.pipeline.feed import Kept, evaluate_feed, feed_findings
from ingestd.pipeline.forget import forget
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.replay import MendedRow, replay
from ingestd.pipeline.slot import next_slot
from ingestd.pipeline.stats import constituency_id_of
from ingestd.schemas import AlertUpdate
from ingestd.thresholds import Alerts

from .conftest import Clock, Databases, Did, DropFile, Voting
from .elections import OPENS, Drawn, draw, key_of, twin, write
from .running import open_sessions
from .test_any_order import ingest_all
from .test_evaluator import put_back, take_away

Sessions = sessionmaker[Session]
DAY_3 = OPENS + timedelta(days=3)
CONSTITUENCIES, HOURS = 24, 24


def drawn() -> Drawn:
    """A small election of a day."""
    rng = np.random.default_rng(5)
    return draw(rng, constituencies=CONSTITUENCIES, hours=HOURS, regions=2, rolls=(900,) * 2)


def look(sessions: Sessions, now: datetime = DAY_3, **held: object) -> list[Alert]:
    """The open alerts after a look."""
    with sessions.begin() as session:
        evaluate_feed(session, now=now, held=Alerts.model_validate(held))
    with sessions() as session:
        query = select(Alert).where(Alert.cleared_at.is_(None)).order_by(Alert.type, Alert.subject)
        return list(session.scalars(query))


def written(sessions: Sessions, minutes: Mapping[int, Any]) -> None:
    """Let the files of constituencies be written so long after their hour, or at a moment."""
    with sessions.begin() as session:
        for number, told in minutes.items():
            for hour in range(HOURS):
                begin = OPENS + timedelta(hours=hour)
                at = told if isinstance(told, datetime) else begin + timedelta(minutes=told)
                mine = FileProcessing.constituency_id == key_of(number)
                slot = FileProcessing.slot.startswith(f"{begin:%Y-%m-%d_%H}")
                session.execute(update(FileProcessing).where(mine, slot).values(mtime=at))


def late(alerts: list[Alert]) -> list[tuple[str, int]]:
    """Subject and hours of the findings about late files."""
    return [(one.subject, one.details["number"]) for one in alerts if one.type == "late_file"]


def test_a_voting_that_was_fetched_in_one_go_is_not_late(sessions: Sessions) -> None:
    """All of it on the third day, one constituency after the other: nothing is usual there."""
    write(sessions, drawn(), is_hourly=True)
    fetched = {one: DAY_3 + timedelta(minutes=15 * one) for one in range(CONSTITUENCIES)}
    written(sessions, fetched)
    assert [] == late(look(sessions))


def test_what_was_fetched_later_is_one_alert(sessions: Sessions) -> None:
    """A whole shard on the third day, while the others came hour by hour."""
    write(sessions, drawn(), is_hourly=True)
    minutes: dict[int, Any] = dict.fromkeys(range(CONSTITUENCIES), 70)
    written(sessions, minutes | dict.fromkeys(range(5), DAY_3))
    (told,) = [one for one in look(sessions) if one.type == "late_file"]
    assert (HOURS, 5) == (told.details["number"], told.details["constituencies"])
    assert told.constituency_id is None
    assert told.detected_at == DAY_3


def test_the_late_hours_of_one_constituency_are_one_alert(sessions: Sessions) -> None:
    """It tells the hours and the files."""
    write(sessions, drawn(), is_hourly=True)
    minutes: dict[int, Any] = dict.fromkeys(range(CONSTITUENCIES), 70)
    written(sessions, minutes | {3: DAY_3})
    (told,) = [one for one in look(sessions) if one.type == "late_file"]
    assert (key_of(3), HOURS) == (told.constituency_id, told.details["number"])
    assert 20 == len(told.details["files"])
    assert "T08:00" in told.details["window"]["local"][0]


@pytest.mark.promise(12)
def test_of_two_copies_the_one_written_first_tells_the_time(
    databases: Databases, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Which of them came first is chance, and a late file must not be late by it."""
    rows = voting.ballots(8, 3)
    early, late = (drop_file(f"{name}/{voting.name(8)}", rows) for name in ("early", "late"))
    os.utime(early.path, (OPENS.timestamp(),) * 2)
    os.utime(late.path, (DAY_3.timestamp(),) * 2)
    for order in ((early, late), (late, early)):
        did("two copies of an hour, one written days later")
        with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
            ingest_all(sessions, order, 5_000)
            kept = Kept()
            found(sessions, kept)
        (mine,) = kept.deliveries.owners.values()
        assert [OPENS] == [moment_of(at) for at in mine.written.values()], order


def test_the_night_is_not_silent_where_empty_hours_have_no_file(sessions: Sessions) -> None:
    """Hardly anybody votes then; the next day, two hours of the day do count."""
    write(sessions, draw(np.random.default_rng(5), constituencies=3, hours=60), is_hourly=True)
    evening = OPENS + timedelta(hours=13)
    with sessions.begin() as session:
        session.execute(update(FileProcessing).values(discovered_at=evening))
    none: dict[str, object] = {"missing_hour": {"empty_hours": "no"}}
    opens = OPENS + timedelta(days=1)
    for now, is_told in (
        (opens - timedelta(hours=1), False),
        (opens + timedelta(hours=1, minutes=50), False),
        (opens + timedelta(hours=2, minutes=10), True),
    ):
        kinds = {one.type for one in look(sessions, now, **none)}
        assert is_told == ("silent_feed" in kinds)
    published: dict[str, object] = {"missing_hour": {"empty_hours": "yes"}}
    kinds = {one.type for one in look(sessions, evening + timedelta(hours=3), **published)}
    assert "silent_feed" in kinds


def test_a_ballot_that_all_others_have_is_missing_where_it_is_not(sessions: Sessions) -> None:
    """Its twin is here: of these voters no constituency of the second ballot is."""
    rng = np.random.default_rng(5)
    pairs = draw(rng, constituencies=24, hours=4, regions=1, rolls=range(500, 740, 10))
    for one in range(12):
        twin(rng, pairs, one, 12 + one)
    write(sessions, pairs, is_hourly=True)
    assert [] == [one for one in look(sessions) if one.type == "constituency_missing"]
    absent = Constituency.id == key_of(12 + 7)
    with sessions.begin() as session:
        session.execute(update(Constituency).where(absent).values(registered_voters=None))
    (told,) = [one for one in look(sessions) if one.type == "constituency_missing"]
    assert (key_of(7), "twin mayor", "critical") == (
        told.constituency_id,
        told.subject,
        told.severity,
    )
    assert 570 == told.details["roll"]


def test_a_voting_without_an_end_does_not_go_on_for_ever(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Of one of March nothing is missing in September; and it does not hold the feed up."""
    old = Voting(random.Random(99))
    ingest.take(drop_file(f"{old.contract}_2024-03-06_0800-0900.csv", [old.create(479)]))
    for hour in (8, 9, 11, 12, 13):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 1)))
    told = [
        one
        for one in look(sessions, missing_hour={"empty_hours": "yes"})
        if one.type == "missing_hour"
    ]
    assert ["2024-03-06_0900-1000", "2024-09-06_1000-1100"] == [one.subject for one in told]
    assert [40 * 24, 1] == [one.details["number"] for one in told]


def found(sessions: Sessions, kept: Kept | None) -> dict[Any, Any]:
    """What a look finds, with or without what the last one left."""
    held = Alerts.model_validate({"missing_hour": {"empty_hours": "yes"}})
    with sessions.begin() as session:
        return dict(feed_findings(session, now=DAY_3, held=held, kept=kept))


def test_a_look_that_reads_what_is_new_finds_what_a_first_look_finds(sessions: Sessions) -> None:
    """After files were taken away, came late, or came again; and it reads no others."""
    write(sessions, drawn(), is_hourly=True)
    minutes: dict[int, Any] = dict.fromkeys(range(CONSTITUENCIES), 70)
    written(sessions, minutes | {3: DAY_3})
    with sessions.begin() as session:
        session.execute(update(FileProcessing).values(finished_at=OPENS))
        last = update(FileProcessing).where(FileProcessing.constituency_id == key_of(0))
        session.execute(last.values(finished_at=DAY_3))
    kept = Kept()
    assert found(sessions, None) == found(sessions, kept)
    gone = take_away(sessions, 5, 7)  # a person forgets a file: the ledger counts fewer
    assert found(sessions, None) == found(sessions, kept)
    assert kept.deliveries.is_anew
    for job in gone["jobs"]:
        job["finished_at"] = datetime(2024, 9, 12, tzinfo=UTC)
    put_back(sessions, 5, gone)
    assert found(sessions, None) == found(sessions, kept)
    assert (False, {key_of(0), key_of(5)}) == (kept.deliveries.is_anew, kept.deliveries.changed)


def test_a_look_by_the_daemon_follows_publications(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A slot that is published again is the same hour; a refused file is none."""
    kept = Kept()
    for hour, rows in (
        (8, [voting.start(8 * 60), *voting.ballots(8, 3)]),
        (9, voting.ballots(9, 3)),
        (9, voting.ballots(9, 4)),
        (11, ["torn"] * 30),
        (12, voting.ballots(12, 2)),
        (14, []),
    ):
        ingest.take(drop_file(voting.name(hour), rows))
        assert found(sessions, None) == found(sessions, kept)


def test_a_look_by_the_daemon_follows_what_a_person_does(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A publication that counts again, a file that is forgotten, a row that is mended."""
    start = voting.start(8 * 60)
    torn = start.replace(";104;", ";999;", 1)
    ingest.take(drop_file(voting.name(8), [torn, *voting.ballots(8, 30)]))
    (full,) = ingest.take(drop_file(voting.name(9), voting.ballots(9, 3)))
    (empty,) = ingest.take(drop_file(voting.name(9)))
    kept = Kept()
    for deed in (
        lambda: None,
        lambda: ingest.make_current(full.id, also=partial(note_by_hand, full.id)),
        lambda: forget(ingest, full.id, note),
        lambda: [*replay(ingest, iter([MendedRow(*reject_of(sessions), start)]), note)],
    ):
        assert found(sessions, None) == found(sessions, kept)
        deed()
        fresh = Kept()
        assert found(sessions, fresh) == found(sessions, kept)
        assert (fresh.ends, fresh.deliveries.owners) == (kept.ends, kept.deliveries.owners)
    (mine,) = kept.deliveries.owners.values()
    assert (2, 0) == (mine.slots, mine.rows[str(empty.slot)])
    assert full.slot == empty.slot


def note_by_hand(job_id: uuid.UUID, session: Session) -> None:
    """What the command line writes down when a publication is to count again."""
    note(session, "make_current", str(job_id), before=None, after=None)


def reject_of(sessions: Sessions) -> tuple[uuid.UUID, int]:
    """File and line of the one row that was rejected."""
    with sessions() as session:
        row = session.scalars(select(Reject)).one()
    return row.file_id, row.line_number


def test_a_clock_that_was_set_back_hides_no_file(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, clock: Clock
) -> None:
    """What is finished behind the last look is found by the look after the next."""
    kept = Kept()
    ingest.take(drop_file(voting.name(8), voting.ballots(8, 2)))
    found(sessions, kept)
    clock.advance(-7200)
    for hour in (9, 10, 11, 12):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 2)))
        found(sessions, kept)
    (mine,) = kept.deliveries.owners.values()
    assert 5 == mine.slots


@pytest.mark.promise(12)
def test_a_transaction_in_two_contracts_is_found_in_any_order_of_a_large_election(
    databases: Databases, drop_file: DropFile, did: Did
) -> None:
    """Every id is read once nothing has come for a while, also where that takes long."""
    one, two, large = (Voting(random.Random(seed)) for seed in range(3))
    shared = one.issue(490)
    files = [drop_file(each.name(8), [each.create(479), shared]) for each in (one, two)]
    files += [drop_file(large.name(8), large.ballots(8, 5))]
    held = Alerts.model_validate({"transaction_in_two_contracts": {"most_rows": 8}})
    for order in permutations(files):
        did("a transaction in two contracts of a large election")
        with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
            kept = Kept()
            looks = [DAY_3 + timedelta(seconds=seconds) for seconds in (0, 60, 120, 480)]
            for number, now in enumerate(looks):
                ingest_all(sessions, order[number : number + 1], 5_000)
                with sessions.begin() as session:
                    evaluate_feed(session, now=now, held=held, kept=kept)
            with sessions() as session:
                query = select(Alert.type).where(Alert.cleared_at.is_(None))
                assert ["transaction_in_two_contracts"] == list(session.scalars(query))
            # Nothing has changed since: nothing is read again.
            assert not kept.reads_ids(looks[-1] + timedelta(hours=1), held, is_thorough=False)


def test_a_transaction_that_was_withdrawn_from_one_contract_is_in_one(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile
) -> None:
    """Three contracts tell of it; then all publications but one are corrected."""
    votings = [Voting(random.Random(seed)) for seed in range(3)]
    shared, rows = votings[0].issue(490), {each.contract: each.ballots(8, 2) for each in votings}
    for voting in votings:
        ingest.take(drop_file(voting.name(8), [*rows[voting.contract], shared]))
    in_it = []
    for voting in votings:
        told = [each for each in look(sessions) if each.type == "transaction_in_two_contracts"]
        in_it.append([len(alert.details["contracts"]) for alert in told])
        ingest.take(drop_file(voting.name(8), rows[voting.contract]))
    assert [[3], [2], []] == in_it


def test_a_decision_on_a_missing_constituency_holds_when_it_becomes_known(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A first file names it and is refused: still nothing of it is here, and nobody asks again."""
    other = Voting(rng=random.Random(8))
    missing = {"contracts": [other.contract]}
    for hour in (8, 9, 10):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    (told,) = look(sessions, constituency_missing=missing)
    with sessions.begin() as session:
        answer = AlertUpdate(status="resolved", notes=["asked"], assigned_to="Anna")
        crud.alerts.answer(session, told.id, answer, at=DAY_3)
    ingest.take(drop_file(other.name(8), ["torn"] * 300))
    alerts = look(sessions, constituency_missing=missing)
    (again,) = [one for one in alerts if one.type == "constituency_missing"]
    assert constituency_id_of(other.contract) == again.constituency_id
    assert ("resolved", ["asked"], "Anna") == (again.status, again.notes, again.assigned_to)
    with sessions() as session:
        assert "constituency_missing" not in {one.type for one in crud.alerts.open(session).items}
        assert DAY_3 == session.get_one(Alert, told.id).cleared_at


def test_what_is_missing_is_told_once_and_not_every_hour(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The feed goes on, and what was found stays as it is: no alert changes, and nobody is told."""
    everything = frozenset({"info", "warning", "critical"})
    wanted = outbox.Wanted(channels=("duty",), at_once=everything, digest=frozenset())
    telling = outbox.telling(sessionmaker(**sessions.kw), wanted)
    for hour in (8, 9, 11, 12, 13):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    held = {"constituency_missing": {"contracts": ["nowhere"]}} | {
        "missing_hour": {"empty_hours": "yes"}
    }
    told = []
    for hour in (14, 15):
        with telling.begin() as session:
            evaluate_feed(session, now=DAY_3, held=Alerts.model_validate(held))
        with sessions() as session:
            changes = session.scalars(select(Notice.title)).all()
            rows = session.execute(select(table_of(Alert)).order_by(Alert.type)).all()
            told.append(([row.type for row in rows], rows, changes))
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    assert ["constituency_missing", "missing_hour"] == told[0][0]
    assert 2 == len(told[0][2])
    assert told[0] == told[1]


def test_what_is_kept_of_a_file_is_small() -> None:
    """A whole country has 367 000 of them, and a daemon keeps them from look to look."""
    kept = Deliveries()
    owners = [str(uuid.UUID(int=number)) for number in range(100)]
    slots = [next_of("2024-09-06_0800-0900", hour) for hour in range(72)]
    tracemalloc.start()
    try:
        for at, slot in enumerate(slots):
            jobs = [(owner, owner, "completed", slot, False, 999, 10**15 + at) for owner in owners]
            kept._note(cast("Any", jobs))  # noqa: SLF001 - what a look reads, without a database
        used, _most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(owners) * len(slots) == kept._counted()  # noqa: SLF001
    assert used < 60 * len(owners) * len(slots)


def next_of(slot: str, hours: int) -> str:
    """The name of the slot so many hours later."""
    for _ in range(hours):
        slot = next_slot(slot)
    return slot


def test_times_are_kept_to_the_microsecond(sessions: Sessions) -> None:
    """By both databases, also from before 1970; the earliest of a slot counts."""
    write(sessions, drawn(), is_hourly=True)
    moments = (datetime(1969, 12, 31, 23, 59, 58, 123456, UTC), datetime(2024, 9, 6, tzinfo=UTC))
    for moment in moments:
        written(sessions, {0: moment})
        kept = Kept()
        found(sessions, kept)
        told = kept.deliveries.owners[key_of(0)].written
        assert {moment} == {moment_of(told[slot]) for slot in told}
        assert HOURS == len(told)
