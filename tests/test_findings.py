"""What the rules find in whole elections, what a person sees of it, and the evidence of it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from typer.testing import CliRunner

from ingestd import crud, once
from ingestd.cli import app
from ingestd.config import Settings, Statistics
from ingestd.models import Alert
from ingestd.pipeline import rules
from ingestd.pipeline.feed import coverage, evaluate_feed
from ingestd.pipeline.ingest import Ingest
from ingestd.schemas import AlertUpdate
from ingestd.simulate import Plan, defect_names
from ingestd.thresholds import Alerts

from .conftest import Databases, DropFile, Simulated, Voting, rolled_back, simulated
from .oracle import unsound, untrue
from .running import open_sessions

NOON = datetime(2024, 9, 6, 12, tzinfo=UTC)
LATER = datetime(2024, 9, 20, tzinfo=UTC)


def open_alerts(sessions: sessionmaker[Session]) -> dict[str, Alert]:
    """The open alerts by rule (one of each in these tests)."""
    with sessions() as session:
        found = session.scalars(select(Alert).where(Alert.cleared_at.is_(None))).all()
    assert len({alert.type for alert in found}) == len(found)
    return {alert.type: alert for alert in found}


def look_at_feed(sessions: sessionmaker[Session], now: datetime = LATER, **held: object) -> None:
    """Let the rules about all constituencies look."""
    with sessions.begin() as session:
        evaluate_feed(session, now=now, held=Alerts.model_validate(held))


# Whole elections


@pytest.mark.parametrize("whole", [False, True])
def test_a_clean_election_has_no_finding(
    sessions: sessionmaker[Session], ingest: Ingest, tmp_path: Path, whole: bool
) -> None:
    """In two time zones, with late votes, retries and changes of the roll."""
    plan = Plan(seed=4, constituencies=2, hours=5, rolls=(300, 60), options=(2,), whole=whole)
    election = simulated(tmp_path / "clean", plan)
    for found in election.files:
        ingest.take(found)
    assert [] == untrue(sessions, election.truth)
    assert {} == open_alerts(sessions)


def test_every_rule_has_a_defect_that_it_finds(tmp_path: Path) -> None:
    """Rules without one could say nothing, and nobody would notice."""
    plan = Plan(constituencies=6, hours=5, options=(2,), whole=True, defects=defect_names())
    told = {alert["rule"] for alert in simulated(tmp_path / "whole", plan).truth["alerts"]}
    plan = Plan(constituencies=6, hours=5, options=(2,), defects=defect_names())
    told |= {alert["rule"] for alert in simulated(tmp_path / "hours", plan).truth["alerts"]}
    # A statistical rule needs a region of peers: docs/detection.md measures those.
    mine = [rule for rule in rules.RULES.values() if rule.alert_class != "statistical"]
    assert {rule.id for rule in mine if not rule.is_clock} == told


def test_every_rule_has_a_table_in_the_configuration() -> None:
    """And the catalogue knows each of the tables."""
    tables = set(Alerts.model_fields) - {"elections", "types"}
    thresholds = set(Statistics.model_fields)
    statistical = [rule for rule in rules.RULES.values() if rule.alert_class == "statistical"]
    assert set(rules.RULES) - {rule.id for rule in statistical} == tables
    assert all(rule.settings and thresholds.issuperset(rule.settings) for rule in statistical)


# One thing at a time


def test_late_files_resolve_a_missing_hour(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """It says why, and the same hour missing again would be the same alert."""
    for hour in (8, 9, 11, 12, 13):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    look_at_feed(sessions, missing_hour={"empty_hours": "yes"})
    told = open_alerts(sessions)["missing_hour"]
    assert ("warning", [voting.name(10)[-19:-4]]) == (
        told.severity,
        [slot[-4:] and slot[-15:] for slot in told.details["slots"]],
    )
    ingest.take(drop_file(voting.name(10), voting.ballots(10, 3)))
    look_at_feed(sessions, missing_hour={"empty_hours": "yes"})
    assert {} == open_alerts(sessions)
    with sessions() as session:
        cleared = session.get_one(Alert, told.id)
        assert LATER == cleared.cleared_at
        assert "no longer holds" in (cleared.cleared_reason or "")


def test_a_silent_feed_is_told_while_people_vote(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Two hours without a file for anybody; not before, and not after the voting."""
    dates = {"dateStart": "09-09-2024 05:00:00", "dateEnd": "09-09-2024 17:00:00"}
    ingest.take(drop_file(voting.name(8), [voting.create(7 * 60, **dates)]))
    for hours, is_told in ((1, False), (3, True), (6, False)):
        look_at_feed(sessions, ingest.clock() + timedelta(hours=hours))
        assert is_told == ("silent_feed" in open_alerts(sessions))


def test_a_threshold_of_one_election_holds_for_it_alone(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A rule that is switched off there says nothing there."""
    held = {"elections": {"Duma": {"reject_share": {"enabled": False}}}}
    ingest.terms = replace_alerts(ingest, held)
    place = f"77 - Moscow/Duma/Nr 1/{voting.contract}/{voting.name(8)}"
    ingest.take(drop_file(place, [*voting.ballots(8, 30), "torn"]))
    assert {} == open_alerts(sessions)
    other = Voting(contract=voting.new_id())
    ingest.take(drop_file(other.name(8), [*other.ballots(8, 30), "torn"]))
    assert ["reject_share"] == list(open_alerts(sessions))


def replace_alerts(ingest: Ingest, held: dict[str, Any]) -> Any:
    """The terms of an ingest with other thresholds."""
    return replace(ingest.terms, alerts=Alerts.model_validate(held))


def test_a_decision_holds_until_there_is_more_evidence(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A resolved alert stays away as long as nothing more is found; a person's side is kept."""
    ballots = [voting.issue(8 * 60 + minute) for minute in range(4)]
    ingest.take(drop_file(voting.name(8), ballots))
    ingest.take(drop_file(voting.name(9), [rolled_back(ballots[0])]))
    ingest.take(drop_file(voting.name(10), voting.ballots(10, 2)))
    told = open_alerts(sessions)["rolled_back_for_good"]
    with sessions.begin() as session:
        answer = AlertUpdate(status="resolved", notes=["asked"])
        crud.alerts.answer(session, told.id, answer, at=NOON)
    ingest.take(drop_file(voting.name(11), voting.ballots(11, 2)))
    with sessions() as session:
        assert 0 == crud.alerts.open(session).total
    ingest.take(drop_file(voting.name(12), [rolled_back(ballots[1])]))
    ingest.take(drop_file(voting.name(13), voting.ballots(13, 2)))
    with sessions() as session:
        (again,) = crud.alerts.open(session).items
        assert ("resolved", ["asked"], 2) == (again.status, again.notes, again.details["number"])


def test_coverage_tells_what_is_here(
    sessions: sessionmaker[Session], ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Delivered, empty, superseded, missing: and provisional is said."""
    ballots = voting.ballots(8, 3)
    for hour, rows in ((8, ballots[:2]), (8, ballots), (9, []), (11, ballots[:0]), (12, [])):
        ingest.take(drop_file(voting.name(hour), rows))
    ingest.take(drop_file(voting.name(13), voting.ballots(13, 2)))
    with sessions() as session:
        (told,) = coverage(session)
    states = ["superseded", "empty", "missing", "empty", "empty", "delivered"]
    assert states == list(told.slots.values())
    assert told.is_provisional
    assert [] == unsound(sessions)


# What a person sees


@pytest.fixture(scope="module")
def found(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Simulated]]:
    """A database with findings of many rules, its files in an archive; look, don't touch."""
    names = (
        *("twice_delivered", "revotes", "rewritten", "stuffing", "over_registered", "for_many"),
        *("missing_hours", "rollback_final", "unknown_operation"),
    )
    plan = Plan(seed=3, rolls=(300, 300), constituencies=2, hours=5, options=(2,), defects=names)
    folder = tmp_path_factory.mktemp("found")
    election = simulated(folder / "files", plan)
    with databases.fresh("sqlite") as url:
        once.once(
            Settings.model_validate(
                {
                    "database": {"url": url},
                    "watch": {
                        "inbox": election.folder / "drop",
                        "archive": folder / "archive",
                        "quarantine": folder / "quarantine",
                    },
                }
            )
        )
        yield url, election


def ingestd(url: str, *arguments: str, status: int = 0) -> str:
    """What a command says on standard output."""
    # pytest's own COLUMNS would fold the tables.
    result = CliRunner(env={"COLUMNS": None}).invoke(app, ["--database-url", url, *arguments])
    assert status == result.exit_code, result.stderr
    return result.stdout


def alert_ids(url: str) -> dict[str, str]:
    """An open alert of each rule."""
    items = json.loads(ingestd(url, "alerts", "--limit", "1000", "--json"))["items"]
    return {item["type"]: item["id"] for item in items}


def test_the_findings_are_those_of_the_truth(found: tuple[str, Simulated]) -> None:
    """`once` lets the rules about the whole feed look, too."""
    url, election = found
    with open_sessions(url) as sessions:
        assert [] == untrue(sessions, election.truth)
    assert {alert["rule"] for alert in election.truth["alerts"]} == alert_ids(url).keys()


def test_an_explanation_names_formula_files_and_lines(found: tuple[str, Simulated]) -> None:
    """What a person needs to argue about a finding."""
    url, election = found
    id_ = alert_ids(url)["duplicate_transaction"]
    told = ingestd(url, "alerts", "explain", id_[:8])
    wanted = next(a for a in election.truth["alerts"] if a["rule"] == "duplicate_transaction")
    assert wanted["subject"] in told
    assert rules.RULES["duplicate_transaction"].formula in told
    as_json = json.loads(ingestd(url, "alerts", "explain", id_, "--json"))
    (file,) = as_json["details"]["files"]
    assert as_json["paths"][file["sha256"]] in told
    assert (
        "such alert"
        in CliRunner().invoke(app, ["--database-url", url, "alerts", "explain", "00000000"]).stderr
    )


def test_rules_coverage_and_alerts_speak_to_programs(found: tuple[str, Simulated]) -> None:
    """JSON and CSV hold the same as the tables; a missing hour is exit status 1."""
    url, _election = found
    told = json.loads(ingestd(url, "rules", "--json"))
    assert set(rules.RULES) == {rule["id"] for rule in told["rules"]}
    assert "slots_past 2" in ingestd(url, "rules")
    rows = list(csv.DictReader(io.StringIO(ingestd(url, "coverage", "--csv", status=1))))
    assert 1 == sum(row["state"] == "missing" for row in rows)
    assert "×" in ingestd(url, "coverage", "--gaps", status=1)
    (gap,) = json.loads(ingestd(url, "coverage", "--gaps", "--json", status=1))["constituencies"]
    assert gap["is_provisional"]
    assert "" == ingestd(url, "coverage", "--contract", "nobody's", status=2)
    alerts = list(csv.DictReader(io.StringIO(ingestd(url, "alerts", "--limit", "999", "--csv"))))
    assert alert_ids(url).keys() == {row["type"] for row in alerts}
    assert "█" in ingestd(url, "stats", "--contract", gap["contract_id"])


@pytest.mark.parametrize(("restores", "severity"), [("same", "critical"), ("others", "warning")])
def test_who_is_restored_is_no_new_voter(
    sessions: sessionmaker[Session],
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    restores: str,
    severity: str,
) -> None:
    """A roll of five never was one of seven; two others in their place may have voted, too."""
    gone = ["a1", "b2"]
    back = gone if restores == "same" else ["c3", "d4"]
    changes = [
        voting.row(operation, minute, params={"userIdHashes": json.dumps(named)})
        for operation, minute, named in (
            ("removeFromVotersList", 485, gone),
            ("addToVotersList", 490, back),
        )
    ]
    issued = [voting.issue(500 + number) for number in range(6)]
    rows = [voting.voters_list(1, 5), *changes, *issued]
    ingest.take(drop_file(voting.name(8), rows))
    told = open_alerts(sessions)["turnout_over_registered"]
    assert (severity, 5) == (told.severity, told.details["registered"])
    assert [] == unsound(sessions)


@pytest.mark.parametrize(
    ("empty_hours", "night", "severity"),
    [("auto", 2, "warning"), ("yes", 2, "warning"), ("no", 2, "critical"), ("no", 5, "warning")],
)
def test_an_hour_without_a_file_is_no_gap_where_the_settings_say_so(
    sessions: sessionmaker[Session],
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    empty_hours: str,
    night: int,
    severity: str,
) -> None:
    """Where the source leaves empty hours out; not between two large files: one is lost."""
    ingest.terms = replace_alerts(ingest, {"missing_hour": {"empty_hours": empty_hours}})
    ingest.take(drop_file(voting.name(8), [voting.start(480), *voting.ballots(8, 9)]))
    ingest.take(drop_file(voting.name(10), voting.ballots(10, night)))
    assert "votes_exceed_bulletins" not in open_alerts(sessions)
    ingest.take(drop_file(voting.name(11), [voting.vote(670) for _ in range(5)]))
    told = open_alerts(sessions)["votes_exceed_bulletins"]
    assert severity == told.severity
    assert bool(told.details["missing_slots"]) == (severity == "warning")
    assert [] == unsound(sessions)
