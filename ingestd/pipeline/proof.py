"""Proof: the evidence that is added to a finding, the same in any order of the files.

Each transaction is shown by one line: of the hourly file that first held it, else of the
cumulative one. Names of files are left out; whoever reads finds them by the SHA-256.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingestd.models import Constituency, FileProcessing, table_of
from ingestd.pipeline.facts import Facts, slot_times
from ingestd.pipeline.histories import histories_of, rows_of
from ingestd.pipeline.rules import MOST_LISTED, RULES, RULESET, Finding, missing_slots
from ingestd.pipeline.rules.ballots import REFUSED
from ingestd.pipeline.touched import chunks
from ingestd.pipeline.validate import constituency_prefix, transaction_id

_OPENS = timedelta(hours=8)
_DAY = timedelta(hours=24)
_EASTERNMOST = timedelta(hours=14)
PROVISIONAL = " Provisional: files of this voting are missing."
# What a missing file may explain, of the rules that every commit looks at: what is looked at
# for touched hours only would keep an old answer.
_MAY_CHANGE = frozenset(
    (
        *("turnout_over_registered", "vote_without_main_key", "lifecycle_order"),
        *("rolled_back_for_good", "results_mismatch"),
    )
)
# What every commit of the constituency looks at again, so that it may speak of all its hours.
_EVERY_COMMIT = frozenset(
    (
        *_MAY_CHANGE,
        *("votes_exceed_bulletins", "reject_share", "roll_changed_during_voting"),
        "whole_export_differs",
    )
)
ledgered = table_of(FileProcessing)


def proved(session: Session, facts: Facts, findings: Sequence[Finding]) -> list[Finding]:
    """Add the evidence to what rules of one constituency found."""
    if not findings:
        return []
    key = facts.constituency_id
    whose = select(Constituency.contract_id, Constituency.timezone).where(Constituency.id == key)
    contract, place = session.execute(whose).one()
    lines = _lines(session, contract, {tx for one in findings for tx in _ids(one)})
    zone = zone_of(place, facts.rolled_up.facts.get("voting_start"))
    files = {file.slot: file for file in facts.files}
    proof = []
    for finding in findings:
        details = dict(finding.details)
        words = finding.description
        if finding.rule in _MAY_CHANGE and "is_provisional" not in details:
            details["is_provisional"] = facts.is_provisional
            words += PROVISIONAL if facts.is_provisional else ""
        details |= {
            "ruleset": RULESET,
            "scope": {"contract_id": contract},
            "files": _files(finding, lines, files),
            "benign_causes": _benign(finding),
            "coverage": _coverage(facts) if _is_about_all(finding) else 1.0,
        }
        span = _span(finding, facts, lines)
        if span is None and _is_about_all(finding):
            span = _whole_time(facts)
            told = [(slot, file.sha256) for slot, file in files.items() if slot]
            details["files"] = (
                details["files"]
                or [{"slot": slot, "sha256": sha256, "lines": []} for slot, sha256 in sorted(told)][
                    :MOST_LISTED
                ]
            )
        details["window"] = _told_window(span, zone) if span else None
        at = finding.detected_at or (span[1] if span else None)
        if at is None and _is_about_all(finding):
            at = facts.rolled_up.last_activity
        proof.append(replace(finding, details=details, description=words, detected_at=at))
    return proof


def _is_about_all(finding: Finding) -> bool:
    return finding.rule in _EVERY_COMMIT or finding.subject == REFUSED


def _whole_time(facts: Facts) -> tuple[datetime, datetime] | None:
    """From the first hourly file to the last; without any, the voting so far."""
    ahead = facts.shift or timedelta(0)
    if facts.slots:
        first, last = facts.slots[0].slot, facts.slots[-1].slot
        return slot_times(first, ahead)[0], slot_times(last, ahead)[1]
    start, last_seen = facts.rolled_up.facts.get("voting_start"), facts.rolled_up.last_activity
    return (start, last_seen) if start and last_seen else None


def _coverage(facts: Facts) -> float:
    """The share of the hours up to the last one that is here; the rest may change the finding."""
    if facts.has_whole:
        return 1.0
    here = [slot.slot for slot in facts.slots]
    start = min([*here, *([facts.start_slot] if facts.start_slot else [])], default=None)
    missing = len(missing_slots(here, start, facts.was_empty)) + (
        start is not None and start not in here
    )
    return round(len(here) / max(1, len(here) + missing), 3)


def proved_plainly(finding: Finding, contract: str | None) -> Finding:
    """Add what is known of a finding about files or the whole feed."""
    details = {
        **finding.details,
        "ruleset": RULESET,
        "scope": {"contract_id": contract},
        "benign_causes": _benign(finding),
    }
    return replace(finding, details=details)


def proved_by_files(  # noqa: PLR0913 - the parts of the evidence
    finding: Finding,
    contract: str | None,
    *,
    slots: Sequence[str],
    shift: timedelta | None,
    zone: tzinfo | None,
    files: list[dict[str, Any]],
    coverage: float,
) -> Finding:
    """Add the evidence to what a rule about all constituencies found."""
    details = dict(finding.details)
    span: tuple[datetime, datetime] | None = None
    if isinstance(named := details.pop("window", None), list):
        begin, end = (datetime.fromisoformat(moment) for moment in named)
        span = begin, end
    elif slots:
        # Where nobody knows the zone of the names, their own clock is the best there is.
        ahead = shift or timedelta(0)
        span = slot_times(min(slots), ahead)[0], slot_times(max(slots), ahead)[1]
    details["window"] = _told_window(span, zone) if span else None
    details["files"] = files[:MOST_LISTED]
    details["coverage"] = coverage
    at = finding.detected_at or (span[1] if span else None)
    return proved_plainly(replace(finding, details=details, detected_at=at), contract)


def files_of_lines(session: Session, findings: Sequence[Finding]) -> list[list[dict[str, Any]]]:
    """The lines of each finding's transactions in every contract that it names."""
    wanted: dict[str, set[str]] = {}
    for finding in findings:
        for contract in finding.details["contracts"]:
            wanted.setdefault(contract, set()).update(_ids(finding))
    lines = {
        (contract, tx_id): line
        for contract, tx_ids in sorted(wanted.items())
        for tx_id, (_moment, line) in _lines(session, contract, tx_ids).items()
    }
    return [
        [
            {"slot": line["slot"], "sha256": line["sha256"], "lines": [line["line"]]}
            | {"contract": contract}
            for contract in finding.details["contracts"]
            for tx_id in _ids(finding)
            if (line := lines.get((contract, tx_id)))
        ]
        for finding in findings
    ]


def _benign(finding: Finding) -> list[str]:
    known = RULES.get(finding.rule)
    return list(known.benign) if known else []


def _ids(finding: Finding) -> list[str]:
    return list(finding.details.get("tx_ids", ()))[:MOST_LISTED]


def zone_of(
    name: str | None, voting_start: datetime | None, opens: timedelta = _OPENS
) -> tzinfo | None:
    """The zone of a constituency: that of the settings, else votings open at 08:00 local time.

    Source: docs/format.md, sizes.
    """
    if name:
        return ZoneInfo(name)
    if voting_start is None:
        return None
    start = voting_start.astimezone(UTC)
    clock = timedelta(hours=start.hour, minutes=start.minute)
    ahead = (opens - clock) % _DAY
    return timezone(ahead if ahead <= _EASTERNMOST else ahead - _DAY)


def _span(
    finding: Finding, facts: Facts, lines: dict[str, tuple[datetime, dict[str, Any]]]
) -> tuple[datetime, datetime] | None:
    """The time that a finding is about."""
    slots = finding.details.get("slots") or [finding.details.get("slot")]
    slots = [slot for slot in slots if slot and "_" in slot]
    if slots and facts.shift is not None:
        return slot_times(min(slots), facts.shift)[0], slot_times(max(slots), facts.shift)[1]
    moments = [lines[tx_id][0] for tx_id in _ids(finding) if tx_id in lines]
    if moments:
        return min(moments), max(moments)
    if slots:  # the zone of names is not known: their own clock
        return slot_times(min(slots), timedelta(0))[0], slot_times(max(slots), timedelta(0))[1]
    return None


def _told_window(span: tuple[datetime, datetime], zone: tzinfo | None) -> dict[str, Any]:
    local = ahead = None
    if zone is not None:
        local = [moment.astimezone(zone).isoformat(timespec="minutes") for moment in span]
        ahead = (span[0].astimezone(zone).utcoffset() or timedelta(0)) / timedelta(hours=1)
    return {
        "utc": [f"{moment:%Y-%m-%dT%H:%MZ}" for moment in span],
        "local": local,
        "local_ahead_hours": ahead,
    }


def _files(
    finding: Finding,
    lines: dict[str, tuple[datetime, dict[str, Any]]],
    files: dict[str | None, Any],
) -> list[dict[str, Any]]:
    """The files of a finding with their lines; those of its slots where it names no rows."""
    by_file: dict[tuple[str, str], list[int]] = {}
    for tx_id in _ids(finding):
        if tx_id in lines:
            told = lines[tx_id][1]
            by_file.setdefault((told["slot"], told["sha256"]), []).append(told["line"])
    if not by_file:
        slots = finding.details.get("slots") or [finding.details.get("slot")]
        for slot in slots:
            if slot in files:
                by_file[slot, files[slot].sha256] = []
    return [
        {"slot": slot, "sha256": sha256, "lines": sorted(numbers)}
        for (slot, sha256), numbers in sorted(by_file.items())
    ][:MOST_LISTED]


def _lines(
    session: Session, contract: str, tx_ids: Iterable[str]
) -> dict[str, tuple[datetime, dict[str, Any]]]:
    """Find the time and the one line that shows each transaction."""
    prefix = constituency_prefix(contract)
    by_key = {transaction_id(prefix, tx_id): tx_id for tx_id in sorted(tx_ids)}
    found: dict[str, tuple[datetime, dict[str, Any]]] = {}
    for chunk in chunks(by_key):
        moments = _moments(session, chunk)
        histories = histories_of(session, chunk)
        plus = {
            key: [event for event in events if event.sign > 0] for key, events in histories.items()
        }
        files = _told(session, {event.file_id for events in plus.values() for event in events})
        for key, events in plus.items():
            if key not in moments:
                continue
            line = min((*files[event.file_id], event.line) for event in events)
            told = {"slot": line[2] or "-", "sha256": line[3], "line": line[4]}
            found[by_key[key]] = (moments[key], told)
    return found


def _moments(session: Session, keys: Sequence[uuid.UUID]) -> dict[uuid.UUID, datetime]:
    return {row.id: row.timestamp for row in rows_of(session, keys, "timestamp")}


def _told(
    session: Session, ids: Iterable[uuid.UUID]
) -> dict[uuid.UUID, tuple[bool, bool, str, str]]:
    """Rank files: current ones first, hourly before cumulative, then by slot and bytes."""
    f = ledgered.c
    columns = (f.id, f.status, f.is_cumulative, f.slot, f.sha256)
    return {
        row.id: (row.status == "superseded", row.is_cumulative, row.slot or "", row.sha256)
        for chunk in chunks(sorted(ids))
        for row in session.execute(select(*columns).where(f.id.in_(chunk)))
    }
