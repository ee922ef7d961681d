"""The workers of a daemon: who takes which file when, in processes or in the daemon itself.

Files are offered in their order. While little waits the daemon takes them itself; when it is
worth their start, workers do, each with the next files at hand: many small ones, or one that
is large. What must keep its order (`lanes`) is never with two of them.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import structlog

from ingestd.errors import FileVanished, StorageFault, WorkerDied
from ingestd.pipeline import child, ledger
from ingestd.pipeline.ahead import FILES_AHEAD
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.lanes import Lanes, lanes_of
from ingestd.pipeline.read import open_source
from ingestd.pipeline.worker import Alive, Came, Given, Outcome, Post, Ready, Stop, Told, take
from ingestd.transient import database_at_work

log = structlog.get_logger()

# What is at hand of a worker while it takes another: enough for the daemon's longest look.
_FILES_AT_HAND = 32
_BYTES_AT_HAND = 2 << 20
# A file costs at least as much as so many bytes do.
_BYTES_A_FILE = 128 << 10
# So many files are looked through for one that may be taken now.
_FILES_LOOKED_THROUGH = 300
# A file larger than this waits for a worker that is starting.
_MOST_BYTES_MEANWHILE = 8 << 20
_MOST_DEATHS = 3
_LOOK_SECONDS = 0.25
_SILENT_SECONDS = 60
# Nothing waits behind a file that takes longer.
_LONG_SECONDS = 1.0
# Beyond the time that a stop has.
_GRACE_SECONDS = 5


@dataclass(slots=True, kw_only=True, eq=False)
class Offer:
    """A file that may be taken; `get_ready` says as what, or that it must wait after all."""

    root: Path
    relative: Path
    size: int
    get_ready: Callable[[], Found | None]
    deaths: int = 0
    # As it was when it was given to somebody.
    stamp: str = ""
    _lanes: list[Lanes | None] = field(default_factory=list)

    def lanes(self, ingest: Ingest) -> Lanes | None:
        """Which files it must not overtake; None for all."""
        if not self._lanes:
            self._lanes.append(lanes_of(self.root, self.relative, ingest.terms.read))
        return self._lanes[0]


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an offer."""

    offer: Offer
    found: Found
    jobs: Sequence[Told] = ()
    error: Exception | None = None


class _Held(NamedTuple):
    offer: Offer
    found: Found
    lanes: Lanes


@dataclass(slots=True, eq=False)
class _Worker:
    """A process at work, and what it has at hand: in the order in which it takes it."""

    number: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    is_ready: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    held: deque[_Held] = field(default_factory=deque)
    lanes: Counter[str] = field(default_factory=Counter)
    # How many faults it told of.
    faults: int = 0
    is_alone: bool = False

    @property
    def bytes_held(self) -> int:
        return sum(each.offer.size for each in self.held)


@dataclass(slots=True)
class Workers:
    """Takes what is offered; `most` workers at a time, none for less than two.

    They are started when work for `from_bytes` waits.
    """

    ingest: Ingest
    post: Callable[[int], Post]
    most: int = 1
    from_bytes: int = 0
    on_progress: Callable[[str, int, int], None] = lambda _path, _read, _size: None
    _offers: deque[Offer] = field(default_factory=deque)
    # The first of them, where the daemon itself looked ahead.
    _ahead: deque[Offer] = field(default_factory=deque)
    _team: list[_Worker] = field(default_factory=list)
    _results: list[Taken] = field(default_factory=list)
    _is_started: bool = False
    _failed_starts: int = 0
    _deaths: dict[Path, int] = field(default_factory=dict)

    # ── what is to be done ────────────────────────────────────────────────

    def offer(self, offers: Iterable[Offer]) -> None:
        """Offer these instead of what was offered before and nobody has begun.

        A file of which `next` has still to tell waits for the offers after that: it may lie
        there as before, and whoever offers it does not know yet what has become of it.
        """
        if self._team:
            self._listen(0)  # who has begun, or died, while nothing was to be done
        begun = self.in_work | {each.found.relative for each in self._results}
        self._look_back()
        self._offers = deque(each for each in offers if each.relative not in begun)
        self.expect([each.size for each in self._offers])
        self._fill_up()

    def expect(self, sizes: Collection[int]) -> None:
        """Start workers for files of so many bytes that are there, complete or not yet."""
        if self.most > 1 and len(sizes) > 1 and not self._is_started:
            waiting = sum(max(size, _BYTES_A_FILE) for size in sizes)
            self._is_started = waiting >= self.from_bytes

    def offer_again(self, offers: Iterable[Offer]) -> None:
        """Let these be the first again, in their order."""
        self._look_back()
        self._offers.extendleft(reversed(list(offers)))

    def withdraw(self) -> list[Offer]:
        """Take back what nobody has begun."""
        self._look_back()
        offers = list(self._offers)
        self._offers.clear()
        return offers

    @property
    def in_work(self) -> set[Path]:
        """The files that workers have at hand."""
        return {each.offer.relative for worker in self._team for each in worker.held}

    @property
    def at_work(self) -> int:
        """How many processes there are; none while the daemon takes all by itself."""
        return len(self._team)

    @property
    def is_any_silent(self) -> bool:
        """Whether a worker with files at hand came no step further for a minute.

        What it said is heard late by a daemon that was long at something else.
        """
        since = time.monotonic() - _SILENT_SECONDS
        return any(
            each.held and each.heard_at < since and not each.pipe.poll() for each in self._team
        )

    @property
    def has_offers(self) -> bool:
        """Whether anything waits for somebody to take it."""
        return bool(self._ahead or self._offers)

    @property
    def first(self) -> Offer:
        """What is to be taken next."""
        return (self._ahead or self._offers)[0]

    @property
    def is_busy(self) -> bool:
        """Whether anything waits or is in work."""
        is_held = any(each.held for each in self._team)
        return bool(self.has_offers or self._results or is_held)

    # ── doing it ──────────────────────────────────────────────────────────

    def next(self) -> list[Taken]:
        """What has become of some files, after a quarter second at most where workers have them.

        In the daemon itself one file is taken all the way.
        """
        if self._may_take_here():
            return self._take_here()
        self._hand_out()
        if not self._results:
            self._listen(_LOOK_SECONDS)
        results, self._results = self._results, []
        return results

    def _may_take_here(self) -> bool:
        if self._results or not self.has_offers or any(each.is_ready for each in self._team):
            return False
        if not self._is_started:
            return True
        first = self.first  # while they start; what killed one shall not kill us
        return first.size <= _MOST_BYTES_MEANWHILE and first.relative not in self._deaths

    def _take_here(self) -> list[Taken]:
        if self._is_started:
            self._fill_up()
            self._listen(0)
        if not self._ahead:
            self._look_ahead()
        offer = self._ahead.popleft() if self._ahead else None
        # Asked once more: what the one before it met may be in its way, too.
        found = offer.get_ready() if offer else None
        if offer is None or found is None:
            return []
        outcome = take(self.ingest, found)
        return [Taken(offer, found, outcome.jobs, outcome.error)]

    def _look_ahead(self) -> None:
        most = FILES_AHEAD if not self._is_started else 1
        run: list[Found] = []
        while self._offers and len(run) < most:
            offer = self._offers.popleft()
            if found := offer.get_ready():
                self._ahead.append(offer)
                run.append(found)
        # What is in the way is said of each file when it is taken.
        with suppress(StorageFault):
            self.ingest.look_ahead(run)

    def _look_back(self) -> None:
        self._offers.extendleft(reversed(self._ahead))
        self._ahead.clear()
        self.ingest.forget_ahead()

    def _hand_out(self) -> None:
        self._fill_up()
        self._look_back()
        idle = [each for each in self._team if self._may_be_given(each)]
        gifts: dict[int, list[Given]] = {each.number: [] for each in idle}
        try:
            # In turn, lest the first be given something of all constituencies, and keep them.
            while idle:
                for worker in sorted(idle, key=lambda each: each.bytes_held):
                    if given := self._pick(worker):
                        gifts[worker.number].append(given)
                    if given is None or not self._may_be_given(worker):
                        idle.remove(worker)
        finally:  # what was picked must reach them, whatever the next file is like
            self._give(gifts)

    def _may_be_given(self, worker: _Worker) -> bool:
        """Say whether a file may go to a worker, perhaps behind others.

        Not behind one that takes long, or while somebody else is about to be free.
        """
        if not worker.is_ready or not worker.held:
            return worker.is_ready
        goes_on = time.monotonic() - worker.heard_at < _LONG_SECONDS
        is_near = len(worker.held) <= _FILES_AT_HAND // 2
        return goes_on and is_near and all(each.is_ready for each in self._team)

    def _give(self, gifts: Mapping[int, list[Given]]) -> None:
        for worker in self._team:
            if gift := gifts.get(worker.number):
                if len(worker.held) == len(gift):  # it had nothing, and nothing to tell
                    worker.heard_at = time.monotonic()
                with suppress(OSError):  # it has died; that is noticed when it is listened to
                    worker.pipe.send(gift)

    def _pick(self, worker: _Worker) -> Given | None:
        """Choose the next file for a worker: the first that keeps no order waiting."""
        skipped: list[Offer] = []
        behind: set[str] = set()
        given = None
        while self._offers and given is None and len(skipped) < _FILES_LOOKED_THROUGH:
            offer = self._offers[0]
            is_full = bool(worker.held) and not _fits(worker, offer)
            if is_full or any(each.is_alone for each in self._team):
                break
            lanes = offer.lanes(self.ingest)
            if lanes is None and (skipped or any(each.held for each in self._team)):
                break
            self._offers.popleft()
            if lanes and (not lanes.isdisjoint(behind) or self._is_with_another(worker, lanes)):
                behind |= lanes
                skipped.append(offer)
            elif found := self._made_ready(offer):
                worker.held.append(_Held(offer, found, lanes or frozenset()))
                worker.lanes.update(lanes or ())
                worker.is_alone = lanes is None
                broken = self.ingest.unrecorded
                known = {key: value for key, value in broken.items() if key[0] == found.label}
                given = Given(found, known, worker.faults)
        self._offers.extendleft(reversed(skipped))
        return given

    def _is_with_another(self, worker: _Worker, lanes: Lanes) -> bool:
        others = [each for each in self._team if each is not worker]
        return any(lane in other.lanes for other in others for lane in lanes)

    def _made_ready(self, offer: Offer) -> Found | None:
        found = offer.get_ready()
        if found is None:
            return None
        with suppress(FileVanished):
            offer.stamp = open_source(found.path, self.ingest.terms.read).stamp
        return found

    # ── listening ─────────────────────────────────────────────────────────

    def _listen(self, seconds: float) -> None:
        for worker in self._heard(seconds):
            try:
                while worker.pipe.poll():
                    self._hear(worker, worker.pipe.recv())
            except (EOFError, OSError):
                self._bury(worker)

    def _heard(self, seconds: float) -> list[_Worker]:
        """Wait for words, or the end, of some workers."""
        pipes = wait([worker.pipe for worker in self._team], seconds)
        return [worker for worker in self._team if worker.pipe in pipes]

    def _hear(self, worker: _Worker, message: Ready | Alive | Came | Outcome) -> None:
        worker.heard_at = time.monotonic()
        match message:
            case Ready():
                worker.is_ready = True
                log.info("worker_started", worker=worker.number, process=worker.process.pid)
                self._failed_starts = 0
            case Came():
                self.on_progress(*message)
            case Outcome():
                self._note(worker, message)

    def _note(self, worker: _Worker, outcome: Outcome) -> None:
        offer, found, lanes = worker.held.popleft()
        worker.lanes.subtract(lanes)
        worker.lanes = +worker.lanes
        worker.is_alone = False
        worker.faults = outcome.faults
        self.ingest.tally.add(outcome.seconds, outcome.events)
        broken = self.ingest.unrecorded
        for key in [key for key in broken if key[0] == found.label]:
            del broken[key]
        broken.update(outcome.broken)
        jobs = outcome.jobs
        if offer.deaths and not jobs and outcome.error is None:
            jobs = self._done_by_the_dead(offer, found)
        self._deaths.pop(offer.relative, None)
        self._results.append(Taken(offer, found, jobs, outcome.error))

    def _done_by_the_dead(self, offer: Offer, found: Found) -> list[Told]:
        """Find the jobs of a file that its worker had put away when it died, but not told of."""
        try:
            with database_at_work(), self.ingest.sessions.begin() as session:
                jobs = ledger.jobs_at(session, str(found.root), found.label)
        except StorageFault:
            return []
        return [Told.of(job) for job in jobs if job.stamp == offer.stamp and job.archived_to]

    # ── beginning and end ─────────────────────────────────────────────────

    def _fill_up(self) -> None:
        """Let there be as many as there may be."""
        if not self._is_started:
            return
        numbers = set(range(1, self.most + 1)) - {each.number for each in self._team}
        for number in sorted(numbers):
            self._team.append(_hire(self.post(number)))

    def _bury(self, worker: _Worker) -> None:
        """Note that a worker has ended by itself; its files are offered again."""
        self._team.remove(worker)
        worker.pipe.close()
        status = worker.process.wait()
        left = list(worker.held)
        in_hand = left[0].found.label if left else None
        self.ingest.tally.events["worker_died"] += 1
        log.error("worker_died", worker=worker.number, status=status, path=in_hand)
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_DEATHS:
                log.error("workers_given_up", starts=self._failed_starts)
                self._is_started, self.most = False, 1
        again = []
        for offer, found, _ in left:
            if offer is left[0].offer and self._has_killed_enough(offer):
                told = WorkerDied(f"{found.label}: {_MOST_DEATHS} workers died in it ({status})")
                self._results.append(Taken(offer, found, error=told))
            else:
                again.append(offer)
        self.offer_again(again)

    def _has_killed_enough(self, offer: Offer) -> bool:
        """Count a death in a file; a process that is killed for it each time would go on so."""
        self._deaths[offer.relative] = offer.deaths = self._deaths.get(offer.relative, 0) + 1
        if offer.deaths < _MOST_DEATHS:
            return False
        del self._deaths[offer.relative]
        return True

    def close(self, hurries: Callable[[], bool]) -> list[Taken]:
        """End the workers at their next batch border, or at once; what has become of their files.

        `hurries` is asked whether nobody wants to wait even for a batch.
        """
        self._offers.clear()
        self._is_started, self.most = False, 1
        self._tell(Stop())
        if self._team:
            files = len(self.in_work)
            log.info("workers_stopping", workers=len(self._team), files=files)
        for worker in self._team:
            if not worker.is_ready:  # it would first come to its beginning
                worker.process.kill()
        until = time.monotonic() + self._patience + _GRACE_SECONDS
        has_hurried = False
        while self._team and time.monotonic() < until:
            if not has_hurried and hurries():
                has_hurried = True
                self._tell(Stop())
            self._see_off()
        for worker in self._team:
            worker.process.kill()
        while self._team:
            self._see_off()
        results, self._results = self._results, []
        return results

    @property
    def _patience(self) -> float:
        return self.post(0).stop_seconds

    def _tell(self, message: Stop) -> None:
        for worker in self._team:
            with suppress(OSError):
                worker.pipe.send(message)

    def _see_off(self) -> None:
        for worker in self._heard(_LOOK_SECONDS):
            try:
                self._hear(worker, worker.pipe.recv())
            except (EOFError, OSError):
                self._team.remove(worker)
                worker.pipe.close()
                worker.process.wait()


def _fits(worker: _Worker, offer: Offer) -> bool:
    """Say whether a file may wait with a worker: a large one would wait where another could go."""
    is_room = len(worker.held) < _FILES_AT_HAND
    return is_room and worker.bytes_held + offer.size <= _BYTES_AT_HAND


def _hire(post: Post) -> _Worker:
    process, pipe = child.bear("worker")
    with suppress(OSError):
        pipe.send(post)
    return _Worker(post.number, process, pipe)
