"""What systemd is told about the daemon, by the protocol of sd_notify(3).

One datagram for each message, to the socket that NOTIFY_SOCKET names. Nothing is sent where
nobody asked for it, and a message that cannot be sent is dropped: the daemon has better things
to do than to wait for who watches it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from ingestd.log import escape

_SAID_EVERY_SECONDS = 1.0
_SEND_SECONDS = 1.0
# A status is one line of `systemctl status`.
_LONGEST_STATUS = 400


@dataclass(slots=True)
class Systemd:
    """The service manager's ear: its socket, and how long it waits for a sign of life."""

    address: str = ""
    watchdog_seconds: float = 0
    clock: Callable[[], float] = time.monotonic
    # When something was last got done; also where no service manager asks for it.
    lived_at: float = field(default_factory=time.monotonic, compare=False)
    _status: str = ""
    _unsaid: str = ""
    _said_at: float | None = None
    _fed_at: float | None = None

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Self:
        """As the environment says; it is taken out, so that no child speaks for us."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        is_ours = pid in {"", str(os.getpid())} and microseconds.isdecimal()
        return cls(address, int(microseconds) / 1e6 if is_ours else 0)

    def ready(self) -> None:
        """Everything that was asked of a start, or of a reload, is done."""
        self._send("READY=1", *self._watchdog())

    def reloading(self) -> None:
        """The settings are being read again; `ready` ends this."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, *, within_seconds: float) -> None:
        """A stop was asked for and may take so long."""
        self._send("STOPPING=1", _more_time(within_seconds))

    def patience(self, seconds: float) -> None:
        """A start, reload or stop that still goes on may take so much longer from now."""
        self._send(_more_time(seconds))

    def status(self, text: str) -> None:
        """Say how it goes: one line for a person, at most once a second; the last one counts."""
        self._unsaid = escape(text)[:_LONGEST_STATUS]
        self._say()

    def alive(self) -> None:
        """Something was got done; called by the work itself, as often as it likes."""
        self._say()
        now = self.lived_at = self.clock()
        if not self.watchdog_seconds:
            return
        if self._fed_at is None or now - self._fed_at >= self.watchdog_seconds / 4:
            self._send(*self._watchdog())

    def _watchdog(self) -> list[str]:
        if not self.watchdog_seconds:
            return []
        self._fed_at = self.clock()
        return ["WATCHDOG=1"]

    def _say(self) -> None:
        now = self.clock()
        is_soon = self._said_at is not None and now - self._said_at < _SAID_EVERY_SECONDS
        if is_soon or self._unsaid == self._status:
            return
        self._status, self._said_at = self._unsaid, now
        self._send(f"STATUS={self._status}")

    def _send(self, *lines: str) -> None:
        if not self.address or not lines:
            return
        # A leading @ stands for the null byte of a name that is in no folder.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(_SEND_SECONDS)
            out.connect(address)
            out.send("\n".join(lines).encode(errors="backslashreplace"))


def _more_time(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}"
