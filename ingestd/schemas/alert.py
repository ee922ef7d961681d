"""Alerts: the rules find them; a person answers."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from ingestd.schemas.base import Changes, Incoming, Moment, Stamped

AlertStatus = Literal["active", "investigating", "resolved", "snoozed"]
Severity = Literal["critical", "warning", "info"]


class AlertBase(BaseModel):
    """What a rule found."""

    type: str
    alert_class: str
    severity: str
    constituency_id: uuid.UUID | None
    subject: str
    title: str
    description: str
    details: dict[str, Any]
    ruleset: str


class AlertCreate(Incoming):
    """Empty on purpose: an alert is what a rule finds in the data, each time again."""


class AlertUpdate(Changes):
    """A person's side of an alert; the engine never writes here."""

    never_null: ClassVar[frozenset[str]] = frozenset({"status", "notes"})

    status: AlertStatus | None = None
    notes: list[Any] | None = None
    assigned_to: str | None = Field(default=None, max_length=200)


class AlertResponse(AlertBase, Stamped):
    """An alert: the finding, the engine's side, a person's side."""

    detected_at: Moment | None
    cleared_at: Moment | None
    cleared_reason: str | None
    gravity: int
    answered_gravity: int | None
    status: str
    notes: list[Any]
    assigned_to: str | None
    resolved_at: Moment | None
