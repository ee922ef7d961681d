"""The real daemon as a process, from dropped files to an empty inbox: time, CPU, memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.databases import ask
from bench.drops import Drop
from bench.results import ROOT, Run
from ingestd.config import SECTIONS

MB = 1_000_000
LONGEST_SECONDS = 7_200
START_SECONDS = 60
REST_SECONDS = 180
_AT_REST = 0.05  # seconds of CPU in one second
STOP_SECONDS = 60
# An ingestd without this setting is one worker, and is measured as that.
HAS_WORKERS = "workers" in SECTIONS["ingest"].model_fields


class BenchmarkFailed(Exception):
    """What was to be measured did not do its work; figures of it would mean nothing."""


def environment(folder: Path, url: str, workers: int) -> dict[str, str]:
    """The settings of a measured process; all others are the defaults."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith("INGESTD_")}
    own = {
        "DATABASE__URL": url,
        "WATCH__INBOX": str(folder / "inbox"),
        "WATCH__ARCHIVE": str(folder / "archive"),
        "WATCH__QUARANTINE": str(folder / "quarantine"),
        "LOG__FORMAT": "json",
    }
    if workers > 1 and HAS_WORKERS:
        own["INGEST__WORKERS"] = str(workers)
    return usual | {"PYTHONPATH": str(ROOT)} | {f"INGESTD_{key}": own[key] for key in own}


@dataclass
class Daemon:
    """A running `ingestd run` in a folder of its own."""

    folder: Path
    url: str
    process: subprocess.Popen[bytes]
    _drops: int = field(default=0)

    @property
    def inbox(self) -> Path:
        """Where files arrive."""
        return self.folder / "inbox"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "log.jsonl"

    def told(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of an event."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in told if line["event"] == event]

    def take(self, drop: Drop, *, is_copied: bool = False) -> Run:
        """Let it take files that are renamed into place all at once, until the inbox is empty.

        They lie in the inbox before, under names that say that they are on their way. Hard links
        do, unless the same content was dropped before: then it has to be another file.
        """
        waiting = [self.inbox / f"{path.name}.part" for path in drop.paths]
        for path, place in zip(drop.paths, waiting, strict=True):
            _put(path, place, is_copied=is_copied)
        time.sleep(1)
        with watched(self.process) as cost:
            began = time.monotonic()
            for place in waiting:
                place.rename(place.with_suffix(""))
            self.wait_until_empty()
            seconds = time.monotonic() - began
        return Run(
            seconds=seconds,
            files=drop.files,
            rows=drop.rows,
            bytes=drop.bytes,
            cpu_seconds=cost.cpu_seconds,
            peak_mb=cost.peak_mb,
        )

    def wait_until_empty(self) -> None:
        """Wait until everything was put away."""
        until = time.monotonic() + LONGEST_SECONDS
        # A look costs the more, the more files lie there, and all of this shares two cores.
        pause = 0.02 + len(os.listdir(self.inbox)) / 20_000  # noqa: PTH208
        while any(not name.startswith(".") for name in os.listdir(self.inbox)):  # noqa: PTH208
            if self.process.poll() is not None or time.monotonic() > until:
                raise BenchmarkFailed(f"the daemon did not take its files: {self._last_words()}")
            time.sleep(pause)

    def check(self, **jobs: int) -> None:
        """Hold the ledger against what must have become of the files."""
        query = "SELECT status, count(*) FROM file_processing GROUP BY status"
        found = {str(status): count for status, count in ask(self.url, query)}
        if found != jobs:
            raise BenchmarkFailed(f"jobs are {found}, not {jobs}: {self._last_words()}")

    def wait_until_started(self) -> None:
        """Wait for its first look."""
        until = time.monotonic() + START_SECONDS
        while not self.told("started"):
            if self.process.poll() is not None or time.monotonic() > until:
                raise BenchmarkFailed(f"the daemon did not start: {self._last_words()}")
            time.sleep(0.05)
        time.sleep(1)

    def wait_until_at_rest(self) -> None:
        """Wait until it has looked at what was stored before it, which takes it a while."""
        tree = psutil.Process(self.process.pid)
        until = time.monotonic() + REST_SECONDS
        before = -1.0
        while (now := _cpu(tree)) - before > _AT_REST and time.monotonic() < until:
            before = now
            time.sleep(1)

    def _last_words(self) -> str:
        return self.log.read_text(encoding="utf-8")[-2_000:]


@contextmanager
def daemon(folder: Path, url: str, *, workers: int = 1) -> Iterator[Daemon]:
    """A daemon on an empty inbox, for the time of the block; its folder is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inbox").mkdir(parents=True)
    with (folder / "log.jsonl").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingestd.cli", "run"],
            cwd=folder,
            env=environment(folder, url, workers),
            stderr=log,
        )
    running = Daemon(folder, url, process)
    try:
        running.wait_until_started()
        yield running
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _put(path: Path, place: Path, *, is_copied: bool) -> None:
    if is_copied:
        shutil.copyfile(path, place)
    else:
        place.hardlink_to(path)


# What it costs ------------------------------------------------------------------------------


@dataclass
class Cost:
    """CPU and memory of a process and all below it."""

    cpu_seconds: float = 0
    peak_mb: float = 0


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[Cost]:
    """Add up what a process costs during the block."""
    tree = psutil.Process(process.pid)
    cost, is_over = Cost(), threading.Event()

    def look() -> None:
        while True:
            cost.peak_mb = max(cost.peak_mb, _resident(tree) / MB)
            if is_over.wait(0.25):
                return

    looking = threading.Thread(target=look)
    before = _cpu(tree)
    looking.start()
    try:
        yield cost
    finally:
        with suppress(psutil.NoSuchProcess):
            cost.cpu_seconds = _cpu(tree) - before
        is_over.set()
        looking.join()


def _tree(root: psutil.Process) -> Sequence[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [root, *root.children(recursive=True)]
    return []


def _resident(root: psutil.Process) -> int:
    """Bytes in memory; what several processes share counts once."""
    total = 0
    for process in _tree(root):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def _cpu(root: psutil.Process) -> float:
    """Seconds of the living, and of those among their children that have ended."""
    total = 0.0
    for process in _tree(root):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
