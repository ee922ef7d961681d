"""The database as the daemon meets it: opened patiently, away and back, its log too long."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from ingestd import migrate
from ingestd.config import Settings
from ingestd.db import (
    GROWTH,
    Patience,
    analyze,
    backfill,
    empty_wal,
    grown_tables,
    make_engine,
    wal_bytes,
)
from ingestd.errors import StorageFault
from ingestd.models import Base
from ingestd.transient import database_at_work

log = structlog.get_logger()

_LONGEST_PAUSE_SECONDS = 30.0
_SAID_EVERY_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_CHECKPOINT_EVERY_SECONDS = 5.0
_SIZES_EVERY_SECONDS = 1.0
# It costs two fsyncs: as many small files share one as come in this time.
_BACKFILL_EVERY_SECONDS = 0.05
_TABLES = Base.metadata.tables


def open_database(
    settings: Settings, *, writer: bool, give_up: Callable[[], bool] = lambda: False
) -> Engine:
    """Open the database and make sure that its schema is ours.

    `give_up` is asked while it waits for the database, then and later.

    Raises:
        SchemaMismatch: it must be upgraded first, or is not ours.
        StorageFault: it does not answer.
    """
    database = settings.database
    engine = make_engine(
        database.url,
        writer=writer,
        cache_mb=database.sqlite_cache_mb,
        synchronous=database.sqlite_synchronous,
        busy_timeout_seconds=database.busy_timeout_seconds,
        patience=Patience(answer_seconds=database.answer_timeout_seconds, give_up=give_up),
    )
    try:
        with database_at_work():
            patience = database.busy_timeout_seconds
            migrate.ensure_current(engine, database.url, patience_seconds=patience)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_patiently(
    settings: Settings,
    *,
    should_stop: Callable[[], bool],
    give_up: Callable[[], bool],
    on_away: Callable[[Exception], None] = lambda _error: None,
) -> Engine | None:
    """Open the database; while it is away, wait and say so once a minute at most.

    Each try that fails is told to `on_away`. None when a stop was asked for before it came.
    """
    pause = Pause()
    while not should_stop():
        try:
            engine = open_database(settings, writer=True, give_up=give_up)
        except (StorageFault, DBAPIError) as error:
            on_away(error)
            rest(pause.after(error), should_stop)
        else:
            pause.over()
            return engine
    return None


def rest(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Wait so long, or until a stop is asked for."""
    until = time.monotonic() + seconds
    while not should_stop() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_SECONDS))


@dataclass(slots=True)
class Pause:
    """How long to wait while the outside is at fault: longer each time, not in step.

    It says so once a minute at most. An outage of which nothing was said,
    because another was a moment ago, is in the sums of the next.
    """

    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    _unsaid: int = 0
    _said_at: float | None = None
    _is_said: bool = False
    _since: float | None = None

    def after(self, error: Exception) -> float:
        """Note a failure; seconds to wait."""
        now = self.clock()
        self.failures += 1
        self._since = self._since if self._since is not None else now
        if self._said_at is None or now - self._said_at >= _SAID_EVERY_SECONDS:
            self._said_at = now
            log.warning(
                "storage_away",
                error=str(error),
                failures=self.failures,
                for_seconds=round(now - self._since),
                **self._earlier(),
            )
            self._is_said = True
            self._unsaid = 0
        longest = min(_LONGEST_PAUSE_SECONDS, 0.5 * 2 ** min(self.failures, 10))
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, keeps no secret

    def over(self) -> None:
        """Note that it works again."""
        if self._is_said and self._since is not None:
            away = round(self.clock() - self._since, 1)
            log.info("storage_back", failures=self.failures, away_seconds=away)
        else:
            self._unsaid += self.failures
        self.failures = 0
        self._is_said = False
        self._since = None

    def _earlier(self) -> dict[str, int]:
        return {"earlier_failures": self._unsaid} if self._unsaid else {}


@contextmanager
def backfilling(engine: Engine) -> Iterator[None]:
    """Let SQLite's write-ahead log be copied into the database beside the commits, by a thread.

    Else the commits do it: of a large file that is each one, and takes a third of its time. What
    goes wrong with it here goes wrong in a commit, too, and is said there.
    """
    if engine.dialect.name != "sqlite":
        yield
        return
    is_wanted, is_over = threading.Event(), threading.Event()

    def on_checkin(*_told: object) -> None:
        is_wanted.set()

    def work() -> None:
        # One of its own: the writer's would come to it by turns, and each with a cache to fill.
        with (
            suppress(StorageFault),
            database_at_work(),
            closing(engine.raw_connection()) as connection,
        ):
            while not is_over.wait(_BACKFILL_EVERY_SECONDS):
                is_wanted.wait()
                is_wanted.clear()
                with suppress(sqlite3.Error):
                    backfill(connection)

    thread = threading.Thread(target=work, name="backfill", daemon=True)
    event.listen(engine, "checkin", on_checkin)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        is_wanted.set()
        thread.join()
        event.remove(engine, "checkin", on_checkin)


@dataclass(slots=True)
class WalWatch:
    """Keeps SQLite's write-ahead log short, and says when some reader does not let it."""

    engine: Engine
    warn_mb: int
    clock: Callable[[], float] = time.monotonic
    _since: float | None = None
    _most_bytes: int = 0
    _tried_at: float | None = None

    def look(self) -> None:
        """Empty a log that is too long; say when that begins to fail, and when it works again."""
        size = wal_bytes(self.engine)
        if self._since is None and size <= self._limit:
            return
        now = self.clock()
        if self._tried_at is not None and now - self._tried_at < _CHECKPOINT_EVERY_SECONDS:
            return  # each try waits for the reader a little
        self._tried_at = now
        self._most_bytes = max(self._most_bytes, size)
        with database_at_work():
            empty_wal(self.engine)
        size = wal_bytes(self.engine)
        if size > self._limit and self._since is None:
            self._since = now
            log.warning(
                "wal_too_long",
                megabytes=_mb(size),
                limit_megabytes=self.warn_mb,
                remedy="a program reads the database without a break: end it, or let it read in "
                "shorter transactions; nothing is lost meanwhile",
            )
        elif size <= self._limit:
            if self._since is not None:
                seconds = round(now - self._since)
                log.info("wal_short_again", most_megabytes=_mb(self._most_bytes), seconds=seconds)
            self._since = self._tried_at = None
            self._most_bytes = 0

    @property
    def _limit(self) -> int:
        return self.warn_mb * 1024 * 1024


@dataclass(slots=True)
class PlanWatch:
    """Lets PostgreSQL look at tables that have grown, or it plans for the size that they had.

    By itself it looks once a minute. A statement that was planned for an empty table reads a
    table of some thousand rows from end to end until then, for each file once.
    """

    engine: Engine
    clock: Callable[[], float] = time.monotonic
    _next: float = 0.0
    _pages: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Look, once a second at most; another database plans well enough.

        Raises:
            StorageFault: the database is away.
        """
        now = self.clock()
        if now < self._next or self.engine.dialect.name != "postgresql":
            return
        self._next = now + _SIZES_EVERY_SECONDS
        with database_at_work():
            for name, pages in grown_tables(self.engine, sorted(_TABLES)):
                # Who may not analyze a table is not to try it every second.
                if pages >= GROWTH * self._pages.get(name, 0):
                    self._pages[name] = pages
                    analyze(self.engine, _TABLES[name])


def _mb(size: int) -> float:
    return round(size / 1024 / 1024, 1)
