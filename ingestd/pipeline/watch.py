"""Watching: a full re-scan finds the files; events (`pipeline.events`) are only a wake-up.

A file is taken when it is complete by evidence: renamed into place, or equal
in two looks `settle_seconds` apart; and when no process holds it open for
writing. An event that is missed costs waiting time, never a file.
"""

from __future__ import annotations

import fcntl
import fnmatch
import os
import re
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import structlog

from ingestd.pipeline.ingest import Found, label_of
from ingestd.pipeline.read import stamp_of

log = structlog.get_logger()

SUFFIXES = (".csv", ".zip")


# Names that begin so are our own, and gone in a moment (`pipeline.events`).
SENTINEL = ".ingestd-probe"


class Seen(NamedTuple):
    """One file at one look."""

    relative: Path
    stamp: str
    size: int
    mtime_ns: int
    place: str = ""


NOTHING: Mapping[str, Seen] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Look:
    """All that lay in the inbox at one time; `identity` is the folder's device and inode."""

    identity: tuple[int, int]
    files: list[Seen]
    folders: list[Path]


def look_at(root: Path, ignore: Sequence[str], odd: set[str], before: Sequence[Seen] = ()) -> Look:
    """Look at everything below `root`; files that are as they were `before` cost less.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    status = root.stat()
    folders: list[Path] = []
    known = {seen.place: seen for seen in before}
    files = list(scan(root, ignore, odd, folders, known))
    return Look((status.st_dev, status.st_ino), files, folders)


def scan(
    root: Path,
    ignore: Sequence[str],
    odd: set[str] | None = None,
    listed: list[Path] | None = None,
    known: Mapping[str, Seen] = NOTHING,
) -> Iterator[Seen]:
    """List the files below `root` that may be ours; never follows links, never blocks.

    What is not taken is logged once each, if the caller keeps `odd`; folders go to `listed`.
    What is `known` by its place, and still the same, is given again.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    odd = set() if odd is None else odd
    is_ignored = _pattern_of(tuple(ignore)).match
    folders = [Path()]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder == Path():
                raise
            # Taken away a moment ago; or unreadable, or deeper than a path may be long.
            if not isinstance(error, FileNotFoundError):
                _say_once(odd, folder, "folder_not_readable", error=str(error), uid=os.geteuid())
            continue
        if listed is not None:
            listed.append(folder)
        for entry in found:
            if is_ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
                continue
            seen = _look(entry, folder, odd, known)
            if seen:
                yield seen


@cache
def _pattern_of(ignore: tuple[str, ...]) -> re.Pattern[str]:
    """One pattern for all: asked for every name at every look."""
    return re.compile("|".join(map(fnmatch.translate, ignore)) or "(?!)")


def _look(
    entry: os.DirEntry[str], folder: Path, odd: set[str], known: Mapping[str, Seen]
) -> Seen | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:  # a disk or a network that fails for one file
        _say_once(odd, folder / entry.name, "file_not_readable", error=str(error))
        return None
    if not stat.S_ISREG(status.st_mode):
        mode = stat.filemode(status.st_mode)
        _say_once(odd, folder / entry.name, "not_a_regular_file", mode=mode)
        return None
    if not entry.name.lower().endswith(SUFFIXES):
        if not entry.name.startswith(SENTINEL):
            _say_once(odd, folder / entry.name, "not_a_csv_or_zip")
        return None
    stamp = stamp_of(status)
    before = known.get(entry.path)
    if before is not None and before.stamp == stamp:
        return before
    relative = folder / entry.name
    return Seen(relative, stamp, status.st_size, status.st_mtime_ns, entry.path)


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
