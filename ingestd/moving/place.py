"""A new file takes its name only when it is whole; nothing is ever written over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingestd.errors import NotMoved
from ingestd.pipeline.archive import move_to_free_name

_ONLY_OURS = 0o600  # what is copied here may be for fewer eyes than the folder
_BESIDE = ("", "-wal", "-shm", "-journal")


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """Lend a name beside `target`; what stands there when the block ends becomes `target`.

    A block that fails leaves nothing. What a killed program left is written anew.

    Raises:
        NotMoved: the name is taken, or another program makes the same file now.
    """
    refuse_taken(target)
    partial = target.with_name(f".{target.name}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _ONLY_OURS)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotMoved(f"{partial} is being written by another program") from None
        try:
            os.truncate(descriptor, 0)
            yield partial
            _sync(partial)
            move_to_free_name(partial, target)
            _sync(target.parent)
        except FileExistsError:
            raise NotMoved(_taken(target)) from None
        finally:
            for tail in _BESIDE:
                with suppress(FileNotFoundError):
                    partial.with_name(partial.name + tail).unlink()
    finally:
        os.close(descriptor)


def give_to_owner_of_its_folder(file: Path) -> None:
    """Let a database that root makes belong to the service, which must write it."""
    if os.geteuid() == 0:
        folder = file.parent.stat()
        os.chown(file, folder.st_uid, folder.st_gid)


def refuse_taken(target: Path) -> None:
    """Let nothing pass but a name that is free.

    Raises:
        NotMoved: something lies there, or beside it what SQLite would take for a part of it.
    """
    for tail in _BESIDE:
        path = target.with_name(target.name + tail)
        if os.path.lexists(path):
            raise NotMoved(_taken(path))


def _taken(path: Path) -> str:
    return f"{path} is there already; nothing is written over: name another, or move it away"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
