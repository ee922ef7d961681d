"""Runs what people would use instead: makes each its environment, gives it the files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.databases import Database
from bench.drops import Drop
from bench.results import ROOT, Run

SCRIPTS = ROOT / "bench" / "alternatives"
NODE = "Node, reading only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A script, what its environment needs, and on which databases it can work."""

    name: str
    script: str
    packages: tuple[str, ...]
    databases: tuple[str, ...] = ("sqlite", "pg")
    about: str


ORM = Alternative(
    name="ORM pipeline",
    script="orm.py",
    packages=("sqlalchemy>=2.0.41,<2.2", "pydantic>=2.5,<3", "psycopg[binary]>=3.2.1"),
    about="one Pydantic model and one `session.add` a row, commit per 1 000 rows",
)
ALTERNATIVES = (
    ORM,
    Alternative(
        name="pandas to_sql",
        script="pandas_to_sql.py",
        packages=("pandas>=2.2", "sqlalchemy>=2.0.41,<2.2", "psycopg[binary]>=3.2.1"),
        about="`read_csv` in chunks of 10 000 rows, `to_sql`; text and numbers, no index",
    ),
    Alternative(
        name="dlt filesystem",
        script="dlt_filesystem.py",
        packages=("dlt[sqlalchemy,postgres,filesystem]>=1.5", "pandas>=2.2"),
        about="dlt's filesystem source with `read_csv` into its destination for the database",
    ),
    Alternative(
        name="sqlite-utils insert",
        script="sqlite_utils_insert.py",
        packages=("sqlite-utils>=3.37",),
        databases=("sqlite",),
        about="the command, once for each file, its start in the time; no index",
    ),
)


def run_alternative(alternative: Alternative, database: Database, drop: Drop, folder: Path) -> Run:
    """Let it load the files into a database of its own."""
    python = _environment(alternative.name, alternative.packages, folder)
    with database.empty() as url:
        command = [str(python), str(SCRIPTS / alternative.script), url]
        return _timed(command, drop)


def versions(ran: Collection[str], folder: Path) -> str:
    """What exactly these alternatives were."""
    named = [
        f"{package} {_version(_environment(each.name, each.packages, folder), package)}"
        for each in ALTERNATIVES
        if each.name in ran
        for package in [re.split(r"[\[>=]", each.packages[0])[0]]
    ]
    return ", ".join(named)


def _version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not installed"


def read_by_node(drop: Drop) -> Run | None:
    """Read the files with Node, where there is Node; nothing is stored."""
    node = shutil.which("node")
    return (
        _timed([node, "--max-old-space-size=8192", str(SCRIPTS / "reading.js")], drop)
        if node
        else None
    )


def tool(name: str, package: str, folder: Path) -> Path:
    """A command of a package, installed beside."""
    return _environment(name, (package,), folder).with_name(name)


def _timed(command: Sequence[str], drop: Drop) -> Run:
    done = subprocess.run(
        [*command, *map(str, drop.paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[1]}: {done.stderr[-2_000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    if told["rows"] != drop.rows:
        raise RuntimeError(f"{command[1]}: {told['rows']} rows instead of {drop.rows}")
    return Run(seconds=told["seconds"], files=drop.files, rows=drop.rows, bytes=drop.bytes)


def _environment(name: str, packages: Sequence[str], folder: Path) -> Path:
    """The Python of an environment with these packages, made when it is not there."""
    place = folder / "environments" / name.replace(" ", "-")
    python, note = place / "bin" / "python", place / "packages.txt"
    wanted = "\n".join(packages)
    if note.exists() and note.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages], check=True, env=os.environ | {"PYTHONPATH": ""})
    note.write_text(wanted, encoding="utf-8")
    return python
