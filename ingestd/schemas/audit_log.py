"""The audit log, as a person sees it."""

from __future__ import annotations

from typing import Any

from ingestd.schemas.base import Moment, Outgoing


class AuditLogResponse(Outgoing):
    """Who did what, when, to which row, and how it was before and after."""

    at: Moment
    who: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
