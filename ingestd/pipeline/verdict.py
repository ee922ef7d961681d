"""What a transaction is: a pure function of its sightings, in no order.

Source of the counting rules: docs/format.md, "What is counted".
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ingestd.pipeline.touched import ACCEPTED, REJECTED, ROLLED_BACK, WITHDRAWN


class Event(NamedTuple):
    """One sighting: which file holds which event of a transaction."""

    file_id: uuid.UUID
    line: int
    sign: int
    content_hash: bytes | None


class SeenFile(NamedTuple):
    """What `decide` must know of a file."""

    is_cumulative: bool
    slot: str | None
    publication: int
    is_current: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a transaction's sightings say: where it stands and which event shows its content."""

    is_withdrawn: bool
    is_on_chain: bool
    shown: Event
    slot: str | None

    def status(self, tally: str | None) -> str:
        """Which status wins: withdrawn, rolled_back, rejected, accepted."""
        if self.is_withdrawn:
            return WITHDRAWN
        if not self.is_on_chain:
            return ROLLED_BACK
        return status_of(tally)


def status_of(tally: str | None) -> str:
    """Status of a content that is on chain."""
    return REJECTED if tally and tally.endswith("rejected") else ACCEPTED


def decide(events: Iterable[Event], files: Mapping[uuid.UUID, SeenFile]) -> Verdict | None:
    """Decide what a set of sightings means; None where none of them has a content.

    Net sign over interval files is a sum, over cumulative files the greatest;
    the content shown is that of the last +1 row by slot start, cumulative
    files last, then line. Source: docs/format.md, "What an observer counts".
    """

    def order(event: Event) -> tuple[Any, ...]:
        seen = files[event.file_id]
        place = (seen.is_cumulative, seen.slot or "", seen.publication)
        return (*place, event.file_id.hex, event.line)

    everything = list(events)
    current = [event for event in everything if files[event.file_id].is_current]
    contents = [event for event in current if event.sign > 0] or [
        event for event in everything if event.sign > 0
    ]
    if not contents:
        return None
    slots = [
        seen.slot
        for seen in (files[event.file_id] for event in contents)
        if seen.slot and not seen.is_cumulative
    ]
    return Verdict(
        is_withdrawn=not current,
        is_on_chain=_held(current, files, 1) > _held(current, files, -1),
        shown=max(contents, key=order),
        slot=min(slots, default=None),
    )


def _held(events: Iterable[Event], files: Mapping[uuid.UUID, SeenFile], sign: int) -> int:
    """Count the events of one sign: summed over interval files, the most of any cumulative one."""
    in_intervals = 0
    in_cumulative: dict[uuid.UUID, int] = {}
    for event in events:
        if event.sign == sign:
            if files[event.file_id].is_cumulative:
                in_cumulative[event.file_id] = in_cumulative.get(event.file_id, 0) + 1
            else:
                in_intervals += 1
    return max([in_intervals, *in_cumulative.values()])
