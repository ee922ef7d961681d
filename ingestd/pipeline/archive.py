"""Putting a file away after the commit that closed its last job.

By rename; across file systems by copy, fsync, rename, unlink. Nothing is ever
overwritten: a name that is taken gets a number.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog

from ingestd.errors import FileChanged
from ingestd.pipeline.read import stamp_of
from ingestd.pipeline.step import Step

log = structlog.get_logger()

REASON_SUFFIX = ".reason.txt"
_MOST_NAME_BYTES = 255


def put_away(
    path: Path,
    folder: Path,
    relative: Path,
    *,
    reason: Sequence[str] = (),
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Path:
    """Move `path` below `folder`, keeping its `relative` way; returns where it went.

    The lines of a `reason` are written beside it, and first: a crash between
    the two must not leave a file in quarantine that does not say why.

    Raises:
        OSError: the file stays where it is.
        FileChanged: so it does, since it is no longer what was to be put away.
    """
    target = free_name(folder / relative)
    target.parent.mkdir(parents=True, exist_ok=True)
    if reason:
        write_reason(target, reason)
        on_step(Step.EXPLAINED)
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_over(path, target, on_step)
    on_step(Step.MOVED)
    return target


def put_back(target: Path, home: Path) -> Path:
    """Move what was put away by mistake back to its `home`; returns where it went.

    Something else may lie there again by now, which a link refuses to replace.
    """
    try:
        os.link(target, home, follow_symlinks=False)
    except OSError:
        return put_away(target, home.parent, Path(home.name))
    target.unlink()
    return home


def put_beside(markers: Iterable[Path], target: Path) -> None:
    """Move the markers of a file that lies at `target` now to its side, under its new name.

    One that cannot be moved is no reason to stop: a later look finds it left over.
    """
    for marker in markers:
        name = _beside(target, target.name, marker.suffix).name
        try:
            put_away(marker, target.parent, Path(name))
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("marker_not_put_away", path=os.fspath(marker), error=str(error))


def _copy_over(path: Path, target: Path, on_step: Callable[[Step], None]) -> None:
    """Copy to another file system; the source goes only when the copy is safe on disk."""
    partial = _beside(target, f".{target.name}", ".part")
    try:
        with path.open("rb") as source, partial.open("wb") as copy:
            stamp = stamp_of(os.fstat(source.fileno()))
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        shutil.copystat(path, partial)
        on_step(Step.COPIED)
        _refuse_changed(path, stamp)
        partial.rename(target)
    except (OSError, FileChanged):
        partial.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)
    path.unlink()


def _refuse_changed(path: Path, stamp: str) -> None:
    if stamp_of(path.stat(follow_symlinks=False)) != stamp:
        raise FileChanged(f"{path} changed while it was copied")


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def write_reason(target: Path, lines: Sequence[str]) -> None:
    """Write why a file was refused and what to do; a crash may have left the same text here."""
    text = "\n".join(lines) + "\n"
    reason = _beside(target, target.name, REASON_SUFFIX)
    if reason.is_file() and reason.read_text(encoding="utf-8", errors="replace") == text:
        return
    reason = free_name(reason)
    partial = _beside(reason, f".{reason.name}", ".part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(reason)
