"""Rows that a reader must refuse, one of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .contest import Contest
from .rows import Row, call_row, compact, entries, issue_row, vote_row

HEADER = (
    "nestedTxId;type;signature;version;ts;senderPublicKey;fee;feeAssetId;params;diff;extra;rollback"
)


def bad_rows(contest: Contest, ts: int) -> Iterator[tuple[str, bytes]]:
    """Pairs of what is wrong and the line; the header, which belongs on top, comes first."""
    yield "header line", HEADER.encode()
    yield from _wrong_columns(contest, ts)
    yield from _wrong_json(contest, ts)
    yield from _missing_keys(contest, ts)
    yield from _wrong_bytes(contest, ts)


def cheap_bad_row(contest: Contest) -> bytes:
    """A short line with too few columns."""
    return f"{contest.mint.tx_id()};104;torn line".encode()


def _wrong_columns(contest: Contest, ts: int) -> Iterator[tuple[str, bytes]]:
    def row() -> Row:
        return issue_row(contest.mint, contest.office, ts)

    columns = row().text().split(b";")
    yield "11 columns", b";".join(columns[:10] + columns[11:])
    # Between ts and sender, so that no joining of JSON parts can put the row together.
    yield "13 columns", b";".join([*columns[:5], b"what?", *columns[5:]])
    yield "id not base58", replace(row(), tx_id="0OIl" + contest.mint.tx_id()[4:]).text()
    yield "id of 31 bytes", replace(row(), tx_id="1" * 8 + "z" * 31).text()
    yield "id of 33 bytes", replace(row(), tx_id="z" * 44).text()
    yield "type 105", replace(row(), tx_type="105").text()
    yield "type abc", replace(row(), tx_type="abc").text()
    yield "ts not a number", replace(row(), ts="yesterday").text()


def _wrong_json(contest: Contest, ts: int) -> Iterator[tuple[str, bytes]]:
    row = issue_row(contest.mint, contest.office, ts)
    yield "params not closed", replace(row, params=row.params[:-9]).text()
    row = issue_row(contest.mint, contest.office, ts)
    yield "params not a list", replace(row, params="17").text()
    row = vote_row(contest.mint, contest.office, ts)
    broken = row.params.replace('"binaryValue":"', '"binaryValue":"@@', 1)
    yield "vote not base64", replace(row, params=broken).text()


def _missing_keys(contest: Contest, ts: int) -> Iterator[tuple[str, bytes]]:
    mint, office = contest.mint, contest.office
    ballot = mint.rng.bytes(64)
    vote = vote_row(mint, office, ts)
    yield (
        "vote without vote",
        replace(vote, params=entries(operation="vote", blindSig=ballot)).text(),
    )
    vote = vote_row(mint, office, ts)
    yield (
        "vote without blindSig",
        replace(vote, params=entries(operation="vote", vote=ballot)).text(),
    )
    for operation, key in (
        ("blindSigIssue", "data"),
        ("addVotersList", "userIdHashes"),
        ("addToVotersList", "userIdHashes"),
        ("results", "results"),
    ):
        params, diff = entries(operation=operation), entries(NOTHING=compact([]))
        row = call_row(mint, office, operation, ts, params=params, diff=diff)
        yield f"{operation} without {key}", row.text()


def _wrong_bytes(contest: Contest, ts: int) -> Iterator[tuple[str, bytes]]:
    for what, byte in (("invalid UTF-8", b"\xff"), ("NUL", b"\x00")):
        row = issue_row(contest.mint, contest.office, ts)
        noted = row.params[:-1] + ',{"key":"note","stringValue":"@"}]'
        yield what, replace(row, params=noted).text().replace(b'"@"', b'"' + byte + b'"')
