"""What a person reads of the findings: local time, zones, what is provisional, what never came."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker
from typer.testing import CliRunner

from ingestd import crud
from ingestd.cli import app
from ingestd.models import Alert, Constituency
from ingestd.pipeline import surprises
from ingestd.pipeline.evaluator import smoothed
from ingestd.pipeline.feed import coverage, evaluate_feed
from ingestd.pipeline.ingest import Ingest
from ingestd.thresholds import Alerts

from .conftest import Databases, DropFile, Voting
from .elections import Drawn, draw, write
from .running import open_sessions
from .test_evaluator import HOURS, QUIET, evaluator, hour_of
from .test_evaluator import drawn as drawn  # noqa: PLC0414 - a fixture
from .test_findings import LATER, NOON
from .test_peers import group_of

Sessions = sessionmaker[Session]
DUMA = "Выборы депутатов думы"
ABSENT = "AsrxMqfGWsXEgTmvdw95omtQ4Gv1Vi4mGAvLYy23DHpM"


def ask(url: str, *arguments: str, config: str = "", folder: Path | None = None) -> tuple[int, str]:
    """Exit status and all that a command says, by some settings."""
    options = ["--database-url", url]
    if folder is not None:
        (folder / "asked.toml").write_text(config, encoding="utf-8")
        options += ["--config", str(folder / "asked.toml")]
    result = CliRunner(env={"COLUMNS": None}).invoke(app, [*options, *arguments])
    return result.exit_code, result.stdout + result.stderr


# Rules --------------------------------------------------------------------------------------

SETTINGS = f"""
[elections."{DUMA}"]
type = "local"
contracts = ["{ABSENT}"]
[alerts.types.local.missing_hour]
slots_past = 5
[statistics.overrides.local]
spike_z = 7.0
"""


def thresholds_of(answer: str, rule: str) -> dict[str, object]:
    """The thresholds of a rule in an answer."""
    (found,) = (one for one in json.loads(answer)["rules"] if one["id"] == rule)
    thresholds: dict[str, object] = found["thresholds"]
    return thresholds


@pytest.mark.parametrize("asked", [("--election", DUMA), ("--type", "local")])
def test_rules_tell_what_an_election_and_a_type_are_held_to(
    tmp_path: Path, asked: tuple[str, str]
) -> None:
    """By settings alone: there need be no database."""
    url = f"sqlite:///{tmp_path / 'none.db'}"
    status, told = ask(url, "rules", *asked, "--json", config=SETTINGS, folder=tmp_path)
    assert 0 == status, told
    assert 5 == thresholds_of(told, "missing_hour")["slots_past"]
    assert 7.0 == thresholds_of(told, "unusual_spike")["spike_z"]
    usual = ask(url, "rules", "--json", config=SETTINGS, folder=tmp_path)[1]
    assert 2 == thresholds_of(usual, "missing_hour")["slots_past"]
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        (("--election", "Dumb"), DUMA),
        (("--type", "lokal"), "local"),
        (("--election", DUMA, "--type", "federal"), "local"),
    ],
)
def test_an_unknown_election_is_2_and_the_known_ones_are_listed(
    tmp_path: Path, asked: tuple[str, ...], listed: str
) -> None:
    """Silence would mean the thresholds of all, which is the worst answer to a slip."""
    url = f"sqlite:///{tmp_path / 'none.db'}"
    status, told = ask(url, "rules", *asked, config=SETTINGS, folder=tmp_path)
    assert (2, True) == (status, listed in told), told


def test_an_election_that_folders_told_is_known(
    databases: Databases, drawn: Drawn, tmp_path: Path
) -> None:
    """The database is asked where the settings do not say."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn)
        assert 0 == ask(url, "rules", "--election", "council", folder=tmp_path)[0]
        status, told = ask(url, "rules", "--election", "mayor", folder=tmp_path)
        assert (2, True) == (status, "council" in told)


# What is not here ---------------------------------------------------------------------------


def test_what_only_the_settings_name_is_told_until_it_comes(
    databases: Databases, drawn: Drawn, tmp_path: Path
) -> None:
    """By coverage, with status 1, and by the totals, which are provisional without it."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn)
        evaluator(sessions).work_off()
        assert 0 == ask(url, "coverage")[0]
        status, told = ask(url, "coverage", "--gaps", config=SETTINGS, folder=tmp_path)
        assert (1, True) == (status, ABSENT in told and "nothing came" in told)
        rows = ask(url, "coverage", "--csv", config=SETTINGS, folder=tmp_path)[1]
        assert [f"{ABSENT},,missing"] == [one for one in rows.splitlines() if ABSENT in one]
        answer = ask(url, "coverage", "--json", config=SETTINGS, folder=tmp_path)[1]
        absent = json.loads(answer)["constituencies"][-1]
        assert (ABSENT, False, True) == (
            *(absent["contract_id"], absent["has_files"], absent["is_provisional"]),
        )
        totals = json.loads(ask(url, "stats", "--json", config=SETTINGS, folder=tmp_path)[1])
        assert ([ABSENT], True) == (totals["expected_and_absent"], totals["is_provisional"])
        assert "of which nothing came" in ask(url, "stats", config=SETTINGS, folder=tmp_path)[1]
        assert not json.loads(ask(url, "stats", "--json")[1])["is_provisional"]


def test_all_say_the_same_of_what_is_provisional(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The view, the commands and the coverage: a gap, a refused file, one that came after all."""
    whole, refused, mended = (Voting(rng=random.Random(seed)) for seed in range(3))
    for each in (voting, whole, refused, mended):
        for hour in (8, 9, 10, 11, 12):
            if (each, hour) == (voting, 9):
                continue
            is_torn = (each, hour) in ((refused, 12), (mended, 12))
            rows = ["torn"] * 30 if is_torn else each.ballots(hour, 3)
            ingest.take(drop_file(each.name(hour), rows))
    ingest.take(drop_file(f"new/{mended.name(12)}", mended.ballots(12, 3)))
    with sessions.begin() as session:
        held = Alerts.model_validate({"missing_hour": {"empty_hours": "yes"}})
        evaluate_feed(session, now=LATER, held=held)
    evaluator(sessions, held=held).work_off()
    with sessions() as session:
        lacking = crud.constituencies.provisional(session)
        by_key = {
            one.contract_id for one in session.scalars(select(Constituency)) if one.id in lacking
        }
        view = text("SELECT contract_id FROM v_constituencies WHERE is_provisional")
        by_view = set(session.scalars(view))
        by_coverage = {
            one.contract_id for one in coverage(session, held=held) if one.is_provisional
        }
    assert {voting.contract, refused.contract} == by_view == by_key == by_coverage


def test_alerts_say_that_they_are_provisional(
    databases: Databases, drawn: Drawn, tmp_path: Path
) -> None:
    """In the list, too: a line of it may be all that is quoted."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True, missing=frozenset([(0, 3)]))
        evaluator(sessions).work_off()
        rows = list(csv.DictReader(io.StringIO(ask(url, "alerts", "--csv")[1])))
        found = {row["is_provisional"] for row in rows if row["contract_id"] == f"{0:044d}"}
        assert {"True"} == found
        assert "(provisional)" in ask(url, "alerts")[1]


def test_an_explanation_shows_the_hours_that_it_is_about(
    databases: Databases, drawn: Drawn
) -> None:
    """A bar for each hour, and a mark below those of the finding."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True)
        evaluator(sessions).work_off()
        items = json.loads(ask(url, "alerts", "--type", "unusual_spike", "--json")[1])["items"]
        (spike,) = (item for item in items if item["contract_id"] == f"{0:044d}")
        lines = ask(url, "alerts", "explain", spike["id"])[1].splitlines()
        votes = next(number for number, line in enumerate(lines) if line.startswith("votes  "))
        assert len("bulletins ") + QUIET == lines[votes + 1].index("^")
        assert 1 == lines[votes + 1].count("^")


def test_a_type_that_no_election_has_is_told_by_the_check(tmp_path: Path) -> None:
    """Its thresholds would hold for nobody, in silence."""
    url = f"sqlite:///{tmp_path / 'none.db'}"
    config = SETTINGS + "[alerts.types.regional.late_file]\nhours = 5\n"
    told = ask(url, "check", "--json", config=config, folder=tmp_path)[1]
    found = [one for one in json.loads(told)["findings"] if one["what"] == "alerts.types"]
    assert [("warn", True)] == [(one["status"], "regional" in one["detail"]) for one in found]


# Hours --------------------------------------------------------------------------------------


def test_hours_are_shown_in_local_time_and_told_in_utc(
    databases: Databases, drawn: Drawn, tmp_path: Path
) -> None:
    """The zone is named; programs get UTC."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True)
        evaluator(sessions).work_off()
        asked = ("stats", "--contract", f"{3:044d}")
        told = ask(url, *asked)[1]
        assert "UTC+03:00: its voting began at 08:00" in told
        assert "2024-09-06 08:00" in told
        with sessions.begin() as session:
            for each in session.scalars(select(Constituency)):
                each.timezone = "Asia/Kamchatka"
        told = ask(url, *asked)[1]
        assert ("Asia/Kamchatka" in told, "2024-09-06 17:00" in told) == (True, True)
        hours = json.loads(ask(url, *asked, "--json")[1])
        assert "2024-09-06T05:00:00Z" == hours["hours"][0]["hour"].replace("+00:00", "Z")
        assert "Asia/Kamchatka" == hours["constituency"]["timezone"]
        rows = list(csv.DictReader(io.StringIO(ask(url, *asked, "--csv")[1])))
        assert "2024-09-06T05:00:00+00:00" == rows[0]["hour"]
        assert {"bulletin_velocity_ewma", "expected_votes", "is_provisional"} <= rows[0].keys()
        with sessions.begin() as session:
            session.scalars(
                select(Constituency).where(Constituency.contract_id == f"{3:044d}")
            ).one().timezone = None
            session.execute(text("UPDATE constituency SET voting_start = NULL"))
        assert "in UTC" in ask(url, *asked)[1]


def test_totals_have_bars_and_scores(databases: Databases, drawn: Drawn) -> None:
    """One bar for each hour; a region's are its own."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, drawn, is_hourly=True)
        evaluator(sessions).work_off()
        lines = ask(url, "stats")[1].splitlines()
        assert lines[0].startswith("bulletins █")
        assert "2024-09-06 05:00:00Z to 2024-09-07 04:00:00Z" in lines[0]
        assert lines[:2] != ask(url, "stats", "--region", "00")[1].splitlines()[:2]
        rows = list(csv.DictReader(io.StringIO(ask(url, "stats", "--csv")[1])))
        assert 0.5 < max(float(row["anomaly_score"]) for row in rows)


def test_a_smoothed_velocity_forgets_half_in_two_hours() -> None:
    """A missing hour has none, and takes nothing from those after it but their nearness."""
    found = smoothed(np.array([[8.0, np.nan, 2.0, 2.0]]))[0]
    assert 8.0 == found[0]
    assert np.isnan(found[1])
    assert (0.5 * 8 + 2) / 1.5 == pytest.approx(found[2])
    assert pytest.approx(found[3]) == (8 * 0.5**1.5 + 2 * 0.5**0.5 + 2) / (0.5**1.5 + 0.5**0.5 + 1)


def test_smoothed_velocities_stand_in_the_table(sessions: Sessions, drawn: Drawn) -> None:
    """Null exactly where the velocity is, and the same however the files came."""
    write(sessions, drawn, is_hourly=True, missing=frozenset([(2, 5)]))
    evaluator(sessions).work_off()
    first, gap, later = (hour_of(sessions, 2, hour) for hour in (0, 5, QUIET))
    assert first.bulletin_velocity == first.bulletin_velocity_ewma
    assert (None, None) == (gap.bulletin_velocity, gap.vote_velocity_ewma)
    assert (later.bulletin_velocity_ewma or 0) > (later.bulletin_velocity or 0)


# Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("regions", "pooled", "told"),
    [
        (2, False, "19 peers in the region"),
        (2, True, "19 peers in small regions that opened in the same hour"),
        (40, False, "39 constituencies of other regions"),
    ],
)
def test_the_words_say_who_was_compared(regions: int, pooled: bool, told: str) -> None:
    """A constituency alone in its region has no peers there, but is compared all the same."""
    drawn = draw(np.random.default_rng(11), constituencies=40, hours=HOURS, regions=regions)
    drawn.stuff(0, QUIET, 400)
    group = group_of(drawn)
    if pooled:
        group = surprises.Group(
            **{name: getattr(group, name) for name in group.__slots__}
            | {"region_names": [""] * len(group.region_names)}
        )
    found = [
        each.finding
        for each in surprises.spikes(group, surprises.figures_of(group))
        if each.one == 0
    ]
    assert found
    assert told in found[0].description
    assert "its 0 peers" not in found[0].description
    assert ("its " + told in found[0].description) == ("peers" in told)


# Empty hours --------------------------------------------------------------------------------


def test_one_setting_says_whether_empty_hours_have_files(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The feed and the statistics give one answer: by default, what the source was seen to do."""
    others = [Voting(rng=random.Random(seed)) for seed in range(4)]
    for each in (voting, *others):
        ingest.take(drop_file(each.name(8), [each.start(8 * 60), *each.ballots(8, 3)]))
        for hour in (9, 10, 11, 12):
            if (each, hour) != (voting, 10):
                ingest.take(drop_file(each.name(hour), each.ballots(hour, 1)))

    def told() -> tuple[bool, bool]:
        evaluator(sessions).work_off()
        with sessions.begin() as session:
            evaluate_feed(session, now=NOON)
        with sessions() as session:
            missing = session.scalar(
                text("SELECT count(*) FROM v_hours WHERE status = 'missing' AND contract_id = :c"),
                {"c": voting.contract},
            )
            alert = select(Alert.id).where(Alert.type == "missing_hour", Alert.cleared_at.is_(None))
            return bool(missing), session.scalar(alert) is not None

    assert (False, False) == told()
    ingest.take(drop_file(others[0].name(13), []))
    assert (True, True) == told()
