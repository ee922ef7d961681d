"""The reader: a process that reads and validates files beside us, who store them.

Python runs on one core in each process, and SQLite on ours. The reader is two batches ahead, in
memory that we share, and waits when we do. We read ourselves until it has begun, and go on where it
was when it dies: a batch says where the next one begins. It does what it is told in that order: a
large file, and behind it the next one's hash and first batches; or a run of small ones in advance.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import structlog

from ingestd.errors import NotSent, StopRequested
from ingestd.pipeline import child
from ingestd.pipeline.batches import Batch, Reading, read_batches
from ingestd.pipeline.read import Csv, Digest, Source
from ingestd.pipeline.reader import Failed, Hashing, Opened, Put, Taken, taken_from

log = structlog.get_logger()

_LOOK_SECONDS = 0.25
_SLOTS = 2
_MOST_DEATHS = 3
# Of a run of small files that has this part of what a large one has.
_RUN_PART = 8
# Runs that nobody came back for are not to fill the pipe.
_MOST_TOLD = 128


class _Died(Exception):
    """The reader has ended in the middle of what it was told."""


@dataclass(slots=True)
class _Child:
    slots: Sequence[int]
    process: subprocess.Popen[bytes]
    pipe: Connection
    is_ready: bool = False
    # What it was told and has not handed over: the first of it is in the slots.
    told: deque[Reading | Hashing] = field(default_factory=deque)
    taken: int = 0
    # The large file of which nobody knows yet whether it is wanted.
    coming: Reading | None = None


@dataclass(slots=True)
class Reader:
    """Has files read beside us, by one process that is kept for the next.

    Files from `from_bytes` on, and smaller ones that together have an eighth of that.
    """

    from_bytes: int
    idle_seconds: float = 60
    # The large file that will be wanted behind the one that is read next.
    coming: Reading | None = None
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
            self._leave_unwanted(reading)
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

    def read_ahead(self, run: Sequence[Reading], size: int) -> None:
        """Let small files of `size` bytes be read before they are asked for, in this order."""
        if size * _RUN_PART < self.from_bytes or not self.is_ready():
            return
        at_work = self._child
        assert at_work is not None  # noqa: S101 - it has begun
        if len(at_work.told) + len(run) > _MOST_TOLD:
            self.close()
            return
        self._used_at = time.monotonic()
        with suppress(_Died):
            for reading in run:
                self._tell(at_work, reading, reading.path)

    def wants(self, reading: Reading, size: int) -> bool:
        """Whether a file with `size` bytes left to read is read beside us, or was in advance."""
        is_told = self._child is not None and reading in self._child.told
        return is_told or size >= self.from_bytes

    def hash_of(self, source: Source, csv: Csv, should_stop: Callable[[], bool]) -> Digest | None:
        """Digest of a CSV that was `coming`; None where nobody has hashed it.

        Raises:
            StopRequested: while it was waited for.
        """
        at_work = self._child
        told = (each for each in (at_work.told if at_work else ()) if isinstance(each, Hashing))
        hashing = next((each for each in told if each.is_of(source, csv)), None)
        if at_work is None or hashing is None:
            return None
        try:
            said = next(self._said_of(at_work, hashing, should_stop))
        except _Died:
            return None
        except StopRequested:
            self.close()
            raise
        return said if isinstance(said, Digest) else None

    def _leave_unwanted(self, reading: Reading) -> None:
        """End a reader that goes on with a large file which was not taken in the end."""
        if self._child is not None and self._child.coming not in (None, reading):
            self.close()

    def _read_beside(
        self, reading: Reading, on_open: Callable[[], None], should_stop: Callable[[], bool]
    ) -> Generator[Batch]:
        at_work = self._child
        assert at_work is not None  # noqa: S101 - it has begun
        is_over = False
        try:
            at_work.coming = None
            if reading not in at_work.told:
                self._tell(at_work, reading, reading.path)
            self._tell_coming(at_work)
            for message in self._said_of(at_work, reading, should_stop):
                if isinstance(message, Failed):
                    is_over = True
                    raise message.error from (NotSent(message.place) if message.place else None)
                if isinstance(message, Put):
                    batch = taken_from(at_work.slots[at_work.taken % _SLOTS], message.size)
                    self._tell(at_work, Taken(), reading.path)
                    is_over = message.is_last
                    yield batch
                else:
                    on_open()
        finally:
            self._used_at = time.monotonic()
            if is_over:
                self._deaths = 0
            elif self._child is at_work:  # it would go on with what nobody wants
                self.close()

    def _tell_coming(self, at_work: _Child) -> None:
        if (coming := self.coming) is not None:
            self.coming, at_work.coming = None, coming
            self._tell(at_work, Hashing(coming), coming.path)
            self._tell(at_work, coming, coming.path)

    def _said_of(
        self, at_work: _Child, wanted: Reading | Hashing, should_stop: Callable[[], bool]
    ) -> Generator[Put | Opened | Digest | Failed]:
        """What the reader says of one of the things it was told, to its end.

        What stands before it, and nobody has come back for, is passed over.
        """
        path = (wanted.reading if isinstance(wanted, Hashing) else wanted).path
        is_wanted = is_end = False
        while not (is_wanted and is_end):
            is_wanted = at_work.told[0] == wanted
            message = self._heard(at_work, should_stop, path)
            is_end = isinstance(message, Digest | Failed)
            is_end |= isinstance(message, Put) and message.is_last
            if is_end:
                at_work.told.popleft()
            if is_wanted:
                yield message
            elif isinstance(message, Put):
                self._tell(at_work, Taken(), path)

    def _tell(self, at_work: _Child, message: Reading | Hashing | Taken, path: Path) -> None:
        try:
            at_work.pipe.send(message)
        except OSError as error:
            self._note_death(path)
            raise _Died from error
        if isinstance(message, Taken):
            at_work.taken += 1
        else:
            at_work.told.append(message)

    def _heard(
        self, at_work: _Child, should_stop: Callable[[], bool], path: Path
    ) -> Put | Opened | Digest | Failed:
        try:
            while not at_work.pipe.poll(_LOOK_SECONDS):
                if should_stop():
                    raise StopRequested
            return cast("Put | Opened | Digest | Failed", at_work.pipe.recv())
        except (EOFError, OSError) as error:
            self._note_death(path)
            raise _Died from error

    # ── beginning and end ─────────────────────────────────────────────────

    def is_ready(self) -> bool:
        """Whether there is a reader that has begun; one that is not there is started."""
        try:
            if self._child is None and self._deaths < _MOST_DEATHS:
                self._child = _born()
                self._used_at = time.monotonic()
            if self._child is None:
                return False
            if not self._child.is_ready and self._child.pipe.poll():
                self._child.pipe.recv()
                self._child.is_ready = True
                log.info("reader_started", process=self._child.process.pid)
        except (EOFError, OSError) as error:
            self._note_death(error=error)
        return self._child is not None and self._child.is_ready

    def _note_death(self, path: Path | None = None, error: Exception | None = None) -> None:
        """Say that it has ended by itself, or not begun; after some times none is started."""
        status = self.close()
        self._deaths += 1
        why = f"{type(error).__name__}: {error}" if error else None
        log.warning("reader_died", status=status, path=str(path) if path else None, error=why)
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
