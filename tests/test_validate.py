"""Rows: what is read out of them, what is refused and why, and that nothing breaks the reader."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import time
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import base58
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import String

from ingestd.models import Reject as RejectTable
from ingestd.models import Transaction, table_of
from ingestd.pipeline.read import Row, RowReader
from ingestd.pipeline.validate import (
    COLUMNS,
    NO_OPERATION,
    OPERATIONS,
    Blank,
    Outcome,
    Record,
    Reject,
    ToldContract,
    Validator,
    constituency_prefix,
    contract_in_row,
    moment_of,
    parse_any_row,
    parse_usual_row,
    split_cells,
    transaction_id,
    voter_key,
)

CONTRACT = "C2PNTNPsNdVycjJs7BRD7aixkmPPbxj7PWjCxbo7ikC4"
SAMPLE = Path(__file__).parent / "data" / "real_vote_2023.csv"
SMALLINT, INTEGER, BIGINT = (range(-(1 << bits), 1 << bits) for bits in (15, 31, 63))


def some_id(seed: int, size: int = 32) -> str:
    """Base58 of so many bytes."""
    raw = hashlib.sha512(b"%d" % seed).digest()
    return base58.b58encode(b"\x7f" + raw[: size - 1]).decode()


TX, KEY, SIGNATURE = some_id(1), some_id(2, 64), some_id(3, 64)
BALLOT = base64.b64encode(bytes(range(256))).decode()
LIST = json.dumps(["9f" * 32, "a4" * 32, "00" * 32])
DATA = json.dumps([{"userId": "9f" * 32, "maskedSig": "a4" * 256}])

Entries = list[dict[str, Any]]


def entries(**values: object) -> Entries:
    """Entries by key; the form follows the type, bytes are base64 already."""
    forms = {str: "stringValue", bool: "boolValue", int: "intValue", bytes: "binaryValue"}
    return [
        {"key": key, forms[type(value)]: value.decode() if isinstance(value, bytes) else value}
        for key, value in values.items()
    ]


def call(operation: str, **values: object) -> Entries:
    """The params of a call."""
    return entries(operation=operation, **values)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Twelve columns; params, diff and extra as values or as the text that stands there."""

    tx: str = TX
    type: str = "104"
    signature: str = SIGNATURE
    version: str = "4"
    ts: str = "1725600087123"
    sender: str = KEY
    fee: str = "0"
    fee_asset: str = ""
    params: Entries | str = ""
    diff: Entries | str = "[]"
    extra: dict[str, Any] | str = '{"contractVersion":1}'
    rollback: str = "1"

    def raw(self) -> bytes:
        """The line without its end."""
        texts = [
            cell
            if isinstance(cell, str)
            else json.dumps(cell, separators=(",", ":"), ensure_ascii=False)
            for cell in vars(self).values()
        ]
        return ";".join(texts).encode()

    def having(self, **cells: Any) -> Cells:
        """The same row with other cells."""
        return replace(self, **cells)


VOTE = Cells(
    params=call("vote", vote=BALLOT.encode(), blindSig=BALLOT.encode()),
    diff=entries(**{f"VOTE_{KEY}": json.dumps({"vote": TX, "blindSig": "1a29"})}),
)
ISSUE = Cells(
    params=call("blindSigIssue", data=DATA, primaryUikRegionCode="90", primaryUikNumber=150),
    diff=entries(**{f"BLINDSIG_{TX}": DATA}),
)
PLAIN = Cells(params=call("somethingNew"))
VALIDATOR = Validator(CONTRACT, max_entries=1000, raw_text_bytes=200)


def row_of(raw: bytes, line: int = 5) -> Row:
    """A row as the reader gives it, somewhere in a file."""
    return Row(line, 1000 + len(raw) + 1, raw, start=1000)


def check(cells: Cells | bytes, validator: Validator = VALIDATOR) -> Outcome:
    """What a row is worth."""
    return validator.check(row_of(cells.raw() if isinstance(cells, Cells) else cells))


def values_of(cells: Cells | bytes, validator: Validator = VALIDATOR) -> dict[str, Any]:
    """The columns of a good row."""
    record = check(cells, validator)
    assert isinstance(record, Record), record
    assert record.values is not None
    return record.values


def reject_of(cells: Cells | bytes, validator: Validator = VALIDATOR) -> Reject:
    """The findings of a bad row."""
    reject = check(cells, validator)
    assert isinstance(reject, Reject), reject
    return reject


# ── the real row ──────────────────────────────────────────────────────────


def test_the_real_vote_is_read_field_by_field() -> None:
    """A vote of 2023, from the chain."""
    (row,) = RowReader(io.BytesIO(SAMPLE.read_bytes()), max_line_bytes=1 << 20)
    record = VALIDATOR.check(row)
    assert isinstance(record, Record)
    columns = row.raw.decode().split(";")
    tx_id = "AYvMkdqmGB61WeN1zp7G1EGV41LebmeBGbXHBfiXDrxD"
    assert (1, row.end, tx_id, 1) == (record.line, record.end, record.tx_id, record.sign)
    assert record.content_hash == hashlib.sha256(";".join(columns[1:11]).encode()).digest()[:16]
    assert record.values == {
        "timestamp": datetime(2023, 3, 17, 15, 12, 15, tzinfo=UTC),
        "tally": "vote",
        "persons": None,
        "type": "vote",
        "tx_type": 104,
        "version": 4,
        "voter_key": voter_key(constituency_prefix(CONTRACT), columns[5]),
        "tx_id": tx_id,
        "fee": 0,
        "fee_asset_id": "",
        "sender": columns[5],
        "signature": columns[2],
        "extra": columns[10],
        "raw_data": columns[8],
        "operation_data": columns[9],
    }


# ── operations ────────────────────────────────────────────────────────────

FAIL_VOTE = entries(FAIL_3EMn_tx_vote='{"reason":"Revote is blocked"}')
FAIL_ISSUE = entries(FAIL_tx_blindSig="No such voter")
OF_TABLE: dict[str, tuple[Entries, Entries, str | None, int | None]] = {
    "addMainKey": (
        call("addMainKey", mainKey="02" * 33, commissionKey="03" * 33, dkgKey="02" * 33),
        entries(MAIN_KEY="02" * 33, COMMISSION_KEY="03" * 33, DKG_KEY="02" * 33),
        None,
        None,
    ),
    "addVotersList": (
        call("addVotersList", contractId=CONTRACT, votersCount=3, userIdHashes=LIST),
        entries(VOTERS_LIST_tx=LIST),
        "list_added",
        3,
    ),
    "addToVotersList": (
        call("addToVotersList", userIdHashes=LIST, primaryUikNumber="150"),
        entries(VOTERS_LIST_ADD_tx=LIST),
        "list_added",
        3,
    ),
    "removeFromVotersList": (
        call("removeFromVotersList", userIdHashes=LIST),
        entries(VOTERS_LIST_REMOVE_tx=LIST),
        "list_removed",
        3,
    ),
    "startVoting": (
        call("startVoting", dateStart="06-09-2024 05:00:00"),
        entries(VOTING_BASE='{"status":"Active"}'),
        None,
        None,
    ),
    "blindSigIssue": (
        call("blindSigIssue", data=DATA, primaryUikRegionCode="90", primaryUikNumber=150),
        entries(BLINDSIG_tx=DATA),
        "bulletin",
        1,
    ),
    "blindSigIssue rejected": (
        call("blindSigIssue", data=DATA),
        FAIL_ISSUE,
        "issue_rejected",
        1,
    ),
    "blindSigIssue of two persons": (
        call("blindSigIssue", data=json.dumps([{}, {}])),
        entries(BLINDSIG_tx="[]"),
        "bulletin",
        2,
    ),
    "blindSigIssue of who knows": (
        call("blindSigIssue", data="no list"),
        entries(BLINDSIG_tx="[]"),
        "bulletin",
        None,
    ),
    "vote": (
        call("vote", vote=BALLOT.encode(), blindSig=BALLOT.encode()),
        entries(VOTE_key="{}"),
        "vote",
        None,
    ),
    "vote rejected": (call("vote", vote=b"AA==", blindSig=b""), FAIL_VOTE, "vote_rejected", None),
    "vote with both": (
        call("vote", vote=b"AA==", blindSig=b""),
        [*entries(VOTE_key="{}"), *FAIL_VOTE],
        "vote_rejected",
        None,
    ),
    "vote without effect": (call("vote", vote=b"", blindSig=b""), [], None, None),
    "finishVoting": (
        call("finishVoting"),
        entries(VOTING_BASE='{"status":"Completed","dateEnd":"08-09-2024 17:00:00"}'),
        None,
        None,
    ),
    "decryption": (
        call("decryption", decryption='{"a":1}'), entries(DECRYPTION_key=TX), None, None,
    ),
    "commissionDecryption": (
        call("commissionDecryption", decryption="{}"),
        entries(COMMISSION_DECRYPTION=TX),
        None,
        None,
    ),
    "results": (
        call("results", results="[[22,50,68,4]]"), entries(RESULTS="[[22,50,68,4]]"), None, None,
    ),
    "updateServerList": (call("updateServerList"), entries(SERVERS="[]"), None, None),
    "startIssueBallots": (call("startIssueBallots"), [], None, None),
    "stopIssueBallots": (call("stopIssueBallots"), [], None, None),
    "list refused by the chain": (
        call("addVotersList", userIdHashes="no list"), entries(FAIL_tx="no"), "rejected", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OF_TABLE)
def test_every_operation_of_the_table_is_read_and_tallied(what: str) -> None:
    """What it is, in which column it counts, and for how many persons."""
    params, diff, tally, persons = OF_TABLE[what]
    values = values_of(Cells(params=params, diff=diff))
    operation = params[0]["stringValue"]
    assert (operation, tally, persons) == (values["type"], values["tally"], values["persons"])
    assert (params, diff) == (json.loads(values["raw_data"]), json.loads(values["operation_data"]))
    assert (values["voter_key"] is not None) == (operation == "vote")


def test_a_103_row_without_operation_creates_the_contract() -> None:
    """Its extra names image and contract, its version may be 3."""
    params = entries(
        pollId="1", bulletinHash="ab", dimension="[[1,1,5]]", keys="[]", isRevoteBlocked=True
    )
    extra = {"image": "registry/x:1", "imageHash": "ab", "contractName": "voting"}
    cells = Cells(type="103", version="3", params=params, extra=extra, diff=entries(SERVERS="[]"))
    values = values_of(cells)
    assert ("createContract", 103, 3) == (values["type"], values["tx_type"], values["version"])
    assert extra == json.loads(values["extra"])


def test_a_call_without_operation_is_stored_as_such() -> None:
    """Nobody has seen one; it is counted, not refused."""
    assert values_of(Cells(params="[]"))["type"] == NO_OPERATION


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
def test_operations_are_known_in_any_case(operation: str, spell: Callable[[str], str]) -> None:
    """They are stored in the table's spelling."""
    everything = {
        "vote": b"", "blindSig": b"", "data": "[]", "userIdHashes": "[]", "results": "[]",
    }  # fmt: skip
    assert operation == values_of(Cells(params=call(spell(operation), **everything)))["type"]


@pytest.mark.parametrize("operation", ["newThing", "vote2", "Голосование", "x" * 100, " "])
def test_an_operation_nobody_has_seen_is_stored(operation: str) -> None:
    """Only the operation is open; it is kept as it is spelt."""
    values = values_of(Cells(params=call(operation)))
    assert (operation, None, None) == (values["type"], values["tally"], values["persons"])


@pytest.mark.parametrize(
    "named", [{"stringValue": ""}, {"stringValue": "x" * 101}, {"intValue": 1}, {}]
)
def test_an_operation_without_a_name_is_refused(named: dict[str, Any]) -> None:
    """Empty, longer than any index likes, or no text."""
    reject = reject_of(Cells(params=[{"key": "operation", **named}]))
    assert ("params.operation", "operation") == (reject.field, reject.kind)


REQUIRED = {
    "vote": {"vote", "blindSig"},
    "blindSigIssue": {"data"},
    "addVotersList": {"userIdHashes"},
    "addToVotersList": {"userIdHashes"},
    "removeFromVotersList": {"userIdHashes"},
    "results": {"results"},
}
GIVEN = {"vote": b"AA==", "blindSig": b"AA==", "data": "[]", "userIdHashes": "[]", "results": "[]"}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("missing", GIVEN)
@pytest.mark.parametrize("is_null", [False, True])
def test_exactly_the_keys_of_the_table_are_required(
    operation: str, missing: str, is_null: bool
) -> None:
    """Other keys are stored as found, present or not; a null is no value."""
    given_keys = {key: GIVEN[key] for key in REQUIRED.get(operation, ()) if key != missing}
    params = call(operation, **given_keys)
    if is_null:
        params.append({"key": missing, "stringValue": None})
    if missing in REQUIRED.get(operation, ()):
        reject = reject_of(Cells(params=params))
        assert (f"params.{missing}", "missing_key") == (reject.field, reject.kind)
    else:
        assert operation == values_of(Cells(params=params))["type"]


@pytest.mark.parametrize(
    "value", [{"intValue": 0}, {"boolValue": False}, {"stringValue": ""}, {"binaryValue": ""}]
)
def test_zero_false_and_the_empty_text_are_values(value: dict[str, Any]) -> None:
    """The official tool loses them."""
    params = [*call("results"), {"key": "results", **value}]
    assert params == json.loads(values_of(Cells(params=params))["raw_data"])


@pytest.mark.parametrize(
    ("count", "persons"), [(3, 3), ("3", 3), (0, 0), ((1 << 31) - 1, (1 << 31) - 1)]
)
def test_a_list_in_no_known_form_is_counted_by_its_votersCount(  # noqa: N802 - the key's own name
    count: int | str, persons: int
) -> None:
    """As a number or as a text of one."""
    params = call("addVotersList", userIdHashes="9f9f,a4a4")
    params.append({"key": "votersCount", "intValue": count})
    assert persons == values_of(Cells(params=params))["persons"]


@pytest.mark.parametrize("count", [-1, 1 << 31, "99999999999", (1 << 63) - 1])
def test_a_count_of_voters_that_no_country_has_is_refused(count: int | str) -> None:
    """It would not fit its column."""
    params = call("addVotersList", userIdHashes="no list")
    params.append({"key": "votersCount", "intValue": count})
    reject = reject_of(Cells(params=params))
    assert ("params.votersCount", "persons") == (reject.field, reject.kind)


def test_a_list_that_nothing_counts_is_refused() -> None:
    """The running sum of registered voters would be wrong in silence."""
    reject = reject_of(Cells(params=call("addToVotersList", userIdHashes="no list")))
    assert ("params.userIdHashes", "json_list") == (reject.field, reject.kind)


def test_of_two_entries_with_one_key_the_last_counts() -> None:
    """For the operation and for its values alike."""
    params = [
        *call("vote", userIdHashes="no list"),
        *call("addVotersList", userIdHashes=LIST),
    ]
    values = values_of(Cells(params=params))
    assert ("addVotersList", 3) == (values["type"], values["persons"])


# ── columns ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rollback", ["1", "", "+1", "0", "-2", "--1", "- 1", "true", " ", "−1"])
def test_a_twelfth_column_other_than_minus_one_is_plus_one(rollback: str) -> None:
    """Empty in older and converted files."""
    record = check(VOTE.having(rollback=rollback))
    assert isinstance(record, Record)
    assert record.sign == 1


@pytest.mark.parametrize("rollback", ["-1", " -1", "-1 ", "-1\r"])
def test_minus_one_takes_back_and_tells_nothing(rollback: str) -> None:
    """No content, no hash: a −1 row never supplies or contradicts content."""
    record = check(VOTE.having(rollback=rollback))
    plus = check(VOTE)
    assert isinstance(record, Record)
    assert isinstance(plus, Record)
    assert (-1, None, None) == (record.sign, record.content_hash, record.shown)
    assert (plus.id, TX) == (record.id, record.tx_id)


@pytest.mark.parametrize(
    "middle",
    [
        b";" * 9,
        b"105;sig;v;ts;key;fee;;{;[;x",
        b'104;;;;;;;[{"a":"1;2;3"}];[];{}',
        b";" * 50,
        b"\xff;\x00;\\u0000;;;;;;;",
    ],
)
def test_a_rollback_needs_only_its_id(middle: bytes) -> None:
    """Columns 1 and 12 are all that must be well formed on it."""
    record = check(TX.encode() + b";" + middle + b";-1")
    assert isinstance(record, Record), record
    assert (TX, -1) == (record.tx_id, record.sign)


@pytest.mark.parametrize("tx", ["", "tx", some_id(1, 31), some_id(1, 33), "№"])
def test_a_rollback_of_no_id_is_refused(tx: str) -> None:
    """It would take back nothing that anybody can name."""
    reject = reject_of(VOTE.having(tx=tx, rollback="-1"))
    assert ("nestedTxId", "base58", tx) == (reject.field, reject.kind, reject.value)


@pytest.mark.parametrize("raw", [f"{TX};-1".encode(), f"{TX};;;;;;;;;;-1".encode(), b"-1"])
def test_a_rollback_with_too_few_columns_is_refused(raw: bytes) -> None:
    """Without the other semicolons nobody knows which column says −1."""
    assert reject_of(raw).kind == "columns"


@pytest.mark.parametrize("size", [32, 31, 33, 64])
@pytest.mark.parametrize("zeros", [0, 1, 2, 30])
def test_an_id_is_good_when_it_decodes_to_32_bytes(size: int, zeros: int) -> None:
    """44 characters mostly, 43 or 42 sometimes, fewer still at millions of transactions."""
    tx = base58.b58encode(b"\0" * zeros + b"\x7f" * (size - zeros)).decode()
    if size == 32:
        assert tx == values_of(VOTE.having(tx=tx))["tx_id"]
    else:
        reject = reject_of(VOTE.having(tx=tx))
        assert ("nestedTxId", "base58", tx) == (reject.field, reject.kind, reject.value)


def test_an_empty_signature_is_a_bad_signature_and_a_good_row() -> None:
    """Only a signature may be empty; a sender may not."""
    assert values_of(VOTE.having(signature=""))["signature"] == ""
    assert reject_of(VOTE.having(sender="")).field == "senderPublicKey"


BAD_CELLS = [
    ("nestedTxId", {"tx": ""}),
    ("nestedTxId", {"tx": f" {TX}"}),
    ("type", {"type": "105"}),
    ("type", {"type": ""}),
    ("type", {"type": "0104"}),
    ("type", {"type": "abc"}),
    ("signature", {"signature": "x"}),
    ("signature", {"signature": TX}),
    ("version", {"version": ""}),
    ("version", {"version": "4.0"}),
    ("version", {"version": "1" * 19}),
    ("version", {"version": "٤"}),
    ("ts", {"ts": ""}),
    ("ts", {"ts": "-1"}),
    ("ts", {"ts": "yesterday"}),
    ("ts", {"ts": "253370764800000"}),
    ("ts", {"ts": "9" * 15}),
    ("ts", {"ts": "9" * 4301}),
    ("senderPublicKey", {"sender": TX}),
    ("fee", {"fee": "free"}),
    ("feeAssetId", {"fee_asset": "x" * 101}),
    ("params", {"params": ""}),
    ("params", {"params": "17"}),
    ("params", {"params": '[{"key":"a"]'}),
    ("params", {"params": "[1,2]"}),
    ("params", {"params": "[null]"}),
    ("params", {"params": '{"key":"a"},7'}),
    ("params.0.key", {"params": [{"stringValue": "a"}]}),
    ("params.0.key", {"params": [{"key": 1}]}),
    ("params.0.stringValue", {"params": [{"key": "a", "stringValue": 1}]}),
    ("params.0.boolValue", {"params": [{"key": "a", "boolValue": "true"}]}),
    ("params.0.boolValue", {"params": [{"key": "a", "boolValue": 1}]}),
    ("params.0.intValue", {"params": [{"key": "a", "intValue": "x"}]}),
    ("params.0.intValue", {"params": [{"key": "a", "intValue": "1" * 19}]}),
    ("params.0.intValue", {"params": [{"key": "a", "intValue": True}]}),
    ("params.0.intValue", {"params": [{"key": "a", "intValue": 1.5}]}),
    ("params.0.intValue", {"params": [{"key": "a", "intValue": []}]}),
    ("params.0.binaryValue", {"params": [{"key": "a", "binaryValue": 1}]}),
    ("diff", {"diff": "{}}"}),
    ("diff.1.key", {"diff": [{"key": "a"}, {}]}),
    ("extra", {"extra": "[]"}),
    ("extra", {"extra": "{"}),
    ("extra", {"extra": ""}),
]


@pytest.mark.parametrize(("field", "cells"), BAD_CELLS)
def test_a_bad_cell_is_named(field: str, cells: dict[str, Any]) -> None:
    """The field where it stands, and what stands there."""
    reject = reject_of(PLAIN.having(**cells))
    assert field == reject.field
    if reject.value is not None and "." not in field:
        assert str(*cells.values())[:200] in (reject.value, f"[{reject.value}]", reject.value[1:-1])


@pytest.mark.parametrize("type_", ["103", "104"])
def test_only_creates_and_calls_are_transactions(type_: str) -> None:
    """Only the operation is open, the type is not."""
    assert int(type_) == values_of(PLAIN.having(type=type_))["tx_type"]


@pytest.mark.parametrize("number", [0, 1, 1725600087123, 253370764799999])
def test_a_moment_is_exact_to_the_millisecond(number: int) -> None:
    """UTC, from 1970 to the year 9998: the hour after it must exist, too."""
    timestamp = values_of(PLAIN.having(ts=str(number)))["timestamp"]
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number) == timestamp
    assert timestamp + timedelta(days=1)


def test_a_moment_needs_no_float() -> None:
    """0.1 s and 0.3 s are where binary fractions go wrong."""
    assert [moment_of(number).microsecond for number in (100, 299, 300, 999)] == [
        100_000, 299_000, 300_000, 999_000,
    ]  # fmt: skip


@pytest.mark.parametrize("value", [123, "123", 0, -5, "-5", (1 << 63) - 1, -(1 << 63)])
def test_an_int_value_may_be_a_number_or_its_text(value: int | str) -> None:
    """A JSON number in third-party code, text elsewhere."""
    params = [*call("x"), {"key": "n", "intValue": value}]
    assert params == json.loads(values_of(Cells(params=params))["raw_data"])


@given(st.one_of(st.binary(max_size=40), st.text("AZaz09+/=-_ \n№", max_size=12).map(str.encode)))
def test_base64_is_judged_as_decoding_judges_it(data: bytes) -> None:
    """Alphabet, length and padding; no white space, no URL alphabet."""
    for text in (data.decode("utf-8", "replace"), base64.b64encode(data).decode()):
        try:
            binascii.a2b_base64(text.encode(), strict_mode=True)
            is_good = text.isascii()
        except ValueError:
            is_good = False
        outcome = check(PLAIN.having(params=[*call("x"), {"key": "b", "binaryValue": text}]))
        if "\x00" not in text:
            assert is_good == isinstance(outcome, Record), text


@pytest.mark.parametrize("text", ["a", "AA=", "AA==AA==", "====", "A===", "AA-_", "AA\n=", "ЖЖЖЖ"])
def test_what_is_not_plain_base64_is_refused(text: str) -> None:
    """Bad letters and bad lengths."""
    reject = reject_of(PLAIN.having(params=[{"key": "vote", "binaryValue": text}]))
    assert ("params.0.binaryValue", "base64", text) == (reject.field, reject.kind, reject.value)


# ── the form of a row ─────────────────────────────────────────────────────


@pytest.mark.parametrize("raw", [b"", b"   ", b"\t", b"\r"])
def test_a_blank_line_is_nothing(raw: bytes) -> None:
    """Counted, neither stored nor refused."""
    assert Blank(5, 1000 + len(raw) + 1) == check(raw)


def test_a_header_line_is_refused() -> None:
    """Exports have none; one costs one row."""
    reject = reject_of(";".join(COLUMNS).encode())
    assert ("nestedTxId", "nestedTxId") == (reject.field, reject.value)


@pytest.mark.parametrize("columns", [1, 2, 11, 13, 14])
def test_columns_must_be_twelve(columns: int) -> None:
    """The number that was found is said."""
    cells = VOTE.raw().split(b";")
    cells = [*cells[:5], *([b"x"] * (columns - 12)), *cells[5 : min(columns, 12)]][:columns]
    reject = reject_of(b";".join(cells))
    assert reject.kind == "columns"
    assert f"{columns} columns, not 12" in reject.reason


def test_a_bare_sequence_is_a_list() -> None:
    """`{…},{…}` without brackets; it is stored with them."""
    bare = VOTE.having(params=json.dumps(VOTE.params)[1:-1], diff=json.dumps(VOTE.diff)[1:-1])
    assert values_of(VOTE)["tally"] == values_of(bare)["tally"]
    assert VOTE.params == json.loads(values_of(bare)["raw_data"])
    assert VOTE.diff == json.loads(values_of(bare)["operation_data"])


@pytest.mark.parametrize("text", ["a;b", ";", '";"', '\\";', "\\", ";;;;;", '[{"x":"1;2"}];[];'])
def test_a_raw_semicolon_in_json_is_put_together(text: str) -> None:
    """Better read than refused: semicolons inside strings part nothing."""
    params, diff = call("x", note=text, other=f"{text};"), entries(RESULT=text)
    cells = PLAIN.having(params=params, diff=diff, extra={"a": text})
    values = values_of(cells)
    assert params == json.loads(values["raw_data"])
    assert diff == json.loads(values["operation_data"])
    assert {"a": text} == json.loads(values["extra"])


def test_an_escaped_semicolon_is_a_semicolon() -> None:
    """The way the exports write it."""
    values = values_of(PLAIN.having(diff=r'[{"key":"a","stringValue":"x\u003by"}]'))
    assert json.loads(values["operation_data"])[0]["stringValue"] == "x;y"


@pytest.mark.parametrize("end", ["", "\\", '"'])
def test_a_string_that_never_ends_is_looked_through_once(end: str) -> None:
    """Were each escaped quote in it tried as a beginning, this would take hours."""
    raw = PLAIN.having(params=";", diff='"' + '\\"' * 500_000 + end).raw()
    began = time.process_time()
    assert isinstance(check(PLAIN.having(params=";")), Reject)
    assert reject_of(raw).reason
    assert time.process_time() - began < 5


def test_a_million_semicolons_are_refused_in_one_pass() -> None:
    """Trying every way to put them together would take for ever."""
    began = time.process_time()
    for params in (";" * 1_000_000, '"\\";' * 300_000, '[";",' * 200_000):
        assert isinstance(check(PLAIN.having(params=params)), Reject)
    assert time.process_time() - began < 3


# ── what a database cannot hold ───────────────────────────────────────────

DEEP = "[" * 63 + "]" * 63
UNSTORABLE: dict[str, str] = {
    "an escaped NUL": r'{"key":"a","stringValue":"\u0000"}',
    "a NUL one level deeper": r'{"key":"a","stringValue":"[\"\\u0000\"]"}',
    "a lone high surrogate": r'{"key":"a","stringValue":"\ud800"}',
    "a lone low surrogate": r'{"key":"a","stringValue":"\udc00x"}',
    "surrogates the wrong way round": r'{"key":"a","stringValue":"\udc00\ud800"}',
    "a half pair": r'{"key":"a","stringValue":"\ud83d\u0041"}',
    "a surrogate in a key": r'{"key":"a","\ud800":1}',
    "NaN": '{"key":"a","x":NaN}',
    "Infinity": '{"key":"a","x":-Infinity}',
    "1e400": '{"key":"a","x":1e400}',
    "1e131073": '{"key":"a","x":1e131073}',
    "1e-20000": '{"key":"a","x":1e-20000}',
    "0e-99999": '{"key":"a","x":0e-99999}',
    "0e99999999999": '{"key":"a","x":0E+99999999999}',
    "a fraction without end": '{"key":"a","x":0.' + "1" * 20_000 + "}",
    "more than 64 bits": '{"key":"a","x":9223372036854775808}',
    "fewer than -64 bits": '{"key":"a","x":[{"y":-9223372036854775809}]}',
    "5 000 digits": '{"key":"a","x":' + "1" * 5000 + "}",
    "an intValue beyond 64 bits": '{"key":"a","intValue":9223372036854775808}',
    "NaN behind a second key": '{"key":"a","intValue":NaN,"intValue":1}',
    "1e999999 behind a second key": '{"key":"a","intValue":1e-999999,"intValue":1}',
    "NaN behind a second unknown key": '{"key":"a","x":NaN,"x":1}',
    "1e-99999 in a hidden object": '{"key":"a","x":{"y":1e-99999},"x":1}',
    "1e-99999 behind an escaped key": r'{"key":"a","\u0069ntValue":1e-99999,"intValue":1}',
    "1e-99999 behind quotes": r'{"key":"\\\"\\","intValue":1e-99999,"intValue":1}',
    "too deep": '{"key":"a","x":' + DEEP + "}",
    "too deep behind a second key": '{"key":"a","x":' + DEEP + ',"x":1}',
    "far too deep": '{"key":"a","x":' + "[" * 100_000 + "}",
    "a control character": '{"key":"a","stringValue":"\x01"}',
    "a trailing comma": '{"key":"a","stringValue":"a",}',
    "a comment": '{"key":"a"/**/}',
    "a single quote": "{'key':'a'}",
}


@pytest.mark.parametrize("what", UNSTORABLE)
@pytest.mark.parametrize("column", ["params", "diff", "extra"])
def test_json_that_a_database_refuses_is_refused_first(what: str, column: str) -> None:
    """PostgreSQL would refuse the whole batch, again and again."""
    text = UNSTORABLE[what]
    if column == "extra" and "intValue" in what:
        text = text.replace("intValue", "x")
    cell = text if column == "extra" else f"[{text}]"
    if column == "params":
        cell = f'[{{"key":"operation","stringValue":"x"}},{text}]'
    if column == "extra":
        cell = cell.replace(DEEP, f"[{DEEP}]")
    reject = reject_of(PLAIN.having(**{column: cell}))
    assert (reject.field or column).split(".")[0] == column


@pytest.mark.parametrize(
    "text",
    [
        "1.5",
        "-0.25e+10",
        "1e300",
        "5e-324",
        "123456789012345678",
        "9223372036854775807",
        "-9223372036854775808",
        "[1,2.5,[3],{}]",
        "null",
        "true",
        "-0",
        r'"\ud83d\ude00"',
        '"😀"',
        r'"\u001f\u007f"',
        r'"1e99999 NaN 99999999999999999999"',
        r'"\\u000"',
        DEEP[1:-1],
    ],
)
def test_unknown_keys_are_stored_as_found(text: str) -> None:
    """Whatever JSON they hold, as long as a database can."""
    cell = f'[{{"key":"a","x":{text}}}]'
    extra = '{"x":' + text + "}"
    values = values_of(PLAIN.having(diff=cell, extra=extra))
    assert (cell, extra) == (values["operation_data"], values["extra"])


@pytest.mark.parametrize("where", ["signature", "fee_asset", "params", "extra"])
def test_a_nul_is_refused_wherever_it_stands(where: str) -> None:
    """And the reject itself can be stored."""
    reject = reject_of(PLAIN.raw().replace(vars(PLAIN)["ts"].encode(), b"1\x00"))
    assert reject.kind == "nul"
    cells = PLAIN.having(**{where: "a\x00b"})
    reject = reject_of(cells)
    assert "\x00" not in reject.raw_text
    roomy = Validator(CONTRACT, max_entries=9, raw_text_bytes=9999)
    assert "a\\x00b" in reject_of(cells, roomy).raw_text


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_broken_byte_is_named_with_its_place_in_the_file(end: bytes, mark: bytes) -> None:
    """An editor finds it by the offset, whatever ends the lines."""
    broken = VOTE.raw().replace(b"blindSig", b"blind\xd0Sig", 1)
    data = mark + VOTE.raw() + (end or b"\n") + broken + end
    *_, last = RowReader(io.BytesIO(data), max_line_bytes=1 << 20)
    reject = VALIDATOR.check(last)
    assert isinstance(reject, Reject)
    assert ("encoding", "0xd0") == (reject.kind, reject.value)
    assert f"byte 0xd0 at offset {data.index(bytes([0xD0]))} of the file" in reject.reason


def test_windows_1251_is_refused_and_not_guessed() -> None:
    """Never mojibake in silence."""
    raw = PLAIN.having(params=call("Голос")).raw().decode().encode("cp1251")
    assert reject_of(raw).kind == "encoding"


# ── sizes ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [999, 1000])
def test_entries_up_to_the_limit_are_stored(number: int) -> None:
    """The limit is a setting; here 1 000."""
    params = entries(**{f"k{n}": n for n in range(number)})
    assert params == json.loads(values_of(Cells(params=params))["raw_data"])


@pytest.mark.parametrize("entry", ['{"key":"a"}', "{}", "0", '"a"', "[]", "{},0"])
@pytest.mark.parametrize("number", [1001, 100_000])
@pytest.mark.parametrize("column", ["params", "diff"])
def test_more_entries_than_the_limit_are_refused_cheaply(
    entry: str, number: int, column: str
) -> None:
    """Before they are parsed; a million findings would cost more than a million rows."""
    began = time.process_time()
    reject = reject_of(PLAIN.having(**{column: "[" + ",".join([entry] * number) + "]"}))
    assert (reject.field or "").split(".")[0] == column
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ("{}", "missing"),
        ('{"key":1}', "string_type"),
        ('{"key":"a","intValue":"x","boolValue":3,"binaryValue":"="}', "integer"),
    ],
)
def test_of_many_bad_entries_the_first_is_named_cheaply(entry: str, kind: str) -> None:
    """A finding for each of 150 000 would take half a gigabyte."""
    good = '{"key":"a"},' * 1234
    raw = PLAIN.having(params=f"[{good}{','.join([entry] * 150_000)}]").raw()
    validator = Validator(CONTRACT, max_entries=200_000, raw_text_bytes=9)
    tracemalloc.start()
    reject = validator.check(row_of(raw))
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(reject, Reject)
    assert ("params", kind) == (reject.field, reject.kind)
    assert "entry 1234." in reject.reason
    assert peak < 60 * len(raw)


def test_a_field_up_to_its_limit_is_stored() -> None:
    """One byte more is refused, naming the column; letters of two bytes count twice."""
    for column, text in (("params", "я" * 400), ("extra", "b" * 800)):
        json_text = f'[{{"key":"{text}"}}]' if column == "params" else f'{{"a":"{text}"}}'
        cells = PLAIN.having(**{column: json_text})
        length = len(json_text.encode())
        for most, kind in ((length, None), (length - 1, "field_bytes")):
            validator = Validator(CONTRACT, max_entries=9, raw_text_bytes=9, max_field_bytes=most)
            outcome = validator.check(row_of(cells.raw()))
            assert kind == getattr(outcome, "kind", None)
            assert kind is None or column == getattr(outcome, "field", None)


def test_a_huge_row_of_nothing_costs_little_memory() -> None:
    """20 MB of empty objects are never parsed, neither to check nor to look for a contract."""
    raw = PLAIN.having(params="[" + "{}," * (7 << 20) + '{"key":"contractId"}]').raw()
    tracemalloc.start()
    assert reject_of(raw).kind == "entries"
    assert contract_in_row(row_of(raw)) is None
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * len(raw)


def test_a_field_of_50_mb_is_read() -> None:
    """A voters list holds every hash twice."""
    hashes = json.dumps(["9f" * 32] * 360_000, separators=(",", ":"))
    params = call("addVotersList", userIdHashes=hashes)
    values = values_of(Cells(params=params, diff=entries(VOTERS_LIST_tx=hashes)))
    assert values["persons"] == 360_000


def test_a_line_that_is_too_long_is_refused() -> None:
    """The reader kept its beginning."""
    reject = VALIDATOR.check(Row(5, 10**9, VOTE.raw(), is_too_long=True))
    assert isinstance(reject, Reject)
    assert ("too_long", True) == (reject.kind, reject.is_cut)


def test_depth_is_a_setting() -> None:
    """One level more than allowed is refused."""
    cells = PLAIN.having(extra='{"a":[[1]]}')
    for most, kind in ((3, Record), (2, Reject)):
        validator = Validator(CONTRACT, max_entries=9, raw_text_bytes=9, max_json_depth=most)
        assert isinstance(check(cells, validator), kind)


# ── rejects ───────────────────────────────────────────────────────────────


def test_a_reject_carries_all_that_is_needed_to_argue() -> None:
    """Line, field, value, reason, and the text itself."""
    raw = VOTE.having(ts="yesterday").raw()
    reject = reject_of(raw)
    assert (5, 1000 + len(raw) + 1) == (reject.line, reject.end)
    assert ("ts", "yesterday") == (reject.field, reject.value)
    assert "pattern" in reject.reason
    assert (raw[:200].decode(), True) == (reject.raw_text, reject.is_cut)


@pytest.mark.parametrize(("length", "is_cut"), [(199, False), (200, False), (201, True)])
def test_raw_text_is_cut_at_its_limit_and_says_so(length: int, is_cut: bool) -> None:
    """The limit is a setting; here 200 bytes."""
    reject = reject_of(b"x" * length)
    assert (min(length, 200), is_cut) == (len(reject.raw_text), reject.is_cut)


def test_raw_text_that_is_cut_in_a_letter_is_still_text() -> None:
    """Half a letter is spelt out."""
    reject = reject_of(b"x" + "Ж".encode() * 200)
    assert reject.raw_text.endswith("Ж\\xd0")


def test_a_long_value_is_cut() -> None:
    """200 characters are enough to find it."""
    assert reject_of(PLAIN.having(fee="x" * 1000)).value == "x" * 200


# ── keys and hashes ───────────────────────────────────────────────────────


def hash_of(cells: Cells) -> bytes:
    """The content hash of a good row."""
    record = check(cells)
    assert isinstance(record, Record)
    assert record.content_hash is not None
    return record.content_hash


def test_equal_content_has_one_hash() -> None:
    """The line, the id and the twelfth column are not content."""
    twin = VALIDATOR.check(row_of(VOTE.having(rollback="").raw(), line=99))
    assert isinstance(twin, Record)
    assert hash_of(VOTE) == twin.content_hash == hash_of(VOTE.having(tx=some_id(9)))


@pytest.mark.parametrize(
    "cells",
    [
        {"signature": ""},
        {"version": "5"},
        {"ts": "1725600087124"},
        {"sender": some_id(9, 64)},
        {"fee": "1"},
        {"fee_asset": "x"},
        {"params": call("vote", vote=b"AAAA", blindSig=b"")},
        {"diff": FAIL_VOTE},
        {"extra": "{}"},
    ],
)
def test_another_content_has_another_hash(cells: dict[str, Any]) -> None:
    """Each of the columns 2 to 11 counts."""
    assert hash_of(VOTE) != hash_of(VOTE.having(**cells))


@given(st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_a_transaction_id_is_a_uuid_8_of_its_constituency(contract: int, seed: int) -> None:
    """The first 32 bits are the contract's, so that its rows are neighbours."""
    prefix, tx = constituency_prefix(some_id(contract)), some_id(seed)
    key = transaction_id(prefix, tx)
    assert (8, uuid.RFC_4122) == (key.version, key.variant)
    assert prefix == key.bytes[:4]
    assert hashlib.sha256(some_id(contract).encode()).digest()[:4] == prefix
    assert (seed == contract) == (key == transaction_id(prefix, some_id(contract)))
    assert voter_key(prefix, tx) in BIGINT


# ── the contract that a row tells ─────────────────────────────────────────


def test_a_create_row_tells_its_own_contract() -> None:
    """Its transaction id is the contract id."""
    row = row_of(PLAIN.having(type="103", params="[]").raw())
    assert ToldContract(TX, is_create=True) == contract_in_row(row)


def test_a_voters_list_tells_its_contract() -> None:
    """By its contractId."""
    row = row_of(Cells(params=OF_TABLE["addVotersList"][0]).raw())
    assert ToldContract(CONTRACT, is_create=False) == contract_in_row(row)


@pytest.mark.parametrize(
    "raw",
    [
        VOTE.raw(),
        b"",
        b"103",
        f"{TX};103;torn".encode(),
        PLAIN.having(type="103", tx="x").raw(),
        PLAIN.having(params=call("x", contractId="no id")).raw(),
        PLAIN.having(params=call("x", contractId=5)).raw(),
        b"\xff;103;contractId",
    ],
)
def test_other_rows_tell_no_contract(raw: bytes) -> None:
    """Bad rows neither."""
    assert contract_in_row(row_of(raw)) is None


# ── whatever comes ────────────────────────────────────────────────────────

GOOD = [
    VOTE,
    ISSUE,
    PLAIN.having(type="103", params="[]"),
    *(Cells(params=params, diff=diff) for params, diff, *_ in OF_TABLE.values()),
]
LENGTHS = {
    column.name: column.type.length
    for column in table_of(Transaction).columns
    if isinstance(column.type, String) and column.type.length
}
REJECT_LENGTHS = {
    column.name: column.type.length
    for column in table_of(RejectTable).columns
    if isinstance(column.type, String) and column.type.length
}


def assert_storable(outcome: Outcome) -> None:
    """Both databases hold it: the claim of every property below."""
    if isinstance(outcome, Reject):
        for name in ("field", "kind", "value", "reason", "raw_text"):
            text = getattr(outcome, name) or ""
            assert "\x00" not in text
            assert len(text.encode()) >= len(text)
            assert len(text) <= REJECT_LENGTHS.get(name, len(text))
        return
    if isinstance(outcome, Blank) or outcome.values is None:
        return
    values = outcome.values
    for name in ("extra", "raw_data", "operation_data"):
        text = values[name].encode().decode()
        assert "\x00" not in text
        orjson.loads(text)
        strict_json(text)
    for name in ("type", "fee_asset_id", "sender", "signature", "tx_id", "tally"):
        text = values[name] or ""
        assert "\x00" not in text.encode().decode()
        assert len(text) <= min(LENGTHS.get(name, 100), 100)
    assert values["tx_type"] in SMALLINT
    assert (values["persons"] or 0) in INTEGER
    assert all((values[name] or 0) in BIGINT for name in ("version", "fee", "voter_key"))
    assert 1970 <= values["timestamp"].year <= 9998


def strict_json(text: str) -> Any:
    """Parse as PostgreSQL does: no NaN, no NUL, no half surrogates, numbers of its range."""
    value = json.loads(text, parse_constant=refuse, parse_int=numeric, parse_float=numeric)
    written = json.dumps(value, ensure_ascii=False)
    assert "\\u0000" not in written
    assert written.encode()
    return value


def refuse(constant: str) -> None:
    """NaN and Infinity are not JSON."""
    pytest.fail(f"{constant} is not JSON")


def numeric(text: str) -> float:
    """The range of PostgreSQL's numeric, by its text."""
    mantissa, _, exponent = text.lower().partition("e")
    places = len(mantissa.partition(".")[2])
    assert -16_383 <= int(exponent or "0") - places
    assert len(mantissa) + int(exponent or "0") <= 131_072
    return float(text)


many = settings(max_examples=120)


@many
@given(st.one_of(st.binary(), st.text('01-;[]{}":,\\u0\x00eN', max_size=80).map(str.encode)))
def test_no_bytes_break_the_check(raw: bytes) -> None:
    """Every line is a record, a reject or a blank; none is an exception."""
    assert_storable(check(raw))
    assert_storable(check(TX.encode() + b";104;" + raw))
    contract_in_row(row_of(raw))


edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.binary(max_size=3)),
    min_size=1,
    max_size=4,
)


@many
@given(cells=st.sampled_from(GOOD), edits=edits)
def test_no_mutation_of_bytes_breaks_the_check(
    cells: Cells, edits: list[tuple[float, int, bytes]]
) -> None:
    """Bytes are lost, changed or put in anywhere in a good row."""
    raw = cells.raw()
    for place, lost, put in edits:
        at = int(place * len(raw))
        raw = raw[:at] + put + raw[at + lost :]
    assert_storable(check(raw))
    contract_in_row(row_of(raw))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["\x00", "\ud800", "\\u0000", ";", '"', "vote", "FAIL_", "[1,2]", "9" * 30]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
known_keys = st.sampled_from(
    ["key", "stringValue", "intValue", "boolValue", "binaryValue", "x", "operation", "vote"]
)
some_entries = st.lists(st.dictionaries(known_keys, anything, max_size=4), max_size=4)


@many
@given(
    cells=st.sampled_from(GOOD),
    column=st.sampled_from(["params", "diff", "extra"]),
    value=st.one_of(anything, some_entries, some_entries),
    is_kept=st.booleans(),
    is_ascii=st.booleans(),
)
def test_no_mutation_of_json_breaks_the_check(
    cells: Cells, column: str, value: Any, is_kept: bool, is_ascii: bool
) -> None:
    """Whatever JSON stands in a column, alone or behind what belongs there."""
    if is_kept and isinstance(vars(cells)[column], list) and isinstance(value, list):
        value = [*vars(cells)[column], *value]
    text = json.dumps(value, ensure_ascii=is_ascii)
    raw = cells.having(**{column: "\ufffc"}).raw()
    raw = raw.replace("\ufffc".encode(), text.encode("utf-8", "surrogatepass"))
    assert_storable(check(raw))


numbers = st.from_regex(r"\A-?[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,6})?\Z")


@many
@given(number=numbers, hidden=st.booleans(), column=st.sampled_from(["diff", "extra"]))
def test_every_number_that_passes_can_be_stored(number: str, hidden: bool, column: str) -> None:
    """Hidden behind a second key of its name, or plain to see."""
    entry = f'{{"key":"a","x":{number}' + (',"x":1}' if hidden else "}")
    outcome = check(PLAIN.having(**{column: entry if column == "extra" else f"[{entry}]"}))
    assert_storable(outcome)
    if isinstance(outcome, Record):
        assert outcome.values is not None
        pairs = json.loads(entry, object_pairs_hook=list, parse_int=numeric, parse_float=numeric)
        assert len(pairs) == 2 + hidden


@many
@given(
    cells=st.sampled_from(GOOD),
    index=st.integers(0, 11),
    text=st.one_of(st.text(max_size=20), st.from_regex(r"\A-?[0-9]{1,25}\Z")),
)
def test_no_mutation_of_a_cell_breaks_the_check(cells: Cells, index: int, text: str) -> None:
    """Any text in any of the twelve."""
    columns = cells.raw().decode().split(";")
    columns[index] = text
    assert_storable(check(";".join(columns).encode()))


# ── the usual form ────────────────────────────────────────────────────────

ODD_ENTRIES = (
    '[{"key":"operation","stringValue":"vote","stringValue":"results"}]',
    '[{"key":"a","key":"operation","stringValue":"vote"}]',
    '[{"key":"n","intValue":1e3}]',
    '[{"key":"n","intValue":9223372036854775808}]',
    '[{"key":"n","intValue":"12"}]',
    '[{"key":"n","intValue":NaN}]',
    '[{"key":"n","stringValue":null}]',
    '[{"key":"n","stringValue":"\\ud800"}]',
    '[{"key":"n","binaryValue":"A==="}]',
    '[{"key":"n","new":[[1]]}]',
    '[{"key": "n"}]',
    "[]x",
)


def cells_of(cells: Cells) -> list[str]:
    """The twelve cells as the parser is given them."""
    return split_cells(cells.raw().decode())


def test_an_ordinary_row_is_of_the_usual_form() -> None:
    """Else every row would be checked twice."""
    assert parse_usual_row(cells_of(VOTE)) is not None


@pytest.mark.parametrize("entries", ODD_ENTRIES)
def test_entries_of_another_form_are_not_taken_for_usual(entries: str) -> None:
    """They are parsed by the one that knows what to make of them."""
    assert parse_usual_row(cells_of(VOTE.having(params=entries))) is None


@pytest.mark.parametrize("operation", OF_TABLE)
def test_a_row_of_the_usual_form_would_be_read_the_same_as_any(operation: str) -> None:
    """The quick way is only quicker."""
    params, diff, *_ = OF_TABLE[operation]
    cells = cells_of(VOTE.having(params=params, diff=diff))
    usual = parse_usual_row(cells)
    assert usual is not None
    assert parse_any_row(cells) | {"extra": cells[10]} == dict(
        zip(COLUMNS[:11], usual, strict=False)
    )


texts_in_entries = st.text(st.sampled_from('a"\\u0\x00\t\u0416\U0001f5f3;'), max_size=12)


@many
@given(
    cells=st.sampled_from(GOOD),
    index=st.integers(0, 11),
    text=st.one_of(st.text(max_size=20), st.sampled_from(["", "0", "1", "-1", "{}", "[]"])),
    key=texts_in_entries,
    value=texts_in_entries,
    is_cell=st.booleans(),
    is_ascii=st.booleans(),
)
def test_the_quick_way_finds_what_the_other_finds(
    cells: Cells, index: int, text: str, key: str, value: str, is_cell: bool, is_ascii: bool
) -> None:
    """Or leaves the row to it: whatever stands in a cell or in an entry."""
    entry = json.dumps(
        [{"key": key, "stringValue": value}], separators=(",", ":"), ensure_ascii=is_ascii
    )
    columns = cells.having(**({} if is_cell else {"diff": entry})).raw().decode().split(";")
    if is_cell:
        columns[index] = text
    raw = ";".join(columns).encode()
    with pytest.MonkeyPatch.context() as patch:
        quick = check(raw)
        patch.setattr(Validator, "_usual_record", lambda *_: None)
        assert check(raw) == quick


def test_nul_is_refused_however_deep_it_is_quoted_in_a_row_of_the_usual_form() -> None:
    """JSON inside of JSON is stored once more where results are read."""
    for quoted in ("\\u0000", "\\\\u0000", "\\\\\\\\u0000"):
        outcome = check(VOTE.having(diff=f'[{{"key":"VOTE_","stringValue":"{quoted}"}}]'))
        assert isinstance(outcome, Reject)
        assert outcome.kind == "nul"
