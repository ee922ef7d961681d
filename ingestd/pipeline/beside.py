"""The reader: a process that reads and validates a large file beside us, who store it.

Python runs on one core in each process, and SQLite on ours. The reader is two batches ahead, in
memory that we share, and waits when we do. We read ourselves until it has begun, and go on where it
was when it dies: a batch says where the next one begins.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import structlog

from ingestd.errors import NotSent, StopRequested
from ingestd.pipeline import child
from ingestd.pipeline.batches import Batch, Reading, read_batches
from ingestd.pipeline.read import Source
from ingestd.pipeline.reader import Failed, Opened, Put, Taken, taken_from

log = structlog.get_logger()

_LOOK_SECONDS = 0.25
_SLOTS = 2
_MOST_DEATHS = 3


class _Died(Exception):
    """The reader has ended without having been asked to."""


@dataclass(slots=True)
class _Child:
    slots: Sequence[int]
    process: subprocess.Popen[bytes]
    pipe: Connection
    is_ready: bool = False


@dataclass(slots=True)
class Reader:
    """Has files from `from_bytes` on read beside us, by one process that is kept for the next."""

    from_bytes: int
    idle_seconds: float = 60
    _child: _Child | None = None
    _deaths: int = 0
    _used_at: float = 0.0

    def batches(
        self,
        source: Source,
        reading: Reading,
        *,
        on_open: Callable[[], None],
        should_stop: Callable[[], bool],
    ) -> Generator[Batch]:
        """Read a file here until the reader has begun, then there; close this when you leave it.

        Raises:
            FileRefused, FileVanished, FileChanged: it is unfit, gone, another one.
            StopRequested: while a batch was waited for.
        """
        while True:
            is_beside = self.is_ready()
            batches = (
                self._read_beside(reading, on_open, should_stop)
                if is_beside
                else read_batches(source, reading, on_open)
            )
            with closing(batches):
                try:
                    for batch in batches:
                        yield batch
                        if batch.is_last:
                            return
                        reading, on_open = reading.behind(batch), _nothing
                        if not is_beside and self.is_ready():
                            break
                except _Died:
                    # What it had not handed over is read again, by us or by the next one.
                    continue

    def _read_beside(
        self, reading: Reading, on_open: Callable[[], None], should_stop: Callable[[], bool]
    ) -> Generator[Batch]:
        at_work, path = self._child, str(reading.path)
        assert at_work is not None  # noqa: S101 - it has begun
        is_over, number = False, 0
        try:
            self._tell(at_work, reading, path)
            while not is_over:
                message = self._heard(at_work, should_stop, path)
                if isinstance(message, Opened):
                    on_open()
                elif isinstance(message, Failed):
                    is_over = True
                    raise message.error from (NotSent(message.place) if message.place else None)
                else:
                    batch = taken_from(at_work.slots[number % _SLOTS], message.size)
                    self._tell(at_work, Taken(), path)
                    number += 1
                    is_over = batch.is_last
                    yield batch
        finally:
            self._used_at = time.monotonic()
            if is_over:
                self._deaths = 0
            else:  # it would go on with what nobody wants
                self.close()

    def _tell(self, at_work: _Child, message: Reading | Taken, path: str) -> None:
        try:
            at_work.pipe.send(message)
        except OSError as error:
            self._note_death(path)
            raise _Died from error

    def _heard(
        self, at_work: _Child, should_stop: Callable[[], bool], path: str
    ) -> Put | Opened | Failed:
        try:
            while not at_work.pipe.poll(_LOOK_SECONDS):
                if should_stop():
                    raise StopRequested
            return cast("Put | Opened | Failed", at_work.pipe.recv())
        except (EOFError, OSError) as error:
            self._note_death(path)
            raise _Died from error

    # ── beginning and end ─────────────────────────────────────────────────

    def is_ready(self) -> bool:
        """Whether there is a reader that has begun; one that is not there is started."""
        if self._child is None and self._deaths < _MOST_DEATHS:
            self._child = _born()
            self._used_at = time.monotonic()
        if self._child is None:
            return False
        try:
            if not self._child.is_ready and self._child.pipe.poll():
                self._child.pipe.recv()
                self._child.is_ready = True
                log.info("reader_started", process=self._child.process.pid)
        except (EOFError, OSError):
            self._note_death()
        return self._child is not None and self._child.is_ready  # type: ignore[redundant-expr]  # a death is noted above

    def _note_death(self, path: str | None = None) -> None:
        """Say that it has ended by itself; after some times no other one is started."""
        status = self.close()
        self._deaths += 1
        log.warning("reader_died", status=status, path=path)
        if self._deaths == _MOST_DEATHS:
            log.error("reader_given_up", deaths=self._deaths)

    def start(self, source: Source) -> None:
        """Start it for a file that will take long enough, while that is being hashed."""
        if source.size >= self.from_bytes:
            self.is_ready()

    def rest(self) -> None:
        """Let a reader go that had nothing to do for long."""
        if self._child is not None and time.monotonic() - self._used_at > self.idle_seconds:
            self.close()

    def close(self) -> int | None:
        """End it; its status, if there was one. The next large file starts another."""
        if self._child is None:
            return None
        self._child.pipe.close()
        self._child.process.kill()
        status = self._child.process.wait()
        for slot in self._child.slots:
            os.close(slot)
        self._child = None
        return status


def _born() -> _Child:
    slots = [os.memfd_create("ingestd-batch") for _ in range(_SLOTS)]
    try:
        return _Child(slots, *child.bear("reader", *slots))
    except BaseException:
        for slot in slots:
            os.close(slot)
        raise


def _nothing() -> None:
    """A file is opened once, whoever reads it on."""
