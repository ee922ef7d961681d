"""Markers and manifests whose files are gone: they go where the files went.

A marker is put away after its file. It is left over when the program was killed in between,
or when it came after its file had been read on weaker evidence. It may as well be early: so it
waits, and moves only when the jobs of its file are final. What it says is held against the
ledger, since nobody else will.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import structlog
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import IngestError
from ingestd.job_state import PUT_AWAY
from ingestd.models import FileProcessing
from ingestd.pipeline import archive, ledger
from ingestd.pipeline.evidence import Check, Claim, Manifests, Measured, contradiction, is_list
from ingestd.pipeline.found import label_of

log = structlog.get_logger()

_PATHS_ASKED_AT_ONCE = 500
_FIRST_NAMED = 3


@dataclass(slots=True)
class Leftovers:
    """Remembers since when each marker has been lying there without its file."""

    root: Path
    archive: Path
    wait_seconds: float
    _since: dict[Path, tuple[str, float]] = field(default_factory=dict)
    _told: set[Path] = field(default_factory=set)

    def due(
        self, manifests: Manifests, markers: Mapping[Path, str], here: Iterable[Path], now: float
    ) -> list[Path]:
        """Give the `markers` (with stamps) that have waited long enough for a file among `here`."""
        if not markers:
            self._since, self._told = {}, set()
            return []
        names: dict[Path, set[str]] = {}
        for file in here:
            names.setdefault(file.parent, set()).add(file.name)
        since: dict[Path, tuple[str, float]] = {}
        for marker, stamp in markers.items():
            if manifests.said_by(marker).keys().isdisjoint(names.get(marker.parent, ())):
                former = self._since.get(marker)
                since[marker] = former if former and former[0] == stamp else (stamp, now)
        self._since, self._told = since, self._told & since.keys()
        due = [path for path, (_, began) in since.items() if now - began >= self.wait_seconds]
        # Who has to stay is asked again after another wait.
        self._since |= {path: (since[path][0], now) for path in due}
        return due

    def tidy(self, sessions: sessionmaker[Session], marker: Path, manifests: Manifests) -> None:
        """Put a marker away if all its files were; say what it says that is not so."""
        said = manifests.said_by(marker)
        missing: list[str] = []
        target: Path | None = None
        for name, jobs in _jobs_of(sessions, self.root, marker.parent, said):
            if not jobs or any(job.status not in PUT_AWAY for job in jobs):
                missing.append(name)
                continue
            _say_contradiction(marker.with_name(name), said[name], jobs)
            target = Path(jobs[0].archived_to or self.archive / marker.with_name(name))
        if missing or target is None:
            self._say_missing(marker, missing)
        elif is_list(marker.name):
            self._put_away(marker)
        else:
            archive.put_beside([self.root / marker], target)

    def _put_away(self, marker: Path) -> None:
        try:
            archive.put_away_as(self.root / marker, self.archive / marker, folder=self.archive)
        except IngestError as error:
            log.warning("marker_not_put_away", path=label_of(marker), error=str(error))

    def _say_missing(self, marker: Path, missing: list[str]) -> None:
        if marker not in self._told and missing:
            self._told.add(marker)
            first = [label_of(Path(name)) for name in missing[:_FIRST_NAMED]]
            log.warning(
                "marker_without_file", path=label_of(marker), files=len(missing), first=first
            )


def _jobs_of(
    sessions: sessionmaker[Session], root: Path, folder: Path, names: Iterable[str]
) -> Iterator[tuple[str, list[FileProcessing]]]:
    left = iter(names)
    while part := list(islice(left, _PATHS_ASKED_AT_ONCE)):
        labels = {name: label_of(folder / name) for name in part}
        with sessions.begin() as session:
            jobs = ledger.last_at(session, str(root), list(labels.values()))
        for name in part:
            yield name, jobs.get(labels[name], [])


def _say_contradiction(file: Path, checks: tuple[Check, ...], jobs: list[FileProcessing]) -> None:
    """Say that a file was read on weaker evidence, and that its late manifest disagrees."""
    first = jobs[0]
    rows = None
    if all(job.duplicate_of_id is None and job.rows_read for job in jobs):
        rows = sum(job.rows_read - job.rows_blank for job in jobs)
    told = tuple(check for check in checks if check.what != "rows" or rows is not None)
    measured = Measured(first.container_sha256 or first.sha256, rows)
    unmet = contradiction(Claim(told), label_of(file), measured)
    if unmet:
        log.warning(
            "late_manifest_not_met",
            path=os.fspath(unmet.path),
            manifest=unmet.manifest,
            what=unmet.what,
            expected=unmet.expected,
            found=unmet.found,
            status=str(first.status),
        )
