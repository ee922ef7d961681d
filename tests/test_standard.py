"""What elections are held to: types and zones by the settings, and what changes when these do."""

from __future__ import annotations

import random
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from ingestd import assembly
from ingestd.config import Settings
from ingestd.elections import Elections
from ingestd.models import Alert, Constituency, Election, Evaluation, EvaluationDue, HourlyStats
from ingestd.pipeline.fsck.difference import Difference
from ingestd.pipeline.fsck.evaluation import check_evaluation
from ingestd.pipeline.fsck.repair import Plan, Repair
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.standard import Standard, review_due, take_up

from . import oracle
from .conftest import Did, DropFile, Voting
from .elections import Drawn, key_of, write
from .running import Start, open_sessions, soon
from .test_evaluator import drawn as drawn  # noqa: PLC0414 - a fixture
from .test_evaluator import evaluator, marks, types
from .test_findings import NOON

Sessions = sessionmaker[Session]
DUMA = "Выборы депутатов думы"
QUIET: dict[str, Any] = {"types": {"local": {"reject_share": {"enabled": False}}}}
"""What elections of one type are not asked."""
LOCAL: dict[str, Any] = {DUMA: {"type": "local", "timezone": "Asia/Kamchatka", "country": "RU"}}


def standard(**settings: Any) -> Standard:
    """What holds by these settings, [statistics] left out."""
    return assembly.standard_of(Settings.model_validate(settings))


def hold(ingest: Ingest, **settings: Any) -> int:
    """Let other settings hold, as a start does; gives how many constituencies were judged anew."""
    now = standard(**settings)
    ingest.terms = replace(ingest.terms, alerts=now.alerts, elections=now.elections)
    with ingest.sessions.begin() as session:
        take_up(session, now, NOON)
    return review_due(ingest, lambda: False)


def open_rules(sessions: Sessions) -> set[str]:
    """The rules with an open alert."""
    with sessions() as session:
        return set(session.scalars(select(Alert.type).where(Alert.cleared_at.is_(None))))


def the_election(sessions: Sessions) -> Election:
    """The only election."""
    with sessions() as session:
        return session.scalars(select(Election)).one()


@pytest.fixture
def torn(voting: Voting) -> list[str]:
    """An hour with a row that cannot be read."""
    return [*voting.ballots(8, 30), "torn"]


@pytest.fixture
def in_duma(voting: Voting) -> str:
    """Where a file of that election lies."""
    return f"41 - Камчатский край/{DUMA}/Округ №1/{voting.contract}/{voting.name(8)}"


def test_an_election_is_what_the_settings_say_of_it(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, torn: list[str], in_duma: str
) -> None:
    """Its type, from the first commit on; thresholds of the type hold for it."""
    hold(ingest, alerts=QUIET, elections=LOCAL)
    ingest.take(drop_file(in_duma, torn))
    told = the_election(sessions)
    assert (DUMA, "local", "Asia/Kamchatka", "RU") == (
        *(told.name, told.type, told.timezone, told.country),
    )
    assert set() == open_rules(sessions)
    assert [] == oracle.unsound(sessions)


@pytest.mark.promise(31)
def test_what_is_stored_is_judged_again_when_a_threshold_changes(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    torn: list[str],
    in_duma: str,
    did: Did,
) -> None:
    """Cleared and raised without a new file; the same settings again change nothing."""
    ingest.take(drop_file(in_duma, torn))
    assert {"reject_share"} == open_rules(sessions)
    assert 1 == hold(ingest, alerts=QUIET, elections=LOCAL)
    assert set() == open_rules(sessions)
    assert 0 == hold(ingest, alerts=QUIET, elections=LOCAL)
    assert 1 == hold(ingest)
    assert {"reject_share"} == open_rules(sessions)
    assert None is the_election(sessions).type
    assert [] == oracle.unsound(sessions)
    did("changed thresholds and back", changes=2)


def test_a_refused_file_is_told_only_where_that_is_asked(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Of a constituency and of none; switched on again, what lies in quarantine is told."""
    off = {"file_rejected": {"enabled": False}}
    hold(ingest, alerts=off)
    ingest.take(drop_file(voting.name(8), ["torn"] * 30))
    ingest.take(drop_file("nameless.csv", ["no row"]))
    assert set() == open_rules(sessions)
    hold(ingest)
    query = select(Alert.constituency_id).where(Alert.cleared_at.is_(None))
    with sessions() as session:
        assert 2 == len(set(session.scalars(query)))
    hold(ingest, alerts=off)
    assert set() == open_rules(sessions)


def test_only_who_is_held_to_something_else_is_judged_again(
    ingest: Ingest, drop_file: DropFile, torn: list[str], in_duma: str
) -> None:
    """A threshold of one election concerns nobody else."""
    ingest.take(drop_file(in_duma, torn))
    for seed in range(2):
        other = Voting(rng=random.Random(seed))
        ingest.take(drop_file(other.name(8), other.ballots(8, 2)))
    hold(ingest)
    assert 1 == hold(ingest, alerts={"elections": {DUMA: {"reject_share": {"enabled": False}}}})


def test_a_kill_between_the_change_and_its_work_loses_neither(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, torn: list[str], in_duma: str
) -> None:
    """What is to be judged again is written down with the change."""
    ingest.take(drop_file(in_duma, torn))
    hold(ingest)
    now = standard(alerts=QUIET, elections=LOCAL)
    with sessions.begin() as session:
        assert 1 == take_up(session, now, NOON)
    # The next process finds that nothing has changed, and the work still there.
    with sessions.begin() as session:
        assert None is take_up(session, now, NOON)
    ingest.terms = replace(ingest.terms, alerts=now.alerts, elections=now.elections)
    assert 0 == review_due(ingest, lambda: True)
    assert {"reject_share"} == open_rules(sessions)
    assert 1 == review_due(ingest, lambda: False)
    assert set() == open_rules(sessions)
    with sessions() as session:
        assert not session.scalars(select(EvaluationDue).where(EvaluationDue.is_anew)).all()


def test_the_evaluator_leaves_what_is_still_to_be_judged_anew(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile
) -> None:
    """A review has two seconds at a time; what it did not come to is for the next."""
    for seed in range(3):
        other = Voting(rng=random.Random(seed))
        ingest.take(drop_file(other.name(8), [*other.ballots(8, 30), "torn"]))
    hold(ingest)
    now = standard(alerts={"reject_share": {"enabled": False}})
    with sessions.begin() as session:
        assert 3 == take_up(session, now, NOON)
    ingest.terms = replace(ingest.terms, alerts=now.alerts)
    answers = iter([False, True])
    assert 1 == review_due(ingest, lambda: next(answers))
    looking = evaluator(sessions)
    assert looking.work_off() is not None
    # What is left is not the evaluator's: it does not come back to it again and again.
    assert None is looking.work_off()
    assert 2 == review_due(ingest, lambda: False)
    assert set() == open_rules(sessions)
    assert looking.work_off() is not None
    assert 0 == marks(sessions)


def test_a_standard_that_nobody_can_read_is_a_change(sessions: Sessions, ingest: Ingest) -> None:
    """As after an upgrade: what the tables were judged by is not known, or means something else."""
    hold(ingest)
    with sessions.begin() as session:
        turn = session.scalars(select(Evaluation)).one()
        assert standard() == Standard.read(turn.judged_by)
        turn.judged_by = '{"alerts": {"no_such_rule": {}}}'
        session.flush()
        assert 0 == take_up(session, standard(), NOON)
    assert None is Standard.read(None)


def test_which_file_told_the_election_first_makes_no_difference(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, torn: list[str]
) -> None:
    """Its thresholds hold for what was delivered before anybody knew of it."""
    held = {"elections": {"Duma": {"reject_share": {"enabled": False}}}}
    hold(ingest, alerts=held)
    ingest.take(drop_file(voting.name(8), torn))
    assert {"reject_share"} == open_rules(sessions)
    place = f"77 - Moscow/Duma/Nr 1/{voting.contract}/{voting.name(9)}"
    ingest.take(drop_file(place, voting.ballots(9, 2)))
    assert 1 == review_due(ingest, lambda: False)
    assert set() == open_rules(sessions)


def test_contracts_belong_where_the_settings_say(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, in_duma: str
) -> None:
    """Whatever folders say; and where these say, when the settings do not any more."""
    ingest.take(drop_file(in_duma, voting.ballots(8, 2)))
    other = Voting(rng=random.Random(1))
    mayor = {"Mayor": {"type": "city", "contracts": [voting.contract, other.contract]}}
    hold(ingest, elections=mayor)
    assert ("Mayor", "city") == (the_election(sessions).name, the_election(sessions).type)
    ingest.take(drop_file(other.name(8), other.ballots(8, 2)))
    ingest.take(drop_file(in_duma.replace("0800-0900", "0900-1000"), voting.ballots(9, 2)))
    assert "Mayor" == the_election(sessions).name
    with sessions() as session:
        of = session.scalars(select(Constituency.election_id)).all()
    assert [the_election(sessions).id] * 2 == of
    hold(ingest)
    with sessions() as session:
        found = {one.contract_id: one.election for one in session.scalars(select(Constituency))}
        names = {key: one.name if one else None for key, one in found.items()}
    assert {voting.contract: DUMA, other.contract: None} == names


def test_a_region_may_have_a_zone_of_its_own(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, in_duma: str
) -> None:
    """And what an alert says of local time follows when it changes."""
    ballots = voting.ballots(8, 3)
    ingest.take(drop_file(in_duma, [*ballots, ballots[0]]))

    def zone_and_local() -> tuple[str | None, str | None]:
        with sessions() as session:
            zone = session.scalars(select(Constituency.timezone)).one()
            alert = session.scalars(
                select(Alert).where(Alert.type == "duplicate_transaction")
            ).one()
            local = alert.details["window"]["local"]
        return zone, local and local[0]

    hold(ingest, elections={DUMA: {"timezone": "Europe/Moscow"}})
    assert ("Europe/Moscow", "2024-09-06T11:00+03:00") == zone_and_local()
    zones = {"41": "Asia/Kamchatka"}
    hold(ingest, elections={DUMA: {"timezone": "Europe/Moscow", "zones": zones}})
    assert ("Asia/Kamchatka", "2024-09-06T20:00+12:00") == zone_and_local()


def test_a_voting_is_when_the_settings_say_where_no_row_does(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, in_duma: str
) -> None:
    """By the clock of each zone; what the chain tells comes first."""
    times = {"starts": "2024-09-06T14:00:00", "ends": "2024-09-06T20:30:00"}
    told = {DUMA: {"timezone": "Asia/Kamchatka", **times}}
    hold(ingest, elections=told)
    ingest.take(drop_file(in_duma, voting.ballots(8, 4)))

    def starts() -> datetime | None:
        with sessions() as session:
            return session.scalars(select(Constituency.voting_start)).one()

    assert datetime(2024, 9, 6, 2, tzinfo=UTC) == starts()
    assert "outside_voting_window" in open_rules(sessions)
    assert [] == oracle.unsound(sessions)
    moscow = {DUMA: {"timezone": "Europe/Moscow", "zones": {"41": "Asia/Kamchatka"}, **times}}
    assert 0 == hold(ingest, elections=told)
    hold(ingest, elections=moscow)
    assert datetime(2024, 9, 6, 2, tzinfo=UTC) == starts()
    hold(ingest)
    assert None is starts()
    assert "outside_voting_window" not in open_rules(sessions)
    hold(ingest, elections=told)
    ingest.take(drop_file(in_duma.replace("0800-0900", "0900-1000"), [voting.start(60)]))
    assert datetime(2024, 9, 6, 1, tzinfo=UTC) == starts()


def test_votes_have_their_grace_also_where_only_the_end_is_known(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, in_duma: str
) -> None:
    """Ten minutes after the end, and not forty."""
    hold(ingest, elections={DUMA: {"timezone": "UTC", "ends": "2024-09-06T08:10:00"}})
    rows = [voting.issue(485), voting.issue(486), voting.vote(500)]
    ingest.take(drop_file(in_duma, rows))
    assert "outside_voting_window" not in open_rules(sessions)
    ingest.take(drop_file(in_duma, [*rows, voting.vote(530)]))
    assert "outside_voting_window" in open_rules(sessions)


@pytest.mark.parametrize(
    ("elections", "told"),
    [
        ({"Duma": {"starts": "2024-09-06T08:00:00"}}, "name the timezone"),
        ({"Duma": {"timezone": "Europe/Moskau"}}, "Europe/Moscow"),
        ({"Duma": {"kind": "local"}}, "kind"),
        ({" Duma": {"type": "local"}}, "single spaces"),
        ({"Duma": {"contracts": ["a"]}, "Mayor": {"contracts": ["a"]}}, "named twice"),
    ],
)
def test_what_cannot_be_said_of_an_election_is_refused(
    elections: dict[str, Any], told: str
) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match=told):
        Elections.model_validate(elections)


def test_another_threshold_of_the_statistics_needs_one_mark(
    sessions: Sessions, drawn: Drawn
) -> None:
    """The evaluator holds everything against everything."""
    with sessions.begin() as session:
        take_up(session, standard(), NOON)
    write(sessions, drawn, is_hourly=True)
    evaluator(sessions).work_off()
    assert (key_of(0), "unusual_spike") in types(sessions)
    with sessions.begin() as session:
        assert 0 == take_up(session, standard(statistics={"spike_z": 99.0}), NOON)
    assert 1 == marks(sessions)


def test_a_type_has_thresholds_of_the_statistics_too(sessions: Sessions, drawn: Drawn) -> None:
    """By the type that the settings give the election."""
    write(sessions, drawn, is_hourly=True)
    with sessions.begin() as session:
        take_up(session, standard(elections={"council": {"type": "local"}}), NOON)
    evaluator(sessions, overrides={"local": {"spike_z": 99.0}}).work_off()
    assert (key_of(0), "unusual_spike") not in types(sessions)


def test_sighup_lets_new_thresholds_hold_for_what_is_stored(
    start: Start, voting: Voting, torn: list[str], tmp_path: Path, did: Did
) -> None:
    """From a daemon's log to the alerts: nothing has to be dropped again."""
    config = tmp_path / "ingestd.toml"
    config.write_text("")
    running = start(CONFIG=str(config))
    (running.inbox / voting.name(8)).write_text("\n".join(torn) + "\n")
    with open_sessions(running.url) as sessions:
        soon(lambda: {"reject_share"} == open_rules(sessions))
        config.write_text("[alerts.reject_share]\nenabled = false\n")
        running.process.send_signal(signal.SIGHUP)
        soon(lambda: set() == open_rules(sessions))
        soon(lambda: running.log("judged_anew"))
        assert 0 == running.stop()
        assert [] == oracle.unsound(sessions)
    did("1 SIGHUP, a rule switched off")


ALTERED: dict[str, Any] = {
    "a velocity": update(HourlyStats).where(HourlyStats.is_empty.is_(False)).values(
        bulletin_velocity_ewma=HourlyStats.bulletin_velocity_ewma + 1
    ),
    "an hour's status": update(HourlyStats).values(status="provisional"),
    "a score": update(Constituency).values(anomaly_score=0.123),
    "an alert": delete(Alert).where(Alert.alert_class == "statistical"),
    "an empty hour": delete(HourlyStats).where(HourlyStats.is_empty),
}  # fmt: skip


@pytest.mark.promise(34)
def test_fsck_names_what_the_evaluator_did_not_write(
    sessions: Sessions, ingest: Ingest, drawn: Drawn, did: Did
) -> None:
    """Velocities, status, scores and statistical alerts; a mark lets them be written again."""
    judged_by = assembly.thresholds_of(Settings()), standard().text()
    deeds: list[tuple[str, str]] = []

    def note(session: Session, action: str, subject: str, **images: Any) -> None:
        assert {"before", "after"} == images.keys()
        assert session.is_active
        deeds.append((action, subject))

    def named() -> list[Difference]:
        with sessions.begin() as session:
            contracts = {one.id: one.contract_id for one in session.scalars(select(Constituency))}
            return list(check_evaluation(session, contracts, *judged_by))

    with sessions.begin() as session:
        take_up(session, standard(), NOON)
    write(sessions, drawn, is_hourly=True)
    evaluator(sessions).work_off()
    assert [] == named()
    assert [] == [line for line in oracle.unsound(sessions) if "velocity" in line]
    for what, altered in ALTERED.items():
        with sessions.begin() as session:
            session.execute(altered)
        found = named()
        assert {"evaluation_wrong"} == {one.code for one in found}, what
        plan = Plan()
        for one in found:
            plan.add(one)
        Repair(ingest, note).carry_out(plan)
        evaluator(sessions).work_off()
        assert [] == named(), what
    assert [("fsck_evaluate", "-")] * len(ALTERED) == deeds
    assert [] == [line for line in oracle.unsound(sessions) if "velocity" in line]
    did("altered behind the evaluator's back", changes=len(ALTERED))
