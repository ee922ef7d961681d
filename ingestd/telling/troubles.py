"""What is wrong with the daemon, heard from its own log: each condition is said there once.

So whatever part of it finds a trouble need not know that people are told. A trouble that is over
within a minute is not worth a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ingestd.pipeline.outbox import OVER, TROUBLE, Trouble
from ingestd.telling.message import safe

_NOT_TWICE_WITHIN = timedelta(hours=1)
_SHOWN = ("error", "reason", "place", "path", "at", "files", "advice", "remedy", "thread")


@dataclass(frozen=True, slots=True)
class Known:
    """An event that means trouble: how grave, in words, and the event that ends it, if one does."""

    severity: str
    words: str
    over: str = ""


KNOWN = {
    "storage_away": Known("critical", "the database does not answer", "storage_back"),
    "wal_too_long": Known(
        "warning", "a reader keeps SQLite's write-ahead log growing", "wal_short_again"
    ),
    "inbox_away": Known("critical", "the inbox cannot be listed", "inbox_back"),
    "watching_without_events": Known(
        "warning", "the file system tells of no events; files are found by looking", "events_back"
    ),
    "file_not_readable": Known("warning", "files cannot be read", "file_readable_again"),
    "file_not_taken": Known("warning", "a file cannot be taken", "file_taken_after_all"),
    "folder_not_readable": Known("warning", "a folder cannot be read", "folder_readable_again"),
    "evaluation_failed": Known("warning", "the statistical rules could not be evaluated"),
    "workers_given_up": Known("warning", "worker processes die again and again"),
    "thread_died": Known("critical", "a part of the daemon has ended"),
    "configuration_refused": Known("warning", "the new configuration was refused"),
    "gave_up": Known("critical", "the daemon ends, since its inbox is away"),
} | {
    f"{folder}_{how}": Known(severity, f"the {folder} {words}", f"{folder}_back")
    for folder in ("inbox", "archive", "quarantine")
    for how, severity, words in (
        ("full", "critical", "is on a full disk"),
        ("not_writable", "critical", "cannot be written"),
        ("failing", "critical", "does not take files"),
    )
}
_OVERS = {known.over for known in KNOWN.values() if known.over}

Heard = tuple[datetime, str, Mapping[str, object]]


@dataclass(slots=True)
class _Standing:
    event: str
    since: datetime
    details: Mapping[str, object]
    is_told: bool = False
    # The part of the daemon that said it was made anew then, and says it again if it still is so.
    doubted_at: datetime | None = None


@dataclass(slots=True)
class Troubles:
    """The troubles that stand; `hear` may be called by any thread, all else by one."""

    hold: timedelta = timedelta()
    _heard: deque[Heard] = field(default_factory=deque)
    _standing: dict[tuple[str, str], _Standing] = field(default_factory=dict)
    _said: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def hear(self, event: str, details: Mapping[str, object], now: datetime) -> None:
        """Note an event of the log, if it means trouble or its end."""
        if event in KNOWN or event in _OVERS:
            self._heard.append((now, event, dict(details)))

    def begin_anew(self, hold: timedelta, now: datetime) -> None:
        """Go on after a reload, whose daemon says again what it meets: that is not told twice."""
        self.hold = hold
        for standing in self._standing.values():
            standing.doubted_at = now

    def forget(self) -> None:
        """Know of nothing: nobody wants to be told."""
        self._heard.clear()
        self._standing.clear()

    def due(self, now: datetime) -> list[Trouble]:
        """What is to be told now."""
        found: list[Trouble] = []
        while self._heard:
            at, event, details = self._heard.popleft()
            if event in KNOWN:
                found += self._begin(at, event, details)
            if event in _OVERS:
                found += self._end(at, event, details)
        for standing in self._standing.values():
            is_sure = standing.doubted_at is None
            if is_sure and not standing.is_told and now - standing.since >= self.hold:
                standing.is_told = True
                found.append(_told(TROUBLE, standing, standing.since))
        return found

    def _begin(self, at: datetime, event: str, details: Mapping[str, object]) -> list[Trouble]:
        if KNOWN[event].over:
            key = event, _place_of(details)
            standing = self._standing.get(key)
            if standing is None or _is_another(standing, at):
                standing = self._standing[key] = _Standing(event, at, details)
            standing.details, standing.doubted_at = details, None
            return []
        # A part of the daemon may end after another; there are few, whatever files are called.
        key = event, str(details.get("thread") or "")
        if key in self._said and at - self._said[key] < _NOT_TWICE_WITHIN:
            return []
        self._said[key] = at
        return [_told(TROUBLE, _Standing(event, at, details), at)]

    def _end(self, at: datetime, event: str, details: Mapping[str, object]) -> list[Trouble]:
        place = _place_of(details)
        ended = [
            key
            for key, standing in self._standing.items()
            if KNOWN[standing.event].over == event and (not place or key[1] in ("", place))
        ]
        over = [self._standing.pop(key) for key in ended]
        return [_told(OVER, standing, at) for standing in over if standing.is_told]


def _is_another(standing: _Standing, at: datetime) -> bool:
    """Whether what stood before a reload, and was not said for long after it, began again."""
    return standing.doubted_at is not None and at - standing.doubted_at >= _NOT_TWICE_WITHIN


def _place_of(details: Mapping[str, object]) -> str:
    return str(details.get("place") or details.get("path") or "")


def _told(kind: str, standing: _Standing, at: datetime) -> Trouble:
    known = KNOWN[standing.event]
    shown = [f"{name}: {standing.details[name]}" for name in _SHOWN if standing.details.get(name)]
    since = f"since {standing.since:%Y-%m-%d %H:%M:%S} UTC"
    if kind == OVER:
        since = f"it lasted {round((at - standing.since).total_seconds())} s"
    title = f"over: {known.words}" if kind == OVER else known.words
    about = "; ".join(safe(each) for each in (f"{standing.event}, {since}", *shown))
    return Trouble(kind=kind, severity=known.severity, title=title, description=about, at=at)
