"""Histories: what the sightings of a constituency's transactions tell, for the rules about them.

Asked only where rows were seen again, rolled back, superseded or undone.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import orjson
from sqlalchemy import Select, Text, and_, bindparam, case, cast, exists, func, or_, select, union
from sqlalchemy.orm import Session, aliased

from ingestd.db import AnyRow
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import Constituency, FileProcessing, Sighting, table_of
from ingestd.pipeline import rules
from ingestd.pipeline.rules import Content, Disagreement, Finding, LostBallot, Republication
from ingestd.pipeline.sightings import events_of, seen_files
from ingestd.pipeline.touched import (
    ON_CHAIN,
    ROLLED_BACK,
    WITHDRAWN,
    by_bytes,
    chunks,
    content,
    sighting,
    transaction,
)
from ingestd.pipeline.validate import constituency_prefix, transaction_id
from ingestd.pipeline.verdict import Event, SeenFile

_BODY = ("timestamp", "type", "tx_type", "version", "fee", "fee_asset_id", "sender", "signature")
_BALLOTS = ("bulletin", "vote")
ledgered = table_of(FileProcessing)


def rewritten(session: Session, constituency_id: uuid.UUID) -> list[Finding]:
    """Look at every transaction of which more than one content is kept; they are rare."""
    contract_id = session.scalar(
        select(Constituency.contract_id).where(Constituency.id == constituency_id)
    )
    low, high = key_range(str(contract_id))
    kept = content.c.transaction_id.between(low, high)
    ids = list(session.scalars(select(content.c.transaction_id).where(kept).distinct()))
    findings: list[Finding] = []
    for chunk in chunks(ids):
        histories = histories_of(session, chunk)
        files = files_in(session, histories)
        contents = _contents(session, chunk)
        for row in rows_of(session, chunk, "tx_id", "timestamp"):
            # What a superseded publication said is `slot_republished`'s matter.
            events = [event for event in histories[row.id] if files[event.file_id].is_current]
            if rules.is_rewritten(events, files, contents[row.id]):
                number = len({event.content_hash for event in events if event.sign > 0})
                findings.append(rules.transaction_rewritten(row.tx_id, row.timestamp, number))
    return findings


def key_range(contract_id: str) -> tuple[uuid.UUID, uuid.UUID]:
    """The first and last key that a transaction of a contract can have."""
    prefix = int.from_bytes(constituency_prefix(contract_id), "big")
    return uuid.UUID(int=prefix << 96), uuid.UUID(int=((prefix + 1) << 96) - 1)


def rows_of(session: Session, ids: Sequence[uuid.UUID], *names: str) -> Sequence[AnyRow]:
    """Read columns of transactions, in the order of their ids."""
    columns = [transaction.c[name] for name in ("id", *names)]
    in_order = by_bytes(transaction.c.tx_id, session)
    query = select(*columns).where(transaction.c.id.in_(ids)).order_by(in_order)
    return session.execute(query).all()


def histories_of(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Event]]:
    """All events of each transaction, explicit and implicit."""
    events = events_of(session, ids)
    for row in rows_of(session, ids, "file_id", "line_number", "content_hash"):
        event = Event(row.file_id, row.line_number, 1, row.content_hash)
        events.setdefault(row.id, {}).setdefault((row.file_id, row.line_number), event)
    return {key: list(events.get(key, {}).values()) for key in ids}


def files_in(
    session: Session, histories: dict[uuid.UUID, list[Event]]
) -> dict[uuid.UUID, SeenFile]:
    """Read what must be known of the files of these events."""
    ids = {event.file_id for events in histories.values() for event in events}
    return seen_files(session, ids)


def _contents(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[bytes, Content]]:
    """Every content of each transaction, normalised: JSON is compared as JSON."""
    contents: dict[uuid.UUID, dict[bytes, Content]] = {key: {} for key in ids}
    texts = [
        cast(transaction.c[name], Text).label(name)
        for name in ("raw_data", "extra", "operation_data")
    ]
    columns = [transaction.c[name] for name in _BODY]
    for row in session.execute(
        select(transaction.c.id, transaction.c.content_hash, *columns, *texts).where(
            transaction.c.id.in_(ids)
        )
    ):
        values = row._asdict()
        values["timestamp"] = values["timestamp"].isoformat()
        contents[row.id][row.content_hash] = _normalised(values)
    for row in session.execute(select(content).where(content.c.transaction_id.in_(ids))):
        contents[row.transaction_id][row.content_hash] = _normalised(row.content)
    return contents


def _normalised(values: dict[str, Any]) -> Content:
    body = {name: values[name] for name in _BODY}
    body |= {name: orjson.loads(values[name]) for name in ("raw_data", "extra")}
    return Content(body, orjson.loads(values["operation_data"]))


def withdrawn(session: Session, constituency_id: uuid.UUID) -> list[Finding]:
    """Find what no current file holds, by the slots that held it."""
    t = transaction.c
    ids = list(
        session.scalars(
            select(t.id).where(t.constituency_id == constituency_id, t.status == WITHDRAWN)
        )
    )
    by_slot: dict[str, list[tuple[str, datetime]]] = {}
    for chunk in chunks(ids):
        histories = histories_of(session, chunk)
        files = files_in(session, histories)
        for row in rows_of(session, chunk, "tx_id", "timestamp"):
            slots = {files[event.file_id].slot for event in histories[row.id] if event.sign > 0}
            for slot in slots - {None} or {None}:
                by_slot.setdefault(slot or "-", []).append((row.tx_id, row.timestamp))
    return [rules.history_withdrawn(slot, rows) for slot, rows in sorted(by_slot.items())]


def republished(session: Session, constituency_id: uuid.UUID) -> list[Finding]:
    """Compare the publications of every slot that has several."""
    job = FileProcessing
    jobs = session.execute(
        select(job.id, job.slot, job.sha256)
        .where(
            job.constituency_id == constituency_id,
            job.status.in_(DELIVERED),
            job.slot.is_not(None),
            job.slot.in_(
                select(job.slot).where(
                    job.constituency_id == constituency_id, job.status == JobState.SUPERSEDED
                )
            ),
        )
        .order_by(job.slot, job.publication, job.id)
    ).all()
    by_slot: dict[str, list[AnyRow]] = {}
    for row in jobs:
        by_slot.setdefault(row.slot, []).append(row)
    findings: list[Finding] = []
    for slot, publications in by_slot.items():
        steps = [_compare(session, older, newer) for older, newer in pairwise(publications)]
        findings += rules.slot_republished(slot, steps)
    return findings


def _compare(session: Session, older: AnyRow, newer: AnyRow) -> Republication:
    """Compare two publications by their sightings (explicit since the one superseded the other)."""
    gone = list(session.scalars(_only_in(older.id, newer.id)))
    added = list(session.scalars(_only_in(newer.id, older.id)))
    changed = _changed(session, older.id, newer.id)
    excused = {
        key
        for chunk in chunks(gone)
        for key in session.scalars(
            select(sighting.c.transaction_id).where(
                sighting.c.transaction_id.in_(chunk), sighting.c.sign < 0
            )
        )
    }
    lost = [key for key in gone if key not in excused]
    named: list[uuid.UUID] = [*changed, *lost, *added][: rules.MOST_LISTED]
    return Republication(
        older_sha256=older.sha256,
        newer_sha256=newer.sha256,
        added=len(added),
        gone=len(gone),
        gone_without_rollback=len(lost),
        changed=len(changed),
        is_part_of_older=bool(gone) and not added and not changed,
        tx_ids=tuple(row.tx_id for row in rows_of(session, named, "tx_id")),
    )


def _only_in(one: uuid.UUID, other: uuid.UUID) -> Select[Any]:
    a, b = aliased(Sighting), aliased(Sighting)
    in_other = exists().where(b.transaction_id == a.transaction_id, b.file_id == other, b.sign > 0)
    return (
        select(a.transaction_id)
        .where(a.file_id == one, a.sign > 0, ~in_other)
        .distinct()
        .order_by(a.transaction_id)
    )


def _changed(session: Session, older: uuid.UUID, newer: uuid.UUID) -> list[uuid.UUID]:
    """Find ids in both publications whose contents differ after normalisation."""
    a, b, c = aliased(Sighting), aliased(Sighting), aliased(Sighting)
    same = exists().where(
        and_(
            b.transaction_id == a.transaction_id,
            b.file_id == newer,
            b.sign > 0,
            b.content_hash == a.content_hash,
        )
    )
    held = exists().where(c.transaction_id == a.transaction_id, c.file_id == newer, c.sign > 0)
    suspects = session.scalars(
        select(a.transaction_id)
        .where(a.file_id == older, a.sign > 0, held, ~same)
        .distinct()
        .order_by(a.transaction_id)
    ).all()
    changed: list[uuid.UUID] = []
    for chunk in chunks(suspects):
        histories = histories_of(session, chunk)
        contents = _contents(session, chunk)
        for key in chunk:
            shown = {
                file_id: [
                    contents[key][event.content_hash]
                    for event in sorted(histories[key], key=lambda event: event.line)
                    if event.file_id == file_id and event.content_hash
                ]
                for file_id in (older, newer)
            }
            if shown[older] != shown[newer]:
                changed.append(key)
    return changed


# ── one transaction more than once ───────────────────────────────────────────


def doubled(
    session: Session, constituency_id: uuid.UUID, *, file_id: uuid.UUID | None, among: Sequence[str]
) -> tuple[list[Finding], list[str] | None]:
    """Find ids that stand in current files as if they had happened twice.

    `file_id` is the one file that brought rows seen before: then only its transactions and
    those `among` the open findings are looked at, and their ids are given, too.
    """
    contract_id = _contract_of(session, constituency_id)
    prefix = constituency_prefix(contract_id)
    low, high = key_range(contract_id)
    explicit = select(sighting.c.transaction_id, sighting.c.file_id, sighting.c.line_number).where(
        sighting.c.sign > 0, sighting.c.transaction_id.between(low, high)
    )
    t = transaction.c
    has_more = select(sighting.c.transaction_id).where(sighting.c.transaction_id.between(low, high))
    asked: list[str] | None = None
    if file_id is not None:
        mine = select(sighting.c.transaction_id).where(sighting.c.file_id == file_id)
        known = [transaction_id(prefix, tx_id) for tx_id in among]
        is_asked = or_(sighting.c.transaction_id.in_(mine), sighting.c.transaction_id.in_(known))
        explicit = explicit.where(is_asked)
        has_more = has_more.where(is_asked)
        asked = list(among)
    implicit = select(t.id, t.file_id, t.line_number).where(t.id.in_(has_more))
    events = union(explicit, implicit).subquery()
    key, file = events.c.transaction_id, events.c.file_id
    in_intervals = func.sum(case((ledgered.c.is_cumulative, 0), else_=1))
    suspects = session.scalars(
        select(key)
        .join(ledgered, ledgered.c.id == file)
        .where(ledgered.c.status != JobState.SUPERSEDED)
        .group_by(key)
        .having(or_(in_intervals > 1, func.count() > func.count(file.distinct())))
        .order_by(key)
    ).all()
    findings: list[Finding] = []
    for chunk in chunks(suspects):
        histories = histories_of(session, chunk)
        files = files_in(session, histories)
        contents = _contents(session, chunk)
        for row in rows_of(session, chunk, "tx_id", "timestamp"):
            current = [event for event in histories[row.id] if files[event.file_id].is_current]
            # With different contents it is `transaction_rewritten`, which says more.
            is_rewritten = rules.is_rewritten(current, files, contents[row.id])
            if not is_rewritten and rules.is_doubled(current, files):
                number = sum(event.sign > 0 for event in current)
                findings.append(rules.duplicate_transaction(row.tx_id, row.timestamp, number))
    return findings, asked


def _contract_of(session: Session, constituency_id: uuid.UUID) -> str:
    query = select(Constituency.contract_id).where(Constituency.id == constituency_id)
    return str(session.scalar(query))


# ── rolled back ──────────────────────────────────────────────────────────────


def lost_ballots(session: Session, constituency_id: uuid.UUID) -> list[LostBallot]:
    """The accepted ballots that are rolled back now, with the slot of their last rollback."""
    t = transaction.c
    query = select(t.id, t.tx_id, t.timestamp).where(
        t.constituency_id == constituency_id, t.status == ROLLED_BACK, t.tally.in_(_BALLOTS)
    )
    found: list[LostBallot] = []
    for chunk in chunks(session.execute(query.order_by(by_bytes(t.tx_id, session))).all()):
        histories = histories_of(session, [row.id for row in chunk])
        files = files_in(session, histories)
        for row in chunk:
            slots = [
                files[event.file_id].slot or ""
                for event in histories[row.id]
                if event.sign < 0
                and files[event.file_id].is_current
                and not files[event.file_id].is_cumulative
            ]
            found.append(LostBallot(row.tx_id, row.timestamp, max(slots, default="") or None))
    return found


# ── the export of a whole voting ─────────────────────────────────────────────


def disagreement(
    session: Session,
    constituency_id: uuid.UUID,
    whole: AnyRow,
    slots: Sequence[str] | None,
    within: tuple[datetime, datetime] | None,
) -> Disagreement:
    """Compare a cumulative file with the hourly files of its time.

    `slots` are those within its time (None: all); `within` is the time in which every hour is
    here, so that what only the cumulative file has is a surplus.
    """
    t = transaction.c
    explicit = exists().where(
        sighting.c.transaction_id == t.id,
        sighting.c.file_id == bindparam("whole"),
        sighting.c.sign > 0,
    )
    held = or_(t.file_id == bindparam("whole"), explicit)
    mine = and_(t.constituency_id == constituency_id, t.status != WITHDRAWN)
    lacking = select(t.tx_id).where(mine, t.slot.is_not(None), ~held)
    if slots is not None:
        lacking = lacking.where(t.slot.in_(slots))
    asked = {"whole": whole.id}
    lacks = sorted(session.scalars(lacking, asked))
    more: list[str] = []
    if within is not None:
        surplus = select(t.tx_id).where(
            mine,
            t.slot.is_(None),
            t.status.in_((*ON_CHAIN, ROLLED_BACK)),
            t.timestamp >= within[0],
            t.timestamp <= within[1],
            held,
        )
        more = sorted(session.scalars(surplus, asked))
    return Disagreement(
        slot=whole.slot,
        sha256=whole.sha256,
        lacking=len(lacks),
        lacking_ids=tuple(lacks[: rules.MOST_LISTED]),
        surplus=len(more),
        surplus_ids=tuple(more[: rules.MOST_LISTED]),
    )
