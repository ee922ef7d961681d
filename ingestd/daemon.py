"""The daemon: looks, waits, takes files, one after another, until it is told to stop.

Events and the re-scan find files; the ledger knows which of them are done;
`pipeline.ingest` takes each one. A database that is away stops nothing but
the taking: the inbox is the queue.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy import Engine, event, make_url

from ingestd.assembly import make_ingest, make_workers, take_over, take_up_settings
from ingestd.audience import SPARE_SECONDS, Audience, pages_of
from ingestd.config import ConfigError, Settings, load_settings
from ingestd.errors import ManifestNotMet, NotPutAway, StopRequested, StorageFault
from ingestd.evaluating import Evaluating, look_at_feed
from ingestd.metrics import Figures
from ingestd.pipeline import ledger, obstacles
from ingestd.pipeline.events import Watcher
from ingestd.pipeline.evidence import Manifests
from ingestd.pipeline.feed import Kept
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.leftover import Leftovers
from ingestd.pipeline.obstacles import Obstacle, Obstacles, Waiting
from ingestd.pipeline.read import stamp_of
from ingestd.pipeline.step import Step
from ingestd.pipeline.stop import Asked
from ingestd.pipeline.watch import Look, Seen, Settling, closed, look_at
from ingestd.pipeline.workers import Offer, Taken, Workers
from ingestd.port import Port
from ingestd.signals import hanging_up, noting_dead_threads, stopping
from ingestd.standing import Standing
from ingestd.storage import Pause, PlanWatch, WalWatch, backfilling, open_patiently, rest
from ingestd.systemd import Systemd
from ingestd.telling.channels import Channel, channels_of
from ingestd.telling.teller import telling
from ingestd.telling.troubles import Troubles
from ingestd.transient import database_at_work

log = structlog.get_logger()

_STAMPS_ASKED_AT_ONCE = 1_000
# Taking goes on for this many times as long as the look before it took, at least.
_TAKING_PER_LOOK = 10
_LOOKS_APART_SECONDS = 0.1
# The whole feed is looked at when nothing waits, in a rush once a minute, in silence every ten.
_FEED_IN_A_RUSH = 60.0
_FEED_IN_SILENCE = 600.0
_FEED_SHARE = 20
_FIGURES_APART_SECONDS = 1.0
# Of so many files that were completed last it is told after a start whose they are.
_LAST_COMPLETED = 1_000
GAVE_UP = 4


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
class Daemon:
    """One inbox, one database, one loop."""

    settings: Settings
    ingest: Ingest
    watcher: Watcher
    settling: Settling
    manifests: Manifests
    leftovers: Leftovers
    wal: WalWatch
    plans: PlanWatch
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
        # While files settle, workers begin.
        self.workers.expect(size_of.values())
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
            if not faults:
                self.plans.look()
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
            look_at_feed(self.ingest, kept=kept)
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
        stopping(lambda: audience.stopping(settings)) as stop,
        hanging_up() as hung_up,
        noting_dead_threads(),
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
            with telling(settings, channels, troubles, audience.figures.notices):
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
        audience.systemd.patience(settings.database.answer_timeout_seconds + SPARE_SECONDS)
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
        with backfilling(engine):
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
        PlanWatch(engine),
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
    take_over(ingest)
    figures.answered(time.monotonic() - started)
    if not is_first:
        return
    take_up_settings(ingest, settings)
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
