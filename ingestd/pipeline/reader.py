"""The reader's process: it reads and validates what it is told, and sends it batch by batch.

It starts in the middle of a file, so it imports nothing of the database.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ingestd.errors import FileChanged, IngestError
from ingestd.pipeline import child
from ingestd.pipeline.batches import Batch, Reading, read_batches
from ingestd.pipeline.read import Source, open_source
from ingestd.pipeline.validate import Blank, Outcome, Record, Reject, Shown


class Ready(NamedTuple):
    """The reader has begun."""


class Opened(NamedTuple):
    """The file's stream is open."""


class Put(NamedTuple):
    """The next batch is in its slot, in so many bytes."""

    size: int


class Taken(NamedTuple):
    """A slot is free again."""


class Failed(NamedTuple):
    """What went wrong, and where if nobody foresaw it."""

    error: Exception
    place: str | None


def live(descriptor: str, parent: str, *shared: str) -> None:
    """Be the reader; what is shared are slots, each for one batch."""
    slots = list(map(int, shared))
    with child.pipe_to(descriptor, parent) as pipe:
        pipe.send(Ready())
        while True:
            message = pipe.recv()
            if isinstance(message, Reading):  # not a slot that the file before it left
                _read(pipe, message, slots)


def _read(pipe: Connection, reading: Reading, slots: Sequence[int]) -> None:
    """Send what a file holds, or what went wrong, which it does as it would in our parent."""
    try:
        with closing(open_source(reading.path, reading.limits)) as source:
            _refuse_other(source, reading)
            free, in_turn = len(slots), cycle(slots)
            for batch in read_batches(source, reading, lambda: pipe.send(Opened())):
                packed = _packed(batch)
                del batch
                if free:
                    free -= 1
                else:
                    pipe.recv()  # they are taken in their order
                _put(next(in_turn), packed)
                pipe.send(Put(len(packed)))
                del packed
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:  # noqa: BLE001 - our parent judges it
        pipe.send(_failed(error))


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


def _put(slot: int, batch: memoryview) -> None:
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
