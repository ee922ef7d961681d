"""Rules about history: what was rewritten, withdrawn, doubled, rolled back or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from ingestd.pipeline.rules.base import MOST_LISTED, Finding, Severity, many, rule
from ingestd.pipeline.verdict import Event, SeenFile


@dataclass(frozen=True, slots=True)
class Content:
    """One content of a transaction, normalised: what the row says, and what it wrote."""

    body: dict[str, Any]
    diff: Any


def is_doubled(events: Sequence[Event], files: Mapping[Any, SeenFile]) -> bool:
    """Say whether current files hold one id as if it had happened twice.

    Its net sign is greater than one, or one publication has it twice with no rollback anywhere.
    Source: docs/format.md, "What is counted": net sign.
    """
    plus = [event for event in events if event.sign > 0]
    minus = len(events) - len(plus)
    in_intervals = sum(not files[event.file_id].is_cumulative for event in plus)
    minus_in_intervals = sum(
        not files[event.file_id].is_cumulative for event in events if event.sign < 0
    )
    if in_intervals - minus_in_intervals > 1:
        return True
    held = [event.file_id for event in plus]
    return not minus and len(held) > len(set(held))


@rule(
    "duplicate_transaction",
    "integrity",
    "warning",
    reads="every line of current files that holds the transaction",
    sentence="One transaction stands in the files more than once, with no rollback between.",
    formula="(+1 rows) - (-1 rows) over hourly files > 1, or twice in one publication",
    benign=("two hourly files overlap", "a downloader put two parts together twice"),
)
def duplicate_transaction(tx_id: str, moment: datetime, number: int) -> Finding:
    """Put a doubled transaction into words; it is counted once."""
    return Finding(
        rule="duplicate_transaction",
        subject=tx_id,
        severity="warning",
        title="One transaction delivered more than once",
        description=(
            f"The transaction {tx_id} stands on {number} lines of the current files, and no "
            "rollback explains it. It is counted once."
        ),
        details={"tx_ids": [tx_id], "observed": number, "expected": "1", "threshold": 1},
        detected_at=moment,
        weight=number,
    )


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


@rule(
    "transaction_rewritten",
    "integrity",
    "critical",
    reads="every content of a transaction in current files",
    sentence="One transaction was delivered with different contents.",
    formula="columns 2-9 or 11 differ, or the diff differs with no -1 between",
)
def transaction_rewritten(tx_id: str, moment: datetime, number: int) -> Finding:
    """Put a rewritten transaction into words.

    Source: docs/format.md, "What is counted": rewritten.
    """
    return Finding(
        rule="transaction_rewritten",
        subject=tx_id,
        severity="critical",
        title="One transaction with different contents",
        description=(
            f"The transaction {tx_id} was delivered with {number} different contents and "
            "without a rollback that would explain it."
        ),
        details={
            "tx_ids": [tx_id],
            "contents": number,
            "observed": number,
            "expected": "1",
            "threshold": 1,
        },
        detected_at=moment,
        weight=number,
    )


@rule(
    "transaction_in_two_contracts",
    "integrity",
    "critical",
    reads="the ids of all transactions of all contracts",
    sentence="One transaction stands in the files of two contracts.",
    formula="contracts that hold one transaction id > 1",
    benign=("a file was named after another contract",),
)
def transaction_in_two_contracts(tx_id: str, moment: datetime, contracts: Sequence[str]) -> Finding:
    """One id in several contracts; a transaction calls one of them.

    Source: a transaction's id is the hash of its bytes, and these name one contract.
    """
    named = sorted(contracts)
    return Finding(
        rule="transaction_in_two_contracts",
        subject=tx_id,
        severity="critical",
        title=f"One transaction in {len(named)} contracts",
        description=(
            f"The transaction {tx_id} was delivered for {len(named)} contracts: "
            f"{', '.join(named[:MOST_LISTED])}."
        ),
        details={
            "tx_ids": [tx_id],
            "contracts": named[:MOST_LISTED],
            "window": [moment.isoformat(), moment.isoformat()],
            "observed": len(named),
            "expected": "1",
            "threshold": 1,
        },
        detected_at=moment,
        weight=len(named),
    )


@rule(
    "slot_republished",
    "integrity",
    "critical",
    "warning",
    "info",
    reads="all publications of a slot, row by row",
    sentence="The file of an hour was published again with other bytes.",
    formula="rows changed, gone without a -1 row, or added between two publications",
    benign=("an unfinished file was downloaded first", "an older copy was dropped again"),
)
def slot_republished(slot: str, steps: Sequence[Republication]) -> list[Finding]:
    """The same slot with other bytes: rows changed or gone, added, or only reformatted.

    Source: a published hour of a chain is over; nothing in it can change.
    """
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
                "observed": changed + gone + added,
                "expected": "0",
                "threshold": 0,
            },
            detected_at=None,
            weight=changed + gone + added + len(steps),
        )
    ]


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


@rule(
    "history_withdrawn",
    "integrity",
    "critical",
    reads="transactions that only superseded publications hold",
    sentence="Transactions that were published are in no current file any more.",
    formula="transactions held by an earlier publication of a slot and by no current file > 0",
    benign=("an older, shorter copy of the file was dropped last",),
)
def history_withdrawn(slot: str, rows: Sequence[tuple[str, datetime]]) -> Finding:
    """Transactions that an earlier publication of a slot held and no current file holds.

    Source: docs/format.md, "What is counted": withdrawn.
    """
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
        details={
            "slot": slot,
            "number": len(ids),
            "tx_ids": ids[:MOST_LISTED],
            "observed": len(ids),
            "expected": "0",
            "threshold": 0,
        },
        detected_at=max(moment for _tx_id, moment in rows),
        weight=len(ids),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """What one cumulative file and the hourly files have that the other side lacks."""

    slot: str
    sha256: str
    lacking: int
    lacking_ids: tuple[str, ...]
    surplus: int
    surplus_ids: tuple[str, ...]


@rule(
    "whole_export_differs",
    "integrity",
    "critical",
    reads="the ids of a cumulative file and of the hourly files within its time",
    sentence="The export of the whole voting does not hold what the hourly files hold.",
    formula="ids in hourly files and not in the whole one, or the reverse where all hours are here",
    benign=("the whole file was made before the voting was over",),
)
def whole_export_differs(found: Sequence[Disagreement], at: datetime | None) -> list[Finding]:
    """A cumulative file and the hourly files of its time tell of different transactions.

    Source: both are exports of one chain.
    """
    return [
        Finding(
            rule="whole_export_differs",
            subject=one.slot,
            severity="critical",
            title=f"The export {one.slot} and the hourly files differ",
            description=(
                f"The export {one.slot} lacks {many(one.lacking, 'transaction')} that hourly files "
                f"hold, and has {one.surplus} that they lack."
            ),
            details={
                "slot": one.slot,
                "sha256": one.sha256,
                "lacking": one.lacking,
                "surplus": one.surplus,
                "tx_ids": sorted((*one.lacking_ids, *one.surplus_ids))[:MOST_LISTED],
                "observed": one.lacking + one.surplus,
                "expected": "0",
                "threshold": 0,
            },
            detected_at=at,
            weight=one.lacking + one.surplus,
        )
        for one in found
        if one.lacking or one.surplus
    ]


@dataclass(frozen=True, slots=True)
class LostBallot:
    """A ballot that is rolled back now: its id, its time, the slot of its last rollback."""

    tx_id: str
    moment: datetime
    slot: str | None


@rule(
    "rolled_back_for_good",
    "feed",
    "warning",
    reads="ballots that are rolled back, and what came after them",
    sentence="Votes or bulletins were rolled back and did not return.",
    formula="ballots whose net sign is 0 although an hour of later data is here",
    benign=("the voter tried again with another transaction",),
)
def rolled_back_for_good(
    ballots: Sequence[LostBallot], *, last_slot: str | None, last: datetime | None, minutes: int
) -> list[Finding]:
    """Ballots rolled back and not returned although so much later data is here.

    By slots where hourly files tell the order (a later one is an hour of later data), else by
    the clock of the rows. Source: a rolled back transaction comes back with the same id
    (docs/format.md, facts).
    """
    slots = max(1, -(-minutes // 60))
    lost = [ballot for ballot in ballots if _is_past(ballot, last_slot, last, minutes, slots)]
    if not lost:
        return []
    ids = sorted(ballot.tx_id for ballot in lost)
    return [
        Finding(
            rule="rolled_back_for_good",
            subject="",
            severity="warning",
            title=f"{many(len(ids), 'ballot')} rolled back for good",
            description=(
                f"{many(len(ids), 'vote or bulletin', 'votes or bulletins')} were rolled back and "
                f"did not return within {minutes} minutes of later data."
            ),
            details={
                "number": len(ids),
                "tx_ids": ids[:MOST_LISTED],
                "observed": len(ids),
                "expected": "0",
                "threshold": minutes,
            },
            detected_at=max(ballot.moment for ballot in lost),
            weight=len(ids),
        )
    ]


def _is_past(
    ballot: LostBallot, last_slot: str | None, last: datetime | None, minutes: int, slots: int
) -> bool:
    if ballot.slot and last_slot:
        return slots_between(ballot.slot, last_slot) >= slots
    return bool(last and (last - ballot.moment).total_seconds() >= minutes * 60)


def slots_between(one: str, other: str) -> int:
    """How many hours one slot begins before another."""
    hours = (begin_of(other) - begin_of(one)).total_seconds() / 3600
    return int(hours)


@lru_cache(4096)
def begin_of(slot: str) -> datetime:
    """When a slot begins by its own clock, whose zone is unknown."""
    day, clock = slot.split("_")
    return datetime.fromisoformat(f"{day}T{clock[:2]}:{clock[2:4]}")
