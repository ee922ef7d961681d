"""One constituency while it is being made up: its slots, its plain ballots, its single lines.

Plain ballots are never touched after they are drawn: they are counted, not listed. Whatever is out
of the ordinary is a `Line` in an explicit list, and the truth is recounted from that list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from .ids import Mint
from .plan import Plan
from .rows import Office, Row, plain_rows
from .shape import HOUR_MS, Constituency, generator
from .timeline import Timeline

MOSCOW = timezone(timedelta(hours=3))
EVENING_SLOTS = 12  # from 20:00 of the day before to the opening at 08:00
TAIL_SLOTS = 2  # late votes and the finish; decryption and results
CHUNK_ROWS = 500

Text = bytes | Callable[[], bytes]


class Edition(StrEnum):
    """Which file a line is written for: a slot's first or second publication, or the whole."""

    FIRST = "first"
    SECOND = "second"
    WHOLE = "whole"


class Kind(StrEnum):
    """What a reader must make of a line."""

    ROW = "row"
    BAD = "bad"
    BLANK = "blank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the truth needs to know of a transaction as one line tells it.

    Two lines of one id with different `content` differ in columns 2–9 or 11.
    """

    tx_id: str
    operation: str
    ts: int
    sender: str
    failed: bool = False
    voters: int = 0
    content: int = 0
    persons: int = 1


@dataclass(slots=True, kw_only=True, eq=False)
class Line:
    """A single line at a moment of the chain, and the editions that hold it.

    `text` may be a function, called for each writing, where the line is large or depends on what
    is known only at the end.
    """

    chain: int
    text: Text
    facts: Facts | None = None
    sign: int = 0
    kind: Kind = Kind.ROW
    first: bool = True
    second: bool = True
    whole: bool = True

    def rendered(self) -> bytes:
        """The line's bytes without its end."""
        return self.text if isinstance(self.text, bytes) else self.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dress:
    """How a file's lines are put down."""

    bom: bool = False
    crlf: bool = False
    last_newline: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How a slot's file name departs from the rule."""

    tail: str = ""
    nameless: bool = False
    midnight: str = "0000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a defect made, to be told in the truth."""

    defect: str
    slot: int
    edition: Edition
    lines: tuple[Line, ...]
    note: str


@dataclass(slots=True, kw_only=True)
class Contest:
    """A constituency in the making; defects bend it, `files` writes it, `truth` recounts it."""

    plan: Plan
    constituency: Constituency
    office: Office
    timeline: Timeline
    mint: Mint
    lines: list[Line] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    republished: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)
    always_written: set[int] = field(default_factory=set)
    dresses: dict[tuple[int, Edition], Dress] = field(default_factory=dict)
    namings: dict[int, Naming] = field(default_factory=dict)
    odd_folder: bool = False
    late: set[int] = field(default_factory=set)
    never_written: list[str] = field(default_factory=list)
    results_off_by: int = 0
    other_results: int = 0
    findings: list[Finding] = field(default_factory=list)
    bounds: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Find the plain rows of each slot once."""
        edges = self.first_slot_ms + HOUR_MS * np.arange(self.slots + 1)
        self.bounds = np.searchsorted(self.timeline.chain, edges)

    @property
    def first_slot_ms(self) -> int:
        """Start of slot 0, in the evening before."""
        return self.constituency.start_ms - EVENING_SLOTS * HOUR_MS

    @property
    def slots(self) -> int:
        """How many hours the files span."""
        return EVENING_SLOTS + self.plan.hours + TAIL_SLOTS

    @property
    def voting(self) -> range:
        """The slots within the voting hours."""
        return range(EVENING_SLOTS, EVENING_SLOTS + self.plan.hours)

    @property
    def lost(self) -> set[int]:
        """Slots of which no hourly file is stored."""
        return self.missing | self.refused

    def slot_of(self, chain: int) -> int:
        """The slot of a moment."""
        return (chain - self.first_slot_ms) // HOUR_MS

    def moment(self, slot: int, part: float) -> int:
        """The moment at a part (0 to 1) of a slot's hour."""
        return self.first_slot_ms + int((slot + part) * HOUR_MS)

    def slot_name(self, slot: int, midnight: str = "0000") -> str:
        """A slot as its file name tells it, in Moscow time."""
        begin = datetime.fromtimestamp(self.moment(slot, 0) / 1000, UTC).astimezone(MOSCOW)
        until = f"{(begin.hour + 1) % 24:02}00"
        return f"{begin:%Y-%m-%d_%H00}-{midnight if until == '0000' else until}"

    def add(  # noqa: PLR0913 - what can be said of a row
        self,
        row: Row,
        chain: int,
        sign: int = 1,
        *,
        text: Text | None = None,
        content: int = 0,
        voters: int = 0,
        persons: int = 1,
    ) -> Line:
        """Put a row on the chain; `text` where the line is not simply the row's own."""
        facts = Facts(
            tx_id=row.tx_id,
            operation=row.operation,
            ts=int(row.ts),
            sender=row.sender,
            failed=row.failed,
            voters=voters,
            content=content,
            persons=persons,
        )
        rendered = row.text("1" if sign > 0 else "-1") if text is None else text
        line = Line(chain=chain, text=rendered, facts=facts, sign=sign)
        self.lines.append(line)
        return line

    def tell(
        self, defect: str, lines: list[Line], note: str, *, edition: Edition = Edition.FIRST
    ) -> None:
        """Record what a defect made: one finding for each slot that it touched."""
        for slot in sorted({self.slot_of(line.chain) for line in lines}):
            here = tuple(line for line in lines if self.slot_of(line.chain) == slot)
            self.tell_slot(defect, slot, note, lines=here, edition=edition)

    def tell_slot(
        self,
        defect: str,
        slot: int,
        note: str,
        *,
        lines: tuple[Line, ...] = (),
        edition: Edition = Edition.FIRST,
    ) -> None:
        """Record what a defect did to a slot."""
        self.findings.append(
            Finding(defect=defect, slot=slot, edition=edition, lines=lines, note=note)
        )

    def plain_count(self, slot: int) -> int:
        """Plain rows in a slot."""
        return int(self.bounds[slot + 1] - self.bounds[slot])

    def singles(self, slot: int, edition: Edition) -> list[Line]:
        """The single lines of a slot in an edition, in file order."""
        here = (
            line
            for line in self.lines
            if getattr(line, edition.value) and self.slot_of(line.chain) == slot
        )
        return sorted(here, key=lambda line: line.chain)

    def is_written(self, slot: int, edition: Edition = Edition.FIRST) -> bool:
        """Whether the slot has an hourly file of that edition."""
        if not self.plan.hourly or slot in self.missing:
            return False
        if edition is Edition.SECOND:
            return slot in self.republished
        wanted = self.plan.empty_hours or slot in self.always_written
        return wanted or bool(self.plain_count(slot) or self.singles(slot, edition))

    def ranks(self, slot: int, singles: list[Line]) -> list[int]:
        """How many plain rows of the slot stand before each single line."""
        chain = self.timeline.chain[self.bounds[slot] : self.bounds[slot + 1]]
        return [int(rank) for rank in np.searchsorted(chain, [line.chain for line in singles])]

    def line_numbers(self, slot: int, edition: Edition) -> dict[Line, int]:
        """Where the single lines stand in the slot's file, counted from 1."""
        singles = self.singles(slot, edition)
        ranks = enumerate(zip(singles, self.ranks(slot, singles), strict=True), start=1)
        return {line: rank + place for place, (line, rank) in ranks}

    def plain_chunks(self, slot: int) -> Iterator[list[bytes]]:
        """The plain rows of a slot, the same bytes at every call."""
        rng = generator(self.plan, 3, self.constituency.number, slot)
        begin, end = int(self.bounds[slot]), int(self.bounds[slot + 1])
        for at in range(begin, end, CHUNK_ROWS):
            part = slice(at, min(at + CHUNK_ROWS, end))
            ts, is_vote = self.timeline.ts[part].tolist(), self.timeline.is_vote[part].tolist()
            yield plain_rows(rng, self.office, ts, is_vote)

    def chunks(self, slot: int, edition: Edition) -> Iterator[list[bytes]]:
        """All lines of a slot in an edition, in file order, some hundred at a time."""
        singles = self.singles(slot, edition)
        waiting = list(zip(self.ranks(slot, singles), singles, strict=True))[::-1]
        begin = 0
        for plain in self.plain_chunks(slot):
            merged, at = [], begin
            while waiting and waiting[-1][0] < begin + len(plain):
                rank, line = waiting.pop()
                merged += [*plain[at - begin : rank - begin], line.rendered()]
                at = rank
            yield merged + plain[at - begin :]
            begin += len(plain)
        # One by one: voters lists may be megabytes each.
        for _, line in reversed(waiting):
            yield [line.rendered()]
