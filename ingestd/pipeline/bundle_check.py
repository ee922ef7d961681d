"""Check a finding of ingestd again from its raw lines and its numbers.

Call it as python3 check.py [FOLDER OF THE FILES]. It needs nothing but Python; beside it lie
finding.json, lines.csv and, for some rules, tables of numbers. Who alters a line can alter its
SHA-256 beside it, and who leaves one out leaves no trace: with a folder that holds the delivered
files (CSV or ZIP, in any order of folders), each line is looked up in the file of its SHA-256, and
each line that the finding rests on must be in the bundle.
Exit status: 0 it holds, 1 it does not, 2 what is here cannot tell.
"""

# ruff: noqa: D102, D103, T201 - it stands alone and talks to a person; a rule's words are in finding.txt

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import json
import math
import re
import sys
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from statistics import NormalDist, median
from typing import IO, Any, NamedTuple

COLUMNS = 12
HERE = Path(__file__).resolve().parent
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BALLOTS = ("vote", "blindSigIssue")
HOUR_MS = 3_600_000
UTC = timezone.utc  # noqa: UP017 - it runs on older Pythons, too
MOST_NAMED = 20
LONG = 1 << 20  # bytes; a line that is longer may stand here cut, where it was too long to take
UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError)


# Which lines --------------------------------------------------------------------------------

LISTS = ("addVotersList", "addToVotersList", "removeFromVotersList")
OPENINGS = ("createContract", "startVoting", "finishVoting")
ENDINGS = ("finishVoting", "decryption", "commissionDecryption", "results")
# Of these rules the listed transactions say nothing alone: all rows of these operations do.
OPERATIONS: dict[str, tuple[str, ...]] = {
    "votes_exceed_bulletins": BALLOTS,
    "turnout_over_registered": ("blindSigIssue", *LISTS),
    "results_mismatch": ("vote", "results", "createContract"),
    "vote_without_main_key": ("vote", "addMainKey"),
    "lifecycle_order": (*BALLOTS, *ENDINGS, "startVoting", "addMainKey"),
    "roll_changed_during_voting": (*LISTS, "startVoting"),
    "outside_voting_window": (*BALLOTS, *OPENINGS),
    "duplicate_vote_key": ("vote",),
    "whole_export_differs": (),
    "slot_republished": (),
    "history_withdrawn": (),
    "rollback_burst": BALLOTS,
    "rolled_back_for_good": BALLOTS,
}
IS_ROLLBACK = re.compile(rb";-1\s*$")


class Choice(NamedTuple):
    """Which lines a finding rests on: of operations, of ids, of a time; more do no harm."""

    tokens: re.Pattern[bytes] | None = None
    ids: frozenset[bytes] | None = None
    since: int = 0
    until: int = 1 << 62

    def takes(self, text: bytes) -> bool:
        """Whether a line is one of them."""
        if self.ids is not None:
            return text.split(b";", 1)[0] in self.ids
        if IS_ROLLBACK.search(text) is not None:
            return True
        if self.tokens is not None and self.tokens.search(text) is None:
            return False
        if not self.since:
            return True
        parts = text.split(b";", 5)
        ts = parts[4] if len(parts) > 4 else b""  # noqa: PLR2004 - the column of the time
        return ts.isdigit() and self.since <= int(ts) < self.until


def choice_of(rule: str, is_statistical: bool, details: Mapping[str, Any]) -> Choice | None:  # noqa: FBT001 - a field of the finding
    """Which lines a finding rests on; None where it names them itself, or needs none."""
    if is_statistical:
        # A region has too many rows: its numbers are those of its constituencies.
        if rule == "region_correlated":
            return None
        since, until = span_of(details)
        # A level is that of all hours so far.
        since = 1 if details.get("kind") in ("turnout", "uncast") else since
        return Choice(tokens_of(BALLOTS), None, since, until)
    ids = frozenset(one.encode() for one in details.get("tx_ids") or ())
    slot = str(details.get("slot"))
    is_long = rule in ("slot_republished", "history_withdrawn") and not is_hourly(slot)
    if ids and (rule == "whole_export_differs" or is_long):
        return Choice(ids=ids)
    if rule not in OPERATIONS:
        return Choice(ids=ids) if ids else None
    span = span_of(details) if rule == "rollback_burst" else (0, 1 << 62)
    return Choice(tokens_of(OPERATIONS[rule]), None, *span)


def span_of(details: Mapping[str, Any]) -> tuple[int, int]:
    """The finding's window, in milliseconds."""
    first, last = (moment_in(text) for text in details["window"]["utc"])
    return int(first.timestamp() * 1000), int(last.timestamp() * 1000)


def moment_in(text: str) -> datetime:
    """A moment of a window: in UTC, with its offset or without one."""
    moment = datetime.fromisoformat(text.removesuffix("Z"))  # Python before 3.11 knows no Z
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def tokens_of(operations: Sequence[str]) -> re.Pattern[bytes] | None:
    """Rows that may be of these operations."""
    if not operations:
        return None
    named = "|".join(
        [f'"{one}"' for one in operations] + [";103;"] * ("createContract" in operations)
    )
    return re.compile(named.encode(), re.IGNORECASE)


HOURLY = re.compile(r"\d{4}-\d\d-\d\d_(\d\d)(\d\d)-(\d\d)(\d\d)")


def is_hourly(slot: str) -> bool:
    """Whether a slot is of an hour at most: such files add up, longer ones tell the same again."""
    match = HOURLY.fullmatch(slot)
    if match is None:
        return False
    hours, minutes, last_hours, last_minutes = map(int, match.groups())
    length = (last_hours - hours) * 60 + last_minutes - minutes
    return (length % 1440 or 1440) <= 60  # noqa: PLR2004 - minutes of a day, of an hour


# Raw lines ----------------------------------------------------------------------------------

Place = dict[str, str]


class Row(NamedTuple):
    """One raw line, with where it stands."""

    place: Place
    line: int
    id: str
    columns: tuple[str, ...]
    operation: str
    tally: str  # bulletin, vote, issue_rejected, vote_rejected, or nothing

    @property
    def is_plus(self) -> bool:
        return self.columns[11].strip() != "-1"

    @property
    def ts(self) -> int:
        return int(self.columns[4])

    @property
    def order(self) -> tuple[bool, str, int]:
        return self.place["is_cumulative"] == "1", self.place["slot"], self.line

    def value(self, key: str) -> Any:
        """A parameter of the row."""
        return value_in(self.columns[8], key)


def value_in(params: str, key: str) -> Any:
    """A parameter."""
    for entry in entries(params):
        if entry.get("key") == key:
            return next((value for name, value in entry.items() if name != "key"), None)
    return None


def tally_of(operation: str, diff: str) -> str:
    """What a row counts as, by the keys that it has written into the state."""
    if operation not in BALLOTS:
        return ""
    keys = [str(entry.get("key")) for entry in entries(diff)]
    failed = any(key.startswith("FAIL_") for key in keys)
    if operation == "blindSigIssue":
        return "issue_rejected" if failed else "bulletin"
    if failed:
        return "vote_rejected"
    return "vote" if any(key.startswith("VOTE_") for key in keys) else ""


def read_table(name: str) -> list[dict[str, str]]:
    """A CSV of the bundle."""
    return list(stream_table(name))


def stream_table(name: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV of the bundle, one after the other."""
    csv.field_size_limit(1 << 30)
    with (HERE / name).open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def raw_of(line: dict[str, str]) -> bytes:
    """The bytes of a line; those that are no text are in base64."""
    if line["encoding"] == "base64":
        return base64.b64decode(line["text"])
    return line["text"].encode()


def columns_of(text: str) -> list[str]:
    """The twelve columns of a line; JSON columns may hold semicolons."""
    parts = text.rstrip("\r\n").split(";")
    if len(parts) <= COLUMNS:
        return parts
    body = ";".join(parts[8:-2])
    cut = max(body.find("];["), body.find("};["), 0) + 1
    return [*parts[:8], body[:cut], body[cut + 1 :], *parts[-2:]]


def entries(text: str) -> list[dict[str, Any]]:
    """The entries of a JSON column, with or without its brackets."""
    if not text.strip():
        return []
    found = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    return [entry for entry in found if isinstance(entry, dict)]


def row_of(place: Place, line: int, raw: bytes) -> Row | None:
    """A line that is a row; None where it is none."""
    try:
        columns = tuple(columns_of(raw.decode()))
    except UnicodeDecodeError:
        return None
    if len(columns) != COLUMNS:
        return None
    try:
        named = value_in(columns[8], "operation")
        operation = str(named or ("createContract" if columns[1] == "103" else ""))
        known = {"vote": "vote", "blindsigissue": "blindSigIssue"}
        operation = known.get(operation.lower(), operation)
        return Row(place, line, columns[0], columns, operation, tally_of(operation, columns[9]))
    except (ValueError, RecursionError):
        # A rollback counts by its id alone.
        is_rollback = columns[11].strip() == "-1"
        return Row(place, line, columns[0], columns, "", "") if is_rollback else None


NEEDED = {
    "vote": ("vote", "blindSig"),
    "blindSigIssue": ("data",),
    "addVotersList": ("userIdHashes",),
    "addToVotersList": ("userIdHashes",),
    "removeFromVotersList": ("userIdHashes",),
    "results": ("results",),
}
FORMS = {
    1: re.compile("103|104"),
    3: re.compile("-?[0-9]{1,18}"),
    4: re.compile("[0-9]{1,15}"),
    6: re.compile("-?[0-9]{1,18}|"),
    7: re.compile(".{0,100}"),
}
LAST_MS = 253_370_764_799_999


def is_sound(row: Row | None) -> bool:
    """Whether it is a row by the format: columns, ids, numbers, JSON, what each must have."""
    if row is None:
        return False
    try:
        if bytes_of(row.id) != 32:  # noqa: PLR2004 - an id has 32 bytes
            return False
        if not row.is_plus:
            return True
        if any(not form.fullmatch(row.columns[at]) for at, form in FORMS.items()):
            return False
        has_all = all(row.value(key) is not None for key in NEEDED.get(row.operation, ()))
        return row.ts <= LAST_MS and has_all and are_json(row) and are_keys(row)
    except (ValueError, binascii.Error, RecursionError):
        return False


def are_json(row: Row) -> bool:
    """Whether the columns of JSON hold what they must. Raises ValueError where they are none."""
    for text in row.columns[8:10]:
        if not text.strip():
            return False
        for entry in parsed(text if text.lstrip().startswith("[") else f"[{text}]"):
            if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
                return False
            base64.b64decode(str(entry.get("binaryValue", "")), validate=True)
    if not isinstance(value_in(row.columns[8], "operation") or "", str):
        return False
    return isinstance(parsed(row.columns[10] or "{}"), dict) and "\0" not in "".join(row.columns)


def parsed(text: str) -> Any:
    """A JSON text. Raises ValueError where it is none, or holds what no text can."""
    found = json.loads(text, parse_constant=refuse)
    if "\\u" in text:
        # Halves of characters cannot be encoded; a NUL cannot be stored.
        if b"\\u0000" in json.dumps(found).encode():
            raise ValueError("NUL")
        json.dumps(found, ensure_ascii=False).encode()
    return found


def refuse(constant: str) -> None:
    """NaN and its like are no JSON."""
    raise ValueError(constant)


def are_keys(row: Row) -> bool:
    """Whether signature and sender have 64 bytes."""
    signature, sender = row.columns[2], row.columns[5]
    return (not signature or bytes_of(signature) == 64) and bytes_of(sender) == 64  # noqa: PLR2004 - as the docstring says


def bytes_of(text: str) -> int:
    """How many bytes a base58 text is."""
    number = 0
    for letter in text:
        number = number * 58 + BASE58.index(letter)
    return (number.bit_length() + 7) // 8 + len(text) - len(text.lstrip("1"))


class Standing(NamedTuple):
    """What all lines of one transaction make of it."""

    rows: list[Row]
    net: int
    shown: Row
    slot: str  # the first hourly file that holds it

    @property
    def tally(self) -> str:
        return self.shown.tally if self.net > 0 else ""


def standing_of(rows: Sequence[Row]) -> Standing | None:
    """Net sign: hourly files add up, a cumulative file tells the same again."""
    shown = [row for row in rows if row.is_plus]
    if not shown:
        return None
    sides = []
    for is_plus in (True, False):
        hourly, cumulative = 0, Counter[str]()
        for row in rows:
            if row.is_plus == is_plus:
                if row.place["is_cumulative"] == "1":
                    cumulative[row.place["file_sha256"]] += 1
                else:
                    hourly += 1
        sides.append(max([hourly, *cumulative.values()]))
    slots = [row.place["slot"] for row in shown if row.place["is_cumulative"] == "0"]
    last = max(shown, key=lambda row: row.order)
    return Standing(list(rows), sides[0] - sides[1], last, min(slots, default=""))


def as_text(value: Any) -> str:
    """A value of finding.json as a cell of lines.csv."""
    return str(int(value)) if isinstance(value, bool) else str(value or "")


def where_of(told: Mapping[str, Any]) -> Where:
    """Where a line stands."""
    return told["file_sha256"], told["file"], told["line"]


NAMED = re.compile(
    r"([1-9A-HJ-NP-Za-km-z]{32,44})_(\d{4}-\d\d-\d\d_(?:[01]\d|2[0-3])[0-5]\d)-\d{4}(?!\d)"
)


def named_in(file: str) -> tuple[str, str] | None:
    """Contract and beginning of the slot that a file's own name tells, where it tells them."""
    found = NAMED.findall(PurePosixPath(file).name)
    return found[0] if len(found) == 1 and bytes_of(found[0][0]) == 32 else None  # noqa: PLR2004 - a contract's id


def misplaced(place: Place) -> list[str]:
    """What a file's name or its slot says against its columns."""
    told, slot = named_in(place["file"]), place["slot"]
    wrong = []
    if told and place["contract"] and slot and told != (place["contract"], slot[:15]):
        wrong.append(f"{place['file']}: its name tells another contract or slot")
    if slot and (place["is_cumulative"] == "1") == is_hourly(slot):
        wrong.append(f"{place['file']}: hourly files add up, longer ones do not")
    return wrong


def rivals(files: Iterable[Mapping[str, Any]]) -> list[str]:
    """Slots of which more than one publication is told to be the current one."""
    found = Counter((one["contract"], one["slot"]) for one in files if one["is_current"])
    return [
        f"{slot}: it has {number} current files"
        for (_contract, slot), number in found.items()
        if slot and number > 1
    ]


# Of these rules the ballots' own texts are not needed: a constituency may have gigabytes.
PLAIN = frozenset(
    (
        *("votes_exceed_bulletins", "turnout_over_registered", "duplicate_vote_key"),
        *("outside_voting_window", "vote_without_main_key", "results_mismatch"),
        *("roll_changed_during_voting", "rollback_burst", "rolled_back_for_good"),
    )
)
PLACE = ("contract", "slot", "is_cumulative", "is_current", "file", "file_sha256")
Where = tuple[str, str, int]  # SHA-256 of the file, its name, the line


class Bundle:
    """Everything that lies beside this script."""

    def __init__(self) -> None:
        """Read the finding and its lines."""
        self.finding = json.loads((HERE / "finding.json").read_text(encoding="utf-8"))
        self.details: dict[str, Any] = self.finding["details"]
        self.is_statistical = self.finding["class"] == "statistical"
        self.choice = choice_of(self.finding["rule"], self.is_statistical, self.details)
        self.files: list[dict[str, Any]] = self.finding.get("files", [])
        self.mended = {where_of(one): one["text"] for one in self.finding.get("mended", ())}
        self.refused = {where_of(one): one["reason"] for one in self.finding.get("rejected", ())}
        self.rows: list[Row] = []
        self.doubted: list[Row] = []  # told to be refused, and nothing is wrong with them here
        self.bad: list[Where] = []  # lines that are no rows
        self.altered: list[str] = []
        self.wrong: list[str] = []  # what stands where it cannot be
        self.sums: dict[str, dict[int, bytes]] = defaultdict(dict)  # by the file's SHA-256
        self.sizes: dict[tuple[str, int], int] = {}  # of long lines that are no rows
        self.lines = 0
        self.read()

    def read(self) -> None:
        """Read the lines, one after the other, and keep what the rule needs of them."""
        place: Place = {}
        before = 0
        known: dict[tuple[str, str, str], str] = {}
        told = {
            tuple(as_text(one["sha256" if name == "file_sha256" else name]) for name in PLACE)
            for one in self.files
        }
        for line in stream_table("lines.csv"):
            self.lines += 1
            number, raw = int(line["line"]), raw_of(line)
            name = f"{line['file']} line {number}"
            digest = hashlib.sha256(raw)
            if digest.hexdigest() != line["line_sha256"]:
                self.altered.append(name)
            cells = {each: line[each] for each in PLACE}
            if cells != place:
                same = (cells["file_sha256"], cells["contract"], cells["slot"])
                if same in known:
                    self.wrong.append(f"{name}: a file stands there twice")
                known[same] = cells["file"]
                place, before = cells, 0
                if tuple(cells.values()) not in told:
                    self.wrong.append(f"{name}: finding.json tells another contract, slot or file")
                self.wrong += misplaced(cells)
            if number <= before:
                self.wrong.append(f"{name}: the line stands there twice, or out of order")
            before = number
            self.sums[line["file_sha256"]][number] = digest.digest()
            self.take(place, number, raw)
        self.wrong += rivals(self.files)

    def take(self, place: Place, number: int, raw: bytes) -> None:
        """Keep a line as a row, if it is one."""
        where = (place["file_sha256"], place["file"], number)
        text = self.mended[where].encode() if where in self.mended else raw
        row = row_of(place, number, text)
        if row is None or not is_sound(row):
            self.bad.append(where)
            if len(raw) >= LONG:
                self.sizes[place["file_sha256"], number] = len(raw)
            return
        if self.finding["rule"] in PLAIN or self.is_statistical:
            is_ballot = row.operation in BALLOTS
            if is_ballot:
                row = row._replace(columns=(*row.columns[:8], "", "", "", row.columns[11]))
        (self.doubted if where in self.refused else self.rows).append(row)

    @property
    def untold(self) -> list[Where]:
        """Lines that are no rows here, and were none that was refused."""
        return [where for where in self.bad if where not in self.refused]

    @property
    def current(self) -> list[Row]:
        return [row for row in self.rows if row.place["is_current"] == "1"]

    @cached_property
    def by_id(self) -> dict[str, list[Row]]:
        found = defaultdict(list)
        for row in self.current:
            found[row.id].append(row)
        return found

    @cached_property
    def standings(self) -> dict[str, Standing]:
        found = {key: standing_of(rows) for key, rows in self.by_id.items()}
        return {key: each for key, each in found.items() if each is not None}

    def on_chain(self, *operations: str) -> list[Standing]:
        """Transactions of these operations that count."""
        return [
            one
            for one in self.standings.values()
            if one.net > 0 and one.shown.operation in operations
        ]

    @property
    def listed(self) -> list[Standing]:
        """The transactions that the finding names."""
        told = self.details.get("tx_ids") or ()
        return [self.standings[key] for key in told if key in self.standings]

    @cached_property
    def shift(self) -> timedelta:
        """How far the clock of the file names is ahead of UTC: by the rows of the servers."""
        counted = Counter(
            round((begin_of(row.place["slot"]) - hour_of(row.ts)) / timedelta(hours=1))
            for row in self.current
            if "_" in row.place["slot"] and row.operation not in BALLOTS and row.is_plus
        )
        if counted:
            best = min(counted, key=lambda one: (-counted[one], abs(one), one))
        else:
            best = round(self.details.get("shift_hours") or 0)
        return timedelta(hours=best)


def begin_of(slot: str) -> datetime:
    """When a slot begins by the clock of its name."""
    return datetime.strptime(slot[:15], "%Y-%m-%d_%H%M").replace(tzinfo=UTC)


def hour_of(ts: int) -> datetime:
    """The hour of a time in milliseconds."""
    return datetime.fromtimestamp(ts // HOUR_MS * 3600, UTC)


# Integrity ----------------------------------------------------------------------------------

Answer = tuple[bool, str]


def votes_exceed_bulletins(bundle: Bundle) -> Answer:
    """Bulletins that only a cumulative file has count from the start, such votes at the end."""
    slots: dict[str, Counter[str]] = defaultdict(Counter)
    for one in bundle.standings.values():
        slots[one.slot][one.tally] += 1
    bulletins = slots[""]["bulletin"]
    votes = most = 0
    for slot in sorted(slots.keys() - {""}):
        bulletins += slots[slot]["bulletin"]
        votes += slots[slot]["vote"]
        most = max(most, votes - bulletins)
    most = max(most, votes + slots[""]["vote"] - bulletins)
    return most > 0, f"up to {most} more votes than bulletins"


def turnout_over_registered(bundle: Bundle) -> Answer:
    issued = sum(one.tally == "bulletin" for one in bundle.standings.values())
    added = sum(map(persons_of, bundle.on_chain("addVotersList", "addToVotersList")))
    removed = sum(map(persons_of, bundle.on_chain("removeFromVotersList")))
    return issued > added - removed, f"{issued} bulletins, {added} voters and {removed} removed"


def persons_of(one: Standing) -> int:
    """How many voters a list has."""
    told = one.shown.value("userIdHashes")
    return len(json.loads(told)) if isinstance(told, str) else len(told or ())


def duplicate_vote_key(bundle: Bundle) -> Answer:
    votes = [one for one in bundle.standings.values() if one.tally == "vote"]
    keys = Counter(one.shown.columns[5] for one in votes)
    if sender := bundle.details.get("sender"):
        return keys[sender] > 1, f"{keys[sender]} accepted votes by the key"
    refused = [one for one in bundle.standings.values() if one.tally == "vote_rejected"]
    again = sum(one.shown.columns[5] in keys for one in refused)
    return again > bundle.details["threshold"] * len(votes), f"{again} second votes refused"


def duplicate_transaction(bundle: Bundle) -> Answer:
    for one in bundle.listed:
        plus = [row for row in one.rows if row.is_plus]
        hourly = [row for row in one.rows if row.place["is_cumulative"] == "0"]
        net = sum(1 if row.is_plus else -1 for row in hourly)
        files = {row.place["file_sha256"] + row.place["slot"] for row in plus}
        if net > 1 or (len(plus) == len(one.rows) and len(plus) > len(files)):
            return True, f"{len(plus)} lines hold {one.shown.id}"
    return False, "no transaction stands there twice"


def content_of(row: Row) -> tuple[Any, ...]:
    """What a row says, JSON as JSON: without what it wrote, and what it wrote."""
    texts = [row.columns[at].strip() for at in (1, 2, 3, 4, 5, 6, 7)]
    # A number is the same however it is written.
    body = [int(text or 0) if at in (0, 2, 3, 5) else text for at, text in enumerate(texts)]
    return repr(body), repr(entries(row.columns[8])), row.columns[10], repr(entries(row.columns[9]))


def transaction_rewritten(bundle: Bundle) -> Answer:
    for one in bundle.listed:
        plus = [row for row in one.rows if row.is_plus]
        told = {content_of(row) for row in plus}
        if len({each[:3] for each in told}) > 1 or len({each[3] for each in told}) > 1:
            return True, f"{len(told)} contents of {one.shown.id}"
    return False, "all contents are the same"


def transaction_in_two_contracts(bundle: Bundle) -> Answer:
    found = {
        key: {row.place["contract"] for row in rows if row.is_plus}
        for key, rows in bundle.by_id.items()
    }
    most = max((len(found.get(key, ())) for key in bundle.details["tx_ids"]), default=0)
    return most > 1, f"it stands in the files of {most} contracts"


def publications(bundle: Bundle) -> tuple[list[Row], list[Row]]:
    """The rows of the superseded publications of a slot, and of the current one."""
    older = [row for row in bundle.rows if row.place["is_current"] == "0"]
    return older, bundle.current


def slot_republished(bundle: Bundle) -> Answer:
    slot = bundle.details["slot"]
    files = {one["sha256"] for one in bundle.files if (one["slot"] or "-") == slot}
    contents: dict[str, dict[str, set[tuple[Any, ...]]]] = {sha256: {} for sha256 in files}
    for row in bundle.rows:
        if row.is_plus and row.place["file_sha256"] in files:
            mine = contents[row.place["file_sha256"]]
            mine.setdefault(row.id, set()).add(content_of(row))
    everything = {key for each in contents.values() for key in each}
    gone_or_added = {
        key for key in everything if any(key not in each for each in contents.values())
    }
    changed = {
        key
        for key in everything
        if len({frozenset(each.get(key, ())) for each in contents.values()} - {frozenset()}) > 1
    }
    told = (
        f"{len(files)} publications: {len(changed)} lines changed, {len(gone_or_added)} not in all"
    )
    differ = bool(changed or gone_or_added) or not bundle.details["observed"]
    return len(files) > 1 and differ and files >= set(bundle.details["publications"]), told


def history_withdrawn(bundle: Bundle) -> Answer:
    older, newer = publications(bundle)
    lost = {row.id for row in older if row.is_plus} - {row.id for row in newer if row.is_plus}
    named = set(bundle.details["tx_ids"])
    return named <= lost and bool(named), f"{len(named & lost)} of {len(named)} named are gone"


def whole_export_differs(bundle: Bundle) -> Answer:
    slot = bundle.details["slot"]
    whole = {row.id for row in bundle.current if row.place["slot"] == slot and row.is_plus}
    hourly = {row.id for row in bundle.current if row.place["is_cumulative"] == "0" and row.is_plus}
    lacking, surplus = len(hourly - whole), len(whole - hourly)
    named = set(bundle.details["tx_ids"])
    told = f"the export lacks {lacking} of the hourly files' and has {surplus} that they lack"
    return bool(named) and named <= hourly ^ whole, told


def window_of(bundle: Bundle) -> tuple[float, float]:
    """When the voting begins and ends, as the contract said before it was over."""
    start, end = -math.inf, math.inf
    rows = sorted(bundle.on_chain("createContract", "startVoting"), key=lambda one: one.shown.ts)
    for one in rows:
        base: dict[str, Any] = {}
        for entry in entries(one.shown.columns[9]):
            if entry.get("key") == "VOTING_BASE":
                told = entry.get("stringValue")
                base |= json.loads(told) if isinstance(told, str) else {}
        for name in ("dateStart", "dateEnd"):
            told = base.get(name) or one.shown.value(name)
            if told:
                moment = moment_of(told)
                start, end = (moment, end) if name == "dateStart" else (start, moment)
        if one.shown.operation == "startVoting" and start == -math.inf:
            start = one.shown.ts
    # What no line tells may stand in the settings.
    told = bundle.finding.get("voting") or {}
    if start == -math.inf and told.get("start"):
        start = moment_in(told["start"]).timestamp() * 1000
    if end == math.inf and told.get("end"):
        end = moment_in(told["end"]).timestamp() * 1000
    return start, end


def moment_of(told: Any) -> float:
    """A time of the protocol in milliseconds."""
    if isinstance(told, (int, float)):
        return float(told)
    moment = datetime.strptime(str(told), "%d-%m-%Y %H:%M:%S").replace(tzinfo=UTC)
    return moment.timestamp() * 1000


def outside_voting_window(bundle: Bundle) -> Answer:
    start, end = window_of(bundle)
    threshold = bundle.details["threshold"]
    grace = {"vote": threshold["vote_grace_minutes"] * 60_000}
    usual = threshold["bulletin_grace_minutes"] * 60_000
    outside = 0
    ids = set(bundle.details["tx_ids"])
    slots = set(bundle.details["slots"])
    by_slot = bundle.finding["subject"] == "accepted"
    some = [
        one
        for one in bundle.on_chain(*BALLOTS)
        if one.shown.id in ids or (by_slot and one.slot in slots)
    ]
    for one in some:
        last = end + grace.get(one.shown.operation, usual)
        if by_slot and one.slot:
            begin = (begin_of(one.slot) - bundle.shift).timestamp() * 1000
            outside += begin + HOUR_MS <= start or begin >= last
        else:
            outside += not start <= one.shown.ts < last
    return outside > 0, f"{outside} of {len(some)} ballots are outside of the voting"


def vote_without_main_key(bundle: Bundle) -> Answer:
    keys = [one.slot for one in bundle.on_chain("addMainKey") if one.slot]
    early = [
        one
        for one in bundle.standings.values()
        if keys and one.tally == "vote" and one.slot and one.slot < min(keys)
    ]
    return bool(early), f"{len(early)} votes before the slot of the main key"


def lifecycle_order(bundle: Bundle) -> Answer:
    subject = bundle.finding["subject"]
    finishes = bundle.on_chain("finishVoting")
    if subject not in ("after_finish", "before_finish"):
        again = {content_of(one.shown)[1] for one in bundle.on_chain(subject)}
        return len(again) > 1, f"{len(again)} values of {subject}"
    if not finishes:
        return False, "there is no finish"
    finish = min(finishes, key=lambda one: (not one.slot, one.slot, one.shown.ts))
    if subject == "after_finish":
        late = [
            one
            for one in bundle.standings.values()
            if finish.slot and one.slot > finish.slot and one.tally in ("bulletin", "vote")
        ]
        return bool(late), f"{len(late)} ballots after the finish"
    endings = bundle.on_chain("decryption", "commissionDecryption", "results")
    early = [one for one in endings if place_in_chain(one) < place_in_chain(finish)]
    return bool(early), f"{len(early)} endings before the finish"


def place_in_chain(one: Standing) -> tuple[str, int]:
    """The order of the chain, as far as it is known: by the slot, then by the clock."""
    return one.slot, one.shown.ts


def roll_changed_during_voting(bundle: Bundle) -> Answer:
    subject = bundle.finding["subject"]
    if subject == "list":
        start = min(map(place_in_chain, bundle.on_chain("startVoting")), default=("~", 0))
        late = [one for one in bundle.on_chain("addVotersList") if place_in_chain(one) > start]
        return bool(late), f"{sum(map(persons_of, late))} voters in lists after the start"
    word, hour = subject.split(" ")
    operation = {"restored": "addToVotersList", "removed": "removeFromVotersList"}[word]
    moved = sum(
        persons_of(one)
        for one in bundle.on_chain(operation)
        if f"{hour_of(one.shown.ts):%Y-%m-%dT%H}" == hour
    )
    return moved > bundle.details["threshold"], f"{moved} voters {word} in that hour"


def results_mismatch(bundle: Bundle) -> Answer:
    told = [json.loads(one.shown.value("results")) for one in bundle.on_chain("results")]
    subject = bundle.finding["subject"]
    if subject == "vectors":
        return any(vector != told[0] for vector in told), f"{len(told)} results"
    way, number = subject.split(" ")
    votes = [one for one in bundle.standings.values() if one.tally == "vote"]
    least, most = bundle.details["dimension"][int(number) - 1][:2]
    sums = [sum(vector[int(number) - 1]) for vector in told]
    voters = len({one.shown.columns[5] for one in votes})
    words = f"the results sum to {sums}, of {len(votes)} votes"
    if way == "more":
        return any(total > len(votes) * most for total in sums), words
    return any(total < voters * least for total in sums), words


def bulletin_for_many(bundle: Bundle) -> Answer:
    most = 0
    for one in bundle.listed:
        data = one.shown.value("data")
        persons = json.loads(data) if isinstance(data, str) else data or ()
        most = max(most, len({json.dumps(each, sort_keys=True) for each in persons}))
    return most > 1, f"up to {most} persons in one bulletin"


def unknown_operation(bundle: Bundle) -> Answer:
    named = [one for one in bundle.listed if one.shown.operation == bundle.details["operation"]]
    return bool(named), f"{len(named)} lines hold the operation"


# Files --------------------------------------------------------------------------------------


def next_slot(slot: str) -> datetime:
    """When the slot after one begins."""
    return begin_of(slot) + timedelta(hours=1)


def missing_hour(bundle: Bundle) -> Answer:
    hours: dict[datetime, set[str]] = defaultdict(set)
    for row in read_table("slots.csv"):
        hours[begin_of(row["slot"])].add(row["contract"])
    contract = bundle.finding["contract_id"]
    mark = max(hours, default=datetime.min.replace(tzinfo=UTC))
    absent = [
        slot for slot in bundle.details["slots"] if contract not in hours.get(begin_of(slot), ())
    ]
    is_past = all(begin_of(slot) <= mark for slot in absent)
    others = max((len(hours.get(begin_of(slot), ())) for slot in absent), default=0)
    told = f"no file of {len(absent)} hours, of which up to {others} others have one"
    return bool(absent) and len(absent) == len(bundle.details["slots"]) and is_past, told


def constituency_missing(bundle: Bundle) -> Answer:
    slots = read_table("slots.csv")
    if contract := bundle.details.get("contract"):
        mine = [row for row in slots if row["contract"] == contract]
        others = len({row["slot"] for row in slots})
        return not mine and others > 0, f"{len(mine)} files of it, {others} hours of others"
    rolls = read_table("rolls.csv")
    roll, ballot = bundle.details["roll"], bundle.details["ballot"]
    contract = bundle.finding["contract_id"]
    own = next(row["election"] for row in rolls if row["contract"] == contract)
    here, there = rolls_of(rolls, own), rolls_of(rolls, ballot)
    # Each is the twin of one at most: both sides are gone through in the order of their rolls.
    alone, place = [], 0
    for number, one in here:
        while place < len(there) and there[place][0] < number * 0.999:
            place += 1
        if place < len(there) and there[place][0] <= number * 1.001:
            place += 1
        else:
            alone.append(one)
    told = f"{len(here) - len(alone)} of {len(here)} constituencies have a twin of that ballot"
    return contract in alone, f"{told}; {roll} voters here"


def rolls_of(rows: Iterable[dict[str, str]], ballot: str) -> list[tuple[int, str]]:
    """Rolls and contracts of one ballot, in order."""
    mine = [row for row in rows if row["election"] == ballot and row["roll"] not in ("", "0")]
    return sorted((int(row["roll"]), row["contract"]) for row in mine)


def silent_feed(bundle: Bundle) -> Answer:
    return bundle.details["votings"] > 0, f"the last file came at {bundle.details['last_file']}"


def file_rejected(bundle: Bundle) -> Answer | None:
    bad = len(bundle.bad)
    if not bad:
        return None
    return True, f"{bad} of {bundle.lines} lines are no rows"


def reject_share(bundle: Bundle) -> Answer | None:
    told = f"{len(bundle.bad)} of {bundle.lines} lines that were set aside are no rows"
    for one in bundle.doubted[:MOST_NAMED]:
        where = (one.place["file_sha256"], one.place["file"], one.line)
        print(f"nothing is wrong here with line {one.line}, refused as {bundle.refused[where]}")
    if bundle.doubted:
        return None
    return bool(bundle.bad) and not bundle.rows, told


def late_file(bundle: Bundle) -> Answer:
    hours: dict[str, dict[str, datetime]] = defaultdict(dict)
    for row in read_table("times.csv"):
        at = datetime.fromisoformat(row["written_at"])
        mine = hours[row["slot"]]
        mine[row["contract"]] = min(at, mine.get(row["contract"], at))
    slot = bundle.details["worst_slot"]
    if slot not in hours:
        return False, "the times of that hour are not here"
    times = sorted(hours[slot].values())
    usual = times[2 * (len(times) - 1) // 4]
    whose = bundle.details.get("contracts") or [bundle.finding["contract_id"]]
    latest = max(hours[slot].get(contract, usual) for contract in whose)
    late = (latest - usual) / timedelta(hours=1)
    return late > bundle.details["threshold"], f"{late:.1f} h after the middle one of its hour"


def ts_out_of_slot(bundle: Bundle) -> Answer:
    shift = timedelta(hours=bundle.details["shift_hours"])
    minutes = int(bundle.details["expected"].split(" ")[1])
    begin = begin_of(bundle.details["slot"]) - shift
    farthest = 0.0
    for one in bundle.listed:
        at = datetime.fromtimestamp(one.shown.ts / 1000, UTC)
        off = max(begin - at, at - begin - timedelta(hours=1)) / timedelta(minutes=1)
        farthest = max(farthest, off)
    return farthest >= minutes, f"up to {farthest:.0f} minutes outside of the hour"


def rollback_burst(bundle: Bundle) -> Answer:
    rows = {row["contract"]: row for row in read_table("rollbacks.csv")}
    begin = moment_in(bundle.details["window"]["utc"][0])
    seen: Counter[str] = Counter()
    for one in bundle.standings.values():
        if one.net <= 0 and hour_of(one.shown.ts) == begin:
            seen[one.shown.place["contract"]] += 1
    total = sum(int(row["rolled_back"]) for row in rows.values())
    everything = sum(int(row["rows"]) for row in rows.values())
    held, found = bundle.details["threshold"], 0
    for contract in bundle.details.get("contracts") or [bundle.details["contract"]]:
        number, of = seen[contract], int(rows[contract]["rows"])
        share = (total - number + 1) / (everything - of + 2)
        z = (number - share * of) / max(math.sqrt(max(share * of * (1 - share), 1e-9)), 1.0)
        is_burst = number >= held["share"] * of or z >= held["z"]
        found += number >= held["least"] and is_burst
    return found > 0, f"{sum(seen.values())} rolled back in that hour, by the lines"


def rolled_back_for_good(bundle: Bundle) -> Answer:
    lost = [one for one in bundle.listed if one.net <= 0 and one.shown.operation in BALLOTS]
    return bool(lost), f"{len(lost)} of {len(bundle.listed)} named are rolled back"


# Numbers of the peers -----------------------------------------------------------------------

Table = list[list[float]]
ROBUST, PRIOR, VOTERS, FLOOR, LIVELY = 1.4826, 10.0, 200.0, 5e-5, 0.005


class Peers:
    """The hours of all votings that are compared: rows are constituencies, columns hours."""

    def __init__(self) -> None:
        """Read hours.csv."""
        cells: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in read_table("hours.csv"):
            cells[row["contract"]].append(row)
        self.contracts = list(cells)
        self.cells = [cells[contract] for contract in self.contracts]
        self.size, self.hours = len(self.cells), len(self.cells[0])
        self.roll = [float(rows[0]["roll"]) for rows in self.cells]
        self.region = [int(rows[0]["region"]) for rows in self.cells]
        self.regions = max(self.region) + 1
        self.known = [[row["is_known"] == "1" for row in rows] for rows in self.cells]
        self.sound = [[row["is_provisional"] == "0" for row in rows] for rows in self.cells]

    def counts(self, name: str) -> Table:
        """One series; 0 where nothing is known."""
        return [
            [float(row[name]) if known else 0.0 for row, known in zip(rows, flags, strict=True)]
            for rows, flags in zip(self.cells, self.known, strict=True)
        ]

    def place(self, contract: str, utc: str) -> tuple[int, int]:
        """Which row and column an hour is."""
        one = self.contracts.index(contract)
        return one, next(at for at, row in enumerate(self.cells[one]) if row["utc"] == utc)

    def sums(self, values: Sequence[float]) -> list[float]:
        """By region."""
        found = [0.0] * self.regions
        for region, value in zip(self.region, values, strict=True):
            found[region] += value
        return found


def tail(x: float, mu: float, phi: float) -> tuple[bool, float]:
    """Whether x is high, and the mid-p tail of the negative binomial: mean mu, mu + phi mu^2.

    P(k) = G(k + r) / (k! G(r)) q^k (1 - q)^r with r = 1 / phi and q = mu / (mu + r); each next
    term is q (k + r) / (k + 1) times the one before.
    """
    mu, r = max(mu, 1e-9), 1 / phi
    q = mu / (mu + r)
    x = round(x)
    log = math.lgamma(x + r) - math.lgamma(x + 1) - math.lgamma(r)
    here = math.exp(log + x * math.log(q) + r * math.log1p(-q))
    is_high = x >= mu
    total, term, k = here / 2, here, x
    while term > total * 1e-16 and (is_high or k > 0):
        if is_high:
            term *= q * (k + r) / (k + 1)
            k += 1
        else:
            term *= k / (q * (k - 1 + r))
            k -= 1
        total += term
    return is_high, min(max(total, 1e-300), 1.0)


def z_of(x: float, mu: float, phi: float) -> float:
    """The normal quantile of that tail."""
    is_high, chance = tail(x, mu, phi)
    z = NormalDist().inv_cdf(min(chance, 1 - 1e-16))
    return max(-37.0, min(37.0, -z if is_high else z))


def scale_of(values: Sequence[float]) -> float:
    """1.4826 times the median absolute deviation."""
    middle = median(values)
    return ROBUST * median([abs(value - middle) for value in values])


def phi_of(cells: Sequence[tuple[float, float]]) -> float:
    """Overdispersion of (count, mu), robustly."""
    off = scale_of([(x - mu) / mu for x, mu in cells])
    return max(0.01, off**2 - sum(1 / mu for _, mu in cells) / len(cells))


def phi_by_hour(counts: Table, mu: Table, known: Sequence[Sequence[bool]]) -> list[float]:
    """By block from cells of mu >= 10; under 30 of them the median of the earlier hours."""
    phi, found = [], []
    for hour in range(len(counts[0])):
        cells = [
            (counts[one][hour], mu[one][hour])
            for one in range(len(counts))
            if known[one][hour] and mu[one][hour] >= 10  # noqa: PLR2004 - the formula
        ]
        if len(cells) >= 30:  # noqa: PLR2004 - the formula
            found.append(phi_of(cells))
            phi.append(found[-1])
        else:
            phi.append(median(found) if found else 0.05)
    return phi


def noise_by_hour(
    counts: Table, mu: Table, doubt: Table, known: Sequence[Sequence[bool]]
) -> list[tuple[float, float]]:
    """What an hour varies by, and the share of the doubt that it bears out; see `formula`."""
    noise: list[tuple[float, float]] = []
    found: list[float] = []
    for hour in range(len(counts[0])):
        cells = [
            (counts[one][hour], mu[one][hour], doubt[one][hour])
            for one in range(len(counts))
            if known[one][hour] and mu[one][hour] >= 10  # noqa: PLR2004 - the formula
        ]
        if len(cells) >= 30:  # noqa: PLR2004 - the formula
            own, share = noise_of(cells)
            found.append(own)
            usual = median(found) if len(found) >= 6 else own  # noqa: PLR2004 - the formula
            noise.append((0.3 * own + 0.7 * usual, share))
        else:
            noise.append((median(found) if found else 0.05, 1.0))
    return noise


def noise_of(cells: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Where the robust scale of (x - mu) / sqrt(mu + (noise + share * doubt) mu^2) is 1."""

    def is_wider(noise: float, share: float) -> bool:
        off = ((x - mu) / math.sqrt(mu + (noise + share * dt) * mu**2) for x, mu, dt in cells)
        return scale_of(list(off)) > 1

    if is_wider(0.005, 1.0):
        return halved(lambda noise: is_wider(noise, 1.0), 0.005, 4.0), 1.0
    return 0.005, halved(lambda share: is_wider(0.005, share), 0.0, 1.0)


def halved(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Halve the range in which something ceases to hold, twenty times."""
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


class Expected(NamedTuple):
    """What the peers make likely."""

    mu: Table
    phi: Table
    slow: Table
    rate: list[float]


def expect(peers: Peers, counts: Table) -> Expected:
    """Two passes; in the second, counts are cut at mu + 4 sd + 3."""
    cut = counts
    for _ in range(2):
        mu, slow, doubt, rate = walk(peers, counts, cut)
        noise = noise_by_hour(counts, mu, doubt, peers.known)
        phi = [
            [max(own + share * value, 0.01) for (own, share), value in zip(noise, row, strict=True)]
            for row in doubt
        ]
        cut = [
            [min(x, m + 4 * math.sqrt(m + p * m * m) + 3) for x, m, p in zip(*rows, strict=True)]
            for rows in zip(counts, mu, phi, strict=True)
        ]
    return Expected(mu, phi, slow, rate)


def walk(peers: Peers, counts: Table, cut: Table) -> tuple[Table, Table, Table, list[float]]:
    """Mu = min(N k rate, N - own so far), hour by hour; see `formula` in finding.txt."""
    size, everybody = peers.size, range(peers.size)
    own, expected, slow_own, slow_expected, so_far = ([0.0] * size for _ in range(5))
    level = [1.0] * size
    mu, slow, doubt = ([[0.0] * peers.hours for _ in everybody] for _ in range(3))
    rates = []
    for hour in range(peers.hours):
        known = [flags[hour] for flags in peers.known]
        if hour % 6 == 0:
            level = [(PRIOR + slow_own[i]) / (PRIOR + slow_expected[i]) for i in everybody]
        k = [(PRIOR + own[i]) / (PRIOR + expected[i]) for i in everybody]
        weight = [peers.roll[i] * k[i] if known[i] else 0.0 for i in everybody]
        seen = [cut[i][hour] if known[i] else 0.0 for i in everybody]
        total, voters = sum(seen), sum(weight)
        rates.append(total / max(voters, 1e-3))
        near, around = peers.sums(seen), peers.sums(weight)
        kept = 0.8 ** min(1.0, rates[-1] / LIVELY)
        for i in everybody:
            nation = (total - seen[i]) / max(voters - weight[i], 1e-3)
            beside = max(around[peers.region[i]] - weight[i], 0.0)
            rate = (near[peers.region[i]] - seen[i] + VOTERS * nation) / (beside + VOTERS)
            rate = max(rate, FLOOR)
            left = max(peers.roll[i] - so_far[i], 1e-3)
            if known[i]:
                mu[i][hour] = min(peers.roll[i] * k[i] * rate, left)
                slow[i][hour] = min(peers.roll[i] * level[i] * rate, left)
            doubt[i][hour] = 1 / max(rate * (beside + VOTERS), 1e-3) + 1 / (PRIOR + expected[i])
            gained = peers.roll[i] * rate if known[i] else 0.0
            own[i], expected[i] = kept * own[i] + seen[i], kept * expected[i] + gained
            slow_own[i] = 0.95 * slow_own[i] + seen[i]
            slow_expected[i] = 0.95 * slow_expected[i] + gained
            so_far[i] += counts[i][hour]
    return mu, slow, doubt, rates


def compare(bundle: Bundle, name: str, found: float, *, is_far: bool) -> Answer:
    """Hold what was computed against what the finding says."""
    told = float(bundle.details["statistic"][name])
    words = f"{name} is {found:.4g} by these numbers, {told:g} was told"
    return is_far and abs(found - told) <= 0.02 + 0.01 * abs(told), words


def cell_of(bundle: Bundle, peers: Peers) -> tuple[int, int]:
    """The cell that the finding is about: its worst hour."""
    return peers.place(bundle.finding["contract_id"], bundle.details["worst_hour"])


def spike(bundle: Bundle) -> Answer:
    """The negative binomial's z of the worst hour."""
    peers, series = Peers(), bundle.details["series"]
    counts = peers.counts(series)
    one, hour = cell_of(bundle, peers)
    likely = expect(peers, counts)
    z = z_of(counts[one][hour], likely.mu[one][hour], likely.phi[one][hour])
    return compare(bundle, "z", z, is_far=abs(z) >= bundle.details["threshold"]["z"])


def sustained_shift(bundle: Bundle) -> Answer:
    """Blocks of six hours against the slow level."""
    peers = Peers()
    counts = peers.counts("bulletins")
    likely = expect(peers, counts)
    starts = range(0, peers.hours, 6)
    seen = [[sum(row[at : at + 6]) for at in starts] for row in counts]
    mu = [[sum(row[at : at + 6]) for at in starts] for row in likely.slow]
    covered = [[at > 0 and sum(row[at : at + 6]) >= 3 for at in starts] for row in peers.known]  # noqa: PLR2004 - half a block
    whole = [[sum(row[at : at + 6]) >= 3 for at in starts] for row in peers.known]  # noqa: PLR2004 - as above
    phi = phi_by_hour(seen, mu, whole)
    one, hour = cell_of(bundle, peers)
    block = hour // 6
    z = z_of(seen[one][block], mu[one][block], phi[block])
    is_far = covered[one][block] and abs(z) >= bundle.details["threshold"]["z"]
    return compare(bundle, "z", z, is_far=is_far)


def region_correlated(bundle: Bundle) -> Answer:
    """A region against the median of all."""
    peers = Peers()
    counts = peers.counts("bulletins")
    rate = expect(peers, counts).rate
    one, worst = peers.place(bundle.details["contracts"][0], bundle.details["worst_hour"])
    own, expected, scales = [0.0] * peers.regions, [0.0] * peers.regions, []
    t = 0.0
    for hour in range(worst + 1):
        known = [flags[hour] for flags in peers.known]
        voters = peers.sums(
            [roll if is_known else 0.0 for roll, is_known in zip(peers.roll, known, strict=True)]
        )
        seen = peers.sums([row[hour] for row in counts])
        share = sum(seen) / max(sum(voters), 1.0)
        mu = [
            voters[at] * rate[hour] * (10 + own[at]) / (10 + expected[at])
            for at in range(peers.regions)
        ]
        own = [0.8 * own[at] + seen[at] for at in range(peers.regions)]
        expected = [0.8 * expected[at] + voters[at] * share for at in range(peers.regions)]
        off = {at: seen[at] / mu[at] - 1 for at in range(peers.regions) if mu[at] >= 20}  # noqa: PLR2004 - the formula
        if len(off) > 5:  # noqa: PLR2004 - the formula
            scales.append(scale_of(list(off.values())))
            sd = max(scales[-1], median(scales), 0.10)
            at = peers.region[one]
            if at in off:
                t = (off[at] - median(off.values())) / math.sqrt(sd**2 + 1 / mu[at])
    return compare(bundle, "t", t, is_far=t >= bundle.details["threshold"]["t"])


def rejected_share(bundle: Bundle) -> Answer:
    """Wilson's lower bound of the share, 99.9 % one-sided."""
    peers, series = Peers(), bundle.details["series"]
    one, hour = cell_of(bundle, peers)
    kept = "votes" if series == "votes_rejected" else "bulletins"
    # What is not known of others counts as it stands: the region's share is of closed hours.
    some, good = float(peers.cells[one][hour][series]), float(peers.cells[one][hour][kept])
    share, square, total = some / max(some + good, 1), 3.0902**2, max(some + good, 1)
    off = 3.0902 * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    bound = max((share + square / (2 * total) - off) / (1 + square / total), 0.0)
    mine = [i for i in range(peers.size) if peers.region[i] == peers.region[one] and i != one]
    refused, accepted = (
        sum(sum(row[: hour + 1]) for at, row in enumerate(peers.counts(name)) if at in set(mine))
        for name in (series, kept)
    )
    usual = refused / max(refused + accepted, 1.0)
    line = bundle.details["threshold"]["share"]
    is_far = bound > line - 1e-4 and bound > usual
    return compare(bundle, "lower_bound", bound, is_far=is_far)


def peer_outlier(bundle: Bundle) -> Answer:
    """Turnout, uncast bulletins, votes without bulletins, or twins."""
    kinds = {"turnout": turnout, "uncast": uncast, "lag": lag, "twin": twin}
    return kinds[bundle.details["kind"]](bundle)


def turnout(bundle: Bundle) -> Answer:
    """The robust t of the logit of turnout in the region."""
    peers = Peers()
    one, hour = cell_of(bundle, peers)
    counts = peers.counts("bulletins")
    own, logit = {}, {}
    for i in range(peers.size):
        if peers.region[i] == peers.region[one] and peers.known[i][hour] and peers.sound[i][hour]:
            issued = sum(counts[i][: hour + 1])
            share = (issued + 0.5) / (max(peers.roll[i], issued) + 1)
            logit[i] = math.log(share / (1 - share))
            own[i] = 1 / ((peers.roll[i] + 1) * share * (1 - share))
    sd = max(scale_of(list(logit.values())), 0.14)
    extra = max(own[one] - median(own.values()), 0.0)
    t = (logit[one] - median(logit.values())) / math.sqrt(sd**2 + extra)
    freedom = max(3.0, 0.37 * (len(logit) - 1))
    is_far = student(t, freedom) < bundle.details["threshold"]["chance"]
    return compare(bundle, "t", t, is_far=is_far)


def student(t: float, freedom: float) -> float:
    """Both tails of Student's t, by Simpson's rule on the angle: t = sqrt(n) tan(a)."""
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    factor = math.exp(log) / math.sqrt(math.pi)
    first, last, steps = math.atan(abs(t) / math.sqrt(freedom)), math.pi / 2, 2_000
    width = (last - first) / steps
    values = [max(math.cos(first + at * width), 0.0) ** (freedom - 1) for at in range(steps + 1)]
    inner = 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    return float(2 * factor * width / 3 * (values[0] + inner + values[-1]))


def uncast(bundle: Bundle) -> Answer:
    """Bulletins without a vote against the share of the region's others."""
    peers = Peers()
    one, hour = cell_of(bundle, peers)
    bulletins, votes = peers.counts("bulletins"), peers.counts("votes")
    known = [peers.known[i][hour] and peers.sound[i][hour] for i in range(peers.size)]
    issued = [sum(row[: hour + 1]) for row in bulletins]
    left = [max(issued[i] - sum(votes[i][: hour + 1]), 0.0) for i in range(peers.size)]
    some = [left[i] if known[i] else 0.0 for i in range(peers.size)]
    whole = [issued[i] if known[i] else 0.0 for i in range(peers.size)]
    near, around = peers.sums(some), peers.sums(whole)
    mu, others = [], []
    for i in range(peers.size):
        nation = (sum(some) - some[i]) / max(sum(whole) - whole[i], 1.0)
        others.append(near[peers.region[i]] - some[i] + VOTERS * nation)
        share = others[i] / (around[peers.region[i]] - whole[i] + VOTERS)
        mu.append(max(whole[i] * share, 1e-3))
    cells = [(left[i], mu[i]) for i in range(peers.size) if known[i] and mu[i] >= 10]  # noqa: PLR2004 - the formula
    phi = phi_of(cells) if len(cells) >= 30 else 0.05  # noqa: PLR2004 - the formula
    z = z_of(left[one], mu[one], phi + 1 / max(others[one], 1.0))
    return compare(bundle, "z", z, is_far=abs(z) >= bundle.details["threshold"]["z"])


def lag(bundle: Bundle) -> Answer:
    """Votes against f (0.965 B + 0.03 B of the hour before)."""
    peers = Peers()
    one, hour = cell_of(bundle, peers)
    bulletins, votes = peers.counts("bulletins"), peers.counts("votes")
    base = [[0.0] * peers.hours for _ in range(peers.size)]
    cast = [[0.0] * peers.hours for _ in range(peers.size)]
    for i in range(peers.size):
        for at in range(peers.hours):
            if peers.known[i][at] and (at == 0 or peers.known[i][at - 1]):
                before = bulletins[i][at - 1] if at else 0.0
                base[i][at] = 0.965 * bulletins[i][at] + 0.03 * before
                cast[i][at] = votes[i][at]
    ratio = [
        sum(row[at] for row in cast) / max(sum(row[at] for row in base), 1e-9)
        for at in range(peers.hours)
    ]
    off = []
    for i in range(peers.size):
        for at in range(peers.hours):
            mu = base[i][at] * ratio[at]
            if mu >= 10:  # noqa: PLR2004 - the formula
                off.append((cast[i][at] - mu) / math.sqrt(mu))
    spread = max(0.05, scale_of(off) ** 2) if len(off) >= 30 else 0.05  # noqa: PLR2004 - the formula
    mu = base[one][hour] * ratio[hour]
    z = (cast[one][hour] - mu) / math.sqrt(spread * mu + (0.01 * mu) ** 2 + 1)
    return compare(bundle, "z", z, is_far=z >= bundle.details["threshold"]["z"])


def twin(bundle: Bundle) -> Answer:
    """Two ballots of one territory: (B1 - B2) / sqrt(0.012 (B1 + B2) + 1)."""
    peers = Peers()
    one, hour = cell_of(bundle, peers)
    other = peers.contracts.index(bundle.details["twin_contract"])
    counts = peers.counts("bulletins")
    mine, theirs = counts[one][hour], counts[other][hour]
    t = (mine - theirs) / math.sqrt(0.012 * (mine + theirs) + 1)
    return compare(bundle, "t", t, is_far=t >= bundle.details["threshold"]["t"])


def recounted(bundle: Bundle) -> str | None:
    """Where the raw lines of an hour do not give the number in the table; None where they do."""
    contract = bundle.finding["contract_id"]
    series = bundle.details.get("series")
    tallies = {
        "bulletins": "bulletin",
        "votes": "vote",
        "votes_rejected": "vote_rejected",
        "issues_rejected": "issue_rejected",
    }
    if not bundle.rows or contract is None or series not in tallies:
        return None
    peers = Peers()
    one, hour = peers.place(contract, bundle.details["worst_hour"])
    utc = peers.cells[one][hour]["utc"]
    found = sum(
        each.tally == tallies[series]
        and f"{hour_of(each.shown.ts):%Y-%m-%dT%H:%MZ}" == utc
        and each.shown.place["contract"] == contract
        for each in bundle.standings.values()
    )
    told = int(peers.cells[one][hour][series])
    return None if found == told else f"{found} {series} at {utc} by the lines, {told} in the table"


# The answer ---------------------------------------------------------------------------------

_ALL: tuple[Callable[[Bundle], Answer | None], ...] = (
    *(votes_exceed_bulletins, turnout_over_registered, duplicate_vote_key),
    *(duplicate_transaction, transaction_rewritten, transaction_in_two_contracts),
    *(slot_republished, history_withdrawn, whole_export_differs, outside_voting_window),
    *(vote_without_main_key, lifecycle_order, roll_changed_during_voting, results_mismatch),
    *(bulletin_for_many, unknown_operation, missing_hour, constituency_missing, silent_feed),
    *(file_rejected, reject_share, late_file, ts_out_of_slot, rollback_burst),
    *(rolled_back_for_good, sustained_shift, region_correlated, rejected_share, peer_outlier),
)
CHECKS = {check.__name__: check for check in _ALL} | dict.fromkeys(
    ("unusual_spike", "unusual_drop", "night_surge"), spike
)


def miscounted(bundle: Bundle) -> list[str]:
    """Hourly files whose ballots are other than finding.json says."""
    choice = bundle.choice
    if choice is None or choice.tokens is None or choice.since:
        return []
    counted: Counter[tuple[str, str, str]] = Counter()
    for one in bundle.standings.values():
        counted[one.shown.place["contract"], one.slot, one.tally] += 1
    operations = OPERATIONS[bundle.finding["rule"]]
    sums = {"blindSigIssue": ("bulletin", "bulletins"), "vote": ("vote", "votes")}
    found = []
    for file in bundle.files:
        if not file["is_current"] or file["is_cumulative"] or not file["slot"]:
            continue
        for operation in operations:
            if operation in sums:
                tally, name = sums[operation]
                number = counted[file["contract"], file["slot"], tally]
                if number != file[name]:
                    words = f"{number} {name} by the lines, {file[name]} are told"
                    found.append(f"{file['file']}: {words}")
    return found


# The files ----------------------------------------------------------------------------------


def files_in(folder: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Every CSV below a folder, bare or in a ZIP: its name, and how to open it."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".csv" and path.is_file():
            yield path.name, partial(opened_at, path)
        elif path.suffix.lower() == ".zip" and path.is_file():
            try:
                with zipfile.ZipFile(path) as archive:
                    yield from members_of(archive)
            except UNREADABLE as error:
                print(f"{path}: it cannot be read as a ZIP: {error}")


def opened_at(path: Path) -> IO[bytes]:
    """A file's bytes."""
    return path.open("rb")


def members_of(archive: zipfile.ZipFile) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Every CSV of a ZIP, and of the ZIPs in it."""
    for info in archive.infolist():
        name = info.filename.lower()
        if name.endswith(".csv"):
            yield info.filename, partial(archive.open, info)
        elif name.endswith(".zip"):
            with archive.open(info) as stream, zipfile.ZipFile(stream) as inner:
                yield from members_of(inner)


def sha256_of(stream: IO[bytes]) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def lines_in(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file by number: they end with LF, CR LF, or where there is no LF with CR."""
    number = 0
    for row in stream:
        text = row.removeprefix(b"\xef\xbb\xbf") if number == 0 else row
        is_cr = number == 0 and not text.endswith(b"\n")
        for part in text.split(b"\r") if is_cr else (text,):
            number += 1
            yield number, part.removesuffix(b"\n").removesuffix(b"\r")


class Compared(NamedTuple):
    """What the files of a folder say of the bundle."""

    strange: list[str]  # lines that do not stand so in their file
    left_out: list[str]  # lines that are not in the bundle, and should be
    absent: list[str]  # files that are not in the folder
    strangers: list[str]  # files of the contract of which the finding does not know


def compare_with(folder: Path, bundle: Bundle) -> Compared:
    """Hold every line of the bundle against the files, and the files against the bundle."""
    files = {one["sha256"]: one for one in bundle.files}
    wanted = set(bundle.sums)
    if bundle.choice is not None:
        wanted |= {one["sha256"] for one in bundle.files if is_needed(bundle, one)}
    found = Compared([], [], [], [])
    names: dict[str, list[str]] = defaultdict(list)
    contracts = {one["contract"] for one in bundle.files}
    for name, opened in files_in(folder):
        try:
            with opened() as stream:
                sha256 = sha256_of(stream)
        except UNREADABLE as error:
            print(f"{name}: it cannot be read: {error}")
            continue
        told = named_in(name)
        if sha256 not in files and sha256 not in wanted and told and told[0] in contracts:
            found.strangers.append(name)
        if sha256 in wanted:
            names[sha256].append(name)
            if len(names[sha256]) == 1:
                with opened() as stream:
                    compare_file(bundle, files.get(sha256, {"file": name}), sha256, stream, found)
    found.absent.extend(
        str(files.get(one, {}).get("file", one)) for one in sorted(wanted - names.keys())
    )
    for one in bundle.files:
        tellings = [told for told in map(named_in, names[one["sha256"]]) if told]
        if (
            tellings
            and one["contract"]
            and one["slot"]
            and (one["contract"], one["slot"][:15]) not in tellings
        ):
            found.strange.append(
                f"{one['file']}: its name in the folder tells another hour or contract"
            )
    return found


def is_needed(bundle: Bundle, file: Mapping[str, Any]) -> bool:
    """Whether all lines of a file that tell of the finding must be here."""
    slot = bundle.details.get("slot")
    if bundle.finding["rule"] in ("slot_republished", "history_withdrawn"):
        return (file["slot"] or "-") == slot
    return bool(file["is_current"])


def compare_file(
    bundle: Bundle, file: Mapping[str, Any], sha256: str, stream: IO[bytes], found: Compared
) -> None:
    """Hold the lines of one file against those of the bundle."""
    mine, seen = bundle.sums.get(sha256, {}), 0
    choice = bundle.choice if is_needed(bundle, file) else None
    for number, raw in lines_in(stream):
        name = f"{file['file']} line {number}"
        if number in mine:
            seen += 1
            kept = raw[: bundle.sizes.get((sha256, number), len(raw))]
            if hashlib.sha256(kept).digest() != mine[number]:
                found.strange.append(name)
        elif choice is not None and choice.takes(raw) and is_sound(row_of({}, number, raw)):
            found.left_out.append(name)
    if seen < len(mine):
        found.strange.append(f"{file['file']}: it has fewer lines")


# The answer ---------------------------------------------------------------------------------


def named(texts: Sequence[str]) -> str:
    """The first of many."""
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more


def is_forged(bundle: Bundle) -> bool:
    """Tell what cannot be so, by the bundle alone."""
    for words, found in (("altered", bundle.altered), ("cannot be", bundle.wrong)):
        if found:
            print(f"{words}: {named(found)}")
            return True
    print(f"{bundle.lines} raw lines, each as its SHA-256 says")
    return False


def holds_in(folder: Path | None, bundle: Bundle) -> int:
    """Tell what the files say: an exit status."""
    if folder is None:
        print("whether lines were left out was not checked against the files: name their folder")
        return 0
    found = compare_with(folder, bundle)
    status = 0
    for words, texts, is_wrong in (
        ("not so in these files", found.strange, True),
        ("left out of the bundle", found.left_out, True),
        ("not here, so that they cannot be compared", found.absent, False),
        ("files of the contract that the finding does not know", found.strangers, False),
    ):
        if texts:
            print(f"{words}: {named(texts)}")
            status = status or (1 if is_wrong else 2)
    if not status and bundle.lines:
        print("each line stands so in the files, and none is left out")
    return status


def answer_of(bundle: Bundle) -> int:
    """Tell what the rule says by the lines and numbers: an exit status."""
    if bundle.mended:
        places = [f"{file} line {line}" for _, file, line in bundle.mended]
        print(f"counted as a person has mended them: {named(places)}")
    is_sure = not bundle.doubted and not bundle.untold
    wrong = miscounted(bundle)
    if bundle.is_statistical and not bundle.finding.get("unread") and (off := recounted(bundle)):
        wrong.append(off)
    check = CHECKS.get(bundle.finding["rule"])
    answer = None if wrong else check(bundle) if check else None
    if wrong:
        print(named(wrong))
    elif answer is None:
        print("what is here cannot tell: see the formula in finding.txt")
        return 2
    else:
        print(answer[1])
    if answer and answer[0]:
        print("it holds")
        return 0
    if not is_sure and bundle.finding["rule"] != "reject_share":
        doubted = [f"{row.place['file']} line {row.line}" for row in bundle.doubted]
        unsure = [f"{file} line {line}" for _, file, line in bundle.untold]
        print(f"it cannot tell: these lines were judged otherwise: {named([*doubted, *unsure])}")
        return 2
    print("it does NOT hold by what is here")
    return 1


def main() -> int:
    """Tell what was found out; the exit status says it, too."""
    bundle = Bundle()
    print(bundle.finding["title"])
    if is_forged(bundle):
        return 1
    if bundle.finding.get("is_due"):
        print("counts had changed and were not judged yet when this was exported: export it again")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if folder is not None and not folder.is_dir():
        print(f"{folder}: it is no folder")
        return 2
    status = holds_in(folder, bundle)
    if status:
        print("it cannot be checked against this folder" if status == 2 else "it does NOT hold")  # noqa: PLR2004 - as the docstring at the top says
        return status
    if unread := bundle.finding.get("unread"):
        print(f"files that could not be read when this was exported: {named(unread)}")
        if not bundle.is_statistical:
            print("it cannot be checked without them")
            return 2
        print("the numbers of the hours were not counted again from the lines")
    return answer_of(bundle)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        # Python's own status would say that it does not hold.
        print(f"it cannot be checked: {type(error).__name__}: {error}")
        sys.exit(2)
