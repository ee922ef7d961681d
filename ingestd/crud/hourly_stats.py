"""Hours: read only; they are recounted from transactions."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ingestd.crud.base import Reader, within
from ingestd.models import Constituency, HourlyStats


@dataclass(frozen=True)
class NationalHour:
    """One UTC hour over all constituencies that have it."""

    hour: datetime
    constituencies: int
    bulletins_issued: int
    votes_cast: int
    votes_rejected: int
    issues_rejected: int
    revotes: int
    rolled_back: int
    list_added: int
    list_removed: int
    transaction_count: int


_SUMMED = (
    HourlyStats.bulletins_issued,
    HourlyStats.votes_cast,
    HourlyStats.votes_rejected,
    HourlyStats.issues_rejected,
    HourlyStats.revotes,
    HourlyStats.rolled_back,
    HourlyStats.list_added,
    HourlyStats.list_removed,
    HourlyStats.transaction_count,
)


class Hours(Reader[HourlyStats]):
    """Hours of a constituency, and of all together. Ranges hold `since` and not `until`."""

    def of_constituency(
        self,
        session: Session,
        constituency_id: uuid.UUID,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[HourlyStats]:
        """A constituency's hours in order: a few hundred at most, so there are no pages."""
        query = (
            select(HourlyStats)
            .where(
                HourlyStats.constituency_id == constituency_id,
                *within(HourlyStats.hour, since, until),
            )
            .order_by(HourlyStats.hour)
        )
        return session.scalars(query).all()

    def of_contract(
        self,
        session: Session,
        contract_id: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[HourlyStats]:
        """The same by contract; nothing for a contract that is not here."""
        owner = session.scalar(
            select(Constituency.id).where(Constituency.contract_id == contract_id)
        )
        if owner is None:
            return []
        return self.of_constituency(session, owner, since=since, until=until)

    def national(
        self,
        session: Session,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        region_code: str | None = None,
    ) -> Sequence[NationalHour]:
        """The sums of all constituencies, or those of one region, for each hour, in order."""
        query = (
            select(HourlyStats.hour, func.count(), *(func.sum(each) for each in _SUMMED))
            .where(*within(HourlyStats.hour, since, until))
            .group_by(HourlyStats.hour)
            .order_by(HourlyStats.hour)
        )
        if region_code is not None:
            ours = select(Constituency.id).where(Constituency.region_code == region_code)
            query = query.where(HourlyStats.constituency_id.in_(ours))
        # PostgreSQL sums bigints as decimals.
        return [
            NationalHour(hour, *(int(count) for count in counts))
            for hour, *counts in session.execute(query)
        ]


hours = Hours(
    HourlyStats,
    columns=[
        HourlyStats.constituency_id,
        HourlyStats.hour,
        HourlyStats.status,
        HourlyStats.bulletins_issued,
        HourlyStats.votes_cast,
        HourlyStats.transaction_count,
        HourlyStats.z_bulletins,
        HourlyStats.z_votes,
    ],
    usual_order="-hour",
)
