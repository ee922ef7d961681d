"""Putting a file away after the commit that closed its last job.

By rename; across file systems by copy, fsync, rename, fsync of the folder, unlink. Nothing is
ever overwritten: a name that is taken gets a number, and the move itself refuses a name that
was taken a moment ago.

A copy on its way lies in the folder `.partial`, locked by the process that writes it. What a
killed one left there is begun anew by the next who moves the same file, or swept away.

Within one file system nothing is made durable: a power cut may take the rename back, whole.
Then the file lies in the inbox again, its job is known by its stamp, and it is moved again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import structlog

from ingestd.errors import FileChanged, FileVanished, IngestError, LostClaim, NotPutAway
from ingestd.pipeline.read import BLOCK_BYTES, stamp_of
from ingestd.pipeline.step import Step

log = structlog.get_logger()

REASON_SUFFIX = ".reason.txt"
_MOST_NAME_BYTES = 255
PARTIAL = ".partial"

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
# Not in every C library, and not known to every file system.
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def put_away(  # noqa: PLR0913 - a move, and whom it tells
    path: Path,
    target: Path,
    *,
    folder: Path,
    stamp: str | None = None,
    reason: Sequence[str] = (),
    on_step: Callable[[Step], None] = lambda _step: None,
    heed_stop: Callable[[], None] = lambda: None,
) -> bool:
    """Move `path` to `target`, a name below `folder` that is free; says whether by a rename.

    Else by a copy, which was held against the file, and the file against the `stamp` that it
    must have; what a rename moved the caller looks at.
    The lines of a `reason` are written beside it, and first: a crash between
    the two must not leave a file in quarantine that does not say why.

    Raises:
        FileExistsError: the name was taken a moment ago; choose another.
        FileVanished: somebody took the file away.
        FileChanged: it was written to, or replaced, before it was copied.
        LostClaim: another process is moving it.
        NotPutAway: one of the two folders refuses; the file stays where it is.
    """
    _refuse_immovable(path)
    with _blaming(folder, at=target.parent, path=path):
        _make_folders(target.parent)
        if reason:
            write_reason(target, folder, reason)
            on_step(Step.EXPLAINED)
        is_renamed = True
        try:
            move_to_free_name(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            is_renamed = False
            _copy_over(path, target, folder, stamp, on_step, heed_stop)
    on_step(Step.MOVED)
    return is_renamed


def put_away_as(path: Path, wanted: Path, *, folder: Path) -> Path:
    """Move `path` to a name like `wanted` that is free; returns it.

    Raises:
        IngestError: as `put_away`.
    """
    while True:
        target = free_name(wanted)
        with suppress(FileExistsError):
            put_away(path, target, folder=folder)
            return target


def put_back(target: Path, home: Path) -> Path:
    """Move what was put away by mistake back to its `home`; returns where it went.

    Something else may lie there again by now, which is not replaced.
    """
    return put_away_as(target, home, folder=home.parent)


def put_beside(markers: Iterable[Path], target: Path) -> None:
    """Move the markers of a file that lies at `target` now to its side, under its new name.

    One that cannot be moved is no reason to stop: a later look finds it left over.
    """
    for marker in markers:
        wanted = _beside(target, target.name, marker.suffix)
        try:
            put_away_as(marker, wanted, folder=target.parent)
        except FileVanished:
            continue
        except IngestError as error:
            log.warning("marker_not_put_away", path=os.fspath(marker), error=str(error))


def finish(path: Path) -> None:
    """Take away a file whose copy is in the archive already: its mover was killed before this.

    Raises:
        NotPutAway: its folder refuses.
    """
    _refuse_immovable(path)
    with _blaming(path.parent, at=path.parent, path=path):
        path.unlink()


def is_copy(path: Path, target: Path) -> bool:
    """Say whether a file lies at `target` that has the very bytes of `path`."""
    try:
        return stat.S_ISREG(target.lstat().st_mode) and filecmp.cmp(path, target, shallow=False)
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> int:
    """Remove what killed processes left on its way into `folder`; how many files."""
    swept = 0
    hidden = folder / PARTIAL
    with suppress(OSError):
        for partial in hidden.iterdir():
            with suppress(LostClaim), _partial(folder, partial.name):
                swept += 1
        hidden.rmdir()
    return swept


# Moving -------------------------------------------------------------------------------------


def move_to_free_name(path: Path, target: Path) -> None:
    """Rename, but never over another file, whoever puts one there this very moment.

    Raises:
        FileExistsError: the name is taken.
    """
    if _renameat2 is not None:
        here, there = os.fsencode(path), os.fsencode(target)
        if _renameat2(_AT_FDCWD, here, _AT_FDCWD, there, _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NOT_HERE:
            raise OSError(code, os.strerror(code), str(path), None, str(target))
    link_and_unlink(path, target)


def link_and_unlink(path: Path, target: Path) -> None:
    """Do the same where a file system (NFS, Ceph, 9p) cannot rename with flags.

    A kill between the two leaves both names; they are found to be copies, and `finish` ends it.
    """
    os.link(path, target, follow_symlinks=False)
    path.unlink()


def _copy_over(
    path: Path,
    target: Path,
    folder: Path,
    stamp: str | None,
    on_step: Callable[[Step], None],
    heed_stop: Callable[[], None],
) -> None:
    """Copy to another file system; the source goes only when the copy is safe on disk.

    A stop between two blocks takes the copy back; the next start makes it anew. The lock is
    held until the end, so that no second process copies what is about to go.
    """
    with _partial(folder, name_on_the_way(path)) as (partial, copy):
        with path.open("rb") as source:
            before = os.fstat(source.fileno())
            _reserve(copy, before.st_size)
            while block := source.read(BLOCK_BYTES):
                heed_stop()
                copy.write(block)
        copy.flush()
        os.utime(copy.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
        with suppress(PermissionError):  # not every file system has modes
            os.fchmod(copy.fileno(), stat.S_IMODE(before.st_mode))
        os.fsync(copy.fileno())
        on_step(Step.COPIED)
        # Whoever replaces a file by a rename asks nobody: what was copied must be what was read.
        if {stamp or stamp_of(before), stamp_of(path.lstat())} != {stamp_of(before)}:
            message = f"{path} changed while it was copied"
            raise FileChanged(message)
        move_to_free_name(partial, target)
        _fsync(target.parent)
        with _blaming(path.parent, at=path.parent, path=path):
            path.unlink()


def _reserve(copy: BinaryIO, size: int) -> None:
    """Take all of the room at once: a volume that is too small is not filled to the brim."""
    try:
        if size:
            os.posix_fallocate(copy.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise


@contextmanager
def _partial(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Give an empty file on its way into `folder`, ours alone until the end of the block.

    If it has not been renamed by then, it is removed.

    Raises:
        LostClaim: another process holds it.
    """
    path = folder / PARTIAL / name
    with _locked(path) as copy:
        copy.truncate(0)
        try:
            yield path, copy
        finally:
            if _is_named(copy, path):
                path.unlink()
            with suppress(OSError):  # others are on their way, too
                path.parent.rmdir()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # the folder was swept away a moment ago
            continue
        with os.fdopen(handle, "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another process is writing {path}"
                raise LostClaim(message) from error
            # Else it was renamed or removed by who held it before us.
            if _is_named(stream, path):
                yield stream
                return


def _is_named(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def name_on_the_way(path: Path) -> str:
    """Name a copy for its source: short, and the same for every process that moves it."""
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Refusals -----------------------------------------------------------------------------------


def _refuse_immovable(path: Path) -> None:
    """Find out before anything is copied that the source could not be removed.

    Raises:
        NotPutAway: its folder refuses.
    """
    folder = path.parent
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        code = errno.EROFS if is_read_only else errno.EACCES
    elif _is_kept_by_sticky_bit(path):
        code = errno.EPERM
    else:
        return
    raise NotPutAway(path, folder, folder, OSError(code, os.strerror(code), str(folder)))


def _is_kept_by_sticky_bit(path: Path) -> bool:
    """As in /tmp: who owns neither the file nor the folder cannot move it away."""
    folder = path.parent.stat()
    if not folder.st_mode & stat.S_ISVTX or os.geteuid() == 0:
        return False
    return os.geteuid() not in (folder.st_uid, path.lstat().st_uid)


@contextmanager
def _blaming(folder: Path, *, at: Path, path: Path) -> Iterator[None]:
    """Say which folder refused to have `path` moved.

    Raises:
        FileVanished: none did; somebody took the file away.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if not os.path.lexists(path):
            raise FileVanished(str(path)) from error
        raise NotPutAway(path, folder, nearest(at), error) from error


def nearest(folder: Path) -> Path:
    """Give the folder itself or the first above it that is there."""
    return next(one for one in (folder, *folder.parents) if os.path.lexists(one))


def _make_folders(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # For the caller that word means a file whose name is taken.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


# Names --------------------------------------------------------------------------------------


def free_name(target: Path) -> Path:
    """Find a name that is not taken: `x.csv`, then `x (2).csv` and so on."""
    if not os.path.lexists(target):
        return target
    number = 2
    while True:
        candidate = _beside(target, target.stem, f" ({number}){target.suffix}")
        if not os.path.lexists(candidate):
            return candidate
        number += 1


def _beside(target: Path, stem: str, tail: str) -> Path:
    """Name a file beside `target`; a stem that leaves no room for the tail is cut."""
    room = _MOST_NAME_BYTES - len(os.fsencode(tail))
    if len(os.fsencode(stem)) > room:
        stem = os.fsencode(stem)[:room].decode(errors="ignore")
    return target.with_name(stem + tail)


def write_reason(target: Path, folder: Path, lines: Sequence[str]) -> None:
    """Write why a file was refused and what to do; a crash may have left the same text here."""
    content = ("\n".join(lines) + "\n").encode(errors="backslashreplace")
    reason = _beside(target, target.name, REASON_SUFFIX)
    if reason.is_file() and reason.read_bytes() == content:
        return
    reason = free_name(reason)
    with _partial(folder, name_on_the_way(reason)) as (partial, stream):
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        move_to_free_name(partial, reason)
    _fsync(reason.parent)
