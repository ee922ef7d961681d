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
from ingestd.pipeline.rules import RULESET, Finding, Severity
from ingestd.pipeline.rules.base import many as number_of

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
    """Find hours far above what the peers make likely: z ≥ 4.5 and at least 5 above.

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
        hours = np.flatnonzero(found[one])
        for run in np.split(hours, np.flatnonzero(np.diff(hours) > 1) + 1):
            yield _episode(
                rule,
                group,
                figures,
                int(one),
                [int(hour) for hour in run],
                severity="critical" if is_critical[one, run].any() else "warning",
                flags=flags,
            )


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
            f"By chance: {in_words(chance_of(z))} of such hours."
            + (f" This went on for {len(hours)} hours." if len(hours) > 1 else "")
        ),
        causes=_CAUSES[rule],
        figures={
            "series": name,
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
    for one, block in np.argwhere(far).tolist():
        hours = list(range(block * BLOCK_HOURS, min(last, block * BLOCK_HOURS + 5) + 1))
        hours = [hour for hour in hours if group.fleet.known[one, hour]]
        many, likely_mu, off = int(seen[one, block]), float(mu[one, block]), float(z[one, block])
        finding = _finding(
            "sustained_shift",
            group,
            int(one),
            hours,
            subject=_iso(group.utc(one, int(block) * BLOCK_HOURS)),
            severity="warning",
            title=f"Six hours off its own level: {many} bulletins, {likely_mu:.0f} expected",
            description=(
                f"From {_span(group, one, hours[0], hours[-1])} local, {many} bulletins were "
                f"issued; its own level so far and its peers make about {likely_mu:.0f} likely. "
                f"By chance: {in_words(chance_of(off))} of such blocks."
            ),
            causes=_CAUSES["sustained_shift"],
            figures={
                "series": "bulletins",
                "observed": many,
                "expected": round(likely_mu, 1),
                "statistic": {"z": round(off, 2)},
                "threshold": {"z": round(float(limits["shift_z"][one]), 2)},
            },
            weight=many if off > 0 else 1,
        )
        yield Surprise(int(one), finding, tuple(hours), "bulletins")


# The rules of regions and levels ------------------------------------------------------------


def outlying_regions(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours of a region far above the other regions (t ≥ 5.5); half of all together: info."""
    seen, mu, t = figures.regions
    limits = np.full(len(t), np.inf)
    np.minimum.at(limits, group.fleet.region, group.limits["region_t"])
    far = np.nan_to_num(t) >= limits[:, None]
    for region, hour in np.argwhere(far).tolist():
        one = int(np.flatnonzero(group.fleet.region == region)[0])
        name = group.region_names[region] or "a region without a name"
        limit = float(limits[region])
        together = int(far[:, hour].sum())
        is_national = 2 * together >= int((~np.isnan(t[:, hour])).sum())
        members = np.flatnonzero(group.fleet.region == region)
        finding = _finding(
            "region_correlated",
            group,
            one,
            [int(hour)],
            subject=_subject_of_region(group, region, one, hour),
            severity="info" if is_national else "warning",
            title=f"{name} as a whole: {int(seen[region, hour])} bulletins in an hour",
            description=(
                f"At {_span(group, one, hour, hour)} local, {int(seen[region, hour])} bulletins "
                f"were issued in {name}; the other regions make about {mu[region, hour]:.0f} "
                f"likely. The whole region moved, not one constituency."
            ),
            causes=_CAUSES["region_correlated"],
            figures={
                "series": "bulletins",
                "observed": int(seen[region, hour]),
                "expected": round(float(mu[region, hour]), 1),
                "statistic": {"t": round(float(t[region, hour]), 2)},
                "threshold": {"t": limit},
                "regions_together": together,
                "constituencies": len(members),
            },
            weight=int(seen[region, hour]),
            whose=members,
        )
        yield Surprise(None, finding, (int(hour),), None)


def _subject_of_region(group: Group, region: int, one: int, hour: int) -> str:
    """Tell a region's hour from all others: pooled ones have no name, and groups share names."""
    days = -(-group.fleet.known.shape[1] // _DAY)
    name = group.region_names[region] or f"opened {_iso(group.utc(one, 0))}"
    return f"{name}:{days}:{_iso(group.utc(one, hour))}"


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
        figures={"kind": kind, **figures},
        weight=weight,
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
    for one, hour in np.argwhere(far).tolist():
        votes, issued = (int(group.counts[name][one, hour]) for name in ("votes", "bulletins"))
        finding = _finding(
            "peer_outlier",
            group,
            int(one),
            [int(hour)],
            subject=f"lag:{_iso(group.utc(one, hour))}",
            severity="warning",
            title=f"{votes} votes to {issued} bulletins in an hour",
            description=(
                f"At {_span(group, one, hour, hour)} local, {votes} votes were cast; by the "
                f"{issued} bulletins of this hour and those of the hour before, "
                f"{mu[one, hour]:.0f} are likely. "
                f"By chance: {in_words(chance_of(float(z[one, hour])))} of such hours."
            ),
            causes=_CAUSES["lag"],
            figures={
                "kind": "lag",
                "series": "votes",
                "observed": votes,
                "expected": round(float(mu[one, hour]), 1),
                "statistic": {"z": round(float(z[one, hour]), 2)},
                "threshold": {"z": float(group.limits["lag_z"][one])},
            },
            weight=votes,
        )
        yield Surprise(int(one), finding, (int(hour),), "votes")


def parted_twins(group: Group, figures: Figures) -> Iterator[Surprise]:
    """Find hours in which two ballots of one territory were not issued together."""
    for pair in figures.twins:
        limit = float(group.limits["twin_t"][pair.one])
        for hour in np.flatnonzero(np.abs(np.nan_to_num(pair.t)) >= limit).tolist():
            t = float(pair.t[hour])
            one, other = (pair.one, pair.other) if t > 0 else (pair.other, pair.one)
            more, fewer = (int(group.counts["bulletins"][each, hour]) for each in (one, other))
            finding = _finding(
                "peer_outlier",
                group,
                one,
                [int(hour)],
                subject=f"twin:{_iso(group.utc(one, hour))}:{group.ids[other]}",
                severity="warning",
                title=f"{more} bulletins here, {fewer} of the same voters' other ballot",
                description=(
                    f"At {_span(group, one, hour, hour)} local, {more} bulletins were issued, and "
                    f"{fewer} of the other ballot of the same territory "
                    f"({group.names[other]}); the two go together in other hours. "
                    f"By chance: {in_words(chance_of(t))} of such hours."
                ),
                causes=_CAUSES["twin"],
                figures={
                    "kind": "twin",
                    "series": "bulletins",
                    "observed": more,
                    "expected": fewer,
                    "twin": str(group.ids[other]),
                    "statistic": {"t": round(abs(t), 2)},
                    "threshold": {"t": limit},
                },
                weight=more - fewer,
            )
            yield Surprise(one, finding, (int(hour),), "bulletins")


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
        for one, hour in np.argwhere(far).tolist():
            number, of = int(some[one, hour]), int(whole[one, hour])
            finding = _finding(
                "rejected_share",
                group,
                int(one),
                [int(hour)],
                subject=f"{refused}:{_iso(group.utc(one, hour))}",
                severity="warning",
                title=f"{number} of {of} {said} rejected in an hour",
                description=(
                    f"At {_span(group, one, hour, hour)} local, {number} of {of} {said} were "
                    f"rejected; {group.where(one)} {usual[one, hour]:.1%} is usual."
                ),
                causes=_CAUSES["rejected_share"],
                figures={
                    "series": refused,
                    "observed": number,
                    "of": of,
                    "expected": round(float(usual[one, hour]) * of, 1),
                    "statistic": {"lower_bound": round(float(bound[one, hour]), 4)},
                    "threshold": {"share": round(float(line[one, hour]), 4)},
                },
                weight=number,
            )
            yield Surprise(int(one), finding, (int(hour),), None)


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
) -> Finding:
    """Put a finding together; what every statistical rule tells stands here.

    `whose` are the constituencies of a finding about several. `weight` is made of their own
    counts only: what peers deliver late must not open again what a person has decided.
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
    details = {
        "ruleset": RULESET,
        "scope": group.region_names[int(group.fleet.region[one])] or "all",
        "window": {
            "utc": [_iso(group.utc(one, first)), _iso(group.utc(one, last + 1))],
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
