"""Hours: recounted from transactions, so a person may look and set nothing."""

from __future__ import annotations

import uuid

from pydantic import BaseModel

from ingestd.schemas.base import Changes, Incoming, Measure, Moment, Outgoing


class HourlyStatsBase(BaseModel):
    """The counts of one hour."""

    hour: Moment
    bulletins_issued: int
    votes_cast: int
    votes_rejected: int
    issues_rejected: int
    revotes: int
    rolled_back: int
    list_added: int
    list_removed: int
    transaction_count: int


class HourlyStatsCreate(Incoming):
    """Empty on purpose: the whole table is derived; dropped and rebuilt it is the same."""


class HourlyStatsUpdate(Changes):
    """Empty on purpose, for the same reason."""


class HourlyStatsResponse(HourlyStatsBase, Outgoing):
    """An hour of one constituency; null where a missing file makes a figure unknown."""

    constituency_id: uuid.UUID
    status: str
    is_empty: bool
    coverage: Measure
    bulletin_velocity: Measure
    vote_velocity: Measure
    bulletin_velocity_ewma: Measure
    vote_velocity_ewma: Measure
    cumulative_bulletins: int
    cumulative_votes: int
    expected_bulletins: Measure
    expected_votes: Measure
    phi: Measure
    z_bulletins: Measure
    z_votes: Measure
