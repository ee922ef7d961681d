"""Copying: new transactions in the binary format of PostgreSQL's COPY.

It takes a quarter less of the server's time than text, which is searched for tabs and backslashes
byte by byte. Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from struct import Struct

from ingestd.pipeline.sightings import FileRef
from ingestd.pipeline.validate import Record
from ingestd.pipeline.verdict import status_of

COLUMNS = (
    *("id", "timestamp", "tx_type", "version", "line_number", "content_hash", "fee"),
    *("constituency_id", "file_id", "slot"),
    *("status", "tally", "type"),
    *("persons", "voter_key"),
    *("tx_id", "fee_asset_id", "sender", "signature"),
    *("extra", "raw_data", "operation_data"),
)
"""In the order in which `blocks` writes them."""

_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
# How many columns, then the first seven, each behind its size.
_FIXED = Struct(">h i16s iq ih iq iq i16s iq")
_SIZE, _INT4, _INT8, _JSONB = Struct(">i"), Struct(">ii"), Struct(">iq"), Struct(">iB")
_JSONB_VERSION = 1
_EPOCH_MS = 946_684_800_000  # of PostgreSQL: 2000-01-01
# A write that stays in the processor's cache.
_ROWS_IN_ONE_WRITE = 64


def blocks(file: FileRef, fresh: Iterable[Record]) -> Iterator[bytes]:
    """The rows of new transactions, in blocks that together are one COPY."""
    rows = _rows(file, fresh)
    yield _BEGIN
    while some := b"".join(islice(rows, _ROWS_IN_ONE_WRITE)):
        yield some
    yield _END


def _rows(file: FileRef, fresh: Iterable[Record]) -> Iterator[bytes]:
    slot = file.interval_slot
    of_file = (
        _field(file.constituency_id.bytes)
        + _field(file.id.bytes)
        + (_field(slot.encode()) if slot else _NULL)
    )
    columns, size, jsonb = len(COLUMNS), _SIZE.pack, _JSONB.pack
    for line, _end, key, tx_id, _sign, content_hash, shown in fresh:
        assert shown is not None  # noqa: S101 - a rollback stores no transaction
        milliseconds, tally, persons, operation, tx_type, version, voter_key, fee, *texts = shown
        moment = (milliseconds - _EPOCH_MS) * 1000
        fixed = (
            16,
            bytes.fromhex(key),
            8,
            moment,
            2,
            tx_type,
            8,
            version,
            8,
            line,
            16,
            content_hash,
            8,
            fee,
        )
        own_id = tx_id.encode()
        asset, sender, signature, extra, params, diff = [text.encode() for text in texts]
        # Spelt out, which takes half the time of a function for each field.
        yield b"".join(
            (
                _FIXED.pack(columns, *fixed),
                of_file,
                _meaning(tally, operation),
                _NULL if persons is None else _INT4.pack(4, persons),
                _NULL if voter_key is None else _INT8.pack(8, voter_key),
                size(len(own_id)),
                own_id,
                size(len(asset)),
                asset,
                size(len(sender)),
                sender,
                size(len(signature)),
                signature,
                jsonb(len(extra) + 1, _JSONB_VERSION),
                extra,
                jsonb(len(params) + 1, _JSONB_VERSION),
                params,
                jsonb(len(diff) + 1, _JSONB_VERSION),
                diff,
            )
        )


@lru_cache(maxsize=256)
def _meaning(tally: str | None, operation: str) -> bytes:
    told = _field(tally.encode()) if tally else _NULL
    return _field(status_of(tally).encode()) + told + _field(operation.encode())


def _field(value: bytes) -> bytes:
    return _SIZE.pack(len(value)) + value
