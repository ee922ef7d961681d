"""The teller: the thread of a daemon that tells people, so that no file waits for a mail server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from ingestd import log as the_log
from ingestd.config import Settings
from ingestd.errors import StorageFault
from ingestd.metrics import Notices
from ingestd.pipeline.outbox import Pace
from ingestd.telling.channels import Channel, channels_of
from ingestd.telling.sender import Sender, Store, pace_of
from ingestd.telling.troubles import Troubles

log = structlog.get_logger()

_TURN_SECONDS, _PAUSE_SECONDS, _SAID_EVERY_SECONDS = 2.0, 5.0, 60.0
# A message on its way at a stop is waited for so long; it is sent again at the next start.
_STOP_SECONDS = 3.0


def now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


@contextmanager
def telling(
    settings: Settings, channels: Sequence[Channel], known: Troubles, notices: Notices
) -> Iterator[None]:
    """Tell people for the time of the block; nothing is started where there is no channel.

    `known` are the troubles that stand since before a reload; `notices` count what comes of it.
    """
    notices.begin([channel.name for channel in channels])
    if not (channels and settings.notify.troubles):
        known.forget()
    if not channels:
        yield
        return
    stop, is_late = threading.Event(), threading.Event()
    known.begin_anew(timedelta(seconds=settings.notify.trouble_seconds), now())
    troubles = known if settings.notify.troubles else None
    store = Store(settings, give_up=is_late.is_set)
    sender = Sender(settings, channels, store, now, troubles, stop.is_set, notices.came_to)
    told = (sender, stop, notices)
    thread = threading.Thread(target=_tell, args=told, name="notify", daemon=True)

    def hear(event: str, details: Mapping[str, object]) -> None:
        if troubles is not None:
            troubles.hear(event, details, now())

    with the_log.overheard(hear):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_STOP_SECONDS)
            is_late.set()


def _tell(sender: Sender, stop: threading.Event, notices: Notices) -> None:
    put_off = PutOff()
    said_at = -_SAID_EVERY_SECONDS
    while not stop.is_set():
        pause = _PAUSE_SECONDS
        try:
            sender.turn()
            notices.looked(sender.waiting())
        except StorageFault as fault:
            put_off.note(fault, time.monotonic())
        except Exception:
            # Whatever it is: people are told as long as the daemon runs.
            if time.monotonic() - said_at >= _SAID_EVERY_SECONDS:
                said_at = time.monotonic()
                log.exception("notices_failed", again_in_seconds=pause)
        else:
            pause = _TURN_SECONDS
            put_off.over()
        stop.wait(pause)
    with suppress(Exception):
        sender.put_down()
    sender.store.close()


@dataclass(slots=True)
class PutOff:
    """Says that the database keeps people from being told: when it lasts, once a minute.

    Of the first minute the daemon says enough, where it met the same.
    """

    _since: float | None = None
    _said_at: float = 0.0

    def note(self, fault: StorageFault, now: float) -> None:
        """Note a turn in which it was away."""
        if self._since is None:
            self._since = self._said_at = now
        if now - self._said_at >= _SAID_EVERY_SECONDS:
            self._said_at = now
            seconds = round(now - self._since)
            log.warning("notices_put_off", error=str(fault), for_seconds=seconds)

    def over(self) -> None:
        """Note that it is there."""
        self._since = None


def send_what_waits(
    settings: Settings,
    *,
    is_all: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Send what is due now, without waiting for more; how many messages were sent.

    `is_all` also sends what waits for the digest. Raises ConfigError, StorageFault.
    """
    channels = channels_of(settings.notify)
    if not channels:
        return 0
    usual = pace_of(settings.notify)
    pace = Pace(
        gather=timedelta(),
        digest=timedelta() if is_all else usual.digest,
        most_per_hour=usual.most_per_hour,
    )
    store = Store(settings)
    try:
        return Sender(settings, channels, store, now, should_stop=should_stop).turn(pace)
    finally:
        store.close()
