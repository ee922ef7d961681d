"""Validating: one row of text to a record that can be stored, or to a reject.

The twelve columns and the operations are those of the observer portal's
exports (docs/format.md). Strict where the format is known, open where it is
not: an operation nobody has seen is stored and counted, never refused.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Required

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Json, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from ingestd.db import RawJson
from ingestd.pipeline.base58 import decodes_to
from ingestd.pipeline.read import Row

COLUMNS = (
    "nestedTxId",
    "type",
    "signature",
    "version",
    "ts",
    "senderPublicKey",
    "fee",
    "feeAssetId",
    "params",
    "diff",
    "extra",
    "rollback",
)
_FIRST_JSON, _LAST_JSON = 8, 10
_ID_BYTES, _KEY_BYTES = 32, 64
_INT64 = range(-(1 << 63), 1 << 63)
_VALUE_CHARACTERS = 200
_PLAIN_ENTRY_KEYS = 2
# An odd number of backslashes before u0000: PostgreSQL cannot store that character.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

OPERATIONS = (
    "createContract",
    "addMainKey",
    "addVotersList",
    "addToVotersList",
    "removeFromVotersList",
    "startVoting",
    "blindSigIssue",
    "vote",
    "finishVoting",
    "decryption",
    "commissionDecryption",
    "results",
    "updateServerList",
    "startIssueBallots",
    "stopIssueBallots",
)
_BY_FOLDED_NAME = {name.casefold(): name for name in OPERATIONS}
_REQUIRED_KEYS = {
    "vote": ("vote", "blindSig"),
    "blindSigIssue": ("data",),
    "addVotersList": ("userIdHashes",),
    "addToVotersList": ("userIdHashes",),
    "removeFromVotersList": ("userIdHashes",),
    "results": ("results",),
}
NO_OPERATION = "(none)"
_VALUE_KEYS = ("stringValue", "intValue", "boolValue", "binaryValue")


def _base58(size: int, *, may_be_empty: bool = False) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not decodes_to(text, size) and not (may_be_empty and not text):
            raise PydanticCustomError("base58", "not base58 of {size} bytes", {"size": size})
        return text

    return check


def _base64(text: str | None) -> str | None:
    if text is not None:
        try:
            binascii.a2b_base64(text, strict_mode=True)
        except ValueError as error:
            raise PydanticCustomError(
                "base64", "not plain base64: {error}", {"error": str(error)}
            ) from error
    return text


def _int64(number: int | None) -> int | None:
    if number is not None and number not in _INT64:
        raise PydanticCustomError("int64", "an integer beyond 64 bits")
    return number


def _moment(text: str) -> str:
    if int(text) > _LAST_MS:
        raise PydanticCustomError("moment", "milliseconds since 1970 beyond the year 9999")
    return text


_LAST_MS = 253_402_300_799_999

Integer = Annotated[str, Field(pattern=r"\A-?[0-9]{1,18}\z")]
EntryInt = Annotated[
    Annotated[int, Field(strict=True)] | Annotated[str, Field(pattern=r"\A-?[0-9]{1,18}\z")],
    AfterValidator(lambda value: _int64(value) if isinstance(value, int) else value),
]


class Entry(TypedDict, total=False):
    """One element of params or diff; keys nobody has seen are stored as found."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # Pydantic's own name

    key: Required[Annotated[str, Field(strict=True)]]
    stringValue: Annotated[str, Field(strict=True)] | None
    intValue: EntryInt | None
    boolValue: Annotated[bool, Field(strict=True)] | None
    binaryValue: Annotated[Annotated[str, Field(strict=True)] | None, AfterValidator(_base64)]


class TransactionRow(BaseModel):
    """The twelve columns of a +1 row, as text; params, diff and extra are parsed JSON."""

    nestedTxId: Annotated[str, AfterValidator(_base58(_ID_BYTES))]
    type: Literal["103", "104"]
    signature: Annotated[str, AfterValidator(_base58(_KEY_BYTES, may_be_empty=True))]
    version: Integer
    ts: Annotated[str, Field(pattern=r"\A[0-9]{1,15}\z"), AfterValidator(_moment)]
    senderPublicKey: Annotated[str, AfterValidator(_base58(_KEY_BYTES))]
    fee: Integer
    feeAssetId: Annotated[str, Field(max_length=100)]
    params: Json[list[Entry]]
    diff: Json[list[Entry]]
    extra: Json[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Record:
    """A row that passed: `values` are the columns of `transaction`; None on a rollback."""

    line: int
    end: int
    id: uuid.UUID
    tx_id: str
    sign: Literal[1, -1]
    content_hash: bytes | None
    values: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that did not pass, and why."""

    line: int
    end: int
    field: str | None
    kind: str
    value: str | None
    reason: str
    raw_text: str
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Blank:
    """A line with nothing on it; counted, for every line is accounted for."""

    line: int
    end: int


Outcome = Record | Reject | Blank


class _Refusal(Exception):
    """Carries a reject's words out of nested checks; never leaves this module."""

    def __init__(self, field: str | None, kind: str, value: str | None, reason: str) -> None:
        super().__init__(reason)
        self.parts = (field, kind, value, reason)


def constituency_prefix(contract_id: str) -> bytes:
    """The 32 bits that every transaction id of a constituency begins with."""
    return hashlib.sha256(contract_id.encode()).digest()[:4]


def transaction_id(prefix: bytes, tx_id: str) -> uuid.UUID:
    """Derive the key: UUIDv8 of 32 bits of the contract's hash and 90 bits of the id's.

    The id is hashed rather than cut so that nobody can choose two transaction
    ids with one key. Keys of one constituency are neighbours in the index.
    """
    digest = int.from_bytes(hashlib.sha256(tx_id.encode()).digest()[:12], "big") >> 6
    high, low = digest >> 62, digest & ((1 << 62) - 1)
    number = int.from_bytes(prefix, "big") << 96
    number |= (high >> 12) << 80 | 0x8 << 76 | (high & 0xFFF) << 64 | 0x2 << 62 | low
    return uuid.UUID(int=number)


def voter_key(prefix: bytes, sender: str) -> int:
    """Fold a sender key into 64 bits that begin with its constituency.

    Two senders may share a key once in a million constituencies; who asks
    compares `sender` too.
    """
    folded = prefix[:3] + hashlib.sha256(sender.encode()).digest()[:5]
    return int.from_bytes(folded, "big", signed=True)


class Validator:
    """Checks the rows of one constituency."""

    def __init__(
        self,
        contract_id: str,
        constituency_id: uuid.UUID,
        *,
        max_entries: int,
        raw_text_bytes: int,
    ) -> None:
        """Set what all rows of a file share."""
        self._prefix = constituency_prefix(contract_id)
        self._constituency_id = constituency_id
        self._max_entries = max_entries
        self._raw_text_bytes = raw_text_bytes

    def check(self, row: Row) -> Outcome:
        """Turn one row into what it is worth."""
        if row.is_blank:
            return Blank(row.line, row.end)
        try:
            return self._record(row)
        except _Refusal as refusal:
            return self._reject(row, *refusal.parts)

    def _record(self, row: Row) -> Record:
        if row.is_too_long:
            raise _Refusal(None, "too_long", None, "the line is longer than max_line_bytes")
        cells = split_cells(_text_of(row))
        if cells[11].strip() == "-1":
            return self._rollback(row, cells[0])
        fields = parse_row(cells)
        self._refuse_extremes(fields)
        head, tail = row.raw.index(b";") + 1, row.raw.rindex(b";")
        return Record(
            row.line,
            row.end,
            transaction_id(self._prefix, fields.nestedTxId),
            fields.nestedTxId,
            1,
            hashlib.sha256(row.raw[head:tail]).digest()[:16],
            self._values(fields, cells),
        )

    def _refuse_extremes(self, fields: TransactionRow) -> None:
        for name, entries in (("params", fields.params), ("diff", fields.diff)):
            if len(entries) > self._max_entries:
                raise _Refusal(name, "entries", None, f"more than {self._max_entries} entries")
            for entry in entries:
                if len(entry) > _PLAIN_ENTRY_KEYS and not is_storable(entry):
                    raise _Refusal(name, "number", None, "a number that no database holds")
        if not is_storable(fields.extra):
            raise _Refusal("extra", "number", None, "a number that no database holds")

    def _rollback(self, row: Row, tx_id: str) -> Record:
        """A −1 row needs only its id: it takes back, it never tells."""
        if not decodes_to(tx_id, _ID_BYTES):
            raise _Refusal("nestedTxId", "base58", _short(tx_id), "not base58 of 32 bytes")
        return Record(row.line, row.end, transaction_id(self._prefix, tx_id), tx_id, -1, None, None)

    def _values(self, fields: TransactionRow, cells: list[str]) -> dict[str, Any]:
        operation = operation_of(fields)
        tally, persons = tally_of(operation, fields)
        is_vote = operation == "vote"
        return {
            "constituency_id": self._constituency_id,
            "timestamp": moment_of(int(fields.ts)),
            "tally": tally,
            "persons": persons,
            "type": operation,
            "tx_type": int(fields.type),
            "version": int(fields.version),
            "voter_key": voter_key(self._prefix, fields.senderPublicKey) if is_vote else None,
            "tx_id": fields.nestedTxId,
            "fee": int(fields.fee),
            "fee_asset_id": fields.feeAssetId,
            "sender": fields.senderPublicKey,
            "signature": fields.signature,
            "extra": RawJson(cells[10]),
            "raw_data": RawJson(cells[8]),
            "operation_data": RawJson(cells[9]),
        }

    def _reject(
        self, row: Row, field: str | None, kind: str, value: str | None, reason: str
    ) -> Reject:
        raw = row.raw[: self._raw_text_bytes]
        return Reject(
            row.line,
            row.end,
            field,
            kind,
            value,
            reason,
            storable(raw.decode("utf-8", "backslashreplace")),
            is_cut=row.is_too_long or len(raw) < len(row.raw),
        )


def is_storable(value: object) -> bool:
    """Say whether every number in parsed JSON is finite and within 64 bits."""
    if isinstance(value, dict):
        return all(map(is_storable, value.values()))
    if isinstance(value, list):
        return all(map(is_storable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or value in _INT64


def storable(text: str) -> str:
    """Write out the one character that PostgreSQL cannot keep in a text."""
    return text.replace("\x00", "\\x00")


def _text_of(row: Row) -> str:
    try:
        text = row.raw.decode()
    except UnicodeDecodeError as error:
        offset = row.end - 1 - len(row.raw) + error.start
        byte = row.raw[error.start : error.start + 1].hex()
        reason = f"not UTF-8: byte 0x{byte} at offset {max(offset, 0)} of the file"
        raise _Refusal(None, "encoding", f"0x{byte}", reason) from None
    if "\x00" in text or ("\\u0000" in text and _ESCAPED_NUL.search(text)):
        raise _Refusal(None, "nul", None, "a NUL character")
    return text


def split_cells(text: str) -> list[str]:
    """Split a row on `;` into its twelve cells; raw semicolons inside JSON are put together."""
    cells = text.split(";")
    if len(cells) < len(COLUMNS):
        reason = f"{len(cells)} columns, not 12"
        raise _Refusal(None, "columns", None, reason)
    if len(cells) > len(COLUMNS):
        cells = [*cells[:_FIRST_JSON], *_three_json(cells[_FIRST_JSON:-1]), cells[-1]]
    for index in (_FIRST_JSON, _FIRST_JSON + 1):
        cells[index] = _as_list(cells[index])
    return cells


def _three_json(parts: list[str]) -> list[str]:
    """Put params, diff and extra together from parts that `;` tore apart."""
    found: list[str] = []
    start = 0
    for _ in range(2):
        for end in range(start + 1, len(parts)):
            text = ";".join(parts[start:end])
            if _is_json(_as_list(text)):
                found.append(text)
                start = end
                break
        else:
            reason = f"{len(parts) + 9} columns, not 12, and no JSON can be put together from them"
            raise _Refusal(None, "columns", None, reason)
    return [*found, ";".join(parts[start:])]


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _as_list(text: str) -> str:
    """Accept a bare `{…},{…}` sequence for a list."""
    return f"[{text}]" if text.lstrip().startswith("{") else text


def parse_row(cells: list[str]) -> TransactionRow:
    """Check the columns of a +1 row with the Pydantic model; the first finding is the reject's."""
    try:
        return TransactionRow.model_validate(dict(zip(COLUMNS[:-1], cells, strict=False)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _Refusal(field, first["type"], _short(first["input"]), first["msg"]) from None


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return storable(text[:_VALUE_CHARACTERS].encode("utf-8", "backslashreplace").decode())


def operation_of(fields: TransactionRow) -> str:
    """Name the operation, in the table's spelling where it is known, and check its keys."""
    by_key = {entry["key"]: entry for entry in fields.params}
    named = by_key.get("operation")
    if named is None:
        return "createContract" if fields.type == "103" else NO_OPERATION
    text = named.get("stringValue")
    if not text or len(text) > _VALUE_CHARACTERS // 2:
        raise _Refusal("params.operation", "operation", _short(text), "not a name of an operation")
    operation = _BY_FOLDED_NAME.get(text.casefold(), text)
    for key in _REQUIRED_KEYS.get(operation, ()):
        if key not in by_key or value_of(by_key[key]) is None:
            raise _Refusal(f"params.{key}", "missing_key", None, f"{operation} without {key}")
    return operation


def value_of(entry: Entry) -> str | int | bool | None:
    """The value of an entry, whichever of the four forms it has; 0, false and "" are values."""
    for name in _VALUE_KEYS:
        value = entry.get(name)
        if value is not None:
            return value  # type: ignore[return-value]  # the four forms are str, int and bool
    return None


def tally_of(operation: str, fields: TransactionRow) -> tuple[str | None, int | None]:
    """Say in which column of an hour this content counts, and for how many persons.

    Source: docs/format.md, "What an observer counts".
    """
    keys = [entry["key"] for entry in fields.diff]
    has_failed = any(key.startswith("FAIL_") for key in keys)
    if operation == "vote":
        if has_failed:
            return "vote_rejected", None
        return ("vote" if any(key.startswith("VOTE_") for key in keys) else None), None
    if operation == "blindSigIssue":
        persons = _list_length(fields, "data")
        return ("issue_rejected" if has_failed else "bulletin"), persons
    if has_failed:
        return "rejected", None
    if operation in ("addVotersList", "addToVotersList"):
        return "list_added", _list_size(fields)
    if operation == "removeFromVotersList":
        return "list_removed", _list_size(fields)
    return None, None


def _list_length(fields: TransactionRow, key: str) -> int | None:
    """Count the elements of a JSON list inside a params value; None where it is none."""
    for entry in fields.params:
        if entry["key"] == key:
            try:
                value = orjson.loads(str(value_of(entry)))
            except orjson.JSONDecodeError:
                return None
            return len(value) if isinstance(value, list) else None
    return None


def _list_size(fields: TransactionRow) -> int:
    length = _list_length(fields, "userIdHashes")
    if length is not None:
        return length
    for entry in fields.params:
        if entry["key"] == "votersCount" and isinstance(entry.get("intValue"), int):
            return int(entry["intValue"] or 0)
    raise _Refusal("params.userIdHashes", "json_list", None, "not a JSON list, and no votersCount")


@dataclass(frozen=True, slots=True)
class ToldContract:
    """A contract id that a row tells: its own, where it creates the contract."""

    contract_id: str
    is_create: bool


def contract_in_row(row: Row) -> ToldContract | None:
    """Find the contract id in a createContract or voters-list row; None in all others."""
    kind = row.raw[: 2 * _ID_BYTES].split(b";", 2)[1:2]
    if row.is_too_long or (kind != [b"103"] and b"contractId" not in row.raw):
        return None
    try:
        fields = parse_row(split_cells(_text_of(row)))
    except _Refusal:
        return None
    if fields.type == "103":
        return ToldContract(fields.nestedTxId, is_create=True)
    for entry in fields.params:
        value = value_of(entry)
        if entry["key"] == "contractId" and isinstance(value, str) and decodes_to(value, _ID_BYTES):
            return ToldContract(value, is_create=False)
    return None


def moment_of(milliseconds: int) -> datetime:
    """UTC time of a `ts`; exact to the millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)
