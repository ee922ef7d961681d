"""Obstacles: what stands in the way of files outside of us, until a person mends it.

A full archive, a folder without rights, a bad sector. Each is said once, with what to do, and
summed when it is over; its files are tried again after pauses that grow, and at once when
they change. All other files go on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ingestd.pipeline.archive import nearest

log = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_LINE_EVERY_SECONDS = 60.0

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that could wait: its way, what tells its state from others, its size in bytes."""

    relative: Path
    stamp: str
    size: int


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What was met: the events that say it and its end, and where it is."""

    event: str
    over: str
    place: Path


@dataclass(slots=True)
class _Met:
    """How an obstacle stands: who waits, since when, until when, and what was said of it."""

    since: float
    until: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS
    # What did not fit keeps all that is larger waiting, too, until the pause is over.
    too_large: int = 0
    files: dict[Path, str] = field(default_factory=dict)
    passed: int = 0
    tries: int = 0
    said_at: float = 0.0
    said_files: int = 0


@dataclass(slots=True)
class Obstacles:
    """All that stand now; `now` is in seconds of a clock that only goes forward."""

    _met: dict[Obstacle, _Met] = field(default_factory=dict)
    _before: dict[Path, Obstacle] = field(default_factory=dict)

    @property
    def held_up(self) -> int:
        """How many files wait for an obstacle to go."""
        return len(self._before)

    def holds(self, file: Waiting, now: float) -> bool:
        """Say whether a file need not be tried yet."""
        obstacle = self._before.get(file.relative)
        if obstacle is None:
            return False
        met = self._met[obstacle]
        is_same = met.files[file.relative] == file.stamp
        return is_same and now < met.until and file.size >= met.too_large

    def meet(self, obstacle: Obstacle, file: Waiting, now: float, **details: object) -> None:
        """Note that a file could not pass; said when it is the first, then at most each minute."""
        if self._before.get(file.relative, obstacle) != obstacle:
            self._leave(file.relative, now)
        met = self._met.setdefault(obstacle, _Met(since=now))
        met.tries += 1
        met.files[file.relative] = file.stamp
        self._before[file.relative] = obstacle
        if now >= met.until:
            met.until = now + met.pause
            met.pause = min(2 * met.pause, _LONGEST_PAUSE_SECONDS)
            met.too_large = file.size
        met.too_large = min(met.too_large, file.size)
        self._say(obstacle, met, now, details)

    def pass_(self, file: Waiting, now: float) -> None:
        """Note that a file got through; those behind it need not wait any longer."""
        obstacle = self._before.get(file.relative)
        if obstacle is None:
            return
        met = self._met[obstacle]
        met.passed += 1
        met.pause = _FIRST_PAUSE_SECONDS
        if file.size >= met.too_large:
            met.until = now
        self._leave(file.relative, now)

    def forget_others(self, here: Collection[Path], now: float) -> None:
        """Forget the files that a person took away."""
        for relative in [path for path in self._before if path not in here]:
            self._leave(relative, now)

    def _leave(self, relative: Path, now: float) -> None:
        obstacle = self._before.pop(relative)
        met = self._met[obstacle]
        del met.files[relative]
        if not met.files:
            del self._met[obstacle]
            log.info(
                obstacle.over,
                place=str(obstacle.place),
                files=met.passed,
                tries=met.tries,
                seconds=round(now - met.since, 1),
            )

    @staticmethod
    def _say(obstacle: Obstacle, met: _Met, now: float, details: dict[str, object]) -> None:
        files = len(met.files)
        if met.said_files and (
            now - met.said_at < _LINE_EVERY_SECONDS or files <= 2 * met.said_files
        ):
            return
        met.said_at, met.said_files = now, files
        log.warning(obstacle.event, place=str(obstacle.place), files=files, **details)


def not_put_away(what: str, folder: Path, error: OSError) -> Obstacle:
    """Name what keeps a file from leaving: `what` is inbox, archive or quarantine."""
    kind = "failing"
    if error.errno in _FULL:
        kind = "full"
    elif error.errno in _REFUSED:
        kind = "not_writable"
    return Obstacle(f"{what}_{kind}", f"{what}_back", folder)


def not_readable(path: Path) -> Obstacle:
    """One for all unreadable files of a folder: they often come by the thousand."""
    return Obstacle("file_not_readable", "file_readable_again", path.parent)


def not_taken(path: Path) -> Obstacle:
    """Whatever else may be wrong with one file."""
    return Obstacle("file_not_taken", "file_taken_after_all", path)


def rights(path: Path) -> dict[str, object]:
    """Who we are, and what the file or folder lets whom do."""
    told: dict[str, object] = {"uid": os.geteuid()}
    try:
        status = path.lstat()
    except OSError:
        return told
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    return told | {"mode": mode, "owner": status.st_uid, "group": status.st_gid}


def culprit(path: Path) -> Path:
    """Find what hides a file: the first folder on its way that may not be entered, or itself."""
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK, effective_ids=True):
            return folder
    return path


def advice(error: OSError, place: Path) -> str:
    """What a person can do; ingestd goes on by itself afterwards."""
    uid = os.geteuid()
    if error.errno in _FULL:
        free = _room(place)
        return f"make room on the volume of {place} ({free}; df -h, df -i and quota tell more)"
    if error.errno == errno.EROFS:
        return f"{place} is mounted read-only: see dmesg, then mount -o remount,rw"
    if error.errno in _REFUSED:
        need = "rwx" if place.is_dir() else "r"
        return f"let uid {uid} in: setfacl -m u:{uid}:{need} '{place}', or chown or chmod it"
    return "see the error; it is tried again by itself"


def _room(place: Path) -> str:
    try:
        left = os.statvfs(nearest(place))
    except OSError:
        return "unknown"
    return f"{left.f_bavail * left.f_frsize} bytes and {left.f_favail} inodes are free"
