"""Any bytes as a CSV: every line is accounted for, however they come and wherever it stops."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from ingestd.errors import FileRefused
from ingestd.pipeline.read import Row, RowReader
from ingestd.pipeline.validate import Outcome, Record, Reject, Validator, contract_in_row

BOM = b"\xef\xbb\xbf"
INT64 = range(-(1 << 63), 1 << 63)
MOST_RESUMED = 20
VALIDATOR = Validator(
    "AsrxMqfGWsXEgTmvdw95omtQ4Gv1Vi4mGAvLYy23DHpM",
    max_entries=20,
    raw_text_bytes=500,
    max_json_depth=8,
    max_field_bytes=3000,
)


class Pieces(io.RawIOBase):
    """A stream that gives little at a time, after a first piece that shows the line's end."""

    def __init__(self, data: bytes, size: int) -> None:
        """Give `data` in pieces of `size`."""
        first = max(data.find(b"\n") + 1 or len(data), 4)
        later = range(first, len(data), size)
        self._pieces = iter([data[:first], *(data[at : at + size] for at in later)])

    def read(self, _size: int = -1) -> bytes:
        """Give the next piece."""
        return next(self._pieces, b"")


def check(data: bytes) -> None:
    """The first two bytes choose the size of a piece and the longest line."""
    if len(data) < 2:
        return
    size, most, content = data[0] + 1, data[1] * 8 + 1, data[2:]
    reader = reader_of(io.BytesIO(content), most)
    try:
        rows = list(reader)
    except FileRefused:
        return
    assert expected(content, most) == [(row.raw[:most], row.is_too_long) for row in rows]
    assert list(range(1, len(rows) + 1)) == [row.line for row in rows]
    assert not rows or rows[-1].end == len(content)
    in_pieces = reader_of(cast("BinaryIO", Pieces(content, size)), most)
    assert essence(rows, most) == essence(in_pieces, most)
    assert reader.sha256 == in_pieces.sha256
    outcomes = [VALIDATOR.check(row) for row in rows]
    for row, outcome in zip(rows, outcomes, strict=True):
        assert (row.line, row.end) == (outcome.line, outcome.end)
        contract_in_row(row)
        refuse_unstorable(outcome)
    for number, row in list(enumerate(rows, 1))[:MOST_RESUMED]:
        resumed = reader_of(io.BytesIO(content), most, row)
        assert outcomes[number:] == [VALIDATOR.check(each) for each in resumed]
        assert reader.sha256 == resumed.sha256


def reader_of(stream: BinaryIO, most: int, row: Row | None = None) -> RowReader:
    """A reader from the start, or behind the checkpoint of a row."""
    return RowReader(
        stream,
        max_line_bytes=most,
        from_byte=row.end if row else 0,
        from_line=row.line if row else 0,
    )


def expected(content: bytes, most: int) -> list[tuple[bytes, bool]]:
    """The lines as the plainest code finds them, cut to the limit."""
    end = b"\n" if b"\n" in content or b"\r" not in content.rstrip(b"\r") else b"\r"
    *lines, last = content.removeprefix(BOM).split(end)
    texts = [line.removesuffix(b"\r") for line in [*lines, *([last] if last else [])]]
    return [(text[:most], len(text) > most) for text in texts]


def essence(rows: RowReader | list[Row], most: int) -> list[tuple[Any, ...]]:
    """What must be the same however the bytes come; an over-long line keeps its beginning."""
    return [(row.line, row.start, row.end, row.raw[:most], row.is_too_long) for row in rows]


def refuse_unstorable(outcome: Outcome) -> None:
    """Hold an outcome against what both databases can keep."""
    if isinstance(outcome, Reject):
        texts = [outcome.field, outcome.kind, outcome.value, outcome.reason, outcome.raw_text]
        assert all(is_storable(text) for text in texts if text is not None)
        assert outcome.reason
        assert len(outcome.field or "") <= 100
        assert len(outcome.kind) <= 40
    elif isinstance(outcome, Record) and outcome.shown is not None:
        for name in ("raw_data", "operation_data", "extra"):
            for value in values_in(json.loads(outcome.values[name], parse_constant=refuse)):
                assert is_storable(value) if isinstance(value, str) else value in INT64
        plain = [outcome.values[name] for name in ("type", "tx_id", "fee_asset_id", "sender")]
        assert all(is_storable(text) and len(text) <= 100 for text in plain)
        assert all(outcome.values[name] in INT64 for name in ("version", "fee", "tx_type"))


def refuse(constant: str) -> None:
    """NaN and Infinity are no JSON."""
    raise AssertionError(constant)


def values_in(value: Any) -> Iterator[str | int]:
    """Every key, text and integer in parsed JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from values_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from values_in(inner)
    elif isinstance(value, str | int) and not isinstance(value, bool):
        yield value


def is_storable(text: str) -> bool:
    """Whether PostgreSQL takes it: no NUL, no half of a character."""
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
