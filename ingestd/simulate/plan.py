"""The plan of a simulated election: everything that determines its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

Packing = Literal["csv", "zip", "zip-of-zips"]

SMALLEST_ROLL = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that determines the bytes: equal plans write equal files.

    `hours` are voting hours from 08:00 local time of `day`; 60 is three days without a break.
    `rolls`, where given, replaces the drawn rolls (one for each constituency, any size from 15);
    a constituency that carries defects has at least 300 voters all the same.
    `options` are the numbers of options of a ballot, one of them drawn for each constituency.
    """

    seed: int = 1
    constituencies: int = 6
    regions: int = 2
    day: date = date(2024, 9, 6)
    hours: int = 12
    voters_median: int = 600
    voters_sigma: float = 1.25
    voters_min: int = SMALLEST_ROLL
    voters_max: int = 30_000
    rolls: tuple[int, ...] | None = None
    voters_per_list: int = 5_000
    options: tuple[int, ...] = (2, 3, 5, 6)
    packing: Packing = "csv"
    folders: bool = True
    hourly: bool = True
    whole: bool = False
    empty_hours: bool = True
    defects: tuple[str, ...] = ()
    transactions_in_truth: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be written; the message names the field."""
        if min(self.constituencies, self.regions, self.hours, self.voters_per_list) < 1:
            msg = "constituencies, regions, hours and voters_per_list are at least 1"
            raise ValueError(msg)
        if self.rolls is not None and len(self.rolls) != self.constituencies:
            msg = f"rolls names {len(self.rolls)} constituencies, the plan {self.constituencies}"
            raise ValueError(msg)
        if self.rolls is not None and min(self.rolls) < SMALLEST_ROLL:
            msg = f"rolls: the smallest roll is {SMALLEST_ROLL} voters"
            raise ValueError(msg)
        if not self.options or min(self.options) < 1:
            msg = "options: at least one number, each at least 1"
            raise ValueError(msg)
        if self.packing not in ("csv", "zip", "zip-of-zips"):
            msg = f"packing: {self.packing!r} is none of csv, zip, zip-of-zips"
            raise ValueError(msg)
        if not (self.hourly or self.whole):
            msg = "hourly and whole are both off: nothing would be written"
            raise ValueError(msg)
