"""Bundles: every kind of finding is checked again with Python alone, from lines and numbers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from ingestd import assembly, once
from ingestd.config import Settings
from ingestd.models import Alert, Constituency, HourlyStats
from ingestd.pipeline import rules
from ingestd.pipeline.bundle import evidence_of, write_bundle
from ingestd.simulate import Plan, defect_names

from .conftest import Databases, simulated
from .elections import OPENS, Drawn, draw, key_of, twin, write
from .oracle import untrue
from .running import open_sessions
from .test_evaluator import evaluator

Sessions = sessionmaker[Session]
NUMBERS_ONLY = ("missing_hour", "constituency_missing", "late_file")
DETERMINISTIC = sorted(
    rule.id
    for rule in rules.RULES.values()
    if rule.alert_class != "statistical" and not rule.is_clock
)


def export(sessions: Sessions, alert: Alert, folder: Path, settings: Settings) -> Path:
    """A bundle, unpacked."""
    path = folder / f"{alert.id}.zip"
    with sessions() as session:
        limits, thresholds = assembly.read_limits(settings), assembly.thresholds_of(settings)
        evidence = evidence_of(session, alert, limits, thresholds)
        owner = alert.constituency_id and session.get_one(Constituency, alert.constituency_id)
        write_bundle(path, alert, owner.contract_id if owner else None, evidence)
    with zipfile.ZipFile(path) as bundle:
        bundle.extractall(folder / str(alert.id))
    return folder / str(alert.id)


def check(bundle: Path, folder: Path | None = None) -> tuple[int, str]:
    """What its own script says, with nothing but Python; beside the files of a folder."""
    run = [sys.executable, "-I", "-S", str(bundle / "check.py")]
    run += [str(folder)] if folder else []
    told = subprocess.run(run, capture_output=True, text=True, check=False)
    return told.returncode, told.stdout + told.stderr


def alter(bundle: Path) -> None:
    """Change one letter of each raw line, as a forger would who forgets the sum."""
    path = bundle / "lines.csv"
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["text"] = row["text"].replace(";4;", ";5;", 1) + " "
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class Taken:
    """An election with all defects that was taken in, and its truth."""

    settings: Settings
    truth: Mapping[str, Any]


def take_in(folder: Path, url: str, *, whole: bool) -> Taken:
    """Take in an election with all defects, first and second drop."""
    plan = Plan(
        rolls=(300, 15, 15),
        constituencies=3,
        hours=5,
        options=(2,),
        whole=whole,
        defects=defect_names(),
    )
    election = simulated(folder / "files", plan)
    expected = {"contracts": tuple(election.truth["expected_contracts"])}
    watch = {"archive": folder / "archive", "quarantine": folder / "quarantine"}
    for drop in ("drop", "drop-2"):
        settings = Settings.model_validate(
            {
                "database": {"url": url},
                "watch": watch | {"inbox": election.folder / drop},
                "alerts": {"constituency_missing": expected},
            }
        )
        once.once(settings)
    return Taken(settings, election.truth)


@pytest.fixture(scope="module")
def elections(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Taken]]:
    """Two elections with all defects: hour by hour, and with a whole file."""
    with databases.fresh("sqlite") as one, databases.fresh("sqlite") as other:
        yield [
            take_in(tmp_path_factory.mktemp("defects"), url, whole=whole)
            for url, whole in ((one, False), (other, True))
        ]


@pytest.fixture(scope="module")
def with_defects(elections: list[Taken]) -> Mapping[str, tuple[Alert, Settings]]:
    """An open alert of each rule."""
    found: dict[str, tuple[Alert, Settings]] = {}
    for taken in elections:
        with open_sessions(taken.settings.database.url) as sessions, sessions() as session:
            query = select(Alert).where(Alert.cleared_at.is_(None)).order_by(Alert.id)
            for alert in session.scalars(query):
                found.setdefault(alert.type, (alert, taken.settings))
    return found


def test_every_rule_finds_all_defects_and_nothing_else(elections: list[Taken]) -> None:
    """Recall is 1.0 and false alerts are 0, rule by rule: by id, severity and constituency."""
    told = set()
    for taken in elections:
        with open_sessions(taken.settings.database.url) as sessions:
            assert [] == untrue(sessions, taken.truth)
        told |= {alert["rule"] for alert in taken.truth["alerts"]}
    assert set(DETERMINISTIC) == told


@pytest.mark.parametrize("rule", DETERMINISTIC)
def test_a_finding_is_checked_again_with_python_alone(
    with_defects: Mapping[str, tuple[Alert, Settings]], rule: str, tmp_path: Path
) -> None:
    """Of every rule, beside the delivered files; and a line that was altered is noticed."""
    alert, settings = with_defects[rule]
    with open_sessions(settings.database.url) as sessions:
        bundle = export(sessions, alert, tmp_path, settings)
    watch = settings.watch
    status, told = check(bundle, watch.quarantine if rule == "file_rejected" else watch.archive)
    assert (0, True) == (status, "it holds" in told), told
    if rule not in NUMBERS_ONLY:
        alter(bundle)
        status, told = check(bundle)
        assert (1, True) == (status, "altered" in told), told


def test_every_alert_tells_when_where_and_how_much_was_here(
    with_defects: Mapping[str, tuple[Alert, Settings]],
) -> None:
    """In UTC and by the clock of the place; what is absent has no file of its own."""
    for rule, (alert, _settings) in with_defects.items():
        assert alert.detected_at is not None, rule
        assert 0 <= alert.details["coverage"] <= 1, rule
        assert len(alert.details["window"]["utc"]) == 2, rule
        if rule not in ("file_rejected", "unknown_operation"):
            assert alert.details["window"]["local"], rule
        if rule != "constituency_missing":
            assert alert.details["files"], rule


# Statistics ---------------------------------------------------------------------------------

NIGHT = 18
KINDS = (
    *("unusual_spike", "unusual_drop", "night_surge", "sustained_shift", "region_correlated"),
    *("rejected_share", "peer_outlier turnout", "peer_outlier uncast", "peer_outlier lag"),
    "peer_outlier twin",
)


def unlikely() -> Drawn:
    """An election in which every statistical rule has something to say."""
    rolls = (2_000,) * 8 + (20_000, 3_000, 3_000)
    rng = np.random.default_rng(3)
    drawn = draw(rng, constituencies=160, hours=48, regions=8, rolls=rolls)
    drawn.stuff(0, 30, 200)
    drawn.bulletins[1, 2] = drawn.votes[1, 2] = 0
    drawn.stuff(2, NIGHT, 40)
    drawn.bulletins[3] = drawn.bulletins[3] // 6  # turnout
    drawn.votes[3] = drawn.bulletins[3]
    drawn.votes[4] = drawn.votes[4] * 19 // 20  # uncast
    drawn.votes[5, 26] += 150
    drawn.bulletins[8, 24:30] *= 3
    twin(rng, drawn, 9, 10)
    drawn.stuff(9, 27, 60)
    drawn.bulletins[drawn.region == 7, 28] *= 12
    return drawn


@pytest.fixture(scope="module")
def judged(databases: Databases) -> Iterator[tuple[Settings, Mapping[str, Alert]]]:
    """A statistical alert of each kind."""
    found: dict[str, Alert] = {}
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        write(sessions, unlikely(), is_hourly=True)
        with sessions.begin() as session:
            mine = HourlyStats.constituency_id == key_of(6)
            hour = HourlyStats.hour == OPENS + timedelta(hours=9)
            session.execute(update(HourlyStats).where(mine, hour).values(votes_rejected=60))
        settings = Settings.model_validate({"database": {"url": url}})
        evaluator(sessions, voting_hours=48).work_off()
        with sessions() as session:
            for alert in session.scalars(select(Alert).order_by(Alert.gravity.desc(), Alert.id)):
                kind = f"{alert.type} {alert.details.get('kind', '')}".strip()
                found.setdefault(kind, alert)
        yield settings, found


@pytest.mark.parametrize("kind", KINDS)
def test_a_statistic_is_computed_again_from_the_hours_of_the_peers(
    judged: tuple[Settings, Mapping[str, Alert]], kind: str, tmp_path: Path
) -> None:
    """By formulas that the script brings along; with other numbers it does not hold."""
    settings, found = judged
    with open_sessions(settings.database.url) as sessions:
        bundle = export(sessions, found[kind], tmp_path, settings)
    status, told = check(bundle)
    assert (0, True) == (status, "it holds" in told), told
    with (bundle / "hours.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    contracts = found[kind].details.get("contracts") or [contract_of(bundle)]
    worst = found[kind].details["worst_hour"]
    for row in rows:
        # Half of everything is no other share: of a region, only one hour is changed.
        if row["contract"] in contracts and (len(contracts) == 1 or row["utc"] == worst):
            for name, part in (("bulletins", 2), ("votes", 4), ("votes_rejected", 4)):
                row[name] = str(int(row[name]) // part)
    with (bundle / "hours.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert 1 == check(bundle)[0]


def contract_of(bundle: Path) -> str:
    """Whose finding it is."""
    return str(json.loads((bundle / "finding.json").read_text(encoding="utf-8"))["contract_id"])


def test_the_raw_lines_of_an_hour_are_counted_again(databases: Databases, tmp_path: Path) -> None:
    """A statistic rests on numbers, and the numbers of its own constituency on lines."""
    plan = Plan(seed=2, rolls=(150,) * 10, constituencies=10, regions=1, hours=4, options=(2,))
    election = simulated(tmp_path / "files", plan)
    with databases.fresh("sqlite") as url:
        # A low bar: clean votings differ, too.
        low = {"spike_z": 0.5, "drop_z": 0.5, "votes_z_more": 0, "least_off": 1}
        watch = {"inbox": election.folder / "drop", "archive": tmp_path / "archive"}
        settings = Settings.model_validate(
            {"database": {"url": url}, "watch": watch, "statistics": low}
        )
        once.once(settings)
        with open_sessions(url) as sessions:
            with sessions() as session:
                query = select(Alert).where(Alert.type.in_(("unusual_spike", "unusual_drop")))
                alerts = session.scalars(query.order_by(Alert.gravity.desc()).limit(3)).all()
            assert len(alerts) == 3
            for alert in alerts:
                bundle = export(sessions, alert, tmp_path, settings)
                status, told = check(bundle)
                assert (0, False) == (status, "\n0 raw lines" in told), told
    alter(bundle)
    assert 1 == check(bundle)[0]
