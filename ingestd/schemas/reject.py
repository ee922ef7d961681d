"""Rejects, as a person sees them."""

from __future__ import annotations

import uuid

from ingestd.schemas.base import Moment, Outgoing


class RejectResponse(Outgoing):
    """A row that did not pass: where, which field, why, and its text (`is_cut`: not all of it)."""

    file_id: uuid.UUID
    line_number: int
    field: str | None
    kind: str
    value: str | None
    reason: str
    raw_text: str
    is_cut: bool
    replayed_at: Moment | None
    replayed_text: str | None
