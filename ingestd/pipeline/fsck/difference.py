"""Differences: what does not fit together, by a stable code, and what would mend it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import StrEnum


class Mend(StrEnum):
    """What `--repair` does about a difference."""

    RELEASE = "free the job for the next who works"
    IDENTITY = "put back what the job's id proves"
    POINT = "note where the bytes lie"
    REASON = "write the reason file again"
    REREAD = "read the file's bytes again"
    RECOUNT = "count the constituency anew"
    EVALUATE = "let the evaluator judge it again"
    ALERTS = "let the rules say what holds"
    FEED = "let the rules about all constituencies look again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that does not fit: `about` names it, `what` says how it is and should be."""

    code: str
    about: str
    what: str
    mend: Mend | None = None
    constituency_id: uuid.UUID | None = None
    # The jobs to read again, and the transactions that are taken out before.
    job_ids: tuple[uuid.UUID, ...] = ()
    transaction_ids: tuple[uuid.UUID, ...] = field(default=())
    path: str | None = None

    @property
    def hint(self) -> str:
        """What a person can do."""
        return HINTS[self.code]


_REPAIR = "ingestd fsck --repair"
_RESTORE = "bring the file back from a backup; its rows are in the tables"
HINTS = {
    # folders and ledger
    "archive_missing": _RESTORE,
    "archive_altered": _RESTORE,
    "archive_unreadable": "see to its permissions, or bring it back from a backup",
    "quarantine_missing": "bring the file back, or `ingestd jobs forget` its job",
    "archived_to_missing": _REPAIR,
    "file_lost": "bring the file back from a backup, or `ingestd jobs forget` its job",
    "file_unknown": "drop it into the inbox, or take it away",
    "reason_missing": _REPAIR,
    "identity_wrong": _REPAIR,
    "job_stuck": _REPAIR,
    "books_wrong": _REPAIR,
    "rejects_wrong": _REPAIR,
    "checkpoint_wrong": _REPAIR,
    "touched_wrong": _REPAIR,
    "publications_wrong": _REPAIR,
    "duplicate_of_nothing": "`ingestd jobs forget` it and drop its file again",
    "rows_of_refused": "`ingestd jobs forget` the job and drop its file again",
    # tables
    "key_wrong": _REPAIR,
    "constituency_unknown": _REPAIR,
    "file_id_unknown": _REPAIR,
    "line_twice": _REPAIR,
    "transaction_missing": _REPAIR,
    "transaction_stray": _REPAIR,
    "transaction_altered": _REPAIR,
    "status_wrong": _REPAIR,
    "sighting_missing": _REPAIR,
    "content_wrong": _REPAIR,
    "reject_missing": _REPAIR,
    "reject_stray": "the line is sound: export it and replay it",
    # what is derived
    "hour_wrong": _REPAIR,
    "slot_wrong": _REPAIR,
    "total_wrong": _REPAIR,
    "evaluation_wrong": _REPAIR,
    "alert_missing": _REPAIR,
    "alert_stray": _REPAIR,
    "alert_altered": _REPAIR,
    # the database itself
    "schema_wrong": "restore the schema; `ingestd db check` says the same",
}
"""Every code, and what a person can do about it."""
