"""Asking Linux whether a process has a file open for writing, and keeping writers out.

A read lease is granted only while nobody has the file open for writing; as long as it is
held, whoever wants to write waits. Only the owner of a file (or CAP_LEASE) may ask, and only
the kernel that sees all writers can answer: on a network the answer says nothing.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache
from pathlib import Path

from ingestd.pipeline.mounts import file_system_on, is_remote, mountinfo


class Writers(Enum):
    """Whether any process has a file open for writing."""

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


def writers_of(path: Path) -> Writers:
    """Ask for the moment."""
    with writers_kept_out(path) as answer:
        return answer


@contextmanager
def writers_kept_out(path: Path) -> Iterator[Writers]:
    """Tell who writes; where the answer is NONE nobody can begin to during the block.

    A writer that comes meanwhile waits, at most for `/proc/sys/fs/lease-break-time` (45 s).
    """
    try:
        stream = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 - closed below
    except OSError:
        yield Writers.UNKNOWN
        return
    with stream:
        yield _lease(stream.fileno())
        # Closing the file gives the lease back.


def _lease(handle: int) -> Writers:
    try:
        # A writer who comes this very moment is announced by a signal, by default SIGIO,
        # which would end us. SIGURG does nothing.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return Writers.UNKNOWN if _is_shared(os.fstat(handle).st_dev) else Writers.SOME
    except OSError:
        return Writers.UNKNOWN
    return Writers.UNKNOWN if _is_shared(os.fstat(handle).st_dev) else Writers.NONE


def _without_waiting(path: str, flags: int) -> int:
    """What was a file a moment ago may be a pipe or a link now."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


@lru_cache(maxsize=64)
def _is_shared(device: int) -> bool:
    """Say whether other machines may write there; a device that is not listed is local."""
    # Some of these refuse every lease as if somebody wrote, others grant it and know nothing.
    return is_remote(file_system_on(device, mountinfo()))
