"""The sender: takes from the outbox what is due, sends it, and marks what came of it.

At least once: who dies between sending and marking leaves a message that is sent again under the
same id when its lease is over. What the database cannot hold, because it is the database that is
away, is told from memory.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import Engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from ingestd import migrate
from ingestd.config import Notify, Settings
from ingestd.db import Clock, Patience, make_engine, make_sessions
from ingestd.errors import StorageFault, Undelivered
from ingestd.metrics import OTHERS
from ingestd.pipeline import outbox
from ingestd.pipeline.outbox import Due, Pace, Trouble, Waiting, Wanted
from ingestd.pipeline.rules import RANKS
from ingestd.telling import message
from ingestd.telling.channels import Channel, send_in_time
from ingestd.telling.troubles import Troubles
from ingestd.transient import database_at_work

log = structlog.get_logger()

_SPARE = timedelta(seconds=30)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=15), timedelta(hours=1)
_SWEEP_EVERY, _HOUR = timedelta(hours=6), timedelta(hours=1)
# Who waits longer for the database tells the people from memory.
_PATIENCE_SECONDS = 10.0
# A message that is refused, by a channel that works, is given up after so many tries: half an hour.
_MOST_REFUSALS = 8


def wanted_of(told: Notify) -> Wanted:
    """What the commits of alerts write into the outbox."""
    at_once = frozenset(name for name, rank in RANKS.items() if rank >= _least(told.at_once))
    digest = frozenset(name for name, rank in RANKS.items() if rank >= _least(told.digest))
    return Wanted(
        channels=tuple(sorted(told.channels)),
        at_once=at_once,
        digest=digest,
        cleared=told.cleared,
    )


def _least(severity: str) -> int:
    return RANKS.get(severity, max(RANKS.values()) + 1)


def pace_of(told: Notify) -> Pace:
    """When messages go."""
    return Pace(
        gather=timedelta(seconds=told.gather_seconds),
        digest=timedelta(minutes=told.digest_minutes),
        most_per_hour=told.most_per_hour,
    )


@dataclass(slots=True)
class Store:
    """The database as the sender meets it, by connections of its own.

    It looks by one that only reads: on SQLite whoever may write takes the lock when it begins.
    """

    settings: Settings
    give_up: Callable[[], bool] = lambda: False
    _engines: dict[bool, Engine] = field(default_factory=dict)

    @contextmanager
    def at_work(self, *, writer: bool) -> Iterator[Session]:
        """A transaction, committed in the end.

        Raises:
            StorageFault: the database is away.
        """
        with database_at_work(), self._sessions(writer=writer).begin() as session:
            yield session

    def _sessions(self, *, writer: bool) -> sessionmaker[Session]:
        if writer not in self._engines:
            self._engines[writer] = self._open(writer=writer)
        return make_sessions(self._engines[writer])

    def _open(self, *, writer: bool) -> Engine:
        """Open a database that is there; to make one, or a newer schema, is the daemon's."""
        told = self.settings.database
        url = make_url(told.url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
            raise StorageFault(f"{url.database}: there is no such database")
        engine = make_engine(
            told.url,
            writer=writer,
            cache_mb=1,
            synchronous=told.sqlite_synchronous,
            busy_timeout_seconds=min(_PATIENCE_SECONDS, told.busy_timeout_seconds),
            patience=Patience(
                answer_seconds=min(_PATIENCE_SECONDS, told.answer_timeout_seconds),
                give_up=self.give_up,
            ),
        )
        try:
            is_ours = migrate.current(engine) == migrate.head()
        except BaseException:
            engine.dispose()
            raise
        if not is_ours:
            engine.dispose()
            raise StorageFault("its schema is not that of this program yet")
        return engine

    def close(self) -> None:
        """Close its connections."""
        while self._engines:
            _, engine = self._engines.popitem()
            engine.dispose()


@dataclass(slots=True)
class _InMemory:
    """A trouble that no table holds yet, and who is still to be told."""

    trouble: Trouble
    left: set[str]


@dataclass(slots=True)
class _Parcel:
    """What one channel is told in one message, from memory; the same until it is taken."""

    told: list[_InMemory]
    message_id: uuid.UUID = field(default_factory=uuid.uuid4)
    attempts: int = 0
    next_try_at: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        """Whether it may be tried; a pause of more than hours is a clock that was set back."""
        again = self.next_try_at
        return again is None or again <= now or again > now + 2 * _LONGEST_PAUSE


@dataclass(slots=True)
class Sender:
    """Sends what is due by every channel; one turn after another, by one thread."""

    settings: Settings
    channels: Sequence[Channel]
    store: Store
    clock: Clock
    troubles: Troubles | None = None
    should_stop: Callable[[], bool] = lambda: False
    # Told the channel, what came of notices (sent, given_up), and of how many.
    on_outcome: Callable[[str, str, int], None] = lambda _channel, _outcome, _notices: None
    _memory: list[_InMemory] = field(default_factory=list)
    _parcels: dict[str, _Parcel] = field(default_factory=dict)
    # When each channel got its messages of the last hour.
    _sent_at: dict[str, list[datetime]] = field(default_factory=dict)
    # What the other end has, though the database could not be told.
    _unmarked: set[uuid.UUID] = field(default_factory=set)
    _swept_at: datetime | None = None

    def turn(self, pace: Pace | None = None) -> int:
        """Store the troubles and send what is due; how many messages were sent.

        Whatever is wrong with the database, troubles are told: then from memory.

        Raises:
            StorageFault: it is away.
        """
        self._listen()
        try:
            self._remember()
            self._look_after()
            return sum(self._attend(channel, pace) for channel in self.channels)
        except Exception:
            self._tell_from_memory()
            raise

    def waiting(self) -> list[Waiting]:
        """What waits now. Raises StorageFault."""
        names = [channel.name for channel in self.channels]
        with self.store.at_work(writer=False) as session:
            return outbox.waiting(session, names, pace_of(self.settings.notify))

    def put_down(self) -> None:
        """Write down, at the end, what was heard and not told: the next start tells it.

        Raises:
            StorageFault: the database is away, and that is lost.
        """
        self._listen()
        self._remember()

    def _listen(self) -> None:
        if self.troubles is not None:
            everybody = [channel.name for channel in self.channels]
            for trouble in self.troubles.due(self.clock()):
                self._memory.append(_InMemory(trouble, set(everybody)))

    def _remember(self) -> None:
        """Write down what so far only memory holds."""
        if self._memory:
            with self.store.at_work(writer=True) as session:
                outbox.add_troubles(session, [(each.trouble, each.left) for each in self._memory])
            self._memory.clear()
            self._parcels.clear()

    def _look_after(self) -> None:
        """Give up what has no channel any more, and remove what is old: at times."""
        now = self.clock()
        if self._swept_at is not None and now - self._swept_at < _SWEEP_EVERY:
            return
        names = [channel.name for channel in self.channels]
        given_up = now - timedelta(hours=self.settings.notify.give_up_hours)
        with self.store.at_work(writer=True) as session:
            strangers = outbox.give_up_strangers(session, names, given_up)
            outbox.sweep(session, now - timedelta(days=self.settings.keep.notices_days))
        self._swept_at = now
        if strangers:
            self.on_outcome(OTHERS, "given_up", strangers)
            log.warning("notices_without_channel", notices=strangers, remedy="see ingestd notify")

    def _attend(self, channel: Channel, pace: Pace | None) -> int:
        """Send what is due by one channel; 1 when a message was sent."""
        if self.should_stop():
            return 0
        now = self.clock()
        with self.store.at_work(writer=False) as session:
            pace = pace or pace_of(self.settings.notify)
            due = outbox.due(session, channel.name, pace, now)
        if due is None:
            return 0
        seconds = self.settings.notify.timeout_seconds
        lease = timedelta(seconds=seconds) + _SPARE
        with self.store.at_work(writer=True) as session:
            if not outbox.claim(session, due, now=now, lease=lease):
                return 0
            contents = outbox.contents(session, due, most=message.MOST_LISTED)
        try:
            if due.message_id not in self._unmarked:
                told = message.of_contents(due.message_id, contents)
                send_in_time(channel, told, seconds, self.should_stop)
        except Undelivered as error:
            self._note_failure(channel, due, error)
            return 0
        self._unmarked.add(due.message_id)
        self._sent(channel.name)
        with self.store.at_work(writer=True) as session:
            number = outbox.mark_sent(session, due, now=self.clock())
        self._unmarked.discard(due.message_id)
        self.on_outcome(channel.name, "sent", number)
        log.info(
            "notice_sent",
            channel=channel.name,
            message=str(due.message_id),
            notices=number,
            attempts=due.attempts + 1,
        )
        return 1

    def _note_failure(self, channel: Channel, due: Due, error: Undelivered) -> None:
        now = self.clock()
        pause = max(_pause_after(due.attempts), error.pause)
        is_late = now - due.claimed_at >= timedelta(hours=self.settings.notify.give_up_hours)
        # Else what is not wanted would keep everything behind it from the channel.
        is_over = is_late or (error.is_refused and due.attempts + 1 >= _MOST_REFUSALS)
        next_try_at = None if is_over else now + pause
        with self.store.at_work(writer=True) as session:
            number = outbox.mark_failed(session, due, error=str(error), next_try_at=next_try_at)
        told = {"channel": channel.name, "message": str(due.message_id), "notices": number}
        if is_over:
            self.on_outcome(channel.name, "given_up", number)
            log.error("notice_given_up", **told, error=str(error), remedy="ingestd notify retry")
            return
        log.warning(
            "notice_not_sent",
            **told,
            error=str(error),
            attempts=due.attempts + 1,
            again_in_seconds=round(pause.total_seconds()),
        )

    def _tell_from_memory(self) -> None:
        """The database is away: tell what it cannot hold, and try again what was not taken."""
        for channel in self.channels:
            parcel = self._parcels.get(channel.name) or self._packed(channel.name)
            is_due = parcel is not None and parcel.is_due(self.clock())
            if parcel is not None and is_due and not self.should_stop():
                self._parcels[channel.name] = parcel
                self._tell_directly(channel, parcel)
        self._memory = [each for each in self._memory if each.left]

    def _packed(self, channel: str) -> _Parcel | None:
        """All that a channel is still to be told, unless it was told enough within this hour."""
        told = [each for each in self._memory if channel in each.left]
        is_room = len(self._lately(channel)) < self.settings.notify.most_per_hour
        return _Parcel(told) if told and is_room else None

    def _lately(self, channel: str) -> list[datetime]:
        now = self.clock()
        return [at for at in self._sent_at.get(channel, ()) if now - _HOUR < at <= now]

    def _tell_directly(self, channel: Channel, parcel: _Parcel) -> None:
        troubles = [each.trouble for each in parcel.told]
        told = message.of_troubles(parcel.message_id, troubles)
        number = len(troubles)
        try:
            send_in_time(channel, told, self.settings.notify.timeout_seconds, self.should_stop)
        except Undelivered as error:
            pause = max(_pause_after(parcel.attempts), error.pause)
            parcel.next_try_at = self.clock() + pause
            parcel.attempts += 1
            log.warning("notice_not_sent", channel=channel.name, error=str(error), notices=number)
            return
        self._sent(channel.name)
        for each in parcel.told:
            each.left.discard(channel.name)
        self.on_outcome(channel.name, "sent", number)
        log.info("notice_sent", channel=channel.name, message=str(told.id), notices=number)

    def _sent(self, channel: str) -> None:
        self._parcels.pop(channel, None)
        self._sent_at[channel] = [*self._lately(channel), self.clock()]


def _pause_after(attempts: int) -> timedelta:
    """Twice as long each time, up to an hour, and not in step with others."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempts, 10))
    seconds = longest.total_seconds() * random.uniform(0.75, 1)  # noqa: S311 - spreads load, keeps no secret
    return timedelta(seconds=seconds)
