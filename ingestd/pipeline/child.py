"""A child: a new process of this program that hears and tells all by one pipe.

It is no copy of ours, whose threads hold locks; it ends with us, however we end, and
leaves signals to us.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from ingestd.garbage import look_for_cycles_rarely

_PR_SET_PDEATHSIG = 1


def bear(module: str, *shared: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process that calls `live` of a module of the pipeline; and our end of its pipe.

    It has the descriptors that are `shared`, too.
    """
    begin = f"import sys; from ingestd.pipeline import {module}; {module}.live(*sys.argv[1:])"
    ours, theirs = socket.socketpair()
    with theirs:
        descriptors = [theirs.fileno(), *shared]
        arguments = [theirs.fileno(), os.getpid(), *shared]
        process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-P", "-c", begin, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        )
    return process, Connection(ours.detach())


@contextmanager
def pipe_to(descriptor: str, parent: str) -> Iterator[Connection]:
    """Be a child, on a pipe that the process `parent` has the other end of, until it ends."""
    # A terminal, or a service manager, tells all processes; our parent tells us what it means.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with(int(parent))
    look_for_cycles_rarely()
    with Connection(int(descriptor)) as pipe:
        try:
            yield pipe
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the parent has ended


def _end_with(parent: int) -> None:
    """Let the kernel end us when our parent ends: in long work no pipe is looked at."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker
        os.kill(os.getpid(), signal.SIGKILL)
