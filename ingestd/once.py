"""`ingestd once`: take what is there, evaluate it, and stop."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy import Engine

from ingestd.assembly import make_ingest, make_workers, take_over, take_up_settings
from ingestd.config import ConfigError, Settings
from ingestd.errors import StopRequested, StorageFault
from ingestd.evaluating import Evaluating, look_at_feed
from ingestd.pipeline.evidence import Claim, Manifests, is_marker
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.read import stamp_of
from ingestd.pipeline.step import Step
from ingestd.pipeline.stop import Asked
from ingestd.pipeline.watch import scan
from ingestd.pipeline.worker import Told
from ingestd.pipeline.workers import Offer, Taken
from ingestd.pipeline.writers import Writers, writers_of
from ingestd.signals import stopping
from ingestd.storage import Pause, PlanWatch, backfilling, open_database, rest
from ingestd.telling.teller import send_what_waits

log = structlog.get_logger()


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
    with stopping() as stop:
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
            take_over(ingest)
            take_up_settings(ingest, settings)
            # Also where nothing is left: what was read in part may be what was taken away.
            folders = {root.absolute() for root in roots if root.is_dir()}
            for root in folders | {found.root for found in files}:
                ingest.note_missing(root)
            run_once = _Once(settings, engine, ingest, stop, summary, on_progress)
            with backfilling(engine):
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
        engine: Engine,
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
        self._plans = PlanWatch(engine)
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
            look_at_feed(self._ingest, is_thorough=True)
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
        with suppress(StorageFault):  # whoever takes the next file will hear of it
            self._plans.look()
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
