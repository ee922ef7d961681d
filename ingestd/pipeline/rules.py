"""Rules: pure functions from facts to findings; what a rule says is the same in any order.

Integrity rules break a protocol identity and need no statistics; feed rules
are about files. Statements are in `alerts`; formulas and words are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ingestd.pipeline.slot import next_slot
from ingestd.pipeline.stats import Revote
from ingestd.pipeline.verdict import Event, SeenFile

RULESET = "2026.1"
MOST_LISTED = 20
"""Transaction ids named in one alert; the number is always the full one."""

Severity = Literal["critical", "warning", "info"]

CLASSES = {
    "votes_exceed_bulletins": "integrity",
    "turnout_over_registered": "integrity",
    "duplicate_vote_key": "integrity",
    "transaction_rewritten": "integrity",
    "history_withdrawn": "integrity",
    "slot_republished": "integrity",
    "unknown_operation": "integrity",
    "file_rejected": "feed",
    "rejected_share": "statistical",
    "unusual_spike": "statistical",
    "unusual_drop": "statistical",
    "night_surge": "statistical",
    "sustained_shift": "statistical",
    "region_correlated": "statistical",
    "peer_outlier": "statistical",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found; `subject` tells it from other findings of the rule in a constituency."""

    rule: str
    subject: str
    severity: Severity
    title: str
    description: str
    details: dict[str, Any]
    detected_at: datetime | None


@dataclass(frozen=True, slots=True)
class SlotCount:
    """On-chain ballots first delivered in one interval slot."""

    slot: str
    bulletins: int
    votes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Where a constituency stands with everything that is current."""

    bulletins: int
    votes: int
    list_added: int
    list_removed: int
    has_voters_list: bool
    is_revote_blocked: bool | None
    last_activity: datetime | None


def votes_exceed_bulletins(
    totals: Totals, slots: Sequence[SlotCount], *, start_slot: str | None, has_whole: bool
) -> list[Finding]:
    """More accepted votes than bulletins issued, cumulative over the slots in order.

    Bulletins that only a cumulative file tells of count from the start, votes
    that only it tells of count at the end: no doubt ever makes a finding.
    Never looked at within one hour: there more votes than bulletins is normal.
    """
    bulletins = totals.bulletins - sum(slot.bulletins for slot in slots)
    votes = 0
    worst: SlotCount | None = None
    for slot in slots:
        bulletins += slot.bulletins
        votes += slot.votes
        if votes > bulletins:
            worst = SlotCount(slot.slot, bulletins, votes)
            break
    if worst is None and totals.votes > totals.bulletins:
        worst = SlotCount("all files", totals.bulletins, totals.votes)
    if worst is None:
        return []
    missing = [] if has_whole else _missing_slots([slot.slot for slot in slots], start_slot)
    is_provisional = not has_whole and (start_slot is None or bool(missing))
    excess = worst.votes - worst.bulletins
    note = " Provisional: files of this voting are missing." if is_provisional else ""
    return [
        Finding(
            rule="votes_exceed_bulletins",
            subject="",
            severity="warning" if is_provisional else "critical",
            title=f"{excess} more votes than bulletins",
            description=(
                f"Up to {worst.slot}, {worst.votes} votes were accepted and only "
                f"{worst.bulletins} bulletins issued.{note}"
            ),
            details={
                "slot": worst.slot,
                "votes": worst.votes,
                "bulletins": worst.bulletins,
                "total_votes": totals.votes,
                "total_bulletins": totals.bulletins,
                "is_provisional": is_provisional,
                "missing_slots": missing[:MOST_LISTED],
                "benign_causes": ["a file of an earlier hour is missing"],
            },
            detected_at=totals.last_activity,
        )
    ]


def _missing_slots(slots: Sequence[str], start_slot: str | None) -> list[str]:
    """Name the hours between startVoting and the last slot that no file covers."""
    if start_slot is None or not slots:
        return []
    have = set(slots)
    missing: list[str] = []
    slot = start_slot
    while slot < slots[-1] and len(missing) <= MOST_LISTED:
        slot = next_slot(slot)
        if slot not in have:
            missing.append(slot)
    return missing


def turnout_over_registered(totals: Totals) -> list[Finding]:
    """More bulletins than voters: than ever were on the roll (critical), or than are now."""
    greatest = totals.list_added
    present = totals.list_added - totals.list_removed
    if not totals.has_voters_list or totals.bulletins <= present:
        return []
    is_over_greatest = totals.bulletins > greatest
    roll = greatest if is_over_greatest else present
    return [
        Finding(
            rule="turnout_over_registered",
            subject="",
            severity="critical" if is_over_greatest else "warning",
            title=f"{totals.bulletins} bulletins for {roll} registered voters",
            description=(
                f"{totals.bulletins} bulletins were issued; the voters lists hold {present} "
                f"voters, {greatest} before removals."
            ),
            details={
                "bulletins": totals.bulletins,
                "registered": present,
                "greatest_roll": greatest,
                "benign_causes": ["a part of the roll was never loaded (five regions in 2024)"],
            },
            detected_at=totals.last_activity,
        )
    ]


def duplicate_vote_key(totals: Totals, revotes: Sequence[Revote]) -> list[Finding]:
    """Two accepted on-chain votes by one sender key; normal where the contract allows revotes."""
    is_allowed = totals.is_revote_blocked is False
    return [
        Finding(
            rule="duplicate_vote_key",
            subject=revote.sender,
            severity="info" if is_allowed else "critical",
            title=f"{len(revote.votes)} accepted votes by one voter key",
            description=(
                f"The key {revote.sender} has {len(revote.votes)} accepted votes on chain"
                + (", which this contract allows." if is_allowed else "; each key may vote once.")
            ),
            details={
                "sender": revote.sender,
                "votes": [
                    {"timestamp": moment.isoformat(), "tx_id": tx_id}
                    for moment, tx_id in revote.votes[:MOST_LISTED]
                ],
                "number": len(revote.votes),
                "is_revote_blocked": totals.is_revote_blocked,
            },
            detected_at=revote.votes[-1][0],
        )
        for revote in revotes
    ]


@dataclass(frozen=True, slots=True)
class Content:
    """One content of a transaction, normalised: what the row says, and what it wrote."""

    body: dict[str, Any]
    diff: Any


def is_rewritten(
    events: Sequence[Event],
    files: Mapping[Any, SeenFile],
    contents: Mapping[bytes, Content],
) -> bool:
    """Say whether the current files hold one id with different content.

    Columns 2-9 or 11 differ, or the diff differs with no -1 between: within
    one stream (all interval files, or one cumulative file) between two
    neighbours, across streams anywhere.
    """
    plus = [event for event in events if event.sign > 0]
    bodies = [contents[event.content_hash].body for event in plus if event.content_hash]
    if any(body != bodies[0] for body in bodies[1:]):
        return True
    if len(plus) == len(events):
        diffs = [contents[event.content_hash].diff for event in plus if event.content_hash]
        return any(diff != diffs[0] for diff in diffs[1:])
    return any(_differs_unexplained(stream, contents) for stream in _streams(events, files))


def _streams(events: Sequence[Event], files: Mapping[Any, SeenFile]) -> list[list[Event]]:
    streams: dict[Any, list[Event]] = {}
    for event in events:
        is_cumulative = files[event.file_id].is_cumulative
        streams.setdefault(event.file_id if is_cumulative else "intervals", []).append(event)
    return [
        sorted(stream, key=lambda event: (files[event.file_id].slot or "", event.line))
        for stream in streams.values()
    ]


def _differs_unexplained(stream: Sequence[Event], contents: Mapping[bytes, Content]) -> bool:
    last: Content | None = None
    for event in stream:
        if event.sign < 0:
            last = None
        elif event.content_hash:
            content = contents[event.content_hash]
            if last is not None and content.diff != last.diff:
                return True
            last = content
    return False


def transaction_rewritten(tx_id: str, moment: datetime, number: int) -> Finding:
    """Put a rewritten transaction into words."""
    return Finding(
        rule="transaction_rewritten",
        subject=tx_id,
        severity="critical",
        title="One transaction with different contents",
        description=(
            f"The transaction {tx_id} was delivered with {number} different contents and "
            "without a rollback that would explain it."
        ),
        details={"tx_ids": [tx_id], "contents": number},
        detected_at=moment,
    )


def history_withdrawn(slot: str, rows: Sequence[tuple[str, datetime]]) -> Finding:
    """Transactions that an earlier publication of a slot held and no current file holds."""
    ids = sorted(tx_id for tx_id, _moment in rows)
    return Finding(
        rule="history_withdrawn",
        subject=slot,
        severity="critical",
        title=f"{len(ids)} transactions withdrawn from {slot}",
        description=(
            f"An earlier publication of {slot} held {len(ids)} transactions that no current "
            "file holds. They are kept, marked as withdrawn and not counted."
        ),
        details={"slot": slot, "number": len(ids), "tx_ids": ids[:MOST_LISTED]},
        detected_at=max(moment for _tx_id, moment in rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Republication:
    """How two neighbouring publications of a slot differ, as counts of transactions."""

    older_sha256: str
    newer_sha256: str
    added: int
    gone: int
    gone_without_rollback: int
    changed: int
    is_part_of_older: bool
    tx_ids: tuple[str, ...]


def slot_republished(slot: str, steps: Sequence[Republication]) -> list[Finding]:
    """The same slot with other bytes: rows changed or gone, added, or only reformatted."""
    if not steps:
        return []
    changed = sum(step.changed for step in steps)
    gone = sum(step.gone_without_rollback for step in steps)
    added = sum(step.added for step in steps)
    severity: Severity = "critical" if changed or gone else "warning" if added else "info"
    what = f"{changed} rows changed, {gone} gone without a rollback, {added} added"
    if severity == "info":
        what = "the same rows in another form"
    older_copy = any(step.is_part_of_older for step in steps)
    return [
        Finding(
            rule="slot_republished",
            subject=slot,
            severity=severity,
            title=f"{slot} was published {len(steps) + 1} times",
            description=(
                f"The file of {slot} came again with other bytes: {what}."
                + (" The newer one is a part of the older: perhaps an older copy." * older_copy)
            ),
            details={
                "slot": slot,
                "publications": [steps[0].older_sha256, *(step.newer_sha256 for step in steps)],
                "changed": changed,
                "gone": sum(step.gone for step in steps),
                "gone_without_rollback": gone,
                "added": added,
                "perhaps_an_older_copy": older_copy,
                "tx_ids": sorted({key for step in steps for key in step.tx_ids})[:MOST_LISTED],
            },
            detected_at=None,
        )
    ]


def unknown_operation(
    operation: str, number: int, constituencies: int, first: tuple[str, datetime]
) -> Finding:
    """An operation that is not in the format's table, at first sight; stored and counted."""
    return Finding(
        rule="unknown_operation",
        subject=operation,
        severity="info",
        title=f"Unknown operation {operation!r}",
        description=(
            f"{number} transactions in {constituencies} constituencies have the operation "
            f"{operation!r}, which the known format does not have. They are stored and counted."
        ),
        details={
            "operation": operation,
            "number": number,
            "constituencies": constituencies,
            "tx_ids": [first[0]],
        },
        detected_at=first[1],
    )


def file_rejected(
    name: str, *, subject: str, reason: str, line: int | None, sha256: str
) -> Finding:
    """A file went to quarantine: nothing of it is in the tables."""
    return Finding(
        rule="file_rejected",
        subject=subject,
        severity="critical",
        title=f"File refused: {name}",
        description=f"Nothing of this file was stored: {reason}",
        details={"name": name, "sha256": sha256, "reason": reason, "line": line},
        detected_at=None,
    )
