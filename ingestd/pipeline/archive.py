"""Putting a file away after the commit that closed its last job.

By rename; across file systems by copy, fsync, rename, unlink. Nothing is ever
overwritten: a name that is taken gets a number.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ingestd.pipeline.step import Step

_REASON_SUFFIX = ".reason.txt"
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
    """
    target = free_name(folder / relative)
    target.parent.mkdir(parents=True, exist_ok=True)
    if reason:
        _write_reason(target, reason)
        on_step(Step.EXPLAINED)
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_over(path, target, on_step)
    on_step(Step.MOVED)
    return target


def _copy_over(path: Path, target: Path, on_step: Callable[[Step], None]) -> None:
    """Copy to another file system; the source goes only when the copy is safe on disk."""
    partial = _beside(target, f".{target.name}", ".part")
    try:
        with path.open("rb") as source, partial.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        shutil.copystat(path, partial)
        on_step(Step.COPIED)
        partial.rename(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)
    path.unlink()


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


def _write_reason(target: Path, lines: Sequence[str]) -> None:
    """Write why a file was refused and what to do; a crash may have left the same text here."""
    text = "\n".join(lines) + "\n"
    reason = _beside(target, target.name, _REASON_SUFFIX)
    if reason.is_file() and reason.read_text(encoding="utf-8", errors="replace") == text:
        return
    reason = free_name(reason)
    partial = _beside(reason, f".{reason.name}", ".part")
    partial.write_text(text, encoding="utf-8")
    partial.rename(reason)
