"""What the tables must say: compared with a simulator's truth, with a recount, with each other."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Table, func, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.config import Statistics
from ingestd.models import (
    Alert,
    Constituency,
    Election,
    EvaluationDue,
    FileProcessing,
    HourlyStats,
    Reject,
    Sighting,
    Transaction,
    table_of,
)
from ingestd.pipeline.evaluator import Evaluator, Thresholds
from ingestd.pipeline.feed import evaluate_feed
from ingestd.thresholds import Alerts

_LONG_AFTER = datetime(2025, 1, 1, tzinfo=UTC)
Sessions = sessionmaker[Session]
Row = dict[str, Any]
Snapshot = dict[str, dict[Hashable, Row]]

# The wall clock and the lineage may depend on the order of arrival; nothing else may.
_CLOCK = {"created_at", "updated_at"}
_LINEAGE = {"file_id", "line_number"}
_BALLOTS = ("bulletins_issued", "votes_cast", "votes_rejected", "issues_rejected")
_COUNTS = (
    *_BALLOTS,
    *("revotes", "rolled_back", "list_added", "list_removed", "transaction_count"),
)


# Two databases ------------------------------------------------------------------------------


def judge(sessions: Sessions) -> None:
    """Let the evaluator work off what is due, which a daemon does in its own time."""
    told = Statistics()
    thresholds = Thresholds(
        values={name: float(getattr(told, name)) for name in told.thresholds()},
        overrides={},
        held=Alerts(),
        voting_hours=told.voting_hours,
        first_hour=told.first_hour,
    )
    Evaluator(sessions, thresholds, lambda: datetime.now(UTC)).work_off(is_alone=True)


def snapshot(sessions: Sessions) -> Snapshot:
    """Everything that must not depend on order, database or crashes; JSON is parsed."""
    with sessions() as session:
        return {
            "transaction": _rows(session, table_of(Transaction), leave_out=_LINEAGE),
            "hourly_stats": _rows(session, table_of(HourlyStats)),
            "constituency": _rows(session, table_of(Constituency), leave_out=_CLOCK),
            "election": _rows(session, table_of(Election), leave_out=_CLOCK),
            "alert": {
                key: row
                for key, row in _rows(session, table_of(Alert), leave_out=_CLOCK).items()
                if row["cleared_at"] is None
            },
        }


def _rows(session: Session, table: Table, *, leave_out: Iterable[str] = ()) -> dict[Hashable, Row]:
    columns = [column for column in table.c if column.name not in set(leave_out)]
    return {row["id"]: dict(row) for row in session.execute(select(*columns)).mappings()}


def differences(one: Snapshot, other: Snapshot, *, most: int = 20) -> list[str]:
    """What two snapshots disagree on, one line each; empty when they are the same."""
    return list(_first(most, _disagreements(one, other)))


def _disagreements(one: Snapshot, other: Snapshot) -> Iterator[str]:
    for table in one:
        for key in sorted(one[table].keys() | other[table].keys(), key=str):
            here, there = one[table].get(key), other[table].get(key)
            if here is None or there is None:
                where = "first" if there is None else "second"
                yield f"{table} {key}: only in the {where}: {here or there}"
                continue
            for name, value in here.items():
                if value != there[name]:
                    yield f"{table} {key} {name}: {value!r} != {there[name]!r}"


def _first(most: int, lines: Iterable[str]) -> Iterator[str]:
    for _, line in zip(range(most), lines, strict=False):
        yield line


# The books ----------------------------------------------------------------------------------


def unsound(sessions: Sessions) -> list[str]:
    """What no database may ever show once all jobs are final; empty when it is sound."""
    with sessions() as session:
        return [
            *_open_jobs(session),
            *_unbalanced(session),
            *_lines_twice(session),
            *_wrong_hours(session),
            *_wrong_slots(session),
            *_strangers(session),
            *_wrong_velocities(session),
        ]


def _open_jobs(session: Session) -> Iterator[str]:
    for job in session.scalars(
        select(FileProcessing).where(FileProcessing.status.in_(("pending", "processing", "failed")))
    ):
        yield f"job {job.path} {job.member} is {job.status}: {job.first_error_message}"


def _unbalanced(session: Session) -> Iterator[str]:
    # A row that a person mended and replayed is told by its sighting.
    rejects = Counter(session.scalars(select(Reject.file_id).where(Reject.replayed_at.is_(None))))
    for job in session.scalars(select(FileProcessing)):
        parts = job.rows_stored + job.rows_known + job.rows_rollbacks
        if job.rows_read != parts + job.rows_rejected + job.rows_blank:
            yield f"job {job.path} {job.member}: {job.rows_read} lines are not accounted for"
        if job.status in ("completed", "superseded") and job.checkpoint_line != job.rows_read:
            yield f"job {job.path}: {job.rows_read} lines, but read to {job.checkpoint_line}"
        if rejects[job.id] != job.rows_rejected:
            yield f"job {job.path}: {job.rows_rejected} rejects, {rejects[job.id]} in the table"


def _lines_twice(session: Session) -> Iterator[str]:
    """No line of a file makes two transactions or events."""
    lines: dict[tuple[Any, int], set[Any]] = defaultdict(set)
    for table, name in ((Transaction, "id"), (Sighting, "transaction_id")):
        columns = table_of(table).c
        for row in session.execute(
            select(columns.file_id, columns.line_number, columns[name].label("transaction"))
        ):
            lines[row.file_id, row.line_number].add(row.transaction)
    for place, transactions in lines.items():
        if len(transactions) > 1:
            yield f"line {place} made {len(transactions)} transactions"
    events = Counter(file_id for file_id, _line in lines)
    for job in session.scalars(select(FileProcessing)):
        seen = events.pop(job.id, 0)
        if job.status in ("completed", "superseded"):
            # What is known and on chain already may be counted without an event of its own.
            most = job.rows_stored + job.rows_known + job.rows_rollbacks
            if seen > most or seen < job.rows_stored:
                yield f"job {job.path}: {seen} events of {most} rows"
        elif seen:
            yield f"job {job.path} is {job.status} and has {seen} events in the tables"
    if events:
        yield f"events of files that are in no ledger: {dict(events)}"


def _strangers(session: Session) -> Iterator[str]:
    """A row's file and constituency are there, though no foreign key holds them."""
    columns = table_of(Transaction).c
    for column, table in (
        (columns.file_id, FileProcessing),
        (columns.constituency_id, Constituency),
    ):
        number = session.scalar(
            select(func.count()).where(column.not_in(select(table_of(table).c.id)))
        )
        if number:
            yield f"{number} transactions without their {table.__tablename__}"


# Hours, counted again -----------------------------------------------------------------------


def _wrong_hours(session: Session) -> Iterator[str]:
    """`hourly_stats` is what the transactions say, counted here without any SQL."""
    counted = recounted_hours(session)
    found = {
        (row.constituency_id, row.hour): {name: getattr(row, name) for name in _HOUR_COLUMNS}
        for row in session.scalars(select(HourlyStats))
        if not row.is_empty
    }
    for key in counted.keys() | found.keys():
        if counted.get(key) != found.get(key):
            yield f"hour {key}: counted {counted.get(key)}, found {found.get(key)}"


_HOUR_COLUMNS = (*_COUNTS, "cumulative_bulletins", "cumulative_votes")
Hours = dict[tuple[Any, datetime], dict[str, int]]


def recounted_hours(session: Session) -> Hours:
    """Count hours from the parsed JSON of the transactions."""
    hours: Hours = {}
    votes: dict[tuple[Any, str], list[tuple[datetime, str]]] = defaultdict(list)
    columns = table_of(Transaction).c
    names = ("constituency_id", "timestamp", "tx_id", "sender", "type", "status")
    wanted = [columns[name] for name in (*names, "raw_data", "operation_data")]
    for row in session.execute(select(*wanted)):
        hour = row.timestamp.replace(minute=0, second=0, microsecond=0)
        counts = hours.setdefault((row.constituency_id, hour), dict.fromkeys(_HOUR_COLUMNS, 0))
        if row.status == "withdrawn":
            continue  # not counted; an hour in which nothing else lies says zero
        if row.status == "rolled_back":
            counts["rolled_back"] += 1
            continue
        counts["transaction_count"] += 1
        keys = [entry["key"] for entry in row.operation_data]
        for name, number in _said(row.type, row.raw_data, keys):
            counts[name] += number
            if name == "votes_cast":
                votes[row.constituency_id, row.sender].append((row.timestamp, row.tx_id))
    for (constituency, _sender), moments in votes.items():
        for moment, _tx in sorted(moments)[1:]:
            hours[constituency, moment.replace(minute=0, second=0, microsecond=0)]["revotes"] += 1
    sums: Counter[tuple[Any, str]] = Counter()
    for (constituency, _hour), counts in sorted(hours.items(), key=lambda item: item[0][1]):
        for total, name in _CUMULATIVE.items():
            sums[constituency, total] += counts[name]
            counts[total] = sums[constituency, total]
    return hours


_CUMULATIVE = {"cumulative_bulletins": "bulletins_issued", "cumulative_votes": "votes_cast"}


def _said(operation: str, params: list[Row], keys: list[str]) -> Iterator[tuple[str, int]]:
    """What a transaction on chain adds to its hour."""
    has_failed = any(key.startswith("FAIL_") for key in keys)
    if operation == "blindSigIssue":
        yield ("issues_rejected" if has_failed else "bulletins_issued"), 1
    elif operation == "vote" and has_failed:
        yield "votes_rejected", 1
    elif operation == "vote" and any(key.startswith("VOTE_") for key in keys):
        yield "votes_cast", 1
    elif operation in ("addVotersList", "addToVotersList") and not has_failed:
        yield "list_added", _voters(params)
    elif operation == "removeFromVotersList" and not has_failed:
        yield "list_removed", _voters(params)


def _voters(params: list[Row]) -> int:
    hashes = next(entry for entry in params if entry["key"] == "userIdHashes")
    return len(json.loads(hashes["stringValue"]))


def _wrong_velocities(session: Session) -> Iterator[str]:
    """Velocities are counts by covered hour; smoothed, a weight halves in two hours.

    What is due is not evaluated yet.
    """
    due = set(session.scalars(select(EvaluationDue.constituency_id)))
    hours = select(HourlyStats).order_by(HourlyStats.constituency_id, HourlyStats.hour)
    known: dict[tuple[Any, str], list[tuple[datetime, float]]] = defaultdict(list)
    for row in session.scalars(hours.where(HourlyStats.coverage.is_not(None))):
        if row.constituency_id in due:
            continue
        for name, count in (("bulletin", row.bulletins_issued), ("vote", row.votes_cast)):
            found = getattr(row, f"{name}_velocity")
            told = count / max(row.coverage or 0, 0.25) if row.coverage else None
            if not _about_equal(told, found):
                yield f"{name}_velocity at {row.hour}: {told} by its count, {found} found"
            smooth = getattr(row, f"{name}_velocity_ewma")
            if smooth is None:
                continue  # unknown, or no hour of the voting
            series = known[row.constituency_id, name]
            series.append((row.hour, found or 0.0))
            weights = [0.5 ** ((row.hour - at) / timedelta(hours=2)) for at, _ in series]
            sums = sum(w * value for w, (_, value) in zip(weights, series, strict=True))
            if not _about_equal(sums / sum(weights), smooth):
                yield f"{name}_velocity_ewma at {row.hour}: {smooth}, not {sums / sum(weights)}"


def _about_equal(told: float | None, found: float | None) -> bool:
    if told is None or found is None:
        return told is found
    return abs(told - found) <= 0.005 * max(1.0, abs(told))  # kept with three decimals


def _wrong_slots(session: Session) -> Iterator[str]:
    """What a job says of its slot is what the transactions say that it was the first to hold."""
    columns = table_of(Transaction).c
    counted = Counter(
        (row.constituency_id, row.slot, name)
        for row in session.execute(
            select(
                *(columns.constituency_id, columns.slot, columns.type, columns.status),
                *(columns.raw_data, columns.operation_data),
            )
        )
        if row.status in ("accepted", "rejected")
        for name, _ in _said(row.type, row.raw_data, [one["key"] for one in row.operation_data])
    )
    for job in session.scalars(
        select(FileProcessing).where(
            FileProcessing.status == "completed",
            FileProcessing.is_cumulative.is_(False),
            FileProcessing.slot.is_not(None),
        )
    ):
        key = (job.constituency_id, job.slot)
        told = (job.slot_bulletins, job.slot_votes)
        found = (counted[*key, "bulletins_issued"], counted[*key, "votes_cast"])
        if told != found:
            yield f"slot {job.slot} of {job.contract_id}: {told} on the job, {found} counted"


# The truth ----------------------------------------------------------------------------------


def untrue(sessions: Sessions, truth: Mapping[str, Any]) -> list[str]:
    """What the tables say otherwise than the simulator's truth, one line each.

    The rules about the whole feed look first, as they do when a daemon has taken all files.
    """
    expected = tuple(truth.get("expected_contracts", ()))
    held = Alerts.model_validate({"constituency_missing": {"contracts": expected}})
    with sessions.begin() as session:
        evaluate_feed(session, now=_LONG_AFTER, held=held, is_thorough=True)
    with sessions() as session:
        contracts = {row.id: row for row in session.scalars(select(Constituency))}
        return [
            *_wrong_totals(session, truth["constituencies"], contracts),
            *_wrong_transactions(session, truth.get("transactions") or {}, contracts),
            *_wrong_alerts(session, truth["alerts"], contracts),
            *_wrong_outcomes(session, truth),
        ]


def _wrong_totals(
    session: Session, told: Mapping[str, Row], contracts: Mapping[Any, Constituency]
) -> Iterator[str]:
    found = {row.contract_id: row for row in contracts.values()}
    for contract in told.keys() ^ found.keys():
        yield f"constituency {contract} is in one of truth and tables"
    statuses = Counter(
        (contracts[row[0]].contract_id, row[1])
        for row in session.execute(select(Transaction.constituency_id, Transaction.status))
    )
    hours: dict[str, dict[str, HourlyStats]] = defaultdict(dict)
    for hour in session.scalars(select(HourlyStats).where(HourlyStats.is_empty.is_(False))):
        contract = contracts[hour.constituency_id].contract_id
        hours[contract][f"{hour.hour.astimezone(UTC):%Y-%m-%dT%H:00:00Z}"] = hour
    for contract, one in told.items():
        row = found[contract]
        for name in ("registered_voters", *_BALLOTS[:3]):
            if (getattr(row, name) or 0) != one[name]:
                yield f"{contract} {name}: {one[name]} told, {getattr(row, name)} found"
        for status, number in one["statuses"].items():
            if statuses[contract, status] != number:
                yield f"{contract} {status}: {number} told, {statuses[contract, status]} found"
        for moment in one["hours"].keys() | hours[contract].keys():
            there = hours[contract].get(moment)
            counts = {name: getattr(there, name) for name in _COUNTS} if there else None
            if one["hours"].get(moment) != counts:
                yield f"{contract} {moment}: {one['hours'].get(moment)} told, {counts} found"


def _wrong_transactions(
    session: Session,
    told: Mapping[str, Mapping[str, Row]],
    contracts: Mapping[Any, Constituency],
) -> Iterator[str]:
    """Field by field, where the truth has them."""
    if not told:
        return
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in session.scalars(select(Transaction)):
        found[contracts[row.constituency_id].contract_id][row.tx_id] = {
            "type": row.type,
            "status": row.status,
            "ts": round(row.timestamp.timestamp() * 1000),
            "sender": row.sender,
            "signature": row.signature,
            "params": row.raw_data,
            "diff": row.operation_data,
            "extra": row.extra,
            "hour": f"{row.timestamp:%Y-%m-%dT%H:00:00Z}",
        }
    for contract, transactions in told.items():
        here = found[contract]
        for tx_id in transactions.keys() | here.keys():
            if transactions.get(tx_id) != here.get(tx_id):
                yield f"{tx_id}: {transactions.get(tx_id)} told, {here.get(tx_id)} found"


def _wrong_alerts(
    session: Session, told: Iterable[Row], contracts: Mapping[Any, Constituency]
) -> Iterator[str]:
    found = Counter(
        _about(
            alert.type,
            contracts[alert.constituency_id].contract_id if alert.constituency_id else None,
            alert.subject,
            alert.severity,
        )
        for alert in session.scalars(
            # The truth tells defects; what is merely unlikely is not in it.
            select(Alert).where(Alert.cleared_at.is_(None), Alert.alert_class != "statistical")
        )
    )
    open_severity = {alert["contract"] for alert in told if alert["severity"] is None}
    wanted = Counter(
        _about(alert["rule"], alert["contract"], alert["subject"], alert["severity"])
        for alert in told
    )
    # One unknown operation is one alert, however many constituencies have it.
    for key in wanted:
        if key[0] == "unknown_operation":
            wanted[key] = 1
    for key in wanted.keys() | found.keys():
        is_open = key[0] == "votes_exceed_bulletins" and key[1] in open_severity
        if wanted[key] != found[key] and not is_open:
            yield f"alert {key}: {wanted[key]} told, {found[key]} found"
    for contract in open_severity:
        if not any(key[:2] == ("votes_exceed_bulletins", contract) for key in found):
            yield f"alert votes_exceed_bulletins of {contract}: told in some severity, none found"


def _about(
    rule: str, contract: str | None, subject: str, severity: str | None
) -> tuple[str, str | None, str, str | None]:
    """What tells two alerts apart in both worlds; the truth names a refused file by its path."""
    if rule == "file_rejected":
        return rule, contract, "", severity
    if rule == "unknown_operation":
        return rule, None, subject, severity
    return rule, contract, subject, severity


def _wrong_outcomes(session: Session, truth: Mapping[str, Any]) -> Iterator[str]:
    told = {name: number for name, number in truth["totals"]["outcomes"].items() if number}
    jobs = list(session.scalars(select(FileProcessing)))
    # What a test drops a second time, from a root of its own, is not in the truth.
    found = Counter(
        job.status
        for job in jobs
        if job.duplicate_of_id is None or job.root.rsplit("/", 1)[-1] in ("drop", "drop-2", "inbox")
    )
    if told != dict(found):
        yield f"outcomes: {told} told, {dict(found)} found"
