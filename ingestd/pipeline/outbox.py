"""The outbox: what people are to be told is written in the commit that it is about.

So a kill loses no notice and makes none twice: the change of an alert and its notice are there
together or not at all. `telling` sends them, and marks as sent what the other end has taken; a
kill between these two sends one message again, under the same id.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Update,
    and_,
    case,
    delete,
    event,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased, sessionmaker

from ingestd.db import AnyRow
from ingestd.models import Alert, Constituency, Notice, table_of
from ingestd.pipeline.rules import RANKS

OPENED, WORSE, BACK, AGAIN, CLEARED = "opened", "worse", "back", "again", "cleared"
TROUBLE, OVER = "trouble", "over"
WAITING, SENT, FAILED, SETTLED = "waiting", "sent", "failed", "settled"
"""`settled`: the alert had cleared itself before anybody was told of it."""

_WANTED, _CHANGES = "notices_wanted", "notices_changes"
_HOUR, _MOMENT = timedelta(hours=1), timedelta(minutes=1)
_LONGEST_PAUSE = timedelta(hours=2)
_ASKED_AT_ONCE = 500

notice = table_of(Notice)
_n = notice.c
_alert, _constituency = table_of(Alert), table_of(Constituency)
_FREE = and_(_n.status == WAITING, _n.message_id.is_(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Who is told of what: severities that are told at once, and those of the digest."""

    channels: tuple[str, ...] = ()
    at_once: frozenset[str] = frozenset()
    digest: frozenset[str] = frozenset()
    cleared: bool = False


NOBODY = Wanted()


@dataclass(frozen=True, slots=True)
class Change:
    """What became of an alert in this commit."""

    kind: str
    alert_id: uuid.UUID
    severity: str
    title: str
    at: datetime


# In the commit of the change ----------------------------------------------------------------


def telling(sessions: sessionmaker[Session], wanted: Wanted) -> sessionmaker[Session]:
    """The sessions, which from now on write down whatever changes of alerts they are told of."""
    if wanted.channels:
        sessions.configure(info={_WANTED: wanted})
        event.listen(sessions, "before_commit", _write_down)
        event.listen(sessions, "after_rollback", _forget)
    return sessions


def note(session: Session, change: Change) -> None:
    """Let the commit of this session write a notice of a change, if anybody wants it."""
    wanted: Wanted | None = session.info.get(_WANTED)
    if wanted is None or change.severity not in wanted.at_once | wanted.digest:
        return
    if change.kind != CLEARED or wanted.cleared:
        session.info.setdefault(_CHANGES, []).append(change)


def _write_down(session: Session) -> None:
    changes: list[Change] = session.info.pop(_CHANGES, [])
    if not changes:
        return
    wanted: Wanted = session.info[_WANTED]
    told = _told_before(session, [each.alert_id for each in changes if each.kind == BACK])
    rows = [
        _row(
            channel,
            at=change.at,
            kind=change.kind,
            severity=change.severity,
            # What is over is in no hurry, nor what comes back to those who know of it.
            is_urgent=change.severity in wanted.at_once
            and change.kind != CLEARED
            and (change.kind != BACK or (change.alert_id, channel) not in told),
            alert_id=change.alert_id,
            title=change.title,
        )
        for change in changes
        for channel in wanted.channels
    ]
    session.connection().execute(insert(notice), rows)


def _told_before(session: Session, alert_ids: Sequence[uuid.UUID]) -> set[tuple[uuid.UUID, str]]:
    """Which of these alerts were told by which channels."""
    told: set[tuple[uuid.UUID, str]] = set()
    for start in range(0, len(alert_ids), _ASKED_AT_ONCE):
        some = alert_ids[start : start + _ASKED_AT_ONCE]
        query = select(_n.alert_id, _n.channel).where(_n.alert_id.in_(some), _n.status == SENT)
        told.update((row.alert_id, row.channel) for row in session.connection().execute(query))
    return told


def _forget(session: Session) -> None:
    session.info.pop(_CHANGES, None)


def _row(channel: str, **values: Any) -> dict[str, Any]:
    usual = {
        "id": uuid.uuid4(),
        "channel": channel,
        "alert_id": None,
        "description": "",
        "status": WAITING,
        "attempts": 0,
    }
    return usual | values


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong with the daemon itself, or no longer is."""

    kind: str
    severity: str
    title: str
    description: str
    at: datetime


def add_troubles(session: Session, told: Sequence[tuple[Trouble, Collection[str]]]) -> None:
    """Write down troubles, each with the channels that are still to be told of it."""
    rows = [
        _row(
            channel,
            at=trouble.at,
            kind=trouble.kind,
            severity=trouble.severity,
            is_urgent=True,
            title=trouble.title,
            description=trouble.description,
        )
        for trouble, channels in told
        for channel in sorted(channels)
    ]
    if rows:
        session.execute(insert(notice), rows)


# Sending ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When a message goes: how long it gathers, how long a digest does, how many an hour."""

    gather: timedelta
    digest: timedelta
    most_per_hour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A message that may go now: one that is tried again, or a new one with what waits."""

    channel: str
    message_id: uuid.UUID
    claimed_at: datetime
    is_again: bool
    with_digest: bool
    attempts: int = 0


def due(session: Session, channel: str, pace: Pace, now: datetime) -> Due | None:
    """What may go by a channel now; writes nothing.

    A message that could not be sent holds back later ones, which then are one message: so a
    channel that was away for a day is not given a thousand.
    """
    mine = (_n.channel == channel, _n.status == WAITING)
    query = select(_n.message_id, _n.next_try_at, _n.attempts, _n.claimed_at)
    again = session.execute(query.where(*mine, _n.message_id.is_not(None)).limit(1)).first()
    if again is not None:
        if not _has_come(again.next_try_at, now):
            return None
        return Due(
            channel=channel,
            message_id=again.message_id,
            claimed_at=again.claimed_at,
            is_again=True,
            with_digest=False,
            attempts=again.attempts,
        )
    has = select(_n.id).where(*mine, _n.message_id.is_(None)).limit(1)
    # A clock that was set back must not hold up what was written before.
    is_of_the_future = _n.at > now + _MOMENT
    is_urgent_due = has.where(_n.is_urgent, or_(_n.at <= now - pace.gather, is_of_the_future))
    is_digest_due = has.where(
        _n.is_urgent.is_(False), or_(_n.at <= now - pace.digest, is_of_the_future)
    )
    with_digest = session.scalar(is_digest_due) is not None
    if not with_digest and session.scalar(is_urgent_due) is None:
        return None
    lately = select(func.count(_n.message_id.distinct())).where(
        _n.sent_at > now - _HOUR, _n.channel == channel
    )
    if (session.scalar(lately) or 0) >= pace.most_per_hour:
        return None
    return Due(
        channel=channel,
        message_id=uuid.uuid4(),
        claimed_at=now,
        is_again=False,
        with_digest=with_digest,
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for one channel; `due_since` is when the first of it should have gone."""

    channel: str
    number: int
    oldest: datetime
    due_since: datetime


def waiting(session: Session, channels: Collection[str], pace: Pace) -> list[Waiting]:
    """What waits for each of these channels, where anything does."""
    query = select(
        _n.channel,
        func.count(),
        func.min(_n.at),
        func.min(case((_n.is_urgent, _n.at))),
        func.min(case((_n.is_urgent.is_(False), _n.at))),
    ).where(_n.status == WAITING, _n.channel.in_(channels))
    found = []
    for channel, number, oldest, urgent, other in session.execute(query.group_by(_n.channel)):
        due = [
            *([urgent + pace.gather] if urgent else []),
            *([other + pace.digest] if other else []),
        ]
        found.append(Waiting(channel, number, oldest, min(due)))
    return found


def _has_come(moment: datetime, now: datetime) -> bool:
    """Whether it is time; a pause of more than hours is a clock that was set back."""
    return moment <= now or moment > now + _LONGEST_PAUSE


def claim(session: Session, due: Due, *, now: datetime, lease: timedelta) -> bool:
    """Take a message to send it; False when another sender was faster, or nothing is left of it.

    Who dies with it in hand leaves it to the next one when the lease is over.
    """
    held = {"next_try_at": now + lease, "attempts": _n.attempts + 1}
    whose = update(notice).where(_n.channel == due.channel)
    if due.is_again:
        # As it was when it was looked at: who is faster changes this number.
        mine = (
            *(_n.message_id == due.message_id, _n.status == WAITING),
            _n.attempts == due.attempts,
        )
        return _changed(session, whose.where(*mine).values(held)) > 0
    _settle(session, due.channel)
    which: tuple[ColumnElement[bool], ...] = () if due.with_digest else (_n.is_urgent,)
    taken = whose.where(_FREE, *which).values(
        message_id=due.message_id, claimed_at=due.claimed_at, **held
    )
    return _changed(session, taken) > 0


def _settle(session: Session, channel: str) -> None:
    """Nobody need be told of what cleared itself meanwhile: files often come in any order."""
    is_cleared = exists().where(_alert.c.id == _n.alert_id, _alert.c.cleared_at.is_not(None))
    earlier = aliased(notice)
    was_told = exists().where(
        earlier.c.alert_id == _n.alert_id, earlier.c.channel == channel, earlier.c.status == SENT
    )
    mine = update(notice).where(_n.channel == channel, _FREE, _n.alert_id.is_not(None), is_cleared)
    session.execute(mine.where(_n.kind != CLEARED).values(status=SETTLED))
    session.execute(mine.where(_n.kind == CLEARED, ~was_told).values(status=SETTLED))


@dataclass(frozen=True, slots=True)
class Contents:
    """What a message says: how many notices of each kind and severity, and the gravest of them."""

    counts: Mapping[tuple[str, str], int]
    gravest: Sequence[AnyRow]
    since: datetime


_GRAVITY = case(RANKS, value=_n.severity, else_=0)


def contents(session: Session, due: Due, *, most: int) -> Contents:
    """Read the notices of a message."""
    # Without the status the index of what waits would be of no use.
    mine = (_n.message_id == due.message_id, _n.channel == due.channel, _n.status == WAITING)
    counted = select(_n.kind, _n.severity, func.count(), func.min(_n.at)).where(*mine)
    counts: dict[tuple[str, str], int] = {}
    since: list[datetime] = []
    for kind, severity, number, first in session.execute(
        counted.group_by(_n.kind, _n.severity).order_by(_n.kind, _n.severity)
    ):
        counts[kind, severity] = number
        since.append(first)
    query = (
        select(
            *(_n.at, _n.kind, _n.severity, _n.title, _n.description, _n.alert_id),
            _alert.c.type.label("rule"),
            _alert.c["class"].label("class_"),
            _alert.c.description.label("about"),
            _alert.c.detected_at,
            *(_constituency.c.contract_id, _constituency.c.region_code, _constituency.c.name),
        )
        .select_from(notice)
        .outerjoin(_alert, _alert.c.id == _n.alert_id)
        .outerjoin(_constituency, _constituency.c.id == _alert.c.constituency_id)
        .where(*mine)
        .order_by(_GRAVITY.desc(), _n.at, _n.id)
        .limit(most)
    )
    return Contents(counts, session.execute(query).all(), min(since))


def mark_sent(session: Session, due: Due, *, now: datetime) -> int:
    """The other end has it; how many notices that were."""
    sent = {"status": SENT, "sent_at": now, "last_error": None, "next_try_at": None}
    return _mark(session, due, sent)


def mark_failed(session: Session, due: Due, *, error: str, next_try_at: datetime | None) -> int:
    """It could not be sent; None for the next try gives it up."""
    failed: dict[str, Any] = {"last_error": error, "next_try_at": next_try_at}
    if next_try_at is None:
        failed["status"] = FAILED
    return _mark(session, due, failed)


def _mark(session: Session, due: Due, values: Mapping[str, Any]) -> int:
    mine = (_n.message_id == due.message_id, _n.channel == due.channel, _n.status == WAITING)
    return _changed(session, update(notice).where(*mine).values(values))


def give_up_strangers(session: Session, channels: Collection[str], before: datetime) -> int:
    """Give up what waits since then for a channel that the settings do not name.

    Not at once: another daemon on this database may have other channels.
    """
    strange = (_n.status == WAITING, _n.channel.not_in(channels), _n.at < before)
    if session.scalar(select(_n.id).where(*strange).limit(1)) is None:
        return 0
    error = "the settings do not name this channel"
    return _changed(session, update(notice).where(*strange).values(status=FAILED, last_error=error))


def try_again(session: Session) -> int:
    """Let everything that was given up, or waits for its next try, be sent anew."""
    anew = {"status": WAITING, "attempts": 0} | dict.fromkeys(
        ("message_id", "claimed_at", "next_try_at")
    )
    number = _changed(session, update(notice).where(_n.status == FAILED).values(anew))
    # Not what a sender has in hand for the first time.
    soon = (_n.status == WAITING, _n.next_try_at.is_not(None), _n.last_error.is_not(None))
    session.execute(update(notice).where(*soon).values(next_try_at=_n.at))
    return number


def sweep(session: Session, before: datetime) -> int:
    """Remove notices that were sent, settled or given up before some time."""
    old = (_n.status != WAITING, func.coalesce(_n.sent_at, _n.at) < before)
    return _changed(session, delete(notice).where(*old))


def _changed(session: Session, statement: Update | Delete) -> int:
    """How many rows a statement changed."""
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]  # a cursor's
