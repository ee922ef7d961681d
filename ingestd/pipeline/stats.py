"""Rolling up: hours, slots and constituency totals, recounted from `transaction`.

Nothing is ever added up blindly: what a file touched is counted again, so
late, repeated, rolled back and withdrawn rows come out right in any order.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from sqlalchemy import (
    ColumnElement,
    Insert,
    ScalarSelect,
    Select,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, is_postgresql
from ingestd.elections import Elections
from ingestd.models import (
    Alert,
    Constituency,
    Election,
    EvaluationDue,
    FileProcessing,
    HourlyStats,
    table_of,
)
from ingestd.pipeline.prepared import Prepared
from ingestd.pipeline.sightings import FileRef
from ingestd.pipeline.slot import Place
from ingestd.pipeline.touched import (
    ON_CHAIN,
    ROLLED_BACK,
    Touched,
    bounds,
    chunks,
    hour_of,
    insert_missing,
    spans_of,
    start_of,
    transaction,
    within,
)
from ingestd.pipeline.validate import constituency_prefix, voter_keys

_NAMES = uuid.UUID("0b5d4bb3-58a0-5b0e-8f0e-5f2b0d1c9a42")
_COUNTED = {
    "bulletin": "bulletins_issued",
    "vote": "votes_cast",
    "vote_rejected": "votes_rejected",
    "issue_rejected": "issues_rejected",
}
_LISTED = {"list_added": "list_added", "list_removed": "list_removed"}
_COUNTS = (
    "bulletins_issued",
    "votes_cast",
    "votes_rejected",
    "issues_rejected",
    "revotes",
    "rolled_back",
    "list_added",
    "list_removed",
    "transaction_count",
)
_YEARS = range(MINYEAR + 1, MAXYEAR)
_NOTHING_KNOWN = Elections()
_PROTOCOL = ("createContract", "startVoting", "finishVoting", "results")
hourly = table_of(HourlyStats)
ledgered = table_of(FileProcessing)
on_chain = transaction.c.status.in_(ON_CHAIN)


@dataclass(frozen=True, slots=True)
class Revote:
    """The accepted on-chain votes of one sender key, oldest first; more than one of them."""

    sender: str
    votes: tuple[tuple[datetime, str], ...]


def constituency_id_of(contract_id: str) -> uuid.UUID:
    """UUIDv5 of the contract id."""
    return uuid.uuid5(_NAMES, f"contract|{contract_id}")


def ensure_constituency(
    session: Session,
    contract_id: str,
    places: Iterable[Place],
    known: Elections = _NOTHING_KNOWN,
) -> uuid.UUID:
    """Create a constituency when it is first seen; complete its names when a path tells them.

    Where several paths tell, the smallest in sort order wins; what is `known` of elections wins
    over all of them.
    """
    key = constituency_id_of(contract_id)
    constituency = session.get(Constituency, key)
    if constituency is None:
        insert_missing(session, table_of(Constituency), [{"id": key, "contract_id": contract_id}])
        constituency = session.get_one(Constituency, key)
        if contract_id in known.contracts:
            _name(session, constituency, None, known)
    for place in places:
        if constituency.named_by is None or place.path < constituency.named_by:
            _name(session, constituency, place, known)
    return key


def ensure_constituencies(
    session: Session,
    places: Mapping[str, Sequence[Place]],
    known: Elections = _NOTHING_KNOWN,
) -> None:
    """Do the same for many contracts; one question says that there is nothing to do for most."""
    keys = {constituency_id_of(contract_id): contract_id for contract_id in places}
    named = select(Constituency.id, Constituency.named_by).where(Constituency.id.in_(keys))
    here = {row.id: row.named_by for row in session.execute(named)}
    # In one order for all processes, or two of them would wait for each other.
    for key in sorted(keys):
        told = places[keys[key]]
        named_by = here.get(key)
        tells_more = any(named_by is None or place.path < named_by for place in told)
        if key not in here or tells_more:
            ensure_constituency(session, keys[key], told, known)


_DUE = insert(table_of(EvaluationDue))


def mark_due(session: Session, constituency_id: uuid.UUID, *, is_anew: bool = False) -> None:
    """Let the evaluator know, in the same commit, that a constituency's peers must be looked at.

    `is_anew`: what its own rules are held to has changed, so they look at all of it again.
    """
    mark = {"id": uuid.uuid4(), "constituency_id": constituency_id, "is_anew": is_anew}
    session.connection().execute(_DUE, mark)


def has_due(session: Session) -> bool:
    """Say whether anything waits for the evaluator."""
    return session.scalar(select(EvaluationDue.id).limit(1)) is not None


def number_due(session: Session) -> int:
    """How many commits wait for the evaluator."""
    return session.scalar(select(func.count()).select_from(EvaluationDue)) or 0


def _name(
    session: Session, constituency: Constituency, place: Place | None, known: Elections
) -> None:
    constituency.named_by = place.path if place else None
    constituency.region_code = place.region_code if place else None
    constituency.region_name = place.region_name if place else None
    constituency.name = place.constituency if place else None
    former = constituency.election_id, constituency.timezone
    told = place.election if place else None
    move_to(session, constituency, known.contracts.get(constituency.contract_id, told), known)
    # What was judged before belonged elsewhere, where other thresholds may hold.
    has_moved = former != (constituency.election_id, constituency.timezone)
    had_rows = constituency.last_activity is not None
    mark_due(session, constituency.id, is_anew=has_moved and had_rows)


def describe(election: Election, known: Elections) -> None:
    """Let an election be what a person says of it."""
    told = known.get(election.name)
    election.type = told.type if told else None
    election.country = told.country if told else None
    election.timezone = told.timezone if told else None
    election.start_date = told.moment(told.starts) if told else None
    election.end_date = told.moment(told.ends) if told else None


def move_to(
    session: Session, constituency: Constituency, name: str | None, known: Elections
) -> None:
    """Let a constituency belong to the election of this name; one that nobody needs goes."""
    former = constituency.election_id
    constituency.election_id = None
    constituency.timezone = known.zone_of(name, constituency.region_code)
    if name:
        key = uuid.uuid5(_NAMES, f"election|{name}")
        if session.get(Election, key) is None:
            insert_missing(session, table_of(Election), [{"id": key, "name": name}])
            if known.get(name):
                describe(session.get_one(Election, key), known)
        constituency.election_id = key
    session.flush()
    if former and former != constituency.election_id:
        is_used = session.scalar(
            select(Constituency.id).where(Constituency.election_id == former).limit(1)
        )
        if is_used is None:
            session.execute(delete(Election).where(Election.id == former))


def named_by(session: Session, constituency_id: uuid.UUID) -> str | None:
    """The path that gave a constituency its names."""
    return session.scalar(select(Constituency.named_by).where(Constituency.id == constituency_id))


def name_anew(
    session: Session,
    constituency_id: uuid.UUID,
    places: Iterable[Place],
    known: Elections = _NOTHING_KNOWN,
) -> None:
    """Forget the names of a constituency, and take those that `places` tell."""
    constituency = session.get_one(Constituency, constituency_id)
    place = min(places, key=lambda place: place.path, default=None)
    _name(session, constituency, place, known)


def drop_if_unused(session: Session, constituency_id: uuid.UUID) -> None:
    """Delete a constituency that no file tells of; one with an alert stays, for its history."""
    for model in (FileProcessing, Alert):
        column = table_of(model).c.constituency_id
        if session.scalar(select(column).where(column == constituency_id).limit(1)):
            return
    constituency = session.get(Constituency, constituency_id)
    if constituency is not None:
        _name(session, constituency, None, _NOTHING_KNOWN)
        session.execute(delete(HourlyStats).where(HourlyStats.constituency_id == constituency_id))
        session.delete(constituency)


def everything(session: Session, constituency_id: uuid.UUID) -> Touched:
    """All hours and slots of a constituency: those with transactions, and those with counts."""
    hour = _hour_text(is_on_postgresql=is_postgresql(session)).label("hour")
    mine = select(hour).where(transaction.c.constituency_id == constituency_id).distinct()
    touched = all_counted(session, constituency_id)
    touched.hours |= {_hour_from(text) for text in session.scalars(mine)}
    return touched


def all_counted(session: Session, constituency_id: uuid.UUID) -> Touched:
    """All hours and slots of a constituency whose counts are up to date."""
    counted = select(hourly.c.hour).where(hourly.c.constituency_id == constituency_id)
    hours = {hour_of(moment) for moment in session.scalars(counted)}
    slots = session.scalars(
        select(FileProcessing.slot)
        .where(
            FileProcessing.constituency_id == constituency_id,
            FileProcessing.is_cumulative.is_(False),
            FileProcessing.slot.is_not(None),
        )
        .distinct()
    )
    return Touched(hours, {slot for slot in slots if slot})


def hours_of_file(session: Session, constituency_id: uuid.UUID, file_id: uuid.UUID) -> set[int]:
    """The hours in which rows of a file stand, whatever its job says; reads all rows."""
    t = transaction.c
    hour = _hour_text(is_on_postgresql=is_postgresql(session)).label("hour")
    mine = select(hour).where(t.constituency_id == constituency_id, t.file_id == file_id)
    return {_hour_from(text) for text in session.scalars(mine.distinct())}


def totals_of(session: Session, constituency_id: uuid.UUID) -> dict[str, int | None]:
    """The totals of a constituency as they stand."""
    names = ("registered_voters", "bulletins_issued", "votes_cast", "votes_rejected")
    c = Constituency
    query = select(*(getattr(c, name) for name in names)).where(c.id == constituency_id)
    return dict(session.execute(query).one()._asdict())


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledUp:
    """What a constituency comes to now, for the rules; `sums` over all its hours."""

    sums: Mapping[str, int]
    revotes: Sequence[Revote]
    is_revote_blocked: bool | None
    last_activity: datetime | None
    # Whether what was touched can have changed anything but ballots.
    has_operations: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


def roll_up(
    session: Session,
    constituency_id: uuid.UUID,
    touched: Touched,
    *,
    only_new: FileRef | None = None,
) -> RolledUp:
    """Recount what was touched; `revotes` are those found around the touched hours.

    `only_new` is a file that alone tells of its slot and brought nothing but transactions that
    nobody knew: where no others than ballots stand in its hours, none but ballots were touched.
    """
    hours, revotes = revotes_around(session, constituency_id, touched.hours)
    counted, are_ballots = _count_hours(session, constituency_id, hours, revotes)
    sums = _write_hours(session, constituency_id, hours, counted)
    mark_due(session, constituency_id)
    _count_slots(session, constituency_id, touched, only_new)
    has_operations = only_new is None or not are_ballots
    facts = _total(session, constituency_id, sums, has_operations=has_operations)
    return RolledUp(
        has_operations=has_operations,
        sums=sums,
        revotes=revotes,
        is_revote_blocked=facts["is_revote_blocked"],
        last_activity=facts["last_activity"],
        facts=facts,
    )


def revotes_around(
    session: Session, constituency_id: uuid.UUID, hours: set[int]
) -> tuple[set[int], list[Revote]]:
    """Find senders with several votes; their other hours are touched with this one."""
    groups = _votes_of_repeated_senders(session, constituency_id, hours)
    further = hours | {hour_of(row.timestamp) for group in _among(groups, hours) for row in group}
    if further != hours and len(hours) <= _FEW_HOURS:
        groups = _votes_of_repeated_senders(session, constituency_id, further)
    groups = _among(groups, further)
    revotes = []
    for group in groups:
        accepted = [row for row in group if row.status == "accepted" and row.tally == "vote"]
        votes = tuple(sorted((row.timestamp, row.tx_id) for row in accepted))
        if len(votes) > 1:
            revotes.append(Revote(group[0].sender, votes))
    return further, sorted(revotes, key=lambda revote: revote.sender)


def _votes_of_repeated_senders(
    session: Session, constituency_id: uuid.UUID, hours: set[int]
) -> list[list[AnyRow]]:
    """Group the votes (any status) of every sender with a vote in `hours` and more than one.

    Where they are many hours, all such senders of the constituency come.
    """
    spans = spans_of(hours)
    rows: Iterable[AnyRow]
    if len(hours) > _FEW_HOURS:
        # A file of a whole voting: one pass over the index instead of a probe for each vote.
        rows = _votes_repeated_in_range(session, constituency_id)
    else:
        rows = _repeated_votes(len(spans)).all(session, bounds(constituency_id, spans))
    groups: dict[str, list[AnyRow]] = {}
    for row in rows:
        if row.constituency_id == constituency_id:
            groups.setdefault(row.sender, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _among(groups: Iterable[list[AnyRow]], hours: set[int]) -> list[list[AnyRow]]:
    """Keep the groups with a vote in one of these hours."""
    return [group for group in groups if any(hour_of(row.timestamp) in hours for row in group)]


_FEW_HOURS = 6


def _votes_repeated_in_range(session: Session, constituency_id: uuid.UUID) -> Iterator[AnyRow]:
    """The votes whose keys a constituency has more than once, by two statements.

    In one, a database that knows nothing of the constituency yet may look for all keys anew at
    each of its votes.
    """
    contract_id = session.scalar(
        select(Constituency.contract_id).where(Constituency.id == constituency_id)
    )
    low, high = voter_keys(constituency_prefix(str(contract_id)))
    for keys in chunks(session.scalars(_REPEATED_IN_RANGE, {"low": low, "high": high}).all()):
        yield from session.execute(_VOTES.where(transaction.c.voter_key.in_(keys)))


# By its key alone, for the same reason: which constituency a vote is of is looked at afterwards.
_VOTES = select(
    *(
        transaction.c[name]
        for name in ("constituency_id", "sender", "timestamp", "tx_id", "status", "tally")
    )
)


def _repeated_keys(which: ColumnElement[bool]) -> Select[AnyRow]:
    key = transaction.c.voter_key
    return select(key).where(which).group_by(key).having(func.count() > 1)


_REPEATED_IN_RANGE = _repeated_keys(
    transaction.c.voter_key.between(bindparam("low"), bindparam("high"))
)


@cache
def _repeated_votes(spans: int) -> Prepared:
    t = transaction.c
    in_hours = select(t.voter_key).where(within(spans), t.voter_key.is_not(None))
    repeated = _repeated_keys(t.voter_key.in_(in_hours))
    return Prepared(_VOTES.where(t.voter_key.in_(repeated)))


def _hour_text(*, is_on_postgresql: bool) -> ColumnElement[str]:
    """The hour of a transaction as 'YYYY-MM-DD HH' in UTC, in the database's own words."""
    if is_on_postgresql:
        return func.to_char(func.timezone("UTC", transaction.c.timestamp), "YYYY-MM-DD HH24")
    return func.substr(transaction.c.timestamp, 1, 13)


def _hour_from(text: str) -> int:
    return hour_of(datetime.strptime(text, "%Y-%m-%d %H").replace(tzinfo=UTC))


@cache
def _numbers_by_hour(spans: int, *, is_on_postgresql: bool) -> Prepared:
    t = transaction.c
    hour = _hour_text(is_on_postgresql=is_on_postgresql).label("hour")
    return Prepared(
        select(hour, t.tally, t.status, func.count().label("number"))
        .where(within(spans))
        .group_by(hour, t.tally, t.status)
    )


@cache
def _listed_by_hour(spans: int, *, is_on_postgresql: bool) -> Select[AnyRow]:
    t = transaction.c
    hour = _hour_text(is_on_postgresql=is_on_postgresql).label("hour")
    return (
        select(hour, t.tally, func.sum(t.persons).label("persons"))
        .where(within(spans), t.tally.in_(_LISTED), on_chain)
        .group_by(hour, t.tally)
    )


def _count_hours(
    session: Session, constituency_id: uuid.UUID, hours: set[int], revotes: Sequence[Revote]
) -> tuple[dict[int, dict[str, int]], bool]:
    """Count the hours; says also whether nothing but ballots stands in them."""
    if not hours:
        return {}, True
    spans = spans_of(hours)
    where = bounds(constituency_id, spans)
    form: dict[str, Any] = {"spans": len(spans), "is_on_postgresql": is_postgresql(session)}
    counted: dict[int, dict[str, int]] = {}
    has_lists, are_ballots = False, True
    for row in _numbers_by_hour(**form).all(session, where):
        counts = counted.setdefault(_hour_from(row.hour), dict.fromkeys(_COUNTS, 0))
        has_lists = has_lists or row.tally in _LISTED
        are_ballots = are_ballots and row.tally in _COUNTED
        if row.status in ON_CHAIN:
            counts["transaction_count"] += row.number
            if row.tally in _COUNTED:
                counts[_COUNTED[row.tally]] += row.number
        elif row.status == ROLLED_BACK:
            counts["rolled_back"] += row.number
    for row in session.execute(_listed_by_hour(**form), where) if has_lists else ():
        counted[_hour_from(row.hour)][_LISTED[row.tally]] += int(row.persons or 0)
    for revote in revotes:
        for moment, _tx_id in revote.votes[1:]:
            if hour_of(moment) in counted:
                counted[hour_of(moment)]["revotes"] += 1
    return {hour: counts for hour, counts in counted.items() if hour in hours}, are_ballots


_HOURS_OF = Prepared(
    select(hourly)
    .where(hourly.c.constituency_id == bindparam("constituency"))
    .order_by(hourly.c.hour)
)
_CHANGE_HOUR = update(hourly).where(hourly.c.id == bindparam("key"))


@cache
def _new_hour(*, is_on_postgresql: bool) -> Insert:
    """Insert an hour, or fill the one that the evaluator made for it in this very moment."""
    dialect = postgresql if is_on_postgresql else sqlite
    new = dialect.insert(hourly)
    told = (*_COUNTS, "cumulative_bulletins", "cumulative_votes", "is_empty")
    changed: Insert = new.on_conflict_do_update(
        index_elements=["id"], set_={name: new.excluded[name] for name in told}
    )
    return changed


def _write_hours(
    session: Session,
    constituency_id: uuid.UUID,
    hours: set[int],
    counted: Mapping[int, dict[str, int]],
) -> dict[str, int]:
    """Replace the touched hours, carry the cumulative columns on through all later ones, add up."""
    rows = _HOURS_OF.all(session, {"constituency": constituency_id})
    kept = {hour_of(row.hour): row for row in rows}
    gone = [kept[hour].id for hour in hours & kept.keys() if hour not in counted]
    for chunk in chunks(gone):
        session.execute(delete(hourly).where(hourly.c.id.in_(chunk)))
    sums = dict.fromkeys(_COUNTS, 0)
    new: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    for hour in sorted((kept.keys() - hours) | counted.keys()):
        row = kept.get(hour)
        counts = counted.get(hour) or {name: getattr(row, name) for name in _COUNTS}
        for name in _COUNTS:
            sums[name] += counts[name]
        values = counts | {
            "cumulative_bulletins": sums["bulletins_issued"],
            "cumulative_votes": sums["votes_cast"],
            "is_empty": row is not None and row.is_empty and hour not in counted,
        }
        if row is None:
            key = uuid.uuid5(constituency_id, str(hour))
            place = {"id": key, "constituency_id": constituency_id, "hour": start_of(hour)}
            new.append(values | place | {"status": "open"})
        elif any(getattr(row, name) != value for name, value in values.items()):
            changed.append(values | {"key": row.id})
    if new:
        session.connection().execute(_new_hour(is_on_postgresql=is_postgresql(session)), new)
    if changed:
        session.connection().execute(_CHANGE_HOUR, changed)
    return sums


@cache
def _numbers_of_slot(spans: int) -> Prepared:
    t = transaction.c
    return Prepared(
        select(t.tally, func.count().label("number"))
        .where(
            within(spans),
            t.slot == bindparam("slot"),
            on_chain,
            t.tally.in_(("bulletin", "vote")),
        )
        .group_by(t.tally)
    )


_JOBS_OF_SLOT = select(ledgered.c.id, ledgered.c.touched).where(
    ledgered.c.constituency_id == bindparam("constituency"),
    ledgered.c.slot == bindparam("slot"),
    ledgered.c.is_cumulative.is_(False),
    ledgered.c.duplicate_of_id.is_(None),
)
_COUNT_SLOT = Prepared(update(ledgered).where(ledgered.c.id == bindparam("key")))


def _count_slots(
    session: Session, constituency_id: uuid.UUID, touched: Touched, only_new: FileRef | None
) -> None:
    """Recount the ballots whose first interval slot was touched; kept on the job there.

    A ballot of a slot may show the content that another file gave it, and so stand in an hour
    that the slot's own file never saw: the slot's jobs remember the hours touched with it.
    """
    for slot in sorted(touched.slots):
        whose = {"constituency": constituency_id, "slot": slot}
        own = Touched(set(touched.hours), {slot})
        if only_new and only_new.slot == slot:
            ids = [only_new.id]
        else:
            jobs = session.execute(_JOBS_OF_SLOT, whose).all()
            ids = [job.id for job in jobs]
            for job in jobs:
                own.update(Touched.from_json(job.touched))
        spans = spans_of(own.hours)
        where = bounds(constituency_id, spans) | whose
        counted = _numbers_of_slot(len(spans)).all(session, where)
        numbers = {row.tally: row.number for row in counted}
        found = {
            "slot_bulletins": numbers.get("bulletin", 0),
            "slot_votes": numbers.get("vote", 0),
            "touched": own.as_json(),
        }
        for key in ids:
            _COUNT_SLOT.change(session, found | {"key": key})


_SET_TOTALS = Prepared(
    update(table_of(Constituency)).where(table_of(Constituency).c.id == bindparam("key"))
)


def _total(
    session: Session,
    constituency_id: uuid.UUID,
    sums: Mapping[str, int],
    *,
    has_operations: bool,
) -> dict[str, Any]:
    """Write the totals of a constituency from its hours and its protocol rows; returns them.

    Unless it `has_operations` that may be new, what the protocol rows say is written already.
    """
    has_roll = bool(sums["list_added"] or sums["list_removed"])
    registered = sums["list_added"] - sums["list_removed"] if has_roll else None
    bulletins = sums["bulletins_issued"]
    (here,) = _EDGES.all(session, {"constituency": constituency_id})
    has_ballots = bulletins + sums["votes_cast"] > 0
    is_first = here.status == "inactive" and has_ballots
    if has_operations or is_first:
        told = protocol_facts(session, constituency_id, has_ballots=has_ballots)
    else:
        told = {name: getattr(here, name) for name in _TOLD}
    facts = {
        "bulletins_issued": bulletins,
        "votes_cast": sums["votes_cast"],
        "votes_rejected": sums["votes_rejected"],
        "registered_voters": registered,
        "participation_rate": bulletins / registered if registered and registered > 0 else None,
        "first_activity": here.first,
        "last_activity": here.last,
        **told,
    }
    _SET_TOTALS.change(session, facts | {"key": constituency_id})
    return facts


def _edge(order: ColumnElement[Any]) -> ScalarSelect[datetime]:
    t = transaction.c
    return (
        select(t.timestamp)
        .where(t.constituency_id == bindparam("constituency"), on_chain)
        .order_by(order)
        .limit(1)
        .scalar_subquery()
    )


# What the protocol rows told of a constituency.
_TOLD = (
    *("status", "is_revote_blocked", "voting_start", "voting_end"),
    *("dimension", "published_results"),
)
_EDGES = Prepared(
    select(
        _edge(transaction.c.timestamp.asc()).label("first"),
        _edge(transaction.c.timestamp.desc()).label("last"),
        *(getattr(Constituency, name) for name in _TOLD),
    ).where(Constituency.id == bindparam("constituency"))
)

# In the very words of the partial index: with parameters no database uses it.
NO_BALLOT = text("type NOT IN ('vote', 'blindSigIssue')")
_PROTOCOL_ROWS = (
    select(
        *(
            transaction.c[name]
            for name in ("type", "timestamp", "tx_id", "raw_data", "operation_data")
        )
    )
    # In no order: to have one, SQLite would take the index by time and read every ballot.
    .where(
        transaction.c.constituency_id == bindparam("constituency"),
        transaction.c.type.in_(_PROTOCOL),
        # Told to the planner once more: this is the small partial index.
        NO_BALLOT,
        transaction.c.status == "accepted",
    )
)


def protocol_facts(
    session: Session, constituency_id: uuid.UUID, *, has_ballots: bool
) -> dict[str, Any]:
    """Read what create, start, finish and results say; the later row (ts, id) has the last word."""
    facts: dict[str, Any] = {
        "status": "active" if has_ballots else "inactive",
        "dimension": None,
        "voting_start": None,
        "voting_end": None,
        "published_results": None,
        "is_revote_blocked": None,
    }
    rows = session.execute(_PROTOCOL_ROWS, {"constituency": constituency_id}).all()
    for row in sorted(rows, key=lambda row: (row.timestamp, row.tx_id)):
        facts |= facts_of(row)
    if has_ballots and None in (facts["voting_start"], facts["voting_end"]):
        for name, moment in planned_voting(session, constituency_id).items():
            facts[name] = facts[name] or moment
    return facts


_PLANNED = (
    select(Election.start_date, Election.end_date, Election.timezone, Constituency.timezone)
    .join(Constituency, Constituency.election_id == Election.id)
    .where(Constituency.id == bindparam("constituency"))
)


def planned_voting(session: Session, constituency_id: uuid.UUID) -> dict[str, datetime | None]:
    """When the settings say that the voting is, by the clock of the constituency's own zone."""
    row = session.execute(_PLANNED, {"constituency": constituency_id}).one_or_none()
    if row is None:
        return {}
    start, end, zone, own = row
    return {"voting_start": _moved(start, zone, own), "voting_end": _moved(end, zone, own)}


def _moved(moment: datetime | None, zone: str | None, own: str | None) -> datetime | None:
    """The moment at which the clock of another zone says the same."""
    if moment is None or zone is None or own in (None, zone):
        return moment
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=ZoneInfo(str(own))).astimezone(UTC)


def facts_of(row: AnyRow) -> dict[str, Any]:
    """Read what one create, start, finish or results row says."""
    params = {entry["key"]: _plain(entry) for entry in row.raw_data}
    base = next(
        (_parsed(_plain(entry)) for entry in row.operation_data if entry["key"] == "VOTING_BASE"),
        None,
    )
    told = params | (base if isinstance(base, dict) else {})
    facts: dict[str, Any] = {}
    if row.type == "results":
        facts["published_results"] = _list_in(params.get("results"))
        return facts
    dimension = _list_in(told.get("dimension"))
    if dimension is not None:
        facts["dimension"] = dimension
    if isinstance(told.get("isRevoteBlocked"), bool):
        facts["is_revote_blocked"] = told["isRevoteBlocked"]
    for name, key in (("voting_start", "dateStart"), ("voting_end", "dateEnd")):
        moment = _moment(told.get(key))
        if moment:
            facts[name] = moment
    if row.type == "startVoting":
        facts |= {"status": "active"}
        facts.setdefault("voting_start", row.timestamp)
    if row.type == "finishVoting":
        facts |= {"status": "completed"}
        facts.setdefault("voting_end", row.timestamp)
    return facts


def _plain(entry: Mapping[str, Any]) -> Any:
    return next((value for key, value in sorted(entry.items()) if key != "key"), None)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return None


def _list_in(value: Any) -> list[Any] | None:
    """Read a list that a database can keep: JSON in a string was not looked at with its row."""
    parsed = _parsed(value)
    try:
        text = orjson.dumps(parsed)  # refuses what is nested too deep
    except orjson.JSONEncodeError:
        return None
    return parsed if isinstance(parsed, list) and b"\\u0000" not in text else None


def _moment(value: Any) -> datetime | None:
    """Read 'dd-MM-yyyy HH:mm:ss', which is UTC, of a year that every time zone can name."""
    try:
        moment = datetime.strptime(str(value), "%d-%m-%Y %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return moment if moment.year in _YEARS else None
