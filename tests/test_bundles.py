"""Bundles: every kind of finding is checked again with Python alone, from lines and numbers."""

from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd import daemon
from ingestd.config import Settings
from ingestd.models import Alert, Constituency
from ingestd.pipeline import rules
from ingestd.pipeline.bundle import evidence_of, write_bundle
from ingestd.simulate import Plan, defect_names

from .conftest import Databases, simulated
from .running import open_sessions

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
        limits, thresholds = daemon.read_limits(settings), daemon.thresholds_of(settings)
        evidence = evidence_of(session, alert, limits, thresholds)
        owner = alert.constituency_id and session.get_one(Constituency, alert.constituency_id)
        write_bundle(path, alert, owner.contract_id if owner else None, evidence)
    with zipfile.ZipFile(path) as bundle:
        bundle.extractall(folder / str(alert.id))
    return folder / str(alert.id)


def check(bundle: Path) -> tuple[int, str]:
    """What its own script says, with nothing but Python."""
    run = (sys.executable, "-I", "-S", str(bundle / "check.py"))
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


@pytest.fixture(scope="module")
def with_defects(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, tuple[Sessions, Alert, Settings]]]:
    """An open alert of each rule, from elections with all defects."""
    folder = tmp_path_factory.mktemp("defects")
    found: dict[str, tuple[Sessions, Alert, Settings]] = {}
    with databases.fresh("sqlite") as one, databases.fresh("sqlite") as other:
        for url, has_whole in ((one, False), (other, True)):
            plan = Plan(
                rolls=(300,) * 3,
                constituencies=3,
                hours=5,
                options=(2,),
                whole=has_whole,
                defects=defect_names(),
            )
            election = simulated(folder / str(has_whole), plan)
            settings = Settings.model_validate(
                {
                    "database": {"url": url},
                    "watch": {
                        "inbox": election.folder / "drop",
                        "archive": folder / f"a{has_whole}",
                        "quarantine": folder / f"q{has_whole}",
                    },
                    "alerts": {
                        "constituency_missing": {
                            "contracts": tuple(election.truth["expected_contracts"])
                        }
                    },
                }
            )
            daemon.once(settings)
            again = {"inbox": election.folder / "drop-2"}
            daemon.once(
                settings.model_copy(update={"watch": settings.watch.model_copy(update=again)})
            )
            with open_sessions(url) as sessions, sessions() as session:
                query = select(Alert).where(Alert.cleared_at.is_(None)).order_by(Alert.id)
                for alert in session.scalars(query):
                    found.setdefault(f"{alert.type}", (sessions, alert, settings))
        yield found


@pytest.mark.parametrize("rule", DETERMINISTIC)
def test_a_finding_is_checked_again_with_python_alone(
    with_defects: Mapping[str, tuple[Sessions, Alert, Settings]], rule: str, tmp_path: Path
) -> None:
    """Of every rule; and a line that was altered is noticed."""
    _sessions, alert, settings = with_defects[rule]
    with open_sessions(settings.database.url) as sessions:
        bundle = export(sessions, alert, tmp_path, settings)
    status, told = check(bundle)
    assert (0, True) == (status, "it holds" in told), told
    if rule not in NUMBERS_ONLY:
        alter(bundle)
        status, told = check(bundle)
        assert (1, True) == (status, "altered" in told), told
