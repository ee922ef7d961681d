"""The truth about a simulated election, recounted from what was written.

Plain ballots are on the chain wherever a file holds their slot, so they are counted in bulk. Single
lines go through the rules of format.md §5 one transaction at a time.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .contest import Contest, Edition, Facts, Finding, Line
from .files import DROPS, WHOLE, FileRecord, hourly_place
from .plan import Plan
from .shape import HOUR_MS

COUNTS = (
    "bulletins_issued",
    "votes_cast",
    "votes_rejected",
    "issues_rejected",
    "revotes",
    "rolled_back",
    "list_added",
    "list_removed",
    "transaction_count",
)
STATUSES = ("accepted", "rejected", "rolled_back", "withdrawn")
KNOWN_OPERATIONS = frozenset(
    (
        *("createContract", "addMainKey", "addVotersList", "addToVotersList"),
        *("removeFromVotersList", "startVoting", "blindSigIssue", "vote", "finishVoting"),
        *("decryption", "commissionDecryption", "results"),
    )
)


@dataclass(slots=True, kw_only=True)
class Truth:
    """What a reader must know after drop/ and drop-2/; its fields are the keys of truth.json."""

    plan: dict[str, Any]
    files: list[dict[str, Any]] = field(default_factory=list)
    constituencies: dict[str, dict[str, Any]] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    defects: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    transactions: dict[str, dict[str, Any]] | None = None

    def add_contest(self, contest: Contest, records: list[FileRecord]) -> None:
        """Recount one constituency; afterwards it can be forgotten."""
        recount = _Recount(contest)
        contract = contest.constituency.contract
        self.files += [asdict(record) for record in records]
        self.constituencies[contract] = recount.summary()
        self.alerts += recount.alerts(records)
        for finding in contest.findings:
            self.defects.setdefault(finding.defect, []).append(_told(contest, finding))
        if self.transactions is not None:
            self.transactions[contract] = dict(recount.transactions())

    def finish(self) -> None:
        """Sum everything up."""
        found = self.constituencies.values()
        keys = (*COUNTS[:3], "registered_voters", "revotes")
        self.totals = {key: sum(one[key] for one in found) for key in keys}
        self.totals["statuses"] = {
            status: sum(one["statuses"][status] for one in found) for status in STATUSES
        }
        self.totals["constituencies"] = len(self.constituencies)
        self.totals["files"] = len(self.files)
        for key in ("bytes", "lines", "blank", "plus", "rollbacks", "bad"):
            self.totals[key] = sum(record[key] for record in self.files)
        self.totals["outcomes"] = dict(
            sorted(Counter(record["outcome"] for record in self.files).items())
        )

    def save(self, path: Path) -> None:
        """Write truth.json, without `transactions` unless the plan asked for them."""
        told = {name: getattr(self, name) for name in self.__slots__}
        if self.transactions is None:
            del told["transactions"]
        path.write_text(
            json.dumps(told, ensure_ascii=False, indent=1, default=str) + "\n", encoding="utf-8"
        )


def begin_truth(plan: Plan) -> Truth:
    """A truth to which constituencies are added one by one."""
    transactions: dict[str, dict[str, Any]] | None = {} if plan.transactions_in_truth else None
    return Truth(plan=asdict(plan) | {"day": plan.day.isoformat()}, transactions=transactions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """A transaction of single lines at the end: the line shown, its status, its first slot."""

    facts: Facts
    shown: Line
    status: str
    slot: int
    is_rewritten: bool


class _Recount:
    """The rules of format.md §5, applied to one constituency."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        self.held = {slot for slot in range(contest.slots) if self._holds_plain(slot)}
        self.standings = list(self._standings())
        self.revotes = self._revotes()

    def summary(self) -> dict[str, Any]:
        """The constituency as truth.json tells it."""
        found, hours = self.contest.constituency, self._hours()
        sums = {key: sum(hour[key] for hour in hours.values()) for key in COUNTS}
        statuses = Counter(standing.status for standing in self.standings)
        statuses["accepted"] += sum(self.contest.plain_count(slot) for slot in self.held)
        return {
            "region_code": found.region.code,
            "region_name": found.region.name,
            "election": found.election,
            "name": found.name,
            "registered_voters": sums["list_added"] - sums["list_removed"],
            "bulletins_issued": sums["bulletins_issued"],
            "votes_cast": sums["votes_cast"],
            "votes_rejected": sums["votes_rejected"],
            "revotes": sums["revotes"],
            "statuses": {status: statuses[status] for status in STATUSES},
            "hours": {_hour_name(hour): counts for hour, counts in sorted(hours.items())},
        }

    def alerts(self, records: list[FileRecord]) -> Iterator[dict[str, Any]]:
        """The alerts expected at the end."""
        yield from self._cumulative_alerts()
        for sender in sorted({standing.facts.sender for standing in self.revotes}):
            yield self._alert("duplicate_vote_key", "critical", sender)
        for standing in self.standings:
            if standing.is_rewritten:
                yield self._alert("transaction_rewritten", "critical", standing.facts.tx_id)
        yield from self._slot_alerts()
        for record in records:
            if record.outcome == "quarantined":
                alert = self._alert("file_rejected", "critical", record.path)
                yield alert | {"member": record.member}
        unknown = {
            standing.facts.operation
            for standing in self.standings
            if standing.status != "withdrawn" and standing.facts.operation not in KNOWN_OPERATIONS
        }
        for operation in sorted(unknown):
            yield self._alert("unknown_operation", "info", operation)

    def transactions(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every transaction with its parsed columns; only for small elections."""
        for slot in sorted(self.held):
            for chunk in self.contest.plain_chunks(slot):
                for text in chunk:
                    yield _told_transaction(text, "accepted")
        for standing in self.standings:
            yield _told_transaction(standing.shown.rendered(), standing.status)

    def _holds_plain(self, slot: int) -> bool:
        contest = self.contest
        hourly = contest.is_written(slot) and slot not in contest.refused
        return contest.plan.whole or hourly

    def _in_hour(self, line: Line) -> bool:
        """Whether the current hourly file of its slot holds the line."""
        contest, slot = self.contest, self.contest.slot_of(line.chain)
        if not contest.plan.hourly or slot in contest.lost:
            return False
        return line.second if slot in contest.republished else line.first

    def _was_in_hour(self, line: Line) -> bool:
        """Whether a superseded hourly file held the line."""
        slot = self.contest.slot_of(line.chain)
        return slot in self.contest.republished and line.first

    def _in_whole(self, line: Line) -> bool:
        return self.contest.plan.whole and line.whole

    def _standings(self) -> Iterator[_Standing]:
        by_id: dict[str, list[Line]] = defaultdict(list)
        for line in sorted(self.contest.lines, key=lambda line: line.chain):
            if line.facts is not None:
                by_id[line.facts.tx_id].append(line)
        for lines in by_id.values():
            current = [line for line in lines if self._in_hour(line) or self._in_whole(line)]
            earlier = [line for line in lines if self._was_in_hour(line)]
            if current or earlier:
                yield self._standing(current, earlier)

    def _standing(self, current: list[Line], earlier: list[Line]) -> _Standing:
        shown, facts = self._shown(current or earlier)
        status = "rejected" if facts.failed else "accepted"
        if self._net_sign(current) <= 0:
            status = "rolled_back"
        if not current:
            status = "withdrawn"
        contents = {line.facts.content for line in current if line.facts and line.sign > 0}
        return _Standing(
            facts=facts,
            shown=shown,
            status=status,
            slot=self.contest.slot_of((current or earlier)[0].chain),
            is_rewritten=len(contents) > 1,
        )

    def _shown(self, lines: list[Line]) -> tuple[Line, Facts]:
        """The last +1 line: hourly files by slot, then the whole, in each by line."""
        return max(
            ((line, line.facts) for line in lines if line.facts and line.sign > 0),
            key=lambda told: (self._in_whole(told[0]), told[0].chain),
        )

    def _net_sign(self, lines: list[Line]) -> int:
        def most(sign: int) -> int:
            signed = [line for line in lines if line.sign == sign]
            hourly = sum(self._in_hour(line) for line in signed)
            return max(hourly, sum(self._in_whole(line) for line in signed))

        return most(1) - most(-1)

    def _revotes(self) -> list[_Standing]:
        by_sender: dict[str, list[_Standing]] = defaultdict(list)
        for standing in self.standings:
            if standing.facts.operation == "vote" and standing.status == "accepted":
                by_sender[standing.facts.sender].append(standing)
        return [
            later
            for votes in by_sender.values()
            for later in sorted(votes, key=lambda vote: (vote.facts.ts, vote.facts.tx_id))[1:]
        ]

    def _hours(self) -> dict[int, dict[str, int]]:
        hours: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
        timeline, bounds = self.contest.timeline, self.contest.bounds
        for slot in sorted(self.held):
            part = slice(bounds[slot], bounds[slot + 1])
            for voted, name in ((False, "bulletins_issued"), (True, "votes_cast")):
                ts = timeline.ts[part][timeline.is_vote[part] == voted]
                for hour, count in zip(*np.unique(ts // HOUR_MS, return_counts=True), strict=True):
                    hours[int(hour)][name] += int(count)
                    hours[int(hour)]["transaction_count"] += int(count)
        for standing in self.standings:
            counts = hours[standing.facts.ts // HOUR_MS]
            for name, amount in _counted(standing):
                counts[name] += amount
        for standing in self.revotes:
            hours[standing.facts.ts // HOUR_MS]["revotes"] += 1
        return dict(hours)

    def _cumulative_alerts(self) -> Iterator[dict[str, Any]]:
        """Rules 1 and 2: more votes than bulletins, more bulletins than voters, slot by slot."""
        sums: Counter[str] = Counter()
        greatest_roll, over_votes, over_greatest = 0, False, False
        for slot in range(self.contest.slots):
            sums.update(self._slot_counts(slot))
            greatest_roll = max(greatest_roll, sums["greatest_roll"])
            over_votes |= sums["votes_cast"] > sums["bulletins_issued"]
            over_greatest |= sums["bulletins_issued"] > greatest_roll
        if over_votes:
            yield self._alert("votes_exceed_bulletins", self._vote_severity(), "")
        if over_greatest:
            yield self._alert("turnout_over_registered", "critical", "")
        elif sums["bulletins_issued"] > sums["list_added"] - sums["list_removed"]:
            yield self._alert("turnout_over_registered", "warning", "")

    def _slot_counts(self, slot: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        if slot in self.held:
            bounds = self.contest.bounds
            voted = self.contest.timeline.is_vote[bounds[slot] : bounds[slot + 1]]
            counts["votes_cast"] = int(voted.sum())
            counts["bulletins_issued"] = voted.size - counts["votes_cast"]
        for standing in self.standings:
            if standing.slot == slot:
                counts.update(dict(_counted(standing)))
        counts["greatest_roll"] = counts["list_added"]
        return counts

    def _vote_severity(self) -> str | None:
        """Provisional while hours are missing; open where a missing file may be an empty hour."""
        contest = self.contest
        if contest.lost and not contest.plan.whole:
            return "warning"
        absent = any(not contest.is_written(slot) for slot in contest.voting)
        return None if absent and contest.plan.hourly else "critical"

    def _slot_alerts(self) -> Iterator[dict[str, Any]]:
        withdrawn = {one.slot for one in self.standings if one.status == "withdrawn"}
        for slot in sorted(self.contest.republished):
            name = self.contest.slot_name(slot)
            yield self._alert("slot_republished", self._republished_severity(slot), name)
            if slot in withdrawn:
                yield self._alert("history_withdrawn", "critical", name)

    def _republished_severity(self, slot: int) -> str:
        contest = self.contest
        first = {line.facts for line in contest.singles(slot, Edition.FIRST) if line.facts}
        second = {line.facts for line in contest.singles(slot, Edition.SECOND) if line.facts}
        if first - second:
            return "critical"
        return "warning" if second - first else "info"

    def _alert(self, rule: str, severity: str | None, subject: str) -> dict[str, Any]:
        contract = self.contest.constituency.contract
        return {"rule": rule, "contract": contract, "subject": subject, "severity": severity}


def _counted(standing: _Standing) -> Iterator[tuple[str, int]]:
    """What a transaction adds to the counts of its hour."""
    operation, status, voters = (
        standing.facts.operation,
        standing.status,
        standing.facts.voters,
    )
    if status == "rolled_back":
        yield "rolled_back", 1
    if status in ("accepted", "rejected"):
        yield "transaction_count", 1
    if operation == "blindSigIssue" and status == "accepted":
        yield "bulletins_issued", 1
    if operation == "vote" and status == "accepted":
        yield "votes_cast", 1
    if status == "rejected":
        yield ("votes_rejected" if operation == "vote" else "issues_rejected"), 1
    if status == "accepted" and operation in ("addVotersList", "addToVotersList"):
        yield "list_added", voters
    if status == "accepted" and operation == "removeFromVotersList":
        yield "list_removed", voters


def _told(contest: Contest, finding: Finding) -> dict[str, Any]:
    """A finding as truth.json tells it."""
    written = contest.is_written(finding.slot, finding.edition)
    path = None
    if written:
        path = f"{DROPS[finding.edition]}/{hourly_place(contest, finding.slot).path}"
    numbers = contest.line_numbers(finding.slot, finding.edition) if finding.lines else {}
    return {
        "contract": contest.constituency.contract,
        "slot": contest.slot_name(finding.slot) if contest.plan.hourly else WHOLE,
        "path": path,
        "tx_ids": _unique(line.facts.tx_id for line in finding.lines if line.facts),
        "lines": sorted(numbers[line] for line in finding.lines) if written else [],
        "note": finding.note,
    }


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _hour_name(hour: int) -> str:
    return f"{datetime.fromtimestamp(hour * 3600, UTC):%Y-%m-%dT%H:00:00Z}"


def _told_transaction(text: bytes, status: str) -> tuple[str, dict[str, Any]]:
    """Parse a line that the simulator wrote itself."""
    tx_id, tx_type, signature, _, ts, sender, _, _, rest = text.decode().split(";", 8)
    body, extra, _ = rest.rsplit(";", 2)
    params, at = _parsed_entries(body, 0)
    diff, _ = _parsed_entries(body, at + 1)
    calls = [entry["stringValue"] for entry in params if entry["key"] == "operation"]
    return tx_id, {
        "type": "createContract" if tx_type == "103" else calls[0],
        "status": status,
        "ts": int(ts),
        "sender": sender,
        "signature": signature,
        "params": params,
        "diff": diff,
        "extra": json.loads(extra),
        "hour": _hour_name(int(ts) // HOUR_MS),
    }


def _parsed_entries(text: str, at: int) -> tuple[list[dict[str, Any]], int]:
    """A JSON list, or entries without its brackets, from a position; and where it ends."""
    decode = json.JSONDecoder().raw_decode
    if text[at] == "[":
        found, end = decode(text, at)
        return found, end
    entries = []
    while text[at] == "{":
        entry, end = decode(text, at)
        entries.append(entry)
        if text[end] != ",":
            break
        at = end + 1
    return entries, end
