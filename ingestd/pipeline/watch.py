"""Watching: a full re-scan finds the files; events (`pipeline.events`) are only a wake-up.

A file is taken when it is complete by evidence, the strongest first: a marker or
a manifest beside it; renamed into place; or equal in two looks `settle_seconds`
apart; and when no process holds it open for writing. An event that is missed
costs waiting time, never a file.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import structlog

from ingestd.pipeline.evidence import DATA_TAILS, Check, Claim, is_marker
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.obstacles import advice, rights
from ingestd.pipeline.read import stamp_of
from ingestd.pipeline.writers import Writers, writers_of

log = structlog.get_logger()


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
    """All that lay in the inbox at one time; `identity` is the folder's device and inode.

    `markers` are markers and manifests, with their stamps.
    """

    identity: tuple[int, int]
    files: list[Seen]
    folders: list[Path]
    markers: dict[Path, str]


def look_at(root: Path, ignore: Sequence[str], odd: set[str], before: Sequence[Seen] = ()) -> Look:
    """Look at everything below `root`; files that are as they were `before` cost less.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    status = root.stat()
    look = Look((status.st_dev, status.st_ino), [], [], {})
    known = {seen.place: seen for seen in before}
    look.files.extend(
        scan(root, ignore, odd, listed=look.folders, markers=look.markers, known=known)
    )
    return look


def scan(
    root: Path,
    ignore: Sequence[str],
    odd: set[str] | None = None,
    *,
    listed: list[Path] | None = None,
    markers: dict[Path, str] | None = None,
    known: Mapping[str, Seen] = NOTHING,
) -> Iterator[Seen]:
    """List the files below `root` that may be ours; never follows links, never blocks.

    What is not taken is logged once each, if the caller keeps `odd`; folders go to `listed`,
    markers and manifests with their stamps to `markers`. What is `known` by its place, and
    still the same, is given again.

    Raises:
        OSError: `root` itself cannot be listed.
    """
    odd = set() if odd is None else odd
    markers = {} if markers is None else markers
    is_ignored = _pattern_of(tuple(ignore)).match
    folders = [Path()]
    while folders:
        folder = folders.pop()
        found = _entries_of(root, folder, odd)
        if found is not None and listed is not None:
            listed.append(folder)
        for entry in found or ():
            if is_ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(folder / entry.name)
                continue
            seen = _look(entry, folder, odd, known)
            if seen and is_marker(entry.name):
                markers[seen.relative] = seen.stamp
            elif seen:
                yield seen


def _entries_of(root: Path, folder: Path, odd: set[str]) -> list[os.DirEntry[str]] | None:
    """List a folder by name; None where it cannot be listed, unless it is `root` itself."""
    place = root / folder
    try:
        found = _entries(place)
    except OSError as error:
        if folder == Path():
            raise
        # Taken away a moment ago; or unreadable, or deeper than a path may be long.
        if not isinstance(error, FileNotFoundError):
            details = {**rights(place), "advice": advice(error, place)}
            _say_once(odd, folder, "folder_not_readable", error=str(error), **details)
        return None
    if odd and label_of(folder) in odd:
        odd.discard(label_of(folder))
        log.info("folder_readable_again", path=label_of(folder))
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder; one that may be listed but not entered is as bad as one that may not."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    if found and not os.access(folder, os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return found


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
    if not entry.name.lower().endswith(DATA_TAILS) and not is_marker(entry.name):
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


@dataclass(frozen=True, slots=True)
class _Look:
    """A file at the last look: since when it is as it is, and how it first was."""

    stamp: str
    since: float
    born: str


@dataclass(frozen=True, slots=True)
class _Unmet:
    """A file that its manifest contradicts: both as they were tried last, and since when."""

    stamp: str
    checks: tuple[Check, ...]
    since: float
    first: float
    times: int


@dataclass(slots=True)
class Settling:
    """Decides which files are complete; forgets those that left."""

    settle_seconds: float
    manifest_wait_seconds: float = 600
    is_marker_required: bool = False
    unmarked: list[Path] = field(default_factory=list)
    _looks: dict[Path, _Look] = field(default_factory=dict)
    _unmet: dict[Path, _Unmet] = field(default_factory=dict)

    def complete(
        self,
        root: Path,
        seen: Sequence[Seen],
        hints: Mapping[Path, str],
        now: float,
        claims: Mapping[Path, Claim] = MappingProxyType({}),
    ) -> list[Found]:
        """Give the complete files, oldest first (by mtime, then path); `now` in seconds.

        A marker, a manifest, or a hint "renamed" is evidence at once; writing again takes the
        hint back. One that says "closed" must settle all the same: many writers close a file
        and open it again. `unmarked` are then the settled files that lack a required marker.
        """
        former, self._looks, self.unmarked = self._looks, {}, []
        ready: list[tuple[Seen, Found]] = []
        for file in seen:
            look = self._looks[file.relative] = _look_again(former.get(file.relative), file, now)
            claim = claims.get(file.relative)
            hint = hints.get(file.relative)
            found = (
                self._claimed(root, file, look, claim, now)
                if claim
                else self._unclaimed(root, file, look, hint, now)
            )
            if found:
                ready.append((file, found))
        self._unmet = {path: unmet for path, unmet in self._unmet.items() if path in claims}
        ready.sort(key=lambda pair: (pair[0].mtime_ns, str(pair[0].relative)))
        return [found for _seen, found in ready]

    def _is_settled(self, look: _Look, now: float) -> bool:
        return now - look.since >= self.settle_seconds

    def _unclaimed(
        self, root: Path, file: Seen, look: _Look, hint: str | None, now: float
    ) -> Found | None:
        is_settled = self._is_settled(look, now)
        if self.is_marker_required and hint != "asked":
            if is_settled:
                self.unmarked.append(file.relative)
            return None
        # The event that took a "renamed" back may have been lost; the stamp tells.
        if is_settled or (hint == "renamed" and look.stamp == look.born):
            return Found(root, file.relative, hint or "stable", stamp=file.stamp)
        return None

    def _claimed(
        self, root: Path, file: Seen, look: _Look, claim: Claim, now: float
    ) -> Found | None:
        """The first time at once, even while it is written; then whenever something changed."""
        found = Found(root, file.relative, claim.evidence, claim=claim, stamp=file.stamp)
        unmet = self._unmet.get(file.relative)
        if unmet is None:
            return replace(found, may_be_open=bool(claim.checks))
        if (unmet.stamp, unmet.checks) != (file.stamp, claim.checks):
            return found if self._is_settled(look, now) else None
        is_over = now - unmet.since >= self.manifest_wait_seconds
        return replace(found, is_last_chance=True) if is_over else None

    def not_met(self, found: Found, now: float) -> bool:
        """Let a file wait that its manifest contradicts; says whether that is new."""
        assert found.claim is not None  # noqa: S101 - nothing else contradicts a file
        former = self._unmet.get(found.relative)
        first, times = (former.first, former.times) if former else (now, 0)
        self._unmet[found.relative] = _Unmet(found.stamp, found.claim.checks, now, first, times + 1)
        return former is None

    def met(self, relative: Path, now: float) -> tuple[int, float] | None:
        """Forget that a file waited for its manifest: how often it was tried, how long."""
        unmet = self._unmet.pop(relative, None)
        return (unmet.times, now - unmet.first) if unmet else None

    @property
    def waiting(self) -> int:
        """Files seen at the last look."""
        return len(self._looks)


def _look_again(former: _Look | None, file: Seen, now: float) -> _Look:
    if former is None or former.born.split(":")[:2] != file.stamp.split(":")[:2]:
        return _Look(file.stamp, now, file.stamp)
    return former if former.stamp == file.stamp else _Look(file.stamp, now, former.born)


def closed(found: Found) -> Found | None:
    """Give a file that no process is writing, with what is known of that; None while one is.

    None, too, when it has changed since the look, after which many files may have been taken.
    Where nobody can tell (a network, somebody else's file) it has settled, and that must do.
    """
    if found.may_be_open:
        return found
    writers = writers_of(found.path)
    if writers is Writers.SOME or not _is_as_seen(found):
        return None
    is_proof = writers is Writers.NONE and found.evidence in ("closed", "stable")
    return replace(found, evidence="no_writer") if is_proof else found


def _is_as_seen(found: Found) -> bool:
    try:
        return stamp_of(found.path.stat(follow_symlinks=False)) == found.stamp
    except FileNotFoundError:
        return False
