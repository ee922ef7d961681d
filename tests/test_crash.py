"""kill -9 at any moment: the tables are those of a run that nobody disturbed."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from ingestd.simulate import Packing, Plan, defect_names

from .conftest import Databases, Simulated, simulated
from .oracle import Snapshot, differences, snapshot, unsound, untrue
from .running import ONCE, environment, open_sessions
from .test_any_order import ingest_all


@dataclass
class Murderer:
    """Runs the real program and kills it, until it comes to its end."""

    folder: Path
    url: str
    rng: random.Random
    killed: int = 0

    def run_once(self, *, longest: float | None) -> bool:
        """Run; kill it within `longest` seconds of its first sign of work. Says if it was done."""
        process = subprocess.Popen(
            [sys.executable, "-c", ONCE],
            env=environment(self.folder, self.url, INGESTD_INGEST__BATCH_ROWS="40"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        with process:
            process.stdout.readline()
            if longest is not None:
                time.sleep(self.rng.uniform(0, longest))
                process.send_signal(signal.SIGKILL)
            _, errors = process.communicate(timeout=120)
        if process.returncode == -signal.SIGKILL:
            self.killed += 1
            return False
        assert process.returncode == 0, errors.decode()
        return True

    def run_to_the_end(self, *, kills: int, seconds: float) -> None:
        """Kill it so many times, spread over a run that would take `seconds`."""
        for _ in range(kills):
            if self.run_once(longest=2 * seconds / (kills + 1)):
                return
        assert self.run_once(longest=None)


def drop(files: Path, folder: Path) -> None:
    """Copy a drop into the inbox."""
    shutil.copytree(files, folder / "inbox", dirs_exist_ok=True)


def contents(*folders: Path) -> Counter[str]:
    """The digests of all files below the folders, reasons apart."""
    return Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and ".reason.txt" not in path.name
    )


@pytest.fixture(scope="module", params=["csv", "zip-of-zips"])
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
    """The tables after a run that nobody disturbed, and the seconds that it took."""
    with databases.fresh("sqlite") as url, open_sessions(url) as sessions:
        started = time.monotonic()
        ingest_all(sessions, packed.files, batch_rows=40)
        seconds = time.monotonic() - started
        assert [] == untrue(sessions, packed.truth)
        return snapshot(sessions), seconds


@pytest.mark.parametrize(
    "kills", [6, pytest.param(20, marks=pytest.mark.slow)], ids=["few kills", "many kills"]
)
def test_kill_9_at_any_moment_changes_nothing(
    packed: Simulated,
    undisturbed: tuple[Snapshot, float],
    migrated_url: str,
    tmp_path: Path,
    kills: int,
) -> None:
    """Every line is there exactly once, and every file is in archive or quarantine."""
    expected, seconds = undisturbed
    murderer = Murderer(tmp_path, migrated_url, random.Random(kills))
    for name, part in (("drop", 0.75), ("drop-2", 0.25)):
        drop(packed.folder / name, tmp_path)
        murderer.run_to_the_end(kills=round(kills * part), seconds=seconds * part)
    assert murderer.killed >= kills // 3
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
        assert [] == untrue(sessions, packed.truth)
        assert [] == differences(expected, snapshot(sessions))
    assert Counter() == contents(tmp_path / "inbox")
    dropped = contents(packed.folder / "drop", packed.folder / "drop-2")
    assert dropped == contents(tmp_path / "archive", tmp_path / "quarantine")
