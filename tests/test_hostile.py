"""Hostile files, dropped as any other: each costs what its promise says, and nothing more."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, make_url, select, text
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import (
    Alert,
    Constituency,
    FileProcessing,
    HourlyStats,
    Reject,
    Sighting,
    Transaction,
    table_of,
)
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.ledger import owner_name

from .conftest import Clock, Did, DropFile, Voting, csv_of, terms_in, zip_of
from .oracle import unsound
from .running import ONCE, Running, Start, environment, is_empty, jobs_on, open_sessions, soon
from .test_read import HOSTILE as TRICKY_ZIPS
from .test_read import LIMITS as LIMITS_OF_READ
from .test_read import zipped

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

Sessions = sessionmaker[Session]
MANY = 1 << 20


def count(sessions: Sessions, *models: type[Any]) -> list[int]:
    """How many rows these tables have."""
    with sessions() as session:
        return [
            session.scalar(select(func.count()).select_from(table_of(model))) or 0
            for model in models
        ]


def reason_of(folder: Path, job: FileProcessing) -> str:
    """What stands in the reason file beside a quarantined file."""
    return (folder / "quarantine" / f"{job.path}.reason.txt").read_text(encoding="utf-8")


def with_cells(row: str, **cells: str) -> str:
    """A row with other cells, named `c` and their number from one."""
    parts = row.split(";")
    for name, cell in cells.items():
        parts[int(name[1:]) - 1] = cell
    return ";".join(parts)


def entry(value: str) -> str:
    """A params cell with a text value, written as it stands."""
    return f'[{{"key":"operation","stringValue":"new"}},{{"key":"a","stringValue":"{value}"}}]'


# ── rows ──────────────────────────────────────────────────────────────────

# Each cell costs its row: (column, cell, field of the reject, kind of the reject).
BAD: dict[str, tuple[str, str, str | None, str]] = {
    "a NUL character": ("c8", "a\0b", None, "nul"),
    "a NUL as an escape": ("c9", entry("\\u0000"), None, "nul"),
    "a lone surrogate": ("c9", entry("\\ud800"), "params", "json_invalid"),
    "a lone low surrogate in a key": ("c11", '{"\\udc00":1}', "extra", "json_invalid"),
    "JSON that never ends": ("c9", '[{"key":"a"', "params", "json_invalid"),
    "no JSON": ("c10", "{}}", "diff", "json_invalid"),
    "NaN": ("c9", '[{"key":"a","x":NaN}]', "params", "json_invalid"),
    "Infinity": ("c11", '{"x":-Infinity}', "extra", "json_invalid"),
    "1e400": ("c11", '{"x":1e400}', "extra", "json_invalid"),
    "a hidden 0e-99999": ("c9", '[{"key":"a","x":0e-99999,"x":1}]', "params", "number"),
    "a number with 65 digits": ("c11", f'{{"x":{"9" * 65}}}', "extra", "number"),
    "a number with 50 000 digits": ("c11", f'{{"x":{"9" * 50_000}}}', "extra", "json_invalid"),
    "an intValue beyond 64 bits": (
        "c9",
        f'[{{"key":"a","intValue":{1 << 63}}}]',
        "params.0.intValue",
        "integer",
    ),
    "100 000 entries and more": ("c9", f"[{'{},' * 200_001}{{}}]", "params", "entries"),
    "100 000 bad entries": ("c9", f"[{'{},' * 100_000}{{}}]", "params", "missing"),
    "a list 100 000 deep": ("c9", "[" * 100_000 + "]" * 100_000, "params", "depth"),
    "an object 65 deep": ("c11", '{"a":' * 65 + "1" + "}" * 65, "extra", "depth"),
    "an operation of a megabyte": (
        "c9",
        f'[{{"key":"operation","stringValue":"{"x" * MANY}"}}]',
        "params.operation",
        "operation",
    ),
    "a million escaped quotes in a string without end": (
        "c9",
        ';"' + '\\"' * MANY + "\\",
        None,
        "columns",
    ),
    "a million semicolons": ("c9", ";" * MANY, None, "columns"),
    "a cell too few": ("c12", "", None, "columns"),
    "a negative moment": ("c5", "-1", "ts", "string_pattern_mismatch"),
    "the year 33658": ("c5", "999999999999999", "ts", "moment"),
    "a moment beyond 64 bits": ("c5", "9" * 20, "ts", "string_pattern_mismatch"),
    "a version beyond 64 bits": ("c4", "9" * 19, "version", "string_pattern_mismatch"),
    "a fee that is a float": ("c7", "1e3", "fee", "string_pattern_mismatch"),
    "an id of a megabyte": ("c1", "z" * MANY, "nestedTxId", "base58"),
    "an id that is a formula": ("c1", "=cmd|' /C calc'!A0", "nestedTxId", "base58"),
    "a letter of windows-1251": ("c8", "\udcdf", None, "encoding"),
    "an over-long way to write a slash": ("c8", "\udcc0\udcaf", None, "encoding"),
    "half of a character as bytes": ("c8", "\udced\udca0\udc80", None, "encoding"),
}

# Each of these is odd, and still a row.
ODD: dict[str, tuple[str, str]] = {
    "the first moment": ("c5", "0"),
    "the last moment": ("c5", "253370764799999"),
    "the greatest version": ("c4", "9" * 18),
    "the least fee": ("c7", "-" + "9" * 18),
    "no signature": ("c3", ""),
    "a million combining characters": ("c9", entry("a" + "\u0301" * MANY)),
    "escape codes": ("c8", "\x1b[2J\x1b]8\x07\u202e"),
    "keys twice": ("c11", '{"a":1,"a":{"b":2},"__proto__":[]}'),
    "a NUL by the number of its backslash": ("c9", entry("\\u005cu0000")),
    "a pair of surrogates": ("c9", entry("\\ud83d\\ude00")),
    "the greatest integers": ("c11", f'{{"a":{(1 << 63) - 1},"b":{-(1 << 63)}}}'),
    "a very small number": ("c11", '{"a":1e-300}'),
    "an operation of 100 letters": ("c9", f'[{{"key":"operation","stringValue":"{"я" * 100}"}}]'),
    "half a row of 64 levels": ("c11", '{"a":' * 64 + "1" + "}" * 64),
}


def bytes_of(rows: list[str]) -> bytes:
    """A CSV; a surrogate stands for a byte that is no UTF-8."""
    return "".join(f"{row}\n" for row in rows).encode("utf-8", "surrogateescape")


@pytest.mark.promise(14, 18)
def test_every_bad_row_costs_itself(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """File, line, field, kind, reason and raw text are kept; both neighbours are stored."""
    ingest.terms = replace(ingest.terms, max_reject_ratio=1)
    rows = [voting.vote(480)]
    for column, cell, _field, kind in BAD.values():
        bad = with_cells(voting.vote(480), **{column: cell})
        if kind == "columns" and not cell:
            bad = bad.rsplit(";", 1)[0]
        rows += [bad, voting.vote(481)]
    (job,) = ingest.take(drop_file(voting.name(8), bytes_of(rows)))
    expected = [
        (2 * number, field, kind)
        for number, (_column, _cell, field, kind) in enumerate(BAD.values(), 1)
    ]
    with sessions() as session:
        found = session.scalars(select(Reject).order_by(Reject.line_number)).all()
        lines = set(session.scalars(select(Transaction.line_number)))
    assert expected == [(reject.line_number, reject.field, reject.kind) for reject in found]
    assert all(reject.reason and reject.raw_text for reject in found)
    assert set(range(1, 2 * len(BAD) + 2, 2)) == lines
    assert ("completed", len(BAD) + 1, len(BAD)) == (
        job.status,
        job.rows_stored,
        job.rows_rejected,
    )
    assert [] == unsound(sessions)
    did(f"{len(BAD)} kinds of bad rows, each between two good ones", rows=len(rows))


@pytest.mark.promise(18)
def test_every_odd_row_is_stored_as_it_stands(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """What no database refuses is no reason to refuse a ballot."""
    rows = [with_cells(voting.row("new", 480), **{c: cell}) for c, cell in ODD.values()]
    (job,) = ingest.take(drop_file(voting.name(8), bytes_of(rows)))
    assert ("completed", len(ODD), 0) == (job.status, job.rows_stored, job.rows_rejected)
    with sessions() as session:
        stored = list(session.scalars(select(Transaction).order_by(Transaction.line_number)))
    for row, transaction in zip(rows, stored, strict=True):
        cells = row.split(";")
        assert (int(cells[3]), int(cells[6])) == (transaction.version, transaction.fee)
        assert (cells[7], cells[2]) == (transaction.fee_asset_id, transaction.signature)
        assert int(cells[4]) == round(transaction.timestamp.timestamp() * 1000)
        assert json.loads(cells[8]) == transaction.raw_data
        assert json.loads(cells[10]) == transaction.extra
    assert [] == unsound(sessions)
    did(f"{len(ODD)} kinds of odd rows")


JSON_IN_TEXT = {
    "deep": "[" * 300 + "]" * 300,
    "deeper than a parser goes": "[" * 5_000 + "]" * 5_000,
    "a NUL": '["\\u005cu0000"]',
    "a half character": '["\\u005cud800"]',
    "too great": "[1e400]",
    "great": f"[{10**40}]",
    "no list": '{"a":1}',
    "not JSON": "[[",
}


@pytest.mark.promise(16, 18)
@pytest.mark.parametrize("year", ["0001", "9999", "2024"])
def test_json_and_dates_inside_of_texts_break_nothing(
    migrated_url: str, tmp_path: Path, drop_file: DropFile, voting: Voting, year: str, did: Did
) -> None:
    """They are looked at when totals are counted, in any time zone, and were in no column."""
    url = migrated_url
    if "postgresql" in url:
        zone = {"options": f"-c timezone={'Pacific/Kiritimati' if year == '9999' else 'US/Hawaii'}"}
        url = make_url(url).update_query_dict(zone).render_as_string(hide_password=False)
    with open_sessions(url) as sessions:
        ingest = Ingest(sessions, terms_in(tmp_path), Clock(), owner_name())
        for hour, value in enumerate(JSON_IN_TEXT.values()):
            quoted = json.dumps(value.replace("\\u005c", "\\"))[1:-1]
            quoted = quoted.replace("\\\\u0000", "\\u005cu0000").replace("\\\\ud", "\\u005cud")
            dates = {"dateStart": f"01-01-{year} 00:00:00", "dateEnd": f"31-12-{year} 23:59:59"}
            rows = [
                voting.create(60 * hour, dimension="JSON", **dates).replace("JSON", quoted),
                voting.row("results", 60 * hour, params={"results": "JSON"}).replace(
                    '"JSON"', f'"{quoted}"'
                ),
                voting.vote(60 * hour),
            ]
            (job,) = ingest.take(drop_file(voting.name(hour), rows))
            assert ("completed", 0) == (job.status, job.rows_rejected)
        with sessions() as session:
            session.scalars(select(Constituency)).one()
        assert [] == unsound(sessions)
    did(f"{len(JSON_IN_TEXT)} kinds of JSON in texts, dates of the year {year}")


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    ("content", "status", "rows"),
    [
        (b"", "completed", (0, 0, 0)),
        (b"\n\r\n \n\n", "completed", (4, 0, 0)),
        (b"nestedTxId;type;signature;version;ts\n", "completed", (1, 0, 1)),
        (b"\xef\xbb\xbf", "completed", (0, 0, 0)),
        (b"\0" * 5000, "quarantined", (0, 0, 0)),
        (b"<html><body>502 Bad Gateway</body></html>\n", "quarantined", (0, 0, 0)),
        (zip_of({"a.csv": b"1;2"}), "quarantined", (0, 0, 0)),
    ],
)
def test_a_file_without_good_rows_is_told_by_what_it_is(
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    content: bytes,
    status: str,
    rows: tuple[int, int, int],
    did: Did,
) -> None:
    """An empty hour is good, a header line is one bad row, and another format is refused."""
    (job,) = ingest.take(drop_file(voting.name(8), content))
    assert (status, rows) == (job.status, (job.rows_read, job.rows_stored, job.rows_rejected))
    if status == "quarantined":
        assert "begins like" in reason_of(tmp_path, job)
    did("a file without a good row", files=1)


@pytest.mark.promise(18)
def test_a_field_of_50_mb_costs_its_row_and_bounded_memory(
    sqlite_url: str, inbox: Path, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Lists of voters within the limit are stored; each row is gone before the next one comes."""
    hashes = json.dumps(["9f" * 32] * 350_000, separators=(",", ":"))
    huge = with_cells(voting.vote(480), c9=entry("x" * 50_000_000))
    lists = [
        voting.row("addVotersList", 480, params={"userIdHashes": hashes}) for _number in range(3)
    ]
    small = peak_of_once(tmp_path, sqlite_url, inbox / voting.name(7), voting.ballots(7, 1))
    rows = [voting.vote(480), huge, *lists, voting.vote(481)]
    peak = peak_of_once(tmp_path, sqlite_url, inbox / voting.name(8), rows)
    (job,) = [job for job in jobs_on(sqlite_url) if job.name == voting.name(8)]
    assert ("completed", 5, 1) == (job.status, job.rows_stored, job.rows_rejected)
    with open_sessions(sqlite_url) as sessions:
        assert [] == unsound(sessions)
    grown = (peak - small) >> 20
    assert grown < 10 * 50
    did(f"a field of 50 MB, 3 of 23 MB: memory grew by {grown} MB")


# ── encodings ─────────────────────────────────────────────────────────────


@pytest.mark.promise(17)
@pytest.mark.parametrize(
    ("mark", "end", "has_last"),
    [
        (b"\xef\xbb\xbf", b"\n", True),
        (b"", b"\r\n", True),
        (b"\xef\xbb\xbf", b"\r\n", False),
        (b"", b"\r", True),
        (b"", b"\r", False),
        (b"", b"\n", False),
    ],
)
def test_lines_may_end_as_they_like(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    mark: bytes,
    end: bytes,
    has_last: bool,
    did: Did,
) -> None:
    """The same rows come out; the mark and the carriage returns are in no cell."""
    rows = [*voting.ballots(8, 5), voting.row("Опрос №1", 485)]
    content = mark + end.join(row.encode() for row in rows) + end * has_last
    (job,) = ingest.take(drop_file(voting.name(8), content))
    assert ("completed", 11, 0) == (job.status, job.rows_stored, job.rows_rejected)
    with sessions() as session:
        stored = list(session.scalars(select(Transaction).order_by(Transaction.line_number)))
    assert [row.split(";")[0] for row in rows] == [transaction.tx_id for transaction in stored]
    assert ("Опрос №1", {"contractVersion": 1}) == (stored[-1].type, stored[-1].extra)
    did("marks and line ends", files=1)


@pytest.mark.promise(17)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_wide_encoding_is_refused_saying_where(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    encoding: str,
    did: Did,
) -> None:
    """With a byte order mark or without one; nothing of it is guessed."""
    content = csv_of(voting.ballots(8, 2)).decode().encode(encoding)
    (job,) = ingest.take(drop_file(voting.name(8), content))
    assert ("quarantined", 1) == (job.status, job.first_error_line)
    assert f"UTF-16, not UTF-8: bytes 0x{content[:2].hex()} at offset 0" in reason_of(tmp_path, job)
    assert [0, 0] == count(sessions, Transaction, Reject)
    did("wide encodings", files=1)


@pytest.mark.promise(17, 14)
def test_a_broken_byte_at_line_a_million_is_named_with_its_offset(
    sqlite_url: str, tmp_path: Path, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """The rows around it are stored; 999 997 blank lines are counted."""
    first, second, last = (voting.vote(minute).encode() for minute in (480, 481, 482))
    bad = with_cells(voting.vote(483), c8="Опрос").encode("windows-1251")
    content = b"\n".join([first, *[b""] * 999_997, second, bad, last, b""])
    offset = content.index("Опрос".encode("windows-1251"))
    terms = replace(terms_in(tmp_path), batch_rows=100_000)
    with open_sessions(sqlite_url) as sessions:
        ingest = Ingest(sessions, terms, Clock(), owner_name())
        (job,) = ingest.take(drop_file(voting.name(8), content))
        with sessions() as session:
            reject = session.scalars(select(Reject)).one()
        assert [] == unsound(sessions)
    assert (1_000_000, "encoding", "0xce") == (reject.line_number, reject.kind, reject.value)
    assert f"not UTF-8: byte 0xce at offset {offset} of the file" == reject.reason
    assert r"\xce\xef\xf0\xee\xf1" in reject.raw_text
    assert ("completed", 1_000_001, 3, 999_997) == (
        job.status,
        job.rows_read,
        job.rows_stored,
        job.rows_blank,
    )
    did("1 broken byte at line 1 000 000", lines=1_000_001)


@pytest.mark.promise(17, 20)
def test_names_in_windows_1251_are_spelt_out_and_put_away_as_they_were(
    sessions: Sessions, ingest: Ingest, inbox: Path, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Folder and file: bytes are bytes on disk, and readable text in the tables."""
    folder = os.fsdecode("90 - Край/Выборы".encode("windows-1251"))
    name = os.fsdecode("Округ ".encode("windows-1251")) + voting.name(8)
    (inbox / folder).mkdir(parents=True)
    (inbox / folder / name).write_bytes(csv_of(voting.ballots(8, 2)))
    (job,) = ingest.take(Found(inbox, Path(folder, name), "asked"))
    assert ("completed", 4) == (job.status, job.rows_stored)
    assert job.path.startswith(r"90 - \xca\xf0\xe0\xe9/\xc2\xfb\xe1\xee\xf0\xfb/\xce\xea")
    assert (tmp_path / "archive" / folder / name).exists()
    with sessions() as session:
        assert [r"\xca\xf0\xe0\xe9"] == list(session.scalars(select(Constituency.region_name)))
    did("1 folder, 1 file in windows-1251")


# ── limits ────────────────────────────────────────────────────────────────


@pytest.mark.promise(18)
@pytest.mark.parametrize("most", [29, 30])
def test_a_file_may_touch_so_many_hours(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, most: int, did: Did
) -> None:
    """Senders' clocks lie; a file of a million different hours would be one commit for each."""
    ingest.terms = replace(ingest.terms, max_hours=most, batch_rows=7)
    rows = [voting.vote(60 * 24 * 365 * year) for year in range(30)]
    (job,) = ingest.take(drop_file(f"{voting.contract}.csv", rows))
    if most == 30:
        assert ("completed", 30) == (job.status, job.rows_stored)
    else:
        assert ("quarantined", "ts") == (job.status, job.first_error_field)
        assert "max_hours = 29" in (job.first_error_message or "")
        assert [0, 0] == count(sessions, Transaction, HourlyStats)
    assert [] == unsound(sessions)
    did("30 hours", files=1)


@pytest.mark.promise(18)
def test_many_operations_nobody_knows_cost_later_files_nothing(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Each has its alert; a later file does not ask for them one by one."""
    asked: list[str] = []
    engine = sessions.kw["bind"]
    event.listen(engine, "before_cursor_execute", lambda *about: asked.append(about[2]))
    numbers = []
    for hour, rows in (
        (8, voting.ballots(8, 2)),
        (9, [voting.row(f"operation {number}", 540) for number in range(300)]),
        (10, voting.ballots(10, 2)),
    ):
        asked.clear()
        (job,) = ingest.take(drop_file(voting.name(hour), rows))
        assert ("completed", len(rows)) == (job.status, job.rows_stored)
        numbers.append(len(asked))
    assert [300] == count(sessions, Alert)
    assert max(numbers[1:]) < numbers[0] + 20
    assert [] == unsound(sessions)
    did("300 unknown operations", rows=300)


LIMITS: dict[str, tuple[dict[str, Any], bytes]] = {
    "member_bytes": ({"max_member_bytes": 9}, zip_of({"a.csv": b"0123456789"})),
    "bomb": ({"max_ratio": 2}, zip_of({"a.csv": b" " * (65 << 20)})),
    "nesting": ({"max_nesting": 1}, zip_of({"a.zip": zip_of({"a.csv": b""})})),
    "members": ({"max_members": 2}, zip_of({"a.csv": b"", "b": b"", "c": b""})),
    "name_bytes": ({"max_name_bytes": 9}, zip_of({"folder/a.csv": b""})),
}


@pytest.mark.promise(19)
@pytest.mark.parametrize("kind", LIMITS)
def test_each_limit_of_a_zip_is_a_setting(
    ingest: Ingest, drop_file: DropFile, tmp_path: Path, kind: str, did: Did
) -> None:
    """Beyond it the file is in quarantine, and the reason names the setting."""
    limits, content = LIMITS[kind]
    ingest.terms = replace(ingest.terms, read=replace(ingest.terms.read, **limits))
    (job,) = ingest.take(drop_file("a.zip", content))
    assert job.attempt_counts
    assert ("quarantined", kind) == (job.status, job.attempt_counts["kind"])
    assert next(iter(limits)) in reason_of(tmp_path, job)
    did("limits", files=1)


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    ("limits", "field", "kind"),
    [
        ({"max_field_bytes": 200}, "params", "field_bytes"),
        ({"max_entries": 3}, "params", "entries"),
        ({"max_json_depth": 2}, "params", "depth"),
        ({"max_line_bytes": 600}, None, "too_long"),
    ],
)
def test_each_limit_of_a_row_is_a_setting(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    limits: dict[str, int],
    field: str | None,
    kind: str,
    did: Did,
) -> None:
    """Beyond it the row is rejected, and its neighbours are stored."""
    in_rows = {name: most for name, most in limits.items() if name != "max_line_bytes"}
    in_lines = {name: most for name, most in limits.items() if name == "max_line_bytes"}
    terms: Any = ingest.terms
    ingest.terms = replace(terms, read=replace(terms.read, **in_lines), **in_rows)
    wild = '[{"key":"a","x":[1]},{"key":"b"},{"key":"c"},{"key":"d","stringValue":"' + "x" * 400
    rows = [voting.start(480), with_cells(voting.start(480), c9=wild + '"}]'), voting.start(481)]
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    assert ("completed", 2) == (job.status, job.rows_stored)
    with sessions() as session:
        reject = session.scalars(select(Reject)).one()
    assert (2, field, kind) == (reject.line_number, reject.field, reject.kind)
    did("limits of a row", rows=1)


@pytest.mark.promise(15)
def test_a_hopeless_file_is_given_up_before_its_end(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Gigabytes of anything named .csv must not fill the database with rejects first."""
    ingest.terms = replace(ingest.terms, batch_rows=500)
    torn = b"torn off somewhere;" * 5 + b"\n"
    rows = csv_of(voting.ballots(8, 100))
    (job,) = ingest.take(drop_file(voting.name(8), rows + torn * 20_000))
    read = (job.attempt_counts or {}).get("rows_read", 0)
    assert job.attempt_counts
    assert ("quarantined", "too_many_rejects") == (job.status, job.attempt_counts["kind"])
    assert 500 < read < 10_000
    assert [0, 0, 0, 0] == count(sessions, Transaction, Reject, HourlyStats, Sighting)
    # As many bad rows, but at the start of a file that may bear them.
    good = csv_of(voting.ballots(9, 1_000))
    (job,) = ingest.take(drop_file(voting.name(9), torn * 100 + good))
    assert ("completed", 2_000, 100) == (job.status, job.rows_stored, job.rows_rejected)
    assert [] == unsound(sessions)
    did(f"20 000 bad rows, given up after {read}; 100 of 2 100 borne", files=2)


# ── poison ────────────────────────────────────────────────────────────────


def refuse_asset(sessions: Sessions) -> None:
    """Let the database refuse a value that validation lets pass, as a real fault would."""
    condition = "NEW.fee_asset_id = 'poison'"
    with sessions.begin() as session:
        if "sqlite" in str(session.get_bind().engine.url):
            session.execute(
                text(
                    f'CREATE TRIGGER poison BEFORE INSERT ON "transaction" WHEN {condition} '
                    "BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
                )
            )
            return
        session.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'poisoned'; END $$"
            )
        )
        session.execute(
            text(
                'CREATE TRIGGER poison BEFORE INSERT ON "transaction" '
                f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"
            )
        )


def cpu_seconds(daemon: Running) -> float:
    """The time that a process has spent on a CPU so far."""
    told = Path(f"/proc/{daemon.process.pid}/stat").read_text(encoding="utf-8")
    user, system = told.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.promise(16)
def test_a_poison_file_is_tried_three_times_and_then_costs_nothing(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """The real program, refused by a real database: back-off, quarantine, an idle CPU."""
    with open_sessions(migrated_url) as sessions:
        refuse_asset(sessions)
    daemon = start_on_each(
        INGEST__ATTEMPTS="3", INGEST__RETRY_SECONDS="0.5", INGEST__BATCH_ROWS="5"
    )
    rows = voting.ballots(8, 10)
    rows[12] = with_cells(rows[12], c8="poison")
    (daemon.inbox / voting.name(8)).write_bytes(csv_of(rows))
    (daemon.inbox / voting.name(9)).write_bytes(csv_of(voting.ballots(9, 10)))
    soon(lambda: daemon.log("file_quarantined"), seconds=60)
    soon(lambda: is_empty(daemon.inbox))
    tries = [*daemon.log("attempt_failed"), *daemon.log("file_quarantined")]
    first, second, third = (datetime.fromisoformat(line["timestamp"]) for line in tries)
    assert (second - first).total_seconds() >= 0.5
    assert (third - second).total_seconds() >= 1
    assert 1 == len(daemon.log("file_ingested"))
    (job,) = [job for job in jobs_on(migrated_url) if job.status == "quarantined"]
    assert "it broke 3 attempts" in reason_of(tmp_path, job)
    assert "poisoned" in reason_of(tmp_path, job)
    with open_sessions(migrated_url) as sessions:
        assert [20, 0] == count(sessions, Transaction, Reject)
        assert [] == unsound(sessions)
    before = cpu_seconds(daemon)
    time.sleep(2)
    used = cpu_seconds(daemon) - before
    assert used < 1
    did(f"3 attempts, 0.5 s and 1 s apart; then {used:.2f} s CPU in 2 s", files=2)


@pytest.mark.promise(16)
def test_a_file_that_breaks_before_it_has_a_job_stops_too(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    did: Did,
) -> None:
    """While it is looked into, nothing is recorded; it is counted all the same."""
    ingest.terms = replace(ingest.terms, attempts=3, retry_seconds=30)
    found = drop_file("a.csv", b"torn\n")
    calls: list[str] = []

    def broken(path: str) -> None:
        calls.append(path)
        raise ZeroDivisionError(path)

    monkeypatch.setattr("ingestd.pipeline.look.place_of", broken)
    for seconds in (0, 31):
        clock.advance(seconds)
        with pytest.raises(ZeroDivisionError):
            ingest.take(found)
        assert [] == ingest.take(found)
    clock.advance(61)
    (job,) = ingest.take(found)
    assert 3 == len(calls)
    assert "quarantined" == job.status
    assert "it broke 3 attempts: ZeroDivisionError: a.csv" in reason_of(tmp_path, job)
    assert not found.path.exists()
    assert [] == unsound(sessions)
    did("3 attempts, 30 s and 60 s apart")


# ── containers ────────────────────────────────────────────────────────────


@pytest.mark.promise(19)
def test_tricky_zips_are_quarantined_and_their_neighbours_stored(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    did: Did,
) -> None:
    """One after another; each with its kind and its reason, and no byte leaves the inbox."""
    ingest.terms = replace(ingest.terms, read=LIMITS_OF_READ)
    before = set(tmp_path.parent.iterdir())
    for number, (make, kind) in enumerate(TRICKY_ZIPS.values()):
        (job,) = ingest.take(drop_file(f"{number}.zip", make()))
        assert job.attempt_counts
        assert ("quarantined", None) == (job.status, job.member)
        assert kind == job.attempt_counts["kind"]
        assert job.sha256 in reason_of(tmp_path, job)
    ingest.take(drop_file("good.zip", zip_of({voting.name(8): csv_of(voting.ballots(8, 2))})))
    assert [4, 0] == count(sessions, Transaction, Reject)
    assert is_empty(tmp_path / "inbox")
    assert ["good.zip"] == [path.name for path in (tmp_path / "archive").rglob("*")]
    assert before == set(tmp_path.parent.iterdir())
    assert [] == unsound(sessions)
    did(f"{len(TRICKY_ZIPS)} kinds of tricky ZIPs", files=len(TRICKY_ZIPS) + 1)


@pytest.mark.promise(19)
def test_a_zip_cut_anywhere_is_quarantined_whole(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Also where what is left could pass for a smaller delivery; the whole one then comes."""
    hours = {voting.name(hour): csv_of(voting.ballots(hour, 3)) for hour in (8, 9, 10)}
    inner = [(f"{name}.zip", zip_of({name: content})) for name, content in hours.items()]
    for content in (zip_of(hours), zipped([*inner], zipfile.ZIP_STORED)):
        cuts = {len(content) * part // 20 for part in range(1, 20)}
        # Behind each whole inner ZIP.
        cuts |= {at + 22 for at in range(len(content) - 23) if content[at : at + 4] == b"PK\5\6"}
        for cut in sorted(cuts):
            jobs = ingest.take(drop_file("cut.zip", content[:cut]))
            assert ["quarantined"] == [job.status for job in jobs]
    assert [0] == count(sessions, Transaction)
    jobs = ingest.take(drop_file("whole.zip", content))
    assert ["completed"] * 3 == [job.status for job in jobs]
    assert [18] == count(sessions, Transaction)
    assert [] == unsound(sessions)
    did("2 ZIPs, each cut at every twentieth and behind every inner ZIP")


OUTSIDE = [
    "../../../escaped",
    "/tmp/escaped",
    "..\\..\\escaped",
    "C:\\escaped",
    "\\\\host\\escaped",
]
ODD_NAMES = ["a\nb", "\x1b[31mred", "\u202efdp", "[bold]x[/]", "=cmd|' /C calc'!A0", "я" * 120]


@pytest.mark.promise(19, 20)
def test_members_with_any_name_are_read_and_never_written(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    did: Did,
) -> None:
    """A way out of the inbox, a line break, escape codes: a name is only a text."""
    names = [*OUTSIDE, *ODD_NAMES]
    members = {
        f"{name} {voting.name(hour)}": csv_of(voting.ballots(hour, 1))
        for hour, name in enumerate(names)
    }
    before = set(Path("/tmp").glob("*escaped*"))
    jobs = ingest.take(drop_file("odd.zip", zip_of(members)))
    assert ["completed"] * len(names) == [job.status for job in jobs]
    assert sorted(members) == sorted(job.member or "" for job in jobs)
    assert [2 * len(names)] == count(sessions, Transaction)
    assert not list(tmp_path.rglob("*escaped*"))
    assert before == set(Path("/tmp").glob("*escaped*"))
    assert [] == unsound(sessions)
    did(f"{len(names)} odd names inside a ZIP")


def deflated_zeros(size: int) -> bytes:
    """What deflate makes of so many zeros, without having them: one block again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MANY)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(MANY)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block + again * (size // MANY - 1) + packer.flush()


def zip_of_zeros(size: int, *, told: int | None = None) -> bytes:
    """A ZIP with one CSV of so many zeros; it may tell another size."""
    stand_in = zipped([("a.csv", b"?")], zipfile.ZIP_STORED)
    packed = deflated_zeros(size)
    told = size if told is None else told
    start = stand_in.index(b"PK\x01\x02")
    entry_, end = stand_in[start:-22], bytearray(stand_in[-22:])
    header = bytearray(stand_in[: start - 1])
    directory = bytearray(entry_)
    for place, at in ((header, 8), (directory, 10)):
        place[at : at + 2] = b"\x08\0"
        sizes = at + 10
        place[sizes : sizes + 8] = len(packed).to_bytes(4, "little") + told.to_bytes(4, "little")
    end[16:20] = (len(header) + len(packed)).to_bytes(4, "little")
    return bytes(header) + packed + bytes(directory) + bytes(end)


def overlapped(kernel: bytes, members: int) -> bytes:
    """A ZIP whose directory names its one member so many times."""
    start = kernel.index(b"PK\x01\x02")
    one, end = kernel[start:-22], bytearray(kernel[-22:])
    entries = b"".join(one.replace(b"a.csv", b"%04x." % number) for number in range(members))
    end[8:12] = members.to_bytes(2, "little") * 2
    end[12:16] = len(entries).to_bytes(4, "little")
    return kernel[:start] + entries + bytes(end)


GB = 1 << 30
BOMBS: dict[str, Callable[[], bytes]] = {
    "10 KB that say 10 MB a thousand times": lambda: overlapped(zip_of_zeros(10 << 20), 1000),
    "4 MB that unpack to 4 GB": lambda: zip_of_zeros(4 * GB - MANY),
    "the same in a ZIP": lambda: zip_of({"b.zip": zip_of_zeros(4 * GB - MANY)}),
    "4 GB that say one byte": lambda: zip_of_zeros(4 * GB - MANY, told=1),
    "60 ZIPs of 60 MB in a ZIP": lambda: zip_of(
        {f"{number}.zip": zip_of_zeros(60 << 20) for number in range(60)}
    ),
}

# Not by `ru_maxrss`, which remembers what the process was forked from.
MEASURED = f"""
{ONCE}
import pathlib, time
peak, = [line for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmHWM")]
print("peak", int(peak.split()[1]) * 1024, time.process_time())
"""


def run_once(folder: Path, url: str) -> tuple[int, float]:
    """Take what is in the inbox, in a process of its own: its memory at most, and CPU time."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        env=environment(folder, url),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    peak, seconds = done.stdout.splitlines()[-1].split()[1:]
    return int(peak), float(seconds)


def peak_of_once(folder: Path, url: str, path: Path, rows: list[str]) -> int:
    """The memory that one file takes at most."""
    path.write_bytes(csv_of(rows))
    return run_once(folder, url)[0]


@pytest.mark.promise(19)
def test_bombs_stop_at_a_limit_in_little_time_and_memory(
    migrated_url: str, inbox: Path, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """None is unpacked further than its limits; the good file beside them is stored."""
    content = zip_of({voting.name(8): csv_of(voting.ballots(8, 2))})
    (inbox / "good.zip").write_bytes(content)
    usual, seconds = run_once(tmp_path, migrated_url)
    for number, make in enumerate(BOMBS.values()):
        (inbox / f"{number}.zip").write_bytes(make())
    packed = sum(path.stat().st_size for path in inbox.iterdir())
    peak, longer = run_once(tmp_path, migrated_url)
    jobs = jobs_on(migrated_url)
    assert ["quarantined"] * len(BOMBS) == [
        job.status for job in jobs if job.name != "good.zip" and job.member is None
    ]
    assert is_empty(inbox)
    grown = (peak - usual) >> 20
    assert grown < 40
    assert longer - seconds < 10
    with open_sessions(migrated_url) as sessions:
        assert [4] == count(sessions, Transaction)
        assert [] == unsound(sessions)
    did(f"{len(BOMBS)} bombs, {packed / 1e6:.0f} MB for 22 GB: memory grew by {grown} MB")


# ── forgery ───────────────────────────────────────────────────────────────

FORGED = (
    "\n2026-01-01T00:00:00Z [info     ] FORGED\r\x1b[2J\x1b]8;;x:y\x07\x9b31m\u202e\u2028"
    "[bold red][link=x:y]"
)
COMMANDS = [
    *(["status"], ["jobs"], ["jobs", "--json"], ["stats"], ["stats", "--csv"], ["stats", "--json"]),
    *(["rejects"], ["rejects", "--json"], ["rejects", "--csv"], ["alerts"], ["alerts", "--json"]),
    *(["alerts", "--all"], ["retry", "--all-quarantined"], ["once"], ["jobs", "show", "ID"]),
]
ASKED = """
import json, sys
from ingestd.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["ingestd", *command]
    try:
        main()
    except SystemExit:
        pass
    sys.stdout.flush()
"""
LOGGED = ONCE.replace('log.configure("error", "json")', 'log.configure("debug", "FORMAT")')


def drop_forgeries(inbox: Path, voting: Voting) -> None:
    """Put the forgery into folders, file names, members, cells, keys and operations."""
    folder = inbox / f"90 - Край{FORGED[:60]}" / f"Выборы{FORGED}" / f"Округ{FORGED}"
    folder.mkdir(parents=True)
    in_json = json.dumps(FORGED)[1:-1]
    cell = FORGED.replace("\n", "").replace("\r", "").replace(";", "")
    rows = [
        voting.create(470),
        *voting.ballots(8, 2),
        voting.row("OPERATION", 480).replace("OPERATION", in_json),
        voting.row("OPERATION", 480).replace("OPERATION", "=cmd|' /C calc'!A0"),
        *(with_cells(voting.vote(480), c1=text) for text in (cell, f"={cell}", "@SUM(1)", "+1")),
        with_cells(voting.vote(480), c8=cell),
    ]
    (folder / f"{FORGED}{voting.name(8)}").write_bytes(csv_of(rows))
    (inbox / f"{FORGED}.zip").write_bytes(b"no zip")
    members = {f"{FORGED}/{voting.name(9)}": csv_of([cell] * 30), f"=1+{FORGED}.csv": b"x"}
    (inbox / f"=2+{FORGED}a.zip").write_bytes(zip_of(members))
    (inbox / f"{FORGED}.txt").write_bytes(b"")
    (inbox / f"{FORGED}.csv").symlink_to("/etc/passwd")


def unsafe_in(shown: str) -> set[str]:
    """Characters that a terminal obeys or that turn a line around; line ends are allowed."""
    return {char for char in shown if unicodedata.category(char) in {"Cc", "Cf", "Zl"}} - {"\n"}


def forged_lines(shown: str) -> list[str]:
    """Lines that begin as the forgery does."""
    return [line for line in shown.split("\n") if line.lstrip().startswith("2026-01-01T")]


@pytest.mark.promise(33)
@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_in_a_file_forges_a_log_line(
    migrated_url: str, inbox: Path, voting: Voting, tmp_path: Path, form: str, did: Did
) -> None:
    """A line for each event, whatever stands in names and cells; the reason files, too."""
    drop_forgeries(inbox, voting)
    done = subprocess.run(
        [sys.executable, "-c", LOGGED.replace("FORMAT", form)],
        env=environment(tmp_path, migrated_url),
        capture_output=True,
        check=True,
        timeout=300,
    )
    logged = done.stderr.decode()
    lines = logged.rstrip("\n").split("\n")
    assert set() == unsafe_in(logged)
    assert [] == forged_lines(logged)
    assert "FORGED" in logged
    if form == "json":
        assert all(json.loads(line)["event"] for line in lines)
    else:
        assert all(re.match(r"\d{4}-\d\d-\d\dT[^ ]+ \[\w+ *\] \w", line) for line in lines)
    reasons = [
        path.read_text(encoding="utf-8") for path in (tmp_path / "quarantine").rglob("*.txt")
    ]
    assert 2 == len(reasons)
    for reason in reasons:
        assert set() == unsafe_in(reason)
        assert [] == forged_lines(reason)
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
        assert [8] == count(sessions, Transaction)
    did(f"{len(lines)} log lines and {len(reasons)} reason files", files=5)


def asked_in_a_terminal(commands: list[list[str]], env: dict[str, str]) -> str:
    """What the program shows to a person, without colours."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", ASKED, json.dumps(commands)]
    process = subprocess.Popen(program, env=env, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    blocks = []
    while True:
        try:
            block = os.read(ours, MANY)
        except OSError:  # how Linux says that the other end is closed
            break
        if not block:
            break
        blocks.append(block)
    assert 0 == process.wait(timeout=300)
    os.close(ours)
    shown = b"".join(blocks).decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


@pytest.mark.promise(33)
def test_nothing_in_a_file_forges_a_terminal(
    sqlite_url: str, inbox: Path, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """The real command line, to a pipe and to a terminal; markup stays text, a cell no formula."""
    env = environment(tmp_path, sqlite_url, COLUMNS="1500", TERM="xterm-256color")
    drop_forgeries(inbox, voting)
    run_once(tmp_path, sqlite_url)
    ids = [str(job.id) for job in jobs_on(sqlite_url)]
    shows = [["jobs", "show", id_] for id_ in ids]
    commands = [command for command in COMMANDS if "ID" not in command] + shows
    piped = subprocess.run(
        [sys.executable, "-c", ASKED, json.dumps(commands)],
        env=env,
        capture_output=True,
        check=True,
        timeout=300,
    )
    # Not `once`, whose progress bar moves the cursor.
    in_terminal = [["status"], ["jobs"], ["rejects"], ["alerts"], ["stats"], shows[0]]
    shown = asked_in_a_terminal(in_terminal, env)
    assert set() == unsafe_in(asked_in_a_terminal([["rejects", "--raw"]], env))
    for told in (piped.stdout.decode(), piped.stderr.decode(), shown):
        assert set() == unsafe_in(told)
        assert [] == forged_lines(told)
    assert "[bold red][link=x:y]" in piped.stdout.decode()
    assert "[bold red][link=x:y]" in shown
    sheet = subprocess.run(
        [sys.executable, "-c", ASKED, json.dumps([["rejects", "--csv"], ["stats", "--csv"]])],
        env=env,
        capture_output=True,
        check=True,
        timeout=300,
    )
    cells = [cell for row in csv.reader(io.StringIO(sheet.stdout.decode())) for cell in row]
    assert [] == [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert any(cell.startswith("'=") for cell in cells)
    did(f"{len(commands)} commands, to a pipe and to a terminal")
