"""What a review of the findings turned up: each of these was wrong once."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import uuid
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from typer.testing import CliRunner

from ingestd import crud, once
from ingestd.cli import app
from ingestd.config import Settings
from ingestd.models import Alert, EvaluationDue
from ingestd.pipeline import rules, surprises
from ingestd.pipeline.feed import coverage, evaluate_feed
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.rules import SlotCount
from ingestd.schemas import AlertUpdate
from ingestd.thresholds import Alerts

from .conftest import Databases, DropFile, Voting, rolled_back
from .elections import Drawn, draw, key_of, write
from .running import open_sessions
from .test_evaluator import QUIET, evaluator, hour_of, types
from .test_evaluator import drawn as drawn  # noqa: PLC0414 - a fixture
from .test_findings import NOON, look_at_feed, open_alerts
from .test_peers import group_of
from .test_rules import EIGHT, NINE, totals

Sessions = sessionmaker[Session]


def ask(url: str, *arguments: str) -> tuple[int, str]:
    """Exit status and answer of a command."""
    result = CliRunner(env={"COLUMNS": None}).invoke(app, ["--database-url", url, *arguments])
    return result.exit_code, result.stdout


def test_a_statistical_finding_is_explained_and_exported(
    databases: Databases, drawn: Drawn, tmp_path: Path
) -> None:
    """Its files are named without lines; drawn ones never lay on a disk, and that is said."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True)
        evaluator(sessions).work_off()
        with sessions() as session:
            spike = select(Alert.id).where(Alert.type == "unusual_spike")
            one = str(session.scalars(spike.where(Alert.constituency_id == key_of(0))).one())
        status, told = ask(url, "alerts", "explain", one)
        assert (0, True) == (status, "all" in told)
        status, told = ask(url, "alerts", "export", one, "--to", str(tmp_path / "finding.zip"))
        assert (1, True) == (status, "no longer where it was put" in told)
        assert "not judged yet" not in told
        with sessions.begin() as session:
            session.add(EvaluationDue(id=uuid.uuid4(), constituency_id=key_of(0)))
        told = ask(url, "alerts", "export", one, "--to", str(tmp_path / "again.zip"))[1]
        assert "not judged yet" in told


def test_a_missing_hour_is_no_low_bar(databases: Databases, drawn: Drawn) -> None:
    """In the line of bars what is unknown is a cross."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True, missing=frozenset([(3, 5)]))
        evaluator(sessions).work_off()
        _, told = ask(url, "stats", "--contract", f"{3:044d}")
        assert "×" in told


def test_totals_say_that_they_are_provisional(databases: Databases, drawn: Drawn) -> None:
    """Of the constituency, and of the sum that it is in."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True, missing=frozenset([(3, 5)]))
        evaluator(sessions).work_off()
        told = json.loads(ask(url, "stats", "--json")[1])
        flags = {one["contract_id"]: one["is_provisional"] for one in told["constituencies"]}
        assert {f"{3:044d}"} == {contract for contract, flag in flags.items() if flag}
        assert told["is_provisional"]
        table = ask(url, "stats")[1]
        assert 2 == table.count("provisional")
        assert "is_provisional" in ask(url, "stats", "--csv")[1].splitlines()[0]
        assert "provisional" in ask(url, "stats", "--contract", f"{3:044d}")[1].splitlines()[0]


def test_more_of_a_spike_is_new_evidence(sessions: Sessions, drawn: Drawn) -> None:
    """A decision about 150 ballots is none about those of the next hours, too."""
    group = group_of(drawn)
    before = [each.finding for each in surprises.find(group, surprises.figures_of(group))]
    drawn.stuff(0, QUIET, 400)
    drawn.stuff(0, QUIET + 1, 400)
    group = group_of(drawn)
    after = [each.finding for each in surprises.find(group, surprises.figures_of(group))]
    weights = [
        max(each.weight for each in found if each.rule == "unusual_spike")
        for found in (before, after)
    ]
    assert weights[0] + 800 <= weights[1]


def test_an_excess_that_grows_is_new_evidence() -> None:
    """The first hour proves it; how much it comes to is the greatest of all hours."""
    slots = [SlotCount(EIGHT, 10, 11), SlotCount(NINE, 10, 50)]
    (finding,) = rules.votes_exceed_bulletins(
        totals(bulletins=20, votes=61), slots, start_slot=EIGHT, has_whole=False
    )
    assert (EIGHT, 41) == (finding.details["slot"], finding.weight)


def test_regions_without_a_name_do_not_share_an_alert() -> None:
    """Two pools of small regions, in two time zones, may both move in one UTC hour."""
    drawn = draw(np.random.default_rng(3), constituencies=400, regions=10)
    drawn.bulletins[drawn.region == 0, 24] *= 9
    drawn.bulletins[drawn.region == 1, 25] *= 9
    group = group_of(drawn)
    names = ["", "", *group.region_names[2:]]
    starts = group.starts - (drawn.region == 1)
    group = surprises.Group(
        **{name: getattr(group, name) for name in group.__slots__}
        | {"region_names": names, "starts": starts}
    )
    figures = surprises.figures_of(group)
    subjects = [
        each.finding.subject
        for each in surprises.outlying_regions(group, figures)
        if each.finding.details["window"]["utc"][0] == f"{group.utc(0, 24):%Y-%m-%dT%H:%MZ}"
    ]
    assert 2 == len(subjects) == len(set(subjects))


def test_a_region_is_provisional_when_any_of_it_is() -> None:
    """Not only when its first constituency is."""
    drawn = draw(np.random.default_rng(3), constituencies=400, regions=10)
    drawn.bulletins[drawn.region == 0, 24] *= 9
    known = np.ones(drawn.bulletins.shape)
    known[30, 5] = 0  # of region 0, as constituency 0 is
    group = group_of(drawn, known=known)
    found = [
        each.finding
        for each in surprises.outlying_regions(group, surprises.figures_of(group))
        if each.hours == (24,)
    ]
    assert [True] == [one.details["is_provisional"] for one in found]
    assert "Provisional" in found[0].description


def test_a_refused_or_absent_file_makes_a_constituency_provisional(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """What is in quarantine is not in the counts."""
    for hour in (8, 9, 11, 12, 13):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    ingest.take(drop_file(voting.name(10), ["torn"] * 30))
    other = Voting(contract=voting.new_id())
    ingest.take(drop_file(other.name(10), ["torn"] * 30))
    with sessions() as session:
        told = {one.contract_id: one for one in coverage(session)}
    assert "refused" in told[voting.contract].slots.values()
    assert all(one.is_provisional for one in told.values())


def test_hours_after_the_end_do_not_move_the_feed_on_for_others(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """In the east they count while others still vote: nobody's hour is missing for that."""
    ingest.take(drop_file(voting.name(8), [voting.start(8 * 60), *voting.ballots(8, 3)]))
    ingest.take(drop_file(voting.name(9), [voting.row("finishVoting", 9 * 60 + 30)]))
    for hour in range(10, 15):
        ingest.take(drop_file(voting.name(hour), []))
    west = Voting(contract=voting.new_id())
    for hour in (8, 9):
        ingest.take(drop_file(west.name(hour), [west.start(8 * 60)] if hour == 8 else []))
    look_at_feed(sessions, missing_hour={"empty_hours": "yes"})
    assert "missing_hour" not in open_alerts(sessions)


def test_missing_hours_are_judged_by_the_thresholds_of_their_election(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """That its source publishes empty hours, for one."""
    place = f"77 - Moscow/Duma/Nr 1/{voting.contract}/"
    for hour in (8, 9, 11, 12, 13):
        ingest.take(drop_file(place + voting.name(hour), voting.ballots(hour, 3)))
    held = {
        "missing_hour": {"empty_hours": "no"},
        "elections": {"Duma": {"missing_hour": {"empty_hours": "yes"}}},
    }
    with sessions.begin() as session:
        evaluate_feed(session, now=NOON, held=Alerts.model_validate(held))
    assert ["missing_hour"] == list(open_alerts(sessions))


def test_what_missing_files_may_explain_is_provisional(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A ballot may have returned in the hour that is not here."""
    ballots = [voting.issue(8 * 60 + minute) for minute in range(4)]
    ingest.take(drop_file(voting.name(8), [voting.start(8 * 60), *ballots]))
    ingest.take(drop_file(voting.name(9), [rolled_back(ballots[0])]))
    ingest.take(drop_file(voting.name(11), voting.ballots(11, 2)))
    told = open_alerts(sessions)["rolled_back_for_good"]
    assert told.details["is_provisional"]
    assert "Provisional" in told.description
    ingest.take(drop_file(voting.name(10), voting.ballots(10, 2)))
    told = open_alerts(sessions)["rolled_back_for_good"]
    assert not told.details["is_provisional"]


def test_a_line_that_was_altered_with_its_hash_is_found_in_the_files(
    databases: Databases, voting: Voting, tmp_path: Path
) -> None:
    """Whoever alters a line of a bundle may alter the SHA-256 beside it."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    ballots = voting.ballots(8, 2)
    name = voting.name(8)
    (inbox / name).write_text("\n".join([*ballots, ballots[0]]) + "\n")
    with databases.fresh("sqlite") as url:
        settings = Settings.model_validate(
            {"database": {"url": url}, "watch": {"inbox": inbox, "archive": tmp_path / "archive"}}
        )
        once.once(settings, [inbox / name], is_archiving=False)
        with open_sessions(url) as sessions:
            told = str(open_alerts(sessions)["duplicate_transaction"].id)
        ask(url, "alerts", "export", told, "--to", str(tmp_path / "finding.zip"))
    with zipfile.ZipFile(tmp_path / "finding.zip") as bundle:
        bundle.extractall(tmp_path / "bundle")
    run = (sys.executable, str(tmp_path / "bundle" / "check.py"), str(inbox))
    assert 0 == subprocess.run(run, check=False, capture_output=True).returncode
    lines = tmp_path / "bundle" / "lines.csv"
    with lines.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["text"] = rows[0]["text"].replace(";104;", ";105;")
    rows[0]["line_sha256"] = hashlib.sha256(rows[0]["text"].encode()).hexdigest()
    with lines.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert 1 == subprocess.run(run, check=False, capture_output=True).returncode


def test_a_bundle_does_not_tell_where_the_archive_lies(
    databases: Databases, voting: Voting, tmp_path: Path
) -> None:
    """It is made to be given away."""
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    ballots = voting.ballots(8, 2)
    name = voting.name(8)
    (inbox / name).write_text("\n".join([*ballots, ballots[0]]) + "\n")
    with databases.fresh("sqlite") as url:
        settings = Settings.model_validate(
            {"database": {"url": url}, "watch": {"inbox": inbox, "archive": tmp_path / "archive"}}
        )
        once.once(settings)
        (there,) = (tmp_path / "archive").rglob("*.csv")
        there.unlink()
        there.mkdir()
        with open_sessions(url) as sessions:
            told = str(open_alerts(sessions)["duplicate_transaction"].id)
        status, _ = ask(url, "alerts", "export", told, "--to", str(tmp_path / "finding.zip"))
    assert 1 == status
    with zipfile.ZipFile(tmp_path / "finding.zip") as bundle:
        finding = bundle.read("finding.json").decode()
    assert name in json.loads(finding)["unread"][0]
    assert str(tmp_path) not in finding


def test_a_busy_hour_without_a_file_is_unknown_even_where_empty_hours_have_none(
    sessions: Sessions, drawn: Drawn
) -> None:
    """Only an hour in which hardly anything was expected is taken for empty."""
    write(sessions, drawn, is_hourly=True, missing=frozenset([(2, 1)]))
    held = Alerts.model_validate({"missing_hour": {"empty_hours": "no"}})
    evaluator(sessions, held=held).work_off()
    hour = hour_of(sessions, 2, 1)
    assert ("missing", None) == (hour.status, hour.bulletin_velocity)
    assert (key_of(2), "unusual_drop") not in types(sessions)
    assert "provisional" == hour_of(sessions, 2, 2).status


def test_a_threshold_of_regions_holds_for_the_regions_of_its_election() -> None:
    """And not for all that are judged with them."""
    drawn = draw(np.random.default_rng(3), constituencies=400, regions=10)
    group = group_of(drawn)
    group.limits["region_t"][drawn.region == 4] = 0.01
    found = surprises.outlying_regions(group, surprises.figures_of(group))
    assert {"Region 4"} == {each.finding.subject.split(":")[0] for each in found}


def test_a_decision_on_a_gap_holds_when_a_part_of_it_arrives(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Less is missing than what was decided about: nothing new is to be asked."""
    for hour in (8, 9, 12, 13, 14, 15):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    look_at_feed(sessions, missing_hour={"empty_hours": "yes"})
    told = open_alerts(sessions)["missing_hour"]
    with sessions.begin() as session:
        crud.alerts.answer(session, told.id, AlertUpdate(status="resolved"), at=NOON)
    ingest.take(drop_file(voting.name(10), voting.ballots(10, 3)))
    look_at_feed(sessions, missing_hour={"empty_hours": "yes"})
    with sessions() as session:
        assert [] == [one.type for one in crud.alerts.open(session).items]


def test_a_voting_of_which_no_end_is_known_is_not_open_for_ever(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Its last file may never come; a feed that is over is not silent."""
    ingest.take(drop_file(voting.name(8), [voting.start(8 * 60)]))
    look_at_feed(sessions, NOON + timedelta(days=365))
    assert "silent_feed" not in open_alerts(sessions)
