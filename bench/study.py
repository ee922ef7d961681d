"""The peer detector as the alert study describes it, to be measured beside ours.

The rules of ingestd began as this, and have come to know more: what they find is held against what
this finds in the same elections, since a figure of the study is one of its own simulator.
"""

from __future__ import annotations

import numpy as np

from ingestd.pipeline.peers import phi_by_hour, z_of

LEAST_Z, LEAST_OFF = 4.5, 5
_PRIOR_COUNT, _PRIOR_VOTERS, _FLOOR_RATE, _KEPT = 10.0, 200.0, 5e-5, 0.8

Floats = np.ndarray


def found(counts: Floats, roll: Floats, region: Floats) -> Floats:
    """Which cells (constituencies × hours) are a spike: z ≥ 4.5, and five more than expected."""
    counts, roll = counts.astype(float), roll.astype(float)
    cut, everything = counts, np.ones(counts.shape, bool)
    for _ in range(2):
        mu, weak = _expected(counts, cut, roll, region)
        phi = phi_by_hour(counts, mu, everything)[None, :] + weak
        cut = np.minimum(counts, mu + 4 * np.sqrt(mu + phi * mu**2) + 3)
    return np.asarray((z_of(counts, mu, phi) >= LEAST_Z) & (counts - mu >= LEAST_OFF))


def _expected(counts: Floats, cut: Floats, roll: Floats, region: Floats) -> tuple[Floats, Floats]:
    """Mu of each cell, and by how much what stands behind it is less than usual.

    mu = min(N·k·rate, N − own so far), k = (10 + A)/(10 + M), A and M the own count and N·rate,
    discounted by 0.8 an hour; 1/(peers' count) + 1/(10 + M) over its median.
    """
    own, expected, so_far = (np.zeros(len(roll)) for _ in range(3))
    mu, weak = np.zeros(counts.shape), np.zeros(counts.shape)
    for hour in range(counts.shape[1]):
        k = (_PRIOR_COUNT + own) / (_PRIOR_COUNT + expected)
        seen, weight = cut[:, hour], roll * k
        nation = (seen.sum() - seen) / (weight.sum() - weight)
        nearby = np.bincount(region, seen)[region] - seen
        around = np.bincount(region, weight)[region] - weight + _PRIOR_VOTERS
        rate = np.maximum((nearby + _PRIOR_VOTERS * nation) / around, _FLOOR_RATE)
        mu[:, hour] = np.minimum(roll * k * rate, np.maximum(roll - so_far, 1e-3))
        doubt = 1 / (rate * around) + 1 / (_PRIOR_COUNT + expected)
        weak[:, hour] = np.maximum(doubt - np.median(doubt), 0.0)
        own, expected = _KEPT * own + seen, _KEPT * expected + roll * rate
        so_far += counts[:, hour]
    return mu, weak
