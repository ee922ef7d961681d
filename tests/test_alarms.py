"""The alarms for Prometheus: by its own tool, by what the daemon exposes, by what the docs say."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingestd.metrics import NOTICES, OUTCOMES, ROWS, Figures
from ingestd.standing import Standing

from .running import ROOT

RULES = ROOT / "deploy" / "prometheus" / "ingestd.rules.yml"
TRIED = Path(__file__).parent / "data" / "alarms_test.yml"
ANNOTATIONS = {"summary", "meaning", "action"}


def alarms() -> list[dict[str, Any]]:
    """Every alarm of the file."""
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def promtool(*arguments: str | Path) -> str:
    """What it says; it must be content."""
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules() -> None:
    """Each expression is one, each template fits."""
    assert f"{len(alarms())} rules found" in promtool("check", "rules", RULES)


def test_each_alarm_is_raised_when_it_should_be_and_no_other() -> None:
    """Three hours of figures each; a daemon that does well raises none."""
    assert "SUCCESS" in promtool("test", "rules", TRIED)


@pytest.mark.parametrize("alarm", [each["alert"] for each in alarms()])
def test_each_alarm_is_tried(alarm: str) -> None:
    """Or a rule that never fires would pass."""
    assert f'alertname="{alarm}"' in TRIED.read_text(encoding="utf-8")


def test_each_figure_that_an_alarm_asks_for_is_exposed() -> None:
    """By name, and with the labels that are asked for."""
    page = Figures(datetime(2024, 9, 9, tzinfo=UTC), Standing()).page().decode()
    names = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    names |= set(re.findall(r"^(ingestd_\w+)", page, re.MULTILINE))
    for text in (RULES.read_text(encoding="utf-8"), TRIED.read_text(encoding="utf-8")):
        assert set(re.findall(r"\bingestd_\w+", text)) <= names
        assert set(re.findall(r'outcome="(\w+)"', text)) <= {*NOTICES, *OUTCOMES, *ROWS}


@pytest.mark.parametrize("alarm", alarms(), ids=lambda alarm: str(alarm["alert"]))
def test_each_alarm_says_what_it_means_and_what_to_do(alarm: dict[str, Any]) -> None:
    """In the alarm itself, and in the same words in the documents."""
    told = alarm["annotations"]
    assert set(told) == ANNOTATIONS
    assert alarm["labels"]["severity"] in {"critical", "warning", "info"}
    row = f"| `{alarm['alert']}` | {told['meaning']} | {told['action']} |"
    assert row in (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def test_each_figure_is_explained() -> None:
    """By its own name, in the documents."""
    page = Figures(datetime(2024, 9, 9, tzinfo=UTC), Standing()).page().decode()
    document = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    for name in re.findall(r"^# TYPE (ingestd_\w+)", page, re.MULTILINE):
        assert f"`{name}`" in document, name
