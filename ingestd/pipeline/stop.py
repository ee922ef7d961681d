"""What a signal, or whoever gives a worker its files, asked for; and when."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Asked:
    """What a signal asked for, and when.

    No `threading.Event`: its lock may be held by the very thread that the
    signal interrupts.
    """

    signal: int | None = None
    _since: float = 0
    _times: int = 0

    def ask(self, number: int) -> None:
        """Note a signal."""
        if self.signal is None:
            self.signal = number
            self._since = time.monotonic()
        self._times += 1

    def clear(self) -> None:
        """Forget it."""
        self.signal = None
        self._times = 0

    def is_set(self) -> bool:
        """Whether it came."""
        return self.signal is not None

    def is_overdue(self, seconds: float) -> bool:
        """Whether it came so long ago, or came again."""
        return self.is_set() and (self._times > 1 or time.monotonic() - self._since >= seconds)
