"""Elections drawn by the statistics of the alert study, written through the models without files.

For tests and for `bench/detect.py`: hours, jobs and constituencies as the ingest would leave them,
without a transaction behind them.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import (
    Constituency,
    Election,
    EvaluationDue,
    FileProcessing,
    HourlyStats,
    table_of,
)
from ingestd.simulate.shape import hourly_profile

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
OPENS = datetime(2024, 9, 6, 5, tzinfo=UTC)  # 08:00 in Moscow


@dataclass(slots=True)
class Drawn:
    """One drawn election; hours are hours of vote."""

    roll: Counts
    region: Counts
    bulletins: Counts
    votes: Counts
    share: Floats  # of the bulletins that are cast
    ballots: list[str] = field(default_factory=list)  # the election of each constituency

    def stuff(self, one: int, hour: int, number: int) -> None:
        """Add bulletins, and their votes."""
        self.bulletins[one, hour] += number
        self.votes[one, hour] += number

    def stuff_votes(self, one: int, hour: int, number: int) -> None:
        """Add votes without a bulletin."""
        self.votes[one, hour] += number


def draw(
    rng: np.random.Generator,
    *,
    constituencies: int = 500,
    hours: int = 60,
    regions: int = 20,
    noise: float = 0.10,
    rolls: Sequence[int] = (),
) -> Drawn:
    """Draw a clean election; `rolls` replaces the first rolls, `noise` is the CV of an hour."""
    size = constituencies
    roll = np.clip(600 * np.exp(1.25 * rng.standard_normal(size)), 15, 30_000).astype(np.int64)
    roll[: len(rolls)] = rolls
    region = np.arange(size) % regions
    nation = hourly_profile(hours) / hourly_profile(hours).sum()
    for hour in rng.integers(0, hours, 2):
        nation[hour] *= rng.uniform(1, 2)
    effect = np.exp(0.20 * _ar1(rng, regions, hours))[region]
    slope = 0.20 * rng.standard_normal(size)[:, None] * np.linspace(-1, 1, hours)
    weights = nation * effect * np.exp(slope)
    weights *= rng.gamma(1 / noise**2, noise**2, (size, hours))
    logit = np.log(9) + 0.25 * rng.standard_normal(regions)[region]
    turnout = 1 / (1 + np.exp(-(logit + 0.35 * rng.standard_normal(size))))
    weights /= weights.sum(axis=1, keepdims=True)
    bulletins = rng.multinomial(rng.binomial(roll, turnout), weights)
    share = np.clip(0.985 + 0.006 * rng.standard_normal(regions), 0.9, 1.0)[region]
    votes = _votes(rng, bulletins, share)
    return Drawn(roll, region, bulletins, votes, share, ["council"] * size)


def _votes(rng: np.random.Generator, bulletins: Counts, share: Floats) -> Counts:
    """96.5 % in the same hour, 3 % in the next one."""
    at_once = rng.binomial(bulletins, (0.965 * share)[:, None])
    late = rng.binomial(bulletins - at_once, (0.03 * share / (1 - 0.965 * share))[:, None])
    votes = at_once.copy()
    votes[:, 1:] += late[:, :-1]
    return np.asarray(votes)


def _ar1(rng: np.random.Generator, regions: int, hours: int, memory: float = 0.7) -> Floats:
    noise = rng.standard_normal((regions, hours))
    for hour in range(1, hours):
        fresh = (1 - memory**2) ** 0.5 * noise[:, hour]
        noise[:, hour] = memory * noise[:, hour - 1] + fresh
    return noise


def twin(rng: np.random.Generator, drawn: Drawn, one: int, other: int) -> None:
    """Let `other` be the second ballot of the same voters; few take one without the other."""
    drawn.roll[other], drawn.region[other] = drawn.roll[one], drawn.region[one]
    both = drawn.bulletins[one]
    drawn.bulletins[other] = rng.binomial(both, 0.996) + rng.poisson(0.004 * both)
    drawn.share[other] = drawn.share[one]
    mine = slice(other, other + 1)
    drawn.votes[mine] = _votes(rng, drawn.bulletins[mine], drawn.share[mine])
    drawn.ballots[other] = "mayor"


def key_of(number: int) -> uuid.UUID:
    """The id of a drawn constituency."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"drawn {number}")


def write(
    sessions: sessionmaker[Session],
    drawn: Drawn,
    *,
    missing: frozenset[tuple[int, int]] = frozenset(),
    is_hourly: bool = False,
) -> None:
    """Write an election: one whole-voting file for each constituency, or one for each hour.

    The files of `missing` (constituency, hour) are not here, nor is what they would tell.
    """
    at = datetime(2024, 9, 10, tzinfo=UTC)
    elections = {name: uuid.uuid5(uuid.NAMESPACE_OID, name) for name in sorted(set(drawn.ballots))}
    size, hours = drawn.bulletins.shape
    with sessions.begin() as session:
        connection = session.connection()
        for name, key in elections.items():
            connection.execute(insert(table_of(Election)), {"id": key, "name": name})
        connection.execute(
            insert(table_of(Constituency)),
            [_constituency(drawn, elections, number) for number in range(size)],
        )
        rows = [row for number in range(size) for row in _hours_of(drawn, number, missing)]
        connection.execute(insert(table_of(HourlyStats)), rows)
        slots = range(hours) if is_hourly else [None]
        jobs = [
            _job(number, hour, at, drawn)
            for number in range(size)
            for hour in slots
            if (number, hour) not in missing
        ]
        connection.execute(insert(table_of(FileProcessing)), jobs)
        due = [{"id": uuid.uuid4(), "constituency_id": key_of(number)} for number in range(size)]
        connection.execute(insert(table_of(EvaluationDue)), due)


def _constituency(drawn: Drawn, elections: dict[str, uuid.UUID], number: int) -> dict[str, Any]:
    hours = drawn.bulletins.shape[1]
    return {
        "id": key_of(number),
        "contract_id": f"{number:044d}",
        "election_id": elections[drawn.ballots[number]],
        "name": f"No. {number}",
        "region_code": f"{drawn.region[number]:02d}",
        "region_name": f"Region {drawn.region[number]}",
        "status": "completed",
        "registered_voters": int(drawn.roll[number]),
        "bulletins_issued": int(drawn.bulletins[number].sum()),
        "votes_cast": int(drawn.votes[number].sum()),
        "voting_start": OPENS,
        "voting_end": OPENS + timedelta(hours=hours),
    }


def _hours_of(
    drawn: Drawn, number: int, missing: frozenset[tuple[int, int]]
) -> list[dict[str, Any]]:
    rows = []
    issued = cast = 0
    start = int(OPENS.timestamp()) // 3600
    pairs = zip(drawn.bulletins[number].tolist(), drawn.votes[number].tolist(), strict=True)
    for hour, (bulletins, votes) in enumerate(pairs):
        if (number, hour) in missing or not (bulletins or votes):
            continue
        issued += bulletins
        cast += votes
        rows.append(
            {
                "id": uuid.uuid5(key_of(number), str(start + hour)),
                "constituency_id": key_of(number),
                "hour": OPENS + timedelta(hours=hour),
                "bulletins_issued": bulletins,
                "votes_cast": votes,
                "transaction_count": bulletins + votes,
                "cumulative_bulletins": issued,
                "cumulative_votes": cast,
            }
        )
    return rows


def _job(number: int, hour: int | None, at: datetime, drawn: Drawn) -> dict[str, Any]:
    slot, ballots = "whole", (0, 0)
    if hour is not None:
        moment = OPENS + timedelta(hours=hour)
        slot = f"{moment:%Y-%m-%d_%H%M}-{moment + timedelta(hours=1):%H%M}"
        ballots = (int(drawn.bulletins[number, hour]), int(drawn.votes[number, hour]))
    content = f"{number} {slot}"
    return {
        "id": uuid.uuid5(uuid.NAMESPACE_OID, content),
        "root": "/drawn",
        "path": f"{content}.csv",
        "name": f"{content}.csv",
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        "size": 1,
        "stamp": "0:0:1:0:0",
        "contract_id": f"{number:044d}",
        "constituency_id": key_of(number),
        "slot": slot,
        "is_cumulative": hour is None,
        "status": "completed",
        "slot_bulletins": ballots[0],
        "slot_votes": ballots[1],
        "discovered_at": at,
    }
