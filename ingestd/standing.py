"""How the daemon stands, in one line for a person: what waits, what is read, what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingestd.log import redact

_LONGEST_NAME = 60
_LONGEST_REASON = 160


@dataclass(slots=True)
class Standing:
    """What the loop last knew; `sentence` tells it."""

    queued: int = 0
    held_up: int = 0
    taken: int = 0
    reading: str = ""
    percent: int | None = None
    away: str = ""
    complaint: str = ""
    is_stopping: bool = False
    _last: str = field(default="", repr=False)

    def looked(self, queued: int, held_up: int) -> None:
        """The inbox was listed: so many files wait, so many more for an obstacle to go."""
        self.queued, self.held_up = queued, held_up
        self.away = ""

    def begin(self, path: str) -> None:
        """A file is being taken."""
        self.reading, self.percent = path, None

    def read(self, path: str, done: int, size: int) -> None:
        """So many bytes of it are in the tables."""
        self.reading = path
        self.percent = min(100, 100 * done // size) if size else None

    def end(self, path: str, *, is_taken: bool) -> None:
        """It is done with for now."""
        self.reading, self.percent = "", None
        if is_taken:
            self.taken += 1
            self.queued = max(0, self.queued - 1)
            self._last = path

    def sentence(self) -> str:
        """The line, such as `12 queued, reading x.csv 43 %`."""
        parts = ["stopping"] if self.is_stopping else []
        parts.append(self.away or self._work())
        if self.held_up and not self.away:
            parts.append(f"{self.held_up} held up (see the log)")
        if self.complaint:
            parts.append(f"the new configuration was refused: {_cut(self.complaint)}")
        return "; ".join(parts)

    def lacks(self, what: str, error: Exception) -> None:
        """Database or inbox is away."""
        self.away = f"waiting for {what}: {_cut(redact(str(error)))}"

    def _work(self) -> str:
        if self.reading:
            share = "" if self.percent is None else f" {self.percent} %"
            return f"{self.queued} queued, reading {_name(self.reading)}{share}"
        if self.queued:
            return f"{self.queued} queued, until they are complete"
        if self._last:
            return f"nothing queued; {self.taken} taken, the last {_name(self._last)}"
        return "nothing queued"


def _name(path: str) -> str:
    """The end of a path, which is what tells files apart."""
    return path if len(path) <= _LONGEST_NAME else f"…{path[-_LONGEST_NAME:]}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"
