"""CSV rows: plain ballots in blocks, and single rows that can be bent into any shape."""

from __future__ import annotations

import base64
import json
from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .ids import Mint, base58_texts

BLIND_SIGNATURE_BYTES = 128
MASKED_SIGNATURE_BYTES = 256

_VOTE = (
    b'%b;104;%b;4;%d;%b;0;;[{"key":"operation","stringValue":"vote"},'
    b'{"key":"vote","binaryValue":"%b"},{"key":"blindSig","binaryValue":"%b"}];'
    b'[{"key":"VOTE_%b","stringValue":"{\\"vote\\":\\"%b\\",\\"blindSig\\":\\"%b\\"}"}];'
    b'{"contractVersion":1};1'
)
_ISSUE = (
    b'%b;104;%b;4;%d;%b;0;;[{"key":"operation","stringValue":"blindSigIssue"},'
    b'{"key":"data","stringValue":"%b"},{"key":"primaryUikRegionCode","stringValue":"%b"},'
    b'{"key":"primaryUikNumber","intValue":%d}];[{"key":"BLINDSIG_%b","stringValue":"%b"}];'
    b'{"contractVersion":1};1'
)
_ISSUE_DATA = b'[{\\"userId\\":\\"%b\\",\\"maskedSig\\":\\"%b\\"}]'


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """What the rows of one constituency have in common."""

    contract: str
    region_code: str
    uik: int
    options: int
    server: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One transaction's columns; `params` and `diff` are JSON texts as they stand in the row."""

    tx_id: str
    operation: str
    signature: str
    ts: int | str
    sender: str
    params: str
    diff: str
    tx_type: str = "104"
    version: str = "4"
    extra: str = '{"contractVersion":1}'

    def text(self, rollback: str = "1") -> bytes:
        """The CSV line without its end; `rollback` is column 12."""
        columns = (
            *(self.tx_id, self.tx_type, self.signature, self.version, str(self.ts), self.sender),
            *("0", "", self.params, self.diff, self.extra, rollback),
        )
        return ";".join(columns).encode()

    @property
    def failed(self) -> bool:
        """Whether the diff says FAIL."""
        return self.diff.startswith('[{"key":"FAIL_')


def ballot_bytes(options: int) -> int:
    """Size of a vote for one question, before base64."""
    return 349 * options + 214


def plain_rows(
    rng: np.random.Generator, office: Office, ts: Sequence[int], is_vote: Sequence[bool]
) -> list[bytes]:
    """Accepted issues and votes, one line each, in the order given."""
    votes = sum(is_vote)
    ids = iter(base58_texts(rng, len(ts), 32))
    signatures = iter(base58_texts(rng, len(ts), 64))
    senders = iter(base58_texts(rng, votes, 64))
    size = ballot_bytes(office.options)
    ballots = memoryview(rng.bytes(votes * (size + BLIND_SIGNATURE_BYTES)))
    issues = rng.bytes((len(ts) - votes) * (32 + MASKED_SIGNATURE_BYTES)).hex().encode()
    server, code, uik = office.server.encode(), office.region_code.encode(), office.uik
    lines = []
    at_ballot = at_issue = 0
    for tx, signature, when, voted in zip(ids, signatures, ts, is_vote, strict=True):
        if voted:
            end = at_ballot + size + BLIND_SIGNATURE_BYTES
            vote = b2a_base64(ballots[at_ballot : at_ballot + size], newline=False)
            blind = ballots[at_ballot + size : end]
            at_ballot, key = end, next(senders)
            blind_text, blind_hex = b2a_base64(blind, newline=False), blind.hex().encode()
            lines.append(_VOTE % (tx, signature, when, key, vote, blind_text, key, tx, blind_hex))
        else:
            end = at_issue + 2 * (32 + MASKED_SIGNATURE_BYTES)
            data = _ISSUE_DATA % (issues[at_issue : at_issue + 64], issues[at_issue + 64 : end])
            at_issue = end
            lines.append(_ISSUE % (tx, signature, when, server, data, code, uik, tx, data))
    return lines


def compact(value: object) -> str:
    """JSON as the exports write it: no spaces, and a semicolon as its escape."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace(";", "\\u003b")


def entries(**values: str | int | bool | bytes) -> str:
    """A JSON list of entries, the kind of each taken from its value."""
    return compact([_entry(key, value) for key, value in values.items()])


def _entry(key: str, value: str | float | bytes) -> dict[str, object]:
    if isinstance(value, bytes):
        return {"key": key, "binaryValue": base64.b64encode(value).decode()}
    if isinstance(value, bool):
        return {"key": key, "boolValue": value}
    return {"key": key, "stringValue" if isinstance(value, str) else "intValue": value}


def call_row(mint: Mint, office: Office, operation: str, ts: int, *, params: str, diff: str) -> Row:
    """A call by the server of a constituency."""
    return Row(
        tx_id=mint.tx_id(),
        operation=operation,
        signature=mint.key(),
        ts=ts,
        sender=office.server,
        params=params,
        diff=diff,
    )


def issue_row(mint: Mint, office: Office, ts: int, *, failure: str = "") -> Row:
    """A blindSigIssue; `failure` is the message of a rejected one."""
    tx_id = mint.tx_id()
    data = compact([{"userId": mint.hex(32), "maskedSig": mint.hex(MASKED_SIGNATURE_BYTES)}])
    params = entries(
        operation="blindSigIssue",
        data=data,
        primaryUikRegionCode=office.region_code,
        primaryUikNumber=office.uik,
    )
    diff = {f"FAIL_{tx_id}_blindSig": failure} if failure else {f"BLINDSIG_{tx_id}": data}
    row = call_row(mint, office, "blindSigIssue", ts, params=params, diff=entries(**diff))
    return replace(row, tx_id=tx_id)


def vote_row(
    mint: Mint, office: Office, ts: int, *, failure: str = "", sender: str = "", tx_id: str = ""
) -> Row:
    """A vote, by a key of its own unless `sender` is given; `failure` is the reason of a FAIL."""
    tx_id, sender = tx_id or mint.tx_id(), sender or mint.key()
    blind = mint.rng.bytes(BLIND_SIGNATURE_BYTES)
    ballot = mint.rng.bytes(ballot_bytes(office.options))
    row = Row(
        tx_id=tx_id,
        operation="vote",
        signature=mint.key(),
        ts=ts,
        sender=sender,
        params=entries(operation="vote", vote=ballot, blindSig=blind),
        diff=entries(**{f"VOTE_{sender}": compact({"vote": tx_id, "blindSig": blind.hex()})}),
    )
    return failed_vote(mint, row, failure) if failure else row


def failed_vote(mint: Mint, row: Row, reason: str) -> Row:
    """The same vote as the chain writes it when it refuses it."""
    address = "3" + mint.key()[:34]
    message = compact({"reason": reason, "senderPublicKey": row.sender})
    return replace(row, diff=entries(**{f"FAIL_{address}_{row.tx_id}_vote": message}))
