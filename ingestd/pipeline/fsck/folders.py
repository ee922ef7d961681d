"""Folders: every file that was put away has its job, and every job its file."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from ingestd.job_state import DELIVERED, PUT_AWAY, JobState
from ingestd.models import AuditLog, FileProcessing
from ingestd.pipeline.archive import PARTIAL, REASON_SUFFIX
from ingestd.pipeline.evidence import is_marker
from ingestd.pipeline.forget import FORGET
from ingestd.pipeline.found import label_of
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.fsck.jobs import about_job, name_of
from ingestd.pipeline.fsck.lines import hash_of, place_of
from ingestd.pipeline.ledger import is_there, paths_of
from ingestd.pipeline.prune import PRUNE

FILES_AT_ONCE = 200
_NUMBERED = re.compile(r" \([0-9]+\)(?=(?:\.[^./]*)?\Z)")


def files_in(folder: Path) -> Iterator[list[Path]]:
    """Walk a folder in order, so many at once; copies on their way, markers, reasons are none."""
    some: list[Path] = []
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != PARTIAL)
        for name in sorted(names):
            if is_kept(name):
                some.append(Path(base, name))
            if len(some) == FILES_AT_ONCE:
                yield some
                some = []
    if some:
        yield some


def is_kept(name: str) -> bool:
    """Say whether a name in archive or quarantine is that of a file that was put away."""
    return not (is_reason(name) or is_marker(_NUMBERED.sub("", name)))


def is_reason(name: str) -> bool:
    """Say whether a name is that of a reason file; one that was taken has a number."""
    return _NUMBERED.sub("", name).endswith(REASON_SUFFIX)


def jobs_of(
    session: Session, folder: Path, paths: Sequence[Path]
) -> dict[Path, list[FileProcessing]]:
    """Find the jobs of files that were put away; none of a file that nobody knows.

    A file keeps its way below the folder, and the index on that way finds nearly all; only
    for the rest the whole ledger is read.
    """
    labels = {label_of(path): path for path in paths}
    ways = {label_of(path.relative_to(folder)) for path in paths}
    ways |= {_NUMBERED.sub("", way) for way in ways}
    here = FileProcessing.archived_to.in_(labels)
    found: dict[Path, list[FileProcessing]] = defaultdict(list)
    for job in session.scalars(select(FileProcessing).where(FileProcessing.path.in_(ways), here)):
        found[labels[job.archived_to or ""]].append(job)
    rest = [label for label, path in labels.items() if path not in found]
    if rest:
        query = select(FileProcessing).where(FileProcessing.archived_to.in_(rest))
        for job in session.scalars(query):
            found[labels[job.archived_to or ""]].append(job)
    return found


def forgotten_files(session: Session) -> set[str]:
    """Where bytes lie of jobs that were forgotten or, a moment ago, pruned: no strangers."""
    words = (FORGET, PRUNE)
    images = session.scalars(select(AuditLog.before).where(AuditLog.action.in_(words)))
    places = {(image or {}).get("archived_to") for image in images}
    return {str(place) for place in places if place}


def strange_file(session: Session, path: Path) -> Difference:
    """Name a file without a job; its hash may tell whose it is."""
    try:
        digest = hash_of(path)
    except OSError as error:
        return Difference(code="archive_unreadable", about=str(path), what=str(error))
    f = FileProcessing
    same = or_(f.sha256 == digest, f.container_sha256 == digest)
    jobs = session.scalars(select(f).where(same, f.status.in_(PUT_AWAY)).order_by(f.id)).all()
    mine = [job for job in jobs if digest == (job.container_sha256 or job.sha256)]
    lost = [job for job in mine if place_of(job) is None]
    if lost:
        return Difference(
            code="archived_to_missing",
            about=str(path),
            what=f"{name_of(lost[0])} lies here, and says {lost[0].archived_to or 'nothing'}",
            mend=Mend.POINT,
            job_ids=tuple(job.id for job in lost),
            path=label_of(path),
        )
    return Difference(code="file_unknown", about=str(path), what="no job knows this file")


def check_places(
    jobs: Sequence[FileProcessing],
    *,
    inbox: Path,
    is_archiving: bool,
    found: Collection[str],
    pruned: Collection[str],
) -> Iterator[Difference]:
    """Look where the files of jobs lie; `found` are those that lay elsewhere.

    What the bytes of `pruned` jobs held, other files hold.

    A file that was taken from elsewhere and left there, or left in the inbox by setting, is
    its owner's to keep or to remove.
    """
    for job in jobs:
        if job.status not in PUT_AWAY or str(job.id) in found:
            continue
        if job.archived_to is None:
            is_ours = is_archiving and job.root == str(inbox) and str(job.id) not in pruned
            if is_ours and place_of(job) is None:
                yield about_job(
                    job, "file_lost", "it was put away nowhere, and is not in the inbox"
                )
        elif not any(os.path.lexists(path) for path in paths_of(job.archived_to)):
            if is_there(job):
                continue  # a job says where its file goes before it goes
            is_refused = job.status == JobState.QUARANTINED
            code = "quarantine_missing" if is_refused else "archive_missing"
            yield about_job(job, code, f"it should lie at {job.archived_to}")
        elif job.status == JobState.QUARANTINED and not _has_reason(Path(job.archived_to)):
            what = "nothing beside it says why it was refused"
            yield about_job(job, "reason_missing", what, Mend.REASON)


def _has_reason(path: Path) -> bool:
    try:
        names = (each.name for each in path.parent.iterdir())
        return any(is_reason(name) and _belongs(name, path.name) for name in names)
    except OSError:
        return False


def _belongs(reason: str, name: str) -> bool:
    # A long name is cut to leave room for the suffix.
    stem = _NUMBERED.sub("", reason).removesuffix(REASON_SUFFIX)
    return bool(stem) and name.startswith(stem)


def is_readable(job: FileProcessing) -> bool:
    """Say whether the lines of a job can be compared with rows."""
    return job.status in DELIVERED and job.contract_id is not None
