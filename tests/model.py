"""A picture in plain Python of what tables and folders must hold; it shares no code with ingestd.

Rules: docs/format.md, "What is counted", and docs/architecture.md, "Exactly once".
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

DAY = "2024-09-06"
MOST_REJECTS = 2

Kind = Literal["issue", "vote", "refused issue", "refused vote", "bad", "blank"]

When = int | Literal["day", "whole", "untold"]
"""What a file covers: an hour, by its number, or more."""

TYPES: dict[Kind, str] = {
    "issue": "blindSigIssue",
    "refused issue": "blindSigIssue",
    "vote": "vote",
    "refused vote": "vote",
}
COUNTED_AS: dict[Kind, str] = {
    "issue": "bulletins_issued",
    "refused issue": "issues_rejected",
    "vote": "votes_cast",
    "refused vote": "votes_rejected",
}


class Key(NamedTuple):
    """What tells one content of one slot from all others; no slot is the empty text."""

    contract: str
    slot: str
    sha256: str


@dataclass(frozen=True)
class Line:
    """One line of a CSV: an event (+1, −1) of a transaction, a bad row, or a blank."""

    text: str
    kind: Kind
    tx: str = ""
    sign: int = 0
    minute: int = 0


@dataclass(frozen=True)
class Label:
    """What a name says: contract and slot; an hour, the day, the whole voting, or no slot."""

    contract: str
    when: When

    @property
    def slot(self) -> str:
        """The slot as the ledger has it."""
        if isinstance(self.when, int):
            return f"{DAY}_{self.when:02}00-{self.when + 1:02}00"
        return {"day": DAY, "whole": "whole", "untold": ""}[self.when]

    @property
    def is_cumulative(self) -> bool:
        """Whether it covers more than an hour, or nobody knows what."""
        return not isinstance(self.when, int)

    def path(self, tail: str = "") -> str:
        """A path of a CSV that says so."""
        if not self.contract:
            return f"list{tail}.csv"
        if self.when == "untold":
            return f"{self.contract}/export{tail}.csv"
        slot = "" if self.when == "whole" else f"_{self.slot}"
        return f"{self.contract}{slot}{tail}.csv"


@dataclass(frozen=True)
class Csv:
    """One CSV under one name."""

    label: Label
    lines: tuple[Line, ...]
    is_torn: bool = False

    @cached_property
    def data(self) -> bytes:
        """Its bytes; a torn one lacks its last newline."""
        text = "".join(f"{line.text}\n" for line in self.lines).encode()
        return text[:-1] if self.is_torn else text

    @cached_property
    def sha256(self) -> str:
        """Its digest."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def key(self) -> Key:
        """Its job."""
        return Key(self.label.contract, self.label.slot, self.sha256)

    @property
    def is_fit(self) -> bool:
        """Whether it may be stored, as far as it alone can tell."""
        return bool(self.label.contract) and self.books["rejected"] <= MOST_REJECTS

    @cached_property
    def books(self) -> Counter[str]:
        """Its lines by what they come to."""
        return Counter(
            {"bad": "rejected", "blank": "blank"}.get(
                line.kind, "stored or known" if line.sign > 0 else "rollbacks"
            )
            for line in self.lines
        )


@dataclass(frozen=True)
class Parcel:
    """What lies in one file on disk: a CSV, or a ZIP of some; a broken ZIP holds nothing."""

    data: bytes
    csvs: tuple[Csv, ...]
    is_zip: bool = False
    is_broken: bool = False
    # What its writer has still to write, and what it then is.
    rest: bytes = b""
    whole: Parcel | None = None

    @cached_property
    def sha256(self) -> str:
        """The digest of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def keys(self) -> list[Key]:
        """What it may deliver."""
        return [csv.key for csv in self.csvs if csv.is_fit and not self.is_broken]


@dataclass(frozen=True)
class Job:
    """What the ledger says of one delivered content."""

    key: Key
    id: str
    status: str
    publication: int
    books: Counter[str]


Shown = tuple[str, str, int]
"""Status, type and minute of a transaction."""


@dataclass
class Model:
    """What was delivered, what may have been, and what follows from it.

    Where a race makes two outcomes legal, the ledger says which one came true, never the
    transactions; it is held to what is legal, and to what it said before.
    """

    csvs: dict[Key, Csv] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    owed: list[Key] = field(default_factory=list)
    possible: set[Key] = field(default_factory=set)
    spare: Counter[str] = field(default_factory=Counter)
    delivered: dict[Key, Job] = field(default_factory=dict)
    archive: Counter[str] = field(default_factory=Counter)
    quarantine: Counter[str] = field(default_factory=Counter)

    def learn(self, name: str, parcel: Parcel) -> None:
        """Know the contents that ever lay in the inbox, and under which names."""
        self.names.setdefault(parcel.sha256, []).append(name)
        self.csvs.update((csv.key, csv) for csv in parcel.csvs)

    def took_away(self, parcel: Parcel) -> None:
        """A person removed it, perhaps after it was read: both are legal."""
        self.possible.update(parcel.keys)
        self.spare[parcel.sha256] += 1

    # ── the ledger ────────────────────────────────────────────────────────

    def hear(self, jobs: Iterable[Job], taken: Iterable[Parcel], *, in_order: bool) -> list[str]:
        """Compare the ledger with the parcels that left the inbox since; what is illegal."""
        told = list(jobs)
        now = {job.key: job for job in told}
        taken = list(taken)
        owed = [key for parcel in taken for key in parcel.keys]
        self.owed += owed
        wrong = [
            *(f"{key} is delivered twice" for key in now if len([*_of(told, key)]) > 1),
            *(f"{key} is no longer delivered" for key in self.delivered.keys() - now.keys()),
            *(f"{key} was never there" for key in now.keys() - self.possible - set(self.owed)),
            *(f"{key} is not delivered" for key in owed if not _is_accounted_for(key, now)),
            *_misnamed(now),
            *self._wrong_order(now, owed if in_order else None),
            *_wrong_states(now),
            *self._wrong_books(now),
        ]
        self.delivered = now
        for parcel in taken:
            (self.quarantine if self._is_refused(parcel) else self.archive)[parcel.sha256] += 1
        return wrong

    def _is_refused(self, parcel: Parcel) -> bool:
        return parcel.is_broken or any(
            not csv.is_fit or _is_misnamed(csv.key, self.delivered) for csv in parcel.csvs
        )

    def _wrong_order(self, now: Mapping[Key, Job], owed: list[Key] | None) -> Iterator[str]:
        """Publications of a slot are numbered by arrival."""
        for jobs in _by_slot(now.values()).values():
            numbers = [job.publication for job in jobs]
            if len(set(numbers)) < len(numbers):
                yield f"publications of one number: {jobs}"
            is_new = [job.key not in self.delivered for job in jobs]
            if is_new != sorted(is_new):
                yield f"a new publication has a number below an old one: {jobs}"
            fresh = [job.key for job in jobs if job.key not in self.delivered]
            if owed is not None and fresh != sorted(fresh, key=owed.index):
                yield f"not in the order of arrival: {jobs}"

    def _wrong_books(self, now: Mapping[Key, Job]) -> Iterator[str]:
        for key, job in now.items():
            if key in self.csvs and self.csvs[key].books != job.books:
                yield f"{key}: {job.books}, expected {self.csvs[key].books}"

    # ── the tables ────────────────────────────────────────────────────────

    def transactions(self) -> dict[tuple[str, str], Shown]:
        """Each transaction: net sign over current files, shown by its last +1 row."""
        events: dict[tuple[str, str], list[_Event]] = defaultdict(list)
        for key, job in self.delivered.items():
            csv = self.csvs[key]
            for number, line in enumerate(csv.lines):
                if line.sign:
                    place = (csv.label.is_cumulative, key.slot, job.publication, job.id, number)
                    event = _Event(line, job.id, place, is_current=job.status == "completed")
                    events[key.contract, line.tx].append(event)
        decided = {name: _decide(group) for name, group in events.items()}
        return {name: shown for name, shown in decided.items() if shown}

    def hours(self) -> dict[tuple[str, int], Counter[str]]:
        """What is counted in each hour of each constituency."""
        hours: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for (contract, _tx), (status, type_, minute) in self.transactions().items():
            hours[contract, minute // 60].update()  # what is withdrawn leaves an hour of zeros
            if status == "withdrawn":
                continue
            if status == "rolled_back":
                hours[contract, minute // 60]["rolled_back"] += 1
                continue
            (kind,) = (
                kind
                for kind, name in TYPES.items()
                if name == type_ and kind.startswith("refused") == (status == "rejected")
            )
            hours[contract, minute // 60][COUNTED_AS[kind]] += 1
            hours[contract, minute // 60]["transaction_count"] += 1
        return dict(hours)

    # ── the folders ───────────────────────────────────────────────────────

    def misplaced(self, archive: Counter[str], quarantine: Counter[str]) -> list[str]:
        """Bytes that are not where they belong, or not there at all."""
        spare = self.spare.copy()
        wrong = []
        for where, expected, found in (
            ("archive", self.archive, archive),
            ("quarantine", self.quarantine, quarantine),
        ):
            more = found - expected
            wrong += [("not in", where, sha, n) for sha, n in (expected - found).items()]
            wrong += [("too much in", where, sha, n) for sha, n in (more - spare).items()]
            spare -= more
        return [
            f"{what} {where}, {n} times: {self.names.get(sha, sha)}"
            for what, where, sha, n in wrong
        ]


class _Event(NamedTuple):
    line: Line
    file: str
    place: tuple[bool, str, int, str, int]
    is_current: bool


def _decide(events: list[_Event]) -> Shown | None:
    current = [event for event in events if event.is_current]
    contents = [event for event in current if event.line.sign > 0] or [
        event for event in events if event.line.sign > 0
    ]
    if not contents:
        return None
    shown = max(contents, key=lambda event: event.place).line
    if not current:
        status = "withdrawn"
    elif _held(current, 1) <= _held(current, -1):
        status = "rolled_back"
    else:
        status = "rejected" if shown.kind.startswith("refused") else "accepted"
    return status, TYPES[shown.kind], shown.minute


def _held(events: Iterable[_Event], sign: int) -> int:
    """The sum over files of an hour, or the most of any longer one."""
    ours = [event for event in events if event.line.sign == sign]
    longer = Counter(event.file for event in ours if event.place[0])
    return max([sum(not event.place[0] for event in ours), *longer.values()])


def _of(jobs: Iterable[Job], key: Key) -> Iterator[Job]:
    return (job for job in jobs if job.key == key)


def _by_slot(jobs: Iterable[Job]) -> dict[tuple[str, str], list[Job]]:
    """The publications of each slot in their order."""
    ordered = sorted(jobs, key=lambda job: (job.key.contract, job.key.slot, job.publication))
    groups = itertools.groupby(ordered, key=lambda job: job.key[:2])
    return {slot: list(group) for slot, group in groups if slot[1]}


def _is_accounted_for(key: Key, now: Mapping[Key, Job]) -> bool:
    """Delivered; or a duplicate of the same bytes with a slot; or named for two contracts."""
    return (
        key in now
        or (not key.slot and any(key[::2] == other[::2] for other in now))
        or _is_misnamed(key, now)
    )


_EMPTY = hashlib.sha256(b"").hexdigest()


def _is_misnamed(key: Key, now: Mapping[Key, Job]) -> bool:
    """Whether its bytes are here under another contract; empty hours all look the same."""
    return key.sha256 != _EMPTY and any(
        key.sha256 == other.sha256 and key.contract != other.contract for other in now
    )


def _misnamed(now: Mapping[Key, Job]) -> Iterator[str]:
    return (f"{key} is also another contract's" for key in now if _is_misnamed(key, now))


def _wrong_states(now: Mapping[Key, Job]) -> Iterator[str]:
    """The newest publication counts; without a slot, what no file with a slot holds."""
    newest = {jobs[-1].key for jobs in _by_slot(now.values()).values()}
    with_slot = {(key.contract, key.sha256) for key in now if key.slot and key.sha256 != _EMPTY}
    for key, job in now.items():
        is_current = key in newest if key.slot else (key.contract, key.sha256) not in with_slot
        expected = "completed" if is_current else "superseded"
        if job.status != expected:
            yield f"{key} is {job.status}, expected {expected}"
