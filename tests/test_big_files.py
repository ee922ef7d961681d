"""Files larger than memory: flat memory, and a kill in the middle costs what was not committed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import func, select

from ingestd.models import Constituency, FileProcessing, HourlyStats, Transaction, table_of
from ingestd.simulate import Packing, Plan

from .conftest import DATABASES, Databases, Did, Simulated, simulated
from .running import ONCE, environment, open_sessions
from .steps import CRASH_VARIABLE, STEPS_VARIABLE
from .victims import Victim

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the real program: how it ended, and the most memory its processes held."""

    status: int
    most_mib: float
    seconds: float


def run_once(folder: Path, url: str, *, kill_at_line: int | None = None, **settings: str) -> Run:
    """Run the real program on the inbox; SIGKILL it when the ledger has come to a line."""
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", ONCE],
        env=environment(folder, url, **settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        most = looks = 0
        while process.poll() is None:
            most = max(most, memory_of_tree(process.pid))
            looks += 1
            if kill_at_line and looks % 10 == 0 and lines_read(url) >= kill_at_line:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.05)
        errors = process.stderr.read().decode() if process.stderr else ""
    assert process.returncode in (0, -signal.SIGKILL), errors
    return Run(process.returncode, most / MIB, time.monotonic() - started)


def memory_of_tree(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    total = 0
    with suppress(FileNotFoundError, ProcessLookupError):
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory_of_tree(int(child))
    return total


def lines_read(url: str) -> int:
    """How far the ledger has come."""
    with open_sessions(url) as sessions, sessions() as session:
        return session.scalar(select(func.max(FileProcessing.rows_read))) or 0


def check(url: str, election: Simulated) -> None:
    """The one constituency is what the truth says: totals, hours, rows, books."""
    ((contract, told),) = election.truth["constituencies"].items()
    (record,) = election.truth["files"]
    with open_sessions(url) as sessions, sessions() as session:
        job = session.scalars(select(FileProcessing)).one()
        found = session.scalars(select(Constituency)).one()
        hours = {
            f"{hour.hour:%Y-%m-%dT%H:00:00Z}": {name: getattr(hour, name) for name in counts}
            for hour in session.scalars(select(HourlyStats))
            for counts in [next(iter(told["hours"].values()))]
        }
        columns = table_of(Transaction).c
        rows, lines = session.execute(
            select(func.count(), func.count(columns.line_number.distinct()))
        ).one()
    assert ("completed", record["lines"]) == (job.status, job.rows_stored)
    assert (record["lines"], record["lines"]) == (rows, lines)
    assert told["hours"] == hours
    assert (contract, told["bulletins_issued"], told["votes_cast"]) == (
        found.contract_id,
        found.bulletins_issued,
        found.votes_cast,
    )


def whole_voting(folder: Path, packing: Packing, voters: int) -> Simulated:
    """One file with the whole voting of one constituency."""
    plan = Plan(
        seed=3,
        constituencies=1,
        rolls=(voters,),
        options=(2,),
        hourly=False,
        whole=True,
        folders=False,
        packing=packing,
    )
    return simulated(folder / "files", plan)


def drop(election: Simulated, folder: Path) -> None:
    """Put the file into the inbox: hard links cost no time."""
    (folder / "inbox").mkdir(parents=True)
    for found in election.files:
        (folder / "inbox" / found.relative).hardlink_to(found.path)


BATCH_ROWS = 100


@dataclass(frozen=True, slots=True)
class Course:
    """How a run of `once` went: when it began, stored each batch, and ended, in seconds."""

    began: float
    stored: list[float]
    ended: float


def run_victim(folder: Path, url: str, **settings: str) -> Course:
    """Run it to its end, undisturbed from here on."""
    told = folder / "steps.json"
    began = time.monotonic()
    victim = Victim(folder, url, settings=settings | {STEPS_VARIABLE: str(told)})
    assert 0 == victim.wait(1800), victim.log()
    return Course(began, json.loads(told.read_text()), time.monotonic())


def kill_after(folder: Path, url: str, batches: int, **settings: str) -> None:
    """Let it kill itself behind so many batches."""
    victim = Victim(folder, url, settings=settings | {CRASH_VARIABLE: f"stored:{batches}"})
    assert -signal.SIGKILL == victim.wait(1800), victim.log()


@pytest.mark.promise(3, 4)
@pytest.mark.parametrize("kind", DATABASES)
@pytest.mark.parametrize("packing", ["csv", "zip"])
def test_what_was_committed_before_a_kill_is_not_read_in_again(
    databases: Databases, tmp_path: Path, packing: Packing, kind: str, did: Did
) -> None:
    """Killed at 10, 50 and 90 %: the second run stores the other batches, and only those."""
    election = whole_voting(tmp_path, packing, 1_500)
    (record,) = election.truth["files"]
    batches = -(-record["lines"] // BATCH_ROWS)
    did(f"SIGKILL at 10, 50 and 90 % of {batches} batches", kills=3, rows=3 * record["lines"])
    for percent in (10, 50, 90):
        folder = tmp_path / str(percent)
        drop(election, folder)
        done = batches * percent // 100
        small = {"INGESTD_INGEST__BATCH_ROWS": str(BATCH_ROWS)}
        with databases.fresh(kind) as url:
            kill_after(folder, url, done, **small)
            assert batches - done == len(run_victim(folder, url, **small).stored)
            check(url, election)


@pytest.mark.alone
@pytest.mark.campaign
@pytest.mark.promise(3, 4)
@pytest.mark.parametrize("kind", DATABASES)
@pytest.mark.parametrize("packing", ["csv", "zip"])
def test_the_rest_after_a_kill_takes_little_more_than_its_share(
    databases: Databases, tmp_path: Path, packing: Packing, kind: str, did: Did
) -> None:
    """Its share is the time that an undisturbed run took from the same batch to its end.

    It may take once more what the program takes to start, and to read what came before: whether
    that is still the same shows only its SHA-256, and into a ZIP there is no way but through its
    beginning, for the daemon and for the process that reads for it.
    """
    election = whole_voting(tmp_path, packing, 200_000)
    (record,) = election.truth["files"]
    reading = seconds_to_read(election.files[0].path) * (2 if packing == "zip" else 1)
    drop(election, tmp_path / "whole")
    with databases.fresh(kind) as url:
        starting = seconds_to_start(tmp_path / "nothing", url)
        whole = run_victim(tmp_path / "whole", url)
    ratios, late = {}, []
    for percent in (10, 50, 90):
        folder = tmp_path / str(percent)
        drop(election, folder)
        done = len(whole.stored) * percent // 100
        with databases.fresh(kind) as url:
            kill_after(folder, url, done)
            rest = run_victim(folder, url)
            check(url, election)
        share = whole.ended - whole.stored[done - 1]
        took = rest.ended - rest.began - starting
        ratios[percent] = took / share
        late += [percent] if took >= 1.3 * share + reading * percent / 100 else []
    shutil.rmtree(tmp_path)
    told = ", ".join(f"{ratio:.2f} of its share from {at} %" for at, ratio in ratios.items())
    more = f"{reading:.1f} s for its bytes alone"
    did(f"{record['bytes'] // MIB} MiB as {packing}, {kind}: {told}; {more}", kills=3)
    assert [] == late


def seconds_to_start(folder: Path, url: str) -> float:
    """What a run takes that finds nothing to do; the second one, for the first starts a server."""
    (folder / "inbox").mkdir(parents=True)
    courses = [run_victim(folder, url) for _ in range(2)]
    return courses[-1].ended - courses[-1].began


def seconds_to_read(path: Path) -> float:
    """What it takes to read a file, or a ZIP's only member, and its SHA-256 once."""
    began = time.monotonic()
    with ExitStack() as stack:
        source: IO[bytes] = stack.enter_context(path.open("rb"))
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(source))
            source = stack.enter_context(archive.open(archive.namelist()[0]))
        digest = hashlib.sha256()
        while block := source.read(MIB):
            digest.update(block)
    return time.monotonic() - began


@pytest.mark.promise(21)
@pytest.mark.parametrize("packing", ["csv", "zip"])
def test_memory_does_not_grow_with_the_file(
    databases: Databases, tmp_path: Path, packing: Packing, did: Did
) -> None:
    """A file of 60 MB costs what a third of it costs, but for what the allocator keeps.

    Batches are so small that the reader is at work for most of either file.
    """
    most = []
    for voters in (6_000, 17_000):
        folder = tmp_path / str(voters)
        election = whole_voting(folder, packing, voters)
        drop(election, folder)
        with databases.fresh("sqlite") as url:
            run = run_once(
                folder,
                url,
                INGESTD_DATABASE__SQLITE_CACHE_MB="4",
                INGESTD_INGEST__BATCH_BYTES=str(2 * MIB),
            )
            check(url, election)
        most.append(run.most_mib)
    did(f"{packing} of 60 MB: {most[0]:.0f} MiB for a third of it, {most[1]:.0f} MiB for all")
    assert most[1] < most[0] + 20


# Each packing and each database once: all four pairs would take ten minutes.
@pytest.mark.campaign
@pytest.mark.promise(3, 4, 21)
@pytest.mark.parametrize(
    ("packing", "kind"),
    [pair for pair in (("csv", "sqlite"), ("zip", "postgresql")) if pair[1] in DATABASES],
)
def test_two_gigabytes_go_through_300_mib_and_a_kill_in_the_middle(
    databases: Databases, tmp_path: Path, packing: Packing, kind: str, did: Did
) -> None:
    """The second start goes on at the checkpoint: no line twice, none missing."""
    election = whole_voting(tmp_path, packing, 550_000)
    (record,) = election.truth["files"]
    drop(election, tmp_path)
    with databases.fresh(kind) as url:
        first = run_once(tmp_path, url, kill_at_line=record["lines"] // 2)
        at = lines_read(url)
        second = run_once(tmp_path, url)
        did(
            f"{record['bytes'] / 1e9:.1f} GB as {packing}, killed at line {at} of "
            f"{record['lines']}: {first.seconds:.0f} s and {second.seconds:.0f} s, "
            f"{max(first.most_mib, second.most_mib):.0f} MiB at most",
            kills=1,
            rows=record["lines"],
        )
        check(url, election)
    # pytest keeps the folders of the last three runs.
    shutil.rmtree(tmp_path)
    assert (-signal.SIGKILL, 0) == (first.status, second.status)
    assert record["lines"] / 2 <= at < record["lines"]
    assert first.most_mib < 300
    assert second.most_mib < 300
