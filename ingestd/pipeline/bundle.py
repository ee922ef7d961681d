"""Bundles: one finding with everything that is needed to check it without this program."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ingestd.errors import FileRefused, FileVanished
from ingestd.models import Alert, Constituency, FileProcessing
from ingestd.pipeline.fsck.lines import opened, place_of
from ingestd.pipeline.histories import histories_of
from ingestd.pipeline.read import ReadLimits, RowReader
from ingestd.pipeline.rules import RULES
from ingestd.pipeline.touched import chunks
from ingestd.pipeline.validate import constituency_prefix, transaction_id

_COLUMNS = ("contract", "slot", "file", "file_sha256", "line", "line_sha256", "text")


@dataclass(frozen=True, slots=True)
class Line:
    """One raw line of a delivered file, read again from where its bytes lie."""

    contract: str
    slot: str | None
    file: str
    file_sha256: str
    number: int
    text: bytes


@dataclass(frozen=True, slots=True)
class Evidence:
    """The lines behind a finding, the files of its slots, and files that could not be read."""

    lines: Sequence[Line]
    files: Sequence[Mapping[str, Any]]
    unread: Sequence[str]


def evidence_of(session: Session, alert: Alert, limits: ReadLimits) -> Evidence:
    """Read again every line that holds a transaction of the finding."""
    wanted = dict(_places(session, alert))
    lines: list[Line] = []
    unread: list[str] = []
    jobs = [session.get_one(FileProcessing, key) for key in wanted]
    for job in sorted(jobs, key=lambda job: (job.contract_id or "", job.slot or "", job.sha256)):
        path = place_of(job)
        if path is None:
            unread.append(f"{job.path}: it is no longer where it was put")
            continue
        try:
            lines += _read(path, job, wanted[job.id], limits)
        except (FileRefused, FileVanished) as error:
            # Where the archive lies on this machine is nobody's business who gets the bundle.
            unread.append(f"{job.path}: {str(error).replace(str(path), job.path)}")
        except OSError as error:
            unread.append(f"{job.path}: {error.strerror or type(error).__name__}")
    return Evidence(lines, list(_files(session, alert)), unread)


def _places(session: Session, alert: Alert) -> Iterator[tuple[Any, set[int]]]:
    """Which lines of which files hold the finding's transactions."""
    contracts = alert.details.get("contracts") or []
    if alert.constituency_id is not None:
        contracts = [session.get_one(Constituency, alert.constituency_id).contract_id]
    elif not contracts:
        contracts = list(session.scalars(select(Constituency.contract_id)))
    shown = alert.details.get("tx_ids") or alert.details.get("transactions") or ()
    keys = [
        transaction_id(constituency_prefix(contract), tx_id)
        for contract in contracts
        for tx_id in shown
    ]
    found: dict[Any, set[int]] = {}
    for chunk in chunks(keys):
        for events in histories_of(session, chunk).values():
            for event in events:
                found.setdefault(event.file_id, set()).add(event.line)
    yield from found.items()


def _read(path: Path, job: FileProcessing, numbers: set[int], limits: ReadLimits) -> Iterator[Line]:
    with opened(path, limits) as (source, csvs):
        found = csvs.get(job.member)
        if found is None:
            raise FileVanished(str(path))
        with source.open(found) as stream:
            for row in RowReader(stream, max_line_bytes=limits.max_line_bytes):
                if row.line in numbers:
                    name = f"{job.path}/{job.member}" if job.member else job.path
                    yield Line(job.contract_id or "", job.slot, name, job.sha256, row.line, row.raw)


def _files(session: Session, alert: Alert) -> Iterator[Mapping[str, Any]]:
    """The current files of the finding's constituency, with what was counted in each."""
    if alert.constituency_id is None:
        return
    f = FileProcessing
    query = select(f).where(f.constituency_id == alert.constituency_id, f.status == "completed")
    for job in session.scalars(query.order_by(f.slot, f.sha256)):
        yield {
            "slot": job.slot,
            "file": job.path,
            "sha256": job.sha256,
            "is_cumulative": job.is_cumulative,
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
        lines.append(f"hours      {' to '.join(window['utc'])} UTC")
        if window["local"]:
            lines.append(f"           {' to '.join(window['local'])} local time")
    if alert.cleared_at is not None:
        lines.append(f"cleared    {alert.cleared_at:%Y-%m-%d %H:%M}Z: {alert.cleared_reason}")
    causes = details.get("benign_causes") or []
    if causes:
        lines += ["", "It is a question, not an accusation. Usual causes:"]
        lines += [f"  - {cause}" for cause in causes]
    return "\n".join(lines) + "\n"


def write_bundle(path: Path, alert: Alert, contract: str | None, evidence: Evidence) -> None:
    """Write the ZIP; it must not be there yet.

    Raises:
        FileExistsError: it is.
    """
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
    }
    with path.open("xb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("finding.txt", words_of(alert, contract))
        told = json.dumps(numbers, ensure_ascii=False, indent=2, default=str)
        bundle.writestr("finding.json", told + "\n")
        bundle.writestr("lines.csv", _as_csv(evidence.lines))
        script = files("ingestd.pipeline").joinpath("bundle_check.py").read_text(encoding="utf-8")
        bundle.writestr("check.py", script)


def _as_csv(lines: Sequence[Line]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in lines:
        digest = hashlib.sha256(line.text).hexdigest()
        text = line.text.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace")
        place = (line.contract, line.slot or "", line.file, line.file_sha256, line.number)
        writer.writerow((*place, digest, text.decode()))
    return buffer.getvalue()
