"""Alerts: lets the rules look, and raises, updates and clears what they find.

An alert's id is derived from rule, constituency and subject, so that a retry,
a restart or another order finds the same alert again. A person's side
(status, notes, assignee) is never touched here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from sqlalchemy import and_, bindparam, func, insert, select, text
from sqlalchemy.orm import Session

from ingestd.db import AnyRow, is_postgresql
from ingestd.job_state import JobState
from ingestd.models import Alert, Constituency, Election, FileProcessing, table_of
from ingestd.pipeline import facts as known
from ingestd.pipeline import histories, outbox, rules, stats
from ingestd.pipeline.facts import Facts, facts_of
from ingestd.pipeline.prepared import Prepared
from ingestd.pipeline.proof import files_of_lines, proved, proved_by_files
from ingestd.pipeline.rules import CLASSES, RANKS, RULES, RULESET, Finding
from ingestd.pipeline.rules.ballots import REFUSED
from ingestd.pipeline.rules.protocol import first_of
from ingestd.pipeline.stats import NO_BALLOT, RolledUp, revotes_around
from ingestd.pipeline.touched import ON_CHAIN, Touched, by_bytes, chunks, hour_of, transaction
from ingestd.pipeline.validate import OPERATIONS
from ingestd.thresholds import Alerts, Rules

_NAMES = uuid.UUID("2b0f8d1c-93f1-5c36-8c55-6a3f0a4f1c07")
_A_SEVERITY = 10**12
_HELD = Alerts()

OF_THE_FEED = frozenset(
    (
        *("missing_hour", "constituency_missing", "silent_feed", "late_file", "rollback_burst"),
        "transaction_in_two_contracts",
    )
)
"""Rules that need more than one constituency: `feed.evaluate_feed` looks at them."""

_OPEN_ALERTS = Prepared(
    select(Alert.type, Alert.subject, Alert.details).where(
        Alert.constituency_id == bindparam("constituency"), Alert.cleared_at.is_(None)
    )
)
_ELECTION = (
    select(Election.name, Election.type)
    .join(Constituency, Constituency.election_id == Election.id)
    .where(Constituency.id == bindparam("constituency"))
)


@dataclass(frozen=True, slots=True)
class Found:
    """What one rule found; `among` are the subjects that were looked at, None means all."""

    rule: str
    findings: Sequence[Finding]
    among: Iterable[str] | None = None


def evaluate(  # noqa: PLR0913 - what a commit knows of its change
    session: Session,
    constituency_id: uuid.UUID,
    touched: Touched,
    rolled_up: RolledUp,
    *,
    has_history: bool,
    now: datetime,
    held: Alerts = _HELD,
    file_id: uuid.UUID | None = None,
) -> None:
    """Run every rule of a constituency over its current data; the caller commits.

    `has_history` says that rows were seen again, rolled back, superseded or undone: only then
    can the rules about history find anything new. `file_id` is the one file that brought
    nothing but new rows and rows seen before; without it everything is looked at.
    """
    open_alerts = _OPEN_ALERTS.all(session, {"constituency": constituency_id})
    rules_held = rules_for(session, constituency_id, held)
    facts = facts_of(session, constituency_id, rolled_up, rules_held.missing_hour)
    is_anew = (has_history and file_id is None) or facts.has_changed_frame(touched)
    if is_anew:
        counted_anew = touched.hours
        touched = stats.all_counted(session, constituency_id)
        if not touched.hours <= counted_anew:
            _, revotes = revotes_around(session, constituency_id, touched.hours)
            rolled_up = replace(rolled_up, revotes=revotes)
    look = _Look(
        session,
        facts,
        touched,
        rolled_up,
        rules_held,
        open_alerts,
        is_anew=is_anew,
        file_id=None if is_anew else file_id,
        has_history=has_history or is_anew,
    )
    settle = Settlement(session, constituency_id, now, {row.type for row in open_alerts})
    for found in look.found():
        findings = proved(session, facts, found.findings)
        settle(found.rule, findings, among=None if is_anew else found.among)
    _unknown_operations(session, facts, now, look.held, has_history=has_history)


def rules_for(session: Session, constituency_id: uuid.UUID, held: Alerts) -> Rules:
    """The thresholds for a constituency: its election may have some of its own."""
    if not held.differs:
        return held
    election = session.execute(_ELECTION, {"constituency": constituency_id}).one_or_none()
    return held.for_election(*election) if election else held


@dataclass(slots=True)
class _Look:
    """One look at one constituency: asks for the facts that each rule needs, if it needs any."""

    session: Session
    facts: Facts
    touched: Touched
    rolled_up: RolledUp
    held: Rules
    open_alerts: Sequence[AnyRow]
    is_anew: bool
    file_id: uuid.UUID | None
    has_history: bool

    def found(self) -> Iterator[Found]:
        """What every rule finds; a rule that is switched off finds nothing."""
        for found in self._all():
            yield found if self.held.is_on(found.rule) else Found(found.rule, ())

    def _all(self) -> Iterator[Found]:
        facts, held = self.facts, self.held
        totals, at = facts.totals, self.rolled_up.last_activity
        slots = facts.slots
        exceed = partial(
            rules.votes_exceed_bulletins,
            totals,
            slots,
            start_slot=facts.start_slot,
            has_whole=facts.has_whole,
            was_empty=facts.was_empty,
        )
        yield Found("votes_exceed_bulletins", exceed())
        returned = known.returned_voters(self.session, facts)
        turnout = rules.turnout_over_registered(totals, returned=returned)
        yield Found("turnout_over_registered", turnout)
        yield self._vote_keys()
        yield Found("reject_share", rules.reject_share(facts.rejected, held.reject_share))
        key = first_of(facts.protocol, "addMainKey")
        yield Found("vote_without_main_key", rules.vote_without_main_key(slots, key, at))
        contradicted = known.contradicted(self.session, facts)
        order = rules.lifecycle_order(facts.protocol, slots, contradicted=contradicted, at=at)
        yield Found("lifecycle_order", order)
        roll = rules.roll_changed_during_voting(
            facts.protocol, roll=totals.list_added, held=held.roll_changed_during_voting
        )
        yield Found("roll_changed_during_voting", roll)
        results = known.results_of(self.session, facts)
        yield Found("results_mismatch", rules.results_mismatch(results) if results else ())
        yield from self._touched_rows()
        yield self._whole_export()
        yield from self._histories()

    def _open(self, rule: str) -> list[AnyRow]:
        return [row for row in self.open_alerts if row.type == rule]

    def _vote_keys(self) -> Found:
        rule = "duplicate_vote_key"
        totals, revotes = self.facts.totals, self.rolled_up.revotes
        refused = known.refused_again(self.session, self.facts, self.held)
        findings = [
            *rules.duplicate_vote_key(totals, revotes),
            *rules.refused_second_votes(totals, refused, self.held.duplicate_vote_key),
        ]
        among = {revote.sender for revote in revotes} | {REFUSED}
        # A sender must be looked at again where one of its votes was touched.
        for row in self._open(rule):
            moments = [datetime.fromisoformat(vote["timestamp"]) for vote in row.details["votes"]]
            if self.touched.hours & {hour_of(moment) for moment in moments}:
                among.add(row.subject)
        return Found(rule, findings, among)

    def _touched_rows(self) -> Iterator[Found]:
        """Rules about the rows of the touched hours; one statement says whether there are any."""
        session, facts = self.session, self.facts
        spread = known.spread_of(session, facts, self.touched)
        yield self._for_many(spread)
        yield self._out_of_slot(spread)
        rule, held = "outside_voting_window", self.held.outside_voting_window
        window = known.window_of(session, facts)
        at = self.rolled_up.last_activity
        accepted = known.outside_by_slot(session, facts, window, held)
        findings = rules.outside_voting_window("accepted", accepted, held=held, at=at)
        among = {"accepted"}
        is_open = any(row.subject != "accepted" for row in self._open(rule))
        if is_open or self.is_anew or known.is_window_in_doubt(spread, window):
            among |= {"clock", "refused"}
            outside = known.outside_by_clock(session, facts, window, held)
            for kind, rows in outside.items():
                findings += rules.outside_voting_window(kind, rows, held=held, at=at)
        yield Found(rule, findings, among)

    def _for_many(self, spread: Sequence[AnyRow]) -> Found:
        rule = "bulletin_for_many"
        by_hour: dict[int, list[tuple[str, datetime, int]]] = {}
        if any(row.tally == "bulletin" and (row.persons or 0) > 1 for row in spread):
            for row in known.bulletins_for_many(
                session=self.session, facts=self.facts, touched=self.touched
            ):
                by_hour.setdefault(hour_of(row[1]), []).append(row)
        found = [rules.bulletin_for_many(hour, rows) for hour, rows in sorted(by_hour.items())]
        among = [
            row.subject
            for row in self._open(rule)
            if _hour_named(row.subject) in self.touched.hours
        ]
        return Found(rule, found, among)

    def _out_of_slot(self, spread: Sequence[AnyRow]) -> Found:
        rule, held = "ts_out_of_slot", self.held.ts_out_of_slot
        tolerance = timedelta(minutes=held.tolerance_minutes)
        doubtful = known.slots_in_doubt(self.facts, spread, tolerance)
        seen = {row.slot for row in spread} | self.touched.slots
        doubtful |= {row.subject for row in self._open(rule) if row.subject in seen or self.is_anew}
        findings: list[Finding] = []
        for slot in sorted(doubtful):
            counted = known.out_of_slot(self.session, self.facts, slot, tolerance)
            if counted is not None:
                findings += rules.ts_out_of_slot(counted, held)
        return Found(rule, findings, doubtful)

    def _whole_export(self) -> Found:
        facts = self.facts
        margin = timedelta(minutes=self.held.whole_export_differs.margin_minutes)
        found = []
        cumulative = [file for file in facts.files if file.is_cumulative and file.slot]
        for file in cumulative if facts.slots else ():
            complete = known.time_with_all_hours(facts, margin)
            slots = known.slots_within(facts, file)
            within = complete if slots is None else None
            found.append(
                histories.disagreement(self.session, facts.constituency_id, file, slots, within)
            )
        at = self.rolled_up.last_activity
        return Found("whole_export_differs", rules.whole_export_differs(found, at))

    def _histories(self) -> Iterator[Found]:
        session, key = self.session, self.facts.constituency_id
        rule = "rolled_back_for_good"
        lost: Sequence[rules.LostBallot] = ()
        if self.rolled_up.sums["rolled_back"]:
            lost = histories.lost_ballots(session, key)
        last = max((slot.slot for slot in self.facts.slots), default=None)
        minutes = self.held.rolled_back_for_good.minutes
        at = self.rolled_up.last_activity
        found = rules.rolled_back_for_good(lost, last_slot=last, last=at, minutes=minutes)
        yield Found(rule, found)
        if not self.has_history:
            return
        rule = "duplicate_transaction"
        subjects = [row.subject for row in self._open(rule)]
        doubled, among = histories.doubled(session, key, file_id=self.file_id, among=subjects)
        yield Found(rule, doubled, among)
        yield Found("transaction_rewritten", histories.rewritten(session, key))
        yield Found("history_withdrawn", histories.withdrawn(session, key))
        yield Found("slot_republished", histories.republished(session, key))


def _hour_named(subject: str) -> int | None:
    try:
        return hour_of(datetime.fromisoformat(f"{subject}:00+00:00"))
    except ValueError:
        return None


class Settlement:
    """Makes the alerts of one constituency, or of none, say what the rules found."""

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
        self,
        rule: str,
        findings: Sequence[Finding],
        *,
        among: Iterable[str] | None = None,
        former: Mapping[str, Alert] = MappingProxyType({}),
    ) -> None:
        """Raise or update `findings`; clear the rule's other open alerts (of subjects `among`).

        `former` are alerts of these subjects that were about no constituency, since it was not
        known: what a person said of them goes over.
        """
        if not findings and self._open_rules is not None and rule not in self._open_rules:
            return
        # Of one subject there is one alert: two would break a commit, and all that is in it.
        findings = list({finding.subject: finding for finding in reversed(findings)}.values())[::-1]
        condition = Alert.constituency_id == self._constituency_id
        if self._constituency_id is None:
            condition = Alert.constituency_id.is_(None)
        query = select(Alert).where(condition, Alert.type == rule)
        if among is not None:
            subjects = sorted({*among, *(finding.subject for finding in findings)})
            rows = [
                alert
                for chunk in chunks(subjects)
                for alert in self._session.scalars(query.where(Alert.subject.in_(chunk)))
            ]
        else:
            rows = list(self._session.scalars(query))
        rows = self._as_named(rule, findings, rows)
        by_subject = {alert.subject: alert for alert in rows}
        answers = [_Answer.of_alert(alert) for alert in rows if "episode" in alert.details]
        moved = {subject: _side_of(alert) for subject, alert in former.items()}
        subjects_found = {finding.subject for finding in findings}
        ending = [each for each in answers if each.is_open and each.subject not in subjects_found]
        new = [finding for finding in findings if finding.subject not in by_subject]
        for finding in findings:
            if finding.subject in by_subject:
                alert = by_subject.pop(finding.subject)
                side = _side_again(alert, finding, answers, ending)
                if finding.subject in moved and not _has_words(_side_of(alert)):
                    side = moved[finding.subject]
                for name, value in side.items():
                    setattr(alert, name, value)
                self._update(alert, finding)
        for alert in by_subject.values():
            if alert.cleared_at is None:
                self._clear(alert)
        self._session.flush()
        self._raise(rule, new, answers, moved)

    def _as_named(
        self, rule: str, findings: Sequence[Finding], rows: Sequence[Alert]
    ) -> list[Alert]:
        """Add alerts whose ids say that they are these findings, whatever was written over them."""
        known = {alert.subject: alert for alert in rows}
        named = {
            alert_id(rule, self._constituency_id, finding.subject): finding.subject
            for finding in findings
            if finding.subject not in known
        }
        found = {alert.id: alert for alert in rows}
        for chunk in chunks(sorted(named)):
            for alert in self._session.scalars(select(Alert).where(Alert.id.in_(chunk))):
                alert.type, alert.constituency_id = rule, self._constituency_id
                alert.subject = named[alert.id]
                found[alert.id] = alert
        return list(found.values())

    def _clear(self, alert: Alert) -> None:
        alert.cleared_at = self._now
        alert.cleared_reason = _no_longer(alert.type)
        if not _is_decided(alert.status, alert.answered_gravity, alert.gravity):
            self._tell(outbox.CLEARED, alert.id, alert.severity, alert.title)

    def _raise(
        self,
        rule: str,
        findings: Sequence[Finding],
        answers: Sequence[_Answer],
        moved: Mapping[str, Mapping[str, Any]],
    ) -> None:
        rows = [
            {
                "id": alert_id(rule, self._constituency_id, finding.subject),
                "type": rule,
                "constituency_id": self._constituency_id,
                "subject": finding.subject,
                **(_NOBODY | {"notes": []} | _carried(finding, answers)),
                **moved.get(finding.subject, {}),
                **_said(finding),
                "class": CLASSES[rule],
            }
            for finding in findings
        ]
        if rows:
            self._session.connection().execute(insert(table_of(Alert)), rows)
        for row in rows:
            if not _is_decided(row["status"], row["answered_gravity"], row["gravity"]):
                self._tell(outbox.OPENED, row["id"], row["severity"], row["title"])

    def _update(self, alert: Alert, finding: Finding) -> None:
        if kind := _change_of(alert, finding):
            self._tell(kind, alert.id, finding.severity, finding.title)
        for name, value in _said(finding).items():
            if getattr(alert, name) != value:
                setattr(alert, name, value)
        alert.alert_class = CLASSES[finding.rule]
        if alert.cleared_at is not None:
            alert.cleared_at = alert.cleared_reason = None

    def _tell(self, kind: str, alert_id: uuid.UUID, severity: str, title: str) -> None:
        outbox.note(self._session, outbox.Change(kind, alert_id, severity, title, self._now))


def _change_of(alert: Alert, finding: Finding) -> str | None:
    """What a person would want to be told of an alert that is there already, if anything."""
    gravity = gravity_of(finding)
    if _is_decided(alert.status, alert.answered_gravity, gravity):
        return None
    if _is_decided(alert.status, alert.answered_gravity, alert.gravity):
        return outbox.AGAIN
    if RANKS[finding.severity] > RANKS.get(alert.severity, 0):
        return outbox.WORSE
    return outbox.BACK if alert.cleared_at is not None else None


def _is_decided(status: str, answered: int | None, gravity: int) -> bool:
    """Whether a person has put an alert aside, and nothing more was found since."""
    return status in ("resolved", "snoozed") and (answered is None or gravity <= answered)


_SIDE = ("status", "notes", "assigned_to", "resolved_at", "answered_gravity")
"""A person's side of an alert."""

_NOBODY: dict[str, Any] = dict.fromkeys(_SIDE) | {"status": "active"}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What people said of an episode, before this look changed anything."""

    subject: str
    of: str
    first: str
    last: str
    is_open: bool
    side: Mapping[str, Any]

    @classmethod
    def of_alert(cls, alert: Alert) -> _Answer:
        """The answer to an alert that is an episode."""
        told = alert.details["episode"]
        return cls(
            subject=alert.subject,
            of=told["of"],
            first=told["first"],
            last=told["last"],
            is_open=alert.cleared_at is None,
            side=_side_of(alert),
        )

    def is_about(self, finding: Finding) -> bool:
        """Whether a person's words about this episode are words about (a part of) the finding."""
        told = finding.details["episode"]
        is_near = self.first <= told["last"] and told["first"] <= self.last
        return _has_words(self.side) and is_near and self.of == told["of"]


def _side_of(alert: Alert) -> dict[str, Any]:
    return {name: getattr(alert, name) for name in _SIDE}


def _has_words(side: Mapping[str, Any]) -> bool:
    return any(side[name] not in ((), [], None, "active") for name in _SIDE)


def _side_again(
    alert: Alert, finding: Finding, answers: Sequence[_Answer], ending: Sequence[_Answer]
) -> dict[str, Any]:
    """What is to be written on a person's side of an alert that is found again.

    What a person wrote there stays. The notes of episodes that end in this one are put behind it;
    their decisions were about less.
    """
    own = _side_of(alert)
    if alert.cleared_at is not None and not _has_words(own):
        return _carried(finding, answers)
    if "episode" not in finding.details:
        return {}
    about = sorted(
        (each for each in ending if each.is_about(finding)), key=lambda each: each.subject
    )
    mine = own["notes"] or []
    theirs = _together(*(each.side["notes"] or () for each in about))
    more = [note for note in theirs if note not in mine]
    return {"notes": [*mine, *more]} if more else {}


def _together(*several: Sequence[Any]) -> list[Any]:
    """All notes, each once."""
    notes: list[Any] = []
    for some in several:
        notes += [note for note in some if note not in notes]
    return notes


def _carried(finding: Finding, answers: Sequence[_Answer]) -> dict[str, Any]:
    """A person's side of an episode that has a new first hour, or is a part of one, or joins some.

    An episode has its first hour as its subject, and a late file may add an hour before it. What
    was decided holds on, up to the gravity that it was about; what is graver is new evidence.
    """
    if "episode" not in finding.details:
        return {}
    about = sorted(
        (answer for answer in answers if answer.is_about(finding)), key=lambda each: each.subject
    )
    # What stood until now counts; what stood long ago only where nothing else does.
    about = [each for each in about if each.is_open] or about
    if not about:
        return {}
    undecided = [each for each in about if each.side["status"] != "resolved"]
    kept = max(undecided or about, key=lambda each: each.side["answered_gravity"] or 0).side
    notes = _together(*(each.side["notes"] or () for each in about))
    assigned = [each.side["assigned_to"] for each in about if each.side["assigned_to"]]
    told = {"notes": notes, "assigned_to": assigned[0] if assigned else None}
    return dict(kept) | told


def _no_longer(rule: str) -> str:
    formula = RULES[rule].formula if rule in RULES else rule
    return f"it no longer holds with the files that are here now: {formula}"


def _said(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity,
        "title": finding.title,
        "description": finding.description,
        "details": finding.details,
        "detected_at": finding.detected_at,
        "ruleset": RULESET,
        "gravity": gravity_of(finding),
    }


def gravity_of(finding: Finding) -> int:
    """One number for how grave a finding is: its severity first, then how much was found."""
    return RANKS[finding.severity] * _A_SEVERITY + min(finding.weight, _A_SEVERITY - 1)


def alert_id(rule: str, constituency_id: uuid.UUID | None, subject: str) -> uuid.UUID:
    """UUIDv5 of rule, constituency and subject."""
    return uuid.uuid5(_NAMES, f"{rule}|{constituency_id or '-'}|{subject}")


def _unknown_operations(
    session: Session, facts: Facts, now: datetime, held: Rules, *, has_history: bool
) -> None:
    found = {row.type for row in facts.protocol if row.type not in OPERATIONS}
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
    settle = Settlement(session, None, now)
    # Many at once: a file of a thousand names must not cost each later one a thousand queries.
    for operations in chunks(sorted(found)):
        counted = _count_operations(session, operations)
        on = held.is_on("unknown_operation")
        settle("unknown_operation", counted if on else (), among=operations)


def _count_operations(session: Session, operations: Sequence[str]) -> list[Finding]:
    """Count these operations over all constituencies; one that is on chain nowhere is none."""
    t = transaction.c
    whose = (t.type.in_(operations), NO_BALLOT, t.status.in_(ON_CHAIN))
    counted = session.execute(
        select(t.type, func.count(), func.count(t.constituency_id.distinct()))
        .where(*whose)
        .group_by(t.type)
    )
    in_time = func.row_number().over(
        partition_by=t.type, order_by=(t.timestamp, by_bytes(t.tx_id, session))
    )
    columns = (t.type, t.tx_id, t.timestamp, t.constituency_id, in_time.label("place"))
    ranked = select(*columns).where(*whose).subquery()
    query = select(ranked, Constituency.contract_id).join(
        Constituency, Constituency.id == ranked.c.constituency_id
    )
    first = {row.type: row for row in session.execute(query.where(ranked.c.place == 1))}
    found = []
    for operation, number, constituencies in counted:
        row = first[operation]
        seen = (row.tx_id, row.timestamp)
        found.append(
            rules.unknown_operation(operation, number, constituencies, seen, row.contract_id)
        )
    return [
        proved_by_files(one, None, slots=(), shift=None, zone=None, files=files, coverage=1.0)
        for one, files in zip(found, files_of_lines(session, found), strict=True)
    ]


def note_refused_file(
    session: Session, job: FileProcessing, now: datetime, held: Alerts = _HELD
) -> None:
    """Raise the alert of a quarantined job, or clear it when the job is no longer there."""
    is_told = job.status == JobState.QUARANTINED and _tells_refused(
        session, job.constituency_id, held
    )
    findings = [_refusal(job)] if is_told else []
    settle = Settlement(session, job.constituency_id, now)
    settle("file_rejected", findings, among=[_refused_subject(job)])


def note_refused_files(
    session: Session, constituency_id: uuid.UUID | None, now: datetime, held: Alerts
) -> None:
    """Raise and clear the alerts of all quarantined jobs of a constituency, or of those of none."""
    settle = Settlement(session, constituency_id, now)
    settle("file_rejected", _refusals(session, constituency_id, held))


def _tells_refused(session: Session, constituency_id: uuid.UUID | None, held: Alerts) -> bool:
    rules = held if constituency_id is None else rules_for(session, constituency_id, held)
    return rules.is_on("file_rejected")


def _refusals(session: Session, constituency_id: uuid.UUID | None, held: Alerts) -> list[Finding]:
    if not _tells_refused(session, constituency_id, held):
        return []
    refused = {_refused_subject(job): job for job in _refused(session, constituency_id)}
    return [_refusal(job) for job in refused.values()]


def note_forgotten_file(
    session: Session, job: FileProcessing, now: datetime, held: Alerts = _HELD
) -> None:
    """Clear the alert of a quarantined job that was forgotten, unless its bytes are here twice."""
    findings = _refusals(session, job.constituency_id, held)
    subject = _refused_subject(job)
    left = [finding for finding in findings if finding.subject == subject][:1]
    Settlement(session, job.constituency_id, now)("file_rejected", left, among=[subject])


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
    is_hour = job.slot is not None and not job.is_cumulative
    return rules.file_rejected(
        job.name,
        subject=_refused_subject(job),
        reason=job.first_error_message or "",
        line=job.first_error_line,
        sha256=job.sha256,
        slot=job.slot,
        times=known.slot_times(job.slot, timedelta(0)) if job.slot and is_hour else None,
    )


def review(
    session: Session,
    constituency_id: uuid.UUID | None,
    rolled_up: RolledUp | None,
    held: Alerts = _HELD,
) -> list[Finding]:
    """Tell what all rules find in a constituency, or outside of all, and write nothing.

    `rolled_up` is about all its hours, with all revotes; None outside.
    """
    findings = _refusals(session, constituency_id, held)
    if constituency_id is None or rolled_up is None:
        t = transaction.c
        unknown = select(t.type).where(NO_BALLOT, t.type.not_in(OPERATIONS)).distinct()
        for operations in (
            chunks(session.scalars(unknown)) if held.is_on("unknown_operation") else ()
        ):
            findings += _count_operations(session, operations)
        return findings
    rules_held = rules_for(session, constituency_id, held)
    facts = facts_of(session, constituency_id, rolled_up, rules_held.missing_hour)
    look = _Look(
        session,
        facts,
        stats.everything(session, constituency_id),
        rolled_up,
        rules_held,
        (),
        is_anew=True,
        file_id=None,
        has_history=True,
    )
    found = [finding for one in look.found() for finding in one.findings]
    return [*findings, *proved(session, facts, found)]


def is_said(alert: Alert, finding: Finding) -> bool:
    """Say whether the engine's side of an alert is what a finding says."""
    said = _said(finding) | {"alert_class": CLASSES.get(finding.rule)}
    return all(getattr(alert, name) == value for name, value in said.items())


def open_alerts(session: Session, constituency_id: uuid.UUID | None) -> list[Alert]:
    """Give the open alerts of a constituency, or those of none.

    Not those that need more than one constituency: feed and evaluator keep their own.
    """
    whose = Alert.constituency_id == constituency_id
    if constituency_id is None:
        whose = Alert.constituency_id.is_(None)
    ours = and_(Alert.type.not_in(OF_THE_FEED), Alert.alert_class != "statistical")
    return list(session.scalars(select(Alert).where(whose, ours, Alert.cleared_at.is_(None))))


def open_alerts_of_feed(session: Session) -> list[Alert]:
    """Give the open alerts of the rules that need more than one constituency."""
    query = select(Alert).where(Alert.type.in_(OF_THE_FEED), Alert.cleared_at.is_(None))
    return list(session.scalars(query.order_by(Alert.id)))


def set_right(
    session: Session,
    constituency_id: uuid.UUID | None,
    rolled_up: RolledUp | None,
    now: datetime,
    held: Alerts = _HELD,
) -> None:
    """Let the alerts of a constituency say what all rules find, whatever they say now."""
    findings = review(session, constituency_id, rolled_up, held)
    rows = open_alerts(session, constituency_id)
    for rule in sorted({alert.type for alert in rows} | {each.rule for each in findings}):
        settle = Settlement(session, constituency_id, now)
        settle(rule, [each for each in findings if each.rule == rule])
    for alert in rows:
        alert.alert_class = CLASSES.get(alert.type, alert.alert_class)
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
    settle = Settlement(session, constituency_id, now)
    for rule in sorted({*open_rules, *findings}):
        settle(rule, findings.get(rule, ()))
