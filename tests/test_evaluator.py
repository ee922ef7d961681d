"""The evaluator: what files leave for it is worked off, by one, in any order, after any kill."""

import multiprocessing
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session, sessionmaker

from ingestd.config import Statistics
from ingestd.db import make_engine, make_sessions
from ingestd.models import (
    Alert,
    Constituency,
    EvaluationDue,
    FileProcessing,
    HourlyStats,
    table_of,
)
from ingestd.pipeline.evaluator import Evaluator, Thresholds
from ingestd.pipeline.feed import evaluate_feed
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.step import Step
from ingestd.simulate import Plan, simulate
from ingestd.thresholds import Alerts

from . import oracle
from .conftest import Did, DropFile, Voting
from .elections import OPENS, Drawn, draw, key_of, write
from .running import Start, is_empty, open_sessions, soon

Sessions = sessionmaker[Session]
QUIET = 11
HOURS = 24


def evaluator(
    sessions: Sessions,
    *,
    on_step: Callable[[Step], None] = lambda _step: None,
    **changed: Any,
) -> Evaluator:
    """An evaluator with the default settings."""
    told = Statistics()
    thresholds: dict[str, Any] = {
        "values": {name: float(getattr(told, name)) for name in told.thresholds()},
        "overrides": {},
        "held": Alerts(),
        "voting_hours": HOURS,
        "first_hour": 8,
    }
    return Evaluator(
        sessions, Thresholds(**(thresholds | changed)), lambda: datetime.now(UTC), on_step
    )


@pytest.fixture
def drawn() -> Drawn:
    """Forty constituencies and a day; one of them is stuffed, another silent for an hour."""
    drawn = draw(
        np.random.default_rng(11), constituencies=40, hours=HOURS, regions=2, rolls=(2_000,) * 4
    )
    drawn.stuff(0, QUIET, 150)
    drawn.bulletins[1, 9] = drawn.votes[1, 9] = 0
    return drawn


def told(sessions: Sessions) -> dict[str, Any]:
    """Everything that an evaluator writes, to the byte; no clock."""
    snapshot = oracle.snapshot(sessions)
    tables = ("hourly_stats", "constituency", "alert")
    return {name: repr(sorted(snapshot[name].items(), key=str)) for name in tables}


def types(sessions: Sessions) -> set[tuple[uuid.UUID | None, str]]:
    """Who has which open alert."""
    with sessions() as session:
        query = select(Alert.constituency_id, Alert.type).where(Alert.cleared_at.is_(None))
        return {(row[0], row[1]) for row in session.execute(query)}


def hour_of(sessions: Sessions, one: int, hour: int) -> HourlyStats:
    """One hour of vote as it stands."""
    with sessions() as session:
        at = OPENS + timedelta(hours=hour)
        query = select(HourlyStats).where(HourlyStats.hour == at)
        return session.scalars(query.where(HourlyStats.constituency_id == key_of(one))).one()


def mark(sessions: Sessions, *ones: int) -> None:
    """What the commit of a file of these constituencies leaves."""
    rows = [{"id": uuid.uuid4(), "constituency_id": key_of(one)} for one in ones]
    with sessions.begin() as session:
        session.execute(insert(table_of(EvaluationDue)), rows)


def marks(sessions: Sessions) -> int:
    """How much is due."""
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(EvaluationDue)) or 0


def take_away(sessions: Sessions, one: int, hour: int) -> dict[str, list[dict[str, Any]]]:
    """Let a file and what it told not be here; gives back what `put_back` needs."""
    at = OPENS + timedelta(hours=hour)
    jobs, hours = table_of(FileProcessing), table_of(HourlyStats)
    job = (jobs.c.constituency_id == key_of(one)) & jobs.c.slot.like(f"%_{at:%H%M}-%")
    row = (hours.c.constituency_id == key_of(one)) & (hours.c.hour == at) & ~hours.c.is_empty
    with sessions.begin() as session:
        kept = {
            "jobs": [dict(each) for each in session.execute(select(jobs).where(job)).mappings()],
            "hours": [dict(each) for each in session.execute(select(hours).where(row)).mappings()],
        }
        session.execute(delete(jobs).where(job))
        session.execute(delete(hours).where(row))
    mark(sessions, one)
    return kept


def put_back(sessions: Sessions, one: int, kept: dict[str, list[dict[str, Any]]]) -> None:
    """Let it arrive late."""
    hours = table_of(HourlyStats)
    with sessions.begin() as session:
        session.execute(insert(table_of(FileProcessing)), kept["jobs"])
        for row in kept["hours"]:
            session.execute(
                delete(hours).where(
                    hours.c.constituency_id == key_of(one), hours.c.hour == row["hour"]
                )
            )
            session.execute(insert(hours), row)
    mark(sessions, one)


def test_hours_say_what_is_likely_and_alerts_what_is_not(sessions: Sessions, drawn: Drawn) -> None:
    """Expectation, z, coverage and status stand in the table; the score with the constituency."""
    write(sessions, drawn, is_hourly=True)
    done = evaluator(sessions).work_off()
    assert done is not None
    assert (40, 0) == (done.constituencies, marks(sessions))
    found = types(sessions)
    assert {(key_of(0), "unusual_spike"), (key_of(1), "unusual_drop")} <= found
    hour = hour_of(sessions, 0, QUIET)
    assert ("closed", 1.0) == (hour.status, hour.coverage)
    assert float(drawn.bulletins[0, QUIET]) == hour.bulletin_velocity
    assert 4.5 < (hour.z_bulletins or 0)
    assert 60 > (hour.expected_bulletins or 99)
    silent = hour_of(sessions, 1, 9)
    assert (True, 0.0, "closed") == (silent.is_empty, silent.bulletin_velocity, silent.status)
    with sessions() as session:
        scores = {each.id: each.anomaly_score for each in session.scalars(select(Constituency))}
    assert max(scores, key=lambda key: scores[key] or 0) in {key_of(0), key_of(1)}


def test_what_has_been_evaluated_is_left_alone(sessions: Sessions, drawn: Drawn) -> None:
    """A second pass has nothing to do, and a mark without a change writes nothing."""
    write(sessions, drawn)
    judge = evaluator(sessions)
    judge.work_off()
    before = told(sessions)
    assert judge.work_off() is None
    mark(sessions, 5)
    again = judge.work_off()
    assert again is not None
    assert 0 == again.cells_changed
    assert before == told(sessions)


def test_a_missing_file_makes_an_hour_unknown_and_what_follows_provisional(
    sessions: Sessions, drawn: Drawn
) -> None:
    """No zero, no velocity, no finding; when the file comes, it is as if it had never been late."""
    write(sessions, drawn, is_hourly=True)
    judge = evaluator(sessions)
    judge.work_off()
    whole = told(sessions)
    kept = take_away(sessions, 1, 9)
    judge.work_off()
    hour = hour_of(sessions, 1, 9)
    assert ("missing", 0.0) == (hour.status, hour.coverage)
    assert (None, None, None) == (hour.bulletin_velocity, hour.z_bulletins, hour.expected_votes)
    assert "provisional" == hour_of(sessions, 1, 10).status
    assert (key_of(1), "unusual_drop") not in types(sessions)
    put_back(sessions, 1, kept)
    judge.work_off()
    assert whole == told(sessions)


def test_any_order_of_the_files_gives_the_same_alerts_to_the_byte(
    sqlite_url: str, drawn: Drawn
) -> None:
    """Twenty orders, evaluated on the way, by old evaluators and new ones."""
    with open_sessions(sqlite_url) as sessions:
        write(sessions, drawn, is_hourly=True)
        evaluator(sessions).work_off()
        whole = told(sessions)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            files = [
                (int(one), int(hour))
                for one, hour in {(rng.integers(0, 4), rng.integers(0, HOURS)) for _ in range(3)}
            ]
            judge = evaluator(sessions)
            kept = {file: take_away(sessions, *file) for file in files}
            judge.work_off()
            for file in rng.permutation(len(files)):
                put_back(sessions, files[file][0], kept[files[file]])
                if rng.random() < 0.5:
                    judge.work_off()
                if rng.random() < 0.3:
                    judge = evaluator(sessions)
            judge.work_off(is_alone=True)
            assert whole == told(sessions)


def _evaluate(url: str) -> None:
    engine = make_engine(url, writer=True)
    evaluator(make_sessions(engine)).work_off(is_alone=True)


@pytest.mark.promise(1, 31)
def test_a_killed_pass_is_done_again(migrated_url: str, drawn: Drawn, did: Did) -> None:
    """SIGKILL at any moment: what was due stays due, and no alert comes twice or is lost."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_evaluator"])
    with open_sessions(migrated_url) as sessions:
        write(sessions, drawn, is_hourly=True)
        kills = 0
        for pause in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6):
            victim = context.Process(target=_evaluate, args=(migrated_url,))
            victim.start()
            time.sleep(pause)
            victim.kill()
            victim.join()
            kills += 1
        evaluator(sessions).work_off(is_alone=True)
        assert 0 == marks(sessions)
        once = told(sessions)
        mark(sessions, *range(40))
        evaluator(sessions).work_off()
        assert once == told(sessions)
        assert (key_of(0), "unusual_spike") in types(sessions)
    did("killed the evaluator in a pass", kills=kills)


def test_one_evaluates_and_the_others_wait_for_their_turn(migrated_url: str, drawn: Drawn) -> None:
    """A second one does nothing; one that was taken over writes nothing more."""
    with open_sessions(migrated_url) as sessions:
        write(sessions, drawn)
        other = evaluator(sessions)
        seen: list[Any] = []

        def meanwhile(step: Step) -> None:
            if step == Step.JUDGED and not seen:
                seen.append(other.work_off())
                seen.append(other.work_off(is_alone=True))

        assert evaluator(sessions, on_step=meanwhile).work_off() is None
        assert seen[0] is None
        assert seen[1] is not None
        assert 0 == marks(sessions)
        assert (key_of(0), "unusual_spike") in types(sessions)


def test_no_file_waits_for_the_evaluator(sessions: Sessions, drawn: Drawn) -> None:
    """A mark that comes in the middle of a pass stays for the next one."""
    write(sessions, drawn)

    def arrive(step: Step) -> None:
        if step == Step.JUDGED:
            mark(sessions, 7)

    judge = evaluator(sessions, on_step=arrive)
    judge.work_off()
    assert 1 == marks(sessions)
    judge.on_step = lambda _step: None
    judge.work_off()
    assert 0 == marks(sessions)


def test_a_person_decides_about_an_alert_and_the_evaluator_does_not(
    sessions: Sessions, drawn: Drawn
) -> None:
    """Resolved stays resolved; gone with its reason when it no longer holds; back with the data."""
    write(sessions, drawn, is_hourly=True)
    judge = evaluator(sessions)
    judge.work_off()
    spike = select(Alert).where(Alert.constituency_id == key_of(0), Alert.type == "unusual_spike")
    with sessions.begin() as session:
        session.scalars(spike).one().status = "resolved"
    kept = take_away(sessions, 0, QUIET)
    judge.work_off()
    with sessions() as session:
        gone = session.scalars(spike).one()
        assert gone.cleared_at is not None
        assert gone.cleared_reason
    put_back(sessions, 0, kept)
    judge.work_off()
    with sessions() as session:
        back = session.scalars(spike).one()
        assert ("resolved", None) == (back.status, back.cleared_at)


def test_thresholds_can_be_set_for_one_election(sessions: Sessions, drawn: Drawn) -> None:
    """By its name; all others keep theirs."""
    drawn.ballots[0] = "mayor"
    drawn.stuff(2, QUIET, 150)
    write(sessions, drawn)
    evaluator(sessions, overrides={"mayor": {"spike_z": 99.0}}).work_off()
    spikes = {one for one, rule in types(sessions) if rule == "unusual_spike"}
    assert key_of(0) not in spikes
    assert key_of(2) in spikes


def test_an_active_integrity_alert_lifts_the_score(sessions: Sessions, drawn: Drawn) -> None:
    """A broken identity is no matter of probability: 1 for a critical one, 0.7 for a warning."""
    write(sessions, drawn)
    for one, severity in ((4, "critical"), (5, "warning")):
        alert = Alert(
            id=uuid.uuid4(),
            type="votes_exceed_bulletins",
            alert_class="integrity",
            severity=severity,
            constituency_id=key_of(one),
            subject="",
            title="",
            description="",
            details={},
            ruleset="",
        )
        with sessions.begin() as session:
            session.add(alert)
    evaluator(sessions).work_off()
    with sessions() as session:
        scores = {one: session.get_one(Constituency, key_of(one)).anomaly_score for one in (4, 5)}
    assert 1.0 == scores[4]
    assert 0.7 <= (scores[5] or 0) < 1.0


def test_an_integrity_alert_about_several_lifts_the_scores_of_all(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """One transaction in two contracts; when it is gone from one, both are as they were."""
    other = Voting(rng=random.Random(8))
    shared = voting.ballots(8, 2)
    for one in (voting, other):
        ingest.take(drop_file(one.name(8), [*shared, *one.ballots(8, 2)]))

    def scores() -> set[float | None]:
        evaluator(sessions).work_off()
        with sessions.begin() as session:
            evaluate_feed(session, now=ingest.clock(), is_thorough=True)
        evaluator(sessions).work_off()
        with sessions() as session:
            return set(session.scalars(select(Constituency.anomaly_score)))

    assert {1.0} == scores()
    ingest.take(drop_file(f"new/{other.name(8)}", other.ballots(8, 2)))
    with sessions.begin() as session:
        session.execute(delete(Alert).where(Alert.constituency_id.is_not(None)))
    assert {None} == scores()


def test_an_hour_outside_the_voting_that_nothing_fills_any_more_goes(
    sessions: Sessions, drawn: Drawn
) -> None:
    """Empty hours are the evaluator's own; when the voting turns out shorter they leave."""
    write(sessions, drawn, is_hourly=True)
    judge = evaluator(sessions)
    judge.work_off()
    empty = select(func.count()).select_from(HourlyStats).where(HourlyStats.is_empty)
    with sessions.begin() as session:
        assert 0 < (session.scalar(empty) or 0)
        end = OPENS + timedelta(hours=4)
        session.execute(update(Constituency).values(voting_end=end))
    mark(sessions, *range(40))
    judge.work_off()
    with sessions() as session:
        last = session.scalar(select(func.max(HourlyStats.hour)).where(HourlyStats.is_empty))
    assert last is None or last < OPENS + timedelta(hours=4)


def test_the_daemon_evaluates_what_it_ingests(start_on_each: Start, tmp_path: Path) -> None:
    """From files to expectations, within seconds; a clean little election raises nothing."""
    plan = Plan(constituencies=10, hours=3, voters_median=40, voters_sigma=0.3, folders=True)
    truth = simulate(tmp_path / "simulated", plan)
    running = start_on_each()
    for folder in sorted((tmp_path / "simulated" / "drop").iterdir()):
        folder.rename(running.inbox / folder.name)
    with open_sessions(running.url) as sessions:
        expected = (
            select(func.count())
            .select_from(HourlyStats)
            .where(HourlyStats.expected_bulletins.is_not(None))
        )

        def is_evaluated() -> bool:
            with sessions() as session:
                is_told = marks(sessions) == 0 and (session.scalar(expected) or 0) >= 30
            # What still waits may have a job already, which a stop leaves for the next start.
            return is_told and is_empty(running.inbox)

        soon(is_evaluated, seconds=120)
        assert 0 == running.stop()
        assert [] == oracle.unsound(sessions)
        assert truth is not None
        assert not [rule for _, rule in types(sessions) if rule.startswith("unusual")]
