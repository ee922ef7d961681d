"""The ledger: the jobs in `file_processing`, and the only code that moves them.

Callers own the session and its commit. Every move is checked twice: against
the table in `job_state`, and by the database (`UPDATE … WHERE status = old`).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import uuid
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnDefault,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_dict, set_committed_value

from ingestd.db import AnyRow, is_postgresql
from ingestd.errors import FileRefused, LostClaim
from ingestd.job_state import DELIVERED, QUEUED, JobState, may_move
from ingestd.models import FileProcessing, Reject, table_of
from ingestd.pipeline import validate
from ingestd.pipeline.prepared import Prepared
from ingestd.pipeline.read import stamp_of
from ingestd.pipeline.slot import Slot
from ingestd.pipeline.touched import chunks

_jobs = table_of(FileProcessing)
_NAMES = uuid.UUID("6f1d3c0e-8a43-5a52-9a57-3c1f6f0f7d11")
_MOST_ERROR_CHARACTERS = 2_000
_DEAD = "dead"
_OWNER = re.compile(r"(.*?):(\d+)(?::(\d+))?")
_IDS_AT_ONCE = 1_000  # databases limit the parameters of a statement
_JOBS_AT_ONCE = 500
_SPELT_OUT = re.compile(rb"\\x([89a-f][0-9a-f])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One CSV as it was found: where, which bytes, and what its names say."""

    root: str
    path: str
    member: str | None
    name: str
    stamp: str
    mtime: datetime
    sha256: str
    container_sha256: str | None
    size: int
    contract_id: str | None
    constituency_id: uuid.UUID | None
    slot: Slot | None
    evidence: str | None


@dataclass(slots=True, kw_only=True)
class Books:
    """Lines of one file, each accounted for exactly once."""

    read: int = 0
    stored: int = 0
    known: int = 0
    rollbacks: int = 0
    rejected: int = 0
    blank: int = 0

    def as_columns(self) -> dict[str, int]:
        """Name them as the table does."""
        return {
            f"rows_{name}": getattr(self, name)
            for name in ("read", "stored", "known", "rollbacks", "rejected", "blank")
        }

    @classmethod
    def of(cls, job: FileProcessing) -> Books:
        """Read them from a job."""
        return cls(
            read=job.rows_read,
            stored=job.rows_stored,
            known=job.rows_known,
            rollbacks=job.rows_rollbacks,
            rejected=job.rows_rejected,
            blank=job.rows_blank,
        )


def owner_name() -> str:
    """Name this process for a lease: host, pid, and when it began, since pids come again."""
    pid = os.getpid()
    began = _began(pid)
    return f"{socket.gethostname()}:{pid}" + (f":{began}" if began else "")


def job_id(contract_id: str, slot: str | None, sha256: str) -> uuid.UUID:
    """UUIDv5 of slot and content, so that lineage does not depend on order."""
    return uuid.uuid5(_NAMES, f"{contract_id}|{slot or '-'}|{sha256}")


def _own_id(delivery: Delivery) -> uuid.UUID:
    """An id for a delivery that is no content of its own: a duplicate, a file without contract."""
    parts = (delivery.root, delivery.path, delivery.member or "", delivery.stamp, delivery.sha256)
    return uuid.uuid5(_NAMES, "delivery|" + "|".join(parts))


_JOBS_AT = (
    select(FileProcessing)
    .where(FileProcessing.path == bindparam("path"), FileProcessing.root == bindparam("root"))
    .order_by(FileProcessing.discovered_at, FileProcessing.member)
)


def jobs_at(session: Session, root: str, path: str) -> list[FileProcessing]:
    """Find the jobs of all files that were ever recorded at a path."""
    return list(session.scalars(_JOBS_AT, {"root": root, "path": path}))


def known_stamps(session: Session, root: str, paths: Sequence[str]) -> set[tuple[str, str]]:
    """Tell which of `paths` are here with which stamp in a final state: (path, stamp) pairs."""
    rows = session.execute(
        select(FileProcessing.path, FileProcessing.stamp, FileProcessing.status).where(
            FileProcessing.root == root, FileProcessing.path.in_(paths)
        )
    ).all()
    unread = QUEUED | {JobState.VANISHED}
    open_ones = {(row.path, row.stamp) for row in rows if row.status in unread}
    return {(row.path, row.stamp) for row in rows} - open_ones


_JOB = select(FileProcessing).where(FileProcessing.id == bindparam("id"))
_AS_IT_IS = {"populate_existing": True}


# Next to the locks of constituencies and bytes, which are single numbers of 64 bits.
_OF_NUMBERS, _MOST_NUMBER_LOCKS = 1, 64
_HOLD_NUMBERS = text(
    "SELECT pg_advisory_xact_lock(:space, key) FROM unnest(CAST(:keys AS int[])) AS key"
)


def hold_numbers(session: Session, contract_ids: Iterable[str | None]) -> None:
    """Let nobody else number publications of these contracts before this commit.

    To be called before anything is written. The locks are few, shared by many contracts, and
    always taken in one order.
    """
    if not is_postgresql(session):  # which has one writer
        return
    keys = {zlib.crc32(each.encode()) % _MOST_NUMBER_LOCKS for each in contract_ids if each}
    session.execute(_HOLD_NUMBERS, {"space": _OF_NUMBERS, "keys": sorted(keys)})


def record(session: Session, delivery: Delivery, now: datetime) -> FileProcessing | None:
    """Write down one CSV; returns its job, or None where its twin is being worked on.

    A content that is here already becomes `duplicate` at once. The bytes of a
    quarantined or vanished job are tried again under the same job.
    """
    if delivery.contract_id is None:
        key = _own_id(delivery)
        nameless = session.get(FileProcessing, key) or _asked_again(session, delivery)
        nameless = nameless or _new_job(session, delivery, now, key)
        if nameless.status in (JobState.VANISHED, JobState.QUARANTINED):
            move(session, nameless, JobState.PENDING, attempts=0, discovered_at=now)
        return nameless
    key = _key_of(delivery)
    job = session.scalars(_JOB, {"id": key}, execution_options=_AS_IT_IS).one_or_none()
    original = job if job and job.status in DELIVERED else _same_bytes(session, delivery)
    if original is not None:
        return _record_duplicate(session, delivery, original, now)
    if job is None:
        return _new_job(session, delivery, now, key)
    if job.status in QUEUED:
        if (job.root, job.path, job.member) == (delivery.root, delivery.path, delivery.member):
            _point_at(session, job, delivery)
            return job
        if (job.root, job.path, job.stamp) == (delivery.root, delivery.path, delivery.stamp):
            # Twins inside one container: the first of them is this very content.
            return _record_duplicate(session, delivery, job, now)
        if is_there(job):
            return None
        _point_at(session, job, delivery)
        return job
    again = {"attempts": 0, "discovered_at": now, "publication": _next_publication(session, job)}
    move(session, job, JobState.PENDING, **again)
    _point_at(session, job, delivery)
    return job


def _asked_again(session: Session, delivery: Delivery) -> FileProcessing | None:
    """Find the job of a file without contract that a person put back: its stamp is another now."""
    return session.scalars(
        select(FileProcessing).where(
            FileProcessing.path == delivery.path,
            FileProcessing.root == delivery.root,
            FileProcessing.stamp == delivery.stamp,
            FileProcessing.sha256 == delivery.sha256,
            FileProcessing.contract_id.is_(None),
            FileProcessing.status == JobState.PENDING,
        )
    ).first()


def _same_bytes(session: Session, delivery: Delivery) -> FileProcessing | None:
    """Without a slot in the name, the same bytes in the same constituency are a duplicate."""
    if delivery.slot is not None:
        return None
    return session.scalars(
        select(FileProcessing)
        .where(
            FileProcessing.sha256 == delivery.sha256,
            FileProcessing.contract_id == delivery.contract_id,
            FileProcessing.status.in_(DELIVERED),
        )
        .order_by(FileProcessing.id)
    ).first()


class Twin(NamedTuple):
    """A delivered job with the same bytes as another."""

    id: uuid.UUID
    name: str
    contract_id: str | None
    slot: str | None
    status: str


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Other jobs that a job must not be completed without a look at."""

    twins: list[Twin]
    # Whether its slot has other jobs, of any publication, delivered or not.
    has_slot_alone: bool


_NEIGHBOURS = Prepared(
    select(
        *(_jobs.c[name] for name in Twin._fields),
        _jobs.c.sha256,
        _jobs.c.constituency_id,
    )
    .where(
        or_(
            _jobs.c.sha256 == bindparam("sha256"),
            and_(
                _jobs.c.constituency_id == bindparam("constituency"),
                _jobs.c.slot == bindparam("slot"),
            ),
        ),
        _jobs.c.id != bindparam("key"),
        _jobs.c.duplicate_of_id.is_(None),
    )
    .order_by(_jobs.c.id)
)


def neighbours_of(session: Session, job: FileProcessing) -> Neighbours:
    """Find the other delivered jobs with the bytes of this one, and look around in its slot."""
    whose = {
        "key": job.id,
        # Empty hours are no twins.
        "sha256": job.sha256 if job.size else "",
        "constituency": job.constituency_id,
        "slot": job.slot,
    }
    rows = _NEIGHBOURS.all(session, whose)
    place = (job.constituency_id, job.slot)
    return Neighbours(
        [
            Twin(*row[: len(Twin._fields)])
            for row in rows
            if row.sha256 == whose["sha256"] and row.status in DELIVERED
        ],
        job.slot is not None and not any((row.constituency_id, row.slot) == place for row in rows),
    )


def twins_of(session: Session, job: FileProcessing) -> list[Twin]:
    """Find the other delivered jobs with the bytes of this one; empty hours are no twins."""
    return neighbours_of(session, job).twins if job.size else []


def container_is_known(session: Session, container_sha256: str) -> list[FileProcessing]:
    """Give the members' jobs of a container whose every member was delivered; else nothing."""
    jobs = list(
        session.scalars(
            select(FileProcessing).where(
                FileProcessing.container_sha256 == container_sha256,
                FileProcessing.duplicate_of_id.is_(None),
            )
        )
    )
    return jobs if all(job.status in DELIVERED for job in jobs) else []


class Member(NamedTuple):
    """The only CSV of a container, delivered."""

    container_sha256: str | None
    member: str | None
    name: str
    contract_id: str | None
    slot: str | None
    sha256: str
    size: int


def only_members(session: Session, containers: Iterable[str]) -> dict[str, Member]:
    """Give the CSV of each of these containers that holds a single one, which was delivered."""
    columns = [getattr(FileProcessing, name) for name in Member._fields]
    rows = session.execute(
        select(*columns, FileProcessing.status).where(
            FileProcessing.container_sha256.in_(containers),
            FileProcessing.duplicate_of_id.is_(None),
        )
    ).all()
    number = Counter(row.container_sha256 for row in rows)
    return {
        row.container_sha256: Member(*row[:-1])
        for row in rows
        if number[row.container_sha256] == 1 and row.status in DELIVERED
    }


def seen_or_queued(
    session: Session, files: Collection[tuple[str, str, str]]
) -> set[tuple[str, str, str]]:
    """Tell which files (root, path, stamp) have a job as they lie there, or one in the queue."""
    c = _jobs.c
    rows = session.execute(
        select(c.root, c.path, c.stamp, c.status).where(c.path.in_({file[1] for file in files}))
    ).all()
    seen = {(row.root, row.path, row.stamp) for row in rows}
    queued = {(row.root, row.path) for row in rows if row.status in QUEUED}
    return {file for file in files if file in seen or file[:2] in queued}


_FACTS = ("id", "root", "path", "member", "stamp", "status", "archived_to", "constituency_id")


def record_plain(
    session: Session,
    deliveries: Sequence[Delivery],
    goes_to: Sequence[str | None],
    now: datetime,
) -> list[FileProcessing | None]:
    """Write down many deliveries, each with contract and slot, as `record` would one by one.

    None for those whose history asks for that; of one slot there must be a single one. A
    duplicate says at once where it `goes_to`.
    """
    keys = [_key_of(delivery) for delivery in deliveries]
    own_keys = [_own_id(delivery) for delivery in deliveries]
    c = _jobs.c
    facts = [c[name] for name in _FACTS]
    by_id = {
        row.id: row for row in session.execute(select(*facts).where(c.id.in_({*keys, *own_keys})))
    }
    latest = _latest_publications(session, deliveries)
    jobs: list[FileProcessing | None] = []
    new: list[dict[str, Any]] = []
    for delivery, key, own_key, target in zip(deliveries, keys, own_keys, goes_to, strict=True):
        original = by_id.get(key)
        if own_key in by_id or (original is not None and not _is_elsewhere(original, delivery)):
            jobs.append(None)
            continue
        values = _values_of(delivery, now, key)
        slot = (delivery.constituency_id, _slot_text(delivery))
        values["publication"] = latest.get(slot, 0) + 1
        if original is not None:
            values |= {
                "id": own_key,
                "status": str(JobState.DUPLICATE),
                "duplicate_of_id": original.id,
                "constituency_id": original.constituency_id,
                "finished_at": now,
                "archived_to": target,
            }
        new.append(values)
        jobs.append(_as_row(values))
    if new:
        # In one order for all processes, or two of them would wait for each other.
        new.sort(key=itemgetter("id"))
        session.connection().execute(_NEW_JOB, new)
    return jobs


def _is_elsewhere(original: AnyRow, delivery: Delivery) -> bool:
    """Say whether the same bytes were delivered before, and are not the very file again."""
    if original.status not in DELIVERED:
        return False
    place = (original.root, original.path, original.member)
    if place != (delivery.root, delivery.path, delivery.member):
        return True
    return original.archived_to is not None and original.stamp != delivery.stamp


def _latest_publications(
    session: Session, deliveries: Iterable[Delivery]
) -> dict[tuple[uuid.UUID | None, str | None], int]:
    rows = session.execute(
        select(_jobs.c.constituency_id, _jobs.c.slot, func.max(_jobs.c.publication))
        .where(
            _jobs.c.constituency_id.in_({delivery.constituency_id for delivery in deliveries}),
            _jobs.c.slot.in_({_slot_text(delivery) for delivery in deliveries}),
            _jobs.c.duplicate_of_id.is_(None),
        )
        .group_by(_jobs.c.constituency_id, _jobs.c.slot)
    )
    return {(row[0], row[1]): row[2] for row in rows}


def _slot_text(delivery: Delivery) -> str | None:
    return delivery.slot.text if delivery.slot else None


def _key_of(delivery: Delivery) -> uuid.UUID:
    return job_id(delivery.contract_id or "", _slot_text(delivery), delivery.sha256)


def _record_duplicate(
    session: Session, delivery: Delivery, original: FileProcessing, now: datetime
) -> FileProcessing:
    place = (original.root, original.path, original.member)
    if place == (delivery.root, delivery.path, delivery.member):
        if original.stamp == delivery.stamp:
            # The very file, done by another process since we looked at it.
            return original
        if not original.archived_to:
            # The very file, still there: touched, or left by setting, or by a crash.
            _point_at(session, original, delivery)
            return original
    key = _own_id(delivery)
    job = session.get(FileProcessing, key)
    if job is None:
        job = _new_job(session, delivery, now, key)
        moved = {"duplicate_of_id": original.id, "constituency_id": original.constituency_id}
        move(session, job, JobState.DUPLICATE, finished_at=now, **moved)
    return job


_NEW_JOB = insert(_jobs)
_AT_FIRST = {column.name: None for column in _jobs.c if column.nullable} | {
    column.name: column.default.arg
    for column in _jobs.c
    if isinstance(column.default, ColumnDefault) and column.default.is_scalar
}


def _new_job(session: Session, delivery: Delivery, now: datetime, key: uuid.UUID) -> FileProcessing:
    values = _values_of(delivery, now, key)
    values["publication"] = _next_publication(session, _as_row(values))
    # Not by the session: its unit of work costs more than the row.
    session.connection().execute(_NEW_JOB, values)
    job = _as_row(values)
    session.add(job)
    return job


def _values_of(delivery: Delivery, now: datetime, key: uuid.UUID) -> dict[str, Any]:
    return {
        **_AT_FIRST,
        **_whereabouts(delivery),
        "id": key,
        "name": delivery.name,
        "sha256": delivery.sha256,
        "size": delivery.size,
        "contract_id": delivery.contract_id,
        "constituency_id": delivery.constituency_id,
        "slot": _slot_text(delivery),
        # Without a slot nobody knows what the file covers: never add it up.
        "is_cumulative": delivery.slot is None or delivery.slot.is_cumulative,
        "discovered_at": now,
        "touched": {},
    }


def _whereabouts(delivery: Delivery) -> dict[str, Any]:
    return {
        "root": delivery.root,
        "path": delivery.path,
        "member": delivery.member,
        "stamp": delivery.stamp,
        "mtime": delivery.mtime,
        "container_sha256": delivery.container_sha256,
        "evidence": delivery.evidence,
        # Lies there now, wherever the same bytes were put when they last came.
        "archived_to": None,
    }


def _point_at(session: Session, job: FileProcessing, delivery: Delivery) -> None:
    session.execute(
        update(FileProcessing).where(FileProcessing.id == job.id).values(**_whereabouts(delivery))
    )
    session.refresh(job)


_LATEST_PUBLICATION = select(func.max(FileProcessing.publication)).where(
    FileProcessing.constituency_id == bindparam("constituency"),
    FileProcessing.slot == bindparam("slot"),
    FileProcessing.id != bindparam("id"),
    FileProcessing.duplicate_of_id.is_(None),
)


def _next_publication(session: Session, job: FileProcessing) -> int:
    """Number the publications of a slot by arrival; files without a slot have one each."""
    if job.slot is None or job.constituency_id is None:
        return 1
    whose = {"constituency": job.constituency_id, "slot": job.slot, "id": job.id}
    latest = session.scalar(_LATEST_PUBLICATION, whose)
    return (latest or 0) + 1


_MOVE = update(_jobs).where(_jobs.c.id == bindparam("key"), _jobs.c.status == bindparam("old"))
_CLAIM = Prepared(
    update(_jobs).where(
        _jobs.c.id == bindparam("key"),
        _jobs.c.status == str(JobState.PENDING),
        _jobs.c.checkpoint_line == bindparam("at_line"),
        _jobs.c.rows_read == bindparam("at_read"),
    )
)
_GO_ON = Prepared(
    update(_jobs).where(
        _jobs.c.id == bindparam("key"),
        _jobs.c.status == str(JobState.PROCESSING),
        _jobs.c.owner == bindparam("whose"),
        _jobs.c.checkpoint_line == bindparam("at_line"),
        _jobs.c.rows_read == bindparam("at_read"),
    )
)
_ADVANCE = Prepared(
    update(_jobs).where(
        _jobs.c.id == bindparam("key"),
        _jobs.c.status == str(JobState.PROCESSING),
        _jobs.c.owner == bindparam("whose"),
    )
)


def move(session: Session, job: FileProcessing, new: JobState, **values: Any) -> None:
    """Move a job to a state and set `values` with it.

    Raises:
        LostClaim: the job is no longer in the state that we saw.
    """
    old = JobState(job.status)
    if not may_move(old, new):
        message = f"job {job.id} cannot go from {old} to {new}"
        raise LostClaim(message)
    key = {"key": job.id, "old": str(old)}
    result = session.connection().execute(_MOVE, key | values | {"status": str(new)})
    if result.rowcount != 1:
        message = f"job {job.id} was moved from {old} by somebody else"
        raise LostClaim(message)
    _now_holds(job, status=new, **values)


def _now_holds(job: FileProcessing, **values: Any) -> None:
    """Let an object say what its row says since an UPDATE; spares reading it again."""
    for name, value in values.items():
        set_committed_value(job, name, value)


def hold(session: Session, job: FileProcessing) -> FileProcessing:
    """Take a job into a session as it was when it was last seen; what it is now `claim` learns.

    A copy: a commit that fails must leave the other as it was.
    """
    held = _as_row({name: getattr(job, name) for name in vars(job) if name in _jobs.c})
    session.add(held)
    return held


def _as_row(values: Mapping[str, Any]) -> FileProcessing:
    """Make an object that says what a row says, as if it had been read."""
    job = FileProcessing()
    instance_dict(job).update(values)
    make_transient_to_detached(job)
    return job


def claim(
    session: Session,
    job: FileProcessing,
    *,
    owner: str,
    books: Books,
    now: datetime,
    lease: timedelta,
) -> None:
    """Take a pending job, or go on with one that is ours already, where `books` left it.

    Raises:
        LostClaim: somebody else has it, or had it meanwhile and came further.
    """
    if Books.of(job) != books:
        message = f"job {job.id} was worked on by somebody else"
        raise LostClaim(message)
    if job.status == JobState.FAILED:
        move(session, job, JobState.PENDING)
    # Whoever had it since it was last seen has moved its checkpoint.
    seen = {"at_line": job.checkpoint_line, "at_read": job.rows_read}
    if job.status == JobState.PROCESSING:
        if job.owner != owner:
            message = f"job {job.id} belongs to {job.owner} until {job.lease_until}"
            raise LostClaim(message)
        # A commit of ours whose answer was lost may have come since it was last seen.
        goes_on = seen | {"lease_until": now + lease, "key": job.id, "whose": owner}
        if _GO_ON.change(session, goes_on) != 1:
            message = f"job {job.id} came further than we saw, or is no longer ours"
            raise LostClaim(message)
        return
    held = {
        "status": JobState.PROCESSING,
        "owner": owner,
        "lease_until": now + lease,
        "started_at": job.started_at or now,
    }
    if _CLAIM.change(session, held | seen | {"key": job.id}) != 1:
        message = f"job {job.id} was taken by somebody else"
        raise LostClaim(message)
    _now_holds(job, **held)


def advance(
    job: FileProcessing,
    *,
    books: Books,
    checkpoint: tuple[int, int],
    touched: dict[str, Any],
    lease_until: datetime,
) -> None:
    """Note the books and the checkpoint (byte, line) of a batch, for `save` or `complete`."""
    _now_holds(
        job,
        **books.as_columns(),
        checkpoint_byte=checkpoint[0],
        checkpoint_line=checkpoint[1],
        touched=touched,
        lease_until=lease_until,
    )


def save(session: Session, job: FileProcessing) -> None:
    """Write how far a job has come, in the commit of its batch.

    Raises:
        LostClaim: it is no longer ours.
    """
    _change_ours(session, job, _progress_of(job) | {"lease_until": job.lease_until})


def _progress_of(job: FileProcessing) -> dict[str, Any]:
    return {
        **Books.of(job).as_columns(),
        "checkpoint_byte": job.checkpoint_byte,
        "checkpoint_line": job.checkpoint_line,
        "touched": job.touched,
    }


def _change_ours(session: Session, job: FileProcessing, values: dict[str, Any]) -> None:
    if _ADVANCE.change(session, values | {"key": job.id, "whose": job.owner}) != 1:
        message = f"job {job.id} is no longer ours"
        raise LostClaim(message)


def add_rejects(session: Session, job: FileProcessing, rejects: Sequence[validate.Reject]) -> None:
    """Set bad rows aside; the first one is also told on the job."""
    if not rejects:
        return
    session.connection().execute(
        insert(table_of(Reject)),
        [
            {
                "id": uuid.uuid5(job.id, str(reject.line)),
                "file_id": job.id,
                "line_number": reject.line,
                "field": reject.field,
                "kind": reject.kind,
                "value": reject.value,
                "reason": reject.reason,
                "raw_text": reject.raw_text,
                "is_cut": reject.is_cut,
            }
            for reject in rejects
        ],
    )
    if job.first_error_line is None:
        job.first_error_line = rejects[0].line
        job.first_error_field = rejects[0].field
        job.first_error_message = rejects[0].reason
        session.flush()


def complete(
    session: Session,
    job: FileProcessing,
    *,
    now: datetime,
    encoding: str,
    seconds: float,
    goes_to: str | None,
) -> None:
    """Close the books of a job whose last batch is in this commit, and say where its file goes."""
    rows_a_second = job.rows_read / seconds if seconds > 0 else None
    done = {
        "status": JobState.COMPLETED,
        "finished_at": now,
        "encoding": encoding,
        "throughput": rows_a_second,
        "owner": None,
        "lease_until": None,
        "retry_at": None,
        "archived_to": goes_to,
    }
    _change_ours(session, job, _progress_of(job) | done)
    _now_holds(job, **done)


_PUBLICATIONS = (
    select(FileProcessing.id)
    .where(
        FileProcessing.constituency_id == bindparam("constituency"),
        FileProcessing.slot == bindparam("slot"),
        FileProcessing.status.in_(DELIVERED),
    )
    .order_by(FileProcessing.publication, FileProcessing.id)
)


def publications_of(session: Session, job: FileProcessing) -> list[FileProcessing]:
    """The delivered publications of a job's slot, oldest first (only itself without a slot)."""
    if job.slot is None:
        return [job]
    whose = {"constituency": job.constituency_id, "slot": job.slot}
    ids = session.scalars(_PUBLICATIONS, whose).all()
    return [session.get_one(FileProcessing, key) for key in ids]


def outdone(
    session: Session, job: FileProcessing, twins: Sequence[Twin]
) -> Sequence[FileProcessing]:
    """Find completed jobs without a slot in their name whose bytes are here with one.

    Had they come later they would be duplicates; so the one with the slot
    takes their place. `job` has just been completed; it may be either.
    """
    own = [twin for twin in twins if twin.contract_id == job.contract_id]
    if not own or (job.slot is None and all(twin.slot is None for twin in own)):
        return []
    slotless = {job.id, *(twin.id for twin in own)}
    return [
        each
        for each in session.scalars(
            select(FileProcessing)
            .where(FileProcessing.id.in_(slotless), FileProcessing.slot.is_(None))
            .order_by(FileProcessing.id)
        )
        if each.status == JobState.COMPLETED
    ]


def is_outdone(session: Session, job: FileProcessing) -> bool:
    """Say whether the bytes of a job without a slot are here with one."""
    query = select(FileProcessing.id).where(
        FileProcessing.sha256 == job.sha256,
        FileProcessing.contract_id == job.contract_id,
        FileProcessing.status.in_(DELIVERED),
        FileProcessing.slot.is_not(None),
    )
    return job.size > 0 and session.scalar(query.limit(1)) is not None


def refuse_foreign(job: FileProcessing, *, owner: str, now: datetime) -> None:
    """Refuse to touch a job that is final, or that another process holds.

    Raises:
        LostClaim: it is not ours to touch.
    """
    is_held = job.owner not in (None, owner) and job.lease_until and job.lease_until >= now
    if job.status not in QUEUED or (job.status == JobState.PROCESSING and is_held):
        message = f"job {job.id} is {job.status} and belongs to {job.owner or 'nobody'}"
        raise LostClaim(message)


def renumber_as_newest(session: Session, job: FileProcessing) -> None:
    """Give a publication the number behind all others of its slot."""
    job.publication = _next_publication(session, job)
    session.flush()


def make_newest_current(session: Session, publications: Sequence[FileProcessing]) -> bool:
    """Let the newest publication of a slot count and no other; says whether anything changed."""
    newest = publications[-1]
    has_changed = False
    for older, job in zip([None, *publications], publications, strict=False):
        before_it = older.id if older is not None else None
        if job.supersedes_id != before_it:
            job.supersedes_id = before_it
            session.flush()
        wanted = JobState.COMPLETED if job is newest else JobState.SUPERSEDED
        if job.status != wanted:
            move(session, job, wanted)
            has_changed = True
    return has_changed


def release(session: Session, job: FileProcessing, *, owner: str) -> None:
    """Hand a job back at its checkpoint, if it still is ours; no attempt is burnt."""
    session.refresh(job, with_for_update=True)
    if job.status == JobState.PROCESSING and job.owner == owner:
        move(session, job, JobState.PENDING, owner=None, lease_until=None)


def release_dead(session: Session, *, now: datetime, owner: str) -> int:
    """Free the jobs whose owner is gone: the lease is over, or it was a process of this host."""
    held = session.scalars(
        select(FileProcessing).where(FileProcessing.status == JobState.PROCESSING)
    )
    count = 0
    for job in held:
        if is_abandoned(job, now=now, owner=owner):
            try:
                move(session, job, JobState.PENDING, owner=None, lease_until=None)
            except LostClaim:  # it moved on by itself, or another process was quicker
                continue
            count += 1
    return count


def is_abandoned(job: FileProcessing, *, now: datetime, owner: str) -> bool:
    """Say whether nobody works on a job in work any more: its lease or its process is over."""
    if job.status != JobState.PROCESSING or job.owner == owner:
        return False
    is_over = job.lease_until is None or job.lease_until < now
    return is_over or _is_dead_neighbour(job.owner or "", _host_and_pid(owner)[0])


def _is_dead_neighbour(owner: str, host: str) -> bool:
    """Say whether a process of this host is gone; its pid may be another's by now."""
    name, pid, began = _host_and_pid(owner)
    if name != host or pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    found = _began(pid)
    return found == _DEAD or (None not in (began, found) and began != found)


def _host_and_pid(owner: str) -> tuple[str, int | None, str | None]:
    """Take an owner's name apart: host, pid, and the start that older versions left out."""
    told = _OWNER.fullmatch(owner)
    return (told[1], int(told[2]), told[3]) if told else (owner, None, None)


def _began(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since boot; None where nobody can tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Behind the name, which may hold blanks and brackets: state, …, and the 20th is the start.
    fields = status.rpartition(")")[2].split()
    return _DEAD if fields[0] in "ZX" else fields[19]


def fail(
    session: Session, job: FileProcessing, *, reason: str, now: datetime, retry_after: timedelta
) -> None:
    """Note an attempt that broke on something unforeseen; it is tried again later."""
    _begin_again(session, job)
    if job.status == JobState.PENDING:
        move(session, job, JobState.PROCESSING)
    note = {"first_error_message": reason[:_MOST_ERROR_CHARACTERS], "retry_at": now + retry_after}
    move(session, job, JobState.FAILED, attempts=job.attempts + 1, owner=None, **note)


def _begin_again(session: Session, job: FileProcessing) -> None:
    """The commit that took a failed job up again may be lost with the attempt: take it up here."""
    session.refresh(job)
    if job.status == JobState.FAILED:
        move(session, job, JobState.PENDING)


def first_rejects(session: Session, job: FileProcessing, most: int) -> list[Reject]:
    """Give the first bad rows of a job, in order."""
    return list(
        session.scalars(
            select(Reject).where(Reject.file_id == job.id).order_by(Reject.line_number).limit(most)
        )
    )


def quarantine(
    session: Session,
    job: FileProcessing,
    refusal: FileRefused,
    *,
    books: Books,
    rejects: Sequence[dict[str, Any]],
    now: datetime,
) -> None:
    """Close a job whose file is unfit; its rows were undone, its counts stay as evidence."""
    _begin_again(session, job)
    first = rejects[0] if rejects else {"line": None, "field": None}
    counts: dict[str, Any] = dict(books.as_columns())
    evidence = {
        "attempt_counts": counts
        | {"kind": refusal.kind, "value": refusal.value, "rejects": list(rejects)},
        "first_error_line": refusal.line or first["line"],
        "first_error_field": refusal.field or first["field"],
        "first_error_message": refusal.reason[:_MOST_ERROR_CHARACTERS],
    }
    cleared = Books().as_columns() | {"checkpoint_byte": 0, "checkpoint_line": 0, "touched": {}}
    move(session, job, JobState.QUARANTINED, finished_at=now, owner=None, **evidence, **cleared)


def forget_attempt(session: Session, job: FileProcessing) -> None:
    """Reset the books of a job whose rows were undone."""
    session.execute(delete(Reject).where(Reject.file_id == job.id))
    session.execute(
        update(FileProcessing)
        .where(FileProcessing.id == job.id)
        .values(
            **Books().as_columns(),
            checkpoint_byte=0,
            checkpoint_line=0,
            touched={},
            first_error_line=None,
            first_error_field=None,
            first_error_message=None,
        )
    )
    session.refresh(job)


def rewrite_books(
    session: Session,
    job: FileProcessing,
    *,
    books: Books,
    touched: dict[str, Any],
    checkpoint: tuple[int, int] | None = None,
) -> None:
    """Write the books of a delivered job anew, after rows of it were replayed or read again."""
    values: dict[str, Any] = {**books.as_columns(), "touched": touched}
    if checkpoint is not None:
        values |= {"checkpoint_byte": checkpoint[0], "checkpoint_line": checkpoint[1]}
    session.execute(
        update(FileProcessing)
        .where(FileProcessing.id == job.id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    _now_holds(job, **values)


def restate(session: Session, job: FileProcessing, values: Mapping[str, Any]) -> None:
    """Put back what is proved of a job: whereabouts and identity, never its state."""
    session.execute(
        update(FileProcessing)
        .where(FileProcessing.id == job.id)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    _now_holds(job, **values)


def refused_lines(session: Session, job: FileProcessing, lines: Sequence[int]) -> list[int]:
    """Tell which of a batch's lines, in order, are kept as rejects that nobody mended."""
    if not lines:
        return []
    query = select(Reject.line_number).where(
        Reject.file_id == job.id,
        Reject.line_number.between(lines[0], lines[-1]),
        Reject.replayed_at.is_(None),
    )
    return list(session.scalars(query))


def rejects_at(session: Session, job: FileProcessing, lines: Sequence[int]) -> dict[int, Reject]:
    """Give the rejects of a job at these lines, and hold them until the commit."""
    query = select(Reject).where(Reject.file_id == job.id, Reject.line_number.in_(lines))
    return {reject.line_number: reject for reject in session.scalars(query.with_for_update())}


def note_replayed(session: Session, reject: Reject, text: str, *, now: datetime) -> None:
    """Note on a reject what it was mended to; what was refused stays."""
    reject.replayed_at, reject.replayed_text = now, text
    session.flush()


def duplicates_of(session: Session, job: FileProcessing) -> list[FileProcessing]:
    """Give the jobs whose bytes were delivered by this one."""
    query = select(FileProcessing).where(FileProcessing.duplicate_of_id == job.id)
    return list(session.scalars(query.order_by(FileProcessing.id)))


def count_rejects(session: Session, job: FileProcessing) -> int:
    """Count the refused rows of a job, mended ones too."""
    query = select(func.count()).where(Reject.file_id == job.id)
    return session.scalar(query) or 0


def jobs_of(session: Session, constituency_id: uuid.UUID) -> Iterator[FileProcessing]:
    """Walk the jobs of a constituency, duplicates too."""
    query = select(FileProcessing).where(FileProcessing.constituency_id == constituency_id)
    yield from session.scalars(query.execution_options(yield_per=_JOBS_AT_ONCE))


def forget(session: Session, jobs: Sequence[FileProcessing]) -> None:
    """Delete jobs and their rejects; their rows were undone before."""
    ids = [job.id for job in jobs]
    for chunk in chunks(ids):
        session.execute(delete(Reject).where(Reject.file_id.in_(chunk)))
        session.execute(
            delete(FileProcessing)
            .where(FileProcessing.id.in_(chunk))
            .execution_options(synchronize_session=False)
        )


def take_back(session: Session, duplicate: FileProcessing) -> None:
    """Delete a duplicate that was written down ahead, unless somebody has put it away."""
    session.execute(
        delete(FileProcessing)
        .where(
            FileProcessing.id == duplicate.id,
            FileProcessing.status == JobState.DUPLICATE,
            FileProcessing.archived_to == duplicate.archived_to,
        )
        .execution_options(synchronize_session=False)
    )


def twins_set_free(session: Session, job: FileProcessing) -> list[FileProcessing]:
    """Find what `job`, which is gone now, had outdone: its twins without a slot in their name."""
    if job.size == 0 or job.slot is None:
        return []
    twins = session.scalars(
        select(FileProcessing).where(
            FileProcessing.sha256 == job.sha256,
            FileProcessing.contract_id == job.contract_id,
            FileProcessing.status.in_(DELIVERED),
        )
    ).all()
    if any(twin.slot is not None for twin in twins):
        return []
    return [twin for twin in twins if twin.status == JobState.SUPERSEDED]


def ask_again(session: Session, job: FileProcessing, *, now: datetime) -> None:
    """Put a failed, quarantined or vanished job back into the queue, as a person asks.

    Its file must lie where the job says; `ingestd retry` sees to that.

    Raises:
        LostClaim: the job is in a state that cannot be asked for again.
    """
    session.refresh(job)
    move(session, job, JobState.PENDING, attempts=0, retry_at=None, discovered_at=now)


def note_put_back(session: Session, job: FileProcessing, stamp: str) -> None:
    """Note that the file of a job, and of its neighbours in one ZIP, lies in the inbox again.

    A move changes the stamp, by which the file is known.
    """
    session.execute(
        update(FileProcessing)
        .where(
            FileProcessing.path == job.path,
            FileProcessing.root == job.root,
            FileProcessing.archived_to == job.archived_to,
        )
        .values(stamp=stamp, archived_to=None)
        .execution_options(synchronize_session=False)
    )


def tell_by(
    session: Session, container: FileProcessing, member: FileProcessing, now: datetime
) -> None:
    """Close the job of a container that could not be opened once: its members have jobs now."""
    move(session, container, JobState.DUPLICATE, finished_at=now, duplicate_of_id=member.id)


def vanish(session: Session, job: FileProcessing, *, now: datetime) -> None:
    """Note that the file of a job was taken away before it was read."""
    session.refresh(job)
    move(session, job, JobState.VANISHED, finished_at=now, owner=None, lease_until=None)


def note_archived(session: Session, jobs: Sequence[FileProcessing], target: str | None) -> None:
    """Note where a file is about to be put after its commit, or that it was not put there.

    Of two processes that saw the same jobs one may move the file.

    Raises:
        LostClaim: another process has noted something since these jobs were read.
    """
    seen = {job.archived_to for job in jobs}
    known = FileProcessing.archived_to.in_(seen - {None})
    is_as_seen = or_(known, FileProcessing.archived_to.is_(None)) if None in seen else known
    for start in range(0, len(jobs), _IDS_AT_ONCE):
        ids = {job.id for job in jobs[start : start + _IDS_AT_ONCE]}
        result = session.execute(
            update(FileProcessing)
            .where(FileProcessing.id.in_(ids), is_as_seen)
            .values(archived_to=target)
            .execution_options(synchronize_session=False)
        )
        if result.rowcount != len(ids):  # type: ignore[attr-defined]  # an UPDATE always has a count
            message = f"the file of job {jobs[0].id} is being put away by somebody else"
            raise LostClaim(message)
    for job in jobs:
        _now_holds(job, archived_to=target)


def queued_under(session: Session, root: str, path: str | None = None) -> list[FileProcessing]:
    """List the jobs of a root, or of one path there, that still ask for work."""
    query = select(FileProcessing).where(
        FileProcessing.root == root, FileProcessing.status.in_(QUEUED)
    )
    if path is not None:
        query = query.where(FileProcessing.path == path)
    return list(session.scalars(query))


def last_completed(session: Session, root: str, most: int) -> list[tuple[str, datetime]]:
    """Give path and time of the jobs of a root that were completed last, the latest first."""
    query = (
        select(FileProcessing.path, FileProcessing.finished_at)
        .where(
            FileProcessing.finished_at.is_not(None),
            FileProcessing.root == root,
            FileProcessing.status.in_((JobState.COMPLETED, JobState.SUPERSEDED)),
        )
        .order_by(FileProcessing.finished_at.desc())
        .limit(most)
    )
    return [(path, finished) for path, finished in session.execute(query).all() if finished]


def last_at(session: Session, root: str, paths: Sequence[str]) -> dict[str, list[FileProcessing]]:
    """Give the jobs of the file that was found last, for each of `paths` that had one."""
    jobs = session.scalars(
        select(FileProcessing)
        .where(FileProcessing.path.in_(paths), FileProcessing.root == root)
        .order_by(FileProcessing.discovered_at.desc(), FileProcessing.member)
    )
    last: dict[str, list[FileProcessing]] = {}
    for job in jobs:
        found = last.setdefault(job.path, [])
        if not found or found[0].stamp == job.stamp:
            found.append(job)
    return last


def is_there(job: FileProcessing) -> bool:
    """Look whether the very file of a job still lies where it was found."""
    for path in paths_of(job.path):
        try:
            if stamp_of(Path(job.root, path).stat()) == job.stamp:
                return True
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # A folder that may not be entered hides the file, it does not take it away.
            if error.errno != errno.ENAMETOOLONG:
                return True
    return False


def paths_of(label: str) -> tuple[Path, Path]:
    r"""Name the paths that a label may mean.

    A byte that is not UTF-8 stands there spelt out, as `\xe9`, like a name that is written so.
    """
    meant = _SPELT_OUT.sub(lambda byte: bytes.fromhex(byte[1].decode()), label.encode())
    return Path(label), Path(os.fsdecode(meant))


def is_gone(job: FileProcessing) -> bool:
    """Say whether the file of a job was taken away; not when its whole file system is away.

    An empty mount point is no sign that anybody deleted what belongs there.
    """
    try:
        if is_there(job):
            return False
        folder = Path(job.root, job.path).parent
        while not folder.is_dir():
            if folder == Path(job.root):
                return False
            folder = folder.parent
        return job.stamp.startswith(f"{folder.stat().st_dev}:")
    except OSError:
        return False


def is_due(job: FileProcessing, *, now: datetime, longest: timedelta) -> bool:
    """Say whether a queued job may be worked on now.

    No pause is longer than `longest`: if one seems to be, the clock was set back meanwhile.
    """
    if job.status not in QUEUED:
        return False
    return job.retry_at is None or not now < job.retry_at <= now + longest
