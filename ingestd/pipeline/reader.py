"""The reader's process: it reads and validates what it is told, and sends it batch by batch.

It starts in the middle of a file, so it imports nothing of the database.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ingestd.errors import FileChanged, IngestError
from ingestd.pipeline import child
from ingestd.pipeline.batches import Batch, Reading, read_batches
from ingestd.pipeline.read import Csv, Source, open_source, sha256_of
from ingestd.pipeline.validate import Blank, Outcome, Record, Reject, Shown


class Ready(NamedTuple):
    """The reader has begun."""


class Opened(NamedTuple):
    """The file's stream is open."""


class Hashing(NamedTuple):
    """Hash a file that is going to be read; the answer is its digest."""

    reading: Reading

    def is_of(self, source: Source, csv: Csv) -> bool:
        """Whether it is this CSV, as it lies there now."""
        reading = self.reading
        return (reading.path, reading.stamp, reading.csv) == (source.path, source.stamp, csv)


class Put(NamedTuple):
    """The next batch is in its slot, in so many bytes."""

    size: int
    is_last: bool


class Taken(NamedTuple):
    """A slot is free again."""


class Failed(NamedTuple):
    """What went wrong, and where if nobody foresaw it."""

    error: Exception
    place: str | None


def live(descriptor: str, parent: str, *shared: str) -> None:
    """Be the reader; what is shared are slots, each for one batch."""
    with child.pipe_to(descriptor, parent) as pipe:
        desk = _Desk(pipe, list(map(int, shared)))
        pipe.send(Ready())
        while True:
            _obey(desk, desk.next())


@dataclass(slots=True)
class _Desk:
    """What is to be read, in its order, and the slots, which are taken in turn."""

    pipe: Connection
    slots: Sequence[int]
    put_in: int = 0
    taken: int = 0
    told: deque[Reading | Hashing] = field(default_factory=deque)

    def next(self) -> Reading | Hashing:
        """Wait for the next thing to do."""
        while not self.told:
            self._hear()
        return self.told.popleft()

    def put(self, packed: memoryview, *, is_last: bool) -> None:
        """Put a batch into the next slot, once that is free."""
        while self.put_in - self.taken == len(self.slots):
            self._hear()
        _fill(self.slots[self.put_in % len(self.slots)], packed)
        self.put_in += 1
        self.pipe.send(Put(len(packed), is_last))

    def _hear(self) -> None:
        message = self.pipe.recv()
        if isinstance(message, Reading | Hashing):
            self.told.append(message)
        else:
            self.taken += 1


def _obey(desk: _Desk, told: Reading | Hashing) -> None:
    """Send what a file holds, or what went wrong, which it does as it would in our parent."""
    reading = told.reading if isinstance(told, Hashing) else told
    try:
        with closing(open_source(reading.path, reading.limits)) as source:
            _refuse_other(source, reading)
            if isinstance(told, Hashing):
                with source.open(reading.csv) as stream:
                    digest = sha256_of(stream)
                desk.pipe.send(digest)
            else:
                _read(desk, source, reading)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # noqa: BLE001 - our parent judges it
        desk.pipe.send(_failed(error))


def _read(desk: _Desk, source: Source, reading: Reading) -> None:
    for batch in read_batches(source, reading, lambda: desk.pipe.send(Opened())):
        packed, is_last = _packed(batch), batch.is_last
        del batch
        desk.put(packed, is_last=is_last)
        del packed


def _refuse_other(source: Source, reading: Reading) -> None:
    if source.stamp != reading.stamp:
        message = f"{reading.path} changed while it was read"
        raise FileChanged(message)


def _failed(error: Exception) -> Failed:
    place = None if isinstance(error, IngestError | OSError) else traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever its author forgot
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failed(error, place)


# Batches on the pipe ------------------------------------------------------------------------


def _fill(slot: int, batch: memoryview) -> None:
    # Also when it is shorter: else what one enormous row takes would be kept.
    os.ftruncate(slot, len(batch))
    at = 0
    while at < len(batch):
        at += os.pwrite(slot, batch[at:], at)


def taken_from(slot: int, size: int) -> Batch:
    """Take a batch out of the memory in which it was put."""
    with mmap.mmap(slot, size, prot=mmap.PROT_READ) as held:
        return _unpacked(held)


# Plain tuples cross in a third of the time: what they are is told by how many values they have.
_KINDS: dict[int, Callable[[Sequence[Any]], Outcome]] = {
    len(kind._fields): kind._make for kind in (Reject, Blank)
}


def _packed(batch: Batch) -> memoryview:
    """A batch as bytes."""
    outcomes = [
        (*each[:-1], tuple(each.shown)) if isinstance(each, Record) and each.shown else tuple(each)
        for each in batch.outcomes
    ]
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    # No text is there twice; to note each one in case it is costs as much as to write it.
    pickler.fast = True
    pickler.dump((outcomes, *batch[1:]))
    return buffer.getbuffer()


def _unpacked(packed: mmap.mmap) -> Batch:
    """The batch again, in another process."""
    outcomes, *rest = pickle.loads(packed)  # noqa: S301 - our own
    return Batch([_outcome(each) for each in outcomes], *rest)


def _outcome(values: Sequence[Any]) -> Outcome:
    if len(values) != _RECORD_VALUES:
        return _KINDS[len(values)](values)
    line, end, key, tx_id, sign, content_hash, shown = values
    # What their own `__new__` does, in half the time.
    shown = shown and tuple.__new__(Shown, shown)
    return tuple.__new__(Record, (line, end, key, tx_id, sign, content_hash, shown))


_RECORD_VALUES = len(Record._fields)
