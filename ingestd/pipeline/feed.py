"""The feed: rules that need more than one constituency, looked at after a batch of files.

Nobody's file waits for them. Sums are made by the database; only constituencies that lack
something are looked into one by one.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import groupby
from statistics import median_low

from sqlalchemy import String, and_, cast, func, or_, select, text, type_coerce
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, is_postgresql
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import Alert, Constituency, Election, FileProcessing, HourlyStats, table_of
from ingestd.pipeline import rules
from ingestd.pipeline.alerts import OF_THE_FEED, Settlement
from ingestd.pipeline.proof import proved_plainly
from ingestd.pipeline.rules import Burst, Finding, Gap, Late
from ingestd.pipeline.rules.history import begin_of, slots_between
from ingestd.pipeline.slot import WHOLE, next_slot
from ingestd.pipeline.stats import NO_BALLOT
from ingestd.pipeline.touched import ACCEPTED, WITHDRAWN, chunks, transaction
from ingestd.thresholds import Alerts, MissingHour, Rules

_HELD = Alerts()
_LONGEST_VOTING_HOURS = 24 * 40
ledgered = table_of(FileProcessing)
hourly = table_of(HourlyStats)
constituency = table_of(Constituency)
_f = ledgered.c
_IS_HOURLY = and_(_f.is_cumulative.is_(False), _f.slot.is_not(None))

Findings = dict[tuple[uuid.UUID | None, str], list[Finding]]


def evaluate_feed(
    session: Session, *, now: datetime, held: Alerts = _HELD, is_thorough: bool = False
) -> None:
    """Let the alerts about the whole feed say what now holds; the caller commits.

    `is_thorough` reads every transaction id, however many there are.
    """
    # The alerts are about all constituencies: one process looks at a time.
    if is_postgresql(session):
        session.execute(text("SELECT pg_advisory_xact_lock(7003)"))
    found = feed_findings(session, now=now, held=held, is_thorough=is_thorough)
    query = select(Alert.constituency_id, Alert.type).where(
        Alert.type.in_(OF_THE_FEED), Alert.cleared_at.is_(None)
    )
    is_open = {(row.constituency_id, row.type) for row in session.execute(query.distinct())}
    unread = () if _reads_all_ids(session, held, is_thorough=is_thorough) else (_IN_TWO,)
    settled: set[tuple[uuid.UUID | None, str]] = {*found, *is_open}
    for owner, rule in sorted(settled, key=str):
        if rule not in unread:
            Settlement(session, owner, now)(rule, found.get((owner, rule), ()))


def feed_findings(
    session: Session, *, now: datetime, held: Alerts = _HELD, is_thorough: bool = False
) -> Findings:
    """What the rules about the whole feed find; writes nothing."""
    feed = _Feed(session, held)
    found: Findings = {}
    if _reads_all_ids(session, held, is_thorough=is_thorough):
        for owner, finding in _in_two_contracts(session):
            found.setdefault((owner, finding.rule), []).append(finding)
    for look in (_missing_hours, _missing_constituencies, _late_files, _bursts):
        for owner, finding in look(feed):
            found.setdefault((owner, finding.rule), []).append(finding)
    for finding in _silence(feed, now):
        found.setdefault((None, finding.rule), []).append(finding)
    return {
        (owner, rule): [proved_plainly(one, feed.contract(owner)) for one in findings]
        for (owner, rule), findings in found.items()
        if feed.held(owner).is_on(rule)
    }


@dataclass
class _Feed:
    """What is asked of all constituencies together, each thing once."""

    session: Session
    base: Alerts
    _held: dict[tuple[str | None, str | None], Rules] = field(default_factory=dict)

    @cached_property
    def constituencies(self) -> Mapping[uuid.UUID, AnyRow]:
        """Every constituency, with its election."""
        c = constituency.c
        query = select(
            *(c.id, c.contract_id, c.voting_start, c.voting_end, c.status),
            Election.name.label("election"),
            Election.type.label("election_type"),
        ).outerjoin(Election, Election.id == c.election_id)
        rows = self.session.execute(query.select_from(constituency).order_by(c.contract_id))
        return {row.id: row for row in rows}

    def contract(self, owner: uuid.UUID | None) -> str | None:
        """The contract of a constituency."""
        return self.constituencies[owner].contract_id if owner else None

    def held(self, owner: uuid.UUID | None) -> Rules:
        """The thresholds of a constituency."""
        if owner is None or not self.base.differs:
            return self.base
        row = self.constituencies[owner]
        key = row.election, row.election_type
        if key not in self._held:
            self._held[key] = self.base.for_election(*key)
        return self._held[key]

    @cached_property
    def slots(self) -> Mapping[str, AnyRow]:
        """Each hour: how many constituencies delivered it, its rows, the fewest of one file."""
        query = (
            select(
                _f.slot,
                func.count(_f.constituency_id.distinct()).label("delivered"),
                func.sum(_f.rows_read).label("rows"),
                func.min(_f.rows_read).label("fewest"),
            )
            .where(_f.status == JobState.COMPLETED, _IS_HOURLY)
            .group_by(_f.slot)
            .order_by(_f.slot)
        )
        return {row.slot: row for row in self.session.execute(query)}

    @cached_property
    def owners(self) -> Mapping[uuid.UUID, AnyRow]:
        """Each constituency with hourly files: the first, the last, how many, its rows."""
        query = (
            select(
                _f.constituency_id,
                func.min(_f.slot).label("first"),
                func.max(_f.slot).label("last"),
                func.count(_f.slot.distinct()).label("slots"),
                func.sum(_f.rows_read).label("rows"),
            )
            .where(_f.status == JobState.COMPLETED, _IS_HOURLY)
            .group_by(_f.constituency_id)
        )
        return {row.constituency_id: row for row in self.session.execute(query)}

    @cached_property
    def ends(self) -> Mapping[uuid.UUID, tuple[str | None, str | None]]:
        """The hourly files in which each voting began and finished, as far as they are known."""
        t = transaction.c
        found: dict[uuid.UUID, dict[str, str]] = {}
        for operation in ("startVoting", "finishVoting"):
            # By constituency: then the small index of rows that are no ballots has them.
            first = (
                select(func.min(t.slot))
                .where(
                    t.constituency_id == constituency.c.id,
                    t.type == operation,
                    NO_BALLOT,
                    t.status == ACCEPTED,
                )
                .correlate(constituency)
                .scalar_subquery()
            )
            for key, slot in self.session.execute(select(constituency.c.id, first)):
                if slot is not None:
                    found.setdefault(key, {})[operation] = slot
        return {
            key: (slots.get("startVoting"), slots.get("finishVoting") or self._planned(key, slots))
            for key, slots in found.items()
        }

    def _planned(self, key: uuid.UUID, slots: Mapping[str, str]) -> str | None:
        """The hour in which the voting is to end, counted from the one in which it began."""
        row, slot = self.constituencies[key], slots.get("startVoting")
        if slot is None or row.voting_start is None or row.voting_end is None:
            return None
        hours = int((row.voting_end - row.voting_start) / timedelta(hours=1))
        if not 0 < hours <= _LONGEST_VOTING_HOURS:
            return None
        for _ in range(hours - 1):
            slot = next_slot(slot)
        return slot

    @cached_property
    def with_whole(self) -> set[uuid.UUID]:
        """Constituencies of which the whole voting is here in one file."""
        query = select(_f.constituency_id).where(_f.status == JobState.COMPLETED, _f.slot == WHOLE)
        return set(self.session.scalars(query))

    def watermark(self, share: float) -> str | None:
        """The greatest slot that so many constituencies have delivered, or had finished before."""
        finishes = [(owner, finish) for owner, (_start, finish) in self.ends.items() if finish]
        finished = sorted(finish for owner, finish in finishes if owner in self.owners)
        # Who delivers hours after the end, with its results, must not count twice.
        twice = self._delivered_after_the_end(
            owner
            for owner, finish in finishes
            if owner in self.owners and self.owners[owner].last > finish
        )
        wanted = share * len(self.owners)
        for slot, row in sorted(self.slots.items(), reverse=True):
            if row.delivered - twice[slot] + bisect_left(finished, slot) >= wanted:
                return slot
        return None

    def _delivered_after_the_end(self, owners: Iterable[uuid.UUID]) -> Counter[str]:
        """How many of these constituencies delivered each slot behind that of their end."""
        by_finish: dict[str, list[uuid.UUID]] = {}
        for owner in owners:
            by_finish.setdefault(str(self.ends[owner][1]), []).append(owner)
        found: Counter[str] = Counter()
        for finish, some in sorted(by_finish.items()):
            for chunk in chunks(sorted(some)):
                query = (
                    select(_f.slot, func.count(_f.constituency_id.distinct()))
                    .where(_f.status == JobState.COMPLETED, _IS_HOURLY, _f.slot > finish)
                    .where(_f.constituency_id.in_(chunk))
                    .group_by(_f.slot)
                )
                found.update({row[0]: row[1] for row in self.session.execute(query)})
        return found


# ── missing hours ────────────────────────────────────────────────────────────


def _missing_hours(feed: _Feed) -> Iterator[tuple[uuid.UUID, Finding]]:
    watermark = feed.watermark(feed.base.missing_hour.watermark)
    if watermark is None:
        return
    spans = {
        owner: span
        for owner, row in feed.owners.items()
        if owner not in feed.with_whole
        and (span := _span(feed, owner, row, watermark, feed.held(owner).missing_hour))
    }
    gaps = dict(_gaps(feed, spans))
    lacking = Counter(slot for runs in gaps.values() for run in runs for slot in run)
    for owner, runs in gaps.items():
        for run in runs:
            gap = Gap(
                slots=tuple(run),
                lacking=tuple(lacking[slot] for slot in run),
                constituencies=len(feed.owners),
                watermark=watermark,
            )
            yield owner, rules.missing_hour(gap, feed.held(owner).missing_hour)


def _span(
    feed: _Feed, owner: uuid.UUID, row: AnyRow, watermark: str, held: MissingHour
) -> tuple[str, str] | None:
    """From when to when a constituency's hours must be here; None where they clearly are."""
    start, finish = feed.ends.get(owner, (None, None))
    begin = start or row.first
    end = watermark
    if finish is not None and slots_between(finish, watermark) >= held.slots_past:
        end = finish
    elif slots_between(begin, watermark) < held.slots_past:
        return None
    else:
        end = _earlier(watermark, held.slots_past)
    is_whole = row.slots == slots_between(row.first, row.last) + 1
    if is_whole and row.first <= begin and row.last >= end:
        return None
    return begin, end


def _earlier(slot: str, hours: int) -> str:
    """Name the hour so many hours before a slot, as its kind is named."""
    begin = begin_of(slot) - timedelta(hours=hours)
    return f"{begin:%Y-%m-%d_%H%M}"


def _gaps(
    feed: _Feed, spans: Mapping[uuid.UUID, tuple[str, str]]
) -> Iterator[tuple[uuid.UUID, list[list[str]]]]:
    has_empty = any(row.fewest == 0 for row in feed.slots.values())
    here: dict[uuid.UUID, set[str]] = {}
    for chunk in chunks(sorted(spans)):
        query = select(_f.constituency_id, _f.slot).where(
            _f.status == JobState.COMPLETED, _IS_HOURLY, _f.constituency_id.in_(chunk)
        )
        for row in feed.session.execute(query):
            here.setdefault(row.constituency_id, set()).add(row.slot)
    for owner, (begin, end) in spans.items():
        held = feed.held(owner).missing_hour
        are_published = held.publishes_empty(seen=has_empty)
        runs: list[list[str]] = []
        slot, was_missing = begin, False
        while slot[: len(end)] <= end:
            is_missing = slot not in here[owner] and (
                are_published or _expected(feed, owner, slot) >= held.least_expected
            )
            if is_missing and was_missing:
                runs[-1].append(slot)
            elif is_missing:
                runs.append([slot])
            slot, was_missing = next_slot(slot), is_missing
        if runs:
            yield owner, runs


def _expected(feed: _Feed, owner: uuid.UUID, slot: str) -> float:
    """Rows expected in an hour, if the constituency's share of it is what it is of the others."""
    total = sum(row.rows for row in feed.slots.values())
    here = feed.slots[slot].rows if slot in feed.slots else 0
    return float(feed.owners[owner].rows * here / max(1, total - here))


def _missing_constituencies(feed: _Feed) -> Iterator[tuple[uuid.UUID | None, Finding]]:
    held = feed.base.constituency_missing
    slots = max((row.slots for row in feed.owners.values()), default=0)
    if slots < held.slots_past:
        return
    jobs = select(_f.constituency_id, func.max(_f.status == JobState.COMPLETED))
    if is_postgresql(feed.session):
        jobs = select(_f.constituency_id, func.bool_or(_f.status == JobState.COMPLETED))
    known = jobs.where(
        _f.constituency_id.is_not(None), _f.status.in_((*DELIVERED, JobState.QUARANTINED))
    ).group_by(_f.constituency_id)
    is_here = {row[0]: bool(row[1]) for row in feed.session.execute(known)}
    by_contract = {row.contract_id: key for key, row in feed.constituencies.items()}
    wanted: dict[str, uuid.UUID | None] = {
        feed.constituencies[key].contract_id: key for key, here in is_here.items() if not here
    }
    for contract in held.contracts:
        owner = by_contract.get(contract)
        if owner is None or not is_here.get(owner, False):
            wanted[contract] = owner
    for contract, owner in sorted(wanted.items(), key=str):
        yield owner, rules.constituency_missing(contract, slots=slots, held=held)


# ── late, silent ─────────────────────────────────────────────────────────────


def _late_files(feed: _Feed) -> Iterator[tuple[uuid.UUID, Finding]]:
    spread = (
        select(_f.slot, func.min(_f.mtime).label("first"), func.max(_f.mtime).label("last"))
        .where(_f.status.in_(DELIVERED), _IS_HOURLY, _f.mtime.is_not(None))
        .group_by(_f.slot)
        .order_by(_f.slot)
    )
    shortest = timedelta(hours=feed.base.late_file.hours)
    doubtful = [
        slot.slot
        for slot in feed.session.execute(spread).all()
        if slot.last - slot.first > shortest or feed.base.differs
    ]
    # No index leads by slot: many are asked for in one go, or each would read the whole ledger.
    for chunk in chunks(doubtful):
        first = (
            select(_f.slot, _f.constituency_id, func.min(_f.mtime).label("written_at"))
            .where(_f.status.in_(DELIVERED), _f.mtime.is_not(None))
            .where(_IS_HOURLY, _f.slot.in_(chunk))
            .group_by(_f.slot, _f.constituency_id)
            .order_by(_f.slot, _f.constituency_id)
        )
        for slot, rows in groupby(feed.session.execute(first), lambda row: str(row.slot)):
            yield from _late_in(feed, slot, list(rows))


def _late_in(feed: _Feed, slot: str, rows: Sequence[AnyRow]) -> Iterator[tuple[uuid.UUID, Finding]]:
    usual = median_low(row.written_at for row in rows)
    for row in rows:
        late = Late(slot, row.written_at, usual, len(rows))
        for finding in rules.late_file(late, feed.held(row.constituency_id).late_file):
            yield row.constituency_id, finding


def _silence(feed: _Feed, now: datetime) -> list[Finding]:
    last = feed.session.scalar(select(func.max(_f.discovered_at)))
    c = constituency.c
    longest_ago = now - timedelta(hours=_LONGEST_VOTING_HOURS)
    voting = feed.session.scalar(
        select(func.count()).where(
            c.voting_start <= now,
            # One of which no end is known is not open for ever.
            or_(c.voting_end > now, and_(c.voting_end.is_(None), c.voting_start > longest_ago)),
        )
    )
    return rules.silent_feed(last, voting=voting or 0, now=now, held=feed.base.silent_feed)


# ── rollbacks ────────────────────────────────────────────────────────────────


def _bursts(feed: _Feed) -> Iterator[tuple[uuid.UUID | None, Finding]]:
    held = feed.base.rollback_burst
    h = hourly.c
    columns = (h.hour, h.constituency_id, h.rolled_back, h.transaction_count)
    many = feed.session.execute(select(*columns).where(h.rolled_back >= held.least)).all()
    by_hour: dict[datetime, list[AnyRow]] = {}
    for row in many:
        by_hour.setdefault(row.hour, []).append(row)
    by_contract = {row.contract_id: key for key, row in feed.constituencies.items()}
    for hour, rows in sorted(by_hour.items()):
        rolled_back, rest = feed.session.execute(
            select(func.sum(h.rolled_back), func.sum(h.transaction_count)).where(h.hour == hour)
        ).one()
        total = rolled_back + rest
        bursts = [_burst_of(feed, row, int(rolled_back), int(total)) for row in rows]
        bursts.sort(key=lambda burst: burst.contract)
        for finding in rules.rollback_burst(hour, bursts, held):
            yield by_contract.get(finding.details.get("contract", "")), finding


def _burst_of(feed: _Feed, row: AnyRow, rolled_back: int, total: int) -> Burst:
    rows = row.transaction_count + row.rolled_back
    return Burst(
        contract=str(feed.contract(row.constituency_id)),
        rolled_back=row.rolled_back,
        rows=rows,
        others_rolled_back=rolled_back - row.rolled_back,
        others_rows=total - rows,
    )


# ── one transaction in two contracts ─────────────────────────────────────────

_IN_TWO = "transaction_in_two_contracts"


def _reads_all_ids(session: Session, held: Alerts, *, is_thorough: bool) -> bool:
    """Say whether every id may be read: it takes a second for a million of them."""
    if is_thorough:
        return True
    rows = session.scalar(select(func.sum(_f.rows_stored)))
    return (rows or 0) <= held.transaction_in_two_contracts.most_rows


def _in_two_contracts(session: Session) -> Iterator[tuple[None, Finding]]:
    """Keys end with the hash of the transaction's id and begin with that of the contract."""
    t = transaction.c
    whole = cast(t.id, String) if is_postgresql(session) else type_coerce(t.id, String)
    ending = func.substr(whole, 9)
    again = select(ending).where(t.status != WITHDRAWN).group_by(ending).having(func.count() > 1)
    endings = list(session.scalars(again))
    by_tx: dict[str, list[AnyRow]] = {}
    for chunk in chunks(sorted(endings)):
        query = select(t.tx_id, t.timestamp, constituency.c.contract_id).join(
            constituency, constituency.c.id == t.constituency_id
        )
        for row in session.execute(query.where(ending.in_(chunk), t.status != WITHDRAWN)):
            by_tx.setdefault(row.tx_id, []).append(row)
    for tx_id, rows in sorted(by_tx.items()):
        contracts = {row.contract_id for row in rows}
        if len(contracts) > 1:
            moment = max(row.timestamp for row in rows)
            yield None, rules.transaction_in_two_contracts(tx_id, moment, sorted(contracts))


# ── coverage ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Covered:
    """Which hours of a constituency are here: delivered, empty, superseded, refused, missing."""

    contract_id: str
    region_code: str | None
    name: str | None
    has_files: bool
    has_whole: bool
    slots: Mapping[str, str]

    @property
    def is_provisional(self) -> bool:
        """Whether its counts may still change because hours are missing."""
        states = set(self.slots.values())
        return not self.has_files or (not self.has_whole and bool(states & {"missing", "refused"}))


def coverage(session: Session, *, held: Alerts = _HELD) -> Iterator[Covered]:
    """Tell for each constituency and hour what is here, in the order of contracts.

    Then those that the settings expect and of which nothing ever came.
    """
    feed = _Feed(session, held)
    lacking: dict[uuid.UUID, list[list[str]]] = {}
    watermark = feed.watermark(held.missing_hour.watermark)
    if watermark is not None:
        spans = {
            owner: span
            for owner, row in feed.owners.items()
            if (span := _span(feed, owner, row, watermark, feed.held(owner).missing_hour))
        }
        lacking = dict(_gaps(feed, spans))
    columns = (_f.slot, _f.status, _f.rows_read)
    c = constituency.c
    current = select(_f.constituency_id).where(_f.status == JobState.COMPLETED).distinct()
    with_files = set(session.scalars(current))
    for owner in feed.constituencies:
        place = session.execute(select(c.region_code, c.name).where(c.id == owner)).one()
        query = select(*columns).where(_f.constituency_id == owner, _IS_HOURLY)
        slots: dict[str, str] = {slot: "missing" for run in lacking.get(owner, ()) for slot in run}
        for row in session.execute(query.order_by(_f.publication)):
            slots[row.slot] = _state(row, slots.get(row.slot))
        yield Covered(
            contract_id=feed.constituencies[owner].contract_id,
            region_code=place.region_code,
            name=place.name,
            has_files=owner in with_files,
            has_whole=owner in feed.with_whole,
            slots=dict(sorted(slots.items())),
        )
    known = {row.contract_id for row in feed.constituencies.values()}
    for contract in sorted({*held.constituency_missing.contracts} - known):
        yield Covered(contract, None, None, has_files=False, has_whole=False, slots={})


def _state(row: AnyRow, former: str | None) -> str:
    """What one more publication makes of a slot; superseded means that it came more than once."""
    match row.status:
        case JobState.SUPERSEDED:
            return "superseded"
        case JobState.COMPLETED if former == "superseded":
            return "superseded"
        case JobState.COMPLETED:
            return "delivered" if row.rows_read else "empty"
        case JobState.QUARANTINED if former in (None, "missing"):
            return "refused"
    return former or "missing"
