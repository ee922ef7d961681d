"""What markers and manifests beside a file say of it, and whether its bytes agree.

    x.csv.done, x.csv.ok     complete; may hold lines `rows: 12`, `sha256: <hex>`
    x.csv.rows               complete with so many rows
    x.csv.sha256             complete with these bytes, as `sha256sum` writes it
    SHA256SUMS               the same for several files of its folder (or sha256sums.txt)

What they say is checked before anything is recorded: a file that contradicts its manifest is
not complete yet. A manifest speaks of files in its own folder only.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ingestd.errors import ManifestNotMet

log = structlog.get_logger()

DATA_TAILS = (".csv", ".zip")
_MARKER_TAILS = (".done", ".ok")
_TAILS = (*_MARKER_TAILS, ".sha256", ".rows")
_LISTS = ("sha256sums", "sha256sums.txt")
_BOM = b"\xef\xbb\xbf"
_HEX = rb"(?P<hex>[0-9a-fA-F]{64})"
_SUM = re.compile(_HEX + rb"(?: [ *](?P<name>.+))?")
_TAGGED_SUM = re.compile(rb"SHA256 \((?P<name>.+)\) = " + _HEX)
_SAID = re.compile(rb"\s*(?P<what>rows|sha256)\s*[:=]\s*(?P<value>\S+)\s*", re.IGNORECASE)
_ROWS = re.compile(rb"\d{1,15}")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_MOST_NAMED = 3


def is_marker(name: str) -> bool:
    """Say whether a name is that of a marker or a manifest."""
    return name.casefold() in _LISTS or file_of_marker(name) is not None


def file_of_marker(name: str) -> str | None:
    """Name the one file that a marker or a manifest belongs to; None for a list."""
    stem, dot, tail = name.rpartition(".")
    is_ours = (dot + tail).casefold() in _TAILS and stem.casefold().endswith(DATA_TAILS)
    return stem if is_ours else None


def is_list(name: str) -> bool:
    """Say whether a name is that of a manifest of several files."""
    return name.casefold() in _LISTS


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a manifest says of a file: its `sha256` or its number of `rows`."""

    what: str
    expected: str
    said_by: str


@dataclass(frozen=True, slots=True)
class Claim:
    """All that is said of one file; `beside` are the markers that belong to it alone."""

    checks: tuple[Check, ...] = ()
    beside: tuple[Path, ...] = ()

    @property
    def evidence(self) -> str:
        """The word for the job: `marker`, or `manifest:` and what it says."""
        told = sorted({check.what for check in self.checks}, reverse=True)
        return f"manifest:{'+'.join(told)}" if told else "marker"

    @property
    def asks_for_rows(self) -> bool:
        """Say whether rows have to be counted."""
        return any(check.what == "rows" for check in self.checks)


# ── what is said ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Said:
    """The content of one marker or manifest: checks by the name of the file they are about."""

    stamp: str
    checks: Mapping[str, tuple[Check, ...]]
    ignored: str = ""
    lines: int = 0


@dataclass(slots=True)
class Manifests:
    """Reads the markers and manifests of a root, each again only when it changed."""

    most_bytes: int
    _said: dict[Path, _Said] = field(default_factory=dict)
    _told: dict[Path, str] = field(default_factory=dict)

    def claims(
        self, root: Path, markers: Mapping[Path, str], files: Iterable[Path]
    ) -> dict[Path, Claim]:
        """Collect what `markers` (with their stamps) say of `files`, all below `root`."""
        self._said = {path: self._read(root, path, stamp) for path, stamp in markers.items()}
        self._told = {path: stamp for path, stamp in self._told.items() if path in markers}
        if not markers:
            return {}
        beside: dict[Path, list[Path]] = {}
        for path in sorted(markers):
            name = file_of_marker(path.name)
            whose = path.parent if name is None else path.with_name(name)
            beside.setdefault(whose, []).append(path)
        claims = {file: self._claim(file, beside) for file in files}
        return {file: claim for file, claim in claims.items() if claim is not None}

    def said_by(self, path: Path) -> Mapping[str, tuple[Check, ...]]:
        """Give what a marker or manifest says, by the name of each file in its folder."""
        said = self._said.get(path)
        own = file_of_marker(path.name)
        if own is not None and (said is None or said.ignored):
            return {own: ()}
        return said.checks if said else {}

    def _claim(self, file: Path, beside: Mapping[Path, list[Path]]) -> Claim | None:
        own = [path for path in beside.get(file, ()) if not self._said[path].ignored]
        lists = [path for path in beside.get(file.parent, ()) if is_list(path.name)]
        said = [self._said[path].checks.get(file.name) for path in (*own, *lists)]
        if all(checks is None for checks in said):
            return None
        return Claim(tuple(check for checks in said for check in checks or ()), tuple(own))

    def _read(self, root: Path, path: Path, stamp: str) -> _Said:
        said = self._said.get(path)
        if said is None or said.stamp != stamp:
            # Who writes it may not be done: a complaint waits for the next look.
            return _read(root, path, stamp, self.most_bytes)
        self._complain(path, said)
        return said

    def complain(self) -> None:
        """Say what was ignored, without waiting for another look."""
        for path, said in self._said.items():
            self._complain(path, said)

    def _complain(self, path: Path, said: _Said) -> None:
        if said.ignored and self._told.get(path) != said.stamp:
            self._told[path] = said.stamp
            lines = {"lines": said.lines} if said.lines else {}
            log.warning("manifest_ignored", path=_label(path), reason=said.ignored, **lines)


def _read(root: Path, path: Path, stamp: str, most_bytes: int) -> _Said:
    try:
        content = _content_of(root / path, most_bytes)
    except OSError as error:
        return _Said(stamp, {}, str(error.strerror or error))
    except ValueError as error:
        return _Said(stamp, {}, str(error))
    label = _label(path)
    if is_list(path.name):
        return _read_list(content, label, stamp)
    name = file_of_marker(path.name)
    assert name is not None  # noqa: S101 - the scan gives no other names
    try:
        checks = _own_checks(path.name, name, content, label)
    except ValueError as error:
        return _Said(stamp, {}, str(error))
    return _Said(stamp, {name: checks})


def _label(path: Path) -> str:
    return bytes(path).decode("utf-8", "backslashreplace")


def _content_of(path: Path, most_bytes: int) -> bytes:
    """Read a small file that may be anything; never follows a link, never waits."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is not a regular file")
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than max_manifest_bytes = {most_bytes}")
    return content.removeprefix(_BOM)


def _own_checks(marker: str, name: str, content: bytes, label: str) -> tuple[Check, ...]:
    """Read what a marker says of its one file.

    Raises:
        ValueError: it cannot be read as what its name claims.
    """
    tail = marker.rpartition(".")[2].casefold()
    lines = [line for line in content.split(b"\n") if line.strip()]
    if tail == "sha256":
        sums = [_sum_of(line) for line in lines]
        for told, hexadecimal in sums:
            if told in (None, name):
                return (Check("sha256", hexadecimal, label),)
        raise ValueError("it says nothing of its file" if sums else "it is empty")
    if tail == "rows" and len(lines) == 1 and _ROWS.fullmatch(lines[0].strip()):
        return (Check("rows", str(int(lines[0])), label),)
    checks = tuple(_said_in(line, label) for line in lines if _SAID.fullmatch(line))
    if tail == "rows" and not any(check.what == "rows" for check in checks):
        raise ValueError("it is no number of rows")
    return checks


def _said_in(line: bytes, label: str) -> Check:
    said = _SAID.fullmatch(line)
    assert said is not None  # noqa: S101 - asked before
    what, value = said["what"].decode().lower(), said["value"]
    if what == "rows" and _ROWS.fullmatch(value):
        return Check(what, str(int(value)), label)
    if what == "sha256" and re.fullmatch(_HEX, value):
        return Check(what, value.decode().lower(), label)
    raise ValueError(f"{what} is followed by something else")


def _read_list(content: bytes, label: str, stamp: str) -> _Said:
    checks: dict[str, tuple[Check, ...]] = {}
    bad: list[str] = []
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            name, hexadecimal = _sum_of(line)
        except ValueError as error:
            bad.append(str(error))
            continue
        if name is None:
            bad.append("a line names no file")
        elif name.casefold().endswith(DATA_TAILS):
            check = Check("sha256", hexadecimal, label)
            checks[name] = tuple(dict.fromkeys((*checks.get(name, ()), check)))
    return _Said(stamp, checks, bad[0] if bad else "", len(bad))


def _sum_of(line: bytes) -> tuple[str | None, str]:
    """Read a line of `sha256sum`: the file's name, if there is one, and the digest.

    Raises:
        ValueError: it is none, or names what does not lie beside it.
    """
    line = line.rstrip(b"\r")
    match = _SUM.fullmatch(line) or _TAGGED_SUM.fullmatch(line)
    if match is None:
        raise ValueError("a line is not what sha256sum writes")
    hexadecimal = match["hex"].decode().lower()
    if match["name"] is None:
        return None, hexadecimal
    name = match["name"].removeprefix(b"./")
    if b"/" in name or name in {b".", b".."} or _CONTROL.search(name):
        raise ValueError("a line names something outside of its folder")
    return os.fsdecode(name), hexadecimal


# ── what is so ────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class RowCount:
    """Counts lines with something on them, block by block, as the row reader splits them."""

    _done: int = 0
    _is_begun: bool = False
    _newline: bytes = b""

    @property
    def rows(self) -> int:
        """How many so far; a last line needs no end."""
        return self._done + self._is_begun

    def next_csv(self) -> Callable[[bytes], None]:
        """Start a CSV, which has line ends of its own; takes its blocks."""
        self._done = self.rows
        self._is_begun = False
        self._newline = b""
        return self.update

    def update(self, block: bytes) -> None:
        """Go on with the next block."""
        if not self._newline:
            block = block.removeprefix(_BOM)
            is_cr = b"\n" not in block and b"\r" in block.rstrip(b"\r")
            self._newline = b"\r" if is_cr else b"\n"
        first, *more = block.split(self._newline)
        self._is_begun |= _is_row(first)
        if more:
            self._done += self._is_begun + sum(map(_is_row, more[:-1]))
            self._is_begun = _is_row(more[-1])


def _is_row(line: bytes) -> bool:
    return bool(line) and not line.isspace()


@dataclass(slots=True)
class Measured:
    """What a file came to while it was hashed; None is what could not be found out."""

    sha256: str | None = None
    rows: int | None = None


def contradiction(claim: Claim | None, path: str, measured: Measured) -> ManifestNotMet | None:
    """Find the first thing that is said of a file and is not so."""
    for check in claim.checks if claim else ():
        found = measured.sha256 if check.what == "sha256" else measured.rows
        if found is None or str(found) != check.expected:
            return ManifestNotMet(
                path,
                manifest=check.said_by,
                what=check.what,
                expected=check.expected,
                found="nothing that can be read" if found is None else str(found),
            )
    return None
