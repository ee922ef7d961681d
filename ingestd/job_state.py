"""The states of a job and the moves between them, as one table.

The ledger asks `may_move` before it asks the database, and the database has
the last word: `UPDATE … WHERE status = old`, one row or it is refused.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands; the values are the words in `file_processing.status`."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    DUPLICATE = "duplicate"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    VANISHED = "vanished"
    SUPERSEDED = "superseded"


_S = JobState

MOVES: dict[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset({_S.PROCESSING, _S.DUPLICATE, _S.VANISHED, _S.QUARANTINED}),
    _S.PROCESSING: frozenset(
        {_S.COMPLETED, _S.PENDING, _S.FAILED, _S.QUARANTINED, _S.VANISHED},
    ),
    _S.FAILED: frozenset({_S.PENDING, _S.VANISHED}),
    # A person asks again (`ingestd retry`), or the same bytes are dropped again.
    _S.QUARANTINED: frozenset({_S.PENDING}),
    _S.VANISHED: frozenset({_S.PENDING}),
    _S.COMPLETED: frozenset({_S.SUPERSEDED}),
    # `ingestd jobs make-current` puts an earlier publication back.
    _S.SUPERSEDED: frozenset({_S.COMPLETED}),
    _S.DUPLICATE: frozenset(),
}

QUEUED = frozenset({_S.PENDING, _S.PROCESSING, _S.FAILED})
"""States that still ask for work."""

PUT_AWAY = frozenset({_S.COMPLETED, _S.SUPERSEDED, _S.DUPLICATE, _S.QUARANTINED})
"""States in which a job's file has nothing left to give and leaves the inbox."""

DELIVERED = frozenset({_S.COMPLETED, _S.SUPERSEDED})
"""States whose rows are in the tables and whose books must balance."""


def may_move(old: JobState, new: JobState) -> bool:
    """Say whether a job may go from `old` to `new`."""
    return new in MOVES[old]
