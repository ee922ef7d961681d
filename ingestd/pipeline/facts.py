"""Facts: what the rules must know of one constituency, by few statements that are built once.

A file's commit waits for them, so nothing here grows with the table: the hourly files of the
constituency, its rows that are no ballots, and the rows of the hours that were touched.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, lru_cache
from operator import attrgetter
from typing import Any

import orjson
from sqlalchemy import Select, and_, bindparam, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from ingestd.db import AnyRow, not_searched
from ingestd.job_state import JobState
from ingestd.models import FileProcessing, Transaction, table_of
from ingestd.pipeline import stats
from ingestd.pipeline.prepared import Prepared
from ingestd.pipeline.rules import (
    OutOfSlot,
    Outside,
    ProtocolRow,
    RejectedRows,
    Results,
    SlotCount,
    Totals,
    missing_slots,
)
from ingestd.pipeline.rules.history import begin_of
from ingestd.pipeline.rules.protocol import first_of, shift_of
from ingestd.pipeline.slot import WHOLE
from ingestd.pipeline.stats import NO_BALLOT, RolledUp
from ingestd.pipeline.touched import (
    ACCEPTED,
    ON_CHAIN,
    REJECTED,
    Touched,
    bounds,
    by_bytes,
    hour_of,
    spans_of,
    transaction,
    within,
)
from ingestd.pipeline.validate import Entry, value_of
from ingestd.thresholds import MissingHour, OutsideVotingWindow, Rules

_MOST = 20
_BALLOTS = ("bulletin", "vote")
_REFUSED = ("issue_rejected", "vote_rejected")
_OPENINGS = ("createContract", "startVoting")
_NEVER = datetime.max.replace(tzinfo=UTC)
_A_MINUTE = timedelta(minutes=1)
ledgered = table_of(FileProcessing)

_WHOSE = transaction.c.constituency_id == bindparam("constituency")

_FILES = Prepared(
    select(
        *(
            ledgered.c[name]
            for name in ("id", "slot", "is_cumulative", "sha256", "slot_bulletins", "slot_votes")
        ),
        ledgered.c.rows_rejected,
        (ledgered.c.rows_read - ledgered.c.rows_blank).label("rows"),
    ).where(
        ledgered.c.constituency_id == bindparam("constituency"),
        not_searched(ledgered.c.status) == JobState.COMPLETED,
    )
)
_PROTOCOL = Prepared(
    select(*(transaction.c[name] for name in ("type", "timestamp", "slot", "tx_id", "persons")))
    # In no order: to have one, SQLite would take the index by time and read every ballot.
    .where(_WHOSE, NO_BALLOT, transaction.c.status == ACCEPTED)
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What stands fixed for all rules of one look at a constituency."""

    constituency_id: uuid.UUID
    rolled_up: RolledUp
    files: Sequence[AnyRow]
    protocol: Sequence[ProtocolRow]
    shift: timedelta | None
    held: MissingHour

    @cached_property
    def slots(self) -> list[SlotCount]:
        """On-chain ballots of each hourly file, in order."""
        return [
            SlotCount(file.slot, file.slot_bulletins, file.slot_votes)
            for file in self.files
            if file.slot and not file.is_cumulative
        ]

    @property
    def has_whole(self) -> bool:
        """Whether a file of the whole voting is here."""
        return any(file.slot == WHOLE for file in self.files)

    @property
    def start_slot(self) -> str | None:
        """The hourly file in which the voting began."""
        slots = [row.slot for row in self.protocol if row.type == "startVoting" and row.slot]
        return min(slots, default=None)

    @property
    def is_provisional(self) -> bool:
        """Whether hours are missing, so that counts are unknown."""
        if self.has_whole:
            return False
        return self.start_slot is None or bool(self.missing)

    @cached_property
    def missing(self) -> list[str]:
        """The hours between the start and the last file that are not here."""
        return missing_slots([slot.slot for slot in self.slots], self.start_slot, self.was_empty)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {file.slot: file.rows for file in self.files if file.slot and not file.is_cumulative}

    def was_empty(self, slot: str) -> bool:
        """Say whether an hour without a file was empty: only where the settings say so.

        And where the files before and after it are not both so large that it was to have one.
        What was seen elsewhere must not count here: it would hang on the order of the files.
        """
        if self.held.empty_hours != "no":
            return False
        names = list(self._rows)
        place = bisect_left(names, slot)
        around = [self._rows[name] for name in (*names[:place][-1:], *names[place : place + 1])]
        return min(around, default=0) < self.held.least_expected

    @cached_property
    def totals(self) -> Totals:
        """Where the constituency stands."""
        sums = self.rolled_up.sums
        return Totals(
            bulletins=sums["bulletins_issued"],
            votes=sums["votes_cast"],
            list_added=sums["list_added"],
            list_removed=sums["list_removed"],
            has_voters_list=any(row.type == "addVotersList" for row in self.protocol),
            is_revote_blocked=self.rolled_up.is_revote_blocked,
            last_activity=self.rolled_up.last_activity,
        )

    @property
    def rejected(self) -> list[RejectedRows]:
        """Current files with rows that were refused."""
        return [
            RejectedRows(subject_of(file), file.sha256, file.rows_rejected, file.rows)
            for file in self.files
            if file.rows_rejected
        ]

    def has_changed_frame(self, touched: Touched) -> bool:
        """Say whether what was touched may have moved the voting's window or the names' zone."""
        rest = [row for row in self.protocol if hour_of(row.timestamp) not in touched.hours]
        if len(rest) == len(self.protocol):
            return False
        openings = (*_OPENINGS, "finishVoting")
        moved = any(
            row.type in openings for row in self.protocol if hour_of(row.timestamp) in touched.hours
        )
        return moved or shift_of(rest) != self.shift


def subject_of(file: AnyRow) -> str:
    """What a file is called in a finding: its slot, or its bytes where it has none."""
    return file.slot or f"sha256 {file.sha256[:16]}"


def facts_of(
    session: Session,
    constituency_id: uuid.UUID,
    rolled_up: RolledUp,
    held: MissingHour,
) -> Facts:
    """Read the files and the protocol rows of a constituency: two statements."""
    whose = {"constituency": constituency_id}
    # In Python's order: that of a database hangs on its language.
    files = sorted(_FILES.all(session, whose), key=lambda file: (file.slot or "", file.sha256))
    protocol = [ProtocolRow(*row) for row in _PROTOCOL.all(session, whose)]
    protocol.sort(key=lambda row: (row.timestamp, row.tx_id))
    return Facts(
        constituency_id=constituency_id,
        rolled_up=rolled_up,
        files=files,
        protocol=protocol,
        shift=shift_of(protocol),
        held=held,
    )


# ── the rows of the touched hours ────────────────────────────────────────────


@cache
def _spread(spans: int) -> Prepared:
    t = transaction.c
    return Prepared(
        select(
            t.slot,
            t.tally,
            func.min(t.timestamp).label("first"),
            func.max(t.timestamp).label("last"),
            func.max(t.persons).label("persons"),
        )
        .where(within(spans), t.status.in_(ON_CHAIN))
        .group_by(t.slot, t.tally)
    )


def spread_of(session: Session, facts: Facts, touched: Touched) -> Sequence[AnyRow]:
    """First and last time and most persons of the touched hours' rows, by slot and tally."""
    if not touched.hours:
        return ()
    spans = spans_of(touched.hours)
    return _spread(len(spans)).all(session, bounds(facts.constituency_id, spans))


def bulletins_for_many(
    session: Session, facts: Facts, touched: Touched
) -> list[tuple[str, datetime, int]]:
    """The bulletins of the touched hours that name more than one person."""
    t = transaction.c
    spans = spans_of(touched.hours)
    query = select(t.tx_id, t.timestamp, t.persons).where(
        within(len(spans)), t.tally == "bulletin", t.persons > 1, t.status == ACCEPTED
    )
    rows = session.execute(query, bounds(facts.constituency_id, spans))
    return sorted((row.tx_id, row.timestamp, row.persons) for row in rows)


# ── rows outside of the hour of their file ───────────────────────────────────


@lru_cache(4096)
def slot_times(slot: str, shift: timedelta) -> tuple[datetime, datetime]:
    """When a slot begins and ends in UTC."""
    begin = begin_of(slot)
    start, end = slot.split("_")[1].split("-")
    minutes = (int(end[:2]) - int(start[:2])) * 60 + int(end[2:]) - int(start[2:])
    if minutes <= 0:
        minutes += 24 * 60
    utc = (begin - shift).replace(tzinfo=UTC)
    return utc, utc + timedelta(minutes=minutes)


def slots_in_doubt(facts: Facts, spread: Sequence[AnyRow], tolerance: timedelta) -> set[str]:
    """Name the slots with a row outside of them."""
    if facts.shift is None:
        return set()
    found = set()
    for row in spread:
        if row.slot is None:
            continue
        begin, end = slot_times(row.slot, facts.shift)
        if row.first < begin - tolerance or row.last >= end + tolerance:
            found.add(row.slot)
    return found


@cache
def _rows_of_slot(spans: int) -> Select[AnyRow]:
    t = transaction.c
    return (
        select(t.timestamp, t.tx_id)
        .where(within(spans), t.slot == bindparam("slot"), t.status.in_(ON_CHAIN))
        .order_by(t.timestamp, t.tx_id)
    )


_HOURS_OF_SLOT = select(ledgered.c.touched).where(
    ledgered.c.constituency_id == bindparam("constituency"),
    ledgered.c.slot == bindparam("slot"),
    ledgered.c.is_cumulative.is_(False),
    ledgered.c.duplicate_of_id.is_(None),
)


def out_of_slot(
    session: Session, facts: Facts, slot: str, tolerance: timedelta
) -> OutOfSlot | None:
    """Count the rows of one slot that lie outside of it; None where its zone is not known."""
    if facts.shift is None:
        return None
    whose = {"constituency": facts.constituency_id, "slot": slot}
    hours: set[int] = set()
    for told in session.scalars(_HOURS_OF_SLOT, whose):
        hours |= Touched.from_json(told).hours
    spans = spans_of(hours)
    rows = session.execute(
        _rows_of_slot(len(spans)), bounds(facts.constituency_id, spans) | whose
    ).all()
    begin, end = slot_times(slot, facts.shift)
    outside = [
        row for row in rows if row.timestamp < begin - tolerance or row.timestamp >= end + tolerance
    ]
    distances = [max(begin - row.timestamp, row.timestamp - end) / _A_MINUTE for row in outside]
    return OutOfSlot(
        slot=slot,
        rows=len(rows),
        outside=len(outside),
        farthest_minutes=max(distances, default=0.0),
        shift_hours=facts.shift / timedelta(hours=1),
        tx_ids=tuple(sorted(row.tx_id for row in outside)[:_MOST]),
        at=max((row.timestamp for row in outside), default=None),
    )


# ── the voting's window ──────────────────────────────────────────────────────


_TOLD = tuple(
    transaction.c[name] for name in ("type", "timestamp", "tx_id", "raw_data", "operation_data")
)
_OPENING_ROWS = select(*_TOLD).where(
    _WHOSE, transaction.c.type.in_(_OPENINGS), NO_BALLOT, transaction.c.status == ACCEPTED
)


def window_of(session: Session, facts: Facts) -> tuple[datetime | None, datetime | None]:
    """When the voting was to begin and to end; what the finish says of it comes too late."""
    told = facts.rolled_up.facts
    if not any(row.type == "finishVoting" for row in facts.protocol):
        return told.get("voting_start"), told.get("voting_end")
    planned: dict[str, Any] = {}
    for row in _in_order(session.execute(_OPENING_ROWS, {"constituency": facts.constituency_id})):
        planned |= stats.facts_of(row)
    for name, moment in stats.planned_voting(session, facts.constituency_id).items():
        planned.setdefault(name, moment)
    return planned.get("voting_start"), planned.get("voting_end")


def is_window_in_doubt(
    spread: Sequence[AnyRow], window: tuple[datetime | None, datetime | None]
) -> bool:
    """Say whether a touched ballot lies outside of the window by its clock."""
    start, end = window
    return any(
        (start is not None and row.first < start) or (end is not None and row.last >= end)
        for row in spread
        if row.tally in (*_BALLOTS, *_REFUSED)
    )


_OUTSIDE = select(*(transaction.c[name] for name in ("timestamp", "tally", "slot", "tx_id"))).where(
    _WHOSE,
    transaction.c.status.in_(ON_CHAIN),
    transaction.c.tally.in_((*_BALLOTS, *_REFUSED)),
    or_(
        transaction.c.timestamp < bindparam("start"),
        transaction.c.timestamp >= bindparam("end"),
    ),
)


def outside_by_clock(
    session: Session,
    facts: Facts,
    window: tuple[datetime | None, datetime | None],
    held: OutsideVotingWindow,
) -> dict[str, Outside]:
    """Ballots whose own time is outside although their slot is not, accepted and refused."""
    start, end = window
    asked = {
        "constituency": facts.constituency_id,
        "start": start or datetime.min.replace(tzinfo=UTC),
        "end": end or _NEVER,
    }
    by_kind: dict[str, list[AnyRow]] = {"clock": [], "refused": []}
    # In Python's order: that of a database hangs on its language.
    for row in sorted(session.execute(_OUTSIDE, asked), key=attrgetter("tx_id")):
        is_vote = row.tally.startswith("vote")
        is_begun = start is None or row.timestamp >= start
        if is_begun and not _is_after(row.timestamp, end, held, is_vote=is_vote):
            continue
        if row.tally in _REFUSED:
            by_kind["refused"].append(row)
        elif row.slot is None or not is_slot_outside(
            facts, row.slot, window, held, is_vote=is_vote
        ):
            by_kind["clock"].append(row)
    return {
        kind: Outside(
            bulletins=sum(not row.tally.startswith("vote") for row in rows),
            votes=sum(row.tally.startswith("vote") for row in rows),
            slots=tuple(sorted({row.slot for row in rows if row.slot})),
            tx_ids=tuple(row.tx_id for row in rows),
        )
        for kind, rows in by_kind.items()
    }


def _is_after(
    moment: datetime, end: datetime | None, held: OutsideVotingWindow, *, is_vote: bool
) -> bool:
    if end is None:
        return False
    minutes = held.vote_grace_minutes if is_vote else held.bulletin_grace_minutes
    return moment >= end + timedelta(minutes=minutes)


def is_slot_outside(
    facts: Facts,
    slot: str,
    window: tuple[datetime | None, datetime | None],
    held: OutsideVotingWindow,
    *,
    is_vote: bool,
) -> bool:
    """Say whether a whole slot lies before the start or after the end."""
    if facts.shift is None:
        return False
    begin, until = slot_times(slot, facts.shift)
    start = window[0]
    if start is not None and until <= start:
        return True
    return _is_after(begin, window[1], held, is_vote=is_vote)


def _slots_at_the_edges(
    facts: Facts, window: tuple[datetime | None, datetime | None]
) -> Iterator[SlotCount]:
    """The slots that begin before the start or after the end; names sort as times do."""
    if facts.shift is None:
        return
    start, end = (f"{at + facts.shift:%Y-%m-%d_%H%M}" if at else None for at in window)
    for slot in facts.slots:
        if (start and slot.slot < start) or (end and slot.slot >= end):
            yield slot


def outside_by_slot(
    session: Session,
    facts: Facts,
    window: tuple[datetime | None, datetime | None],
    held: OutsideVotingWindow,
) -> Outside:
    """Accepted ballots in hourly files before the start or after the end."""
    bulletins = votes = 0
    slots: dict[str, list[str]] = {}
    for slot in _slots_at_the_edges(facts, window):
        for tally, number in (("bulletin", slot.bulletins), ("vote", slot.votes)):
            is_vote = tally == "vote"
            if number and is_slot_outside(facts, slot.slot, window, held, is_vote=is_vote):
                bulletins += number * (not is_vote)
                votes += number * is_vote
                slots.setdefault(slot.slot, []).append(tally)
    t = transaction.c
    ids = [
        tx_id
        for slot, tallies in slots.items()
        for tx_id in session.scalars(
            select(t.tx_id)
            .where(_WHOSE, t.slot == slot, t.tally.in_(tallies), t.status == ACCEPTED)
            .order_by(by_bytes(t.tx_id, session))
            .limit(_MOST),
            {"constituency": facts.constituency_id},
        )
    ]
    return Outside(
        bulletins=bulletins, votes=votes, slots=tuple(slots), tx_ids=tuple(sorted(ids)[:_MOST])
    )


# ── the protocol ─────────────────────────────────────────────────────────────

_ONCE = ("startVoting", "finishVoting", "addMainKey")


def contradicted(session: Session, facts: Facts) -> list[str]:
    """Name the steps that were taken more than once, with different values."""
    t = transaction.c
    again = [name for name in _ONCE if sum(row.type == name for row in facts.protocol) > 1]
    found = []
    for operation in again:
        values = session.execute(
            select(t.raw_data, t.operation_data).where(
                _WHOSE, t.type == operation, NO_BALLOT, t.status == ACCEPTED
            ),
            {"constituency": facts.constituency_id},
        ).all()
        if any(tuple(value) != tuple(values[0]) for value in values[1:]):
            found.append(operation)
    return found


_RESULTS = select(*_TOLD).where(
    _WHOSE, transaction.c.type == "results", NO_BALLOT, transaction.c.status == ACCEPTED
)


def _in_order(rows: Iterable[AnyRow]) -> list[AnyRow]:
    return sorted(rows, key=lambda row: (row.timestamp, row.tx_id))


def results_of(session: Session, facts: Facts) -> Results | None:
    """The published results and what they are held against; None where there are none."""
    if not any(row.type == "results" for row in facts.protocol):
        return None
    rows = _in_order(session.execute(_RESULTS, {"constituency": facts.constituency_id}))
    vectors = [stats.facts_of(row).get("published_results") for row in rows]
    sums = facts.rolled_up.sums
    return Results(
        vectors=tuple(vector for vector in vectors if vector is not None),
        tx_ids=tuple(row.tx_id for row in rows),
        dimension=facts.rolled_up.facts.get("dimension"),
        votes=sums["votes_cast"],
        revotes=sums["revotes"],
        is_provisional=facts.is_provisional,
        at=max((row.timestamp for row in rows), default=None),
    )


_accepted = aliased(Transaction)
_REFUSED_AGAIN = select(func.count()).where(
    _WHOSE,
    transaction.c.tally == "vote_rejected",
    transaction.c.status == REJECTED,
    exists().where(
        and_(
            _accepted.voter_key == transaction.c.voter_key,
            _accepted.constituency_id == transaction.c.constituency_id,
            _accepted.tally == "vote",
            _accepted.status == ACCEPTED,
        )
    ),
)


def refused_again(session: Session, facts: Facts, rules: Rules) -> int:
    """Count the refused votes of keys that have an accepted one, where they can be many."""
    held = rules.duplicate_vote_key
    rejected = facts.rolled_up.sums["votes_rejected"]
    votes = facts.rolled_up.sums["votes_cast"]
    if rejected < held.refused_least or rejected <= held.refused_share * votes:
        return 0
    asked = {"constituency": facts.constituency_id}
    return int(session.scalar(_REFUSED_AGAIN, asked) or 0)


_CHANGES = select(
    *(transaction.c[name] for name in ("type", "timestamp", "slot", "tx_id", "raw_data"))
).where(
    _WHOSE,
    NO_BALLOT,
    transaction.c.type.in_(("addToVotersList", "removeFromVotersList")),
    transaction.c.status == ACCEPTED,
)


def returned_voters(session: Session, facts: Facts) -> int:
    """Count who was removed and restored, where more bulletins were issued than the roll has.

    Each stands in two lists and is one voter; who was not removed before is a new one.
    """
    totals = facts.totals
    if totals.bulletins <= totals.list_added - totals.list_removed:
        return 0
    rows = session.execute(_CHANGES, {"constituency": facts.constituency_id})
    removed: set[str] = set()
    returned = 0
    for row in sorted(rows, key=lambda row: (row.slot is None, row.slot or "", row.timestamp)):
        named = _voters_named(row.raw_data)
        if row.type == "removeFromVotersList":
            removed |= named
        else:
            returned += len(removed & named)
            removed -= named
    return returned


def _voters_named(params: Sequence[Entry]) -> set[str]:
    """The voters of a list; none where it tells only how many they are."""
    told = {entry["key"]: entry for entry in params}.get("userIdHashes")
    try:
        named = orjson.loads(str(value_of(told))) if told else ()
    except orjson.JSONDecodeError:
        return set()
    return set(map(str, named)) if isinstance(named, list) else set()


# ── the whole voting's export ────────────────────────────────────────────────


def time_with_all_hours(facts: Facts, margin: timedelta) -> tuple[datetime, datetime] | None:
    """The time between start and finish, where no hourly file between them is missing."""
    start = first_of(facts.protocol, "startVoting")
    finish = first_of(facts.protocol, "finishVoting")
    if start is None or finish is None or start.slot is None or finish.slot is None:
        return None
    slots = [slot.slot for slot in facts.slots if slot.slot <= finish.slot]
    if finish.slot not in slots or missing_slots(slots, start.slot, facts.was_empty):
        return None
    return start.timestamp, finish.timestamp - margin


def slots_within(facts: Facts, whole: AnyRow) -> list[str] | None:
    """The hourly files within the time of a cumulative one; None means all."""
    if whole.slot == WHOLE or whole.slot is None:
        return None
    slots = [slot.slot for slot in facts.slots]
    if "_" not in whole.slot:
        return [slot for slot in slots if slot.startswith(whole.slot)]
    begin, end = slot_times(whole.slot, timedelta())
    return [
        slot
        for slot in slots
        if begin <= slot_times(slot, timedelta())[0] and slot_times(slot, timedelta())[1] <= end
    ]


def protocol_by_type(facts: Facts) -> Mapping[str, list[ProtocolRow]]:
    """The protocol rows by operation."""
    found: dict[str, list[ProtocolRow]] = {}
    for row in facts.protocol:
        found.setdefault(row.type, []).append(row)
    return found
