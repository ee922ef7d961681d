"""The steps of a file's life, by name; each is told when it is over.

Whoever runs an `Ingest` may listen by its `on_step`. Tests end the program at
every one of them, which is why the order here is that of a file's life.
"""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """What has just been done; "in a commit" means that the commit is still open."""

    LOOKED = "looked"  # every CSV inside is hashed; nothing is written
    NOTED = "noted"  # its jobs are written, in a commit
    RECORDED = "recorded"  # and committed
    OPENED = "opened"  # the CSV's stream is open
    READ = "read"  # a batch is read and validated
    CLAIMED = "claimed"  # the job is ours, in the batch's commit
    LOADED = "loaded"  # its records and sightings, in that commit
    REJECTED = "rejected"  # its rejects, in that commit
    ADVANCED = "advanced"  # books and checkpoint, in that commit
    COMPLETED = "completed"  # the job is completed, in the last batch's commit
    SUPERSEDED = "superseded"  # earlier publications stepped back, in that commit
    COUNTED = "counted"  # hours, slots and totals are recounted, in that commit
    ALERTED = "alerted"  # alerts are settled, in that commit
    STORED = "stored"  # a batch is committed
    UNDONE = "undone"  # what a file unfit left is out of the tables, in a commit
    QUARANTINED = "quarantined"  # its job says why, in that commit
    REFUSED = "refused"  # and committed
    ADDRESSED = "addressed"  # its jobs say where the file is about to go, committed
    EXPLAINED = "explained"  # the reason file lies in the quarantine
    COPIED = "copied"  # a copy lies on the other file system, still under a name of its own
    MOVED = "moved"  # the source has left the inbox; only its markers are still there
    JUDGED = "judged"  # what peers make likely stands in the hours, committed; no alert says so yet
    EVALUATED = "evaluated"  # alerts and scores say it, and nothing is due any more, committed
