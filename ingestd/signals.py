"""Signals, and what ends a thread: noted for the time of a block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

from ingestd.pipeline.stop import Asked

log = structlog.get_logger()


@contextmanager
def stopping(on_stop: Callable[[], None] = lambda: None) -> Iterator[Asked]:
    """Note SIGTERM and SIGINT for the time of the block (main thread only)."""
    stop = Asked()

    def note(number: int, _frame: FrameType | None) -> None:
        log.info("stop_requested", signal=signal.Signals(number).name)
        stop.ask(number)
        on_stop()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def hanging_up() -> Iterator[Asked]:
    """Note SIGHUP for the time of the block (main thread only)."""
    hung_up = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield hung_up
        return
    former = signal.signal(signal.SIGHUP, lambda number, _frame: hung_up.ask(number))
    try:
        yield hung_up
    finally:
        signal.signal(signal.SIGHUP, former)


@contextmanager
def noting_dead_threads() -> Iterator[None]:
    """Log what ends a thread of a library, for the time of the block."""

    def note(died: threading.ExceptHookArgs) -> None:
        name = died.thread.name if died.thread else None
        log.error("thread_died", thread=name, exc_info=died.exc_value)

    former, threading.excepthook = threading.excepthook, note
    try:
        yield
    finally:
        threading.excepthook = former
