"""Rules about ballots: votes against bulletins, bulletins against the roll, votes by one key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ingestd.pipeline.rules.base import MOST_LISTED, Finding, many, rule
from ingestd.pipeline.slot import next_slot
from ingestd.pipeline.stats import Revote
from ingestd.pipeline.touched import start_of
from ingestd.thresholds import DuplicateVoteKey


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


@rule(
    "votes_exceed_bulletins",
    "integrity",
    "critical",
    "warning",
    reads="accepted votes and bulletins of each hourly file, in the order of the files",
    sentence="More votes were accepted than bulletins were issued until then.",
    formula="sum of votes over the slots so far > sum of bulletins over the slots so far",
    benign=("a file of an earlier hour is missing",),
)
def votes_exceed_bulletins(
    totals: Totals,
    slots: Sequence[SlotCount],
    *,
    start_slot: str | None,
    has_whole: bool,
    was_empty: Callable[[str], bool] = lambda _slot: False,
) -> list[Finding]:
    """More accepted votes than bulletins issued, cumulative over the slots in order.

    Bulletins that only a cumulative file tells of count from the start, votes
    that only it tells of count at the end: no doubt ever makes a finding.
    `was_empty` says of an hour without a file that nothing happened in it.
    Never looked at within one hour: there more votes than bulletins is normal.
    Source: a blind signature is the only way to a valid vote (docs/format.md, "What is counted").
    """
    bulletins = totals.bulletins - sum(slot.bulletins for slot in slots)
    votes = most = 0
    worst: SlotCount | None = None
    for slot in slots:
        bulletins += slot.bulletins
        votes += slot.votes
        most = max(most, votes - bulletins)
        if worst is None and votes > bulletins:
            worst = SlotCount(slot.slot, bulletins, votes)
    most = max(most, totals.votes - totals.bulletins)
    if worst is None and totals.votes > totals.bulletins:
        worst = SlotCount("all files", totals.bulletins, totals.votes)
    if worst is None:
        return []
    missing: list[str] = []
    if not has_whole:
        missing = missing_slots([slot.slot for slot in slots], start_slot, was_empty)
    is_provisional = not has_whole and (start_slot is None or bool(missing))
    excess = worst.votes - worst.bulletins
    grown = f" Later the excess is up to {most}." if most > excess else ""
    note = " Provisional: files of this voting are missing." if is_provisional else ""
    return [
        Finding(
            rule="votes_exceed_bulletins",
            subject="",
            severity="warning" if is_provisional else "critical",
            title=f"{excess} more votes than bulletins",
            description=(
                f"Up to {worst.slot}, {worst.votes} votes were accepted and only "
                f"{worst.bulletins} bulletins issued.{grown}{note}"
            ),
            details={
                "slot": worst.slot,
                "votes": worst.votes,
                "bulletins": worst.bulletins,
                "greatest_excess": most,
                "total_votes": totals.votes,
                "total_bulletins": totals.bulletins,
                "is_provisional": is_provisional,
                "missing_slots": missing[:MOST_LISTED],
                "observed": worst.votes,
                "expected": f"at most {worst.bulletins}",
                "threshold": worst.bulletins,
            },
            detected_at=totals.last_activity,
            weight=most,
        )
    ]


def missing_slots(
    slots: Sequence[str],
    start_slot: str | None,
    was_empty: Callable[[str], bool] = lambda _slot: False,
) -> list[str]:
    """Name the hours between startVoting and the last slot that no file covers."""
    if start_slot is None or not slots:
        return []
    have = set(slots)
    missing: list[str] = []
    slot = start_slot
    while slot < slots[-1] and len(missing) <= MOST_LISTED:
        slot = next_slot(slot)
        if slot not in have and not was_empty(slot):
            missing.append(slot)
    return missing


@rule(
    "turnout_over_registered",
    "integrity",
    "critical",
    "warning",
    reads="bulletins issued, and the voters lists added and removed",
    sentence="More bulletins were issued than there are voters on the lists.",
    formula="bulletins > voters ever added (critical), or > voters added - removed (warning)",
    benign=("a part of the roll was never loaded (five regions in 2024)",),
)
def turnout_over_registered(totals: Totals, *, returned: int = 0) -> list[Finding]:
    """More bulletins than voters: than ever were on the roll (critical), or than are now.

    `returned` were removed and then restored: they are not new, and the roll was never so great.
    Source: one voter on the list is issued one bulletin (docs/format.md, "What is counted").
    """
    greatest = totals.list_added - returned
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
                "observed": totals.bulletins,
                "expected": f"at most {roll}",
                "threshold": roll,
            },
            detected_at=totals.last_activity,
            weight=totals.bulletins - roll,
        )
    ]


@rule(
    "duplicate_vote_key",
    "integrity",
    "critical",
    "info",
    reads="accepted and rejected votes by sender key",
    sentence="One voter key has several accepted votes in one contract.",
    formula="accepted votes on chain by one sender key > 1; refused second votes > a share of all",
    benign=("the contract allows voters to vote again",),
)
def duplicate_vote_key(totals: Totals, revotes: Sequence[Revote]) -> list[Finding]:
    """Two accepted on-chain votes by one sender key; normal where the contract allows revotes.

    Source: each voter makes a key for one vote (docs/format.md, "What is counted": revote).
    """
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
                "observed": len(revote.votes),
                "expected": "1",
                "threshold": 1,
                "tx_ids": [tx_id for _moment, tx_id in revote.votes[:MOST_LISTED]],
            },
            detected_at=revote.votes[-1][0],
            weight=len(revote.votes),
        )
        for revote in revotes
    ]


REFUSED = "refused"
"""The subject of refused second votes; no voter key is so short."""


def refused_second_votes(totals: Totals, refused: int, held: DuplicateVoteKey) -> list[Finding]:
    """Votes that were refused because their key had voted, when they are many.

    Source: alerts catalogue, rule 10: told above 1 % of the votes.
    """
    most = held.refused_share * totals.votes
    if refused < held.refused_least or refused <= most:
        return []
    return [
        Finding(
            rule="duplicate_vote_key",
            subject=REFUSED,
            severity="info",
            title=f"{many(refused, 'second vote')} refused",
            description=(
                f"{many(refused, 'vote')} of {totals.votes + refused} came from a key that had "
                "voted already, and were refused."
            ),
            details={
                "number": refused,
                "votes": [],
                "is_revote_blocked": totals.is_revote_blocked,
                "observed": refused,
                "expected": f"at most {most:g}",
                "threshold": held.refused_share,
            },
            detected_at=totals.last_activity,
            weight=refused,
        )
    ]


@rule(
    "bulletin_for_many",
    "integrity",
    "info",
    reads="the persons named in each bulletin's data",
    sentence="One transaction issued bulletins to more than one person.",
    formula="persons named in one blindSigIssue > 1",
    benign=("the source may have begun to issue in batches: ask before counting",),
)
def bulletin_for_many(hour: int, rows: Sequence[tuple[str, datetime, int]]) -> Finding:
    """Bulletins of one UTC hour that name several persons, as (id, time, persons).

    Source: one transaction, one bulletin (docs/format.md, "What is counted").
    """
    ids = sorted(tx_id for tx_id, _moment, _persons in rows)
    most = max(persons for _tx_id, _moment, persons in rows)
    return Finding(
        rule="bulletin_for_many",
        subject=f"{start_of(hour):%Y-%m-%dT%H}",
        severity="info",
        title=f"{many(len(ids), 'bulletin')} for more than one person",
        description=(
            f"{many(len(ids), 'transaction')} issued bulletins to up to {most} persons at "
            "once; each is counted as one bulletin."
        ),
        details={
            "number": len(ids),
            "tx_ids": ids[:MOST_LISTED],
            "observed": most,
            "expected": "1",
            "threshold": 1,
        },
        detected_at=max(moment for _tx_id, moment, _persons in rows),
        weight=len(ids),
    )
