"""The truth about a simulated election, recounted from what was written.

Plain ballots are on the chain wherever a file holds their slot, so they are counted in bulk. Single
lines go through the rules of format.md §5 one transaction at a time.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .contest import Contest, Edition, Facts, Finding, Line
from .feed import Feed, alert_of, hour_name
from .files import DROPS, WHOLE, FileRecord, hourly_place
from .life import marks_given
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
FEW_REFUSED, ENOUGH_ROWS, MANY_BAD = 3, 20, 10
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
    expected_contracts: list[str] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    transactions: dict[str, dict[str, Any]] | None = None
    feed: Feed = field(default_factory=Feed)

    def add_contest(self, contest: Contest, records: list[FileRecord]) -> None:
        """Recount one constituency; afterwards it can be forgotten."""
        recount = _Recount(contest)
        contract = contest.constituency.contract
        self.files += [asdict(record) for record in records]
        self.constituencies[contract] = recount.summary()
        self.alerts += recount.alerts(records)
        self.feed.add(
            contest, records, gaps=recount.gaps(), rollbacks=recount.rollbacks(), ids=recount.ids()
        )
        self.expected_contracts += contest.never_written
        for finding in contest.findings:
            self.defects.setdefault(finding.defect, []).append(_told(contest, finding))
        if self.transactions is not None:
            self.transactions[contract] = dict(recount.transactions())

    def finish(self) -> None:
        """Sum everything up."""
        self.alerts += self.feed.alerts()
        for contract in self.expected_contracts:
            self.alerts.append(alert_of("constituency_missing", "critical", None, contract))
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
        del told["feed"]
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
    hour_slot: int | None
    rollback_slot: int | None
    is_rewritten: bool
    is_doubled: bool
    in_hours: bool
    in_whole: bool

    @property
    def is_on_chain(self) -> bool:
        """Whether it counts."""
        return self.status in ("accepted", "rejected")

    @property
    def is_ballot(self) -> bool:
        """Whether it is an accepted bulletin or vote."""
        return self.status == "accepted" and self.facts.operation in ("vote", "blindSigIssue")


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
            "hours": {hour_name(hour): counts for hour, counts in sorted(hours.items())},
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
        yield from self._protocol_alerts()
        yield from self._row_alerts()
        yield from self._file_alerts(records)
        yield from self._whole_alerts()
        unknown = {
            standing.facts.operation
            for standing in self.standings
            if standing.status != "withdrawn" and standing.facts.operation not in KNOWN_OPERATIONS
        }
        for operation in sorted(unknown):
            yield self._alert("unknown_operation", "info", operation)

    def _protocol_alerts(self) -> Iterator[dict[str, Any]]:
        """Rules 8, 9, 11 and 12: the order of a contract's life, its roll, its results."""
        contest = self.contest
        by_operation: dict[str, list[_Standing]] = defaultdict(list)
        for standing in self.standings:
            if standing.status == "accepted":
                by_operation[standing.facts.operation].append(standing)
        keys = by_operation["addMainKey"]
        key_slot = min((one.hour_slot for one in keys if one.hour_slot is not None), default=None)
        votes = Counter(one.hour_slot for one in by_operation["vote"])
        votes.update({slot: self._plain(slot)[1] for slot in self._hours_here()})
        ballots = votes + Counter(one.hour_slot for one in by_operation["blindSigIssue"])
        ballots.update({slot: self._plain(slot)[0] for slot in self._hours_here()})
        if key_slot is not None and any(
            number and slot is not None and slot < key_slot for slot, number in votes.items()
        ):
            yield self._alert("vote_without_main_key", "critical", "")
        yield from self._order_alerts(by_operation, ballots)
        if len(keys) > 1:
            yield self._alert("lifecycle_order", "critical", "addMainKey")
        started = by_operation["startVoting"]
        if started:
            yield from self._roll_alerts(by_operation, started[0].facts.ts)
        results = len(by_operation["results"])
        if results > 1:
            yield self._alert("results_mismatch", "critical", "vectors")
        if results:
            yield from self._result_alerts(marks_given(contest) + (results > 1))

    def _order_alerts(
        self, by_operation: dict[str, list[_Standing]], ballots: Counter[int | None]
    ) -> Iterator[dict[str, Any]]:
        finishes = [one.hour_slot for one in by_operation["finishVoting"]]
        finish = finishes[0] if finishes else None
        if finish is not None and any(
            number and slot is not None and slot > finish for slot, number in ballots.items()
        ):
            yield self._alert("lifecycle_order", "critical", "after_finish")
        ended = by_operation["finishVoting"][0].facts.ts if finishes else 0
        for operation in ("decryption", "commissionDecryption", "results"):
            if any(one.facts.ts < ended for one in by_operation[operation]):
                yield self._alert("lifecycle_order", "critical", "before_finish")
                break

    def _roll_alerts(
        self, by_operation: dict[str, list[_Standing]], started: int
    ) -> Iterator[dict[str, Any]]:
        rule = "roll_changed_during_voting"
        lists = by_operation["addVotersList"]
        if any(one.facts.ts > started for one in lists):
            yield self._alert(rule, "warning", "list")
        added = [*lists, *by_operation["addToVotersList"]]
        most = max(10, 0.01 * sum(one.facts.voters for one in added))
        for operation, word in (
            ("addToVotersList", "restored"),
            ("removeFromVotersList", "removed"),
        ):
            hours: Counter[int] = Counter()
            for one in by_operation[operation]:
                hours[one.facts.ts // HOUR_MS] += one.facts.voters
            for hour, voters in hours.items():
                if voters > most:
                    yield self._alert(rule, "info", f"{word} {hour_name(hour)[:13]}")

    def _result_alerts(self, marks: int) -> Iterator[dict[str, Any]]:
        sums = list(self._hours().values())
        votes = sum(hour["votes_cast"] for hour in sums)
        revotes = sum(hour["revotes"] for hour in sums)
        if marks > votes and not self._is_provisional():
            yield self._alert("results_mismatch", "critical", "more 1")
        if marks < votes - revotes:
            yield self._alert("results_mismatch", "warning", "fewer 1")

    def _is_provisional(self) -> bool:
        contest = self.contest
        if contest.plan.whole:
            return False
        start = contest.voting.start
        here = self._hours_here()
        return start not in here or any(slot not in here for slot in range(start, max(here)))

    def _hours_here(self) -> set[int]:
        """The slots of which a current hourly file is stored."""
        contest = self.contest
        return {
            slot
            for slot in range(contest.slots)
            if contest.is_written(slot) and slot not in contest.refused
        }

    def _plain(self, slot: int) -> tuple[int, int]:
        bounds = self.contest.bounds
        voted = self.contest.timeline.is_vote[bounds[slot] : bounds[slot + 1]]
        votes = int(voted.sum())
        return voted.size - votes, votes

    def _row_alerts(self) -> Iterator[dict[str, Any]]:
        """Rules 3, 7, 10, 13, 17 and 18: what single rows say."""
        for standing in self.standings:
            if standing.is_doubled and not standing.is_rewritten:
                yield self._alert("duplicate_transaction", "warning", standing.facts.tx_id)
        kinds = {self._place(standing) for standing in self.standings if standing.is_on_chain}
        for kind, severity in (("accepted", "critical"), ("clock", "warning"), ("refused", "info")):
            if kind in kinds:
                yield self._alert("outside_voting_window", severity, kind)
        for_many = {
            one.facts.ts // HOUR_MS
            for one in self.standings
            if one.facts.persons > 1 and one.status == "accepted"
        }
        for hour in sorted(for_many):
            yield self._alert("bulletin_for_many", "info", hour_name(hour)[:13])
        yield from self._clock_alerts()
        accepted = {one.facts.sender for one in self.standings if one.is_ballot}
        again = sum(
            one.facts.operation == "vote" and one.facts.sender in accepted
            for one in self.standings
            if one.status == "rejected"
        )
        votes = sum(hour["votes_cast"] for hour in self._hours().values())
        if again >= FEW_REFUSED and again > 0.01 * votes:
            yield self._alert("duplicate_vote_key", "info", "refused")
        if any(self._is_lost(standing) for standing in self.standings):
            yield self._alert("rolled_back_for_good", "warning", "")

    def _place(self, standing: _Standing) -> str | None:
        """Where a ballot lies against the voting: None is inside."""
        facts, found = standing.facts, self.contest.constituency
        if facts.operation not in ("vote", "blindSigIssue"):
            return None
        grace = 20 * 60_000 if facts.operation == "vote" else 0
        is_outside = facts.ts < found.start_ms or facts.ts >= found.end_ms + grace
        if standing.status == "rejected":
            return "refused" if is_outside else None
        slot, voting = standing.hour_slot, self.contest.voting
        last = voting.stop if facts.operation == "vote" else voting.stop - 1
        if slot is not None and not voting.start <= slot <= last:
            return "accepted"
        return "clock" if is_outside else None

    def _clock_alerts(self) -> Iterator[dict[str, Any]]:
        rows: Counter[int] = Counter()
        far: dict[int, list[int]] = defaultdict(list)
        for one in self.standings:
            if one.hour_slot is None or not one.is_on_chain:
                continue
            rows[one.hour_slot] += 1
            begin = self.contest.moment(one.hour_slot, 0)
            distance = max(begin - one.facts.ts, one.facts.ts - begin - HOUR_MS)
            if distance >= 30 * 60_000:
                far[one.hour_slot].append(distance)
        for slot, distances in far.items():
            number = rows[slot] + self.contest.plain_count(slot)
            is_many = number >= ENOUGH_ROWS and len(distances) > 0.05 * number
            severity = "warning" if is_many or max(distances) > HOUR_MS else "info"
            yield self._alert("ts_out_of_slot", severity, self.contest.slot_name(slot))

    def _is_lost(self, standing: _Standing) -> bool:
        facts = standing.facts
        if standing.status != "rolled_back" or facts.failed:
            return False
        if facts.operation not in ("vote", "blindSigIssue"):
            return False
        if standing.rollback_slot is not None:
            return max(self._hours_here()) > standing.rollback_slot
        last = max(one.facts.ts for one in self.standings if one.is_on_chain)
        return last - facts.ts >= HOUR_MS

    def _file_alerts(self, records: list[FileRecord]) -> Iterator[dict[str, Any]]:
        """Rule 16: rows that were set aside."""
        for record in records:
            if record.bad and record.outcome == "completed":
                is_many = record.bad >= MANY_BAD or record.bad >= 0.01 * (
                    record.lines - record.blank
                )
                severity = "warning" if is_many else "info"
                yield self._alert("reject_share", severity, record.slot)

    def _whole_alerts(self) -> Iterator[dict[str, Any]]:
        """Rule 6: what only one of the whole file and the hourly files holds."""
        contest = self.contest
        if not (contest.plan.whole and contest.plan.hourly):
            return
        here = self._hours_here()
        finish = next(
            (one for one in self.standings if one.facts.operation == "finishVoting"), None
        )
        start = next((one for one in self.standings if one.facts.operation == "startVoting"), None)
        known = [one for one in self.standings if one.status != "withdrawn"]
        differs = any(one.in_hours and not one.in_whole for one in known)
        if (
            start is not None
            and finish is not None
            and finish.hour_slot is not None
            and all(slot in here for slot in range(contest.voting.start, finish.hour_slot + 1))
        ):
            last = finish.facts.ts - 30 * 60_000
            differs |= any(
                one.in_whole and not one.in_hours and start.facts.ts <= one.facts.ts <= last
                for one in known
            )
        if differs:
            yield self._alert("whole_export_differs", "critical", WHOLE)

    def rollbacks(self) -> dict[int, tuple[int, int]]:
        """For each hour: rolled back, and all rows."""
        return {
            hour: (counts["rolled_back"], counts["rolled_back"] + counts["transaction_count"])
            for hour, counts in self._hours().items()
        }

    def gaps(self) -> list[list[int]]:
        """Runs of neighbouring voting slots without a file."""
        contest = self.contest
        if contest.plan.whole or not contest.plan.hourly or not contest.plan.empty_hours:
            return []
        runs: list[list[int]] = []
        for slot in sorted(contest.lost & set(contest.voting)):
            if runs and runs[-1][-1] == slot - 1:
                runs[-1].append(slot)
            else:
                runs.append([slot])
        return runs

    def ids(self) -> Iterator[str]:
        """The ids of single lines that are not withdrawn."""
        for standing in self.standings:
            if standing.status != "withdrawn":
                yield standing.facts.tx_id

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
        slot_of = self.contest.slot_of
        hourly = [line for line in current if self._in_hour(line)]
        held = [slot_of(line.chain) for line in hourly if line.sign > 0]
        gone = [slot_of(line.chain) for line in hourly if line.sign < 0]
        return _Standing(
            facts=facts,
            shown=shown,
            status=status,
            slot=slot_of((current or earlier)[0].chain),
            hour_slot=min(held, default=None),
            rollback_slot=max(gone, default=None),
            is_rewritten=len(contents) > 1,
            is_doubled=self._is_doubled(current, held, gone),
            in_hours=bool(held),
            in_whole=any(self._in_whole(line) and line.sign > 0 for line in current),
        )

    def _is_doubled(self, current: list[Line], held: list[int], gone: list[int]) -> bool:
        if len(held) - len(gone) > 1:
            return True
        whole = sum(self._in_whole(line) and line.sign > 0 for line in current)
        is_rolled_back = any(line.sign < 0 for line in current)
        return not is_rolled_back and (whole > 1 or len(held) > len(set(held)))

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
        return alert_of(rule, severity, self.contest.constituency.contract, subject)


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
        "hour": hour_name(int(ts) // HOUR_MS),
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
