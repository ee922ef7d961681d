"""Who is told how the daemon is doing: systemd, its status line, the local port, the caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ingestd.config import Settings
from ingestd.metrics import Figures
from ingestd.pipeline.step import Step
from ingestd.pipeline.worker import utc_now
from ingestd.port import TEXT, Page, verdict
from ingestd.standing import Standing
from ingestd.systemd import Systemd

# Added where systemd is told how long something may take at most.
SPARE_SECONDS = 60


@dataclass(slots=True)
class Audience:
    """Who is told how it goes: systemd, and the hooks of the caller."""

    systemd: Systemd = field(default_factory=Systemd)
    on_ready: Callable[[], None] = lambda: None
    on_step: Callable[[Step], None] = lambda _step: None
    standing: Standing = field(default_factory=Standing)
    figures: Figures = field(init=False)
    is_ready: bool = False

    def __post_init__(self) -> None:
        """Count from now on."""
        self.figures = Figures(utc_now(), self.standing)

    def looked(self, queued: int, held_up: int) -> None:
        """The inbox was looked at, after the database had answered: that is all a start is."""
        self.standing.looked(queued, held_up)
        self.tell()
        if not self.is_ready:
            self.is_ready = True
            self.systemd.ready()

    def read(self, path: str, done: int, size: int) -> None:
        """So much of a file is in the tables."""
        self.standing.read(path, done, size)
        self.tell()

    def lacks(self, what: str, error: Exception) -> None:
        """Database or inbox is away; nothing is to be done about it here."""
        self.standing.lacks(what, error)
        self.tell()

    def stopping(self, settings: Settings) -> None:
        """A stop was asked for."""
        self.standing.is_stopping = True
        self.systemd.stopping(within_seconds=settings.ingest.stop_seconds + SPARE_SECONDS)
        self.tell()

    def starting(self, settings: Settings, *, is_again: bool) -> None:
        """A start, or a reload: it may last as long as the database takes for one answer."""
        self.is_ready = False
        if is_again:
            self.systemd.reloading()
        self.systemd.patience(settings.database.answer_timeout_seconds + SPARE_SECONDS)

    def tell(self) -> None:
        """Say how it stands."""
        self.systemd.status(self.standing.sentence())

    @property
    def silent_seconds(self) -> float:
        """How long nothing was got done that would have fed the watchdog."""
        return max(0.0, self.systemd.clock() - self.systemd.lived_at)

    def why_not_ready(self) -> list[str]:
        """What is missing for files to be taken; nothing where they are."""
        standing = self.standing
        if standing.is_stopping:
            return ["it is stopping"]
        if standing.away:
            return [standing.away]
        return [] if self.is_ready else ["it has not looked at the inbox yet"]


def pages_of(
    audience: Audience, silent_seconds: Callable[[], float]
) -> dict[str, Callable[[], Page]]:
    """What the local port answers; asked in threads of its own, so from what is known only."""
    figures = audience.figures
    figures.ready.set_function(lambda: not audience.why_not_ready())
    figures.progress.set_function(lambda: time.time() - audience.silent_seconds)

    def health() -> Page:
        silent = audience.silent_seconds
        is_silent = silent > silent_seconds()
        reasons = [f"it came no step further for {silent:.0f} seconds"] if is_silent else []
        return verdict("healthy", reasons)

    return {
        "/metrics": lambda: Page(figures.page(), TEXT),
        "/healthz": health,
        "/readyz": lambda: verdict("ready", audience.why_not_ready()),
    }
