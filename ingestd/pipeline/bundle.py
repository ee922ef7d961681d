"""Bundles: one finding with everything that is needed to check it without this program."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingestd.db import AnyRow
from ingestd.errors import FileRefused, FileVanished
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import (
    Alert,
    Constituency,
    Election,
    EvaluationDue,
    FileProcessing,
    HourlyStats,
    Reject,
)
from ingestd.pipeline.bundle_check import OPERATIONS, Choice, choice_of
from ingestd.pipeline.fsck.lines import opened, place_of
from ingestd.pipeline.histories import histories_of
from ingestd.pipeline.read import ReadLimits, RowReader
from ingestd.pipeline.rules import RULES
from ingestd.pipeline.stats import planned_voting
from ingestd.pipeline.touched import chunks
from ingestd.pipeline.validate import constituency_prefix, transaction_id

if TYPE_CHECKING:
    from ingestd.pipeline.evaluator import Thresholds

_COLUMNS = (
    *("contract", "slot", "is_cumulative", "is_current", "file", "file_sha256"),
    *("line", "line_sha256", "encoding", "text"),
)
_OF_A_SLOT = ("slot_republished", "history_withdrawn")
_MOST_REFUSED = 5_000  # lines of a file in quarantine


@dataclass(frozen=True, slots=True)
class Line:
    """One raw line of a delivered file, read again from where its bytes lie."""

    contract: str
    slot: str | None
    is_cumulative: bool
    is_current: bool
    file: str
    file_sha256: str
    number: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Evidence:
    """The lines behind a finding, the files of its slots, files that could not be read, numbers.

    The lines are read as they are asked for, since a constituency may have gigabytes of them;
    `unread`, `rejected` and `mended` are complete when they are. `voting` is what the settings say
    of its time; `is_due` says that counts have changed which no rule has judged yet.
    """

    lines: Iterator[Line]
    files: Sequence[Mapping[str, Any]]
    unread: Sequence[str]
    tables: Mapping[str, str]
    rejected: Sequence[Mapping[str, Any]] = ()
    mended: Sequence[Mapping[str, Any]] = ()
    voting: Mapping[str, str] = field(default_factory=dict)
    is_due: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which lines of a file: by their numbers, or those that may be of some operations."""

    numbers: frozenset[int] = frozenset()
    choice: Choice | None = None

    def takes(self, line: int, text: bytes) -> bool:
        return line in self.numbers or (self.choice is not None and self.choice.takes(text))


def evidence_of(
    session: Session,
    alert: Alert,
    limits: ReadLimits,
    thresholds: Thresholds,
) -> Evidence:
    """Read again every line that tells of the finding, and the numbers that it was held against."""
    wanted, read = _wanted(session, alert), _Reading([], [], [])
    return Evidence(
        lines=_lines(session, wanted, limits, read),
        files=list(_files(session, alert, wanted)),
        unread=read.unread,
        tables=_tables(session, alert, thresholds),
        rejected=read.rejected,
        mended=read.mended,
        voting=_planned(session, alert),
        is_due=_is_due(session, alert),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is found out while the lines are read."""

    unread: list[str]
    rejected: list[Mapping[str, Any]]
    mended: list[Mapping[str, Any]]


def _planned(session: Session, alert: Alert) -> dict[str, str]:
    if alert.constituency_id is None or alert.type != "outside_voting_window":
        return {}
    planned = planned_voting(session, alert.constituency_id).items()
    return {
        name.removeprefix("voting_"): moment.isoformat()
        for name, moment in planned
        if moment is not None
    }


def _is_due(session: Session, alert: Alert) -> bool:
    """Whether the evaluator may soon say something else of it."""
    if alert.alert_class != "statistical":
        return False
    return session.scalar(select(EvaluationDue.id).limit(1)) is not None


def _lines(
    session: Session,
    wanted: Mapping[uuid.UUID, _Wanted],
    limits: ReadLimits,
    read: _Reading,
) -> Iterator[Line]:
    """Read the files one after the other; `read` is told of those that cannot be."""
    jobs = [session.get_one(FileProcessing, key) for key in wanted]
    for job in sorted(jobs, key=lambda job: (job.contract_id or "", job.slot or "", job.sha256)):
        path = place_of(job)
        if path is None:
            read.unread.append(f"{job.path}: it is no longer where it was put")
            continue
        judged = _judged(session, job)
        mended = frozenset(line for line, one in judged.items() if one.replayed_at is not None)
        which = wanted[job.id]
        if which.choice is not None:
            # What a person wrote counts, whatever stood there.
            which = replace(which, numbers=which.numbers | mended)
        try:
            for line in _read(path, job, which, limits):
                if line.number in judged:
                    _tell(read, line, judged[line.number])
                yield line
        except (FileRefused, FileVanished) as error:
            # Where the archive lies on this machine is nobody's business who gets the bundle.
            read.unread.append(f"{job.path}: {str(error).replace(str(path), job.path)}")
        except OSError as error:
            read.unread.append(f"{job.path}: {error.strerror or type(error).__name__}")


def _judged(session: Session, job: FileProcessing) -> dict[int, AnyRow]:
    """The lines of a file that were refused, with those that a person has mended since."""
    query = select(
        *(Reject.line_number, Reject.field, Reject.reason),
        *(Reject.replayed_at, Reject.replayed_text),
    ).where(Reject.file_id == job.id)
    return {row.line_number: row for row in session.execute(query)}


def _tell(read: _Reading, line: Line, judged: AnyRow) -> None:
    where = {"file": line.file, "file_sha256": line.file_sha256, "line": line.number}
    if judged.replayed_at is None:
        reason = f"{judged.field}: {judged.reason}" if judged.field else judged.reason
        read.rejected.append({**where, "reason": reason})
    else:
        read.mended.append({**where, "text": judged.replayed_text or ""})


def _contracts(session: Session, alert: Alert) -> list[str]:
    if alert.constituency_id is not None:
        own = [session.get_one(Constituency, alert.constituency_id).contract_id]
        twin = alert.details.get("twin_contract")
        return [*own, twin] if twin else own
    told = [alert.details.get("contract"), *(alert.details.get("contracts") or ())]
    return [contract for contract in told if contract]


def _wanted(session: Session, alert: Alert) -> dict[uuid.UUID, _Wanted]:
    """Which lines of which files tell of the finding."""
    if alert.alert_class == "statistical":
        # A region has too many rows: its numbers are those of its constituencies.
        return {} if alert.type == "region_correlated" else _own_ballots(session, alert)
    if alert.type == "file_rejected":
        first = frozenset(range(1, _MOST_REFUSED + 1))
        return {key: _Wanted(first) for key in _quarantined(session, alert)[:1]}
    if alert.type == "reject_share":
        return _refused(session, alert)
    if alert.type not in OPERATIONS:
        return {key: _Wanted(frozenset(lines)) for key, lines in _places(session, alert)}
    f = FileProcessing
    query = select(f.id).where(
        f.contract_id.in_(_contracts(session, alert)), f.status == JobState.COMPLETED
    )
    if alert.type in _OF_A_SLOT:
        slot = alert.details["slot"]
        query = select(f.id).where(
            f.constituency_id == alert.constituency_id,
            f.status.in_(DELIVERED),
            f.slot == slot if slot != "-" else f.slot.is_(None),
        )
    return dict.fromkeys(session.scalars(query), _Wanted(choice=_choice(alert)))


def _choice(alert: Alert) -> Choice | None:
    """Which lines: the script that checks the bundle has the same rule."""
    return choice_of(alert.type, alert.alert_class == "statistical", alert.details)


def _own_ballots(session: Session, alert: Alert) -> dict[uuid.UUID, _Wanted]:
    """The ballots of the constituency in the finding's hours; for its level, all up to them."""
    f = FileProcessing
    query = select(f.id).where(
        f.contract_id.in_(_contracts(session, alert)), f.status == JobState.COMPLETED
    )
    return dict.fromkeys(session.scalars(query), _Wanted(choice=_choice(alert)))


def _quarantined(session: Session, alert: Alert) -> list[uuid.UUID]:
    f = FileProcessing
    query = select(f.id).where(
        f.sha256 == alert.details["sha256"], f.status == JobState.QUARANTINED
    )
    return list(session.scalars(query.order_by(f.id)))


def _refused(session: Session, alert: Alert) -> dict[uuid.UUID, _Wanted]:
    """The rows of a file that were set aside."""
    f = FileProcessing
    query = (
        select(Reject.file_id, Reject.line_number)
        .join(f, f.id == Reject.file_id)
        .where(
            f.constituency_id == alert.constituency_id,
            f.sha256 == alert.details["sha256"],
            f.status == JobState.COMPLETED,
            Reject.replayed_at.is_(None),
        )
    )
    found: dict[uuid.UUID, set[int]] = {}
    for key, line in session.execute(query):
        found.setdefault(key, set()).add(line)
    return {key: _Wanted(frozenset(lines)) for key, lines in found.items()}


def _places(session: Session, alert: Alert) -> Iterator[tuple[uuid.UUID, set[int]]]:
    """Which lines of which files hold the finding's transactions."""
    contracts = _contracts(session, alert)
    shown = alert.details.get("tx_ids") or ()
    keys = [
        transaction_id(constituency_prefix(contract), tx_id)
        for contract in contracts
        for tx_id in shown
    ]
    found: dict[uuid.UUID, set[int]] = {}
    for chunk in chunks(keys):
        for events in histories_of(session, chunk).values():
            for event in events:
                found.setdefault(event.file_id, set()).add(event.line)
    yield from found.items()


def _name(job: FileProcessing) -> str:
    return f"{job.path}/{job.member}" if job.member else job.path


def _read(path: Path, job: FileProcessing, wanted: _Wanted, limits: ReadLimits) -> Iterator[Line]:
    told = (job.contract_id or "", job.slot, job.is_cumulative, job.status == JobState.COMPLETED)
    with opened(path, limits) as (source, csvs):
        found = csvs.get(job.member)
        if found is None:
            raise FileVanished(str(path))
        with source.open(found) as stream:
            for row in RowReader(stream, max_line_bytes=limits.max_line_bytes):
                if not row.is_blank and wanted.takes(row.line, row.raw):
                    yield Line(*told, _name(job), job.sha256, row.line, row.raw)


# Numbers ------------------------------------------------------------------------------------


def _tables(session: Session, alert: Alert, thresholds: Thresholds) -> dict[str, str]:
    """The numbers that a finding was held against, as CSV by the name of the file."""
    if alert.alert_class == "statistical":
        return {"hours.csv": _hours(session, alert, thresholds)}
    if alert.type == "rollback_burst":
        return {"rollbacks.csv": _rollbacks(session, alert)}
    if alert.type in ("missing_hour", "constituency_missing"):
        return {"slots.csv": _slots(session), "rolls.csv": _rolls(session, alert)}
    if alert.type == "late_file":
        return {"times.csv": _times(session, alert)}
    return {}


def _csv_of(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def _hours(session: Session, alert: Alert, thresholds: Thresholds) -> str:
    """The hours of all that the constituency was compared with, as the rules see them."""
    # numpy takes a while to import, and `alerts` lists without.
    from ingestd.pipeline.evaluator import group_of  # noqa: PLC0415

    group = group_of(session, thresholds, _contracts(session, alert))
    columns = ("contract", "region", "region_name", "roll", "election", "hour", "utc")
    counted = ("bulletins", "votes", "votes_rejected", "issues_rejected")
    rows = (
        (
            (
                *(group.contracts[one], int(group.fleet.region[one])),
                group.region_names[int(group.fleet.region[one])],
                *(f"{group.fleet.roll[one]:g}", group.elections[one], hour),
                f"{group.utc(one, hour):%Y-%m-%dT%H:%MZ}",
                int(group.fleet.known[one, hour]),
                int(group.is_provisional[one, hour]),
                *(int(group.counts[name][one, hour]) for name in counted),
            )
            for one in range(len(group.contracts))
            for hour in range(group.fleet.known.shape[1])
        )
        if group
        else ()
    )
    return _csv_of((*columns, "is_known", "is_provisional", *counted), rows)


def _rollbacks(session: Session, alert: Alert) -> str:
    h, c = HourlyStats, Constituency
    begin = datetime.fromisoformat(alert.details["window"]["utc"][0]).replace(tzinfo=UTC)
    query = (
        select(c.contract_id, h.rolled_back, h.transaction_count + h.rolled_back)
        .join(c, c.id == h.constituency_id)
        .where(h.hour == begin)
        .order_by(c.contract_id)
    )
    return _csv_of(("contract", "rolled_back", "rows"), map(tuple, session.execute(query)))


def _hourly() -> Any:
    f, c = FileProcessing, Constituency
    return (
        select(c.contract_id, f.slot, f.rows_read, f.mtime)
        .join(c, c.id == f.constituency_id)
        .where(f.is_cumulative.is_(False), f.slot.is_not(None))
        .order_by(f.slot, c.contract_id)
    )


def _slots(session: Session) -> str:
    """Which hourly files are here of whom."""
    query = _hourly().where(FileProcessing.status == JobState.COMPLETED)
    rows = ((row.contract_id, row.slot, row.rows_read) for row in session.execute(query))
    return _csv_of(("contract", "slot", "rows"), rows)


def _rolls(session: Session, alert: Alert) -> str:
    """Everybody's roll and ballot, in the finding's region."""
    c = Constituency
    query = select(c.contract_id, c.region_code, Election.name, c.registered_voters).outerjoin(
        Election, Election.id == c.election_id
    )
    if alert.constituency_id is not None:
        mine = session.get_one(Constituency, alert.constituency_id)
        query = query.where(c.region_code == mine.region_code)
    rows = session.execute(query.order_by(c.contract_id))
    return _csv_of(("contract", "region", "election", "roll"), map(tuple, rows))


def _times(session: Session, alert: Alert) -> str:
    query = _hourly().where(
        FileProcessing.status.in_(DELIVERED), FileProcessing.slot.in_(alert.details["slots"])
    )
    rows = (
        (row.contract_id, row.slot, row.mtime.isoformat())
        for row in session.execute(query)
        if row.mtime is not None
    )
    return _csv_of(("contract", "slot", "written_at"), rows)


def _files(
    session: Session, alert: Alert, wanted: Iterable[uuid.UUID]
) -> Iterator[Mapping[str, Any]]:
    """The files of the finding's contracts and those of its lines, with their counts."""
    f = FileProcessing
    contracts = _contracts(session, alert)
    # Publications of before, too: who holds the bundle against a folder finds them there.
    query = select(f).where(f.contract_id.in_(contracts), f.status.in_(DELIVERED))
    jobs = {job.id: job for job in session.scalars(query)}
    jobs |= {key: session.get_one(f, key) for key in wanted if key not in jobs}
    places = ((job.contract_id or "", job.slot or "", job.sha256, job) for job in jobs.values())
    for _contract, _slot, _sha256, job in sorted(places, key=lambda place: place[:3]):
        yield {
            "contract": job.contract_id,
            "slot": job.slot,
            "file": _name(job),
            "sha256": job.sha256,
            "is_cumulative": job.is_cumulative,
            "is_current": job.status == JobState.COMPLETED,
            "bulletins": job.slot_bulletins,
            "votes": job.slot_votes,
            "rows": job.rows_read,
            "rejected": job.rows_rejected,
        }


def words_of(alert: Alert, contract: str | None) -> str:
    """The finding in words, for a report."""
    rule = RULES.get(alert.type)
    details = alert.details
    window = details.get("window")
    lines = [
        alert.title,
        "",
        alert.description,
        "",
        f"rule       {alert.type} ({alert.alert_class}, {alert.severity}), ruleset {alert.ruleset}",
        f"contract   {contract or 'all'}",
        f"subject    {alert.subject or '-'}",
        f"observed   {details.get('observed')}",
        f"expected   {details.get('expected')}",
        f"threshold  {details.get('threshold')}",
        f"formula    {rule.formula if rule else '-'}",
        f"reads      {rule.reads if rule else '-'}",
    ]
    if isinstance(window, Mapping):
        lines.append(f"hours      {' to '.join(window['utc'])}")
        if window["local"]:
            lines.append(f"           {' to '.join(window['local'])} local time")
    if alert.cleared_at is not None:
        lines.append(f"cleared    {alert.cleared_at:%Y-%m-%d %H:%M}Z: {alert.cleared_reason}")
    causes = details.get("benign_causes") or []
    if causes:
        lines += ["", "It is a question, not an accusation. Usual causes:"]
        lines += [f"  - {cause}" for cause in causes]
    return "\n".join(lines) + "\n"


def write_bundle(path: Path, alert: Alert, contract: str | None, evidence: Evidence) -> int:
    """Write the ZIP, which must not be there yet, and give the number of its raw lines.

    Raises:
        FileExistsError: it is.
    """
    with path.open("xb") as stream:
        try:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
                return _fill(bundle, alert, contract, evidence)
        except BaseException:
            path.unlink()  # a part of the evidence is none
            raise


def _fill(bundle: zipfile.ZipFile, alert: Alert, contract: str | None, evidence: Evidence) -> int:
    for name, text in evidence.tables.items():
        bundle.writestr(name, text)
    bundle.writestr("finding.txt", words_of(alert, contract))
    with bundle.open("lines.csv", "w", force_zip64=True) as binary:
        number = _write_lines(binary, evidence.lines)
    # Behind the lines: only now all that could not be read is known.
    numbers = {
        "id": str(alert.id),
        "rule": alert.type,
        "class": alert.alert_class,
        "severity": alert.severity,
        "contract_id": contract,
        "subject": alert.subject,
        "title": alert.title,
        "description": alert.description,
        "details": alert.details,
        "files": list(evidence.files),
        "unread": list(evidence.unread),
        "rejected": list(evidence.rejected),
        "mended": list(evidence.mended),
        "voting": evidence.voting,
        "is_due": evidence.is_due,
    }
    told = json.dumps(numbers, ensure_ascii=False, indent=2, default=str)
    bundle.writestr("finding.json", told + "\n")
    script = files("ingestd.pipeline").joinpath("bundle_check.py").read_text(encoding="utf-8")
    bundle.writestr("check.py", script)
    return number


def _write_lines(binary: IO[bytes], lines: Iterable[Line]) -> int:
    number = 0
    with io.TextIOWrapper(binary, encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for number, line in enumerate(lines, 1):  # noqa: B007 - the last one is their number
            writer.writerow(_cells(line))
    return number


def _cells(line: Line) -> tuple[Any, ...]:
    flags = (int(line.is_cumulative), int(line.is_current))
    place = (line.contract, line.slot or "", *flags, line.file, line.file_sha256, line.number)
    return (*place, hashlib.sha256(line.text).hexdigest(), *_as_text(line.text))


def _as_text(raw: bytes) -> tuple[str, str]:
    """A line as a CSV can hold it, to the byte."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(raw).decode()
    # A CSV would make one of them a line's end.
    return ("base64", base64.b64encode(raw).decode()) if "\r" in text else ("utf-8", text)
