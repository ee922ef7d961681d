"""The daemon: looks, waits, takes files, one after another, until it is told to stop.

Events and the re-scan find files; the ledger knows which of them are done;
`pipeline.ingest` takes each one. A database that is away stops nothing but
the taking: the inbox is the queue.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ingestd import migrate
from ingestd.config import ConfigError, Settings, load_settings
from ingestd.db import make_engine, make_sessions
from ingestd.errors import ManifestNotMet, NotPutAway, StopRequested, StorageFault
from ingestd.models import FileProcessing
from ingestd.pipeline import archive, ledger, obstacles, trial
from ingestd.pipeline.evidence import Claim, Manifests, is_marker
from ingestd.pipeline.ingest import Found, Ingest, Terms, database_at_work, label_of
from ingestd.pipeline.ledger import Books
from ingestd.pipeline.leftover import Leftovers
from ingestd.pipeline.obstacles import Obstacle, Obstacles, Waiting
from ingestd.pipeline.read import ReadLimits, stamp_of
from ingestd.pipeline.step import Step
from ingestd.pipeline.trial import TrialFile
from ingestd.pipeline.watch import Seen, Settling, Watcher, closed, scan
from ingestd.pipeline.writers import Writers, writers_of

log = structlog.get_logger()

_STAMPS_ASKED_AT_ONCE = 1_000
_LONGEST_PAUSE_SECONDS = 30.0


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

    def add(self, jobs: Sequence[FileProcessing]) -> None:
        """Count the jobs of one file."""
        for job in jobs:
            self.files[str(job.status)] += 1
            books = Books.of(job)
            for name in ("read", "stored", "known", "rollbacks", "rejected", "blank"):
                self.rows[name] += getattr(books, name)


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def read_limits(settings: Settings) -> ReadLimits:
    """What reading is held to."""
    limits = settings.limits
    return ReadLimits(
        max_line_bytes=limits.max_line_bytes,
        max_member_bytes=limits.max_member_bytes,
        max_ratio=limits.max_ratio,
        max_nesting=limits.max_nesting,
        max_members=limits.max_members,
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
        raw_text_bytes=settings.limits.raw_text_bytes,
        attempts=settings.ingest.attempts,
        retry_seconds=settings.ingest.retry_seconds,
        lease_seconds=settings.ingest.lease_seconds,
        is_archiving=is_archiving,
        archive=settings.watch.archive,
        quarantine=settings.watch.quarantine,
    )


def open_database(settings: Settings, *, writer: bool) -> Engine:
    """Open the database and make sure that its schema is ours.

    Raises:
        SchemaMismatch: it must be upgraded first, or is not ours.
        StorageFault: it does not answer.
    """
    database = settings.database
    engine = make_engine(
        database.url,
        writer=writer,
        cache_mb=database.sqlite_cache_mb,
        synchronous=database.sqlite_synchronous,
        busy_timeout_seconds=database.busy_timeout_seconds,
    )
    try:
        with database_at_work():
            migrate.ensure_current(engine, database.url)
    except BaseException:
        engine.dispose()
        raise
    return engine


def make_ingest(
    settings: Settings,
    engine: Engine,
    *,
    is_archiving: bool,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Ingest:
    """Put an `Ingest` together for these settings."""
    return Ingest(
        sessions=make_sessions(engine),
        terms=terms_of(settings, is_archiving=is_archiving),
        clock=utc_now,
        owner=ledger.owner_name(),
        should_stop=should_stop,
        on_step=on_step,
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
    sizes = {found: _size_of(found.path) for found in files}
    engine = open_database(settings, writer=True)
    try:
        with _stopping() as stop:
            ingest = make_ingest(
                settings,
                engine,
                is_archiving=is_archiving,
                should_stop=stop.is_set,
                on_step=on_step,
            )
            _begin(ingest)
            for root in {found.root for found in files}:
                ingest.note_missing(root)
            total, done = sum(sizes.values()), 0
            for number, found in enumerate(files):
                if stop.is_set():
                    summary.waiting.append(f"{found.label}: stopped before it was taken")
                    continue
                if on_progress:
                    on_progress(Progress(found.label, number, len(files), done, total))
                    ingest.on_progress = _within(
                        on_progress, found, number, len(files), sizes, total, done
                    )
                _take_once(ingest, found, summary)
                done += sizes[found]
            if on_progress:
                on_progress(Progress("", len(files), len(files), done, total))
            summary.bytes = done
    finally:
        engine.dispose()
    summary.seconds = time.monotonic() - started
    return summary


def _within(  # noqa: PLR0913, PLR0917 - the parts of one progress line
    on_progress: Callable[[Progress], None],
    found: Found,
    number: int,
    files: int,
    sizes: dict[Found, int],
    total: int,
    done: int,
) -> Callable[[str, int, int], None]:
    """Tell progress inside one file as a share of its size on disk."""

    def tell(_path: str, read: int, size: int) -> None:
        share = int(sizes[found] * min(1.0, read / size)) if size else 0
        on_progress(Progress(found.label, number, files, done + share, total))

    return tell


def _take_once(ingest: Ingest, found: Found, summary: Summary) -> None:
    if writers_of(found.path) is Writers.SOME:
        summary.waiting.append(f"{found.label}: a process is still writing it")
        return
    try:
        jobs = ingest.take(found)
    except Exception as error:  # noqa: BLE001 - no file may keep all others waiting
        summary.waiting.append(f"{found.label}: {str(error) or type(error).__name__}")
        return
    summary.add(jobs)
    for job in jobs:
        if job.status in ("pending", "processing", "failed"):
            told = job.first_error_message or "held by another process"
            summary.waiting.append(f"{found.label}: {told}")
    if not jobs:
        summary.waiting.append(f"{found.label}: being worked on elsewhere, or gone")


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


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGINT into an event for the time of the block (main thread only)."""
    stop = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        log.info("stop_requested", signal=signal.Signals(number).name)
        stop.set()

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
class Daemon:
    """One inbox, one database, one loop."""

    settings: Settings
    ingest: Ingest
    watcher: Watcher
    settling: Settling
    manifests: Manifests
    leftovers: Leftovers
    odd: set[str] = field(default_factory=set)
    # Stamps of files that are final where they lie: left there by setting, or
    # waiting for a pause to end; spares the ledger a question at every look.
    done: dict[Path, str] = field(default_factory=dict)
    unmarked: Unmarked = field(default_factory=Unmarked)
    obstacles: Obstacles = field(default_factory=Obstacles)

    def turn(self) -> bool:
        """Look once and take what is complete; says whether anything was taken."""
        root = self.settings.watch.inbox
        markers: dict[Path, str] = {}
        seen = list(scan(root, self.settings.watch.ignore, self.odd, markers))
        here = [file.relative for file in seen]
        hints = self.watcher.wakeup.take_hints(here) | self._asked_for(root)
        files = self._unfinished(root, seen)
        claims = self.manifests.claims(root, markers, here)
        now = time.monotonic()
        ready = self.settling.complete(root, files, hints, now, claims)
        self.unmarked.note(self.settling.unmarked, now)
        taken = False
        for complete in ready:
            if self.ingest.should_stop():
                return taken
            found = closed(complete)
            if found:
                taken |= self._take(found)
        self.ingest.note_missing(root)
        if self.ingest.terms.is_archiving:
            for marker in self.leftovers.due(self.manifests, markers, here, now):
                with database_at_work():
                    self.leftovers.tidy(self.ingest.sessions, marker, self.manifests)
        return taken

    def _asked_for(self, root: Path) -> dict[Path, str]:
        """Files that a person put back by `ingestd retry`: their markers stayed behind."""
        if not self.settings.watch.require_marker:
            return {}
        with database_at_work(), self.ingest.sessions.begin() as session:
            queued = ledger.queued_under(session, str(root))
            return {Path(job.path): "asked" for job in queued}

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

    def _take(self, found: Found) -> bool:
        try:
            status = found.path.stat()
        except OSError:  # it went, or its folder closed, since it was seen
            return False
        file = Waiting(found.relative, stamp_of(status), status.st_size)
        if self.obstacles.holds(file, time.monotonic()):  # one before it has met the same
            return False
        try:
            jobs = self.ingest.take(found)
        except (StopRequested, FileNotFoundError):
            return False
        except ManifestNotMet as unmet:
            self._wait_for_manifest(found, unmet)
            return False
        except StorageFault:
            raise  # that concerns all files
        except Exception as error:  # noqa: BLE001 - no file may keep all others waiting
            self._meet(found, file, error)
            return False
        if not jobs:
            return False
        self.obstacles.pass_(file, time.monotonic())
        self._say_met(found)
        if any(job.status in ("pending", "processing", "failed") for job in jobs):
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
) -> int:
    """Run in the foreground until SIGTERM or SIGINT; returns the exit status.

    SIGHUP reads the settings again by `reload`; broken ones are said and the
    old ones kept.

    Raises:
        ConfigError: folders that cannot be made or used.
        SchemaMismatch: the database must be upgraded first.
    """
    with _stopping() as stop, _hanging_up() as hung_up:
        while not stop.is_set():
            _make_folders(settings)
            engine = _open_patiently(settings, stop)
            if engine is None:
                break
            try:
                _loop(settings, engine, stop, hung_up, on_ready, on_step)
            finally:
                engine.dispose()
            if hung_up.is_set():
                hung_up.clear()
                settings = _reloaded(settings, reload)
    return 0


def _reloaded(settings: Settings, reload: Callable[[], Settings]) -> Settings:
    try:
        fresh = reload()
    except ConfigError as error:
        log.error("configuration_refused", error=str(error), kept="the old one")  # noqa: TRY400 - no traceback for a typing mistake
        return settings
    log.info("configuration_reloaded")
    return fresh


def _make_folders(settings: Settings) -> None:
    watch = settings.watch
    for folder in (watch.inbox, watch.archive, watch.quarantine):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot make the folder {folder}: {error}"
            raise ConfigError(message) from error


def _open_patiently(settings: Settings, stop: threading.Event) -> Engine | None:
    """Open the database; while it is away, wait and say so once a minute at most."""
    pause = Pause()
    while not stop.is_set():
        try:
            return open_database(settings, writer=True)
        except (StorageFault, DBAPIError) as error:
            stop.wait(pause.after(error))
    return None


@dataclass(slots=True)
class Pause:
    """How long to wait while the outside is at fault: longer each time, not in step."""

    failures: int = 0
    _said_at: float | None = None
    _since: float | None = None

    def after(self, error: Exception) -> float:
        """Note a failure; seconds to wait."""
        now = time.monotonic()
        self.failures += 1
        self._since = self._since if self._since is not None else now
        if self._said_at is None or now - self._said_at >= 60:  # noqa: PLR2004 - a minute
            self._said_at = now
            log.warning(
                "storage_away",
                error=str(error),
                failures=self.failures,
                for_seconds=round(now - self._since),
            )
        longest = min(_LONGEST_PAUSE_SECONDS, 0.5 * 2 ** min(self.failures, 10))
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, keeps no secret

    def over(self) -> None:
        """Note that it works again."""
        if self.failures and self._since is not None:
            away = round(time.monotonic() - self._since)
            log.info("storage_back", failures=self.failures, away_seconds=away)
        self.failures = 0
        self._said_at = self._since = None


def _loop(
    settings: Settings,
    engine: Engine,
    stop: threading.Event,
    hung_up: threading.Event,
    on_ready: Callable[[], None] | None,
    on_step: Callable[[Step], None],
) -> None:
    """Look and take until a stop or a hang-up; a file in work ends at a batch border."""

    def should_stop() -> bool:
        return stop.is_set() or hung_up.is_set()

    is_archiving = settings.watch.after == "archive"
    ingest = make_ingest(
        settings, engine, is_archiving=is_archiving, should_stop=should_stop, on_step=on_step
    )
    watcher = Watcher(settings.watch.inbox, with_events=settings.watch.events)
    watch = settings.watch
    daemon = Daemon(
        settings,
        ingest,
        watcher,
        Settling(watch.settle_seconds, watch.manifest_wait_seconds, watch.require_marker),
        Manifests(settings.limits.max_manifest_bytes),
        Leftovers(watch.inbox, watch.archive, watch.manifest_wait_seconds),
    )
    log.info("started", inbox=str(settings.watch.inbox), owner=ingest.owner)
    pause = Pause()
    has_begun = False
    next_visit = 0.0
    try:
        while not should_stop():
            try:
                if time.monotonic() >= next_visit:
                    _begin(ingest)
                    next_visit = time.monotonic() + settings.ingest.lease_seconds
                daemon.turn()
            except (StorageFault, OSError) as error:
                stop.wait(pause.after(error))
                continue
            pause.over()
            if not has_begun:
                has_begun = True
                if on_ready:
                    on_ready()
            _wait(watcher, should_stop, _next_look(settings, daemon))
    finally:
        watcher.stop()
    log.info("stopped", owner=ingest.owner)


def _next_look(settings: Settings, daemon: Daemon) -> float:
    """Seconds to the next look: soon while files settle, else the re-scan's interval."""
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
def _hanging_up() -> Iterator[threading.Event]:
    """Turn SIGHUP into an event for the time of the block (main thread only)."""
    hung_up = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield hung_up
        return
    former = signal.signal(signal.SIGHUP, lambda _number, _frame: hung_up.set())
    try:
        yield hung_up
    finally:
        signal.signal(signal.SIGHUP, former)


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
