"""The feed: rules that need more than one constituency, looked at after a batch of files.

Nobody's file waits for them. Sums are made by the database; only constituencies that lack
something are looked into one by one.
"""

from __future__ import annotations

import hashlib
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    String,
    and_,
    cast,
    func,
    or_,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, is_postgresql, not_searched
from ingestd.job_state import JobState
from ingestd.models import (
    Alert,
    Constituency,
    Election,
    Evaluation,
    FileProcessing,
    HourlyStats,
    table_of,
)
from ingestd.pipeline import rules
from ingestd.pipeline.alerts import OF_THE_FEED, Settlement, is_said
from ingestd.pipeline.deliveries import DEEDS, Deliveries, Owned, hours_of, moment_of
from ingestd.pipeline.proof import files_of_lines, proved_by_files, zone_of
from ingestd.pipeline.rules import RULESET, Burst, Finding, Gap, Late, Twin
from ingestd.pipeline.rules.history import begin_of, slots_between
from ingestd.pipeline.slot import next_slot
from ingestd.pipeline.stats import NO_BALLOT, constituency_id_of, mark_due
from ingestd.pipeline.touched import ACCEPTED, WITHDRAWN, chunks, insert_missing, transaction
from ingestd.thresholds import Alerts, MissingHour, Rules, SilentFeed

_HELD = Alerts()
_LONGEST_VOTING_HOURS = 24 * 40
_SOME = 500  # constituencies read by their ids; more of them are read in one go
_PAUSE = timedelta(minutes=5)  # so long nothing has come, and every id may be read
TWIN_ROLLS = 0.001  # as in `levels`, which takes numpy
ledgered = table_of(FileProcessing)
hourly = table_of(HourlyStats)
constituency = table_of(Constituency)
_f = ledgered.c
_IS_HOURLY = and_(_f.is_cumulative.is_(False), _f.slot.is_not(None))

Findings = dict[tuple[uuid.UUID | None, str], list[Finding]]


@dataclass
class Kept:
    """What one look at the feed leaves for the next, so that it reads only what is new."""

    deliveries: Deliveries = field(default_factory=Deliveries)
    ends: dict[uuid.UUID, Ends] = field(default_factory=dict)
    has_read_ids: bool = False
    _state: Hashable = None
    _since: datetime | None = None
    _is_unread: bool = True

    def reads_ids(self, now: datetime, held: Alerts, *, is_thorough: bool) -> bool:
        """Say whether this look reads every transaction id: of a large election only in a pause.

        It takes a second for a million of them. After each change it is done once, so that what
        is found hangs on the files, and not on which of them made the election large.
        """
        if self._since is None or now < self._since or self.deliveries.state != self._state:
            self._state, self._since, self._is_unread = self.deliveries.state, now, True
        is_small = self.deliveries.rows <= held.transaction_in_two_contracts.most_rows
        is_due = self._is_unread and now - self._since >= _PAUSE
        self.has_read_ids = is_thorough or is_small or is_due
        self._is_unread &= not self.has_read_ids
        return self.has_read_ids


class Ends(NamedTuple):
    """In which hourly files a voting began and finished, and when it began."""

    start: str | None
    started_at: datetime | None
    finish: str | None


def evaluate_feed(
    session: Session,
    *,
    now: datetime,
    held: Alerts = _HELD,
    is_thorough: bool = False,
    kept: Kept | None = None,
) -> None:
    """Let the alerts about the whole feed say what now holds; the caller commits.

    `is_thorough` reads every transaction id, however many there are. `kept` is what the last look
    left: then only what came since is read.
    """
    # The alerts are about all constituencies: one process looks at a time.
    if is_postgresql(session):
        session.execute(text("SELECT pg_advisory_xact_lock(7003)"))
    kept = kept or Kept()
    # First: what comes meanwhile may be in what is found, and is not in what is said to be seen.
    state = state_of(session, held)
    found = feed_findings(session, now=now, held=held, is_thorough=is_thorough, kept=kept)
    # Nearly all stand as they stood: settling each of thousands by itself would take seconds.
    standing: dict[tuple[uuid.UUID | None, str], dict[str, Alert]] = {}
    query = select(Alert).where(Alert.type.in_(OF_THE_FEED), Alert.cleared_at.is_(None))
    for alert in session.scalars(query):
        standing.setdefault((alert.constituency_id, alert.type), {})[alert.subject] = alert
    unread = () if kept.has_read_ids else (_IN_TWO,)
    # Those of nobody come last: what a person said of them may go over to a constituency.
    for owner, rule in sorted({*found, *standing}, key=_nobodys_last):
        findings, stands = found.get((owner, rule), ()), standing.get((owner, rule), {})
        is_same = len(findings) == len(stands) and all(
            finding.subject in stands and is_said(stands[finding.subject], finding)
            for finding in findings
        )
        if rule not in unread and not is_same:
            if rule == _IN_TWO:
                _mark_named(session, findings, stands.values())
            nobodys = standing.get((None, rule), {}) if owner else {}
            Settlement(session, owner, now)(rule, findings, former=nobodys)
    note_look(session, state, has_read_ids=kept.has_read_ids)


def _nobodys_last(key: tuple[uuid.UUID | None, str]) -> tuple[bool, str]:
    return key[0] is None, str(key)


def _mark_named(session: Session, findings: Iterable[Finding], stands: Iterable[Alert]) -> None:
    """Let the evaluator compute the scores of those whom an integrity alert names, or named."""
    told = [*(each.details for each in findings), *(each.details for each in stands)]
    for contract in sorted({contract for each in told for contract in each.get("contracts", ())}):
        mark_due(session, constituency_id_of(contract))


def rules_seen(session: Session, held: Alerts = _HELD) -> frozenset[str]:
    """Which rules have looked at all that is here now, but for those that hang on the clock."""
    columns = (Evaluation.feed_seen, Evaluation.ids_seen)
    seen = session.execute(select(*columns)).one_or_none()
    state = state_of(session, held)
    if seen is None or seen.feed_seen != state:
        return frozenset()
    by_clock = {rule for rule in OF_THE_FEED if rules.RULES[rule].is_clock}
    return OF_THE_FEED - by_clock - ({_IN_TWO} if seen.ids_seen != state else set())


def state_of(session: Session, held: Alerts) -> str:
    """Tell what a look rests on: the files, what people did by hand, and the thresholds."""
    files, until = session.execute(
        select(func.count(_f.finished_at), func.max(_f.finished_at))
    ).one()
    held_to = hashlib.sha256(held.model_dump_json().encode()).hexdigest()[:16]
    return f"{files} files until {until}, {session.scalar(DEEDS)} deeds, {RULESET} {held_to}"


def note_look(session: Session, state: str, *, has_read_ids: bool) -> None:
    """Write down what was here when the rules looked."""
    turn = table_of(Evaluation)
    insert_missing(session, turn, [{"id": 1, "generation": 0}])
    seen = {"feed_seen": state} | ({"ids_seen": state} if has_read_ids else {})
    differs = or_(*(turn.c[name].is_distinct_from(value) for name, value in seen.items()))
    session.execute(update(turn).where(turn.c.id == 1, differs).values(seen))


def feed_findings(
    session: Session,
    *,
    now: datetime,
    held: Alerts = _HELD,
    is_thorough: bool = False,
    kept: Kept | None = None,
) -> Findings:
    """What the rules about the whole feed find; writes nothing."""
    kept = kept or Kept()
    feed = _Feed(session, held, kept)
    feed.refresh()
    found: dict[str, list[tuple[uuid.UUID | None, Finding]]] = {}
    if kept.reads_ids(now, held, is_thorough=is_thorough):
        found[_IN_TWO] = list(_in_two_contracts(session))
    for look in (_missing_hours, _missing_constituencies, _late_files, _bursts):
        for owner, finding in look(feed):
            found.setdefault(finding.rule, []).append((owner, finding))
    found["silent_feed"] = [(None, finding) for finding in _silence(feed, now)]
    told: Findings = {}
    for rule, findings in found.items():
        wanted = [(owner, finding) for owner, finding in findings if feed.held(owner).is_on(rule)]
        files = _files_behind(feed, wanted)
        in_two = [finding for _, finding in wanted] if rule == _IN_TWO else []
        lines = iter(files_of_lines(session, in_two))
        for owner, finding in wanted:
            shown = next(lines) if in_two else _beside_it(feed, owner, finding, files)
            told.setdefault((owner, rule), []).append(_proved(feed, owner, finding, shown))
    return told


@dataclass
class _Feed:
    """What is asked of all constituencies together, each thing once."""

    session: Session
    base: Alerts
    kept: Kept
    _held: dict[tuple[str | None, str | None], Rules] = field(default_factory=dict)

    def refresh(self) -> None:
        """Bring up to date what the last look left."""
        deliveries = self.kept.deliveries
        deliveries.refresh(self.session)
        if deliveries.is_anew or len(deliveries.changed) > _SOME:
            self.kept.ends = dict(_ends(self.session, None))
            return
        for chunk in chunks(sorted(deliveries.changed)):
            for key in chunk:
                self.kept.ends.pop(key, None)
            self.kept.ends.update(_ends(self.session, chunk))

    @property
    def deliveries(self) -> Deliveries:
        """Which files are here."""
        return self.kept.deliveries

    @cached_property
    def constituencies(self) -> Mapping[uuid.UUID, AnyRow]:
        """Every constituency, with its election."""
        c = constituency.c
        query = select(
            *(c.id, c.contract_id, c.voting_start, c.voting_end, c.status, c.timezone),
            *(c.name, c.region_code, c.registered_voters),
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
    def owners(self) -> Mapping[uuid.UUID, Owned]:
        """Each constituency with hourly files."""
        return {
            owner: one
            for owner, one in self.deliveries.owners.items()
            if one.rows and owner in self.constituencies
        }

    @cached_property
    def ends(self) -> Mapping[uuid.UUID, tuple[str | None, str | None]]:
        """The hourly files in which each voting began and finished, as far as they are known.

        One of which nothing tells an end does not go on for longer than any other.
        """
        found = {
            key: (one.start, one.finish or self._planned(key, one.start))
            for key, one in self.kept.ends.items()
            if key in self.constituencies and (one.start or one.finish)
        }
        for owner, row in self.owners.items():
            start, finish = found.get(owner, (None, None))
            if finish is None:
                found[owner] = start, _earlier(start or row.first, -_LONGEST_VOTING_HOURS)
        return found

    def _planned(self, key: uuid.UUID, slot: str | None) -> str | None:
        """The hour in which the voting is to end, counted from the one in which it began."""
        row = self.constituencies[key]
        if slot is None or row.voting_start is None or row.voting_end is None:
            return None
        hours = int((row.voting_end - row.voting_start) / timedelta(hours=1))
        return _later(slot, hours - 1) if 0 < hours <= _LONGEST_VOTING_HOURS else None

    @cached_property
    def with_whole(self) -> set[uuid.UUID]:
        """Constituencies of which the whole voting is here in one file."""
        return {owner for owner, one in self.deliveries.owners.items() if one.has_whole}

    @cached_property
    def _shifts(self) -> Mapping[uuid.UUID, timedelta]:
        """How far the clock of the file names is ahead of UTC, by the start of each voting."""
        found = {}
        for key, one in self.kept.ends.items():
            if one.start and one.started_at:
                at = one.started_at.replace(minute=0, second=0, microsecond=0, tzinfo=None)
                found[key] = timedelta(hours=round((begin_of(one.start) - at) / timedelta(hours=1)))
        return found

    @cached_property
    def _usual_shift(self) -> timedelta | None:
        counted = Counter(self._shifts.values())
        return min(counted, key=lambda one: (-counted[one], one)) if counted else None

    def shift(self, owner: uuid.UUID | None) -> timedelta | None:
        """The same for one, or for most."""
        return self._usual_shift if owner is None else self._shifts.get(owner, self._usual_shift)

    @cached_property
    def _usual_start(self) -> datetime | None:
        starts = (row.voting_start for row in self.constituencies.values() if row.voting_start)
        counted = Counter(starts)
        return min(counted, key=lambda one: (-counted[one], one)) if counted else None

    def zone(self, owner: uuid.UUID | None) -> tzinfo | None:
        """The zone of the clocks, here or for most."""
        if owner is None:
            return zone_of(None, self._usual_start)
        row = self.constituencies[owner]
        return zone_of(row.timezone, row.voting_start or self._usual_start)

    def are_empty_hours_published(self, held: MissingHour) -> bool:
        """Say whether an hour in which nothing happened has a file, too."""
        seen = any(hour.empty for hour in self.deliveries.hours.values())
        return held.publishes_empty(seen=seen)

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
        for slot, row in sorted(self.deliveries.hours.items(), reverse=True):
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
                    .where(not_searched(_f.status) == JobState.COMPLETED, _IS_HOURLY)
                    .where(_f.constituency_id.in_(chunk), _f.slot > finish)
                    .group_by(_f.slot)
                )
                found.update({row[0]: row[1] for row in self.session.execute(query)})
        return found


# ── missing hours ────────────────────────────────────────────────────────────


def _ends(session: Session, wanted: Sequence[uuid.UUID] | None) -> Iterator[tuple[uuid.UUID, Ends]]:
    t = transaction.c

    def first(column: ColumnElement[Any], operation: str) -> Any:
        # By constituency: then the small index of rows that are no ballots has them.
        whose = (t.constituency_id == constituency.c.id, t.type == operation, NO_BALLOT)
        query = select(func.min(column)).where(*whose, t.status == ACCEPTED)
        return query.correlate(constituency).scalar_subquery()

    query = select(
        constituency.c.id,
        first(t.slot, "startVoting"),
        first(t.timestamp, "startVoting"),
        first(t.slot, "finishVoting"),
    )
    if wanted is not None:
        query = query.where(constituency.c.id.in_(wanted))
    for key, start, started_at, finish in session.execute(query):
        yield key, Ends(start, started_at, finish)


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
            )
            yield owner, rules.missing_hour(gap, feed.held(owner).missing_hour)


def _span(
    feed: _Feed, owner: uuid.UUID, row: Owned, watermark: str, held: MissingHour
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


@lru_cache(4096)
def _later(slot: str, hours: int) -> str:
    """Name the slot so many hours after one."""
    for _ in range(hours):
        slot = next_slot(slot)
    return slot


def _gaps(
    feed: _Feed, spans: Mapping[uuid.UUID, tuple[str, str]]
) -> Iterator[tuple[uuid.UUID, list[list[str]]]]:
    total = feed.deliveries.rows
    for owner, (begin, end) in spans.items():
        mine = feed.deliveries.owners[owner].rows
        held = feed.held(owner).missing_hour
        are_published = feed.are_empty_hours_published(held)
        own = mine.total
        runs: list[list[str]] = []
        slot, was_missing = begin, False
        while slot[: len(end)] <= end:
            is_missing = slot not in mine and (
                are_published or _expected(feed, own, total, slot) >= held.least_expected
            )
            if is_missing and was_missing:
                runs[-1].append(slot)
            elif is_missing:
                runs.append([slot])
            slot, was_missing = next_slot(slot), is_missing
        if runs:
            yield owner, runs


def _expected(feed: _Feed, own: int, total: int, slot: str) -> float:
    """Rows expected in an hour, if the constituency's share of it is what it is of the others."""
    hour = feed.deliveries.hours.get(slot)
    here = hour.rows if hour else 0
    return own * here / max(1, total - here)


def _missing_constituencies(feed: _Feed) -> Iterator[tuple[uuid.UUID | None, Finding]]:
    held = feed.base.constituency_missing
    if hours_of(feed.deliveries.owners) < held.slots_past:
        return
    span = _first_hours(feed, held.slots_past)
    is_here = {
        key: bool(one.rows or one.others)
        for key, one in feed.deliveries.owners.items()
        if key in feed.constituencies
    }
    by_contract = {row.contract_id: key for key, row in feed.constituencies.items()}
    wanted: dict[str, uuid.UUID | None] = {
        feed.constituencies[key].contract_id: key for key, here in is_here.items() if not here
    }
    for contract in held.contracts:
        owner = by_contract.get(contract)
        if owner is None or not is_here.get(owner, False):
            wanted[contract] = owner
    for contract, owner in sorted(wanted.items(), key=str):
        yield owner, rules.constituency_missing(contract, held=held, span=span)
    yield from _missing_twins(feed)


def _first_hours(feed: _Feed, number: int) -> tuple[str, ...]:
    """The hours after which everybody should be here: the first of the feed."""
    first = min((one.first for one in feed.owners.values()), default=None)
    return () if first is None else (first, _later(first, number - 1))


def _missing_twins(feed: _Feed) -> Iterator[tuple[uuid.UUID, Finding]]:
    """Ballots that most territories of a region have beside another one, and these have not.

    Two constituencies are one territory's when their rolls are the same within 0.1 %, as in
    `levels.twins`.
    """
    by_region: dict[str, dict[str, list[tuple[int, str, uuid.UUID]]]] = {}
    for key, row in feed.constituencies.items():
        if key in feed.deliveries.owners and row.election and row.registered_voters:
            ballots = by_region.setdefault(row.region_code or "", {})
            told = (row.registered_voters, row.contract_id, key)
            ballots.setdefault(row.election, []).append(told)
    for _region, ballots in sorted(by_region.items()):
        for one, other in permutations(sorted(ballots), 2):
            yield from _twinless(feed, sorted(ballots[one]), sorted(ballots[other]), other)


def _twinless(
    feed: _Feed,
    here: Sequence[tuple[int, str, uuid.UUID]],
    there: Sequence[tuple[int, str, uuid.UUID]],
    ballot: str,
) -> Iterator[tuple[uuid.UUID, Finding]]:
    alone: list[uuid.UUID] = []
    place = 0
    for roll, _contract, key in here:
        while place < len(there) and there[place][0] < roll * (1 - TWIN_ROLLS):
            place += 1
        if place < len(there) and there[place][0] <= roll * (1 + TWIN_ROLLS):
            place += 1
        else:
            alone.append(key)
    paired = len(here) - len(alone)
    for key in alone:
        held = feed.held(key).constituency_missing
        mine = feed.deliveries.owners[key]
        if paired < held.twins_least or paired < held.twins_share * len(here):
            continue
        if mine.slots < held.slots_past:
            continue
        span = (mine.first, _later(mine.first, held.slots_past - 1))
        twin = Twin(
            ballot=ballot,
            roll=feed.constituencies[key].registered_voters,
            paired=paired,
            of=len(here),
            slots=span,
        )
        yield key, rules.twin_missing(twin, held)


# ── late, silent ─────────────────────────────────────────────────────────────


def _late_files(feed: _Feed) -> Iterator[tuple[uuid.UUID | None, Finding]]:
    held = feed.base.late_file
    shortest = timedelta(hours=held.hours)
    single: dict[uuid.UUID, list[Late]] = {}
    shared: list[Late] = []
    for slot, hour in sorted(feed.deliveries.hours.items()):
        if hour.least is None or hour.most is None:
            continue
        # Few hours are in doubt; of the others, nobody's time need be known.
        in_doubt = moment_of(hour.most) - moment_of(hour.least) > shortest
        late = _late_in(feed, slot) if in_doubt or feed.base.differs else []
        if len(late) >= held.several and len(late) >= held.fleet_share * hour.delivered:
            worst = max(late, key=lambda one: (one[1].written_at, one[0]))[1]
            contracts = sorted(str(feed.contract(owner)) for owner, _ in late)
            shared.append(replace(worst, contracts=tuple(contracts)))
        else:
            for owner, one in late:
                single.setdefault(owner, []).append(one)
    for run in _in_a_row(shared):
        yield None, rules.late_file(run, held)
    for owner, some in single.items():
        for run in _in_a_row(some):
            yield owner, rules.late_file(run, feed.held(owner).late_file)


def _late_in(feed: _Feed, slot: str) -> list[tuple[uuid.UUID, Late]]:
    """Whose file of an hour was written long after the middle one.

    An hour that was fetched over hours (the whole voting in one go, after it) has no usual time.
    """
    written = {
        owner: one.written[slot]
        for owner, one in feed.deliveries.owners.items()
        if slot in one.written and owner in feed.constituencies
    }
    in_order = sorted(written.values())
    number = len(in_order)
    quarter, usual, most = (moment_of(in_order[part * (number - 1) // 4]) for part in (1, 2, 3))
    found = []
    for owner in sorted(written):
        held = feed.held(owner).late_file
        longest = timedelta(hours=held.hours)
        if number < held.least or most - quarter > longest:
            continue
        at = moment_of(written[owner])
        if at - usual > longest:
            found.append((owner, Late(slot, at, usual, number)))
    return found


def _in_a_row(late: Sequence[Late]) -> Iterator[list[Late]]:
    """What was late hour after hour is one finding."""
    run: list[Late] = []
    for one in late:
        if run and next_slot(run[-1].slot) != one.slot:
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _silence(feed: _Feed, now: datetime) -> list[Finding]:
    last = feed.session.scalar(select(func.max(_f.discovered_at)))
    if last is None:
        return []
    held = feed.base.silent_feed
    longest_ago = now - timedelta(hours=_LONGEST_VOTING_HOURS)
    voting = 0
    for owner, row in feed.constituencies.items():
        start, end = row.voting_start, row.voting_end
        # One of which no end is known is not open for ever.
        if start is None or start > now or (end <= now if end else start <= longest_ago):
            continue
        since = max(last, start)
        waited = now - since
        if not feed.are_empty_hours_published(feed.held(owner).missing_hour):
            # By night hardly anybody votes, and of an hour without a transaction no file comes.
            waited = _by_day(since, now, zone_of(row.timezone, start) or UTC, held)
        voting += waited > timedelta(hours=held.hours)
    return rules.silent_feed(last, voting=voting, held=held)


def _by_day(since: datetime, now: datetime, zone: tzinfo, held: SilentFeed) -> timedelta:
    """How much of a time lies in the hours of the day in which people vote."""
    total = timedelta(0)
    ahead = since.astimezone(zone).utcoffset() or timedelta(0)
    day = (since + ahead).replace(hour=0, minute=0, second=0, microsecond=0) - ahead
    while day < now:
        opens, closes = (day + timedelta(hours=hour) for hour in (held.from_hour, held.to_hour))
        total += max(timedelta(0), min(now, closes) - max(since, opens))
        day += timedelta(days=1)
    return total


# ── evidence ─────────────────────────────────────────────────────────────────

Files = Mapping[tuple[uuid.UUID, str], str]


def _slots_named(feed: _Feed, owner: uuid.UUID | None, finding: Finding) -> list[str]:
    """The slots of a finding; those of its hour where it names none."""
    details = finding.details
    if slots := details.get("slots") or [each for each in [details.get("slot")] if each]:
        return list(slots)
    shift = feed.shift(owner)
    if finding.rule != "rollback_burst" or shift is None:
        return []
    begin = datetime.fromisoformat(details["window"][0]) + shift
    prefix = f"{begin:%Y-%m-%d_%H}"
    return sorted(slot for slot in feed.deliveries.hours if slot.startswith(prefix))


def _beside(feed: _Feed, owner: uuid.UUID, finding: Finding) -> list[str]:
    """The slots whose files are the evidence; of missing hours those before and after them."""
    slots = _slots_named(feed, owner, finding)
    if finding.rule != "missing_hour":
        return slots
    here = sorted(feed.deliveries.owners[owner].rows)
    first, last = finding.details["episode"]["first"], finding.details["episode"]["last"]
    before = [slot for slot in here if slot < first]
    after = [slot for slot in here if slot > last]
    return [*before[-1:], *after[:1]]


def _files_behind(feed: _Feed, findings: Sequence[tuple[uuid.UUID | None, Finding]]) -> Files:
    """The current files of these findings, by constituency and slot."""
    slots = {
        (owner, slot)
        for owner, finding in findings
        if owner in feed.deliveries.owners
        for slot in _beside(feed, owner, finding)
    }
    names = sorted({slot for _, slot in slots})
    found: dict[tuple[uuid.UUID, str], str] = {}
    for chunk in chunks(sorted({owner for owner, _ in slots})):
        for some in chunks(names):
            query = select(_f.constituency_id, _f.slot, _f.sha256).where(
                not_searched(_f.status) == JobState.COMPLETED,
                _f.constituency_id.in_(chunk),
                _f.slot.in_(some),
            )
            found |= {
                (key, slot): sha256
                for key, slot, sha256 in feed.session.execute(query)
                if (key, slot) in slots
            }
    return found


_ABSENT = ("missing_hour", "constituency_missing", "silent_feed")


def _beside_it(
    feed: _Feed, owner: uuid.UUID | None, finding: Finding, files: Files
) -> list[dict[str, Any]]:
    """The files around what a finding of one constituency is about."""
    if owner is None or owner not in feed.deliveries.owners:
        return []
    return [
        {"slot": slot, "sha256": files[owner, slot], "lines": []}
        for slot in _beside(feed, owner, finding)
        if (owner, slot) in files
    ]


def _proved(
    feed: _Feed, owner: uuid.UUID | None, finding: Finding, told: list[dict[str, Any]]
) -> Finding:
    """Add what was looked at: the time, here and in UTC, the files, and how much of it is here."""
    slots = _slots_named(feed, owner, finding)
    hours = [
        feed.deliveries.hours[slot].delivered for slot in slots if slot in feed.deliveries.hours
    ]
    share = sum(hours) / max(1, len(slots) * len(feed.owners)) if owner is None and slots else 1.0
    return proved_by_files(
        finding,
        feed.contract(owner),
        slots=slots,
        shift=feed.shift(owner),
        zone=feed.zone(owner),
        files=told,
        coverage=0.0 if finding.rule in _ABSENT else round(min(1.0, share), 3),
    )


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


def _in_two_contracts(session: Session) -> Iterator[tuple[None, Finding]]:
    """Keys end with the hash of the transaction's id and begin with that of the contract."""
    t = transaction.c
    whole = cast(t.id, String) if is_postgresql(session) else type_coerce(t.id, String)
    ending = func.substr(whole, 9)
    # Whether one of them is withdrawn stands in the rows: these ask for nothing but an index.
    again = select(ending).group_by(ending).having(func.count() > 1)
    if session.scalar(again.limit(1)) is None:
        return
    by_tx: dict[str, list[AnyRow]] = {}
    twice = session.scalars(select(t.id).where(ending.in_(again)).order_by(t.id)).all()
    for chunk in chunks(twice):
        query = select(t.tx_id, t.timestamp, constituency.c.contract_id).join(
            constituency, constituency.c.id == t.constituency_id
        )
        for row in session.execute(query.where(t.id.in_(chunk), t.status != WITHDRAWN)):
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
    feed = _Feed(session, held, Kept())
    feed.refresh()
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
