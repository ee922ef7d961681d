"""Every error that ingestd raises on purpose, and what each one costs.

    IngestError                   what, where, what to do next
    ├── FileRefused               the file: quarantined, never retried by itself
    ├── FileChanged               the attempt: undone, the new bytes are read anew
    ├── FileVanished              the job: its file was taken away
    ├── ManifestNotMet            time: the file is not complete yet
    ├── NotPutAway                nothing: its rows are in the tables, it waits where it lies
    ├── StopRequested             nothing: the job is handed back at its checkpoint
    ├── LostClaim                 nothing: another worker has the job
    ├── WorkerDied                time: the worker that had the file was killed, several times
    ├── NotSent                   what it costs where it was raised: it cannot cross a pipe itself
    ├── Undelivered               time: a message to people was not taken; it is sent again
    ├── CannotAmend               nothing: what a person asks does not fit the job
    ├── NotMoved                  nothing: no copy, backup or restored database was made
    ├── SchemaMismatch            the daemon: the database must be upgraded first
    └── StorageFault              nothing: database or disk is away; try again later

A bad row is not an error but a value (`pipeline.validate.Reject`).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any


class IngestError(Exception):
    """The root of ingestd's own errors: a sentence for a person."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross a pipe with all fields, however the error was made."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(
    kind: type[IngestError], arguments: tuple[object, ...], fields: dict[str, object]
) -> IngestError:
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(fields)
    return error


class FileRefused(IngestError):
    """A file that cannot be read as this format, or has too many bad rows."""

    def __init__(
        self,
        reason: str,
        *,
        kind: str,
        line: int | None = None,
        field: str | None = None,
        value: str | None = None,
    ) -> None:
        """Name the reason in words, its kind, and where known the line, field and value."""
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.line = line
        self.field = field
        self.value = value


class FileChanged(IngestError):
    """The bytes under a job's path are no longer those that the job names."""


class FileVanished(IngestError):
    """The file of a job is gone."""


class ManifestNotMet(IngestError):
    """A manifest says something of a file that is not so, or not yet."""

    def __init__(self, path: str, *, manifest: str, what: str, expected: str, found: str) -> None:
        """Name the file, its manifest, what it speaks of, and both values."""
        super().__init__(f"{manifest} says {what} {expected}, the file has {found}")
        self.path = path
        self.manifest = manifest
        self.what = what
        self.expected = expected
        self.found = found


class NotPutAway(IngestError):
    """A file is done with, but the inbox will not let it go, or the archive will not take it."""

    def __init__(self, path: Path, folder: Path, place: Path, error: OSError) -> None:
        """Name the file, the folder concerned, where below it the refusal was, and what it was."""
        super().__init__(f"{path} stays where it is: {error}; it is moved once {place} is mended")
        self.path = path
        self.folder = folder
        self.place = place
        self.error = error


class StopRequested(IngestError):
    """A person or systemd asked for a stop; work ends at a batch border."""


class LostClaim(IngestError):
    """The job moved under us: the database refused the move that we asked for."""


class WorkerDied(IngestError):
    """The worker that had a file was killed, again and again; the file may be the reason."""


class NotSent(IngestError):
    """What a worker met and could not hand over as it was; in words."""


class CannotAmend(IngestError):
    """What a person asks for does not fit the job as it stands; the sentence says what would."""


class NotMoved(IngestError):
    """A database was not copied, backed up or restored; the sentence says why, and what to do."""


class SchemaMismatch(IngestError):
    """The database's schema is not the one that this program was written for."""


class StorageFault(IngestError):
    """Database or disk did not answer; no attempt is burnt, the same work is tried again."""


class Undelivered(IngestError):
    """A message that was not taken, and why, without a word of the channel's URL."""

    def __init__(
        self, reason: str, *, pause: timedelta = timedelta(), is_refused: bool = False
    ) -> None:
        """`pause` is what the other end asks for before the next try.

        `is_refused`: the channel works, it is this message that is not wanted.
        """
        super().__init__(reason)
        self.pause = pause
        self.is_refused = is_refused
