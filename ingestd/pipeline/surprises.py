"""Surprises: the statistical rules, from the figures of a group of votings to findings in words.

Each rule is a pure function of a `Group` and its `Figures`. What a rule says is unexpected under
a model of the peers, with the chance of it; it never says why.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np

from ingestd.pipeline import levels
from ingestd.pipeline.levels import Twins
from ingestd.pipeline.peers import (
    BLOCK_HOURS,
    Expectation,
    Flags,
    Fleet,
    Floats,
    Ints,
    blocks,
    chance_of,
    expect,
    in_words,
    likely,
)
from ingestd.pipeline.rules import MOST_LISTED, RULESET, Finding, Severity
from ingestd.pipeline.rules.base import many as number_of
from ingestd.pipeline.touched import start_of

RULES = (
    "night_surge",
    "peer_outlier",
    "region_correlated",
    "rejected_share",
    "sustained_shift",
    "unusual_drop",
    "unusual_spike",
)
LEAST_PEERS = 8
_DAY = 24
_NIGHT = range(6)  # local hours
_CRITICAL_BALLOTS, _CRITICAL_SHARE = 20.0, 0.01
_DROP_BALLOTS, _DROP_SHARE = 20.0, 0.02
_LITTLE_EVIDENCE = 100  # voters
_FULLY = 0.99

Series = Literal["bulletins", "votes"]
_VERB = {"bulletins": "bulletins were issued", "votes": "votes were cast"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Votings of one length on one date, by constituency (sorted by contract) and hour of vote."""

    ids: Sequence[uuid.UUID]
    contracts: Sequence[str]
    names: Sequence[str]
    fleet: Fleet
    region_names: Sequence[str]
    starts: Ints  # UTC hour since the epoch of hour of vote 0
    first_hour: int  # the local hour of hour of vote 0
    counts: Mapping[str, Floats]
    is_provisional: Flags  # an hour up to this one is not here in full
    coverage: Floats
    elections: Sequence[str]
    limits: Mapping[str, Floats]  # thresholds by constituency
    zones: Mapping[int, ZoneInfo] = field(default_factory=dict)  # where the settings name one

    def utc(self, one: int, hour: int) -> datetime:
        """When an hour of vote begins."""
        return datetime.fromtimestamp((int(self.starts[one]) + hour) * 3600, UTC)

    def local(self, one: int, hour: int) -> datetime:
        """The same by the clock of the place; of an unknown zone, it opens at `first_hour`."""
        if known := self.zones.get(one):
            return self.utc(one, hour).astimezone(known)
        offset = (self.first_hour - int(self.starts[one])) % _DAY
        zone = timezone(timedelta(hours=offset - _DAY if offset > _DAY * 5 // 8 else offset))
        return self.utc(one, hour).astimezone(zone)

    def peers(self, one: int, hour: int) -> int:
        """How many others of the region are known in an hour."""
        mine = self.fleet.region == self.fleet.region[one]
        return int((mine & self.fleet.known[:, hour]).sum()) - 1

    def compared_with(self, one: int, hour: int) -> str:
        """Who the peers are, in words: those of the region, of a pool of small ones, or all."""
        number = self.peers(one, hour)
        if number < 1:
            others = int(self.fleet.known[:, hour].sum()) - 1
            return f"{number_of(others, 'constituency', 'constituencies')} of other regions"
        if self.region_names[self.fleet.region[one]]:
            return f"{number_of(number, 'peer')} in the region"
        return f"{number_of(number, 'peer')} in small regions that opened in the same hour"

    def where(self, one: int) -> str:
        """Where the peers are, for a share of theirs."""
        is_region = self.region_names[self.fleet.region[one]]
        return "in its region" if is_region else "among its peers"

    def clock_hours(self) -> Ints:
        """The local hour of the clock by constituency and hour of vote."""
        opens = np.full(len(self.starts), self.first_hour, np.int64)
        for one in self.zones:
            opens[one] = self.local(one, 0).hour
        return np.asarray((opens[:, None] + np.arange(self.fleet.known.shape[1])) % _DAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything that is computed of a group."""

    bulletins: Expectation
    votes: Expectation
    blocks: tuple[Floats, Floats, Floats]
    turnout: Mapping[int, tuple[Floats, Floats, Floats]]  # by the last hour of each day
    uncast: Mapping[int, tuple[Floats, Floats, Floats]]
    lag: tuple[Floats, Floats]
    twins: Sequence[Twins]
    regions: tuple[Floats, Floats, Floats]
    enough: Flags  # (hours,): are there peers to compare with?


@dataclass(frozen=True, slots=True)
class Surprise:
    """A finding about a constituency of the group (None: about a region) and where to look."""

    one: int | None
    finding: Finding
    hours: tuple[int, ...]
    series: Series | None


def figures_of(group: Group) -> Figures:
    """Compute everything that the rules and the tables show."""
    fleet, counts = group.fleet, group.counts
    bulletins, votes = expect(counts["bulletins"], fleet), expect(counts["votes"], fleet)
    enough = fleet.known.sum(axis=0) > LEAST_PEERS
    for series in (bulletins, votes):
        series.z[:, ~enough] = np.nan
    by_block = blocks(counts["bulletins"], bulletins, fleet.known & enough[None, :])
    issued = np.cumsum(np.where(fleet.known, counts["bulletins"], 0.0), axis=1)
    cast = np.cumsum(np.where(fleet.known, counts["votes"], 0.0), axis=1)
    sound = Fleet(fleet.roll, fleet.region, fleet.known & ~group.is_provisional)
    ends = [hour for hour in _day_ends(group) if enough[hour]]
    return Figures(
        bulletins=bulletins,
        votes=votes,
        blocks=by_block,
        turnout={hour: levels.turnout(issued, sound, hour) for hour in ends},
        uncast={hour: levels.uncast(issued, cast, sound, hour) for hour in ends},
        lag=levels.lag(counts["bulletins"], counts["votes"], fleet),
        twins=levels.twins(counts["bulletins"], fleet, _territories(group), group.elections),
        regions=levels.regions(counts["bulletins"], fleet, bulletins.rate),
        enough=enough,
    )


def _day_ends(group: Group) -> Iterator[int]:
    """The last hour of vote of each day: to 20:00 local, and the very last."""
    hours = group.fleet.known.shape[1]
    yield from (hour for hour in range(11, hours, _DAY))
    if (hours - 12) % _DAY:
        yield hours - 1


def _territories(group: Group) -> list[str]:
    return [
        f"{region}|{start}" if group.region_names[region] else ""
        for region, start in zip(group.fleet.region, group.starts, strict=True)
    ]


def scores(group: Group, figures: Figures) -> Floats:
    """anomaly_score of each constituency by its statistical families; nan while there are none."""
    both = np.concatenate([figures.bulletins.z, figures.votes.z], axis=1)
    families = [levels.family(both), levels.family(figures.blocks[2])]
    if figures.turnout:
        chances = np.array([chance for _, _, chance in figures.turnout.values()]).T
        t = np.array([t for _, t, _ in figures.turnout.values()]).T
        families.append(levels.family(np.where(np.isnan(t), np.nan, levels.z_of_chance(chances))))
        families.append(levels.family(np.array([z for _, _, z in figures.uncast.values()]).T))
    families.append(levels.family(figures.lag[1]))
    if figures.twins:
        families.append(_twin_family(group, figures))
    return levels.score(families)


def _twin_family(group: Group, figures: Figures) -> Floats:
    t = np.full(group.fleet.known.shape, np.nan)
    for pair in figures.twins:
        for one in (pair.one, pair.other):
            t[one] = np.fmax(np.nan_to_num(t[one]), np.abs(np.nan_to_num(pair.t)))
    return levels.family(t)


def find(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Run every statistical rule."""
    yield from spikes(group, figures)
    yield from drops(group, figures)
    yield from shifts(group, figures)
    yield from outlying_regions(group, figures)
    yield from outlying_levels(group, figures)
    yield from outlying_lag(group, figures)
    yield from parted_twins(group, figures)
    yield from refusals(group, figures)


# The rules of hours -------------------------------------------------------------------------


def spikes(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours far above what the peers make likely: z ≥ 4.3 and at least 5 above.

    By day `unusual_spike`, in the local hours 00 to 06 `night_surge`. Critical from z ≥ 6 and
    max(20, 1 % of the roll) above. Bulletins and votes are two series of one alert.
    """
    limits = group.limits
    is_night = np.isin(group.clock_hours(), _NIGHT)
    critical = np.maximum(_CRITICAL_BALLOTS, _CRITICAL_SHARE * group.fleet.roll)[:, None]
    for rule, hours in (("unusual_spike", ~is_night), ("night_surge", is_night)):
        flags: dict[Series, Flags] = {}
        worst = np.zeros(group.fleet.known.shape, bool)
        for name, series in _series(figures):
            more = limits["votes_z_more"] if name == "votes" else 0.0
            above = group.counts[name] - series.mu
            z = np.nan_to_num(series.z)
            flags[name] = (
                (z >= (limits["spike_z"] + more)[:, None])
                & (above >= limits["least_off"][:, None])
                & hours
            )
            sure = (z >= limits["spike_z_critical"][:, None]) & (above >= critical)
            worst |= flags[name] & sure
        yield from _episodes(rule, group, figures, flags, worst)


def drops(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours far below: z ≤ −4.5, at least 5 below, and max(20, 2 %) of the voters left."""
    limits = group.limits
    flags: dict[Series, Flags] = {}
    for name, series in _series(figures):
        counts = np.where(group.fleet.known, group.counts[name], 0.0)
        left = group.fleet.roll[:, None] - np.cumsum(counts, axis=1) + counts
        more = limits["votes_z_more"] if name == "votes" else 0.0
        flags[name] = (
            (np.nan_to_num(series.z) <= -(limits["drop_z"] + more)[:, None])
            & (series.mu - group.counts[name] >= limits["least_off"][:, None])
            & (left >= np.maximum(_DROP_BALLOTS, _DROP_SHARE * group.fleet.roll)[:, None])
        )
    none = np.zeros(group.fleet.known.shape, bool)
    yield from _episodes("unusual_drop", group, figures, flags, none)


def _series(figures: Figures) -> tuple[tuple[Series, Expectation], ...]:
    return ("bulletins", figures.bulletins), ("votes", figures.votes)


def _episodes(
    rule: str,
    group: Group,
    figures: Figures,
    flags: Mapping[Series, Flags],
    is_critical: Flags,
) -> Iterator[Surprise]:
    """Fold consecutive hours of one constituency into one alert; its subject is the first hour."""
    found = flags["bulletins"] | flags["votes"]
    for one in np.flatnonzero(found.any(axis=1)).tolist():
        for run in _runs(found[one]):
            yield _episode(
                rule,
                group,
                figures,
                int(one),
                run,
                severity="critical" if is_critical[one, run].any() else "warning",
                flags=flags,
            )


def _runs(flags: Flags) -> Iterator[list[int]]:
    """Places that follow each other: what lasts is one finding."""
    places = np.flatnonzero(flags)
    if len(places):
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            yield [int(place) for place in run]


def _worst(hours: Sequence[int], values: Floats) -> int:
    """The hour that is farthest off; of several the first."""
    return max(hours, key=lambda hour: (float(values[hour]), -hour))


def _lasted(hours: Sequence[int]) -> str:
    return f" This went on for {len(hours)} hours." if len(hours) > 1 else ""


def _episode(  # noqa: PLR0913 - one alert has this many sides
    rule: str,
    group: Group,
    figures: Figures,
    one: int,
    hours: list[int],
    *,
    severity: Severity,
    flags: Mapping[Series, Flags],
) -> Surprise:
    cells = [
        (abs(float(series.z[one, hour])), name, series, hour)
        for name, series in _series(figures)
        for hour in hours
        if flags[name][one, hour]
    ]
    _, name, series, hour = max(cells, key=lambda cell: (cell[1] == "bulletins", cell[0], -cell[3]))
    low, high = likely(float(series.mu[one, hour]), float(series.phi[one, hour]))
    seen, z = int(group.counts[name][one, hour]), float(series.z[one, hour])
    what = {"unusual_drop": "few", "night_surge": "many by night"}.get(rule, "many")
    listed = [
        {
            "hour": _iso(group.utc(one, at)),
            **{key: _cell(group, each, key, one, at) for key, each in _series(figures)},
        }
        for at in hours
    ]
    limit = "drop_z" if rule == "unusual_drop" else "spike_z"
    finding = _finding(
        rule,
        group,
        one,
        hours,
        subject=_iso(group.utc(one, hours[0])),
        severity=severity,
        title=f"Unusually {what}: {seen} {name} at {_span(group, one, hour, hour)}",
        description=(
            f"At {_span(group, one, hour, hour)} local, {seen} {_VERB[name]}; "
            f"{_its(group.compared_with(one, hour))} make {low} to {high} likely. "
            f"By chance: {in_words(chance_of(z))} of such hours." + _lasted(hours)
        ),
        causes=_CAUSES[rule],
        figures={
            "series": name,
            "worst_hour": _iso(group.utc(one, hour)),
            "observed": seen,
            "expected": round(float(series.mu[one, hour]), 1),
            "likely": [low, high],
            "statistic": {"z": round(z, 2), "phi": round(float(series.phi[one, hour]), 4)},
            "threshold": {"z": round(float(group.limits[limit][one]), 2)},
            "peers": group.peers(one, hour),
            "benjamini_hochberg_q": _q_of(series, z),
            "hours": listed,
        },
        # Of a drop, one more hour is more; of anything else, one more ballot.
        weight=len(hours)
        if rule == "unusual_drop"
        else int(sum(group.counts[key][one, hours].sum() for key in ("bulletins", "votes"))),
    )
    return Surprise(one, finding, tuple(hours), name)


def _cell(
    group: Group, series: Expectation, name: str, one: int, hour: int
) -> dict[str, float | int]:
    return {
        "observed": int(group.counts[name][one, hour]),
        "expected": round(float(series.mu[one, hour]), 1),
        "z": round(float(series.z[one, hour]), 2),
    }


def _q_of(series: Expectation, z: float) -> float:
    """The share of false findings among all at least as far off (Benjamini and Hochberg 1995)."""
    all_z = series.z[~np.isnan(series.z)]
    as_far = max(1, int((np.abs(all_z) >= abs(z)).sum()))
    return float(f"{min(1.0, 2 * chance_of(z) * len(all_z) / as_far):.2g}")


def shifts(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find six-hour blocks off the constituency's slow level (discount 0.95 per hour)."""
    seen, mu, z = figures.blocks
    limits = group.limits
    last = group.fleet.known.shape[1] - 1
    far = np.abs(np.nan_to_num(z)) >= limits["shift_z"][:, None]
    far &= np.abs(seen - mu) >= limits["least_off"][:, None]
    left = group.fleet.roll - group.counts["bulletins"].sum(axis=1)
    far &= (z > 0) | (left >= np.maximum(_DROP_BALLOTS, _DROP_SHARE * group.fleet.roll))[:, None]
    for one in np.flatnonzero(far.any(axis=1)).tolist():
        for way in (z[one] > 0, z[one] < 0):
            for run in _runs(far[one] & way):
                hours = [
                    hour
                    for hour in range(run[0] * BLOCK_HOURS, (run[-1] + 1) * BLOCK_HOURS)
                    if hour <= last and group.fleet.known[one, hour]
                ]
                yield _shift(group, figures, int(one), run, hours)


def _shift(group: Group, figures: Figures, one: int, run: list[int], hours: list[int]) -> Surprise:
    seen, mu, z = figures.blocks
    block = _worst(run, np.abs(z[one]))
    many, likely_mu, off = int(seen[one, block]), float(mu[one, block]), float(z[one, block])
    since, until = (
        block * BLOCK_HOURS,
        min((block + 1) * BLOCK_HOURS, group.fleet.known.shape[1]) - 1,
    )
    finding = _finding(
        "sustained_shift",
        group,
        one,
        hours,
        subject=_iso(group.utc(one, run[0] * BLOCK_HOURS)),
        severity="warning",
        title=f"Six hours off its own level: {many} bulletins, {likely_mu:.0f} expected",
        description=(
            f"From {_span(group, one, since, until)} local, {many} bulletins were "
            f"issued; its own level so far and its peers make about {likely_mu:.0f} likely. "
            f"By chance: {in_words(chance_of(off))} of such blocks."
            + (f" This went on for {len(run)} such blocks." if len(run) > 1 else "")
        ),
        causes=_CAUSES["sustained_shift"],
        figures={
            "series": "bulletins",
            "worst_hour": _iso(group.utc(one, since)),
            "observed": many,
            "expected": round(likely_mu, 1),
            "statistic": {"z": round(off, 2)},
            "threshold": {"z": round(float(group.limits["shift_z"][one]), 2)},
            "hours": [
                {
                    "hour": _iso(group.utc(one, each * BLOCK_HOURS)),
                    "observed": int(seen[one, each]),
                    "expected": round(float(mu[one, each]), 1),
                    "z": round(float(z[one, each]), 2),
                }
                for each in run
            ],
        },
        weight=int(seen[one, run].sum()) if off > 0 else len(run),
        of="more" if off > 0 else "fewer",
    )
    return Surprise(one, finding, tuple(hours), "bulletins")


# The rules of regions and levels ------------------------------------------------------------


def outlying_regions(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours of a region far above the other regions (t ≥ 5.5); half of all together: info."""
    t = figures.regions[2]
    limits = np.full(len(t), np.inf)
    np.minimum.at(limits, group.fleet.region, group.limits["region_t"])
    far = np.nan_to_num(t) >= limits[:, None]
    is_national = 2 * far.sum(axis=0) >= (~np.isnan(t)).sum(axis=0)
    for region in np.flatnonzero(far.any(axis=1)).tolist():
        for run in _runs(far[region]):
            yield _region(group, figures, int(region), run, is_national, float(limits[region]))


def _region(
    group: Group,
    figures: Figures,
    region: int,
    run: list[int],
    is_national: Flags,
    limit: float,
) -> Surprise:
    seen, mu, t = figures.regions
    members = np.flatnonzero(group.fleet.region == region)
    one, hour = int(members[0]), _worst(run, t[region])
    name = group.region_names[region] or "a region without a name"
    finding = _finding(
        "region_correlated",
        group,
        one,
        run,
        subject=_subject_of_region(group, region, one, run[0]),
        severity="info" if is_national[run].all() else "warning",
        title=f"{name} as a whole: {int(seen[region, hour])} bulletins in an hour",
        description=(
            f"At {_span(group, one, hour, hour)} local, {int(seen[region, hour])} bulletins "
            f"were issued in {name}; the other regions make about {mu[region, hour]:.0f} "
            f"likely. The whole region moved, not one constituency." + _lasted(run)
        ),
        causes=_CAUSES["region_correlated"],
        figures={
            "series": "bulletins",
            "worst_hour": _iso(group.utc(one, hour)),
            "observed": int(seen[region, hour]),
            "expected": round(float(mu[region, hour]), 1),
            "statistic": {"t": round(float(t[region, hour]), 2)},
            "threshold": {"t": limit},
            "regions_together": int((t[:, hour] >= limit).sum()),
            "constituencies": len(members),
            "contracts": [group.contracts[each] for each in members[:MOST_LISTED]],
            "hours": [
                {
                    "hour": _iso(group.utc(one, each)),
                    "observed": int(seen[region, each]),
                    "expected": round(float(mu[region, each]), 1),
                    "t": round(float(t[region, each]), 2),
                }
                for each in run
            ],
        },
        weight=int(seen[region, run].sum()),
        whose=members,
        of=_region_name(group, region, one),
    )
    return Surprise(None, finding, tuple(run), None)


def _subject_of_region(group: Group, region: int, one: int, hour: int) -> str:
    """Tell a region's hour from all others: pooled ones have no name, and groups share names."""
    return f"{_region_name(group, region, one)}:{_iso(group.utc(one, hour))}"


def _region_name(group: Group, region: int, one: int) -> str:
    """Name a region of one group: another may have as many days and begin on another date."""
    days = -(-group.fleet.known.shape[1] // _DAY)
    name = group.region_names[region] or f"opened {_iso(group.utc(one, 0))}"
    first = start_of((int(group.starts[one]) + _DAY // 2) // _DAY * _DAY)  # as `fleet.grouped`
    return f"{name}:{first:%Y-%m-%d}:{days}"


def outlying_levels(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find turnout and uncast bulletins, at each day's end, far off the region's."""
    limits = group.limits
    for hour, (median, t, chance) in figures.turnout.items():
        issued = np.where(group.fleet.known, group.counts["bulletins"], 0.0)[:, : hour + 1]
        for one in np.flatnonzero(chance < limits["turnout_chance"]).tolist():
            share = float(issued[one].sum() / max(group.fleet.roll[one], 1.0))
            yield _level(
                group,
                int(one),
                hour,
                "turnout",
                title=f"Turnout of {share:.1%}, {median[one]:.1%} {group.where(one)}",
                description=(
                    f"Up to {_clock(group, one, hour + 1)} local, bulletins were issued to "
                    f"{share:.1%} of the roll; half of "
                    f"{_its(group.compared_with(one, hour))} are below {median[one]:.1%}. "
                    f"By chance: {in_words(float(chance[one]))} of such constituencies."
                ),
                figures={
                    "observed": round(share, 4),
                    "expected": round(float(median[one]), 4),
                    "statistic": {"t": round(float(t[one]), 2)},
                    "threshold": {"chance": float(limits["turnout_chance"][one])},
                },
                weight=1,
            )
    for hour, (left, mu, z) in figures.uncast.items():
        far = np.abs(np.nan_to_num(z)) >= limits["uncast_z"]
        for one in np.flatnonzero(far & (np.abs(left - mu) >= limits["uncast_least"])).tolist():
            yield _level(
                group,
                int(one),
                hour,
                "uncast",
                title=f"{int(left[one])} bulletins without a vote, {mu[one]:.0f} expected",
                description=(
                    f"Up to {_clock(group, one, hour + 1)} local, {int(left[one])} bulletins were "
                    f"issued and not cast; by the share of its peers {mu[one]:.0f} are likely. "
                    f"By chance: {in_words(chance_of(float(z[one])))} of such constituencies."
                ),
                figures={
                    "observed": int(left[one]),
                    "expected": round(float(mu[one]), 1),
                    "statistic": {"z": round(float(z[one]), 2)},
                    "threshold": {"z": float(limits["uncast_z"][one])},
                },
                weight=int(left[one]) if z[one] > 0 else 1,
            )


def _level(  # noqa: PLR0913 - one alert has this many sides
    group: Group,
    one: int,
    hour: int,
    kind: str,
    *,
    title: str,
    description: str,
    figures: dict[str, Any],
    weight: int,
) -> Surprise:
    finding = _finding(
        "peer_outlier",
        group,
        one,
        [hour],
        subject=f"{kind}:{_iso(group.utc(one, hour + 1))}",
        severity="warning",
        title=title,
        description=description,
        causes=_CAUSES[kind],
        figures={"kind": kind, "worst_hour": _iso(group.utc(one, hour)), **figures},
        weight=weight,
        of=kind,
    )
    return Surprise(one, finding, (hour,), None)


def outlying_lag(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours with more votes than the bulletins of this and the last hour account for.

    Bulletins that lack their votes are seen at the day's end, when these have had time to come.
    """
    mu, z = figures.lag
    far = np.nan_to_num(z) >= group.limits["lag_z"][:, None]
    far &= group.counts["votes"] - mu >= group.limits["least_off"][:, None]
    far &= figures.enough[None, :]
    for one in np.flatnonzero(far.any(axis=1)).tolist():
        for run in _runs(far[one]):
            yield _lag(group, figures, int(one), run)


def _lag(group: Group, figures: Figures, one: int, run: list[int]) -> Surprise:
    mu, z = figures.lag
    hour = _worst(run, z[one])
    votes, issued = (int(group.counts[name][one, hour]) for name in ("votes", "bulletins"))
    finding = _finding(
        "peer_outlier",
        group,
        one,
        run,
        subject=f"lag:{_iso(group.utc(one, run[0]))}",
        severity="warning",
        title=f"{votes} votes to {issued} bulletins in an hour",
        description=(
            f"At {_span(group, one, hour, hour)} local, {votes} votes were cast; by the "
            f"{issued} bulletins of this hour and those of the hour before, "
            f"{mu[one, hour]:.0f} are likely. "
            f"By chance: {in_words(chance_of(float(z[one, hour])))} of such hours." + _lasted(run)
        ),
        causes=_CAUSES["lag"],
        figures={
            "kind": "lag",
            "series": "votes",
            "worst_hour": _iso(group.utc(one, hour)),
            "observed": votes,
            "expected": round(float(mu[one, hour]), 1),
            "statistic": {"z": round(float(z[one, hour]), 2)},
            "threshold": {"z": float(group.limits["lag_z"][one])},
            "hours": [
                {
                    "hour": _iso(group.utc(one, each)),
                    "observed": int(group.counts["votes"][one, each]),
                    "expected": round(float(mu[one, each]), 1),
                    "z": round(float(z[one, each]), 2),
                }
                for each in run
            ],
        },
        weight=int(group.counts["votes"][one, run].sum()),
        of="lag",
    )
    return Surprise(one, finding, tuple(run), "votes")


def parted_twins(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours in which two ballots of one territory were not issued together."""
    for pair in figures.twins:
        limit = float(group.limits["twin_t"][pair.one])
        t = np.nan_to_num(pair.t)
        for flags, one, other in (
            (t >= limit, pair.one, pair.other),
            (t <= -limit, pair.other, pair.one),
        ):
            for run in _runs(flags):
                yield _parted(group, np.abs(t), one, other, run, limit)


def _parted(
    group: Group, t: Floats, one: int, other: int, run: list[int], limit: float
) -> Surprise:
    issued = group.counts["bulletins"]
    hour = _worst(run, t)
    more, fewer = int(issued[one, hour]), int(issued[other, hour])
    finding = _finding(
        "peer_outlier",
        group,
        one,
        run,
        subject=f"twin:{_iso(group.utc(one, run[0]))}:{group.ids[other]}",
        severity="warning",
        title=f"{more} bulletins here, {fewer} of the same voters' other ballot",
        description=(
            f"At {_span(group, one, hour, hour)} local, {more} bulletins were issued, and "
            f"{fewer} of the other ballot of the same territory "
            f"({group.names[other]}); the two go together in other hours. "
            f"By chance: {in_words(chance_of(float(t[hour])))} of such hours." + _lasted(run)
        ),
        causes=_CAUSES["twin"],
        figures={
            "kind": "twin",
            "series": "bulletins",
            "worst_hour": _iso(group.utc(one, hour)),
            "observed": more,
            "expected": fewer,
            "twin": str(group.ids[other]),
            "twin_contract": group.contracts[other],
            "statistic": {"t": round(float(t[hour]), 2)},
            "threshold": {"t": limit},
            "hours": [
                {
                    "hour": _iso(group.utc(one, each)),
                    "observed": int(issued[one, each]),
                    "expected": int(issued[other, each]),
                    "t": round(float(t[each]), 2),
                }
                for each in run
            ],
        },
        weight=int((issued[one, run] - issued[other, run]).sum()),
        of=f"twin:{group.ids[other]}",
    )
    return Surprise(one, finding, tuple(run), "bulletins")


def refusals(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours in which many ballots were rejected.

    At least 5, and Wilson's 99.9 % lower bound above max(1 %, 3 × the region's share).
    """
    limits = group.limits
    for kept, refused, said in (
        ("votes", "votes_rejected", "votes"),
        ("bulletins", "issues_rejected", "requests for a bulletin"),
    ):
        some = group.counts[refused]
        whole = group.counts[kept] + some
        usual = levels.share_of_others(some, whole, group.fleet)
        bound = levels.refused_bound(some, whole)
        line = np.maximum(
            limits["rejected_share"][:, None], limits["rejected_times"][:, None] * usual
        )
        far = group.fleet.known & figures.enough[None, :]
        far &= (some >= limits["rejected_least"][:, None]) & (bound > line)
        for one in np.flatnonzero(far.any(axis=1)).tolist():
            for run in _runs(far[one]):
                told = _Refused(refused, said, some[one], whole[one], usual[one], bound[one])
                yield _refused(group, int(one), run, told, line[one])


@dataclass(frozen=True, slots=True)
class _Refused:
    """Rejected ballots of one constituency by hour, and what is usual in its region."""

    series: str
    said: str
    some: Floats
    whole: Floats
    usual: Floats
    bound: Floats


def _refused(group: Group, one: int, run: list[int], told: _Refused, line: Floats) -> Surprise:
    hour = _worst(run, told.bound - line)
    number, of = int(told.some[hour]), int(told.whole[hour])
    finding = _finding(
        "rejected_share",
        group,
        one,
        run,
        subject=f"{told.series}:{_iso(group.utc(one, run[0]))}",
        severity="warning",
        title=f"{number} of {of} {told.said} rejected in an hour",
        description=(
            f"At {_span(group, one, hour, hour)} local, {number} of {of} {told.said} were "
            f"rejected; {group.where(one)} {told.usual[hour]:.1%} is usual." + _lasted(run)
        ),
        causes=_CAUSES["rejected_share"],
        figures={
            "series": told.series,
            "worst_hour": _iso(group.utc(one, hour)),
            "observed": number,
            "of": of,
            "expected": round(float(told.usual[hour]) * of, 1),
            "statistic": {"lower_bound": round(float(told.bound[hour]), 4)},
            "threshold": {"share": round(float(line[hour]), 4)},
            "hours": [
                {
                    "hour": _iso(group.utc(one, each)),
                    "observed": int(told.some[each]),
                    "of": int(told.whole[each]),
                    "lower_bound": round(float(told.bound[each]), 4),
                }
                for each in run
            ],
        },
        weight=int(told.some[run].sum()),
        of=told.series,
    )
    return Surprise(one, finding, tuple(run), None)


# Words --------------------------------------------------------------------------------------

_CAUSES: dict[str, list[str]] = {
    "unusual_spike": [
        "a reminder, a local event or news brought voters at once",
        "the service was slow before and caught up",
        "an employer or a school let its people vote together",
        "the voters list grew",
    ],
    "night_surge": [
        "the service was down in the evening and caught up",
        "shift workers, or voters in another time zone",
        "clocks of the senders were wrong",
    ],
    "unusual_drop": [
        "the service did not work for these voters",
        "a file of this hour is here only in part",
        "nearly all who wanted to vote had voted",
    ],
    "sustained_shift": [
        "a local event that lasted for hours",
        "a campaign among these voters",
        "the service worked worse, or better, than elsewhere",
    ],
    "region_correlated": [
        "a reminder, a holiday or an event in this region",
        "the service did not work in this region before and caught up",
    ],
    "turnout": ["the voters list is not complete, or too long", "a very unlike electorate"],
    "uncast": ["voters gave up between the two steps", "files with votes are missing"],
    "lag": [
        "the service was slow between the two steps and caught up",
        "clocks of the senders were wrong",
    ],
    "twin": [
        "one of the two ballots could not be issued for a while",
        "the two rolls are alike by chance and are not of the same voters",
    ],
    "rejected_share": [
        "a fault of the service or of an app",
        "voters who tried again",
    ],
}


def _finding(  # noqa: PLR0913 - one alert has this many sides
    rule: str,
    group: Group,
    one: int,
    hours: list[int],
    *,
    subject: str,
    severity: Severity,
    title: str,
    description: str,
    causes: list[str],
    figures: dict[str, Any],
    weight: int,
    whose: Ints | None = None,
    of: str = "",
) -> Finding:
    """Put a finding together; what every statistical rule tells stands here.

    `whose` are the constituencies of a finding about several. `weight` is made of their own
    counts only: what peers deliver late must not open again what a person has decided. `of` tells
    the rule's several episodes at one time from each other.
    """
    first, last = hours[0], hours[-1]
    about = np.array([one]) if whose is None else whose
    cells = np.ix_(about, np.array(hours))
    is_provisional = bool(group.is_provisional[cells].any())
    usual = f" Usual causes: {'; '.join(causes)}."
    lacks = "this constituency" if whose is None else "this region"
    note = f" Provisional: files of {lacks} are missing." if is_provisional else ""
    roll = float(group.fleet.roll[about].sum())
    is_small = roll < _LITTLE_EVIDENCE
    window = [_iso(group.utc(one, first)), _iso(group.utc(one, last + 1))]
    details = {
        "ruleset": RULESET,
        "scope": group.region_names[int(group.fleet.region[one])] or "all",
        "window": {
            "utc": window,
            "local": [
                group.local(one, first).isoformat(timespec="minutes"),
                group.local(one, last + 1).isoformat(timespec="minutes"),
            ],
        },
        "coverage": round(float(group.coverage[cells].mean()), 3),
        "is_provisional": is_provisional,
        "little_evidence_possible": bool(is_small),
        "roll": int(roll),
        **figures,
        "episode": {"of": of, "first": window[0], "last": _iso(group.utc(one, last))},
        "benign_causes": causes,
    }
    return Finding(
        rule=rule,
        subject=subject,
        severity=severity,
        title=title,
        description=f"{description}{usual}{note}",
        details=details,
        detected_at=group.utc(one, last + 1),
        weight=weight,
    )


def _its(peers: str) -> str:
    """`its 41 peers in the region`, but not `its 60 constituencies of other regions`."""
    return f"its {peers}" if " peer" in peers else peers


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}"


def _clock(group: Group, one: int, hour: int) -> str:
    return f"{group.local(one, hour):%d %b %H:%M}"


def _span(group: Group, one: int, first: int, last: int) -> str:
    return f"{group.local(one, first):%H:%M}–{group.local(one, last + 1):%H:%M}"
