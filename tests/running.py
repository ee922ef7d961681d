"""The real program as a process: started, watched, killed; for every test that disturbs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import make_engine, make_sessions
from ingestd.models import FileProcessing

from .steps import is_frozen

ROOT = Path(__file__).parents[1]

# What `ingestd once` does, without the time that a command line takes to start.
ONCE = """
from ingestd import log
from ingestd.config import load_settings
from ingestd.once import once
log.configure("error", "json")
summary = once(load_settings(), on_progress=lambda progress: print(progress.bytes_done, flush=True))
assert not summary.waiting, summary.waiting
"""
RUN = """
import sys
from ingestd import log
from ingestd.config import load_settings
from ingestd.daemon import run
from tests.steps import armed
log.configure("info", "json")
steps = armed()
sys.exit(run(load_settings(), on_ready=lambda: print("ready", flush=True), on_step=steps))
"""
SETTLE_SECONDS = 0.6


def environment(folder: Path, url: str, **more: str) -> dict[str, str]:
    """The environment of a real process that works in `folder`."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "INGESTD_DATABASE__URL": url,
        "INGESTD_DATABASE__SQLITE_SYNCHRONOUS": "NORMAL",
        "INGESTD_WATCH__INBOX": str(folder / "inbox"),
        "INGESTD_WATCH__ARCHIVE": str(folder / "archive"),
        "INGESTD_WATCH__QUARANTINE": str(folder / "quarantine"),
        **more,
    }


@contextmanager
def open_sessions(url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions of a writer; a test's database need not survive a power cut."""
    engine = make_engine(url, writer=True, synchronous="OFF")
    try:
        yield make_sessions(engine)
    finally:
        engine.dispose()


def soon(holds: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until something holds, and stays so: a state that passes may pass between two looks."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.05)


def wait_until_frozen(process: subprocess.Popen[str]) -> None:
    """Wait until a process has stopped itself at the step that it was started with."""
    soon(lambda: is_frozen(process.pid) or process.poll() is not None)
    assert None is process.poll(), "it ended before it came to that step"


@dataclass
class Running:
    """A daemon at work in a folder."""

    folder: Path
    url: str
    settings: dict[str, str]
    under: tuple[str, ...] = ()
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        """Start it."""
        with (self.folder / "log.jsonl").open("a") as errors:
            self.process = subprocess.Popen(
                [*self.under, sys.executable, "-c", RUN],
                env=environment(self.folder, self.url, **self.settings),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def wait_until_ready(self) -> Running:
        """Wait for its first full look."""
        assert self.process.stdout is not None
        assert "ready\n" == self.process.stdout.readline(), self.log()
        return self

    @property
    def inbox(self) -> Path:
        """Where files arrive."""
        return self.folder / "inbox"

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """What was logged, or all lines of one event."""
        lines = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        told = [json.loads(line) for line in lines]
        return [line for line in told if event in ("", line["event"])]

    def wait_until_frozen(self) -> Running:
        """Wait until it has stopped itself at the step that it was started with."""
        wait_until_frozen(self.process)
        return self

    def thaw(self) -> None:
        """Let it go on; what it was sent meanwhile it hears first."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """End it gently, also where it is frozen; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        self.thaw()
        return self.ended()

    def ended(self, *, seconds: float = 60) -> int:
        """Its exit status; it is about to end."""
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Start(Protocol):
    """Starts a daemon with some settings, perhaps inside of another command."""

    def __call__(
        self, *, wait: bool = True, url: str = "", under: Sequence[str] = (), **settings: str
    ) -> Running:
        """Start it, perhaps `under` another command; by default its first look is over."""


def starter(folder: Path, at: str) -> Iterator[Start]:
    """Start daemons in `folder` on the database `at`; stop them in the end."""
    (folder / "inbox").mkdir(exist_ok=True)
    with ExitStack() as running:

        def start(
            *, wait: bool = True, url: str = "", under: Sequence[str] = (), **settings: str
        ) -> Running:
            usual = {"WATCH__SETTLE_SECONDS": str(SETTLE_SECONDS), "WATCH__POLL_SECONDS": "0.3"}
            named = {f"INGESTD_{name}": value for name, value in (usual | settings).items()}
            daemon = Running(folder, url or at, named, tuple(under))
            running.callback(lambda: daemon.process.poll() is None and daemon.stop())
            return daemon.wait_until_ready() if wait else daemon

        yield start


def jobs_on(url: str) -> list[FileProcessing]:
    """All jobs there."""
    with open_sessions(url) as sessions, sessions() as session:
        return list(session.scalars(select(FileProcessing).order_by(FileProcessing.path)))


def states_on(url: str) -> list[tuple[str, str, int]]:
    """Name, state and stored rows of all jobs."""
    return [(job.path, job.status, job.rows_stored) for job in jobs_on(url)]


def is_empty(inbox: Path) -> bool:
    """Whether no file is left."""
    return not any(path.is_file() for path in inbox.rglob("*"))
