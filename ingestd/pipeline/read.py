"""Reading: containers to CSV streams, CSV streams to lines. Nothing is held whole.

A `Source` is one file on disk: a bare CSV, a ZIP, a ZIP of ZIPs. It lists the
CSVs inside and opens each as a stream; members are never unpacked to disk.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, Self, cast

from ingestd.errors import FileRefused, FileVanished, IngestError

BLOCK_BYTES = 1 << 17  # stays in the processor's cache until its rows are checked
HASHED_AT_ONCE = 1 << 20
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_NESTED_JOIN = "/"
# A row begins with an id in base58: none of these can be the start of a table.
_NOT_A_TABLE = {
    b"PK\x03\x04": "a ZIP; name it .zip",
    b"PK\x05\x06": "an empty ZIP; name it .zip",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"7z\xbc\xaf": "packed by 7-Zip; unpack it",
    b"Rar!": "packed by RAR; unpack it",
    b"\xfd7zX": "packed by xz; unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel sheet; export it as CSV",
    b"%PDF": "a PDF; ask for the CSV",
    b"<": "HTML or XML, perhaps an error page of the portal; fetch it again",
    b"\x00\x00\x00\x00": "a row of NUL bytes where its text should be; fetch it again",
}
_IS_UTF8 = 0x800
_IS_ENCRYPTED = 0x1
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER, _DIRECTORY_ENTRY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_HEADER_BYTES, _END_BYTES, _MOST_COMMENT_BYTES = 30, 22, 1 << 16
_UNICODE_PATH = 0x7075
# What a directory may take for each member that is allowed, names included; and in any case.
_DIRECTORY_BYTES_A_MEMBER, _DIRECTORY_BYTES = 512, 1 << 20
_VALUE_CHARACTERS = 200
# Small members may shrink a lot by right (an hour of equal blanks); a ratio
# says something only past this size.
_RATIO_FROM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """What a hostile file may cost; each limit is a setting."""

    max_line_bytes: int
    max_member_bytes: int
    max_ratio: float
    max_nesting: int
    max_members: int
    max_name_bytes: int


@dataclass(frozen=True, slots=True)
class Csv:
    """One CSV: the way to it inside the container (empty for a bare file) and its sizes."""

    steps: tuple[str, ...]
    ordinal: int

    @property
    def member(self) -> str | None:
        """The way inside the ZIP as one text; None for a bare file."""
        return _NESTED_JOIN.join(self.steps) or None


@dataclass(frozen=True, slots=True)
class _OpenZip:
    """A ZIP that is being read, and its stream: a file, or a member of the outer ZIP."""

    archive: zipfile.ZipFile
    stream: IO[bytes]

    def close(self) -> None:
        self.archive.close()
        self.stream.close()


@dataclass(slots=True)
class _Sum:
    """What a ZIP and all ZIPs inside it come to."""

    members: int = 0
    unpacked: int = 0


@dataclass(slots=True)
class Source:
    """One file on disk; `stamp` tells whether it is still the same one."""

    path: Path
    limits: ReadLimits
    stamp: str
    mtime_ns: int
    size: int
    _open_zips: dict[tuple[str, ...], _OpenZip] = field(default_factory=dict)
    _kept: dict[tuple[str, ...], bytes] = field(default_factory=dict)

    @property
    def is_zip(self) -> bool:
        """Say whether the name claims a ZIP."""
        return self.path.name.lower().endswith(".zip")

    def csvs(self) -> Iterator[Csv]:
        """List the CSVs in the order in which they stand in the file.

        Raises:
            FileRefused: the container cannot be read or passes a limit.
        """
        if not self.is_zip:
            yield Csv((), 0)
            return
        with refusing_bad_zips():
            members = list(self._members((), 1, _Sum()))
        if not members:
            reason = "the ZIP holds no .csv and no .zip"
            raise FileRefused(reason, kind="empty_container")
        if len({_NESTED_JOIN.join(steps) for steps in members}) < len(members):
            reason = "a folder and a ZIP of one name hold members of one name"
            raise FileRefused(reason, kind="twin_members")
        for ordinal, steps in enumerate(members):
            yield Csv(steps, ordinal)

    def names(self) -> list[str]:
        """Name the members of a ZIP itself, as they stand in its directory; nothing is judged."""
        return [info.filename for info in self._zip(()).infolist()]

    def _members(
        self, steps: tuple[str, ...], depth: int, total: _Sum
    ) -> Iterator[tuple[str, ...]]:
        """Walk the ZIP at `steps`: the way to each CSV."""
        if depth > self.limits.max_nesting:
            reason = f"ZIPs are nested deeper than max_nesting = {self.limits.max_nesting}"
            raise FileRefused(reason, kind="nesting", field="/".join(steps))
        archive = self._zip(steps)
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        total.members += len(infos)
        if total.members > self.limits.max_members:
            raise _too_many_members(self.limits)
        _refuse_shared_bytes(infos, archive.start_dir)
        seen: set[str] = set()
        for info in infos:
            lowered = info.filename.lower()
            is_data = lowered.endswith((".csv", ".zip")) and not _is_litter(lowered)
            if not is_data:  # a folder ends with a slash
                continue
            self._refuse_tricks(info, seen)
            total.unpacked += info.file_size
            if total.unpacked > _most_unpacked(self.size, self.limits):
                reason = f"{self.size} bytes say that they unpack to more than max_ratio allows"
                raise FileRefused(reason, kind="bomb")
            if lowered.endswith(".csv"):
                yield (*steps, info.filename)
            else:
                yield from self._members((*steps, info.filename), depth + 1, total)

    def _refuse_tricks(self, info: zipfile.ZipInfo, seen: set[str]) -> None:
        """Refuse what no exporter writes: links, encryption, twins, bombs by their own word."""
        reason = kind = ""
        if len(info.filename.encode()) > self.limits.max_name_bytes:
            reason, kind = "a member's name is longer than max_name_bytes", "name_bytes"
        elif "\x00" in info.orig_filename + info.filename:
            reason, kind = "a member's name holds a NUL character", "nul"
        elif info.filename in seen:
            reason, kind = "two members have the same name", "twin_members"
        elif stat.S_ISLNK(info.external_attr >> 16):
            reason, kind = "a member is a symbolic link", "link"
        elif info.flag_bits & _IS_ENCRYPTED:
            reason, kind = "a member is encrypted; unpack it and drop the CSV", "encrypted"
        elif info.compress_type not in _PACKINGS:
            # LZMA takes as much memory as the file asks for; no exporter writes it or bzip2.
            reason, kind = "a member is neither stored nor deflated; pack it anew", "packing"
        elif info.file_size > self.limits.max_member_bytes:
            reason = f"a member says {info.file_size} bytes, more than max_member_bytes"
            kind = "member_bytes"
        elif info.file_size > _most_unpacked(info.compress_size, self.limits):
            reason = f"a member says it unpacks to {info.file_size} bytes, more than max_ratio"
            kind = "bomb"
        if reason:
            value = info.filename[:_VALUE_CHARACTERS]
            raise FileRefused(reason, kind=kind, field="member", value=value)
        seen.add(info.filename)

    def _zip(self, steps: tuple[str, ...]) -> zipfile.ZipFile:
        """Open the ZIP at `steps`.

        It stays open with those around it, since its members are read one
        after another; its neighbours are closed, so that memory stays flat.
        """
        if steps not in self._open_zips:
            for other in reversed(list(self._open_zips)):
                if other != steps[: len(other)]:
                    self._open_zips.pop(other).close()
            self._open_zips[steps] = self._open_zip(steps)
        return self._open_zips[steps].archive

    def _open_zip(self, steps: tuple[str, ...]) -> _OpenZip:
        stream: IO[bytes]
        if steps:
            # The member stream is seekable, so an inner ZIP needs no copy.
            outer = self._zip(steps[:-1])
            stream, size = outer.open(steps[-1]), outer.getinfo(steps[-1]).file_size
        else:
            stream, size = _open_file(self.path), self.size
        try:
            return _OpenZip(_read_directory(stream, size, self.limits), stream)
        except BaseException:
            stream.close()
            raise

    @contextmanager
    def open(self, csv: Csv) -> Iterator[BinaryIO]:
        """Open one CSV as a stream of its bytes.

        Raises:
            FileRefused: the member is damaged or passes a limit.
            FileVanished: the file is gone.
        """
        with self._stream(csv) as stream:
            yield cast("BinaryIO", stream)

    def unpacked_bytes(self, csv: Csv) -> int:
        """How long a CSV is, or says that it is."""
        if not csv.steps:
            return self.size
        return self._zip(csv.steps[:-1]).getinfo(csv.steps[-1]).file_size

    def keep(self, csv: Csv) -> None:
        """Unpack a small CSV once and hold its bytes until `close`; nothing else stays open.

        Raises:
            FileRefused: the member is damaged or passes a limit.
        """
        with self.open(csv) as stream:
            kept = b"".join(iter(lambda: stream.read(BLOCK_BYTES), b""))
        self.close()
        self._kept[csv.steps] = kept

    def _stream(self, csv: Csv) -> BinaryIO | _Guarded:
        if csv.steps in self._kept:
            return io.BytesIO(self._kept[csv.steps])
        if csv.steps:
            with refusing_bad_zips():
                archive = self._zip(csv.steps[:-1])
                info = archive.getinfo(csv.steps[-1])
                return _Guarded(archive.open(info), info, self.limits)
        try:
            return _open_file(self.path)
        except FileNotFoundError as error:
            raise FileVanished(str(self.path)) from error

    def close(self) -> None:
        """Close what reading opened, and let go of what was kept."""
        self._kept.clear()
        while self._open_zips:
            self._open_zips.popitem()[1].close()

    def is_unchanged(self) -> bool:
        """Look again: is this still the file that was found?"""
        try:
            return stamp_of(self.path.stat()) == self.stamp
        except FileNotFoundError as error:
            raise FileVanished(str(self.path)) from error


def _is_litter(name: str) -> bool:
    """Say whether a member is what archivers leave behind, not data."""
    return name.startswith("__macosx/") or name.rsplit("/", 1)[-1].startswith("._")


def _open_file(path: Path) -> BinaryIO:
    """Open a regular file; what became a pipe since it was found must not make us wait.

    Raises:
        FileNotFoundError: it is gone, or no file any more.
    """
    stream = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise FileNotFoundError(errno.ENOENT, "not a regular file any more", str(path))
    return cast("BinaryIO", stream)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _read_directory(stream: IO[bytes], size: int, limits: ReadLimits) -> zipfile.ZipFile:
    """Open a ZIP whose directory is small enough, and the only one that it can be read by."""
    begins = stream.read(len(_LOCAL_HEADER))
    stream.seek(max(0, size - _END_BYTES - _MOST_COMMENT_BYTES))
    _refuse_two_ends(stream.read(_END_BYTES + _MOST_COMMENT_BYTES))
    archive = zipfile.ZipFile(cast("IO[bytes]", _DirectoryGuard(stream, limits)))
    archive.fp = stream
    # Cut off behind a whole inner ZIP, or two ZIPs in one: `zipfile` would read the last
    # one and take all before it for the program of a self-extracting file.
    first = min((info.header_offset for info in archive.infolist()), default=-1)
    if begins == _LOCAL_HEADER and first != 0:
        message = "it begins with members that its directory does not have"
        raise zipfile.BadZipFile(message)
    return _named(archive)


def _refuse_two_ends(tail: bytes) -> None:
    """Refuse a comment that holds another directory's end: readers disagree which one counts."""
    places = [match.start() for match in re.finditer(re.escape(_END), tail)]
    good = [
        at
        for at in places
        if len(tail) - at >= _END_BYTES
        and at + _END_BYTES + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)
    ]
    if good and good != places[-1:]:
        message = "it can be read by two directories"
        raise zipfile.BadZipFile(message)


class _DirectoryGuard:
    """A ZIP while its directory is read: `zipfile` takes one of any length into memory."""

    def __init__(self, stream: IO[bytes], limits: ReadLimits) -> None:
        self._stream = stream
        self._limits = limits
        self._most = max(_DIRECTORY_BYTES, limits.max_members * _DIRECTORY_BYTES_A_MEMBER)
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size > self._most:
            raise _too_many_members(self._limits)
        block = self._stream.read(size)
        if block.count(_DIRECTORY_ENTRY) > self._limits.max_members:
            raise _too_many_members(self._limits)
        return block


def _too_many_members(limits: ReadLimits) -> FileRefused:
    reason = f"the ZIP has more members than max_members = {limits.max_members}"
    return FileRefused(reason, kind="members")


def _refuse_shared_bytes(infos: Sequence[zipfile.ZipInfo], directory: int) -> None:
    """Refuse members that lie on each other: small bombs of one kernel are a big one."""
    starts = [*(info.header_offset for info in infos), directory]
    for info, following in zip(infos, starts[1:], strict=True):
        if info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > following:
            value = info.filename[:_VALUE_CHARACTERS]
            reason = "a member reaches into what follows it"
            raise FileRefused(reason, kind="bomb", field="member", value=value)


def _named(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """Give members their true names: `zipfile` reads cp437 where no flag says UTF-8.

    macOS writes UTF-8 without the flag, a Russian Windows writes cp866; Info-ZIP adds a
    field with the name in UTF-8, which only newer versions of `zipfile` read.
    """
    for info in archive.infolist():
        if not info.flag_bits & _IS_UTF8 and not info.orig_filename.isascii():
            raw = info.orig_filename.encode("cp437")
            try:
                info.filename = _unicode_path(info, raw) or raw.decode()
            except UnicodeDecodeError:
                info.filename = raw.decode("cp866")
    # By the names as they now are: a former one may be another member's true one.
    archive.NameToInfo.clear()
    archive.NameToInfo.update({info.filename: info for info in archive.infolist()})
    return archive


def _unicode_path(info: zipfile.ZipInfo, raw: bytes) -> str | None:
    """Read the name from the field that Info-ZIP adds, if it is about this very name."""
    extra = info.extra
    while len(extra) >= 4:  # noqa: PLR2004 - two bytes each of kind and length
        kind, length = struct.unpack_from("<HH", extra)
        data, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and data[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            return data[5:].decode()
    return None


def _most_unpacked(packed: int, limits: ReadLimits) -> int:
    """So many bytes are believed to come out of so many packed ones."""
    return max(_RATIO_FROM_BYTES, int(packed * limits.max_ratio))


class _Guarded:
    """A member stream that stops a bomb while it unpacks: sizes in headers may lie."""

    def __init__(self, member: IO[bytes], info: zipfile.ZipInfo, limits: ReadLimits) -> None:
        self._member = member
        self._size = info.file_size
        self._most = min(limits.max_member_bytes, _most_unpacked(info.compress_size, limits))
        self._given = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._member.close()

    def read(self, size: int) -> bytes:
        with refusing_bad_zips():
            block = self._member.read(size)
        self._given += len(block)
        if self._given > self._most:
            reason = f"the member unpacks to more than {self._most} bytes: past the limits"
            raise FileRefused(reason, kind="bomb")
        if not block and size and self._given != self._size:
            reason = f"a member says {self._size} bytes and has {self._given}"
            raise FileRefused(reason, kind="bad_zip")
        return block


@contextmanager
def refusing_bad_zips() -> Iterator[None]:
    """Turn what `zipfile` raises on damaged input into a refusal of the file.

    Raises:
        FileVanished: the file is gone.
    """
    try:
        yield
    except (IngestError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise FileVanished(str(error.filename)) from error
    except Exception as error:  # `zipfile` has a new one for every new lie
        # A place outside of the file is the ZIP's fault, a disk that fails is not.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = f"the ZIP cannot be read: {str(error) or type(error).__name__}"
        raise FileRefused(reason, kind="bad_zip") from error


def open_source(path: Path, limits: ReadLimits) -> Source:
    """Look at a file on disk without reading it.

    Raises:
        FileVanished: it is gone.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileVanished(str(path)) from error
    return Source(path, limits, stamp_of(status), status.st_mtime_ns, status.st_size)


def stamp_of(status: os.stat_result) -> str:
    """What tells one state of one file from all others, short of reading it."""
    # Spelt out part by part: asked for every file at every look.
    of = status
    return f"{of.st_dev}:{of.st_ino}:{of.st_size}:{of.st_mtime_ns}:{of.st_ctime_ns}"


def is_moved_unchanged(stamp: str, target: Path) -> bool:
    """Say whether what lies at `target` is the file of `stamp` as it was before its rename.

    A rename changes the ctime by itself.
    """
    there = stamp_of(target.stat(follow_symlinks=False))
    return there.rsplit(":", 1)[0] == stamp.rsplit(":", 1)[0]


class Digest(NamedTuple):
    """What a file's bytes are known by: SHA-256 in hex, and their number."""

    sha256: str
    size: int


def sha256_of(stream: BinaryIO, also: Callable[[bytes], object] = lambda _block: None) -> Digest:
    """Hash a stream to its end; each block is shown to `also`."""
    digest = hashlib.sha256()
    size = 0
    while block := stream.read(HASHED_AT_ONCE):
        digest.update(block)
        also(block)
        size += len(block)
    return Digest(digest.hexdigest(), size)


class Row(NamedTuple):
    """One line of a CSV as bytes, without its end.

    `start` is its offset in the file, `end` that of the next line.
    """

    line: int
    end: int
    raw: bytes
    is_too_long: bool = False
    start: int = 0

    @property
    def is_blank(self) -> bool:
        """Blank lines are nothing, but they are counted."""
        return not self.raw.strip()


class RowReader:
    """Splits a stream into rows and hashes every byte on the way.

    Resumes behind a checkpoint: what comes before is hashed, not split.
    After the last row, `sha256` is the digest of the whole stream and
    `encoding` says what was found.
    """

    def __init__(
        self, stream: BinaryIO, *, max_line_bytes: int, from_byte: int = 0, from_line: int = 0
    ) -> None:
        """Read `stream` from its start; rows begin behind `from_byte` and `from_line`."""
        self._stream = stream
        self._most = max_line_bytes
        self._from_byte = from_byte
        self._line = from_line
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._newline = b"\n"
        self.encoding = "utf-8"

    @property
    def sha256(self) -> str:
        """Digest of what was read so far, in hex."""
        return self._digest.hexdigest()

    @property
    def bytes_read(self) -> int:
        """How far the stream was read."""
        return self._bytes

    def _block(self) -> bytes:
        block = self._stream.read(BLOCK_BYTES)
        self._digest.update(block)
        self._bytes += len(block)
        return block

    def __iter__(self) -> Iterator[Row]:
        """Give the rows in order.

        Raises:
            FileRefused: an encoding that is not UTF-8, told by its first bytes.
        """
        first = self._block()
        self._look_at_start(first)
        offset, pending = self._skip(first)
        while True:
            # A search passes over a row many times as fast as `split` does.
            at = 0
            while (until := pending.find(self._newline, at)) >= 0:
                start, offset = offset, offset + until + 1 - at
                yield self._row(start, offset, pending[at:until])
                at = until + 1
            pending = pending[at:]
            # One more byte than the limit may be a CR whose LF is in the next block.
            if len(pending) > self._most + 1:
                offset, pending = yield from self._too_long(offset, pending)
                continue
            more = self._more(len(pending))
            if not more:
                break
            pending = b"".join((pending, *more))
        if pending:
            yield self._row(offset, offset + len(pending), pending)

    def _more(self, held: int) -> list[bytes]:
        """Read on to a block with a line's end in it, so that a long line is joined only once."""
        blocks: list[bytes] = []
        while held <= self._most + 1 and (block := self._block()):
            blocks.append(block)
            held += len(block)
            if self._newline in block:
                break
        return blocks

    def _look_at_start(self, first: bytes) -> None:
        for start, what in _NOT_A_TABLE.items():
            if first.startswith(start):
                reason = f"the file is no CSV but begins like {what} and drop it again"
                raise FileRefused(reason, kind="format", line=1)
        if first[:2] in _WIDE_BOMS or b"\x00" in first[:2]:
            reason = (
                f"the file is UTF-16, not UTF-8: bytes 0x{first[:2].hex()} at offset 0; "
                "save it as UTF-8 and drop it again"
            )
            raise FileRefused(reason, kind="encoding", line=1)
        if first.startswith(_BOM):
            self.encoding = "utf-8-sig"
        if b"\n" not in first and b"\r" in first.rstrip(b"\r"):
            self._newline = b"\r"

    def _skip(self, first: bytes) -> tuple[int, bytes]:
        """Go to the checkpoint; at the very start, past the byte order mark."""
        if not self._from_byte:
            start = len(_BOM) if first.startswith(_BOM) else 0
            return start, first[start:]
        block = first
        while self._bytes < self._from_byte and block:
            block = self._block()
        return self._from_byte, block[len(block) - (self._bytes - self._from_byte) :]

    def _row(self, start: int, end: int, raw: bytes) -> Row:
        self._line += 1
        if raw.endswith(b"\r"):
            raw = raw[:-1]
        # What its own `__new__` does, in half the time.
        return tuple.__new__(Row, (self._line, end, raw, len(raw) > self._most, start))

    def _too_long(self, offset: int, start: bytes) -> Generator[Row, None, tuple[int, bytes]]:
        """Pass over a line beyond the limit without holding it; keep its beginning."""
        kept = start[: self._most]
        began, offset = offset, offset + len(start)
        while block := self._block():
            head, newline, rest = block.partition(self._newline)
            offset += len(head) + len(newline)
            if newline:
                self._line += 1
                yield Row(self._line, offset, kept, is_too_long=True, start=began)
                return offset, rest
        self._line += 1
        yield Row(self._line, offset, kept, is_too_long=True, start=began)
        return offset, b""
