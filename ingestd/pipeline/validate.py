"""Validating: one row of text to a record that can be stored, or to a reject.

The twelve columns and the operations are those of the observer portal's
exports (docs/format.md). Strict where the format is known, open where it is
not: an operation nobody has seen is stored and counted, never refused.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Required

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic import Json as PydanticJson
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from ingestd.pipeline.base58 import decodes_to, has_alphabet, has_size
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
_PERSONS = range(1 << 31)

_CHEAP_CHARACTERS = 1 << 16
_MOST_FINDINGS = 1_000
MAX_ENTRIES = 200_000
MAX_JSON_DEPTH = 64
MAX_FIELD_BYTES = 1 << 25
# A plain entry is one object of two commas and eight quotes. More than that leaves
# room for keys nobody has seen, and still bounds what parsing may cost.
_COMMAS_AN_ENTRY, _QUOTES_AN_ENTRY = 8, 16

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
# A string that never ends goes on to the end, a last lone backslash included: were it
# no match, each quote in it would be tried as a beginning, in quadratic time.
_STRING_OR_SEMICOLON = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|;', re.DOTALL)
# Numbers that PostgreSQL or a reader of 64 bits might not hold.
_ODD_NUMBER = re.compile(r"[0-9]{19}|[eE.][-+]?[0-9]")
_NUMBER = re.compile(r"-?[0-9][0-9.eE+-]*")
_NUMBER_CHARACTERS, _INTEGER_CHARACTERS, _MOST_EXPONENT = 64, 20, 400

_DIGITS = re.compile(r"-?[0-9]{1,18}")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PADDINGS = (b"=", b"==")
# A year before `datetime` ends: the hour after, and the same moment in another
# time zone, must have a name, too.
_LAST_MS = 253_370_764_799_999

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
_ENTRY_KEYS = frozenset(("key", *_VALUE_KEYS))
_USUAL_EXTRA = '{"contractVersion":1}'


def _base58(size: int, *, may_be_empty: bool = False) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not decodes_to(text, size) and not (may_be_empty and not text):
            raise PydanticCustomError("base58", "not base58 of {size} bytes", {"size": size})
        return text

    return check


def _base64(text: str | None) -> str | None:
    """Check alphabet and length without decoding: five times as fast on a ballot."""
    if text:
        rest = text.encode("utf-8", "surrogatepass").translate(None, _BASE64)
        is_padding = rest in _PADDINGS and text.endswith(rest.decode())
        if len(text) % 4 or not (is_padding or not rest):
            raise PydanticCustomError("base64", "not plain base64")
    return text


def _entry_int(value: object) -> int | str:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value in _INT64:
        return value
    raise PydanticCustomError("integer", "not an integer of 64 bits")


def _moment(text: str) -> str:
    if int(text) > _LAST_MS:
        raise PydanticCustomError("moment", "milliseconds since 1970 beyond the year 9998")
    return text


def _entries(text: str) -> list[Any]:
    """Parse a list of objects; a million zeros are one finding, not a million."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _not_json(error) from None
    if not isinstance(value, list):
        raise PydanticCustomError("list_type", "not a JSON list of entries")
    for entry in value:
        if not isinstance(entry, dict):
            raise PydanticCustomError("dict_type", "an entry is not a JSON object")
    if len(value) > _MOST_FINDINGS:
        _refuse_first_bad(value)
    return value


def _refuse_first_bad(entries: list[Any]) -> None:
    """Stop at the first bad entry of many: a finding for each costs a hundred times the row."""
    for start in range(0, len(entries), _MOST_FINDINGS):
        try:
            _SOME_ENTRIES.validate_python(entries[start : start + _MOST_FINDINGS])
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            index, *rest = first["loc"]
            place = ".".join(map(str, (start + int(index), *rest)))
            told = {"place": place, "why": first["msg"]}
            # Of the kind that it has in a short list.
            raise PydanticCustomError(first["type"], "entry {place}: {why}", told) from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _not_json(error) from None
    if not isinstance(value, dict):
        raise PydanticCustomError("dict_type", "not a JSON object")
    return value


def _not_json(error: orjson.JSONDecodeError) -> PydanticCustomError:
    return PydanticCustomError("json_invalid", "not JSON: {error}", {"error": str(error)})


Integer = Annotated[str, Field(pattern=r"\A-?[0-9]{1,18}\z")]
EntryInt = Annotated[int | str, PlainValidator(_entry_int)]


class Entry(TypedDict, total=False):
    """One element of params or diff; keys nobody has seen are stored as found."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # Pydantic's own name

    key: Required[Annotated[str, Field(strict=True)]]
    stringValue: Annotated[str, Field(strict=True)] | None
    intValue: EntryInt | None
    boolValue: Annotated[bool, Field(strict=True)] | None
    binaryValue: Annotated[Annotated[str, Field(strict=True)] | None, AfterValidator(_base64)]


Params = Mapping[str, Entry]
_SOME_ENTRIES = TypeAdapter(list[Entry])


class TransactionRow(TypedDict):
    """The first eleven columns of a +1 row, as text; params, diff and extra are parsed JSON.

    A plain dictionary costs half of what an object of a model does.
    """

    nestedTxId: Annotated[str, AfterValidator(_base58(_ID_BYTES))]
    type: Literal["103", "104"]
    signature: Annotated[str, AfterValidator(_base58(_KEY_BYTES, may_be_empty=True))]
    version: Integer
    ts: Annotated[str, Field(pattern=r"\A[0-9]{1,15}\z"), AfterValidator(_moment)]
    senderPublicKey: Annotated[str, AfterValidator(_base58(_KEY_BYTES))]
    fee: Integer
    feeAssetId: Annotated[str, Field(max_length=100)]
    params: Annotated[list[Entry], BeforeValidator(_entries)]
    diff: Annotated[list[Entry], BeforeValidator(_entries)]
    extra: Annotated[dict[str, Any], BeforeValidator(_object)]


class UsualEntry(TypedDict, total=False):
    """An entry as the exports write it: no key that nobody has seen, no null, no quoted number."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]  # as above

    key: Required[str]
    stringValue: str
    intValue: Annotated[int, Field(ge=_INT64.start, lt=_INT64.stop)]
    boolValue: bool
    binaryValue: Annotated[str, AfterValidator(_base64)]


UsualRow = tuple[
    str,  # nestedTxId
    Literal["103", "104"],  # type
    str,  # signature
    Integer,  # version
    Annotated[str, Field(pattern=r"\A[0-9]{1,14}\z")],  # ts
    str,  # senderPublicKey
    Integer,  # fee
    Literal[""],  # feeAssetId
    PydanticJson[list[UsualEntry]],  # params
    PydanticJson[list[UsualEntry]],  # diff
    Literal['{"contractVersion":1}'],  # extra
    Literal["1", ""],  # rollback
]
"""The twelve cells of a row as the exports write it: Pydantic parses and checks all in one go.

Nearly every row is of this form, which costs half of what `TransactionRow` does. A row that is not
may be as good; a row that is would come out of `TransactionRow` the same.
"""

_TRANSACTION_ROW = TypeAdapter(TransactionRow).validator
_USUAL_ROW = TypeAdapter(UsualRow).validator


class Shown(NamedTuple):
    """What a +1 row shows of its transaction; the JSON columns as text, byte for byte."""

    milliseconds: int
    tally: str | None
    persons: int | None
    type: str
    tx_type: int
    version: int
    voter_key: int | None
    fee: int
    fee_asset_id: str
    sender: str
    signature: str
    extra: str
    raw_data: str
    operation_data: str


class Record(NamedTuple):
    """A row that passed; `key` is its transaction's id in hex, `shown` is None on a rollback.

    A tuple of what travels to the database, since millions of them are made.
    """

    line: int
    end: int
    key: str
    tx_id: str
    sign: Literal[1, -1]
    content_hash: bytes | None
    shown: Shown | None

    @property
    def id(self) -> uuid.UUID:
        """The transaction's id."""
        return uuid.UUID(self.key)

    @property
    def values(self) -> dict[str, Any]:
        """The columns of `transaction` that the row itself tells; none of a rollback."""
        if self.shown is None:
            return {}
        # The reader, which starts in the middle of a file, does without the database.
        from ingestd.db import RawJson  # noqa: PLC0415

        values = self.shown._asdict()
        values["timestamp"] = moment_of(values.pop("milliseconds"))
        for name in ("extra", "raw_data", "operation_data"):
            values[name] = RawJson(values[name])
        return values | {"tx_id": self.tx_id}


class Reject(NamedTuple):
    """A row that did not pass, and why."""

    line: int
    end: int
    field: str | None
    kind: str
    value: str | None
    reason: str
    raw_text: str
    is_cut: bool


class Blank(NamedTuple):
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
    return uuid.UUID(_key(prefix.hex(), tx_id))


def _key(prefix: str, tx_id: str) -> str:
    """The same in hex, with the prefix in hex."""
    digest = hashlib.sha256(tx_id.encode()).hexdigest()
    return f"{prefix}{digest[:4]}8{digest[4:7]}{_VARIANT[digest[7]]}{digest[8:23]}"


# The two bits of the variant before the two upper bits of a hex digit.
_VARIANT = {digit: "89ab"[int(digit, 16) >> 2] for digit in "0123456789abcdef"}


def voter_key(prefix: bytes, sender: str) -> int:
    """Fold a sender key into 64 bits that begin with its constituency.

    Two senders may share a key once in a million constituencies; who asks
    compares `sender` too.
    """
    folded = prefix[:3] + hashlib.sha256(sender.encode()).digest()[:5]
    return int.from_bytes(folded, "big", signed=True)


def voter_keys(prefix: bytes) -> tuple[int, int]:
    """The least and the greatest voter key that a constituency may have."""
    low = int.from_bytes(prefix[:3] + bytes(5), "big", signed=True)
    return low, low + (1 << 40) - 1


class Validator:
    """Checks the rows of one constituency."""

    def __init__(
        self,
        contract_id: str,
        *,
        max_entries: int,
        raw_text_bytes: int,
        max_json_depth: int = MAX_JSON_DEPTH,
        max_field_bytes: int = MAX_FIELD_BYTES,
    ) -> None:
        """Set what all rows of a file share."""
        self._prefix = constituency_prefix(contract_id)
        self._prefix_hex = self._prefix.hex()
        self._max_entries = max_entries
        self._max_json_depth = max_json_depth
        self._max_field_bytes = max_field_bytes
        self._usual_bytes = min(_CHEAP_CHARACTERS, max_field_bytes)
        self._raw_text_bytes = raw_text_bytes

    def check(self, row: Row) -> Outcome:
        """Turn one row into what it is worth."""
        try:
            record = self._usual_record(row)
            if record is not None:
                return record
            return Blank(row.line, row.end) if row.is_blank else self._record(row)
        except _Refusal as refusal:
            return self._reject(row, *refusal.parts)

    def _usual_record(self, row: Row) -> Record | None:
        """Check a row of the usual form, the quick way; None where it is not quite so."""
        line, end, raw, is_too_long, _ = row
        if is_too_long or len(raw) > self._usual_bytes:
            return None
        try:
            cells = _usual_cells(raw.decode())
        except UnicodeDecodeError:
            return None
        usual = parse_usual_row(cells, self._max_entries)
        if usual is None:
            return None
        tx_id, tx_type, *_, params, diff, _, _ = usual
        shown = self._shown(tx_type, params, diff, cells)  # type: ignore[arg-type]  # each is an Entry
        return self._accepted(line, end, raw, tx_id, shown)

    def _record(self, row: Row) -> Record:
        line, end, raw, is_too_long, _ = row
        if is_too_long:
            raise _Refusal(None, "too_long", None, "the line is longer than max_line_bytes")
        if raw[raw.rfind(b";") + 1 :].strip() == b"-1":
            return self._rollback(row)
        cells = split_cells(_text_of(row))
        if len(raw) > self._max_field_bytes:
            self._refuse_long_cells(cells)
        fields = parse_row(cells, self._max_entries, self._max_json_depth)
        shown = self._shown(fields["type"], fields["params"], fields["diff"], cells)
        return self._accepted(line, end, raw, fields["nestedTxId"], shown)

    def _accepted(self, line: int, end: int, raw: bytes, tx_id: str, shown: Shown) -> Record:
        content = raw[raw.find(b";") + 1 : raw.rfind(b";")]
        content_hash = hashlib.sha256(content).digest()[:16]
        key = _key(self._prefix_hex, tx_id)
        return tuple.__new__(Record, (line, end, key, tx_id, 1, content_hash, shown))

    def _refuse_long_cells(self, cells: list[str]) -> None:
        for column, cell in zip(COLUMNS, cells, strict=True):
            if len(cell.encode()) > self._max_field_bytes:
                reason = f"longer than max_field_bytes = {self._max_field_bytes}"
                raise _Refusal(column, "field_bytes", _short(cell), reason)

    def _rollback(self, row: Row) -> Record:
        """A −1 row needs only its id: it takes back, it never tells."""
        columns = row.raw.count(b";") + 1
        if columns < len(COLUMNS):
            _refuse_columns(columns)
        tx_id = row.raw[: row.raw.index(b";")].decode("utf-8", "backslashreplace")
        if not decodes_to(tx_id, _ID_BYTES):
            raise _Refusal("nestedTxId", "base58", _short(tx_id), "not base58 of 32 bytes")
        return Record(row.line, row.end, _key(self._prefix_hex, tx_id), tx_id, -1, None, None)

    def _shown(
        self, tx_type: str, params: Sequence[Entry], diff: Sequence[Entry], cells: list[str]
    ) -> Shown:
        # Of two entries with one key the last counts, as everywhere.
        by_key = {entry["key"]: entry for entry in params}
        operation = operation_of(tx_type, by_key)
        tally, persons = tally_of(operation, by_key, diff)
        _, _, signature, version, ts, sender, fee, fee_asset_id, raw_data, data, extra, _ = cells
        # What its own `__new__` does, in half the time.
        return tuple.__new__(
            Shown,
            (
                int(ts),
                tally,
                persons,
                operation,
                int(tx_type),
                int(version),
                voter_key(self._prefix, sender) if operation == "vote" else None,
                int(fee),
                fee_asset_id,
                sender,
                signature,
                extra,
                raw_data,
                data,
            ),
        )

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


def storable(text: str) -> str:
    """Write out the one character that PostgreSQL cannot keep in a text."""
    return text.replace("\x00", "\\x00")


def storable_text(text: str) -> str:
    """Write out all that no database keeps, halves of characters included."""
    return storable(text.encode("utf-8", "backslashreplace").decode())


def _text_of(row: Row) -> str:
    try:
        text = row.raw.decode()
    except UnicodeDecodeError as error:
        byte = row.raw[error.start : error.start + 1].hex()
        reason = f"not UTF-8: byte 0x{byte} at offset {row.start + error.start} of the file"
        raise _Refusal(None, "encoding", f"0x{byte}", reason) from None
    # However deep it is quoted: PostgreSQL cannot store that character, and a
    # string here may be JSON of its own that is stored once more, as results are.
    if "\x00" in text or _has_quoted_nul(text):
        raise _Refusal(None, "nul", None, "a NUL character")
    return text


def _has_quoted_nul(text: str) -> bool:
    first = text.find("\\")
    return first >= 0 and text.find("\\u0000", first) >= 0


def _usual_cells(text: str) -> list[str]:
    """Split a row whose JSON holds no semicolon; a search passes over JSON faster than `split`."""
    *cells, rest = text.split(";", _FIRST_JSON)
    params, _, rest = rest.partition(";")
    diff, _, rest = rest.partition(";")
    return [*cells, params, diff, *rest.split(";")]


def split_cells(text: str) -> list[str]:
    """Split a row on `;` into its twelve cells; raw semicolons inside JSON are put together."""
    cells = text.split(";", len(COLUMNS))
    if len(cells) < len(COLUMNS):
        _refuse_columns(len(cells))
    if len(cells) > len(COLUMNS):
        cells = _put_together(text)
    for index in (_FIRST_JSON, _FIRST_JSON + 1):
        cells[index] = _as_list(cells[index])
    return cells


def _put_together(text: str) -> list[str]:
    """Split a row with raw semicolons in its JSON: those inside strings part nothing.

    One pass, which ends at the first border too many.
    """
    *first, rest = text.split(";", _FIRST_JSON)
    body, _, last = rest.rpartition(";")
    between = (match.start() for match in _STRING_OR_SEMICOLON.finditer(body) if match[0] == ";")
    borders = list(islice(between, _LAST_JSON - _FIRST_JSON + 1))
    if len(borders) != _LAST_JSON - _FIRST_JSON:
        _refuse_columns(text.count(";") + 1)
    params_end, diff_end = borders
    return [*first, body[:params_end], body[params_end + 1 : diff_end], body[diff_end + 1 :], last]


def _refuse_columns(number: int) -> NoReturn:
    reason = f"{number} columns, not {len(COLUMNS)}"
    if number > len(COLUMNS):
        reason += ", and no JSON can be put together from them"
    raise _Refusal(None, "columns", None, reason)


def _as_list(text: str) -> str:
    """Accept a bare `{…},{…}` sequence for a list."""
    if text.startswith("["):
        return text
    return f"[{text}]" if text.lstrip().startswith("{") else text


def parse_row(
    cells: list[str], max_entries: int = MAX_ENTRIES, max_depth: int = MAX_JSON_DEPTH
) -> TransactionRow:
    """Check the columns of a +1 row; the first finding is the reject's."""
    is_dear = len(cells[8]) + len(cells[9]) + len(cells[10]) > _CHEAP_CHARACTERS
    if is_dear:
        # Before parsing, which is what too much JSON makes dear.
        for index in range(_FIRST_JSON, _LAST_JSON + 1):
            _refuse_wild(cells, index, max_entries, max_depth)
        return parse_any_row(cells)
    fields = parse_any_row(cells)
    for index, entries in ((_FIRST_JSON, fields["params"]), (_FIRST_JSON + 1, fields["diff"])):
        if len(entries) > max_entries or not _is_plain(entries, cells[index]):
            _refuse_wild(cells, index, max_entries, max_depth)
    if cells[_LAST_JSON] != _USUAL_EXTRA:
        _refuse_wild(cells, _LAST_JSON, max_entries, max_depth)
    return fields


def parse_any_row(cells: list[str]) -> TransactionRow:
    """Check the columns of a +1 row whichever way it is written."""
    try:
        fields: TransactionRow = _TRANSACTION_ROW.validate_python(_named(cells))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _Refusal(field, first["type"], _short(first["input"]), first["msg"]) from None
    return fields


def parse_usual_row(cells: list[str], max_entries: int = MAX_ENTRIES) -> UsualRow | None:
    """Check the twelve cells of a row of the usual form; None where it is not quite so."""
    try:
        usual: UsualRow = _USUAL_ROW.validate_python(cells)
    except ValidationError:
        return None
    tx_id, _, signature, _, _, sender, _, _, params, diff, _, _ = usual
    is_usual = (
        has_alphabet(f"{tx_id}{signature}{sender}")
        and has_size(tx_id, _ID_BYTES)
        and has_size(signature, _KEY_BYTES)
        and has_size(sender, _KEY_BYTES)
        and len(params) <= max_entries
        and len(diff) <= max_entries
        # Written as we would: no key of one name hides behind another, which only
        # PostgreSQL would see, and the two parsers agree.
        and orjson.dumps(params) == cells[8].encode()
        and orjson.dumps(diff) == cells[9].encode()
        and ("\\" not in cells[8] or _are_plain(params))
        and ("\\" not in cells[9] or _are_plain(diff))
    )
    return usual if is_usual else None


def _are_plain(entries: Sequence[UsualEntry]) -> bool:
    """Say whether no text in entries holds a NUL character, or a backslash that may quote one."""
    for entry in entries:
        text = entry["key"] + entry.get("stringValue", "")
        if "\\" in text or "\x00" in text:
            return False
    return True


def _named(cells: list[str]) -> dict[str, str]:
    """Name the cells by their columns; spelt out, which takes half the time of a loop."""
    return {
        "nestedTxId": cells[0],
        "type": cells[1],
        "signature": cells[2],
        "version": cells[3],
        "ts": cells[4],
        "senderPublicKey": cells[5],
        "fee": cells[6],
        "feeAssetId": cells[7],
        "params": cells[8],
        "diff": cells[9],
        "extra": cells[10],
    }


def _is_plain(entries: list[Entry], text: str) -> bool:
    """Say whether a text is exactly the usual writing of entries without unknown keys.

    Such a text hides nothing: a second key of one name would hide the first
    from our parser, but not from PostgreSQL.
    """
    for entry in entries:
        if not entry.keys() <= _ENTRY_KEYS:
            return False
    return orjson.dumps(entries) == text.encode()


def _refuse_wild(cells: list[str], index: int, max_entries: int, max_depth: int) -> None:
    """Refuse JSON that is too big, too deep or holds numbers that a database cannot."""
    finding = _wild(cells[index], max_entries, max_depth)
    if finding:
        kind, reason = finding
        raise _Refusal(COLUMNS[index], kind, None, reason)


def _wild(text: str, max_entries: int, max_depth: int) -> tuple[str, str] | None:
    """Look at what stands outside of strings."""
    if "\\" in text:
        text = _ESCAPED.sub("", text)
    if text.count('"') > _QUOTES_AN_ENTRY * max_entries:
        return "entries", f"more strings than {max_entries} entries have"
    structure = "".join(text.split('"')[::2])
    objects = structure.count("{")
    if objects > max_entries or structure.count(",") > _COMMAS_AN_ENTRY * max_entries:
        return "entries", f"more than {max_entries} entries"
    if objects + structure.count("[") > max_depth and _depth(structure) > max_depth:
        return "depth", f"lists and objects nested deeper than {max_depth}"
    if _ODD_NUMBER.search(structure) and not all(map(_can_be_held, _NUMBER.findall(structure))):
        return "number", "a number that no database holds"
    return None


def _depth(structure: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(structure):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _can_be_held(number: str) -> bool:
    """Say whether a JSON number is an integer of 64 bits, or finite and not too long.

    PostgreSQL's numeric ends 131 072 digits before and 16 383 behind the
    point, whatever the value: it refuses 0e-99999.
    """
    if number.removeprefix("-").isdigit():
        return len(number) <= _INTEGER_CHARACTERS and int(number) in _INT64
    if len(number) > _NUMBER_CHARACTERS:
        return False
    try:
        exponent = int(number.lower().partition("e")[2] or "0")
        return abs(exponent) <= _MOST_EXPONENT and math.isfinite(float(number))
    except ValueError:
        return True  # no number at all: the parser says so better


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return storable_text(text[:_VALUE_CHARACTERS])


def operation_of(tx_type: str, params: Params) -> str:
    """Name the operation, in the table's spelling where it is known, and check its keys."""
    named = params.get("operation")
    if named is None:
        return "createContract" if tx_type == "103" else NO_OPERATION
    text = named.get("stringValue")
    if not text or len(text) > _VALUE_CHARACTERS // 2:
        raise _Refusal("params.operation", "operation", _short(text), "not a name of an operation")
    operation = text if text in _REQUIRED_KEYS else _BY_FOLDED_NAME.get(text.casefold(), text)
    for key in _REQUIRED_KEYS.get(operation, ()):
        if key not in params or value_of(params[key]) is None:
            raise _Refusal(f"params.{key}", "missing_key", None, f"{operation} without {key}")
    return operation


def value_of(entry: Entry) -> str | int | bool | None:
    """The value of an entry, whichever of the four forms it has; 0, false and "" are values."""
    for name in _VALUE_KEYS:
        value = entry.get(name)
        if value is not None:
            return value  # type: ignore[return-value]  # the four forms are str, int and bool
    return None


def tally_of(
    operation: str, params: Params, diff: Sequence[Entry]
) -> tuple[str | None, int | None]:
    """Say in which column of an hour this content counts, and for how many persons.

    Source: docs/format.md, "What an observer counts".
    """
    has_failed = has_vote = False
    for entry in diff:
        kind = entry["key"][:5]
        has_failed = has_failed or kind == "FAIL_"
        has_vote = has_vote or kind == "VOTE_"
    if operation == "vote":
        if has_failed:
            return "vote_rejected", None
        return ("vote" if has_vote else None), None
    if operation == "blindSigIssue":
        persons = _list_length(params.get("data"))
        return ("issue_rejected" if has_failed else "bulletin"), persons
    if has_failed:
        return "rejected", None
    if operation in ("addVotersList", "addToVotersList"):
        return "list_added", _list_size(params)
    if operation == "removeFromVotersList":
        return "list_removed", _list_size(params)
    return None, None


def meaning_of(
    tx_type: int, params: Sequence[Entry], diff: Sequence[Entry]
) -> tuple[str, str | None, int | None] | None:
    """What stored entries mean: operation, tally, persons; None where they could not be stored."""
    by_key = {entry["key"]: entry for entry in params}
    try:
        operation = operation_of(str(tx_type), by_key)
        return (operation, *tally_of(operation, by_key, diff))
    except _Refusal:
        return None


def _list_length(entry: Entry | None) -> int | None:
    """Count the elements of a JSON list inside a params value; None where it is none."""
    try:
        value = orjson.loads(str(value_of(entry))) if entry else None
    except orjson.JSONDecodeError:
        return None
    return len(value) if isinstance(value, list) else None


def _list_size(params: Params) -> int:
    length = _list_length(params.get("userIdHashes"))
    if length is not None:
        return length
    told = params.get("votersCount")
    number = told.get("intValue") if told else None
    if number is None:
        reason = "not a JSON list, and no votersCount"
        raise _Refusal("params.userIdHashes", "json_list", None, reason)
    if int(number) not in _PERSONS:
        raise _Refusal("params.votersCount", "persons", str(number), "no number of persons")
    return int(number)


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
    if fields["type"] == "103":
        return ToldContract(fields["nestedTxId"], is_create=True)
    for entry in fields["params"]:
        value = value_of(entry)
        if entry["key"] == "contractId" and isinstance(value, str) and decodes_to(value, _ID_BYTES):
            return ToldContract(value, is_create=False)
    return None


def moment_of(milliseconds: int) -> datetime:
    """UTC time of a `ts`; exact to the millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)
