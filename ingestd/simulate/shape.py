"""The statistics of a simulated election: who votes where, and how many in which hour.

The model and its parameters are those of the alert study (alerts.md §5). `hourly_shares.csv` is the
median over regions of fed2024_hourly_ballot_share_by_region_digitised.csv (60-hour votings), read
off a published plot, scaled to a sum of 1.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import UTC, datetime, time
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from .ids import base58_texts
from .plan import Plan

HOUR_MS = 3_600_000
AFFLICTED_ROLL = 300
SPARE_VOTERS = 150

REGIONS = (
    ("77", "Город Москва", 3),
    ("90", "Пермский край", 5),
    ("46", "Курская область", 3),
    ("41", "Камчатский край", 12),
    ("51", "Мурманская область", 3),
    ("54", "Новосибирская область", 7),
    ("39", "Калининградская область", 2),
    ("52", "Нижегородская область", 3),
    ("74", "Челябинская область", 5),
    ("25", "Приморский край", 10),
    ("36", "Воронежская область", 3),
    ("63", "Самарская область", 4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region with its code, its UTC offset in hours, and what all its constituencies share."""

    code: str
    name: str
    utc_offset: int
    turnout_effect: float
    hour_effect: NDArray[np.float64]
    cast_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Constituency:
    """One contract: its names, its roll, and the bulletins to issue in each hour of vote."""

    number: int
    contract: str
    region: Region
    election: str
    name: str
    roll: int
    options: int
    uik: int
    start_ms: int
    issues: NDArray[np.int64]

    @property
    def end_ms(self) -> int:
        """The end of the voting, ms since the epoch."""
        return self.start_ms + len(self.issues) * HOUR_MS


def generator(plan: Plan, *stream: int) -> np.random.Generator:
    """A stream of random numbers of its own for every (plan seed, purpose, …)."""
    return np.random.default_rng([plan.seed, *stream])


def draw_constituencies(
    plan: Plan, *, afflicted: frozenset[int], crowded: frozenset[int]
) -> list[Constituency]:
    """Draw the election.

    `afflicted` constituencies keep voters in reserve for the rows that defects add; in `crowded`
    ones the rest of the roll votes, so that few rows suffice to pass it.
    """
    rng = generator(plan, 1)
    profile = hourly_profile(plan.hours) * _reminders(rng, plan.hours)
    regions = [_draw_region(rng, plan, number) for number in range(plan.regions)]
    rolls = _draw_rolls(rng, plan)
    found = []
    for number, drawn in enumerate(rolls):
        region = regions[number % plan.regions]
        spare = SPARE_VOTERS if number in afflicted else min(3, drawn // 5)
        roll = max(drawn, AFFLICTED_ROLL) if number in afflicted else drawn
        turnout = 1.0 if number in crowded else _turnout(rng, region)
        ballots = min(round(roll * turnout), roll - spare)
        weights = profile * region.hour_effect * _own_hours(rng, plan.hours)
        found.append(
            Constituency(
                number=number,
                contract=base58_texts(rng, 1, 32)[0].decode(),
                region=region,
                election=f"Выборы депутатов думы, {region.name}",
                name=f"Округ №{number // plan.regions + 1}_{int(rng.integers(1, 9))}",
                roll=roll,
                options=int(rng.choice(plan.options)),
                uik=int(rng.integers(100, 9_999)),
                start_ms=_start_ms(plan, region),
                issues=rng.multinomial(ballots, weights / weights.sum()),
            )
        )
    return found


def hourly_profile(hours: int) -> NDArray[np.float64]:
    """Shares of the ballots by local hour of vote (0 = 08:00 of day 1), not scaled.

    Hours past the sample's 60 repeat its last day.
    """
    text = files(__package__).joinpath("hourly_shares.csv").read_text(encoding="utf-8")
    shares = [float(row["share"]) for row in csv.DictReader(text.splitlines())]
    while len(shares) < hours:
        shares += shares[-24:]
    return np.array(shares[:hours]) + 1e-6


def _draw_region(rng: np.random.Generator, plan: Plan, number: int) -> Region:
    code, name, offset = REGIONS[number % len(REGIONS)]
    turn = number // len(REGIONS)
    return Region(
        code=code if not turn else f"{100 * turn + int(code)}",
        name=name if not turn else f"{name} {turn + 1}",
        utc_offset=offset,
        turnout_effect=0.25 * rng.standard_normal(),
        hour_effect=np.exp(0.20 * _ar1(rng, plan.hours)),
        cast_share=float(np.clip(0.985 + 0.006 * rng.standard_normal(), 0.9, 1.0)),
    )


def _ar1(rng: np.random.Generator, hours: int, memory: float = 0.7) -> NDArray[np.float64]:
    noise = rng.standard_normal(hours)
    for hour in range(1, hours):
        noise[hour] = memory * noise[hour - 1] + (1 - memory**2) ** 0.5 * noise[hour]
    return noise


def _draw_rolls(rng: np.random.Generator, plan: Plan) -> list[int]:
    drawn = plan.voters_median * np.exp(
        plan.voters_sigma * rng.standard_normal(plan.constituencies)
    )
    if plan.rolls is not None:
        return list(plan.rolls)
    return [int(roll) for roll in np.clip(drawn, plan.voters_min, plan.voters_max)]


def _turnout(rng: np.random.Generator, region: Region) -> float:
    logit = np.log(0.90 / 0.10) + region.turnout_effect + 0.35 * rng.standard_normal()
    return float(1 / (1 + np.exp(-logit)))


def _reminders(rng: np.random.Generator, hours: int) -> NDArray[np.float64]:
    """Two national hours in which a reminder brings up to twice the voters."""
    factor = np.ones(hours)
    factor[rng.integers(0, hours, 2)] *= rng.uniform(1, 2, 2)
    return factor


def _own_hours(rng: np.random.Generator, hours: int) -> NDArray[np.float64]:
    """An early or late tilt and gamma noise (CV 0.10) of one constituency."""
    tilt = np.exp(0.20 * rng.standard_normal() * np.linspace(-1, 1, hours))
    return np.asarray(tilt * rng.gamma(100, 0.01, hours))


def _start_ms(plan: Plan, region: Region) -> int:
    local = datetime.combine(plan.day, time(8), tzinfo=UTC)
    return int(local.timestamp()) * 1000 - region.utc_offset * HOUR_MS
