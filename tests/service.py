"""Tries the service on a machine of its own and writes docs/service.md; `make service` calls it."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from .machine import what_is_missing
from .running import ROOT

TARGET = ROOT / "docs" / "service.md"
TESTS = "tests/test_service.py"

_INTRODUCTION = """\
# The service, tried

This page is written by `make service`; nobody edits it. A Debian 12 is booted with systemd in a
container, without a network. ingestd is installed there from its wheel, made a service by
`ingestd unit install --now`, and lives through what follows, in this order. After each fault the
tables hold every row once and `ingestd fsck` finds nothing.
"""


def main() -> int:
    """Run, read, write; the exit status is that of the tests."""
    if missing := what_is_missing():
        sys.exit(f"no machine can be booted here: {missing}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest = (sys.executable, "-m", "pytest", "-q", "-m", "campaign", "-o")
        told = ("junit_family=xunit1", f"--junitxml={report}", TESTS)
        status = subprocess.run([*pytest, *told], cwd=ROOT, check=False).returncode
        cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it a moment ago
    minutes = (time.monotonic() - started) / 60
    TARGET.write_text("\n".join(_page(cases, minutes)), encoding="utf-8")
    print(f"wrote {TARGET}")
    return status


def _page(cases: list[ET.Element], minutes: float) -> Iterator[str]:
    yield _INTRODUCTION
    commit = ("git", "describe", "--always")
    told = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=False)
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield f"- {now}, commit {told.stdout.strip()}, {minutes:.0f} minutes"
    yield f"- {platform.system()} {platform.release()}"
    broken = sum(_result(case) != "held" for case in cases)
    yield f"- {len(cases)} cases, {broken or 'none'} broken"
    yield ""
    yield "| what | what was done | seconds | result |"
    yield "|---|---|---|---|"
    for case in cases:
        yield f"| {' | '.join([_name(case), _deeds(case), _seconds(case), _result(case)])} |"
    yield ""


def _name(case: ET.Element) -> str:
    name, _, way = case.get("name", "").removeprefix("test_").partition("[")
    told = name.replace("_", " ")
    return f"{told} ({way.removesuffix(']')})" if way else told


def _deeds(case: ET.Element) -> str:
    properties = case.iter("property")
    return "; ".join(each.get("value", "") for each in properties if each.get("name") == "did")


def _seconds(case: ET.Element) -> str:
    return f"{float(case.get('time', '0')):.0f}"


def _result(case: ET.Element) -> str:
    troubles = [each.tag for each in case if each.tag in ("failure", "error", "skipped")]
    return f"BROKEN: {troubles[0]}" if troubles else "held"


if __name__ == "__main__":
    sys.exit(main())
