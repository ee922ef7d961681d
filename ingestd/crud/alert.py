"""Alerts: the rules write them; a person answers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Final, get_args

from sqlalchemy import case, func, or_, select
from sqlalchemy.orm import Session

from ingestd.crud.base import FIRST, Page, Reader, Window, changed
from ingestd.models import Alert, Constituency
from ingestd.schemas import AlertUpdate
from ingestd.schemas.alert import Severity

SEVERITIES: Final[tuple[str, ...]] = get_args(Severity)
"""Worst first."""

_WORST_FIRST = case(
    {severity: rank for rank, severity in enumerate(SEVERITIES)},
    value=Alert.severity,
    else_=len(SEVERITIES),
)


# A decision holds until more is found than what it was about.
_HAS_NEW_EVIDENCE = Alert.gravity > Alert.answered_gravity
_IS_OPEN = (Alert.cleared_at.is_(None), or_(Alert.status != "resolved", _HAS_NEW_EVIDENCE))


class Alerts(Reader[Alert]):
    """Alerts, and a person's side of them."""

    def open(
        self,
        session: Session,
        *,
        severity: str | None = None,
        type: str | None = None,
        contract_id: str | None = None,
        window: Window = FIRST,
    ) -> Page[Alert]:
        """What still stands and nobody has resolved: worst first, then the newest."""
        query = select(Alert).where(*_IS_OPEN)
        if severity is not None:
            query = query.where(Alert.severity == severity)
        if type is not None:
            query = query.where(Alert.type == type)
        if contract_id is not None:
            ours = select(Constituency.id).where(Constituency.contract_id == contract_id)
            query = query.where(Alert.constituency_id == ours.scalar_subquery())
        newest = Alert.detected_at.desc().nulls_last()
        return self.page(session, query, order=[_WORST_FIRST, newest], window=window)

    def between(self, session: Session, first: uuid.UUID, last: uuid.UUID) -> Page[Alert]:
        """Alerts with an id in a range: an id by its first digits."""
        query = select(Alert).where(Alert.id.between(first, last))
        return self.page(session, query, order=[], window=Window(limit=2))

    def open_by_severity(self, session: Session) -> Mapping[str, int]:
        """How many are open of each severity, worst first; none is 0, not absent."""
        query = select(Alert.severity, func.count()).where(*_IS_OPEN).group_by(Alert.severity)
        return dict.fromkeys(SEVERITIES, 0) | dict(session.execute(query).all())

    def answer(
        self, session: Session, id: uuid.UUID, answer: AlertUpdate, *, at: datetime
    ) -> Alert | None:
        """Write down a person's side; `resolved_at` follows the status."""
        alert = self.get(session, id)
        if alert is None:
            return None
        values = answer.model_dump(exclude_unset=True)
        if (status := values.get("status", alert.status)) != alert.status:
            values["resolved_at"] = at if status == "resolved" else None
        if "status" in values:
            values["answered_gravity"] = alert.gravity
        return changed(session, alert, values)


alerts = Alerts(
    Alert,
    columns=[
        Alert.type,
        Alert.alert_class,
        Alert.severity,
        Alert.constituency_id,
        Alert.status,
        Alert.assigned_to,
        Alert.detected_at,
        Alert.cleared_at,
    ],
    usual_order="-detected_at",
)
