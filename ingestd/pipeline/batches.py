"""Batches: one CSV from a checkpoint to its end, validated and cut into what one commit holds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ingestd.pipeline.read import Csv, ReadLimits, RowReader, Source
from ingestd.pipeline.validate import Outcome, Validator


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is to be read, from where, and what it is held to; it can cross a pipe."""

    path: Path
    # Of the file as it was found: at this path another may lie by now.
    stamp: str
    csv: Csv
    contract_id: str
    from_byte: int
    from_line: int
    limits: ReadLimits
    batch_rows: int
    batch_bytes: int
    max_entries: int
    max_json_depth: int
    max_field_bytes: int
    raw_text_bytes: int

    def behind(self, batch: Batch) -> Reading:
        """What is left of it behind a batch."""
        last = batch.outcomes[-1]
        return replace(self, from_byte=last.end, from_line=last.line)


class Batch(NamedTuple):
    """The outcomes of one commit, and how far the file was read for it.

    `sha256` is that of the whole file, and stands on the last batch only.
    """

    outcomes: Sequence[Outcome]
    is_last: bool
    bytes_read: int
    encoding: str
    sha256: str = ""


def read_batches(
    source: Source, reading: Reading, on_open: Callable[[], None] = lambda: None
) -> Generator[Batch]:
    """Read and validate batch by batch; an empty file has one empty batch.

    Raises:
        FileRefused: it is no such CSV, or damaged.
        FileVanished: it is gone.
    """
    validator = Validator(
        reading.contract_id,
        max_entries=reading.max_entries,
        max_json_depth=reading.max_json_depth,
        max_field_bytes=reading.max_field_bytes,
        raw_text_bytes=reading.raw_text_bytes,
    )
    with source.open(reading.csv) as stream:
        on_open()
        rows = RowReader(
            stream,
            max_line_bytes=reading.limits.max_line_bytes,
            from_byte=reading.from_byte,
            from_line=reading.from_line,
        )
        outcomes = map(validator.check, rows)
        for batch, is_last in batched(outcomes, reading.batch_rows, reading.batch_bytes):
            sha256 = rows.sha256 if is_last else ""
            yield Batch(batch, is_last, rows.bytes_read, rows.encoding, sha256)
            del batch  # else two are in memory while the next is read


def batched(
    outcomes: Iterable[Outcome], most_rows: int, most_bytes: int
) -> Iterator[tuple[list[Outcome], bool]]:
    """Cut outcomes into batches; the last one says so (an empty file has one empty batch)."""
    batch: list[Outcome] = []
    start: int | None = None
    for outcome in outcomes:
        if batch and (len(batch) >= most_rows or outcome.end - (start or 0) > most_bytes):
            yield batch, False
            batch = []
            start = None
        batch.append(outcome)
        start = outcome.end if start is None else start
    yield batch, True
