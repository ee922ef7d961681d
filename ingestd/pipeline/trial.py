"""Trying a file: everything that ingesting would say, without writing anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ingestd.errors import FileRefused
from ingestd.pipeline.ingest import Terms, most_rejects
from ingestd.pipeline.read import Csv, RowReader, Source, open_source
from ingestd.pipeline.slot import contract_of_folders, parse_name
from ingestd.pipeline.validate import Blank, Reject, Validator, contract_in_row


@dataclass(slots=True)
class TrialFile:
    """What would become of one CSV."""

    member: str | None
    contract_id: str | None
    slot: str | None
    rows: int = 0
    good: int = 0
    rollbacks: int = 0
    blank: int = 0
    rejected: int = 0
    rejects: list[Reject] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)
    would_quarantine: bool = False
    reason: str | None = None


def try_file(path: Path, terms: Terms, *, most_shown: int = 20) -> list[TrialFile]:
    """Validate every CSV of a file; the first `most_shown` rejects of each are kept.

    Raises:
        FileRefused: the container cannot be opened.
        FileVanished: there is no such file.
    """
    source = open_source(path, terms.read)
    try:
        return [_try_csv(source, csv, terms, most_shown) for csv in source.csvs()]
    finally:
        source.close()


def _try_csv(source: Source, csv: Csv, terms: Terms, most_shown: int) -> TrialFile:
    way = (
        "/".join([*map(str, source.path.parent.parts), *csv.steps])
        if csv.steps
        else str(source.path)
    )
    contract_id, slot = parse_name(way.rsplit("/", 1)[-1])
    contract_id = contract_id or contract_of_folders(way) or parse_name(source.path.name)[0]
    tried = TrialFile(csv.member, contract_id, slot.text if slot else None)
    try:
        _read_through(source, csv, terms, most_shown, tried)
    except FileRefused as refusal:
        tried.would_quarantine, tried.reason = True, refusal.reason
        return tried
    allowed = most_rejects(terms, tried.rows - tried.blank)
    if tried.contract_id is None:
        tried.would_quarantine = True
        tried.reason = "no contract id in the file's name, its folders or its rows"
    elif tried.rejected > allowed:
        tried.would_quarantine = True
        tried.reason = f"{tried.rejected} bad rows, more than the {allowed} that are allowed"
    return tried


def _read_through(
    source: Source, csv: Csv, terms: Terms, most_shown: int, tried: TrialFile
) -> None:
    validator = Validator(
        tried.contract_id or "",
        max_entries=terms.max_entries,
        max_json_depth=terms.max_json_depth,
        max_field_bytes=terms.max_field_bytes,
        raw_text_bytes=terms.raw_text_bytes,
    )
    with source.open(csv) as stream:
        for row in RowReader(stream, max_line_bytes=terms.read.max_line_bytes):
            told = contract_in_row(row) if tried.contract_id is None else None
            tried.contract_id = told.contract_id if told else tried.contract_id
            outcome = validator.check(row)
            tried.rows += 1
            if isinstance(outcome, Blank):
                tried.blank += 1
            elif isinstance(outcome, Reject):
                tried.rejected += 1
                if len(tried.rejects) < most_shown:
                    tried.rejects.append(outcome)
            elif outcome.shown is None:
                tried.rollbacks += 1
            else:
                tried.good += 1
                tried.operations[outcome.shown.type] += 1
