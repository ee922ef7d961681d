"""kill -9 at any moment: the tables are those of a run that nobody disturbed."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from ingestd import once
from ingestd.config import Settings
from ingestd.models import FileProcessing
from ingestd.pipeline.step import Step
from ingestd.simulate import Packing, Plan, defect_names

from .conftest import DATABASES, Databases, Did, Simulated, Voting, csv_of, simulated, tx_of, zip_of
from .oracle import Snapshot, differences, judge, snapshot, unsound, untrue
from .running import environment, is_empty, open_sessions, soon
from .steps import CRASH_VARIABLE, Steps
from .test_any_order import ingest_all
from .victims import Mode, Victim

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

BATCH_ROWS = 10
EVENTFUL_FILES = 10
SMALL_BATCHES = {"INGESTD_INGEST__BATCH_ROWS": str(BATCH_ROWS)}


def contents(*folders: Path) -> Counter[str]:
    """The digests of all files below the folders, reasons apart."""
    return Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and ".reason.txt" not in path.name
    )


# At each step -------------------------------------------------------------------------------


def eventful_inbox(inbox: Path) -> None:
    """Files that take every step there is, in the order of their times."""
    voting = Voting()
    rows = voting.ballots(8, 12)
    bad = [f"{row};extra;columns" for row in voting.ballots(11, 15)]
    unslotted = voting.ballots(12, 3)
    rolled = [rows[0].rsplit(";", 1)[0] + ";-1", *voting.ballots(13, 2)]
    files = {
        voting.name(8): csv_of([*rows, "torn"]),
        "hours.zip": zip_of(
            {voting.name(hour): csv_of(voting.ballots(hour, 6)) for hour in (9, 10)}
        ),
        # Two batches are in the tables before it turns out to be unfit.
        voting.name(11): csv_of([*voting.ballots(11, BATCH_ROWS), *bad]),
        "broken.zip": zip_of({voting.name(14): b"x"})[:-9],
        f"again/{voting.name(8)}": csv_of([*rows, "torn"]),
        f"{voting.contract}/export.csv": csv_of(unslotted),
        voting.name(12): csv_of(unslotted),
        # The same hour with rows left out, changed and added.
        f"later/{voting.name(8)}": csv_of(
            [*rows[3:], voting.vote(8 * 60 + 5, tx=tx_of(rows[2])), voting.issue(8 * 60 + 6)]
        ),
        voting.name(13): csv_of(rolled),
        voting.name(15): b"",
    }
    for number, (name, content) in enumerate(files.items()):
        path = inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_700_000_000 + number,) * 2)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    """A folder on another file system."""
    folder = Path(tempfile.mkdtemp(prefix="ingestd-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Eventful:
    """The eventful inbox, what an undisturbed run makes of it, and the steps of that run."""

    inbox: Path
    expected: Snapshot
    jobs: Counter[tuple[str, str]]
    steps: Counter[Step]


@pytest.fixture(scope="module")
def eventful(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory, elsewhere: Path
) -> Eventful:
    """Runs it once, undisturbed, with an archive on another file system."""
    folder = tmp_path_factory.mktemp("eventful")
    eventful_inbox(folder / "files")
    shutil.copytree(folder / "files", folder / "inbox")
    steps = Steps()
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        settings = Settings.model_validate(
            {
                "database": {"url": url},
                "ingest": {"batch_rows": BATCH_ROWS},
                "watch": {
                    "inbox": folder / "inbox",
                    "archive": elsewhere / "undisturbed",
                    "quarantine": folder / "quarantine",
                },
            }
        )
        assert [] == once.once(settings, on_step=steps).waiting
        assert [] == unsound(sessions)
        return Eventful(folder / "files", snapshot(sessions), jobs_in(url), steps.told)


def jobs_in(url: str) -> Counter[tuple[str, str]]:
    """How many jobs of each content stand in which state."""
    with open_sessions(url) as sessions, sessions() as session:
        columns = (FileProcessing.sha256, FileProcessing.status)
        return Counter((row[0], row[1]) for row in session.execute(select(*columns)))


def test_the_eventful_inbox_takes_every_step(eventful: Eventful) -> None:
    """Else a step would be armed that never comes."""
    assert set(Step) == set(eventful.steps)
    assert EVENTFUL_FILES == sum(path.is_file() for path in eventful.inbox.rglob("*"))


@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", DATABASES)
@pytest.mark.parametrize("step", Step, ids=lambda step: str(step).replace(" ", "-"))
def test_kill_9_at_each_step_changes_nothing(
    eventful: Eventful, scene: Scene, step: Step, kind: str, did: Did
) -> None:
    """The first and the last time that the step is taken."""
    times = sorted({1, eventful.steps[step]})
    did(
        "SIGKILL at the first and the last time of each step, in an inbox with every trouble",
        kills=len(times),
        files=len(times) * EVENTFUL_FILES,
    )
    for number in times:
        scene.die_and_go_on(eventful, kind, f"{step}:{number}")


@pytest.mark.campaign
@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", DATABASES)
def test_kill_9_at_every_time_of_every_step_changes_nothing(
    eventful: Eventful, scene: Scene, kind: str, did: Did
) -> None:
    """All of them."""
    did("SIGKILL every time that a step is taken", kills=eventful.steps.total())
    for step, most in eventful.steps.items():
        for number in range(1, most + 1):
            scene.die_and_go_on(eventful, kind, f"{step}:{number}")


@dataclass
class Scene:
    """Where processes die: folders of their own for each death."""

    databases: Databases
    folder: Path
    elsewhere: Path
    deaths: int = 0

    def die_and_go_on(self, eventful: Eventful, kind: str, crash_at: str) -> None:
        """One run that dies there, one that goes on: then all is as if nothing had been."""
        self.deaths += 1
        folder = self.folder / str(self.deaths)
        archive = self.elsewhere / str(self.deaths)
        shutil.copytree(eventful.inbox, folder / "inbox")
        settings = SMALL_BATCHES | {"INGESTD_WATCH__ARCHIVE": str(archive)}
        with self.databases.fresh(kind) as url:
            dying = Victim(folder, url, settings=settings | {CRASH_VARIABLE: crash_at})
            assert -signal.SIGKILL == dying.wait(), dying.log()
            heir = Victim(folder, url, settings=settings)
            assert 0 == heir.wait(), heir.log()
            with open_sessions(url) as sessions:
                assert [] == unsound(sessions)
                assert [] == differences(eventful.expected, snapshot(sessions))
            assert eventful.jobs == jobs_in(url)
            assert [] == nowhere(url, archive, folder / "quarantine")
        assert is_empty(folder / "inbox")
        assert contents(eventful.inbox) == contents(archive, folder / "quarantine")
        assert [] == [path for path in archive.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def scene(databases: Databases, tmp_path: Path, elsewhere: Path) -> Scene:
    """A place to die."""
    return Scene(databases, tmp_path, Path(tempfile.mkdtemp(dir=elsewhere)))


def nowhere(url: str, *folders: Path) -> list[str]:
    """Jobs that do not say where their file was put, or say it wrongly."""
    with open_sessions(url) as sessions, sessions() as session:
        return [
            f"{job.path} {job.status}: {job.archived_to}"
            for job in session.scalars(select(FileProcessing))
            if not job.archived_to
            or not Path(job.archived_to).is_file()
            or not any(Path(job.archived_to).is_relative_to(folder) for folder in folders)
        ]


def test_the_product_knows_no_crash_points(tmp_path: Path) -> None:
    """What arms them in tests is a setting that it has never heard of."""
    told = environment(tmp_path, f"sqlite:///{tmp_path / 'ingestd.db'}")
    done = subprocess.run(
        [sys.executable, "-m", "ingestd.cli", "once"],
        env=told | {CRASH_VARIABLE: "loaded:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 2 == done.returncode
    assert "INGESTD_TEST__CRASH_AT: unknown" in done.stderr


# At random instants -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """Many small files and some of many batches, bare or in ZIPs."""
    packing: Packing = request.param
    plan = Plan(
        seed=77,
        constituencies=1,
        hours=4,
        rolls=(400,),
        options=(2,),
        packing=packing,
        whole=True,
        defects=defect_names(),
        transactions_in_truth=True,
    )
    return simulated(tmp_path_factory.mktemp("packed") / "files", plan)


@pytest.fixture(scope="module")
def undisturbed(packed: Simulated, databases: Databases) -> tuple[Snapshot, float]:
    """The tables after a run that nobody disturbed, and its seconds of CPU.

    The clock on the wall may have counted what others did meanwhile; later runs would then end
    before they are killed.
    """
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        started = time.process_time()
        ingest_all(sessions, packed.files, batch_rows=40)
        seconds = time.process_time() - started
        judge(sessions)
        assert [] == untrue(sessions, packed.truth)
        return snapshot(sessions), seconds


@dataclass
class Murderer:
    """Runs the program and kills it, until it comes to its end."""

    folder: Path
    url: str
    rng: random.Random
    killed: int = 0

    def run_to_the_end(self, *, kills: int, seconds: float) -> None:
        """Kill it so many times, spread over a run that would take `seconds`."""
        for _ in range(kills):
            victim = self._victim("once")
            victim.process.join(0.1 + self.rng.uniform(0, 2 * seconds / (kills + 1)))
            if self._has_ended(victim):
                return
        assert self._has_ended(self._victim("once"), patiently=True)

    def kill_the_daemon(self, *, kills: int, until: threading.Event) -> None:
        """Kill the daemon so many times while files are dropped; then let it empty the inbox."""
        for _ in range(kills):
            victim = self._victim("run")
            victim.process.join(self.rng.uniform(0.1, 1.2))
            victim.kill()
            self.killed += 1
        victim = self._victim("run")
        until.wait()
        soon(lambda: is_empty(self.folder / "inbox"), seconds=180)
        # A process that has only just begun does not hear a SIGTERM yet.
        soon(lambda: f":{victim.process.pid}" in victim.log())
        assert 0 == victim.stop()

    def count(self, election: Simulated) -> dict[str, int]:
        """What the report adds up."""
        rows = sum(record["lines"] for record in election.truth["files"])
        return {"kills": self.killed, "files": len(election.files), "rows": rows}

    def _victim(self, mode: Mode) -> Victim:
        return Victim(
            self.folder,
            self.url,
            mode,
            settings={
                "INGESTD_INGEST__BATCH_ROWS": "40",
                "INGESTD_WATCH__SETTLE_SECONDS": "0.1",
                "INGESTD_WATCH__POLL_SECONDS": "0.1",
            },
        )

    def _has_ended(self, victim: Victim, *, patiently: bool = False) -> bool:
        if victim.is_alive and not patiently:
            victim.kill()
        status = victim.wait()
        self.killed += status == -signal.SIGKILL
        assert status in (0, -signal.SIGKILL), victim.log()
        return status == 0


def drop(files: Path, folder: Path) -> None:
    """Copy a drop into the inbox."""
    shutil.copytree(files, folder / "inbox", dirs_exist_ok=True)


def drop_under_load(folders: list[Path], inbox: Path, *, seconds: float) -> None:
    """Move the files of several drops in, one after the other, spread over some seconds."""
    files = [(folder, path) for folder in folders for path in sorted(folder.rglob("*"))]
    files = [(folder, path) for folder, path in files if path.is_file()]
    for folder, path in files:
        target = inbox / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.part")
        shutil.copy2(path, partial)
        while target.exists():  # its earlier publication is still waiting
            time.sleep(0.05)
        partial.rename(target)
        time.sleep(seconds / len(files))


def kills(campaign: Packing) -> pytest.MarkDecorator:
    """20 kills with each packing; in the campaign 200 with one, on each database."""
    few: list[tuple[Packing, int]] = [("csv", 20), ("zip-of-zips", 20)]
    many = pytest.param(campaign, 200, marks=pytest.mark.campaign)
    return pytest.mark.parametrize(("packed", "kills"), [*few, many], indirect=["packed"])


@pytest.mark.promise(1, 4)
@kills(campaign="zip-of-zips")
def test_kill_9_at_any_moment_changes_nothing(
    packed: Simulated,
    undisturbed: tuple[Snapshot, float],
    migrated_url: str,
    tmp_path: Path,
    kills: int,
    did: Did,
) -> None:
    """Every line is there exactly once, and every file is in archive or quarantine."""
    expected, seconds = undisturbed
    murderer = Murderer(tmp_path, migrated_url, random.Random(kills))
    for name, part in (("drop", 0.75), ("drop-2", 0.25)):
        drop(packed.folder / name, tmp_path)
        murderer.run_to_the_end(kills=round(kills * part), seconds=seconds * part)
    did("SIGKILL of `once` at random instants", **murderer.count(packed))
    assert murderer.killed >= kills // 3
    same_as(expected, packed, migrated_url, tmp_path)


@pytest.mark.promise(1)
@kills(campaign="csv")
def test_kill_9_of_the_daemon_under_load_changes_nothing(
    packed: Simulated,
    undisturbed: tuple[Snapshot, float],
    migrated_url: str,
    tmp_path: Path,
    kills: int,
    did: Did,
) -> None:
    """While files arrive it is killed and started again, over and over."""
    expected, _ = undisturbed
    (tmp_path / "inbox").mkdir()
    all_there = threading.Event()
    murderer = Murderer(tmp_path, migrated_url, random.Random(kills))

    def drop_all() -> None:
        folders = [packed.folder / "drop", packed.folder / "drop-2"]
        drop_under_load(folders, tmp_path / "inbox", seconds=kills * 0.65)
        all_there.set()

    dropper = threading.Thread(target=drop_all)
    dropper.start()
    murderer.kill_the_daemon(kills=kills, until=all_there)
    dropper.join()
    did("SIGKILL of `run` at random instants, under load", **murderer.count(packed))
    same_as(expected, packed, migrated_url, tmp_path)


def same_as(expected: Snapshot, election: Simulated, url: str, folder: Path) -> None:
    """Tables and folders are those of a run that nobody disturbed."""
    with open_sessions(url) as sessions:
        judge(sessions)
        assert [] == unsound(sessions)
        assert [] == untrue(sessions, election.truth)
        assert [] == differences(expected, snapshot(sessions))
    assert Counter() == contents(folder / "inbox")
    dropped = contents(election.folder / "drop", election.folder / "drop-2")
    assert dropped == contents(folder / "archive", folder / "quarantine")
