"""When the plain ballots of a constituency reach the chain, and what their senders' clocks said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .shape import HOUR_MS, Constituency

Times = NDArray[np.int64]

FIRST_ISSUE_MS = 10_000
LATE_VOTES_MS = 15 * 60_000
RETRIED = 0.006
WHOLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Plain issues and votes in the order of the chain.

    `chain` decides slot and line, `ts` is what the row says. The slot of row i is
    (chain[i] − start) // one hour, counted from the constituency's first slot.
    """

    chain: Times
    ts: Times
    is_vote: NDArray[np.bool_]


def draw_timeline(rng: np.random.Generator, constituency: Constituency) -> Timeline:
    """Draw every plain transaction; a vote's ts is later than its own issue's chain time."""
    issue_ts, issue_chain = _issues(rng, constituency)
    cast = rng.random(issue_ts.size) < constituency.region.cast_share
    vote_ts, vote_chain = _votes(rng, issue_chain[cast], constituency.end_ms)
    chain = np.concatenate([issue_chain, vote_chain])
    is_vote = np.arange(chain.size) >= issue_chain.size
    order = np.lexsort((is_vote, chain))
    ts = np.concatenate([issue_ts, vote_ts])
    whole = rng.random(ts.size) < WHOLE_SECONDS
    ts[whole] -= ts[whole] % 1000
    return Timeline(chain=chain[order], ts=ts[order], is_vote=is_vote[order])


def _issues(rng: np.random.Generator, constituency: Constituency) -> tuple[Times, Times]:
    hours = np.repeat(np.arange(constituency.issues.size), constituency.issues)
    within = rng.integers(FIRST_ISSUE_MS, HOUR_MS, hours.size)
    ts = constituency.start_ms + hours * HOUR_MS + within
    # No bulletin is issued after the end: the last seconds' requests arrive just before it.
    chain = np.minimum(ts + _latency(rng, ts.size), constituency.end_ms - 1)
    return ts, chain


def _votes(rng: np.random.Generator, issued: Times, end_ms: int) -> tuple[Times, Times]:
    """A vote follows its bulletin by one to two minutes, so about 3 % fall into the next hour."""
    ts = issued + 30_000 + rng.exponential(75_000, issued.size).astype(np.int64)
    chain = np.minimum(ts + _latency(rng, ts.size), end_ms + LATE_VOTES_MS - 1)
    return np.minimum(ts, chain), chain


def _latency(rng: np.random.Generator, count: int) -> Times:
    """Below a second as a rule; a few are tried again for up to 25 minutes."""
    quick = rng.exponential(600, count)
    retried = rng.random(count) < RETRIED
    waits = rng.uniform(60_000, 25 * 60_000, count)
    return np.asarray(np.where(retried, waits, quick).astype(np.int64))
