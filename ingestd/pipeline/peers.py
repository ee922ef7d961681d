"""The peer detector: what a constituency's peers make likely in each hour, and how far off it is.

Pure functions on arrays of constituencies × hours of vote (hour 0 begins at 08:00 local time of
the first day, so that time zones compare). Formulas: negative binomial counts with a robust
overdispersion, own level and peers' rate from closed hours only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PRIOR_COUNT = 10.0  # a0: the own level starts as ten expected bulletins' worth of "like its peers"
PRIOR_VOTERS = 200.0  # w0: so many voters of the national rate are mixed into a region's
FLOOR_RATE = 5e-5  # of the roll per hour: nights have hardly any bulletin to learn from
FAST, SLOW = 0.80, 0.95  # what is left of an hour's weight in the own level an hour later
LIVELY_RATE = 0.005  # of the roll: an hour with fewer voters makes less be forgotten
BLOCK_HOURS = 6
ROBUST = 1.4826  # from median absolute deviation to standard deviation
LEAST_PHI, FIRST_PHI = 0.01, 0.05
LEAST_CELLS, LEAST_EXPECTED = 30, 10.0  # for an estimate of the overdispersion
LEAST_NOISE = 0.005  # of an hour in itself, without what is not known of its expectation
OWN_SHARE = 0.3  # of an hour's own estimate of that, beside the median of all until then,
USUAL_HOURS = 6  # from so many hours on: the first ones are not like each other
MOST_NOISE, HALVINGS = 4.0, 20
_HIGHEST_Z = 37.0  # beyond it the tail probability is zero in a double
_TINY = 1e-3
_HARDLY = 1e-12  # a chance below which its size says nothing any more


@dataclass(frozen=True, slots=True)
class Fleet:
    """Votings of one length on one date; `known` are closed hours of which the count is known."""

    roll: Floats  # (constituencies,)
    region: Ints  # (constituencies,) numbered from 0
    known: Flags  # (constituencies, hours)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is expected of each cell from its peers, and z: how unlikely the count is."""

    mu: Floats
    phi: Floats  # variance = mu + phi·mu²
    z: Floats  # nan where nothing is known
    slow: Floats  # expected by the level at the beginning of the six-hour block
    rate: Floats  # the national rate of each hour (hours,)


def expect(counts: Floats, fleet: Fleet) -> Expectation:
    """Expect every known cell from its peers, in two passes.

    In the second pass counts are cut at mu + 4·sd + 3, so that a stuffed peer does not lift the
    others.
    """
    counts = np.where(fleet.known, counts, 0.0)
    cut = counts
    for _ in range(2):
        mu, slow, doubt, rate = _walk(counts, cut, fleet)
        noise, share = _noise_by_hour(counts, mu, doubt, fleet.known)
        phi = np.maximum(noise + share * doubt, LEAST_PHI)
        cut = np.minimum(counts, mu + 4 * np.sqrt(mu + phi * mu**2) + 3)
    z = np.where(fleet.known & (mu > 0), z_of(counts, mu, phi), np.nan)
    return Expectation(mu, phi, z, slow, rate)


def _walk(counts: Floats, cut: Floats, fleet: Fleet) -> tuple[Floats, Floats, Floats, Floats]:
    """Go through the hours once: expectations by the fast and the slow level, doubt, rates.

    mu = min(N·k·rate, N − own so far); k = (a0 + A)/(a0 + M), A and M the own count and N·rate of
    earlier hours, discounted, by an hour of the night hardly at all; rate = Σ others' counts /
    Σ others' N·k, shrunk to the others in the nation by w0 voters. The doubt about mu is that
    about both: 1/(peers' count) + 1/(a0 + M), as a share of mu².
    """
    size, hours = counts.shape
    own, expected = np.zeros(size), np.zeros(size)
    slow_own, slow_expected = np.zeros(size), np.zeros(size)
    so_far, level = np.zeros(size), np.ones(size)
    mu, slow, doubt = (np.zeros((size, hours)) for _ in range(3))
    rates = np.zeros(hours)
    for hour in range(hours):
        known = fleet.known[:, hour]
        if hour % BLOCK_HOURS == 0:
            level = (PRIOR_COUNT + slow_own) / (PRIOR_COUNT + slow_expected)
        k = (PRIOR_COUNT + own) / (PRIOR_COUNT + expected)
        weight = np.where(known, fleet.roll * k, 0.0)
        seen = np.where(known, cut[:, hour], 0.0)
        rate, peers, rates[hour] = _rates(seen, weight, fleet.region)
        left = np.maximum(fleet.roll - so_far, _TINY)
        mu[:, hour] = np.where(known, np.minimum(fleet.roll * k * rate, left), 0.0)
        slow[:, hour] = np.where(known, np.minimum(fleet.roll * level * rate, left), 0.0)
        doubt[:, hour] = 1 / np.maximum(peers, _TINY) + 1 / (PRIOR_COUNT + expected)
        gained = np.where(known, fleet.roll * rate, 0.0)
        kept = FAST ** min(1.0, rates[hour] / LIVELY_RATE)
        own, expected = kept * own + seen, kept * expected + gained
        slow_own, slow_expected = SLOW * slow_own + seen, SLOW * slow_expected + gained
        so_far += counts[:, hour]
    return mu, slow, doubt, rates


def _rates(seen: Floats, weight: Floats, region: Ints) -> tuple[Floats, Floats, float]:
    """Each one's rate from its peers, the peers' count behind it, and the nation's rate."""
    total, voters = seen.sum(), weight.sum()
    nation = (total - seen) / np.maximum(voters - weight, _TINY)
    nearby = np.bincount(region, seen)[region] - seen
    around = np.bincount(region, weight)[region] - weight
    rate = (nearby + PRIOR_VOTERS * nation) / (np.maximum(around, 0.0) + PRIOR_VOTERS)
    rate = np.maximum(rate, FLOOR_RATE)
    # What the rate stands for: at the floor, too, where nobody was seen.
    peers = rate * (np.maximum(around, 0.0) + PRIOR_VOTERS)
    return rate, peers, float(total / max(voters, _TINY))


def _noise_by_hour(
    counts: Floats, mu: Floats, doubt: Floats, known: Flags
) -> tuple[Floats, Floats]:
    """What an hour varies by in itself, as a share of mu², and how much of the doubt it bears out.

    One hour tells its noise badly, and what it tells swings into z: so 0.3 of that and 0.7 of the
    median of all hours until then, from the sixth hour on. Under 30 cells of mu ≥ 10 that median
    alone (0.05 at the start).
    """
    noise: list[float] = []
    shares: list[float] = []
    found: list[float] = []
    for hour in range(counts.shape[1]):
        cells = known[:, hour] & (mu[:, hour] >= LEAST_EXPECTED)
        if int(cells.sum()) >= LEAST_CELLS:
            own, share = noise_of(counts[cells, hour], mu[cells, hour], doubt[cells, hour])
            found.append(own)
            usual = float(np.median(found)) if len(found) >= USUAL_HOURS else own
            noise.append(OWN_SHARE * own + (1 - OWN_SHARE) * usual)
        else:
            share = 1.0
            noise.append(float(np.median(found)) if found else FIRST_PHI)
        shares.append(share)
    return np.array(noise), np.array(shares)


def noise_of(counts: Floats, mu: Floats, doubt: Floats) -> tuple[float, float]:
    """Noise and share at which 1.4826·MAD of (x − mu)/sqrt(mu + (noise + share·doubt)·mu²) is 1.

    Every cell counts by what it can tell: in small ones chance is all there is. Where the least
    noise and all of the doubt are more than is seen, only a share of the doubt is borne out.
    """

    def is_wider(noise: float, share: float) -> bool:
        return scale_of((counts - mu) / np.sqrt(mu + (noise + share * doubt) * mu**2)) > 1

    if is_wider(LEAST_NOISE, 1.0):
        return _halved(lambda noise: is_wider(noise, 1.0), LEAST_NOISE, MOST_NOISE), 1.0
    return LEAST_NOISE, _halved(lambda share: is_wider(LEAST_NOISE, share), 0.0, 1.0)


def _halved(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Halve the range in which something ceases to hold."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def phi_by_hour(counts: Floats, mu: Floats, known: Flags) -> Floats:
    """Overdispersion by hour: (1.4826·MAD of (x − mu)/mu)² − mean(1/mu), over cells of mu ≥ 10.

    Under 30 such cells it is the median of the earlier hours' (0.05 at the start).
    """
    phi: list[float] = []
    found: list[float] = []
    for hour in range(counts.shape[1]):
        cells = known[:, hour] & (mu[:, hour] >= LEAST_EXPECTED)
        if int(cells.sum()) >= LEAST_CELLS:
            found.append(phi_of(counts[cells, hour], mu[cells, hour]))
            phi.append(found[-1])
        else:
            phi.append(float(np.median(found)) if found else FIRST_PHI)
    return np.array(phi)


def phi_of(counts: Floats, mu: Floats) -> float:
    """Overdispersion of cells that are like each other, robustly; at least 0.01."""
    return max(LEAST_PHI, float(scale_of((counts - mu) / mu) ** 2 - np.mean(1 / mu)))


def scale_of(values: Floats) -> float:
    """Standard deviation of the bulk: 1.4826 times the median absolute deviation."""
    return float(ROBUST * np.median(np.abs(values - np.median(values))))


def z_of(counts: Floats, mu: Floats, phi: Floats | float) -> Floats:
    """Z from the mid-p tail of a negative binomial with mean mu and variance mu + phi·mu².

    P(X ≥ x) = I_q(x, 1/phi) with q = mu/(mu + 1/phi), the regularised incomplete beta function.
    """
    from scipy.special import betainc, ndtri  # noqa: PLC0415 - 0.3 s that small elections do without

    mu = np.maximum(mu, 1e-9)
    size = 1 / np.broadcast_to(phi, mu.shape)
    share = mu / (mu + size)
    is_high = counts >= mu
    high, low = np.zeros(mu.shape), np.zeros(mu.shape)
    x, q, r = counts[is_high], share[is_high], size[is_high]
    at_least = np.where(x > 0, betainc(np.maximum(x, 1), r, q), 1.0)
    high[is_high] = (at_least + betainc(x + 1, r, q)) / 2
    x, q, r = counts[~is_high], share[~is_high], size[~is_high]
    below = np.where(x > 0, betainc(r, np.maximum(x, 1), 1 - q), 0.0)
    low[~is_high] = (betainc(r, x + 1, 1 - q) + below) / 2
    tail = np.clip(np.where(is_high, high, low), 1e-300, 1.0)
    # The mid-p of a likely count may lie beyond one half: z is then on the other side of zero.
    z = np.where(is_high, -ndtri(tail), ndtri(tail))
    return np.asarray(np.clip(z, -_HIGHEST_Z, _HIGHEST_Z))


def likely(mu: float, phi: float) -> tuple[int, int]:
    """The range that holds about 95 % of such cells."""
    off = 1.96 * float(np.sqrt(mu + phi * mu**2))
    return max(0, round(mu - off)), round(mu + off)


def blocks(counts: Floats, expectation: Expectation, known: Flags) -> tuple[Floats, Floats, Floats]:
    """Six-hour blocks against the slow level: counts, expected, z; nan where nothing is known.

    Longer than an hour and with a memory of a day, so that what is little in each hour and lasts
    stands out; the overdispersion is that of the blocks themselves.
    """
    size, hours = counts.shape
    edges = np.arange(0, hours, BLOCK_HOURS)
    seen = np.add.reduceat(np.where(known, counts, 0.0), edges, axis=1)
    mu = np.add.reduceat(np.where(known, expectation.slow, 0.0), edges, axis=1)
    covered = np.add.reduceat(known.astype(np.float64), edges, axis=1) >= BLOCK_HOURS / 2
    phi = phi_by_hour(seen, mu, covered)[None, :] * np.ones((size, 1))
    # The first block has no level of its own to be held against.
    covered[:, 0] = False
    z = np.where(covered & (mu > 0), z_of(seen, mu, phi), np.nan)
    return seen, mu, z


def chance_of(z: float) -> float:
    """The chance of a z at least so far off on this side."""
    from scipy.special import ndtr  # noqa: PLC0415 - 0.3 s that small elections do without

    return float(ndtr(-abs(z)))


def in_words(chance: float) -> str:
    """Say a chance as people do, in two digits: about 1 in 3.4 million."""
    if chance <= _HARDLY:
        return "less than 1 in a million million"
    odds = float(f"{1 / chance:.2g}")
    for size, word in ((1e9, " thousand million"), (1e6, " million"), (1e3, " thousand")):
        if odds >= size:
            return f"about 1 in {odds / size:g}{word}"
    return f"about 1 in {odds:g}"
