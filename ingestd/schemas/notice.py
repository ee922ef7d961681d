"""Notices, as a person sees them."""

from __future__ import annotations

import uuid

from ingestd.schemas.base import Moment, Outgoing


class NoticeResponse(Outgoing):
    """One change that somebody is told of by one channel, and what came of it."""

    at: Moment
    channel: str
    kind: str
    severity: str
    is_urgent: bool
    alert_id: uuid.UUID | None
    title: str
    description: str
    status: str
    message_id: uuid.UUID | None
    attempts: int
    next_try_at: Moment | None
    last_error: str | None
    sent_at: Moment | None
