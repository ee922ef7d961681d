"""Events of the file system, and how it is noticed that they do not come.

A watcher can be deaf and look well: its queue overflows, a folder that was moved in is not
watched, a thread has died, another folder bears the inbox's name. So a sentinel is made in
the inbox now and then, and its event must come. Events come in the order in which things
happened: once the sentinel's is here, a file that a look found before it, and of which no
event told, was missed.

Whatever fails here costs waiting time and never a file: the looks find everything.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
import threading
import warnings
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from ingestd.pipeline.mounts import file_system_of, is_remote, mountinfo
from ingestd.pipeline.watch import SENTINEL, Look, Seen

log = structlog.get_logger()

Wanted = Literal["auto", "always", "never"]

# So many sentinels without an answer mean that nothing comes any more; more are needed while
# other events come, since a rush that overflows the queue takes sentinels with it.
_UNANSWERED_IN_SILENCE = 2
_UNANSWERED_AMONG_EVENTS = 6
_ANSWERS_MEAN_WELL = 2
_BUILDS_BEFORE_GIVING_WAY = 3
_LONGEST_PAUSE_SECONDS = 600.0
_END_SECONDS = 5.0
# A file that leaves is taken by ourselves, or missed at the next look; nobody need hurry.
_SILENT_KINDS = ("opened", "closed_no_write", "deleted")
_HINTS = {"closed": "closed", "moved": "renamed", "created": None, "modified": None}
_ADVICE = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What has come of listening since the start."""

    is_listening: bool
    events: int
    missed: int  # files that a look found and no event told of
    overflows: int
    probes: int
    probes_missed: int
    rebuilds: int


class Wakeup(FileSystemEventHandler):
    """Notes what changed and wakes the loop; does nothing else in watchdog's thread."""

    def __init__(self, root: Path) -> None:
        """Note events below `root`, a path without links."""
        self._root = f"{root}/"
        self._lock = threading.Lock()
        self._look = 0
        # Of each file: the look during which an event last told of it, and the evidence it gave.
        self._notes: dict[Path, tuple[int, str | None]] = {}
        self.events = 0
        self.sentinel = ""
        self.woken = threading.Event()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Keep the evidence that an event gives, if any; an exception here would end the thread."""
        self.events += 1
        kind = event.event_type
        if event.is_directory or kind in _SILENT_KINDS:
            return
        path = os.fsdecode(event.dest_path if kind == "moved" else event.src_path)
        if not path.startswith(self._root):
            return
        relative = path.removeprefix(self._root)
        name = relative.rpartition("/")[2]
        if name.startswith(SENTINEL):  # by way of a mount it may seem to lie deeper
            self.sentinel = name
            return
        noted = Path(relative)
        with self._lock:
            _, hint = self._notes.get(noted, (0, None))
            if event.is_synthetic:
                # A folder was moved; what its files are in the middle of, nobody said.
                kind = "created"
            # Written again after it was closed or renamed: the evidence is gone.
            self._notes[noted] = (self._look, _HINTS.get(kind, hint))
        self.woken.set()

    def listen_at(self, root: Path) -> None:
        """Note events below another root, or the same one under its real name."""
        self._root = f"{root}/"

    def begin_look(self) -> None:
        """What is told from now on may be of files that the coming look does not find."""
        with self._lock:
            self._look += 1

    def untold(self, paths: Iterable[Path]) -> set[Path]:
        """Give those of which no event told."""
        with self._lock:
            return {path for path in paths if path not in self._notes}

    def take_hints(self, still_here: Collection[Path]) -> dict[Path, str]:
        """Give the evidence noted so far; forget files that are gone."""
        here = set(still_here)
        with self._lock:
            self._notes = {
                path: note
                for path, note in self._notes.items()
                if path in here or note[0] == self._look
            }
            return {path: hint for path, (_, hint) in self._notes.items() if hint and path in here}


@dataclass(slots=True)
class _Probe:
    """A sentinel whose event must come, and the files of which an event should have come first."""

    name: str
    sent_at: float
    found_before: set[Path]
    folders: list[Path]
    events_before: int


@dataclass(slots=True)
class _Trouble:
    """Why there are no events, from when to when; said when it begins and when it is over."""

    reason: str
    since: float
    builds: int = 0
    is_alone: bool = False


@dataclass(slots=True)
class _Overflow:
    """Events that were lost in one rush."""

    since: float
    last: float
    missed: int = 0
    times: int = 0
    is_said: bool = False


class _OverflowsTold(logging.Filter):
    """Counts what watchdog 7 says of overflows, so that we say it once; 6 says nothing."""

    loggers = ("watchdog.observers.inotify_c", "watchdog.observers.inotify")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if "when the thread is inactive" in str(record.msg):
            return False  # watchdog 7 stumbles over being ended
        if "queue overflowed" not in str(record.msg):
            return True
        self.count += record.name == self.loggers[0]
        return False


class Watcher:
    """Listens at one inbox; without events the looks alone do the work."""

    def __init__(self, root: Path, *, wanted: Wanted, probe_seconds: float) -> None:
        """Listen at `root` from the first look on."""
        self.wakeup = Wakeup(root)
        self._root = root
        self._wanted = wanted
        self._probe_seconds = probe_seconds
        self._observer: BaseObserver | None = None
        self._identity: tuple[int, int] | None = None
        self._is_remote = False
        self._is_said: set[str] = set()
        self._overflows_told = _OverflowsTold()
        for name in _OverflowsTold.loggers:
            logging.getLogger(name).addFilter(self._overflows_told)
        # Since the observer was built:
        self._hears_from_ns: int | None = None
        self._known: set[Path] = set()
        self._untold: set[Path] = set()
        self._hopeless: set[int] = set()
        self._probe: _Probe | None = None
        self._next_probe = 0.0
        self._unanswered = 0
        self._answers = 0
        # Across observers:
        self._trouble: _Trouble | None = None
        self._next_build = 0.0
        self._overflow: _Overflow | None = None
        self._token = secrets.token_hex(4)
        self._counts = dict.fromkeys(
            ("missed", "overflows", "probes", "probes_missed", "rebuilds"), 0
        )

    @property
    def heard(self) -> Heard:
        """What has come of listening so far."""
        return Heard(
            is_listening=self._observer is not None,
            events=self.wakeup.events,
            **self._counts,
        )

    def attend(self, look: Look, now: float) -> dict[Path, str]:
        """Compare a look with the events, mend the watcher; gives the evidence from events.

        `now` is in seconds of a clock that never jumps.
        """
        here = {file.relative for file in look.files}
        if look.identity != self._identity:
            self._meet(look.identity, now)
        if self._observer is not None and not _is_alive(self._observer):
            self._fail("thread_died", now)
        if self._observer is not None:
            self._compare(look, now)
        if self._observer is None and self._is_due(now):
            self._build(now)
        if self._observer is not None:
            self._send_probe_if_due(look, now)
        self._known = here
        return self.wakeup.take_hints(here)

    @property
    def is_woken(self) -> bool:
        """Whether something happened since it was last waited for."""
        return self.wakeup.woken.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep until something happens or `seconds` are over; says which."""
        is_woken = self.wakeup.woken.wait(seconds)
        self.wakeup.woken.clear()
        return is_woken

    def stop(self) -> None:
        """End the observer's threads, and say what has come of them."""
        heard = self.heard
        self._close()
        self._end_overflow()
        for name in _OverflowsTold.loggers:
            logging.getLogger(name).removeFilter(self._overflows_told)
        if self._wanted != "never":
            log.info("events_summary", path=str(self._root), **asdict(heard))

    # ── listening ─────────────────────────────────────────────────────────────

    def _is_due(self, now: float) -> bool:
        return self._wanted != "never" and not self._is_remote and now >= self._next_build

    def _meet(self, identity: tuple[int, int], now: float) -> None:
        """Begin with a folder that was not the inbox until now: an observer follows the old one."""
        self._identity = identity
        if self._observer is not None:
            self._fail("inbox_replaced", now)
        self._next_build = now
        file_system = file_system_of(self._root.resolve(), mountinfo())
        self._is_remote = self._wanted == "auto" and is_remote(file_system)
        if self._is_remote:
            self._say_once(
                "scanning_only",
                file_system=file_system,
                why="others may write there without an event; watch.events = always overrides",
            )

    def _build(self, now: float) -> None:
        try:
            # A link is not followed by inotify, and would never tell anything.
            home = self._root.resolve()
            self.wakeup.listen_at(home)
            _refuse_at_limit(home)
            self._observer = _observer_of(self.wakeup, home)
        except (OSError, RuntimeError) as error:  # limits of inotify, of threads
            self._stay_alone(now, error)
            return
        if self._trouble is not None:
            self._trouble.builds += 1
            self._counts["rebuilds"] += 1
        self._hears_from_ns = None
        self._untold = set()
        self._probe = None
        self._next_probe = now
        self._unanswered = 0
        self._answers = 0

    def _fail(self, reason: str, now: float, **details: object) -> None:
        """Give an observer up that does not tell what happens; another is built when it is due."""
        self._close()
        self._counts["missed"] += len(self._untold)
        self._next_build = now
        if self._trouble is None:
            self._trouble = _Trouble(reason, now)
            log.warning("events_failed", path=str(self._root), reason=reason, **details)
        elif self._trouble.builds >= _BUILDS_BEFORE_GIVING_WAY:
            self._stay_alone(now)

    def _stay_alone(self, now: float, error: BaseException | None = None) -> None:
        """Go on by looking alone; another observer is tried after a pause that grows."""
        if self._trouble is None:
            self._trouble = _Trouble("cannot_listen", now)
        trouble = self._trouble
        trouble.builds += 1
        pause = self._probe_seconds * 2 ** min(trouble.builds, 10)
        self._next_build = now + min(pause, _LONGEST_PAUSE_SECONDS)
        if not trouble.is_alone:
            trouble.is_alone = True
            log.warning(
                "watching_without_events",
                path=str(self._root),
                reason=trouble.reason,
                error=str(error) if error else None,
                advice=_ADVICE.get(getattr(error, "errno", None) or 0),
            )

    def _note_answer(self, now: float) -> None:
        self._probe = None
        self._unanswered = 0
        self._answers += 1
        if self._trouble is not None and self._answers >= _ANSWERS_MEAN_WELL:
            log.info(
                "events_back",
                path=str(self._root),
                reason=self._trouble.reason,
                builds=self._trouble.builds,
                away_seconds=round(now - self._trouble.since, 1),
            )
            self._trouble = None

    def _close(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            _end(observer)

    # ── comparing ─────────────────────────────────────────────────────────────

    def _compare(self, look: Look, now: float) -> None:
        """Tell what events missed, from what a look found and what came before a sentinel."""
        self._untold = self.wakeup.untold(self._untold)
        probe = self._probe
        if probe is not None and self.wakeup.sentinel == probe.name:
            missed = probe.found_before & self._untold
            self._untold -= missed
            self._note_answer(now)
            self._note_missed(missed, probe.folders, now, is_new=self._answers == 1)
        elif probe is not None and now - probe.sent_at >= self._probe_seconds:
            self._probe = None
            self._counts["probes_missed"] += 1
            self._unanswered += 1
            is_silent = self.wakeup.events == probe.events_before
            enough = _UNANSWERED_IN_SILENCE if is_silent else _UNANSWERED_AMONG_EVENTS
            if self._unanswered >= enough:
                self._fail("probe_unanswered", now)
        self._untold |= self.wakeup.untold(self._new_in(look))

    def _new_in(self, look: Look) -> set[Path]:
        """Give the files that the last look did not find, and that came after the observer."""
        start = self._hears_from_ns
        if start is None:
            return set()
        return {
            file.relative
            for file in look.files
            if file.relative not in self._known and _ctime_ns(file) >= start
        }

    def _send_probe_if_due(self, look: Look, now: float) -> None:
        is_due = now >= self._next_probe or self._untold
        if self._probe is not None or not is_due:
            return
        self._next_probe = now + self._probe_seconds
        name = f"{SENTINEL}-{self._token}-{self._counts['probes']}"
        probe = _Probe(name, now, set(self._untold), look.folders, self.wakeup.events)
        try:
            touched_ns = _touch(self._root / name)
        except OSError as error:
            # Nothing is lost by it: a folder that is full or not ours is looked at as before.
            self._untold = set()
            self._say_once("cannot_probe", error=str(error), uid=os.geteuid())
            return
        self._hears_from_ns = self._hears_from_ns or touched_ns
        self._probe = probe
        self._counts["probes"] += 1

    def _note_missed(
        self, missed: set[Path], folders: list[Path], now: float, *, is_new: bool
    ) -> None:
        unwatched = self._unwatched(folders)
        self._counts["missed"] += len(missed)
        told, self._overflows_told.count = self._overflows_told.count, 0
        lost = {
            path
            for path in missed
            if path.parent not in unwatched.values() and not self._is_on_network(path)
        }
        self._note_overflow(len(lost), told, now)
        if is_new and unwatched:
            # An observer that was just built did not get them either; no other will.
            self._hopeless |= unwatched.keys()
            self._say_once("folders_without_events", folders=len(unwatched))
        elif unwatched.keys() - self._hopeless:
            self._fail("folder_unwatched", now, folders=len(unwatched))

    def _is_on_network(self, path: Path) -> bool:
        folder = (self._root / path.parent).resolve()
        return is_remote(file_system_of(folder, mountinfo()))

    def _note_overflow(self, missed: int, told: int, now: float) -> None:
        """Sum up one rush: how often the queue overflowed, how many files no event told of."""
        if missed or told:
            rush = self._overflow = self._overflow or _Overflow(now, now)
            # watchdog 6 does not tell; then each comparison that misses files counts for one.
            times = told or int(not rush.times or now - rush.last >= self._probe_seconds)
            rush.last, rush.missed, rush.times = now, rush.missed + missed, rush.times + times
            self._counts["overflows"] += times
        # What was told may come before the files are compared: they are worth one more sentinel.
        if self._overflow is None:
            return
        rush = self._overflow
        if not rush.is_said and (rush.missed or not told):
            rush.is_said = True
            log.warning("events_overflowed", path=str(self._root), missed=rush.missed)
        if now - rush.last >= self._probe_seconds:
            self._end_overflow()

    def _end_overflow(self) -> None:
        overflow, self._overflow = self._overflow, None
        if overflow is not None:
            log.info(
                "events_overflow_over",
                path=str(self._root),
                times=overflow.times,
                missed=overflow.missed,
                seconds=round(overflow.last - overflow.since, 1),
            )

    def _unwatched(self, folders: list[Path]) -> dict[int, Path]:
        """Give the folders that no inotify of ours watches, by inode."""
        watched = _watched_inodes()
        if self._identity is None or self._identity[1] not in watched:
            return {}  # inodes mean nothing on this file system
        found = {}
        for folder in folders:
            try:
                inode = (self._root / folder).stat().st_ino
            except OSError:
                continue
            if inode not in watched:
                found[inode] = folder
        return found

    def _say_once(self, event: str, **details: object) -> None:
        if event not in self._is_said:
            self._is_said.add(event)
            log.warning(event, path=str(self._root), **details)


def _is_alive(observer: BaseObserver) -> bool:
    emitters = list(observer.emitters)
    return observer.is_alive() and bool(emitters) and all(each.is_alive() for each in emitters)


# Where watchdog 7 and watchdog 6 keep how long they wait for a rename's other half.
PAIRING = (
    ("watchdog.observers.inotify_move_event_grouper", "InotifyMoveEventGrouper"),
    ("watchdog.observers.inotify_buffer", "InotifyBuffer"),
)
PAIRED_WITHIN_SECONDS = 0.05


def _pair_renames_soon() -> None:
    """Let watchdog wait a twentieth of a second for the other half of a rename, not half a second.

    The kernel tells both at once, but a file that is moved out of the inbox, as we do with each,
    has no other half, and all events behind it wait with it. A rename that is taken for two events
    gives no evidence, and its file settles.
    """
    for module, name in PAIRING:
        with suppress(ImportError):
            getattr(import_module(module), name).delay = PAIRED_WITHIN_SECONDS


def _observer_of(wakeup: Wakeup, root: Path) -> BaseObserver:
    _pair_renames_soon()
    # Said of every folder that is watched by two ways, or that an overflow made it watch again.
    warnings.filterwarnings("ignore", message="Callback with id", category=RuntimeWarning)
    observer = Observer()
    try:
        observer.schedule(wakeup, str(root), recursive=True)
        observer.start()
    except BaseException:
        _end(observer)
        raise
    return observer


def _end(observer: BaseObserver) -> None:
    """End an observer in a thread of its own: a broken one may never come back from it."""

    def end() -> None:
        observer.stop()
        if observer.ident is not None:
            observer.join()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(_END_SECONDS)


def _touch(sentinel: Path) -> int:
    """Make a file and take it away again, nothing stays behind; its time by the inbox's clock."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(sentinel, flags, 0o600)
    try:
        return os.fstat(handle).st_ctime_ns
    finally:
        os.close(handle)
        sentinel.unlink(missing_ok=True)


def _ctime_ns(file: Seen) -> int:
    return int(file.stamp.rpartition(":")[2])


# ── inotify ───────────────────────────────────────────────────────────────────────────────────────

_IN_CREATE = 0x0000_0100
_IN_DONT_FOLLOW = 0x0200_0000
_IN_ONLYDIR = 0x0100_0000
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


def _refuse_at_limit(root: Path) -> None:
    """Try whether the kernel lets us watch every folder.

    watchdog 6 loses three file descriptors each time that it is refused, and 7 says nothing
    unless it is the root that is refused.

    Raises:
        OSError: a limit of inotify, or a folder that cannot be watched.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_CLOEXEC)
    if handle < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mask = _IN_CREATE | _IN_DONT_FOLLOW | _IN_ONLYDIR
    try:
        for folder, _, _ in os.walk(os.fsencode(root)):
            if libc.inotify_add_watch(handle, folder, mask) < 0:
                error = ctypes.get_errno()
                if error not in _NO_FOLDER:
                    raise OSError(error, os.strerror(error), os.fsdecode(folder))
    finally:
        os.close(handle)


def _watched_inodes() -> set[int]:
    """Ask the kernel what is watched, see proc_pid_fdinfo(5)."""
    inodes = set()
    for handle in Path("/proc/self/fd").iterdir():
        try:
            if str(handle.readlink()) != "anon_inode:inotify":
                continue
            told = Path("/proc/self/fdinfo", handle.name).read_text(encoding="ascii")
        except OSError:
            continue
        for line in told.splitlines():
            if line.startswith("inotify "):
                inodes.add(int(line.split(" ino:", 1)[1].split(" ", 1)[0], 16))
    return inodes
