"""Watching: a full re-scan finds the files; events are only a wake-up.

A file is taken when it is complete by evidence: renamed into place, or equal
in two looks `settle_seconds` apart; and when no process holds it open for
writing. An event that is missed costs waiting time, never a file.
"""

from __future__ import annotations

import fcntl
import fnmatch
import os
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from ingestd.pipeline.ingest import Found, label_of
from ingestd.pipeline.read import stamp_of

log = structlog.get_logger()

SUFFIXES = (".csv", ".zip")


@dataclass(frozen=True, slots=True)
class Seen:
    """One file at one look."""

    relative: Path
    stamp: str
    size: int
    mtime_ns: int


def scan(root: Path, ignore: Sequence[str], odd: set[str] | None = None) -> Iterator[Seen]:
    """List the files below `root` that may be ours; never follows links, never blocks.

    What is not taken is logged once each, if the caller keeps `odd`.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    odd = set() if odd is None else odd
    folders = [Path()]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder == Path():
                raise
            _say_once(odd, folder, "folder_not_readable", error=str(error), uid=os.geteuid())
            continue
        for entry in found:
            relative = folder / entry.name
            if any(fnmatch.fnmatch(entry.name, pattern) for pattern in ignore):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(relative)
                continue
            seen = _look(entry, relative, odd)
            if seen:
                yield seen


def _look(entry: os.DirEntry[str], relative: Path, odd: set[str]) -> Seen | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        _say_once(odd, relative, "not_a_regular_file", mode=stat.filemode(status.st_mode))
        return None
    if not entry.name.lower().endswith(SUFFIXES):
        _say_once(odd, relative, "not_a_csv_or_zip")
        return None
    return Seen(relative, stamp_of(status), status.st_size, status.st_mtime_ns)


def _say_once(odd: set[str], relative: Path, event: str, **details: object) -> None:
    label = label_of(relative)
    if label not in odd:
        odd.add(label)
        log.warning(event, path=label, **details)


@dataclass(slots=True)
class Settling:
    """Decides which files are complete; forgets those that left."""

    settle_seconds: float
    _looks: dict[Path, tuple[str, float]] = field(default_factory=dict)

    def complete(
        self, root: Path, seen: Sequence[Seen], hints: dict[Path, str], now: float
    ) -> list[Found]:
        """Give the complete files, oldest first (by mtime, then path); `now` in seconds.

        A hint "renamed" is evidence at once; writing again takes it back. One that says
        "closed" must settle all the same: many writers close a file and open it again.
        """
        looks: dict[Path, tuple[str, float]] = {}
        ready: list[tuple[Seen, str]] = []
        for file in seen:
            stamp, since = self._looks.get(file.relative, (file.stamp, now))
            if stamp != file.stamp:
                since = now
            looks[file.relative] = (file.stamp, since)
            evidence = hints.get(file.relative)
            if evidence == "renamed" or now - since >= self.settle_seconds:
                ready.append((file, evidence or "stable"))
        self._looks = looks
        ready.sort(key=lambda pair: (pair[0].mtime_ns, str(pair[0].relative)))
        return [Found(root, file.relative, evidence) for file, evidence in ready]

    @property
    def waiting(self) -> int:
        """Files seen at the last look."""
        return len(self._looks)


def is_open_for_writing(path: Path) -> bool:
    """Ask Linux, by a read lease, whether any process still has a file open for writing.

    Where nobody can tell (a network, somebody else's file) the answer is no: it has settled.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as stream:
            # A writer who comes this very moment is announced by a signal, by default SIGIO,
            # which would end us. SIGURG does nothing.
            fcntl.fcntl(stream, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(stream, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(stream, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _open_without_waiting(path: str, flags: int) -> int:
    """What was a file a moment ago may be a pipe or a link now."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


class Wakeup(FileSystemEventHandler):
    """Notes what changed and wakes the loop; does nothing else in watchdog's thread."""

    def __init__(self, root: Path) -> None:
        """Note events below `root`."""
        self._root = root
        self._lock = threading.Lock()
        self._hints: dict[Path, str] = {}
        self.woken = threading.Event()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Keep the evidence that an event gives, if any; an exception here would end the thread."""
        kind = event.event_type
        if event.is_directory or kind in ("opened", "closed_no_write"):
            return
        hint = {"closed": "closed", "moved": "renamed"}.get(kind)
        path = event.dest_path if kind == "moved" else event.src_path
        try:
            relative = Path(os.fsdecode(path)).relative_to(self._root)
        except ValueError:
            return
        with self._lock:
            if hint:
                self._hints[relative] = hint
            elif kind in ("created", "modified"):
                # Written again after it was closed: the evidence is gone.
                self._hints.pop(relative, None)
        self.woken.set()

    def take_hints(self, still_here: Sequence[Path]) -> dict[Path, str]:
        """Give the evidence noted so far; forget files that are gone."""
        here = set(still_here)
        with self._lock:
            self._hints = {path: hint for path, hint in self._hints.items() if path in here}
            return dict(self._hints)


class Watcher:
    """The observer thread of one inbox; without it the re-scan alone does the work."""

    def __init__(self, root: Path, *, with_events: bool) -> None:
        """Watch `root`, which must exist."""
        self.wakeup = Wakeup(root)
        self._observer = Observer() if with_events else None
        if self._observer is not None:
            try:
                self._observer.schedule(self.wakeup, str(root), recursive=True)
                self._observer.start()
            except OSError as error:  # inotify limits: scanning goes on
                log.warning("watching_without_events", path=str(root), error=str(error))
                self._observer = None

    def wait(self, seconds: float) -> bool:
        """Sleep until something happens or `seconds` are over; says which."""
        is_woken = self.wakeup.woken.wait(seconds)
        self.wakeup.woken.clear()
        return is_woken

    def stop(self) -> None:
        """End the observer thread."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5)
