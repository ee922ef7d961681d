"""Fleet: from what the tables hold to groups of comparable votings, and which hours are closed.

Pure functions on arrays; the evaluator reads the tables, this module says what they mean.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from ingestd.pipeline.peers import Flags, Fleet, Floats, Ints
from ingestd.pipeline.slot import WHOLE
from ingestd.pipeline.surprises import Group

COUNTED = ("bulletins", "votes", "votes_rejected", "issues_rejected")
STATUSES = ("open", "closed", "provisional", "missing")
OPEN, CLOSED, PROVISIONAL, MISSING = range(4)
_DAY = 24
_SMALL_REGION = 15
_USUAL_TURNOUT = 0.9
_WATERMARK_SHARE, _WATERMARK_HOURS = 0.9, 2
_FURTHEST_SHIFT = 14  # hours between the clock of file names and UTC
_FULLY = 0.99
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FAR = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Voting:
    """One constituency as its row tells of it; hours are UTC hours since the epoch."""

    id: uuid.UUID
    contract_id: str
    name: str
    region: str  # code, and "" where it is unknown
    region_name: str
    election: str
    election_type: str
    roll: int | None
    start: int | None
    end: int | None
    zone: str | None = None


@dataclass(slots=True)
class Rows:
    """The hours of one constituency that are in the table, sorted, and what its files cover."""

    hours: Ints
    counts: Floats  # (hours, COUNTED)
    cumulative: Floats  # (hours, 2)
    told: Floats  # (hours, the evaluator's columns), as they stand
    status: Ints
    is_empty: Flags
    # What files cover, by the hours of their names.
    named: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    share: Floats = field(default_factory=lambda: np.zeros(0))
    ballots: Floats = field(default_factory=lambda: np.zeros(0))
    has_whole: bool = False
    has_slotless: bool = False
    has_empty_file: bool = False


class Told(NamedTuple):
    """What a current file covers."""

    slot: str | None
    is_cumulative: bool
    ballots: int
    rows: int


@lru_cache(maxsize=100_000)
def hours_of_slot(slot: str) -> tuple[tuple[int, float], ...]:
    """The hours that a slot covers, as named, with the share of each."""
    day, _, clock = slot.partition("_")
    first = (date.fromisoformat(day).toordinal() - _EPOCH_DAY) * _DAY * 60
    since, until = 0, _DAY * 60
    if clock:
        since, until = (int(part[:2]) * 60 + int(part[2:]) for part in clock.split("-"))
        until += _DAY * 60 if until <= since else 0
    since, until = first + since, first + until
    return tuple(
        (hour, (min(until, 60 * hour + 60) - max(since, 60 * hour)) / 60)
        for hour in range(since // 60, -(-until // 60))
    )


def cover(rows: Rows, files: Iterable[Told]) -> None:
    """Note what the current files of a constituency cover."""
    named: list[tuple[int, float, float]] = []
    rows.has_whole = rows.has_slotless = rows.has_empty_file = False
    for slot, is_cumulative, ballots, number in files:
        rows.has_empty_file |= slot is not None and not is_cumulative and number == 0
        if slot is None:
            rows.has_slotless = True
        elif slot == WHOLE:
            rows.has_whole = True
        else:
            told = 0 if is_cumulative else ballots
            hours = hours_of_slot(slot)
            named += [(hour, share, told if hour == hours[0][0] else 0) for hour, share in hours]
    rows.named = np.array([hour for hour, _, _ in named], np.int64)
    rows.share = np.array([share for _, share, _ in named])
    rows.ballots = np.array([told for _, _, told in named], np.float64)


def shift_of(rows: Sequence[Rows]) -> int | None:
    """How many hours the clock of the file names is before UTC; None where no ballot tells.

    The shift by which the ballots that files brought, by the hour of the name, lie best on those
    of the hours by the senders' clocks (format: the zone of names is not known).
    """
    named = _profile([(one.named, one.ballots) for one in rows])
    counted = _profile([(one.hours, one.counts[:, :2].sum(axis=1)) for one in rows])
    if not named or not counted:
        return None
    overlap = {
        shift: sum(min(number, counted.get(hour - shift, 0.0)) for hour, number in named.items())
        for shift in range(-_FURTHEST_SHIFT, _FURTHEST_SHIFT + 1)
    }
    best = max(overlap.values())
    likely = [shift for shift, number in overlap.items() if number == best]
    return min(likely, key=lambda shift: (abs(shift), shift)) if best > 0 else None


def _profile(parts: Sequence[tuple[Ints, Floats]]) -> dict[int, float]:
    hours = np.concatenate([hours for hours, _ in parts] or [np.zeros(0, np.int64)])
    numbers = np.concatenate([numbers for _, numbers in parts] or [np.zeros(0)])
    keys, place = np.unique(hours, return_inverse=True)
    sums = np.bincount(place, numbers, len(keys)) if len(keys) else np.zeros(0)
    return {int(key): float(number) for key, number in zip(keys, sums, strict=True) if number > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When a voting is: its first UTC hour, and how many hours."""

    start: int
    hours: int


def windows(votings: Sequence[Voting], *, usual_hours: int) -> dict[uuid.UUID, Window]:
    """The window of each voting; where the chain does not tell it, that of most in its region."""
    starts: dict[str, Counter[int]] = {}
    fleet: Counter[int] = Counter()
    lengths: Counter[int] = Counter()
    for voting in votings:
        if voting.start is not None:
            starts.setdefault(voting.region, Counter())[voting.start] += 1
            fleet[voting.start] += 1
            if voting.end is not None and voting.end > voting.start:
                lengths[voting.end - voting.start] += 1
    usual = _most(lengths)
    found = {}
    for voting in votings:
        start = voting.start
        if start is None:
            start = _most(starts.get(voting.region, fleet))
        if start is None:
            continue
        length = usual or usual_hours
        if voting.end is not None and voting.end > start:
            length = voting.end - start
        found[voting.id] = Window(start=start, hours=min(length, _DAY * 14))
    return found


def _most(counted: Counter[int]) -> int | None:
    return min(counted, key=lambda key: (-counted[key], key)) if counted else None


def hour_near(moment: datetime | None) -> int | None:
    """The UTC hour that a moment of the protocol means: a start at 08:00:05 is one at 08:00."""
    return None if moment is None else round(moment.timestamp() / 3600)


def grouped(votings: Sequence[Voting], spans: Mapping[uuid.UUID, Window]) -> list[list[Voting]]:
    """Votings that may be compared: of the same number of days, begun on the same local date."""
    groups: dict[tuple[int, int], list[Voting]] = {}
    for voting in votings:
        if span := spans.get(voting.id):
            days = max(1, -(-span.hours // _DAY))
            groups.setdefault((days, (span.start + 12) // _DAY), []).append(voting)
    return [
        sorted(group, key=lambda voting: voting.contract_id) for _, group in sorted(groups.items())
    ]


def regions_of(
    votings: Sequence[Voting], spans: Mapping[uuid.UUID, Window]
) -> tuple[Ints, list[str]]:
    """Number the regions; those under 15 constituencies are pooled by time zone."""
    sizes = Counter(voting.region for voting in votings)
    names = [
        (voting.region, voting.region_name or voting.region)
        if voting.region and sizes[voting.region] >= _SMALL_REGION
        else (f"start {spans[voting.id].start}", "")
        for voting in votings
    ]
    numbers = {key: number for number, key in enumerate(sorted({key for key, _ in names}))}
    told = dict(sorted(names, reverse=True))  # of several spellings the first in order
    return np.array([numbers[key] for key, _ in names], np.int64), [told[key] for key in numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What is here of a group of votings, by constituency and hour of vote."""

    coverage: Floats
    is_closed: Flags
    is_provisional: Flags
    inside: Flags  # the hour is one of this voting


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyHours:
    """For each constituency: does its source publish empty hours, else how few are no gap?"""

    are_published: Flags
    least_expected: Floats


def delivered(
    coverage: Floats,
    lengths: Ints,
    starts: Ints,
    region: Ints,
    *,
    empty: EmptyHours,
    ballots: Floats | None = None,
) -> Delivered:
    """Say which hours are closed, and which are not here in full.

    An hour of a region is closed when every slot up to it is here, or the watermark of the fleet
    (the greatest hour that 90 % of the constituencies have delivered) is two hours past it.
    Where the source has no files for empty hours, one without a file was empty, unless by the
    `ballots` of its others and of the others' hour more than a few were to come.
    """
    size, hours = coverage.shape
    inside = np.arange(hours)[None, :] < lengths[:, None]
    is_here = (coverage > 0) | ~inside
    up_to = np.logical_and.accumulate(is_here, axis=1)
    all_here = np.ones((int(region.max(initial=-1)) + 1, hours), bool)
    np.logical_and.at(all_here, region, up_to)
    any_here = np.where((coverage > 0) & inside, np.arange(hours)[None, :], -_FAR).max(
        axis=1, initial=-_FAR
    )
    # Who has delivered the last hour holds nobody up, though the clock elsewhere goes on.
    greatest = np.where(any_here >= lengths - 1, _FAR, starts + any_here)
    rank = int(np.ceil(_WATERMARK_SHARE * size)) - 1
    watermark = int(np.sort(greatest)[::-1][rank]) if size else -_FAR
    past = starts[:, None] + np.arange(hours)[None, :] + _WATERMARK_HOURS <= watermark
    is_closed = inside & (all_here[region] | past)
    if not empty.are_published.all():
        is_empty = is_closed & (coverage == 0) & ~empty.are_published[:, None]
        if ballots is not None:
            is_empty &= _expected(ballots, coverage) < empty.least_expected[:, None]
        coverage = np.where(is_empty, 1.0, coverage)
    full = np.logical_and.accumulate((coverage >= _FULLY) | ~inside, axis=1)
    return Delivered(
        coverage=coverage, is_closed=is_closed, is_provisional=~full & inside, inside=inside
    )


def _expected(ballots: Floats, coverage: Floats) -> Floats:
    """Ballots of each cell, if its constituency's share of the hour is what it is of the others."""
    here = np.where(coverage > 0, ballots, 0.0)
    by_hour = here.sum(axis=0)
    rest = np.maximum(here.sum() - by_hour, 1.0)
    return np.asarray(here.sum(axis=1)[:, None] * (by_hour / rest)[None, :])


def assemble(  # noqa: PLR0913 - a group has this many sides
    votings: Sequence[Voting],
    spans: Mapping[uuid.UUID, Window],
    counts: Mapping[str, Floats],
    here: Delivered,
    region: tuple[Ints, list[str]],
    *,
    limits: Mapping[str, Floats],
    first_hour: int,
) -> Group:
    """Put a group of votings together for the rules."""
    known = here.is_closed & (here.coverage >= _FULLY)
    known.setflags(write=True)
    issued = counts["bulletins"].sum(axis=1)
    roll = np.array([float(voting.roll or 0) for voting in votings])
    # Unknown rolls are estimated; one that was not loaded in full is at least what it issued to.
    roll = np.where(roll > 0, np.maximum(roll, issued), np.ceil(issued / _USUAL_TURNOUT))
    fleet = Fleet(roll=roll, region=region[0], known=known & (roll > 0)[:, None])
    return Group(
        ids=[voting.id for voting in votings],
        contracts=[voting.contract_id for voting in votings],
        names=[voting.name or voting.contract_id for voting in votings],
        fleet=fleet,
        region_names=region[1],
        starts=np.array([spans[voting.id].start for voting in votings], np.int64),
        first_hour=first_hour,
        zones={
            number: ZoneInfo(voting.zone) for number, voting in enumerate(votings) if voting.zone
        },
        counts=counts,
        is_provisional=here.is_provisional,
        coverage=here.coverage,
        elections=[voting.election for voting in votings],
        limits=limits,
    )
