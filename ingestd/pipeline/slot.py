"""What a file's name and folders say: its contract, its slot, its place.

Source of the forms: the observer portal's exports. Only the base name names a
slot; folders may name the contract, and tell region, election and constituency.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import MAXYEAR, date, timedelta
from functools import lru_cache

from ingestd.pipeline.base58 import decodes_to

_CONTRACT = r"[1-9A-HJ-NP-Za-km-z]{32,44}"
_DATE = r"(?<![0-9])(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
_INTERVAL = re.compile(_DATE + r"_(?P<start>[0-9]{4})-(?P<end>[0-9]{4})(?![0-9])")
# A date before digits may be an hour in a form that nobody has seen: not a day.
_DAY = re.compile(_DATE + r"(?![0-9]|[-_ T.]+[0-9])")
_LOOKS_DATED = re.compile(r"[0-9]{1,4}[-._][0-9]{1,2}[-._][0-9]{1,4}|[0-9]{6}")
# Begins where a run of dashes does: from inside the run it would be tried in quadratic time.
_ANOMALY = re.compile(r"(?<![-_ ])[-_ ]+anomaly.*", re.IGNORECASE | re.DOTALL)
_NAMED = re.compile(rf"(?P<contract>{_CONTRACT})_$")
_ALONE = re.compile(rf"(?<![0-9A-Za-z])(?P<contract>{_CONTRACT})(?![0-9A-Za-z])")
_REGION = re.compile(r"\s*(?P<code>[0-9]{1,3})\s+-\s+(?P<name>\S.*)", re.DOTALL)
_SPACES = re.compile(r"\s+")
_MINUTES_A_DAY = 24 * 60
_MINUTES_AN_HOUR = 60

WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Slot:
    """What a name says that a file covers, as named: the zone of the hours is unknown.

    `text` sorts by start within one contract. A file of at most one hour is an
    interval file; a longer one is cumulative.
    """

    text: str
    is_cumulative: bool


@dataclass(frozen=True, slots=True)
class Place:
    """What the folders tell; `path` is the raw path that told it."""

    region_code: str
    region_name: str
    election: str | None
    constituency: str | None
    path: str


def is_contract_id(text: str) -> bool:
    """Say whether a name is a contract id: base58 of 32 bytes."""
    return decodes_to(text, 32)


@lru_cache(maxsize=1024)
def parse_name(name: str) -> tuple[str | None, Slot | None]:
    """Read contract and slot from a base name, from the right; None for what it does not tell.

    A tail (`-copy`, ` (1)`, `-anomaly…`) changes nothing. A name that holds a
    contract id and no date is a whole-voting file; a date that cannot be read
    leaves the slot untold, since a wrong one would replace another file.
    """
    stem = name.rsplit(".", 1)[0] if name.lower().endswith((".csv", ".zip")) else name
    stem = _ANOMALY.sub("", stem)
    slot, before = _slot_in(stem)
    contract = _contract_in(stem, before)
    if contract and slot is None and not _LOOKS_DATED.search(stem.replace(contract, "")):
        slot = Slot(WHOLE, is_cumulative=True)
    return contract, slot


def _contract_in(stem: str, before: str) -> str | None:
    """Find the contract right before the slot, else the last that stands by itself."""
    named = _NAMED.search(before)
    if named and is_contract_id(named["contract"]):
        return named["contract"]
    for match in reversed(list(_ALONE.finditer(stem.replace("_", " ")))):
        if is_contract_id(match["contract"]):
            return match["contract"]
    return None


def _slot_in(stem: str) -> tuple[Slot | None, str]:
    """Find the last interval in a name, else its one whole day; and what stands before it."""
    for match in reversed(list(_INTERVAL.finditer(stem))):
        slot = _interval(match["date"], match["start"], match["end"])
        if slot:
            return slot, stem[: match.start()]
    days = [match for match in _DAY.finditer(stem) if _is_day(match["date"])]
    if len(days) == 1 and not re.search(_DATE, stem[: days[0].start()]):
        return Slot(days[0]["date"], is_cumulative=True), stem[: days[0].start()]
    return None, ""


def _interval(day: str, start: str, end: str) -> Slot | None:
    """Normalise an interval; 2300-0000 and 2300-2400 are one slot."""
    first, last = _minutes(start), _minutes(end)
    if first is None or last is None or first == _MINUTES_A_DAY or not _is_day(day):
        return None
    length = (last - first) % _MINUTES_A_DAY or _MINUTES_A_DAY
    closing = last % _MINUTES_A_DAY
    text = f"{day}_{start}-{closing // 60:02d}{closing % 60:02d}"
    return Slot(text, is_cumulative=length > _MINUTES_AN_HOUR)


def _is_day(text: str) -> bool:
    try:
        # The very last year has a day that nothing follows.
        return date.fromisoformat(text).year < MAXYEAR
    except ValueError:
        return False


def _minutes(clock: str) -> int | None:
    hours, minutes = int(clock[:2]), int(clock[2:])
    total = hours * 60 + minutes
    return total if minutes < _MINUTES_AN_HOUR and total <= _MINUTES_A_DAY else None


def next_slot(text: str) -> str:
    """Name the interval of the same length that follows `text`."""
    day, clock = text.split("_")
    start, end = (int(part[:2]) * 60 + int(part[2:]) for part in clock.split("-"))
    length = (end - start) % _MINUTES_A_DAY
    if end <= start:
        day = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    closing = (end + length) % _MINUTES_A_DAY
    return f"{day}_{end // 60:02d}{end % 60:02d}-{closing // 60:02d}{closing % 60:02d}"


def contract_of_folders(path: str) -> str | None:
    """Find the nearest folder that is a contract id."""
    for folder in reversed(path.split("/")[:-1]):
        if is_contract_id(folder.strip()):
            return folder.strip()
    return None


def place_of(path: str) -> Place | None:
    """Read the place from folders `<code> - <region>/<election>/<constituency>/…`."""
    folders = path.split("/")[:-1]
    for index in range(len(folders) - 1, -1, -1):
        match = _REGION.fullmatch(folders[index])
        if match:
            names = [tidy(folder) for folder in folders[index + 1 : index + 3] if _tells(folder)]
            election, constituency = [*names, None, None][:2]
            return Place(match["code"], tidy(match["name"]), election, constituency, path)
    return None


def _tells(folder: str) -> bool:
    """Say whether a folder can be an election or a constituency: no contract, no inner ZIP."""
    return (
        bool(tidy(folder)) and not folder.lower().endswith(".zip") and parse_name(folder)[0] is None
    )


def tidy(name: str) -> str:
    """Fold white space: names carry double and trailing spaces."""
    return _SPACES.sub(" ", name).strip()
