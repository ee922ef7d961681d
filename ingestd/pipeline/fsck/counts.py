"""Counts: hours, slots, totals and alerts of a constituency, held against a recount."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingestd.job_state import JobState
from ingestd.models import Alert, Constituency, FileProcessing, HourlyStats
from ingestd.pipeline import alerts, stats
from ingestd.pipeline.feed import feed_findings
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.fsck.rows import COUNTS, Counted
from ingestd.pipeline.rules import Finding
from ingestd.pipeline.stats import Revote, RolledUp
from ingestd.pipeline.touched import hour_of, start_of
from ingestd.thresholds import Alerts


def check_counts(
    session: Session, constituency: Constituency, counted: Counted, held: Alerts | None
) -> Iterator[Difference]:
    """Compare everything that is derived from the transactions of one constituency.

    `held` is None where alerts are still to be judged by other settings.
    """
    _, revotes = stats.revotes_around(session, constituency.id, set(counted.hours))
    hours = _recounted_hours(counted, revotes)
    sums = {name: sum(hour[name] for hour in hours.values()) for name in (*COUNTS, "revotes")}
    facts = stats.protocol_facts(
        session, constituency.id, has_ballots=sums["bulletins_issued"] + sums["votes_cast"] > 0
    )
    rolled_up = RolledUp(
        sums=sums,
        revotes=revotes,
        is_revote_blocked=facts["is_revote_blocked"],
        last_activity=counted.last,
        facts=facts,
    )
    yield from _wrong_hours(session, constituency, hours)
    yield from _wrong_slots(session, constituency, counted)
    yield from _wrong_totals(constituency, counted, sums, facts)
    if held is not None:
        yield from check_alerts(session, constituency.id, rolled_up, constituency.contract_id, held)


def _recounted_hours(counted: Counted, revotes: Sequence[Revote]) -> dict[int, dict[str, int]]:
    again = dict.fromkeys(counted.hours, 0)
    for revote in revotes:
        for moment, _tx_id in revote.votes[1:]:
            again[hour_of(moment)] += 1
    bulletins = votes = 0
    hours: dict[int, dict[str, int]] = {}
    for hour, counts in sorted(counted.hours.items()):
        bulletins += counts["bulletins_issued"]
        votes += counts["votes_cast"]
        hours[hour] = {name: counts[name] for name in COUNTS} | {
            "revotes": again[hour],
            "cumulative_bulletins": bulletins,
            "cumulative_votes": votes,
        }
    return hours


def _wrong_hours(
    session: Session, constituency: Constituency, hours: Mapping[int, Mapping[str, Any]]
) -> Iterator[Difference]:
    query = select(HourlyStats).where(
        HourlyStats.constituency_id == constituency.id, HourlyStats.is_empty.is_(False)
    )
    found = {hour_of(row.hour): row for row in session.scalars(query)}
    for hour in sorted(hours.keys() | found.keys()):
        wanted, row = hours.get(hour), found.get(hour)
        what = "is not there" if row is None else "has no transaction"
        if wanted is not None and row is not None:
            what = _told(row, wanted)
        if what:
            yield _recount("hour_wrong", f"hour {start_of(hour):%Y-%m-%d %H}", what, constituency)


def _wrong_slots(
    session: Session, constituency: Constituency, counted: Counted
) -> Iterator[Difference]:
    job = FileProcessing
    query = select(job.slot, job.slot_bulletins, job.slot_votes).where(
        job.constituency_id == constituency.id,
        job.status == JobState.COMPLETED,
        job.is_cumulative.is_(False),
        job.slot.is_not(None),
    )
    for row in session.execute(query.order_by(job.slot)):
        counts = counted.slots[row.slot or ""]
        wanted = {"slot_bulletins": counts["bulletin"], "slot_votes": counts["vote"]}
        if what := _told(row, wanted):
            yield _recount("slot_wrong", f"slot {row.slot}", what, constituency)


def _wrong_totals(
    constituency: Constituency,
    counted: Counted,
    sums: Mapping[str, int],
    facts: Mapping[str, Any],
) -> Iterator[Difference]:
    added, removed = sums["list_added"], sums["list_removed"]
    registered = added - removed if added or removed else None
    bulletins, votes = sums["bulletins_issued"], sums["votes_cast"]
    wanted = {
        "bulletins_issued": bulletins,
        "votes_cast": votes,
        "votes_rejected": sums["votes_rejected"],
        "registered_voters": registered,
        "participation_rate": bulletins / registered if registered and registered > 0 else None,
        "first_activity": counted.first,
        "last_activity": counted.last,
        **facts,
    }
    if what := _told(constituency, wanted):
        yield _recount("total_wrong", "its totals", what, constituency)


def check_alerts(
    session: Session,
    constituency_id: uuid.UUID | None,
    rolled_up: RolledUp | None,
    contract: str,
    held: Alerts,
) -> Iterator[Difference]:
    """Compare open alerts with what the rules find now, and nothing of a person's side."""
    found = alerts.review(session, constituency_id, rolled_up, held)
    findings = {(constituency_id, finding.rule, finding.subject): finding for finding in found}
    stands = alerts.open_alerts(session, constituency_id)
    for code, what, alert, owner in _otherwise(stands, findings):
        yield _alert(code, what, alert, owner, contract)


def check_feed(
    session: Session,
    contracts: Mapping[uuid.UUID, str],
    held: Alerts,
    now: datetime,
    rules: Collection[str],
) -> Iterator[Difference]:
    """Compare open alerts about the whole feed with what these rules find now."""
    if not rules:
        return
    found = feed_findings(session, now=now, held=held, is_thorough=True)
    findings = {
        (owner, rule, finding.subject): finding
        for (owner, rule), some in found.items()
        for finding in some
        if rule in rules
    }
    stands = [one for one in alerts.open_alerts_of_feed(session) if one.type in rules]
    for code, what, alert, owner in _otherwise(stands, findings):
        whose = contracts.get(owner, str(owner)) if owner else "all constituencies"
        yield replace(_alert(code, what, alert, owner, whose), mend=Mend.FEED)


def _otherwise(
    stands: Iterable[Alert], findings: dict[tuple[uuid.UUID | None, str, str], Finding]
) -> Iterator[tuple[str, str, Alert | Finding, uuid.UUID | None]]:
    """Which open alerts are not what is found, and what is found and not open; whose each is."""
    for alert in stands:
        owner = alert.constituency_id
        finding = findings.pop((owner, alert.type, alert.subject), None)
        if finding is None:
            yield "alert_stray", "no rule finds it", alert, owner
        elif not alerts.is_said(alert, finding):
            yield "alert_altered", "it says otherwise than its rule", alert, owner
    for (owner, _rule, _subject), finding in findings.items():
        yield "alert_missing", "its rule finds it, and it is not open", finding, owner


def _alert(
    code: str,
    what: str,
    alert: Alert | Finding,
    constituency_id: uuid.UUID | None,
    contract: str,
) -> Difference:
    rule = alert.type if isinstance(alert, Alert) else alert.rule
    return Difference(
        code=code,
        about=f"alert {rule} {alert.subject or '-'} of {contract}",
        what=what,
        mend=Mend.ALERTS,
        constituency_id=constituency_id,
    )


def _told(row: object, wanted: Mapping[str, Any]) -> str:
    """`votes_cast is 5, counted 4; …`: what a row says otherwise than a recount."""
    found = {name: getattr(row, name) for name in wanted}
    return "; ".join(
        f"{name} is {found[name]}, counted {value}"
        for name, value in wanted.items()
        if found[name] != value
    )


def _recount(code: str, about: str, what: str, constituency: Constituency) -> Difference:
    return Difference(
        code=code,
        about=f"{about} of {constituency.contract_id}",
        what=what,
        mend=Mend.RECOUNT,
        constituency_id=constituency.id,
    )
