"""The arithmetic of the benchmark: medians, spreads, ratios of one repeat, growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from bench.results import Run

STEPS = 400


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the most of what was measured."""

    middle: float
    least: float
    most: float

    def text(self, digits: int = 2) -> str:
        """As `0.61 (0.59–0.64)`; one figure alone where all are the same."""
        shown = [f"{value:,.{digits}f}" for value in (self.middle, self.least, self.most)]
        middle, least, most = (each.replace(",", " ") for each in shown)
        return middle if least == most else f"{middle} ({least}–{most})"


def amount(number: float) -> str:
    """A number with spaces between its thousands."""
    return f"{number:_.0f}".replace("_", " ")


def spread(values: Sequence[float]) -> Spread:
    """The median of some values, and how far they lie apart."""
    return Spread(median(values), min(values), max(values))


def rows_a_second(runs: Sequence[Run]) -> Spread:
    """How many rows went through in a second."""
    return spread([run.rows / run.seconds for run in runs])


def files_a_second(runs: Sequence[Run]) -> Spread:
    """How many files went through in a second."""
    return spread([run.files / run.seconds for run in runs])


def megabytes_a_second(runs: Sequence[Run]) -> Spread:
    """How many million bytes of CSV went through in a second."""
    return spread([run.bytes / run.seconds / 1e6 for run in runs])


def cpu_microseconds_a_row(runs: Sequence[Run]) -> Spread | None:
    """What a row costs the client; None where it was not measured."""
    costs = [run.cpu_seconds / run.rows * 1e6 for run in runs if run.cpu_seconds and run.rows]
    return spread(costs) if costs else None


def peak_mb(runs: Sequence[Run]) -> float | None:
    """The most memory of all runs."""
    peaks = [run.peak_mb for run in runs if run.peak_mb is not None]
    return max(peaks) if peaks else None


def share_of_limit(limit: Sequence[Run], ours: Sequence[Run]) -> Spread:
    """Our rows a second over the limit's, each repeat with its own limit."""
    return spread(
        [
            (mine.rows / mine.seconds) / (best.rows / best.seconds)
            for best, mine in zip(limit, ours, strict=True)
        ]
    )


def times_faster(other: Sequence[Run], ours: Sequence[Run]) -> Spread:
    """How many times as many rows a second we take, each repeat with its own other."""
    return share_of_limit(other, ours)


def kept_shares(shares: Sequence[float]) -> float:
    """The worst share of the limit in the course of growth, over the first one."""
    return min(share / shares[0] for share in shares)


def rate_at(curve: Sequence[tuple[float, float]], rows: float) -> float:
    """Rows a second at a table size, on straight lines over the logarithm of the size.

    Beyond the last point the last slope goes on, down to a tenth of the last rate.
    """
    if rows <= curve[0][0] or len(curve) == 1:
        return curve[0][1]
    (left, low), (right, high) = next(
        ((before, after) for before, after in pairwise(curve) if rows <= after[0]),
        (curve[-2], curve[-1]),
    )
    slope = (high - low) / math.log(right / left)
    value = high + slope * math.log(rows / right)
    # Noise may make the last slope rise: nothing gets faster by extrapolation.
    return value if rows <= right else max(high / 10, min(value, high))


def slowdown(curve: Sequence[tuple[float, float]], sample: float, total: float) -> float:
    """How much longer a row takes in the mean up to `total` rows than up to `sample` rows."""
    return max(1.0, _mean_seconds(curve, total) / _mean_seconds(curve, sample))


def _mean_seconds(curve: Sequence[tuple[float, float]], total: float) -> float:
    sizes = [(step + 0.5) * total / STEPS for step in range(STEPS)]
    return sum(1 / rate_at(curve, size) for size in sizes) / STEPS
