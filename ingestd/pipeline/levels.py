"""Levels beside the peer detector: turnout, uncast bulletins, twins, lag, regions, refusals, score.

Pure functions on the same arrays of constituencies × hours of vote as `peers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingestd.pipeline.peers import (
    FIRST_PHI,
    LEAST_CELLS,
    LEAST_EXPECTED,
    Fleet,
    Floats,
    phi_of,
    scale_of,
    z_of,
)

TURNOUT_SD = 0.14  # of the logit: regions of like-minded constituencies are not taken at their word
TWIN_NOISE = 0.012  # variance of B1 − B2 for each bulletin of both
TWIN_ROLLS = 0.001  # two rolls of one territory differ by no more than this share
_TWIN_HOURS, _TWIN_BALLOTS, _TWIN_MEDIAN, _TWIN_MOST = 4, 20.0, 1.5, 50
SAME_HOUR, NEXT_HOUR = 0.965, 0.030  # of the votes: in their bulletin's hour, in the one after it
_LEAST_LAG_VARIANCE = 0.05
_REGION_SD, _LEAST_REGION_EXPECTED = 0.10, 20.0
_LEAST_PEERS = 5
_WILSON_Z = 3.0902  # 99.9 % one-sided


def turnout(cumulative: Floats, fleet: Fleet, hour: int) -> tuple[Floats, Floats, Floats]:
    """Turnout up to an hour against the region: median, t, chance on both sides.

    t = (logit − median)/sd of the logit of (B + ½)/(N + 1); sd² = max(1.4826·MAD, 0.14)² + the
    binomial variance beyond the region's typical one. Student's t: the MAD of n values knows what
    0.37·(n − 1) values' variance knows.
    """
    from scipy.special import stdtr  # noqa: PLC0415 - 0.3 s that small elections do without

    size = len(fleet.roll)
    median, t, chance = np.full(size, np.nan), np.full(size, np.nan), np.ones(size)
    known = fleet.known[:, hour]
    share = (cumulative[:, hour] + 0.5) / (np.maximum(fleet.roll, cumulative[:, hour]) + 1)
    logit = np.log(share / (1 - share))
    own = 1 / ((fleet.roll + 1) * share * (1 - share))
    for region in np.unique(fleet.region):
        mine = np.flatnonzero(known & (fleet.region == region))
        if len(mine) <= _LEAST_PEERS:
            continue
        middle = float(np.median(logit[mine]))
        sd = max(scale_of(logit[mine]), TURNOUT_SD)
        extra = np.maximum(own[mine] - float(np.median(own[mine])), 0.0)
        t[mine] = (logit[mine] - middle) / np.sqrt(sd**2 + extra)
        median[mine] = 1 / (1 + np.exp(-middle))
        freedom = max(3.0, 0.37 * (len(mine) - 1))
        chance[mine] = 2 * stdtr(freedom, -np.abs(t[mine]))
    return median, t, chance


def uncast(
    bulletins: Floats, votes: Floats, fleet: Fleet, hour: int
) -> tuple[Floats, Floats, Floats]:
    """Bulletins without a vote up to an hour: counts, what the region's others make likely, z."""
    known = fleet.known[:, hour]
    left = np.maximum(bulletins[:, hour] - votes[:, hour], 0.0)
    some, whole = np.where(known, left, 0.0), np.where(known, bulletins[:, hour], 0.0)
    nation = (some.sum() - some) / np.maximum(whole.sum() - whole, 1.0)
    others = np.bincount(fleet.region, some)[fleet.region] - some
    around = np.bincount(fleet.region, whole)[fleet.region] - whole
    share = (others + 200 * nation) / (around + 200)
    mu = np.maximum(whole * share, 1e-3)
    cells = known & (mu >= LEAST_EXPECTED)
    phi = phi_of(left[cells], mu[cells]) if int(cells.sum()) >= LEAST_CELLS else FIRST_PHI
    doubt = 1 / np.maximum(others + 200 * nation, 1.0)
    z = np.where(known & (whole > 0), z_of(left, mu, phi + doubt), np.nan)
    return left, mu, z


def lag(bulletins: Floats, votes: Floats, fleet: Fleet) -> tuple[Floats, Floats]:
    """Votes given bulletins: expected, z.

    V_h ≈ f·(0.965·B_h + 0.03·B_{h−1}), f the fleet's ratio in that hour; variance s·mu + 1 with s
    from the bulk of the cells (a thinned count varies less than a Poisson one).
    """
    known = fleet.known.copy()
    known[:, 1:] &= fleet.known[:, :-1]
    before = np.zeros_like(bulletins)
    before[:, 1:] = bulletins[:, :-1]
    base = np.where(known, SAME_HOUR * bulletins + NEXT_HOUR * before, 0.0)
    cast = np.where(known, votes, 0.0)
    mu = base * (cast.sum(axis=0) / np.maximum(base.sum(axis=0), 1e-9))
    cells = known & (mu >= LEAST_EXPECTED)
    spread = _LEAST_LAG_VARIANCE
    if int(cells.sum()) >= LEAST_CELLS:
        off = (cast[cells] - mu[cells]) / np.sqrt(mu[cells])
        spread = max(spread, scale_of(off) ** 2)
    # What a few very large cells share with their region grows faster than their count.
    z = (cast - mu) / np.sqrt(spread * mu + (0.01 * mu) ** 2 + 1)
    return mu, np.where(known, z, np.nan)


@dataclass(frozen=True, slots=True)
class Twins:
    """Two ballots of one territory; `t` by hour, nan where one of the two is unknown."""

    one: int
    other: int
    t: Floats


def twins(
    bulletins: Floats, fleet: Fleet, territory: Sequence[str], ballot: Sequence[str]
) -> list[Twins]:
    """Pairs of one roll within 0.1 % in one territory with two ballots, and how far they part.

    t = (B1 − B2)/sqrt(0.012·(B1 + B2) + 1). A pair counts only where its hours go together as
    those of twins do: an equal roll by chance must not make two strangers twins.
    """
    found = []
    by_territory: dict[str, list[int]] = {}
    for number, name in enumerate(territory):
        if name:
            by_territory.setdefault(name, []).append(number)
    for members in by_territory.values():
        members.sort(key=lambda number: (fleet.roll[number], number))
        for place, one in enumerate(members):
            for other in members[place + 1 : place + 1 + _TWIN_MOST]:
                if fleet.roll[other] - fleet.roll[one] > TWIN_ROLLS * fleet.roll[other]:
                    break
                if ballot[one] != ballot[other] and (pair := _pair(bulletins, fleet, one, other)):
                    found.append(pair)
    return found


def _pair(bulletins: Floats, fleet: Fleet, one: int, other: int) -> Twins | None:
    known = fleet.known[one] & fleet.known[other]
    both = bulletins[one] + bulletins[other]
    t = (bulletins[one] - bulletins[other]) / np.sqrt(TWIN_NOISE * both + 1)
    telling = known & (both >= _TWIN_BALLOTS)
    if int(telling.sum()) < _TWIN_HOURS or np.median(np.abs(t[telling])) >= _TWIN_MEDIAN:
        return None
    return Twins(one, other, np.where(known, t, np.nan))


def regions(bulletins: Floats, fleet: Fleet, rate: Floats) -> tuple[Floats, Floats, Floats]:
    """Regions × hours against the nation: counts, expected, t.

    t = (rel − median)/sd, rel = counts/expected − 1; expected = N·K·rate, the region's own level
    K = (10 + A)/(10 + M) discounted by 0.8; only where 20 are expected. sd² = s² + 1/expected, s
    the largest of 1.4826·MAD in this hour, its median over the hours so far (twenty regions alone
    are a poor estimate) and 0.10.
    """
    number, hours = int(fleet.region.max(initial=-1)) + 1, bulletins.shape[1]
    seen, mu, t = (np.zeros((number, hours)) for _ in range(3))
    own, expected = np.zeros(number), np.zeros(number)
    scales: list[float] = []
    for hour in range(hours):
        known = fleet.known[:, hour]
        voters = np.bincount(fleet.region, np.where(known, fleet.roll, 0.0), number)
        seen[:, hour] = np.bincount(fleet.region, np.where(known, bulletins[:, hour], 0.0), number)
        plain = voters * seen[:, hour].sum() / max(float(voters.sum()), 1.0)
        mu[:, hour] = voters * rate[hour] * (10 + own) / (10 + expected)
        own, expected = 0.8 * own + seen[:, hour], 0.8 * expected + plain
        enough = mu[:, hour] >= _LEAST_REGION_EXPECTED
        t[:, hour] = np.nan
        if int(enough.sum()) > _LEAST_PEERS:
            off = seen[enough, hour] / mu[enough, hour] - 1
            scales.append(scale_of(off))
            sd = max(scales[-1], float(np.median(scales)), _REGION_SD)
            t[enough, hour] = (off - np.median(off)) / np.sqrt(sd**2 + 1 / mu[enough, hour])
    return seen, mu, t


def refused_bound(refused: Floats, total: Floats) -> Floats:
    """Wilson's lower bound of a share, 99.9 % one-sided (E. B. Wilson, JASA 1927)."""
    total = np.maximum(total, 1.0)
    share, square = refused / total, _WILSON_Z**2
    middle = share + square / (2 * total)
    off = _WILSON_Z * np.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return np.asarray(np.maximum((middle - off) / (1 + square / total), 0.0))


def share_of_others(some: Floats, whole: Floats, fleet: Fleet) -> Floats:
    """The share that the region's others have up to each hour."""
    some = np.cumsum(np.where(fleet.known, some, 0.0), axis=1)
    whole = np.cumsum(np.where(fleet.known, whole, 0.0), axis=1)
    number = int(fleet.region.max(initial=-1)) + 1
    sums = []
    for values in (some, whole):
        by_region = np.zeros((number, values.shape[1]))
        np.add.at(by_region, fleet.region, values)
        sums.append(by_region[fleet.region] - values)
    return np.asarray(sums[0] / np.maximum(sums[1], 1.0))


def family(z: Floats) -> Floats:
    """log10 of the chance of the largest |z| of each constituency (Šidák); nan without any."""
    from scipy.special import log_ndtr  # noqa: PLC0415 - 0.3 s that small elections do without

    tried = (~np.isnan(z)).sum(axis=1)
    largest = np.nanmax(np.where(np.isnan(z), 0.0, np.abs(z)), axis=1, initial=0.0)
    chance = np.minimum(2 * np.exp(log_ndtr(-largest)), 1.0)
    # 1 − (1 − p)^n without losing a small p.
    log = np.log10(np.maximum(-np.expm1(tried * np.log1p(-np.minimum(chance, 1 - 1e-16))), 1e-300))
    return np.where(tried > 0, log, np.nan)


def score(families: Sequence[Floats]) -> Floats:
    """anomaly_score in [0, 1]: min(1, −log10(p)/6), p = min(1, J·min p_j) over the J families.

    0.5 means "one in a thousand clean constituencies"; nan where no family says anything.
    """
    logs = np.array(families)
    number = (~np.isnan(logs)).sum(axis=0)
    least = np.nanmin(np.where(np.isnan(logs), 0.0, logs), axis=0, initial=0.0)
    log = np.minimum(least + np.log10(np.maximum(number, 1)), 0.0)
    return np.where(number > 0, np.minimum(1.0, -log / 6), np.nan)


def z_of_chance(chance: Floats) -> Floats:
    """The |z| that has this chance on both sides."""
    from scipy.special import ndtri  # noqa: PLC0415 - 0.3 s that small elections do without

    return np.asarray(-ndtri(np.clip(chance, 1e-300, 1.0) / 2))
