"""Jobs: the ledger alone writes and moves them, so a person may look and set nothing."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import BaseModel

from ingestd.job_state import JobState
from ingestd.schemas.base import Changes, Incoming, Measure, Moment, Stamped


class FileProcessingBase(BaseModel):
    """The file: where it was found and what it is."""

    root: str
    path: str
    member: str | None
    name: str
    sha256: str
    container_sha256: str | None
    size: int
    mtime: Moment | None


class FileProcessingCreate(Incoming):
    """Empty on purpose: a job begins with a file in the inbox."""


class FileProcessingUpdate(Changes):
    """Empty on purpose: `ingestd retry` and `ingestd jobs make-current` ask the ledger."""


class FileProcessingResponse(FileProcessingBase, Stamped):
    """A job: the file, its books, how far it is, and what went wrong first."""

    evidence: str | None
    archived_to: str | None
    contract_id: str | None
    constituency_id: uuid.UUID | None
    slot: str | None
    is_cumulative: bool
    publication: int
    supersedes_id: uuid.UUID | None
    duplicate_of_id: uuid.UUID | None
    status: JobState
    attempts: int
    retry_at: Moment | None
    owner: str | None
    lease_until: Moment | None
    rows_read: int
    rows_stored: int
    rows_known: int
    rows_rollbacks: int
    rows_rejected: int
    rows_blank: int
    checkpoint_byte: int
    checkpoint_line: int
    slot_bulletins: int
    slot_votes: int
    attempt_counts: dict[str, Any] | None
    encoding: str | None
    first_error_line: int | None
    first_error_field: str | None
    first_error_message: str | None
    discovered_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    throughput: Measure
