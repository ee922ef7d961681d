"""The real program in processes that start within a tenth of a second, made to be killed.

They are forked from a server that has imported it already. `steps.py` says what they can be told.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from ingestd import daemon, log, once
from ingestd.config import load_settings

from .running import environment
from .steps import armed, is_frozen

Mode = Literal["once", "run"]

_FORKS = multiprocessing.get_context("forkserver")
# Alembic is imported late, by whoever opens a database: a fifth of what such a process does.
_PRELOADED = [
    *("ingestd.daemon", "ingestd.once", "ingestd.pipeline.evaluator"),
    *("psycopg", "alembic.runtime.migration", "tests.victims"),
]
_FORKS.set_forkserver_preload(_PRELOADED)


def _live(mode: Mode, told: Mapping[str, str], log_file: Path) -> None:
    """Be the program: in the forked process."""
    for name in [name for name in os.environ if name.startswith("INGESTD_")]:
        del os.environ[name]
    os.environ.update(told)
    stream = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(stream, standard)
    sys.stderr = os.fdopen(2, "w")
    faulthandler.register(signal.SIGUSR1)
    log.configure("info", "json", sys.stderr)
    steps = armed()
    settings = load_settings()
    if mode == "run":
        sys.exit(daemon.run(settings, on_step=steps))
    summary = once.once(settings, on_step=steps)
    steps.tell()
    sys.exit("\n".join(summary.waiting) or 0)


@dataclass
class Victim:
    """One process of the program at work in a folder."""

    folder: Path
    url: str
    mode: Mode = "once"
    settings: dict[str, str] = field(default_factory=dict)
    process: BaseProcess = field(init=False)

    def __post_init__(self) -> None:
        """Start it."""
        told = environment(self.folder, self.url, **self.settings)
        own = {name: value for name, value in told.items() if name.startswith("INGESTD_")}
        self.process = _FORKS.Process(
            target=_live, args=(self.mode, own, self.folder / "log.jsonl"), daemon=True
        )
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """Its exit status, as `subprocess` tells it; a process that hangs is a failure."""
        self.process.join(seconds)
        status = self.process.exitcode
        if status is None:
            self._signal(signal.SIGUSR1)  # let it say where it hangs
            self.process.join(0.5)
            self.kill()
            raise AssertionError("it never came to its end: " + self.log())
        return status

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.terminate()
        return self.wait()

    def hang_up(self) -> None:
        """SIGHUP."""
        self._signal(signal.SIGHUP)

    def freeze(self) -> None:
        """SIGSTOP; it does nothing more when this returns."""
        self._signal(signal.SIGSTOP)
        while self.is_alive and not self.is_frozen:
            time.sleep(0.001)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process.pid is not None and self.is_alive:
            os.kill(self.process.pid, number)

    @property
    def is_frozen(self) -> bool:
        """Whether it was stopped, by itself or by `freeze`."""
        return is_frozen(self.process.pid)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.is_alive()

    def log(self) -> str:
        """What it, and those before it in this folder, logged."""
        path = self.folder / "log.jsonl"
        return path.read_text(encoding="utf-8") if path.exists() else ""
