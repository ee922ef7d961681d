"""The daemon: looks, waits, takes files, one after another, until it is told to stop.

Events and the re-scan find files; the ledger knows which of them are done;
`pipeline.ingest` takes each one. A database that is away stops nothing but
the taking: the inbox is the queue.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine, event, make_url

from ingestd.config import ConfigError, Settings, load_settings
from ingestd.db import make_sessions
from ingestd.errors import ManifestNotMet, NotPutAway, StopRequested, StorageFault
from ingestd.log import chosen
from ingestd.metrics import Figures
from ingestd.pipeline import archive, ledger, obstacles, outbox, stats, trial
from ingestd.pipeline.beside import Reader
from ingestd.pipeline.events import Watcher
from ingestd.pipeline.evidence import Claim, Manifests, is_marker
from ingestd.pipeline.feed import Kept, evaluate_feed
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.ingest import Ingest, Terms
from ingestd.pipeline.leftover import Leftovers
from ingestd.pipeline.obstacles import Obstacle, Obstacles, Waiting
from ingestd.pipeline.read import ReadLimits, stamp_of
from ingestd.pipeline.standard import Standard, review_due, take_up
from ingestd.pipeline.step import Step
from ingestd.pipeline.stop import Asked
from ingestd.pipeline.trial import TrialFile
from ingestd.pipeline.watch import Look, Seen, Settling, closed, look_at, scan
from ingestd.pipeline.worker import Post, Told, utc_now
from ingestd.pipeline.workers import Offer, Taken, Workers
from ingestd.pipeline.writers import Writers, writers_of
from ingestd.port import TEXT, Page, Port, verdict
from ingestd.standing import Standing
from ingestd.storage import Pause, WalWatch, open_database, open_patiently, rest
from ingestd.systemd import Systemd
from ingestd.telling.channels import Channel, channels_of
from ingestd.telling.sender import wanted_of
from ingestd.telling.teller import send_what_waits, telling
from ingestd.telling.troubles import Troubles
from ingestd.transient import database_at_work

if TYPE_CHECKING:
    from ingestd.pipeline.evaluator import Evaluator, Thresholds

log = structlog.get_logger()

_STAMPS_ASKED_AT_ONCE = 1_000
# Taking goes on for this many times as long as the look before it took, at least.
_TAKING_PER_LOOK = 10
_LOOKS_APART_SECONDS = 0.1
_BETWEEN_EVALUATIONS_SECONDS, _AFTER_FAILURE_SECONDS = 3.0, 60.0
_PAUSE_PER_EVALUATION = 4
_REVIEWING_SECONDS = 2.0
_MOST_WORKERS = 2
# Added where systemd is told how long something may take at most.
_SPARE_SECONDS = 60
# The whole feed is looked at when nothing waits, in a rush once a minute, in silence every ten.
_FEED_IN_A_RUSH = 60.0
_FEED_IN_SILENCE = 600.0
_FEED_SHARE = 20
_FIGURES_APART_SECONDS = 1.0
# Of so many files that were completed last it is told after a start whose they are.
_LAST_COMPLETED = 1_000
GAVE_UP = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `once` has come; sizes in bytes on disk."""

    path: str
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


@dataclass(slots=True)
class Summary:
    """What `once` did."""

    files: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes: int = 0
    waiting: list[str] = field(default_factory=list)
    stopped_by: int | None = None

    def add(self, jobs: Sequence[Told]) -> None:
        """Count the jobs of one file."""
        for job in jobs:
            self.files[job.status] += 1
            for name in ("read", "stored", "known", "rollbacks", "rejected", "blank"):
                self.rows[name] += getattr(job.books, name)


def read_limits(settings: Settings) -> ReadLimits:
    """What reading is held to."""
    limits = settings.limits
    return ReadLimits(
        max_line_bytes=limits.max_line_bytes,
        max_member_bytes=limits.max_member_bytes,
        max_ratio=limits.max_ratio,
        max_nesting=limits.max_nesting,
        max_members=limits.max_members,
        max_name_bytes=limits.max_name_bytes,
    )


def terms_of(settings: Settings, *, is_archiving: bool) -> Terms:
    """What ingesting is held to."""
    return Terms(
        read=read_limits(settings),
        batch_rows=settings.ingest.batch_rows,
        batch_bytes=settings.ingest.batch_bytes,
        max_reject_rows=settings.ingest.max_reject_rows,
        max_reject_ratio=settings.ingest.max_reject_ratio,
        max_entries=settings.limits.max_entries,
        max_json_depth=settings.limits.max_json_depth,
        max_field_bytes=settings.limits.max_field_bytes,
        max_hours=settings.limits.max_hours,
        raw_text_bytes=settings.limits.raw_text_bytes,
        attempts=settings.ingest.attempts,
        retry_seconds=settings.ingest.retry_seconds,
        lease_seconds=settings.ingest.lease_seconds,
        is_archiving=is_archiving,
        archive=settings.watch.archive,
        quarantine=settings.watch.quarantine,
        alerts=settings.held,
        elections=settings.elections,
        notices=wanted_of(settings.notify),
    )


def make_ingest(
    settings: Settings,
    engine: Engine,
    *,
    is_archiving: bool,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Ingest:
    """Put an `Ingest` together for these settings."""
    terms = terms_of(settings, is_archiving=is_archiving)
    return Ingest(
        sessions=outbox.telling(make_sessions(engine), terms.notices),
        terms=terms,
        clock=utc_now,
        owner=ledger.owner_name(),
        should_stop=should_stop,
        on_step=on_step,
        reader=make_reader(settings),
    )


def make_reader(settings: Settings) -> Reader | None:
    """A reader for the daemon itself, where there is a core for it."""
    from_mb = settings.ingest.reader_from_mb
    if not from_mb or len(os.sched_getaffinity(0)) == 1:
        return None
    return Reader(from_mb * 1024 * 1024)


def make_workers(settings: Settings, ingest: Ingest) -> Workers:
    """Put `Workers` together for these settings; with SQLite the daemon takes all files itself."""
    database = settings.database
    is_sqlite = make_url(database.url).get_backend_name() == "sqlite"
    most = settings.ingest.workers or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))

    def post(number: int) -> Post:
        return Post(
            number=number,
            url=database.url,
            busy_timeout_seconds=database.busy_timeout_seconds,
            answer_timeout_seconds=database.answer_timeout_seconds,
            stop_seconds=settings.ingest.stop_seconds,
            terms=ingest.terms,
            owner=ingest.owner,
            log=chosen(),
        )

    return Workers(
        ingest, post, 1 if is_sqlite else most, settings.ingest.workers_from_mb * 1024 * 1024
    )


# ── statistics ────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Evaluating:
    """Lets the evaluator work off what files left for it, in a fifth of the time at most."""

    settings: Settings
    ingest: Ingest
    on_due: Callable[[int], None] = lambda _due: None
    is_thorough: bool = False
    _evaluator: Evaluator | None = None
    _next: float = 0.0

    def attend(self) -> None:
        """Evaluate what is due, unless the last time was a moment ago.

        Raises:
            StorageFault: the database is away; what is due stays so.
        """
        started = time.monotonic()
        if started < self._next:
            return
        pause = _BETWEEN_EVALUATIONS_SECONDS
        try:
            with database_at_work():
                self._work_off()
        except StorageFault:
            raise
        except Exception:
            # The rows are in: what cannot be judged must not keep files waiting.
            log.exception("evaluation_failed", again_in_seconds=_AFTER_FAILURE_SECONDS)
            pause = _AFTER_FAILURE_SECONDS
        now = time.monotonic()
        self._next = now + max(pause, _PAUSE_PER_EVALUATION * (now - started))

    def _work_off(self) -> None:
        self._review()
        with self.ingest.sessions() as session:
            due = stats.number_due(session)
        self.on_due(due)
        if not due:
            return
        self.ingest.tally.begin()
        is_first = self._evaluator is None
        if self._evaluator is None:
            self._evaluator = make_evaluator(self.settings, self.ingest)
        # What a killed process left of its turn is ours: it will not come back to it.
        done = self._evaluator.work_off(is_alone=is_first)
        if done:
            log.debug("evaluated", **asdict(done))

    def _review(self) -> None:
        """Judge anew what is held to other thresholds now; files wait for a moment of it."""
        end = None if self.is_thorough else time.monotonic() + _REVIEWING_SECONDS

        def should_stop() -> bool:
            return self.ingest.should_stop() or (end is not None and time.monotonic() > end)

        if reviewed := review_due(self.ingest, should_stop):
            log.info("judged_anew", constituencies=reviewed)


def make_evaluator(settings: Settings, ingest: Ingest) -> Evaluator:
    """Put an evaluator together for these settings."""
    # numpy takes a while to import, and `--help` does without.
    from ingestd.pipeline.evaluator import Evaluator  # noqa: PLC0415

    return Evaluator(ingest.sessions, thresholds_of(settings), ingest.clock, ingest.on_step)


def thresholds_of(settings: Settings) -> Thresholds:
    """What the statistical rules are held to."""
    from ingestd.pipeline.evaluator import Thresholds  # noqa: PLC0415

    told = settings.statistics
    numbers = {name: getattr(told, name) for name in type(told).thresholds()}
    return Thresholds(
        values=numbers,
        overrides=told.overrides,
        held=settings.held,
        voting_hours=told.voting_hours,
        first_hour=told.first_hour,
    )


# ── once ──────────────────────────────────────────────────────────────────────


def once(
    settings: Settings,
    paths: Sequence[Path] = (),
    *,
    is_archiving: bool | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Summary:
    """Ingest what is there and stop.

    Without `paths`: the inbox. Files elsewhere are left where they are unless
    `is_archiving` says otherwise.

    Raises:
        ConfigError: a path that is not there.
    """
    started = time.monotonic()
    inbox = settings.watch.inbox
    roots = list(paths) or [inbox]
    if is_archiving is None:
        is_inbox = all(root.resolve().is_relative_to(inbox.resolve()) for root in roots)
        is_archiving = is_inbox and settings.watch.after == "archive"
    files = [found for root in roots for found in _files_of(settings, root)]
    summary = Summary()
    if settings.watch.require_marker and not paths:
        unmarked = [found.label for found in files if not found.claim]
        summary.waiting += [f"{label}: it has no marker and no manifest" for label in unmarked]
        files = [found for found in files if found.claim]
    with _stopping() as stop:
        engine = open_database(
            settings,
            writer=True,
            give_up=lambda: stop.is_overdue(settings.ingest.stop_seconds),
        )
        try:
            ingest = make_ingest(
                settings,
                engine,
                is_archiving=is_archiving,
                should_stop=stop.is_set,
                on_step=on_step,
            )
            _begin(ingest)
            _take_up(ingest, settings)
            # Also where nothing is left: what was read in part may be what was taken away.
            folders = {root.absolute() for root in roots if root.is_dir()}
            for root in folders | {found.root for found in files}:
                ingest.note_missing(root)
            run_once = _Once(settings, ingest, stop, summary, on_progress)
            try:
                run_once.take(files)
            finally:
                ingest.close()
            run_once.evaluate()
        finally:
            engine.dispose()
        if not stop.is_set():
            _tell_people(settings, stop.is_set)
        summary.stopped_by = stop.signal if summary.waiting else None
    summary.seconds = time.monotonic() - started
    return summary


def _tell_people(settings: Settings, should_stop: Callable[[], bool]) -> None:
    """Send what this run found; what could not be sent goes with the next one."""
    try:
        send_what_waits(settings, should_stop=should_stop)
    except (ConfigError, StorageFault) as error:
        log.warning("notices_put_off", error=str(error), until="the next run")
    except Exception:
        # The files are in: whatever it is, it is no failure of this run.
        log.exception("notices_failed", until="the next run")


class _Once:
    """Takes some files, each once, and sums up what came of them."""

    def __init__(
        self,
        settings: Settings,
        ingest: Ingest,
        stop: Asked,
        summary: Summary,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._settings = settings
        self._ingest = ingest
        self._stop = stop
        self._stop_seconds = settings.ingest.stop_seconds
        self._summary = summary
        self._patience = _OncePatience(settings.database.busy_timeout_seconds, stop.is_set)
        self._workers = make_workers(settings, ingest)
        self._on_progress = on_progress
        if on_progress:
            ingest.on_progress = self._workers.on_progress = self._note_share
        self._sizes: dict[str, int] = {}
        self._shares: dict[str, int] = {}
        self._number = self._total = self._files = self._done = 0

    def evaluate(self) -> None:
        """Evaluate before the end; what is not evaluated now is due at the next run."""
        if self._stop.is_set() or self._patience.is_over:
            return
        try:
            # Also where no file lay: a killed run may have taken the last of them.
            _evaluate_feed(self._ingest, is_thorough=True)
            Evaluating(self._settings, self._ingest, is_thorough=True).attend()
        except StorageFault as fault:
            log.warning("evaluation_put_off", error=str(fault), until="the next run")

    def take(self, files: Sequence[Found]) -> None:
        """Take them all, or as many as there is time for."""
        offers = [self._offer(found) for found in files]
        self._sizes = {label_of(offer.relative): offer.size for offer in offers}
        self._number, self._total = len(offers), sum(offer.size for offer in offers)
        self._workers.offer(offers)
        try:
            while self._workers.is_busy and not self._stop.is_set() and not self._patience.is_over:
                self._go_on()
        finally:
            is_away = self._patience.is_over
            why = "the database is away" if is_away else "stopped before it was taken"
            for offer in self._workers.withdraw():
                self._summary.waiting.append(f"{label_of(offer.relative)}: {why}")
            for taken in self._workers.close(lambda: self._stop.is_overdue(self._stop_seconds)):
                self._settle(taken)
        self._tell("")
        self._summary.bytes = self._done

    def _go_on(self) -> None:
        if self._workers.has_offers:
            self._tell(label_of(self._workers.first.relative))
        again: list[Offer] = []
        for taken in self._workers.next():
            if isinstance(taken.error, StorageFault) and self._patience.is_left(taken.error):
                again.append(taken.offer)
            else:
                self._settle(taken)
                if taken.error is None:
                    self._patience.over()
        if again:
            self._workers.offer_again(again)
            self._patience.rest()

    def _offer(self, found: Found) -> Offer:
        def get_ready() -> Found | None:
            if writers_of(found.path) is Writers.SOME:
                self._summary.waiting.append(f"{found.label}: a process is still writing it")
                self._count(found, size)
                return None
            return found

        size = _size_of(found.path)
        return Offer(root=found.root, relative=found.relative, size=size, get_ready=get_ready)

    def _settle(self, taken: Taken) -> None:
        label, waiting = taken.found.label, self._summary.waiting
        self._count(taken.found, taken.offer.size)
        if isinstance(taken.error, StopRequested):
            waiting.append(f"{label}: stopped in it; the next run goes on there")
        elif taken.error is not None:
            waiting.append(f"{label}: {str(taken.error) or type(taken.error).__name__}")
        elif not taken.jobs:
            waiting.append(f"{label}: being worked on elsewhere, or gone")
        self._summary.add(taken.jobs)
        for job in taken.jobs:
            if job.status in ("pending", "processing", "failed"):
                waiting.append(f"{label}: {job.message or 'held by another process'}")

    def _count(self, found: Found, size: int) -> None:
        self._files += 1
        self._done += size
        self._shares.pop(found.label, None)
        self._tell(found.label)

    def _note_share(self, path: str, read: int, size: int) -> None:
        """Tell progress inside one file as a share of its size on disk."""
        self._shares[path] = int(self._sizes[path] * min(1.0, read / size)) if size else 0
        self._tell(path)

    def _tell(self, path: str) -> None:
        if self._on_progress:
            done = self._done + sum(self._shares.values())
            self._on_progress(Progress(path, self._files, self._number, done, self._total))


class _OncePatience:
    """Waits for a database that is away, for so long in one run."""

    def __init__(self, seconds: float, should_stop: Callable[[], bool]) -> None:
        self.is_over = False
        self._left = seconds
        self._should_stop = should_stop
        self._pause = Pause()
        self._next = 0.0

    def is_left(self, fault: StorageFault) -> bool:
        """Note a fault; whether it is worth to try again."""
        self.is_over = self._left <= 0
        if self.is_over or self._should_stop():
            return False
        self._next = self._pause.after(fault)
        return True

    def rest(self) -> None:
        """Wait before it is tried again."""
        seconds = min(self._left, self._next)
        self._left -= seconds
        rest(seconds, self._should_stop)

    def over(self) -> None:
        """Note that it works again."""
        self._pause.over()


def _evaluate_feed(ingest: Ingest, *, is_thorough: bool = False, kept: Kept | None = None) -> None:
    """Let the rules about all constituencies look at what is here now."""
    with database_at_work(), ingest.sessions.begin() as session:
        evaluate_feed(
            session,
            now=ingest.clock(),
            held=ingest.terms.alerts,
            is_thorough=is_thorough,
            kept=kept,
        )


def _files_of(settings: Settings, root: Path) -> list[Found]:
    """List the files of one argument: a folder with all below it, or a file by itself."""
    root = root.absolute()
    if root.is_file():
        inbox = settings.watch.inbox.absolute()
        base = inbox if root.is_relative_to(inbox) else root.parent
        claims = _claims(settings, root.parent, _markers_in(root.parent), [Path(root.name)])
        return [_asked(base, root.relative_to(base), claims.get(Path(root.name)))]
    if not root.is_dir():
        message = f"{root}: there is no such file or folder"
        raise ConfigError(message)
    markers: dict[Path, str] = {}
    seen = sorted(
        scan(root, settings.watch.ignore, markers=markers),
        key=lambda file: (file.mtime_ns, str(file.relative)),
    )
    claims = _claims(settings, root, markers, [file.relative for file in seen])
    return [_asked(root, file.relative, claims.get(file.relative)) for file in seen]


def _asked(root: Path, relative: Path, claim: Claim | None) -> Found:
    return Found(root, relative, claim.evidence if claim else "asked", claim=claim)


def _claims(
    settings: Settings, root: Path, markers: dict[Path, str], files: Sequence[Path]
) -> dict[Path, Claim]:
    manifests = Manifests(settings.limits.max_manifest_bytes)
    claims = manifests.claims(root, markers, files)
    manifests.complain()
    return claims


def _markers_in(folder: Path) -> dict[Path, str]:
    with os.scandir(folder) as entries:
        return {
            Path(entry.name): stamp_of(entry.stat(follow_symlinks=False))
            for entry in entries
            if is_marker(entry.name)
        }


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _begin(ingest: Ingest) -> None:
    """Take over what an earlier process left behind."""
    with database_at_work(), ingest.sessions.begin() as session:
        freed = ledger.release_dead(session, now=ingest.clock(), owner=ingest.owner)
    if freed:
        log.info("jobs_taken_over", jobs=freed)
    if ingest.terms.is_archiving:
        for folder in (ingest.terms.archive, ingest.terms.quarantine):
            if swept := archive.sweep(folder):
                log.info("broken_copies_removed", folder=str(folder), files=swept)


def standard_of(settings: Settings) -> Standard:
    """By what these settings judge."""
    statistics = settings.statistics.model_dump(mode="json")
    return Standard(alerts=settings.held, elections=settings.elections, statistics=statistics)


def _take_up(ingest: Ingest, settings: Settings) -> None:
    """Let these settings hold for what is stored, too."""
    with database_at_work(), ingest.sessions.begin() as session:
        anew = take_up(session, standard_of(settings), ingest.clock())
    if anew:
        log.info("thresholds_changed", constituencies=anew, judged="again, one after the other")


@contextmanager
def _stopping(on_stop: Callable[[], None] = lambda: None) -> Iterator[Asked]:
    """Note SIGTERM and SIGINT for the time of the block (main thread only)."""
    stop = Asked()

    def note(number: int, _frame: FrameType | None) -> None:
        log.info("stop_requested", signal=signal.Signals(number).name)
        stop.ask(number)
        on_stop()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# ── run ───────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Unmarked:
    """Says that files wait for a marker that is required: when it begins, and when it is over."""

    _since: float | None = None
    _most: int = 0

    def note(self, files: Sequence[Path], now: float) -> None:
        """Note which files lack theirs at this look."""
        if files and self._since is None:
            self._since = now
            log.warning("files_without_marker", files=len(files), first=label_of(files[0]))
        elif not files and self._since is not None:
            waited = round(now - self._since, 1)
            log.info("files_without_marker_over", most_files=self._most, seconds=waited)
            self._since, self._most = None, 0
        self._most = max(self._most, len(files))


@dataclass(slots=True)
class Absence:
    """How long the inbox could not be listed; said when it begins and when it is over."""

    since: float | None = None
    looks: int = 0
    device: int | None = None

    def note(self, root: Path, error: OSError, now: float) -> None:
        """Note a look that failed."""
        self.looks += 1
        if self.since is None:
            self.since = now
            log.warning("inbox_away", path=str(root), error=str(error), uid=os.geteuid())

    def end(self, root: Path, identity: tuple[int, int], now: float) -> None:
        """Note a look that succeeded."""
        if self.since is not None:
            away = round(now - self.since, 1)
            log.info("inbox_back", path=str(root), away_seconds=away, looks=self.looks)
        if self.device not in (None, identity[0]):
            # Perhaps a disk was mounted, or is missing and its empty mount point is seen.
            log.warning("inbox_on_another_file_system", path=str(root))
        self.device = identity[0]
        self.since = None
        self.looks = 0

    def seconds(self, now: float) -> float:
        """How long it is away."""
        return 0.0 if self.since is None else now - self.since


@dataclass(slots=True)
class Audience:
    """Who is told how it goes: systemd, and the hooks of the caller."""

    systemd: Systemd = field(default_factory=Systemd)
    on_ready: Callable[[], None] = lambda: None
    on_step: Callable[[Step], None] = lambda _step: None
    standing: Standing = field(default_factory=Standing)
    figures: Figures = field(init=False)
    is_ready: bool = False

    def __post_init__(self) -> None:
        """Count from now on."""
        self.figures = Figures(utc_now(), self.standing)

    def looked(self, queued: int, held_up: int) -> None:
        """The inbox was looked at, after the database had answered: that is all a start is."""
        self.standing.looked(queued, held_up)
        self.tell()
        if not self.is_ready:
            self.is_ready = True
            self.systemd.ready()

    def read(self, path: str, done: int, size: int) -> None:
        """So much of a file is in the tables."""
        self.standing.read(path, done, size)
        self.tell()

    def lacks(self, what: str, error: Exception) -> None:
        """Database or inbox is away; nothing is to be done about it here."""
        self.standing.lacks(what, error)
        self.tell()

    def stopping(self, settings: Settings) -> None:
        """A stop was asked for."""
        self.standing.is_stopping = True
        self.systemd.stopping(within_seconds=settings.ingest.stop_seconds + _SPARE_SECONDS)
        self.tell()

    def starting(self, settings: Settings, *, is_again: bool) -> None:
        """A start, or a reload: it may last as long as the database takes for one answer."""
        self.is_ready = False
        if is_again:
            self.systemd.reloading()
        self.systemd.patience(settings.database.answer_timeout_seconds + _SPARE_SECONDS)

    def tell(self) -> None:
        """Say how it stands."""
        self.systemd.status(self.standing.sentence())

    @property
    def silent_seconds(self) -> float:
        """How long nothing was got done that would have fed the watchdog."""
        return max(0.0, self.systemd.clock() - self.systemd.lived_at)

    def why_not_ready(self) -> list[str]:
        """What is missing for files to be taken; nothing where they are."""
        standing = self.standing
        if standing.is_stopping:
            return ["it is stopping"]
        if standing.away:
            return [standing.away]
        return [] if self.is_ready else ["it has not looked at the inbox yet"]


def pages_of(
    audience: Audience, silent_seconds: Callable[[], float]
) -> dict[str, Callable[[], Page]]:
    """What the local port answers; asked in threads of its own, so from what is known only."""
    figures = audience.figures
    figures.ready.set_function(lambda: not audience.why_not_ready())
    figures.progress.set_function(lambda: time.time() - audience.silent_seconds)

    def health() -> Page:
        silent = audience.silent_seconds
        is_silent = silent > silent_seconds()
        reasons = [f"it came no step further for {silent:.0f} seconds"] if is_silent else []
        return verdict("healthy", reasons)

    return {
        "/metrics": lambda: Page(figures.page(), TEXT),
        "/healthz": health,
        "/readyz": lambda: verdict("ready", audience.why_not_ready()),
    }


@dataclass(slots=True)
class Daemon:
    """One inbox, one database, one loop."""

    settings: Settings
    ingest: Ingest
    watcher: Watcher
    settling: Settling
    manifests: Manifests
    leftovers: Leftovers
    wal: WalWatch
    workers: Workers
    # Files that somebody has in hand, as they were when they were given.
    given: dict[Path, Waiting] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    # Stamps of files that are final where they lie: left there by setting, or
    # waiting for a pause to end; spares the ledger a question at every look.
    done: dict[Path, str] = field(default_factory=dict)
    unmarked: Unmarked = field(default_factory=Unmarked)
    absence: Absence = field(default_factory=Absence)
    seen: Sequence[Seen] = ()
    has_more: bool = False
    obstacles: Obstacles = field(default_factory=Obstacles)
    audience: Audience = field(default_factory=Audience)
    feed_at: float = -_FEED_IN_SILENCE
    feed_seconds: float = 0.0
    kept: Kept = field(default_factory=Kept)
    has_news: bool = False
    figures_at: float = 0.0

    def turn(self) -> bool:
        """Look once and take what is complete; says whether anything was taken."""
        started = time.monotonic()
        root = self.settings.watch.inbox
        look = self._look()
        if look is None:
            return False
        here = [file.relative for file in look.files]
        hints = self.watcher.attend(look, time.monotonic()) | self._asked_for(root)
        files = self._unfinished(root, look.files)
        claims = self.manifests.claims(root, look.markers, here)
        # Thousands may wait; what arrives meanwhile, and a deaf watcher, are seen by the next look.
        size_of = {file.relative: file.size for file in files}
        now = time.monotonic()
        longest = max(self.settings.watch.poll_seconds, _TAKING_PER_LOOK * (now - started))
        ready = self.settling.complete(root, files, hints, now, claims)
        self.unmarked.note(self.settling.unmarked, now)
        self.audience.looked(len(files), self.obstacles.held_up)
        self.audience.figures.looked([(file.stamp, file.size) for file in files], here)
        self.audience.figures.hear(self.watcher.heard)
        self.audience.figures.spent({"scan": now - started}, Counter())
        self.workers.offer(self._offer(complete, size_of[complete.relative]) for complete in ready)
        taken = self._take_until(now + longest)
        in_work = {label_of(relative) for relative in self.workers.in_work}
        self.ingest.note_missing(root, in_work)
        if self.ingest.terms.is_archiving:
            for marker in self.leftovers.due(self.manifests, look.markers, here, now):
                with database_at_work():
                    self.leftovers.tidy(self.ingest.sessions, marker, self.manifests)
        self._attend_to_feed(time.monotonic(), is_new=taken)
        self.ingest.rest()
        return taken

    def _take_until(self, end: float) -> bool:
        """Take what is offered, as long as there is time; says whether anything was taken."""
        taken = False
        # What workers move away wakes us, too.
        first = time.monotonic() + _LOOKS_APART_SECONDS
        self._tell_figures()
        faults: list[StorageFault] = []
        while self.workers.is_busy and not self.ingest.should_stop() and not faults:
            now = time.monotonic()
            is_woken = not self.workers.has_offers and now >= first and self.watcher.is_woken
            if is_woken or now >= end:
                break
            self._tell_begun()
            for each in self.workers.next():
                is_taken = False
                if isinstance(each.error, StorageFault):  # that concerns all files
                    faults.append(each.error)
                else:
                    is_taken = self._settle(each)
                self.audience.figures.took(each.found.relative, each.jobs)
                self.audience.standing.end(each.found.label, is_taken=is_taken)
                self.audience.tell()
                taken |= is_taken
            self.wal.look()
            if time.monotonic() - self.figures_at >= _FIGURES_APART_SECONDS:
                self._tell_figures()
        self._tell_figures()
        # Workers go on meanwhile; who waits for the next look hears of them late.
        self.has_more = self.workers.is_busy
        if faults:
            raise faults[0]
        return taken

    def end(self, hurries: Callable[[], bool]) -> None:
        """End the workers; what they did meanwhile is in the figures, which outlive a reload."""
        for taken in self.workers.close(hurries):
            self.audience.figures.took(taken.found.relative, taken.jobs)
        self._tell_figures()

    def _tell_figures(self) -> None:
        figures = self.audience.figures
        figures.spent(*self.ingest.tally.taken())
        figures.workers.set(self.workers.at_work)
        figures.in_work.set(len(self.workers.in_work))
        self.figures_at = time.monotonic()

    def _tell_begun(self) -> None:
        if self.workers.has_offers and not self.workers.in_work:
            self.audience.standing.begin(label_of(self.workers.first.relative))
            self.audience.tell()

    def _attend_to_feed(self, now: float, *, is_new: bool) -> None:
        """Let the rules about all constituencies look, where no file waits for them."""
        self.has_news |= is_new
        pause = _FEED_IN_A_RUSH if self.has_news else _FEED_IN_SILENCE
        if self.has_news and not self.has_more:
            # Of a whole country it takes seconds: then files come first for a while.
            pause = min(pause, _FEED_SHARE * self.feed_seconds)
        if now - self.feed_at >= pause:
            # Half a look is no look: after a fault, everything is read again.
            kept, self.kept = self.kept, Kept()
            _evaluate_feed(self.ingest, kept=kept)
            self.kept = kept
            self.feed_seconds = time.monotonic() - now
            self.audience.figures.spent({"feed": self.feed_seconds}, Counter())
            self.feed_at, self.has_news = now, False

    def _asked_for(self, root: Path) -> dict[Path, str]:
        """Files that a person put back by `ingestd retry`: their markers stayed behind."""
        if not self.settings.watch.require_marker:
            return {}
        with database_at_work(), self.ingest.sessions.begin() as session:
            queued = ledger.queued_under(session, str(root))
            return {Path(job.path): "asked" for job in queued}

    def _look(self) -> Look | None:
        """Look at the inbox; None while it is away. Nobody makes it anew: a disk may be missing."""
        root = self.settings.watch.inbox
        self.watcher.wait(0)
        self.watcher.wakeup.begin_look()
        try:
            look = look_at(root, self.settings.watch.ignore, self.odd, self.seen)
        except OSError as error:
            self.absence.note(root, error, time.monotonic())
            self.audience.lacks("the inbox", error)
            return None
        self.absence.end(root, look.identity, time.monotonic())
        self.seen = look.files
        return look

    def _unfinished(self, root: Path, seen: Sequence[Seen]) -> list[Seen]:
        """Drop the files that are known to be final as they lie there."""
        here = {file.relative: file.stamp for file in seen}
        self.done = {path: stamp for path, stamp in self.done.items() if here.get(path) == stamp}
        self.obstacles.forget_others(here.keys(), now := time.monotonic())
        fresh = [
            file
            for file in seen
            if file.relative not in self.done
            and not self.obstacles.holds(Waiting(file.relative, file.stamp, file.size), now)
        ]
        if self.ingest.terms.is_archiving:
            return fresh
        for start in range(0, len(fresh), _STAMPS_ASKED_AT_ONCE):
            part = fresh[start : start + _STAMPS_ASKED_AT_ONCE]
            labels = [label_of(file.relative) for file in part]
            with database_at_work(), self.ingest.sessions.begin() as session:
                known = ledger.known_stamps(session, str(root), labels)
            for file in part:
                if (label_of(file.relative), file.stamp) in known:
                    self.done[file.relative] = file.stamp
        return [file for file in fresh if file.relative not in self.done]

    def _offer(self, complete: Found, size: int) -> Offer:
        def get_ready() -> Found | None:
            found = closed(complete)
            if found is None:
                return None
            try:
                status = found.path.stat()
            except OSError:  # it went, or its folder closed, since it was seen
                return None
            file = Waiting(found.relative, stamp_of(status), status.st_size)
            if self.obstacles.holds(file, time.monotonic()):  # one before it has met the same
                return None
            self.given[found.relative] = file
            return found

        root, relative = complete.root, complete.relative
        return Offer(root=root, relative=relative, size=size, get_ready=get_ready)

    def _settle(self, taken: Taken) -> bool:
        """Note what has become of a file; says whether it needs no more."""
        found, error = taken.found, taken.error
        file = self.given.pop(found.relative)
        if isinstance(error, ManifestNotMet):
            self._wait_for_manifest(found, error)
        elif error is not None and not isinstance(error, StopRequested | FileNotFoundError):
            self._meet(found, file, error)
        if error is not None or not taken.jobs:
            return False
        self.obstacles.pass_(file, time.monotonic())
        self._say_met(found)
        if any(job.status in ("pending", "processing", "failed") for job in taken.jobs):
            return False
        if not self.ingest.terms.is_archiving:
            self.done[found.relative] = found.stamp
        return True

    def _wait_for_manifest(self, found: Found, unmet: ManifestNotMet) -> None:
        """Said the first time; how it went on is said when it is over."""
        if self.settling.not_met(found, time.monotonic()):
            log.warning(
                "manifest_not_met",
                path=found.label,
                manifest=unmet.manifest,
                what=unmet.what,
                expected=unmet.expected,
                found=unmet.found,
            )

    def _say_met(self, found: Found) -> None:
        waited = self.settling.met(found.relative, time.monotonic())
        if waited and not found.is_last_chance:
            times, seconds = waited
            log.info("manifest_met", path=found.label, tries=times + 1, seconds=round(seconds, 1))

    def _meet(self, found: Found, file: Waiting, error: Exception) -> None:
        """Note what is in the way of one file; it waits, all others go on."""
        reason, place = error, found.path
        obstacle = obstacles.not_taken(found.path)
        if isinstance(error, NotPutAway):
            reason, place = error.error, error.place
            obstacle = self._closed_door(error)
        elif isinstance(error, PermissionError):
            place = obstacles.culprit(found.path)
            obstacle = obstacles.not_readable(found.path)
        told = str(reason) if isinstance(reason, OSError) else f"{type(reason).__name__}: {reason}"
        details: dict[str, object] = {"path": found.label, "error": told}
        if isinstance(reason, OSError):
            details |= {"at": str(place), **obstacles.rights(place)}
            details["advice"] = obstacles.advice(reason, place)
        self.obstacles.meet(obstacle, file, time.monotonic(), **details)

    def _closed_door(self, held: NotPutAway) -> Obstacle:
        watch = self.settings.watch
        names = {watch.archive: "archive", watch.quarantine: "quarantine"}
        return obstacles.not_put_away(names.get(held.folder, "inbox"), held.folder, held.error)


def run(
    settings: Settings,
    *,
    reload: Callable[[], Settings] = load_settings,
    on_ready: Callable[[], None] | None = None,
    on_step: Callable[[Step], None] = lambda _step: None,
    systemd: Systemd | None = None,
) -> int:
    """Run in the foreground until SIGTERM or SIGINT; returns the exit status.

    SIGHUP reads the settings again by `reload`; broken ones are said and the
    old ones kept. The status is GAVE_UP when the inbox was away for too long.

    Raises:
        ConfigError: folders or channels that cannot be made or used.
        SchemaMismatch: the database must be upgraded first.
    """
    made: set[Path] = set()
    audience = Audience(systemd or Systemd(), on_ready or (lambda: None), on_step)
    with (
        _stopping(lambda: audience.stopping(settings)) as stop,
        _hanging_up() as hung_up,
        _noting_dead_threads(),
        closing(Port(pages_of(audience, lambda: settings.metrics.silent_seconds))) as port,
    ):
        audience.starting(settings, is_again=False)
        _make_folders(settings, made)
        # Made once for these settings: the files they were made of may be broken by the next turn.
        channels, troubles = channels_of(settings.notify), Troubles()
        while not stop.is_set():
            _note_short_watchdog(settings, audience.systemd)
            port.listen_at(settings.metrics.listen)
            audience.figures.volumes.folders = _volumes(settings)
            with telling(settings, channels, troubles):
                if not _serve(settings, stop, hung_up, audience, port):
                    return GAVE_UP
                # Inside: that it was refused is told, too.
                if hung_up.is_set() and not stop.is_set():
                    hung_up.clear()
                    audience.starting(settings, is_again=True)
                    if fresh := _reloaded(reload, made, audience.standing):
                        settings, channels = fresh
    return 0


def _reloaded(
    reload: Callable[[], Settings], made: set[Path], standing: Standing
) -> tuple[Settings, list[Channel]] | None:
    """Read the settings again and make their channels; None where they cannot be used."""
    try:
        fresh = reload()
        _make_folders(fresh, made)
        channels = channels_of(fresh.notify)
    except ConfigError as error:
        log.error("configuration_refused", error=str(error), kept="the old one")  # noqa: TRY400 - no traceback for a typing mistake
        standing.complaint = str(error)
        return None
    log.info("configuration_reloaded")
    standing.complaint = ""
    return fresh, channels


def _note_short_watchdog(settings: Settings, systemd: Systemd) -> None:
    """A statement may take its time; a restart in the midst of it would only begin it again."""
    answer = settings.database.answer_timeout_seconds
    if 0 < systemd.watchdog_seconds <= answer:
        log.warning(
            "watchdog_too_short",
            watchdog_seconds=systemd.watchdog_seconds,
            answer_timeout_seconds=answer,
            remedy="WatchdogSec= of the unit must be above database.answer_timeout_seconds",
        )


def _make_folders(settings: Settings, made: set[Path]) -> None:
    """Make the folders that are not there, each once: one that has gone since is waited for."""
    watch = settings.watch
    for folder in {watch.inbox, watch.archive, watch.quarantine} - made:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make the folder {folder}: {error}"
            raise ConfigError(message) from error
        made.add(folder)


def _volumes(settings: Settings) -> dict[str, Path]:
    """Where room is needed."""
    watch, url = settings.watch, make_url(settings.database.url)
    folders = {"inbox": watch.inbox, "archive": watch.archive, "quarantine": watch.quarantine}
    if url.get_backend_name() == "sqlite" and url.database:
        folders["database"] = Path(url.database).parent
    return folders


def _serve(
    settings: Settings,
    stop: Asked,
    hung_up: Asked,
    audience: Audience,
    port: Port,
) -> bool:
    """Open the database and work on it until a stop or a hang-up; False as `_loop` says."""

    def on_away(error: Exception) -> None:
        audience.systemd.patience(settings.database.answer_timeout_seconds + _SPARE_SECONDS)
        audience.systemd.alive()
        audience.lacks("the database", error)
        audience.figures.faulted()
        port.attend()

    engine = open_patiently(
        settings,
        should_stop=lambda: stop.is_set() or hung_up.is_set(),
        give_up=lambda: stop.is_overdue(settings.ingest.stop_seconds),
        on_away=on_away,
    )
    if engine is None:
        return True
    try:
        return _loop(settings, engine, stop, hung_up, audience, port)
    finally:
        engine.dispose()


def _ask_at_answers(engine: Engine, should_stop: Callable[[], bool]) -> None:
    """Let each answer of the database be a sign of life, too: a commit may be many statements."""

    @event.listens_for(engine, "after_cursor_execute")
    def on_answer(*_told: object) -> None:
        should_stop()


def _loop(
    settings: Settings,
    engine: Engine,
    stop: Asked,
    hung_up: Asked,
    audience: Audience,
    port: Port,
) -> bool:
    """Look and take until a stop or a hang-up; a file in work ends at a batch border.

    False: the inbox was away for too long.
    """

    def should_stop() -> bool:
        # Only the loop and the file in work ask, wherever they have come one step further (the
        # wait for an answer of the database asks `give_up`): whoever asks does not hang. But a
        # daemon that goes on while one of its workers hangs is not alive.
        if not workers.is_any_silent:
            audience.systemd.alive()
        return stop.is_set() or hung_up.is_set()

    is_archiving = settings.watch.after == "archive"
    ingest = make_ingest(
        settings,
        engine,
        is_archiving=is_archiving,
        should_stop=should_stop,
        on_step=audience.on_step,
    )
    workers = make_workers(settings, ingest)
    _ask_at_answers(engine, should_stop)
    ingest.on_progress = workers.on_progress = audience.read
    watch = settings.watch
    watcher = Watcher(watch.inbox, wanted=watch.events, probe_seconds=watch.probe_seconds)
    wal = WalWatch(engine, settings.database.wal_warn_mb)
    daemon = Daemon(
        settings,
        ingest,
        watcher,
        Settling(watch.settle_seconds, watch.manifest_wait_seconds, watch.require_marker),
        Manifests(settings.limits.max_manifest_bytes),
        Leftovers(watch.inbox, watch.archive, watch.manifest_wait_seconds),
        wal,
        workers,
        audience=audience,
    )
    figures = audience.figures
    evaluating = Evaluating(settings, ingest, figures.due.set)
    log.info("started", inbox=str(settings.watch.inbox), owner=ingest.owner)
    pause = Pause()
    has_begun = False
    next_visit = 0.0
    try:
        while not should_stop():
            try:
                if time.monotonic() >= next_visit:
                    _visit(settings, ingest, figures, is_first=not has_begun)
                    next_visit = time.monotonic() + min(5, settings.ingest.lease_seconds)
                    port.attend()
                daemon.turn()
                evaluating.attend()
                wal.look()
            except (StorageFault, OSError) as error:
                audience.lacks("the database or a disk", error)
                figures.faulted()
                rest(pause.after(error), should_stop)
                continue
            pause.over()
            if daemon.absence.since is not None:
                if _gives_up(settings, daemon.absence):
                    return False
                rest(settings.watch.poll_seconds, should_stop)
                continue
            if not has_begun:
                has_begun = True
                audience.on_ready()
            _wait(watcher, should_stop, _next_look(settings, daemon))
    finally:
        daemon.end(lambda: stop.is_overdue(settings.ingest.stop_seconds))
        ingest.close()
        watcher.stop()
        log.info("stopped", owner=ingest.owner, waiting=daemon.settling.waiting)
    return True


def _visit(settings: Settings, ingest: Ingest, figures: Figures, *, is_first: bool) -> None:
    """Take over what others left, measure how long the database takes for that.

    The first time, let the settings hold for what is stored, and find what each source delivered
    last: its silence goes on over a restart.
    """
    started = time.monotonic()
    _begin(ingest)
    figures.answered(time.monotonic() - started)
    if not is_first:
        return
    _take_up(ingest, settings)
    with database_at_work(), ingest.sessions() as session:
        last = ledger.last_completed(session, str(settings.watch.inbox), _LAST_COMPLETED)
    for path, finished_at in reversed(last):
        figures.succeeded(Path(path), finished_at.timestamp())


def _gives_up(settings: Settings, absence: Absence) -> bool:
    """Say whether the inbox is away for so long that only a restart, or a person, may help."""
    away = absence.seconds(time.monotonic())
    if not 0 < settings.watch.give_up_seconds <= away:
        return False
    log.error(
        "gave_up",
        reason="the inbox cannot be listed (watch.give_up_seconds)",
        path=str(settings.watch.inbox),
        away_seconds=round(away, 1),
        status=GAVE_UP,
    )
    return True


def _next_look(settings: Settings, daemon: Daemon) -> float:
    """Seconds to the next look: soon while files settle, else the re-scan's interval."""
    if daemon.has_more:
        return 0
    if daemon.settling.waiting:
        return min(settings.watch.poll_seconds, max(0.05, settings.watch.settle_seconds / 2))
    return settings.watch.poll_seconds


def _wait(watcher: Watcher, should_stop: Callable[[], bool], seconds: float) -> None:
    """Wait for an event, the next look, or a stop (a signal is seen within a quarter second)."""
    until = time.monotonic() + seconds
    while not should_stop():
        left = until - time.monotonic()
        if left <= 0 or watcher.wait(min(left, 0.25)):
            return


@contextmanager
def _hanging_up() -> Iterator[Asked]:
    """Note SIGHUP for the time of the block (main thread only)."""
    hung_up = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield hung_up
        return
    former = signal.signal(signal.SIGHUP, lambda number, _frame: hung_up.ask(number))
    try:
        yield hung_up
    finally:
        signal.signal(signal.SIGHUP, former)


@contextmanager
def _noting_dead_threads() -> Iterator[None]:
    """Log what ends a thread of a library, for the time of the block."""

    def note(died: threading.ExceptHookArgs) -> None:
        name = died.thread.name if died.thread else None
        log.error("thread_died", thread=name, exc_info=died.exc_value)

    former, threading.excepthook = threading.excepthook, note
    try:
        yield
    finally:
        threading.excepthook = former


# ── try ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Trial:
    """What would become of each CSV of a file."""

    files: list[TrialFile]


def try_file(settings: Settings, path: Path, *, most_shown: int = 20) -> Trial:
    """Validate a file without writing anything.

    Raises:
        FileRefused: the container cannot be opened.
        FileVanished: there is no such file.
    """
    terms = terms_of(settings, is_archiving=False)
    return Trial(trial.try_file(path.absolute(), terms, most_shown=most_shown))
