"""Constituencies."""

from __future__ import annotations

import uuid

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, aliased

from ingestd.crud.base import FIRST, Crud, Page, Window, contains_text
from ingestd.models import Alert, Constituency, FileProcessing, HourlyStats
from ingestd.schemas import ConstituencyCreate, ConstituencyUpdate


class Constituencies(Crud[Constituency, ConstituencyCreate, ConstituencyUpdate]):
    """Constituencies by contract, region and name."""

    def by_contract(self, session: Session, contract_id: str) -> Constituency | None:
        """The constituency of this contract."""
        return session.scalar(select(Constituency).where(Constituency.contract_id == contract_id))

    def by_region(
        self, session: Session, region_code: str, *, window: Window = FIRST
    ) -> Page[Constituency]:
        """A region's constituencies by name."""
        return self.list(session, filters={"region_code": region_code}, order="name", window=window)

    def search(self, session: Session, text: str, *, window: Window = FIRST) -> Page[Constituency]:
        """Those whose name, region or contract holds this text."""
        columns = (Constituency.name, Constituency.region_name, Constituency.contract_id)
        query = select(Constituency).where(
            or_(*(contains_text(column, text) for column in columns))
        )
        return self.page(
            session, query, order=[Constituency.region_code, Constituency.name], window=window
        )

    def provisional(self, session: Session) -> set[uuid.UUID]:
        """Those of which an hour, or a part of one, or a file is not here: their totals may grow.

        An hour before or after the voting that stands there by a sender's clock alone is none.
        The view v_constituencies says the same.
        """
        h = HourlyStats
        is_lacking = or_(h.status == "missing", and_(h.coverage > 0, h.coverage < _FULLY))
        hours = select(h.constituency_id).where(is_lacking)
        feed = select(Alert.constituency_id).where(
            Alert.type.in_(_LACKS), Alert.cleared_at.is_(None), Alert.constituency_id.is_not(None)
        )
        refused, here = FileProcessing, aliased(FileProcessing)
        instead = select(here.id).where(
            here.constituency_id == refused.constituency_id,
            here.status == "completed",
            here.slot.in_((refused.slot, "whole")),
        )
        files = select(refused.constituency_id).where(
            refused.status == "quarantined",
            refused.slot.is_not(None),
            refused.constituency_id.is_not(None),
            ~instead.exists(),
        )
        queries = (hours, feed, files)
        return {key for query in queries for key in session.scalars(query.distinct()) if key}


_FULLY = 0.99
_LACKS = ("missing_hour", "constituency_missing")

constituencies = Constituencies(
    Constituency,
    columns=[
        Constituency.contract_id,
        Constituency.election_id,
        Constituency.name,
        Constituency.region_code,
        Constituency.region_name,
        Constituency.type,
        Constituency.status,
        Constituency.registered_voters,
        Constituency.bulletins_issued,
        Constituency.votes_cast,
        Constituency.participation_rate,
        Constituency.anomaly_score,
        Constituency.last_activity,
    ],
    usual_order="contract_id",
)
