"""Alerts: gathers the facts for the rules, and raises, updates and clears what they find.

An alert's id is derived from rule, constituency and subject, so that a retry,
a restart or another order finds the same alert again. A person's side
(status, notes, assignee) is never touched here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

import orjson
from sqlalchemy import Select, Text, and_, bindparam, cast, exists, func, insert, select, text
from sqlalchemy.orm import Session, aliased

from ingestd.db import AnyRow, is_postgresql
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import Alert, Constituency, FileProcessing, Sighting, table_of
from ingestd.pipeline import rules
from ingestd.pipeline.prepared import Prepared
from ingestd.pipeline.rules import Content, Finding, Republication, SlotCount, Totals
from ingestd.pipeline.sightings import events_of, seen_files
from ingestd.pipeline.stats import NO_BALLOT, Revote, RolledUp, revotes_around
from ingestd.pipeline.touched import (
    ON_CHAIN,
    WITHDRAWN,
    Touched,
    chunks,
    content,
    hour_of,
    sighting,
    transaction,
)
from ingestd.pipeline.validate import OPERATIONS, constituency_prefix
from ingestd.pipeline.verdict import Event, SeenFile

_NAMES = uuid.UUID("2b0f8d1c-93f1-5c36-8c55-6a3f0a4f1c07")
_BODY = ("timestamp", "type", "tx_type", "version", "fee", "fee_asset_id", "sender", "signature")


_WHOSE = transaction.c.constituency_id == bindparam("constituency")
_OPEN_ALERTS = Prepared(
    select(Alert.type, Alert.subject, Alert.details).where(
        Alert.constituency_id == bindparam("constituency"), Alert.cleared_at.is_(None)
    )
)
_HAS_VOTERS_LIST = select(
    exists().where(
        _WHOSE,
        transaction.c.type == "addVotersList",
        NO_BALLOT,
        transaction.c.status == "accepted",
    )
)
_CURRENT_SLOTS = Prepared(
    select(
        FileProcessing.slot,
        FileProcessing.is_cumulative,
        FileProcessing.slot_bulletins,
        FileProcessing.slot_votes,
    )
    .where(
        FileProcessing.constituency_id == bindparam("constituency"),
        FileProcessing.status == JobState.COMPLETED,
        FileProcessing.slot.is_not(None),
    )
    .order_by(FileProcessing.slot)
)
_START_SLOT = select(func.min(transaction.c.slot)).where(
    _WHOSE,
    transaction.c.type == "startVoting",
    NO_BALLOT,
    transaction.c.status == "accepted",
)
_UNKNOWN_OPERATIONS = (
    select(transaction.c.type)
    .where(_WHOSE, NO_BALLOT, transaction.c.type.not_in(OPERATIONS))
    .distinct()
)


def evaluate(
    session: Session,
    constituency_id: uuid.UUID,
    touched: Touched,
    rolled_up: RolledUp,
    *,
    has_history: bool,
    now: datetime,
) -> None:
    """Run every rule of a constituency over its current data; the caller commits.

    `has_history` says that rows were seen again, rolled back, superseded or
    undone: only then can the rules about rewritten history find anything new.
    """
    open_alerts = _OPEN_ALERTS.all(session, {"constituency": constituency_id})
    totals = _totals(session, constituency_id, rolled_up)
    revotes = rolled_up.revotes
    outdated = _outdated_revotes(open_alerts, totals)
    if outdated:
        touched = Touched(touched.hours | outdated)
        _, revotes = revotes_around(session, constituency_id, touched.hours)
    settle = _Settlement(session, constituency_id, now, {row.type for row in open_alerts})
    settle("votes_exceed_bulletins", _votes_exceed(session, constituency_id, totals))
    settle("turnout_over_registered", rules.turnout_over_registered(totals))
    settle(
        "duplicate_vote_key",
        rules.duplicate_vote_key(totals, revotes),
        among=_senders_in_doubt(open_alerts, touched, revotes),
    )
    if has_history:
        settle("transaction_rewritten", _rewritten(session, constituency_id))
        settle("history_withdrawn", _withdrawn(session, constituency_id))
        settle("slot_republished", _republished(session, constituency_id))
    if rolled_up.has_operations:
        _unknown_operations(session, constituency_id, now, has_history=has_history)


class _Settlement:
    """Makes the alerts of one constituency say what the rules found."""

    def __init__(
        self,
        session: Session,
        constituency_id: uuid.UUID | None,
        now: datetime,
        open_rules: set[str] | None = None,
    ) -> None:
        """Settle alerts; `open_rules` are those with open alerts, where the caller knows."""
        self._open_rules = open_rules
        self._session = session
        self._constituency_id = constituency_id
        self._now = now

    def __call__(
        self, rule: str, findings: Sequence[Finding], *, among: Iterable[str] | None = None
    ) -> None:
        """Raise or update `findings`; clear the rule's other open alerts (of subjects `among`)."""
        if not findings and self._open_rules is not None and rule not in self._open_rules:
            return
        condition = Alert.constituency_id == self._constituency_id
        if self._constituency_id is None:
            condition = Alert.constituency_id.is_(None)
        query = select(Alert).where(condition, Alert.type == rule)
        if among is not None:
            subjects = sorted({*among, *(finding.subject for finding in findings)})
            known = [
                alert
                for chunk in chunks(subjects)
                for alert in self._session.scalars(query.where(Alert.subject.in_(chunk)))
            ]
        else:
            known = list(self._session.scalars(query))
        by_subject = {alert.subject: alert for alert in known}
        new = [finding for finding in findings if finding.subject not in by_subject]
        for finding in findings:
            if finding.subject in by_subject:
                self._update(by_subject.pop(finding.subject), finding)
        for alert in by_subject.values():
            if alert.cleared_at is None:
                alert.cleared_at = self._now
                alert.cleared_reason = "it no longer holds with the files that are here now"
        self._session.flush()
        self._raise(rule, new)

    def _raise(self, rule: str, findings: Sequence[Finding]) -> None:
        rows = [
            {
                "id": alert_id(rule, self._constituency_id, finding.subject),
                "type": rule,
                "class": rules.CLASSES[rule],
                "constituency_id": self._constituency_id,
                "subject": finding.subject,
                "ruleset": rules.RULESET,
                "status": "active",
                "notes": [],
                **_said(finding),
            }
            for finding in findings
        ]
        if rows:
            self._session.connection().execute(insert(table_of(Alert)), rows)

    @staticmethod
    def _update(alert: Alert, finding: Finding) -> None:
        for name, value in _said(finding).items():
            if getattr(alert, name) != value:
                setattr(alert, name, value)
        if alert.cleared_at is not None:
            alert.cleared_at = alert.cleared_reason = None


def _said(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity,
        "title": finding.title,
        "description": finding.description,
        "details": finding.details,
        "detected_at": finding.detected_at,
    }


def alert_id(rule: str, constituency_id: uuid.UUID | None, subject: str) -> uuid.UUID:
    """UUIDv5 of rule, constituency and subject."""
    return uuid.uuid5(_NAMES, f"{rule}|{constituency_id or '-'}|{subject}")


def _totals(session: Session, constituency_id: uuid.UUID, rolled_up: RolledUp) -> Totals:
    sums = rolled_up.sums
    has_list = sums["list_added"] and session.scalar(
        _HAS_VOTERS_LIST, {"constituency": constituency_id}
    )
    return Totals(
        bulletins=sums["bulletins_issued"],
        votes=sums["votes_cast"],
        list_added=sums["list_added"],
        list_removed=sums["list_removed"],
        has_voters_list=bool(has_list),
        is_revote_blocked=rolled_up.is_revote_blocked,
        last_activity=rolled_up.last_activity,
    )


def _votes_exceed(session: Session, constituency_id: uuid.UUID, totals: Totals) -> list[Finding]:
    current = _CURRENT_SLOTS.all(session, {"constituency": constituency_id})
    slots = [
        SlotCount(row.slot, row.slot_bulletins, row.slot_votes)
        for row in current
        if not row.is_cumulative
    ]
    rule = partial(
        rules.votes_exceed_bulletins,
        totals,
        slots,
        has_whole=any(row.slot == "whole" for row in current),
    )
    # When the voting began matters to a finding only, and almost no file makes one.
    if not rule(start_slot=None):
        return []
    return rule(start_slot=session.scalar(_START_SLOT, {"constituency": constituency_id}))


def _senders_in_doubt(
    open_alerts: Sequence[AnyRow], touched: Touched, revotes: Sequence[Revote]
) -> set[str]:
    """Name the senders whose alert must be looked at again: one of their votes was touched."""
    found = {revote.sender for revote in revotes}
    for row in open_alerts:
        if row.type == "duplicate_vote_key" and touched.hours & _hours_of_votes(row):
            found.add(row.subject)
    return found


def _outdated_revotes(open_alerts: Sequence[AnyRow], totals: Totals) -> set[int]:
    """Hours of the revotes that were judged before it was known whether revotes are allowed."""
    return {
        hour
        for row in open_alerts
        if row.type == "duplicate_vote_key"
        and row.details["is_revote_blocked"] is not totals.is_revote_blocked
        for hour in _hours_of_votes(row)
    }


def _hours_of_votes(alert: AnyRow) -> set[int]:
    moments = [datetime.fromisoformat(vote["timestamp"]) for vote in alert.details["votes"]]
    return {hour_of(moment) for moment in moments}


def _rewritten(session: Session, constituency_id: uuid.UUID) -> list[Finding]:
    """Look at every transaction of which more than one content is kept; they are rare."""
    contract_id = session.scalar(
        select(Constituency.contract_id).where(Constituency.id == constituency_id)
    )
    low, high = _key_range(str(contract_id))
    kept = content.c.transaction_id.between(low, high)
    ids = list(session.scalars(select(content.c.transaction_id).where(kept).distinct()))
    findings: list[Finding] = []
    for chunk in chunks(ids):
        histories = _histories(session, chunk)
        files = _files_in(session, histories)
        contents = _contents(session, chunk)
        for row in _rows(session, chunk, "tx_id", "timestamp"):
            # What a superseded publication said is `slot_republished`'s matter.
            events = [event for event in histories[row.id] if files[event.file_id].is_current]
            if rules.is_rewritten(events, files, contents[row.id]):
                number = len({event.content_hash for event in events if event.sign > 0})
                findings.append(rules.transaction_rewritten(row.tx_id, row.timestamp, number))
    return findings


def _key_range(contract_id: str) -> tuple[uuid.UUID, uuid.UUID]:
    prefix = int.from_bytes(constituency_prefix(contract_id), "big")
    return uuid.UUID(int=prefix << 96), uuid.UUID(int=((prefix + 1) << 96) - 1)


def _rows(session: Session, ids: Sequence[uuid.UUID], *names: str) -> Sequence[AnyRow]:
    columns = [transaction.c[name] for name in ("id", *names)]
    return session.execute(
        select(*columns).where(transaction.c.id.in_(ids)).order_by(transaction.c.tx_id)
    ).all()


def _histories(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Event]]:
    """All events of each transaction, explicit and implicit."""
    events = events_of(session, ids)
    for row in _rows(session, ids, "file_id", "line_number", "content_hash"):
        event = Event(row.file_id, row.line_number, 1, row.content_hash)
        events.setdefault(row.id, {}).setdefault((row.file_id, row.line_number), event)
    return {key: list(events.get(key, {}).values()) for key in ids}


def _files_in(
    session: Session, histories: dict[uuid.UUID, list[Event]]
) -> dict[uuid.UUID, SeenFile]:
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


def _withdrawn(session: Session, constituency_id: uuid.UUID) -> list[Finding]:
    t = transaction.c
    ids = list(
        session.scalars(
            select(t.id).where(t.constituency_id == constituency_id, t.status == WITHDRAWN)
        )
    )
    by_slot: dict[str, list[tuple[str, datetime]]] = {}
    for chunk in chunks(ids):
        histories = _histories(session, chunk)
        files = _files_in(session, histories)
        for row in _rows(session, chunk, "tx_id", "timestamp"):
            slots = {files[event.file_id].slot for event in histories[row.id] if event.sign > 0}
            for slot in slots - {None} or {None}:
                by_slot.setdefault(slot or "-", []).append((row.tx_id, row.timestamp))
    return [rules.history_withdrawn(slot, rows) for slot, rows in sorted(by_slot.items())]


def _republished(session: Session, constituency_id: uuid.UUID) -> list[Finding]:
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
        tx_ids=tuple(row.tx_id for row in _rows(session, named, "tx_id")),
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
        histories = _histories(session, chunk)
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


def _unknown_operations(
    session: Session, constituency_id: uuid.UUID, now: datetime, *, has_history: bool
) -> None:
    found = set(session.scalars(_UNKNOWN_OPERATIONS, {"constituency": constituency_id}))
    if has_history:
        # The one that raised it may show another content by now.
        found.update(
            session.scalars(
                select(Alert.subject).where(
                    Alert.type == "unknown_operation", Alert.cleared_at.is_(None)
                )
            )
        )
    if not found:
        return
    # The alert is about all constituencies: one worker counts at a time.
    if is_postgresql(session):
        session.execute(text("SELECT pg_advisory_xact_lock(7002)"))
    settle = _Settlement(session, None, now)
    # Many at once: a file of a thousand names must not cost each later one a thousand queries.
    for operations in chunks(sorted(found)):
        settle("unknown_operation", _count_operations(session, operations), among=operations)


def _count_operations(session: Session, operations: Sequence[str]) -> list[Finding]:
    """Count these operations over all constituencies; one that is on chain nowhere is none."""
    t = transaction.c
    whose = (t.type.in_(operations), NO_BALLOT, t.status.in_(ON_CHAIN))
    counted = session.execute(
        select(t.type, func.count(), func.count(t.constituency_id.distinct()))
        .where(*whose)
        .group_by(t.type)
    )
    in_time = func.row_number().over(partition_by=t.type, order_by=(t.timestamp, t.tx_id))
    ranked = select(t.type, t.tx_id, t.timestamp, in_time.label("place")).where(*whose).subquery()
    first = {
        row.type: (row.tx_id, row.timestamp)
        for row in session.execute(select(ranked).where(ranked.c.place == 1))
    }
    return [
        rules.unknown_operation(operation, number, constituencies, first[operation])
        for operation, number, constituencies in counted
    ]


def note_refused_file(session: Session, job: FileProcessing, now: datetime) -> None:
    """Raise the alert of a quarantined job, or clear it when the job is no longer there."""
    findings = [_refusal(job)] if job.status == JobState.QUARANTINED else []
    settle = _Settlement(session, job.constituency_id, now)
    settle("file_rejected", findings, among=[_refused_subject(job)])


def note_forgotten_file(session: Session, job: FileProcessing, now: datetime) -> None:
    """Clear the alert of a quarantined job that was forgotten, unless its bytes are here twice."""
    findings = [_refusal(other) for other in _refused(session, job.constituency_id)]
    subject = _refused_subject(job)
    left = [finding for finding in findings if finding.subject == subject][:1]
    _Settlement(session, job.constituency_id, now)("file_rejected", left, among=[subject])


def _refused(session: Session, constituency_id: uuid.UUID | None) -> list[FileProcessing]:
    job = FileProcessing
    whose = job.constituency_id == constituency_id
    if constituency_id is None:
        whose = job.constituency_id.is_(None)
    query = select(job).where(whose, job.status == JobState.QUARANTINED).order_by(job.id)
    return list(session.scalars(query))


def _refused_subject(job: FileProcessing) -> str:
    return f"{job.contract_id or '-'}:{job.sha256}"


def _refusal(job: FileProcessing) -> Finding:
    return rules.file_rejected(
        job.name,
        subject=_refused_subject(job),
        reason=job.first_error_message or "",
        line=job.first_error_line,
        sha256=job.sha256,
    )


def review(
    session: Session, constituency_id: uuid.UUID | None, rolled_up: RolledUp | None
) -> list[Finding]:
    """Tell what all rules find in a constituency, or outside of all, and write nothing.

    `rolled_up` is about all its hours, with all revotes; None outside.
    """
    refused = {_refused_subject(job): job for job in _refused(session, constituency_id)}
    findings = [_refusal(job) for job in refused.values()]
    if constituency_id is None or rolled_up is None:
        t = transaction.c
        unknown = select(t.type).where(NO_BALLOT, t.type.not_in(OPERATIONS)).distinct()
        for operations in chunks(session.scalars(unknown)):
            findings += _count_operations(session, operations)
        return findings
    totals = _totals(session, constituency_id, rolled_up)
    return [
        *findings,
        *_votes_exceed(session, constituency_id, totals),
        *rules.turnout_over_registered(totals),
        *rules.duplicate_vote_key(totals, rolled_up.revotes),
        *_rewritten(session, constituency_id),
        *_withdrawn(session, constituency_id),
        *_republished(session, constituency_id),
    ]


def is_said(alert: Alert, finding: Finding) -> bool:
    """Say whether the engine's side of an alert is what a finding says."""
    said = _said(finding) | {"alert_class": rules.CLASSES.get(finding.rule)}
    return all(getattr(alert, name) == value for name, value in said.items())


def open_alerts(session: Session, constituency_id: uuid.UUID | None) -> list[Alert]:
    """Give the open alerts of a constituency, or those of none; the evaluator keeps its own."""
    whose = Alert.constituency_id == constituency_id
    if constituency_id is None:
        whose = Alert.constituency_id.is_(None)
    not_peers = Alert.alert_class != "statistical"
    return list(session.scalars(select(Alert).where(whose, not_peers, Alert.cleared_at.is_(None))))


def set_right(
    session: Session, constituency_id: uuid.UUID | None, rolled_up: RolledUp | None, now: datetime
) -> None:
    """Let the alerts of a constituency say what all rules find, whatever they say now."""
    findings = review(session, constituency_id, rolled_up)
    rows = open_alerts(session, constituency_id)
    for rule in sorted({alert.type for alert in rows} | {each.rule for each in findings}):
        settle = _Settlement(session, constituency_id, now)
        settle(rule, [each for each in findings if each.rule == rule])
    for alert in rows:
        alert.alert_class = rules.CLASSES.get(alert.type, alert.alert_class)
    session.flush()


def settle_unlikely(
    session: Session,
    constituency_id: uuid.UUID | None,
    findings: Mapping[str, Sequence[Finding]],
    *,
    open_rules: Iterable[str],
    now: datetime,
) -> None:
    """Let the statistical alerts of a constituency, or of none, say what the evaluator found."""
    settle = _Settlement(session, constituency_id, now)
    for rule in sorted({*open_rules, *findings}):
        settle(rule, findings.get(rule, ()))
