"""A worker: a process that takes the files which it is given, one after another.

It is told all by its pipe: how to work, what to take, and to stop. It works in the name of
the daemon that started it, so that a job which one worker leaves another goes on with; it
ends with its daemon, however that ends, and leaves signals to it.
"""

from __future__ import annotations

import pickle
import signal
import time
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import structlog

from ingestd import log
from ingestd.db import Patience, make_engine, make_sessions
from ingestd.errors import NotSent, StorageFault
from ingestd.models import FileProcessing
from ingestd.pipeline import child
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest, Terms
from ingestd.pipeline.ledger import Books
from ingestd.pipeline.outbox import telling
from ingestd.pipeline.stop import Asked

Broken = dict[tuple[str, str], tuple[int, datetime]]
"""As `Ingest.unrecorded`."""

_PROGRESS_SECONDS = 0.2
_ALIVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """How a worker works: the first thing that it is told."""

    number: int
    url: str = field(repr=False)  # may hold a password
    busy_timeout_seconds: float
    answer_timeout_seconds: float
    stop_seconds: float
    terms: Terms
    owner: str
    log: tuple[log.Level, log.Format]


class Ready(NamedTuple):
    """A worker has begun."""


class Given(NamedTuple):
    """A file to take, how often it broke before it had a job, and how many faults were heard of.

    While the daemon has not heard of a fault, what it sends must not overtake what met it.
    """

    found: Found
    broken: Broken
    faults: int = 0


class Stop(NamedTuple):
    """End at the next batch border; asked for twice, at once."""


class Alive(NamedTuple):
    """A worker came a step further in what takes it long."""


class Came(NamedTuple):
    """How far a file is: bytes read of one CSV, and its size."""

    path: str
    read: int
    size: int


@dataclass(frozen=True, slots=True)
class Told:
    """How a job now stands."""

    id: uuid.UUID
    status: str
    books: Books
    message: str | None
    size: int
    stamp: str
    finished_at: datetime | None

    @classmethod
    def of(cls, job: FileProcessing) -> Told:
        """Tell of a job."""
        return cls(
            job.id,
            str(job.status),
            Books.of(job),
            job.first_error_message,
            job.size,
            job.stamp,
            job.finished_at,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: its jobs, or what went wrong; and how many faults a worker met.

    Seconds by stage and what happened besides are those since the worker's last outcome.
    """

    jobs: Sequence[Told] = ()
    error: Exception | None = None
    broken: Broken = field(default_factory=dict)
    faults: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)


def take(ingest: Ingest, found: Found) -> Outcome:
    """Take a file; what goes wrong is told, not raised."""
    try:
        jobs = [Told.of(job) for job in ingest.take(found)]
    except Exception as error:  # noqa: BLE001 - no file may keep all others waiting
        return Outcome(error=error)
    return Outcome(jobs)


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


# The process --------------------------------------------------------------------------------


def live(descriptor: str, parent: str) -> None:
    """Be a worker."""
    with child.pipe_to(descriptor, parent) as pipe:
        _work(pipe, pipe.recv())


def _work(pipe: Connection, post: Post) -> None:
    log.configure(*post.log)
    structlog.contextvars.bind_contextvars(worker=post.number)
    mail = _Mail(pipe)
    engine = make_engine(
        post.url,
        writer=True,
        busy_timeout_seconds=post.busy_timeout_seconds,
        patience=Patience(
            answer_seconds=post.answer_timeout_seconds,
            give_up=lambda: mail.is_overdue(post.stop_seconds),
        ),
    )
    ingest = Ingest(
        sessions=telling(make_sessions(engine), post.terms.notices),
        terms=post.terms,
        clock=utc_now,
        owner=post.owner,
        should_stop=mail.asks_to_stop,
        on_progress=mail.tell_progress,
    )
    pipe.send(Ready())
    looked: set[Path] = set()
    faults, fault = 0, Outcome()
    try:
        while given := mail.next():
            if given.faults < faults:
                # What an earlier file met concerns all: those that wait here go back with it.
                faults += 1
                _send(pipe, replace(fault, broken=given.broken, faults=faults))
                continue
            ingest.unrecorded = dict(given.broken)
            if given.found.path not in looked:
                run = [given.found, *(each.found for each in mail.given)]
                looked = {found.path for found in run}
                # What is in the way is said of each file when it is taken.
                with suppress(StorageFault):
                    ingest.look_ahead(run)
            looked.discard(given.found.path)
            outcome = take(ingest, given.found)
            if isinstance(outcome.error, StorageFault):
                faults, fault = faults + 1, outcome
            seconds, events = ingest.tally.taken()
            told = replace(outcome, seconds=seconds, events=events)
            _send(pipe, replace(told, broken=ingest.unrecorded, faults=faults))
    finally:
        ingest.forget_ahead()
        engine.dispose()


def _send(pipe: Connection, outcome: Outcome) -> None:
    """Send it; an error that cannot be sent as it is, is put in words."""
    error = outcome.error
    if error is not None:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        except Exception:  # noqa: BLE001 - whatever its author forgot
            told = NotSent(f"{type(error).__name__}: {error}")
            outcome = replace(outcome, error=told)
    pipe.send(outcome)


@dataclass(slots=True)
class _Mail:
    """What has come by the pipe and was not done yet."""

    pipe: Connection
    given: deque[Given] = field(default_factory=deque)
    stop: Asked = field(default_factory=Asked)
    _told_at: float = 0.0
    _is_closed: bool = False

    def next(self) -> Given | None:
        """Wait for the next file; None when there will be none."""
        self._look()
        while not self.given and not self.stop.is_set():
            self._read()
        return None if self.stop.is_set() else self.given.popleft()

    def asks_to_stop(self) -> bool:
        """Whether to end at the next batch border; who asks has come a step further."""
        self._look()
        if time.monotonic() - self._told_at >= _ALIVE_SECONDS:
            self._send(Alive())
        return self.stop.is_set()

    def is_overdue(self, seconds: float) -> bool:
        """Whether a stop was asked for so long ago, or again."""
        self._look()
        return self.stop.is_overdue(seconds)

    def tell_progress(self, path: str, read: int, size: int) -> None:
        """Tell it, now and then."""
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS:
            self._send(Came(path, read, size))

    def _send(self, message: Alive | Came) -> None:
        self._told_at = time.monotonic()
        with suppress(OSError):  # the daemon has ended: the next look tells
            self.pipe.send(message)

    def _look(self) -> None:
        while not self._is_closed and self.pipe.poll():
            self._read()

    def _read(self) -> None:
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            # Nobody is there any more who would wait for a batch.
            self._is_closed = True
            self.stop.ask(signal.SIGTERM)
            message = Stop()
        if isinstance(message, Stop):
            self.stop.ask(signal.SIGTERM)
        else:
            self.given.extend(message)
