"""Rules about the protocol: the order of a contract's life, its window, its roll, its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ingestd.pipeline.rules.ballots import SlotCount
from ingestd.pipeline.rules.base import MOST_LISTED, Finding, Severity, many, rule
from ingestd.pipeline.rules.history import begin_of
from ingestd.thresholds import OutsideVotingWindow, RollChangedDuringVoting

_ONCE = {"startVoting": "start", "finishVoting": "finish", "addMainKey": "main key"}
_AFTER_THE_END = ("decryption", "commissionDecryption", "results")


@dataclass(frozen=True, slots=True)
class ProtocolRow:
    """A transaction on chain that is no ballot; `slot` is the hourly file that first held it."""

    type: str
    timestamp: datetime
    slot: str | None
    tx_id: str
    persons: int | None


def first_of(rows: Sequence[ProtocolRow], operation: str) -> ProtocolRow | None:
    """The first row of an operation in the order of the chain, as far as it is known."""
    found = [row for row in rows if row.type == operation]
    return min(found, key=_order, default=None)


def _order(row: ProtocolRow) -> tuple[bool, str, datetime, str]:
    return row.slot is None, row.slot or "", row.timestamp, row.tx_id


def shift_of(rows: Sequence[ProtocolRow]) -> timedelta | None:
    """How far the clock of the file names is ahead of UTC, in whole hours.

    The commonest difference among the rows that servers write, whose clocks are right; None
    where no hourly file holds such a row.
    """
    hours = Counter(
        round((begin_of(row.slot) - _hour(row.timestamp)).total_seconds() / 3600)
        for row in rows
        if row.slot is not None
    )
    if not hours:
        return None
    best = min(hours, key=lambda hour: (-hours[hour], abs(hour), hour))
    return timedelta(hours=best)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0, tzinfo=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Ballots outside of the voting: by the slot of their file, or by their own clock."""

    bulletins: int = 0
    votes: int = 0
    slots: tuple[str, ...] = ()
    tx_ids: tuple[str, ...] = ()


_WINDOW_WORDS: dict[str, tuple[Severity, str]] = {
    "accepted": ("critical", "in hourly files before its start or after its end"),
    "clock": ("warning", "by their own clock, though their hourly file lies within it"),
    "refused": ("info", "and were refused"),
}


@rule(
    "outside_voting_window",
    "integrity",
    "critical",
    "warning",
    "info",
    reads="the start and end of the voting, the slot and the time of each ballot",
    sentence="Ballots were accepted before the voting began or after it had ended.",
    formula="accepted ballots whose slot (critical) or time (warning) is outside of [start, end]",
    benign=("a voter's clock is wrong", "votes are accepted for a quarter of an hour after 20:00"),
)
def outside_voting_window(
    kind: str, found: Outside, *, held: OutsideVotingWindow, at: datetime | None
) -> list[Finding]:
    """Ballots outside of [start, end]: accepted by slot, by clock alone, or refused.

    Source: VOTING_BASE's dateStart and dateEnd, and startVoting (docs/format.md, operations).
    """
    number = found.bulletins + found.votes
    if not number:
        return []
    severity, words = _WINDOW_WORDS[kind]
    return [
        Finding(
            rule="outside_voting_window",
            subject=kind,
            severity=severity,
            title=f"{many(number, 'ballot')} outside of the voting"
            + {"accepted": "", "clock": " by their clock", "refused": ", refused"}[kind],
            description=(
                f"{many(found.bulletins, 'bulletin')} and {many(found.votes, 'vote')} are outside "
                f"of the voting {words}."
            ),
            details={
                "bulletins": found.bulletins,
                "votes": found.votes,
                "slots": list(found.slots[:MOST_LISTED]),
                "tx_ids": list(found.tx_ids[:MOST_LISTED]),
                "observed": number,
                "expected": "0",
                "threshold": {
                    "bulletin_grace_minutes": held.bulletin_grace_minutes,
                    "vote_grace_minutes": held.vote_grace_minutes,
                },
            },
            detected_at=at,
            weight=number,
        )
    ]


@rule(
    "vote_without_main_key",
    "integrity",
    "critical",
    reads="accepted votes of each hourly file, and the slot of addMainKey",
    sentence="Votes were accepted before the key that encrypts them was published.",
    formula="accepted votes in slots before that of addMainKey > 0",
    benign=("the hourly file with the first addMainKey is not the current one",),
)
def vote_without_main_key(
    slots: Sequence[SlotCount], key: ProtocolRow | None, at: datetime | None
) -> list[Finding]:
    """Accepted votes in a slot before addMainKey.

    Source: a vote is encrypted with the main key (docs/format.md, order on chain).
    """
    if key is None or key.slot is None:
        return []
    before = [slot for slot in slots if slot.votes and slot.slot < key.slot]
    votes = sum(slot.votes for slot in before)
    if not votes:
        return []
    return [
        Finding(
            rule="vote_without_main_key",
            subject="",
            severity="critical",
            title=f"{many(votes, 'vote')} before the main key",
            description=(
                f"{many(votes, 'vote')} were accepted up to {before[-1].slot}; the main key came "
                f"in {key.slot}."
            ),
            details={
                "slots": [slot.slot for slot in before][:MOST_LISTED],
                "tx_ids": [key.tx_id],
                "votes": votes,
                "observed": votes,
                "expected": "0",
                "threshold": key.slot,
            },
            detected_at=at,
            weight=votes,
        )
    ]


@rule(
    "lifecycle_order",
    "integrity",
    "critical",
    reads="start, finish, main key, decryptions, results, and the ballots of each hourly file",
    sentence="The steps of the voting are not in their order, or one was taken twice.",
    formula=(
        "ballots in slots after finishVoting; decryption or results before it; "
        "a second start, finish or main key with another value"
    ),
)
def lifecycle_order(
    rows: Sequence[ProtocolRow],
    slots: Sequence[SlotCount],
    *,
    contradicted: Sequence[str],
    at: datetime | None,
) -> list[Finding]:
    """Ballots after the finish, results before it, and a step taken twice with other values.

    `contradicted` are operations of which two rows have different values.
    Source: docs/format.md, order on chain. Results before decryptions are normal.
    """
    found: list[Finding] = []
    finish = first_of(rows, "finishVoting")
    if finish is not None and finish.slot is not None:
        after = [one for one in slots if one.slot > finish.slot and one.bulletins + one.votes]
        number = sum(one.bulletins + one.votes for one in after)
        if number:
            title = f"{many(number, 'ballot')} after the end of the voting"
            words = f"finishVoting is in {finish.slot}; {many(number, 'ballot')} came after it."
            details = {"slots": [one.slot for one in after][:MOST_LISTED]}
            found.append(_disorder("after_finish", title, words, [finish], number, at, details))
    if finish is not None:
        early = [row for row in rows if row.type in _AFTER_THE_END and _is_before(row, finish)]
        if early:
            names = ", ".join(sorted({row.type for row in early}))
            title = f"{names} before the end of the voting"
            words = f"{many(len(early), 'transaction')} ({names}) came before finishVoting."
            found.append(
                _disorder("before_finish", title, words, [*early, finish], len(early), at, {})
            )
    for operation in sorted(contradicted):
        again = sorted((row for row in rows if row.type == operation), key=_order)
        title = f"{len(again)} times {operation}, with different values"
        words = f"The contract has {len(again)} {_ONCE[operation]} rows that do not say the same."
        found.append(_disorder(operation, title, words, again, len(again), at, {}))
    return found


def _is_before(row: ProtocolRow, finish: ProtocolRow) -> bool:
    if row.slot is not None and finish.slot is not None and row.slot != finish.slot:
        return row.slot < finish.slot
    return row.timestamp < finish.timestamp


def _disorder(  # noqa: PLR0913, PLR0917 - the parts of one finding
    subject: str,
    title: str,
    words: str,
    rows: Sequence[ProtocolRow],
    number: int,
    at: datetime | None,
    details: dict[str, Any],
) -> Finding:
    return Finding(
        rule="lifecycle_order",
        subject=subject,
        severity="critical",
        title=title,
        description=words,
        details={
            "tx_ids": sorted(row.tx_id for row in rows)[:MOST_LISTED],
            "observed": number,
            "expected": "0" if subject in ("after_finish", "before_finish") else "1",
            "threshold": 0,
            **details,
        },
        detected_at=at,
        weight=number,
    )


@rule(
    "roll_changed_during_voting",
    "integrity",
    "warning",
    "info",
    reads="the lists of voters and the start of the voting",
    sentence="The roll of voters changed while people voted.",
    formula="addVotersList after startVoting; voters added or removed in an hour > max(10, 1 %)",
    benign=("a part of the roll was loaded late", "voters went over to paper ballots"),
)
def roll_changed_during_voting(
    rows: Sequence[ProtocolRow], *, roll: int, held: RollChangedDuringVoting
) -> list[Finding]:
    """A list added after the start, and hours in which many voters came or went.

    Source: the roll is loaded the evening before (docs/format.md, order on chain).
    """
    start = first_of(rows, "startVoting")
    if start is None:
        return []
    found: list[Finding] = []
    late = [row for row in rows if row.type == "addVotersList" and _is_before(start, row)]
    if late:
        persons = sum(row.persons or 0 for row in late)
        found.append(
            Finding(
                rule="roll_changed_during_voting",
                subject="list",
                severity="warning",
                title=f"{many(persons, 'voter')} added by a list after the start",
                description=(
                    f"{many(len(late), 'list')} with {many(persons, 'voter')} came after the "
                    "voting had begun."
                ),
                details={
                    "number": len(late),
                    "persons": persons,
                    "tx_ids": sorted(row.tx_id for row in late)[:MOST_LISTED],
                    "observed": persons,
                    "expected": "0",
                    "threshold": 0,
                },
                detected_at=max(row.timestamp for row in late),
                weight=persons,
            )
        )
    most = max(held.least, held.share * roll)
    for operation, word in (("addToVotersList", "restored"), ("removeFromVotersList", "removed")):
        for hour, changes in _by_hour(rows, operation):
            persons = sum(row.persons or 0 for row in changes)
            if persons > most:
                found.append(_many_moved(hour, word, changes, persons, most))
    return found


def _by_hour(
    rows: Sequence[ProtocolRow], operation: str
) -> list[tuple[datetime, list[ProtocolRow]]]:
    hours: dict[datetime, list[ProtocolRow]] = {}
    for row in rows:
        if row.type == operation:
            begin = row.timestamp.replace(minute=0, second=0, microsecond=0)
            hours.setdefault(begin, []).append(row)
    return sorted(hours.items())


def _many_moved(
    hour: datetime, word: str, rows: Sequence[ProtocolRow], persons: int, most: float
) -> Finding:
    return Finding(
        rule="roll_changed_during_voting",
        subject=f"{word} {hour:%Y-%m-%dT%H}",
        severity="info",
        title=f"{many(persons, 'voter')} {word} within an hour",
        description=(
            f"In the hour from {hour:%Y-%m-%d %H:%M} UTC, {many(persons, 'voter')} were {word}; "
            f"up to {most:g} are normal."
        ),
        details={
            "number": len(rows),
            "persons": persons,
            "tx_ids": sorted(row.tx_id for row in rows)[:MOST_LISTED],
            "window": [hour.isoformat(), (hour + timedelta(hours=1)).isoformat()],
            "observed": persons,
            "expected": f"at most {most:g}",
            "threshold": most,
        },
        detected_at=hour + timedelta(hours=1),
        weight=persons,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Published results, each vector as found, and the ballots that they are held against."""

    vectors: tuple[Any, ...]
    tx_ids: tuple[str, ...]
    dimension: Any
    votes: int
    revotes: int
    is_provisional: bool
    at: datetime | None


@rule(
    "results_mismatch",
    "integrity",
    "critical",
    "warning",
    reads="published results, the ballot's dimension, and the votes on chain",
    sentence="The published results do not fit the votes on chain.",
    formula="sum of a question > votes x most marks (critical), < votes x least marks (warning)",
    benign=("ballots that could not be decrypted are left out", "a results row of another stage"),
)
def results_mismatch(results: Results) -> list[Finding]:
    """A question's results sum to more marks than the votes allow, or to fewer; or two differ.

    Where hours are missing nothing is said about "more", since votes are unknown then.
    Source: dimension is [[least, most, options], ...] (docs/format.md, operations).
    """
    if not results.vectors:
        return []
    found: list[Finding] = []
    if any(vector != results.vectors[0] for vector in results.vectors[1:]):
        words = f"{len(results.vectors)} results were published and they are not the same."
        severity: Severity = "critical"
        found.append(
            _mismatch(
                "vectors", severity, "Results that differ", words, results, len(results.vectors)
            )
        )
    questions = _questions(results.vectors[-1], results.dimension)
    for number, (total, least, most) in enumerate(questions, start=1):
        if total > results.votes * most and not results.is_provisional:
            excess = total - results.votes * most
            title = f"Results of question {number}: {excess} too many"
            words = (
                f"The results of question {number} sum to {total}; {results.votes} votes with at "
                f"most {most} marks make {results.votes * most}."
            )
            found.append(_mismatch(f"more {number}", "critical", title, words, results, excess))
        # Of a voter's several votes, perhaps only the last one was counted.
        fewest = (results.votes - results.revotes) * least
        if total < fewest:
            left_out = fewest - total
            title = f"Results of question {number} leave {left_out} marks out"
            words = (
                f"The results of question {number} sum to {total}; {results.votes} votes with at "
                f"least {least} marks make {fewest}: {left_out} were left out."
            )
            found.append(_mismatch(f"fewer {number}", "warning", title, words, results, left_out))
    return found


def _questions(vector: Any, dimension: Any) -> list[tuple[int, int, int]]:
    """Sum, least and most marks of each question; what has another form is not judged."""
    if not isinstance(vector, list) or not isinstance(dimension, list):
        return []
    if len(vector) != len(dimension):
        return []
    found = []
    for marks, limits in zip(vector, dimension, strict=True):
        if not isinstance(marks, list) or not all(_is_count(mark) for mark in marks):
            return []
        if not isinstance(limits, list) or len(limits) < 2 or not all(map(_is_count, limits[:2])):  # noqa: PLR2004 - least and most
            return []
        found.append((sum(marks), limits[0], limits[1]))
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _mismatch(
    subject: str, severity: Severity, title: str, words: str, results: Results, weight: int
) -> Finding:
    return Finding(
        rule="results_mismatch",
        subject=subject,
        severity=severity,
        title=title,
        description=words,
        details={
            "results": results.vectors[-1],
            "dimension": results.dimension,
            "votes": results.votes,
            "tx_ids": sorted(results.tx_ids)[:MOST_LISTED],
            "observed": weight,
            "expected": "0",
            "threshold": 0,
        },
        detected_at=results.at,
        weight=weight,
    )


@rule(
    "unknown_operation",
    "integrity",
    "info",
    reads="the operations of all transactions",
    sentence="The files hold an operation that the known format does not have.",
    formula="operation not in the table of docs/format.md",
    benign=("the voting system has a new version",),
)
def unknown_operation(
    operation: str, number: int, constituencies: int, first: tuple[str, datetime], contract: str
) -> Finding:
    """An operation that is not in the format's table, at first sight; stored and counted.

    Source: docs/format.md, operations.
    """
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
            "contracts": [contract],
            "window": [first[1].isoformat(), first[1].isoformat()],
            "tx_ids": [first[0]],
            "observed": number,
            "expected": "0",
            "threshold": 0,
        },
        detected_at=first[1],
    )
