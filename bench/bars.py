"""The bars: what must be reached, and what was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench import figures, instead
from bench.drops import ELECTION_ROWS
from bench.figures import amount
from bench.results import Result, Results, Run
from bench.scale import QUICK

TITLES: Final = {"pg": "PostgreSQL", "sqlite": "SQLite"}
ORM_TIMES: Final = 8
CPU_MICROSECONDS: Final = 14
MEMORY_MB: Final = 300
MEMORY_GROWTH_MB: Final = 20
ELECTION_MINUTES: Final = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure, and whether it is good enough."""

    figure: str
    is_reached: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that must be reached; the verdict is None where it was not measured."""

    what: str
    wanted: str
    scenario: str
    judge: Callable[[Results, Result], Verdict | None]

    def told(self, results: Results) -> tuple[str, str]:
        """The figure and the verdict, in words."""
        result = results.get(self.scenario)
        verdict = self.judge(results, result) if result else None
        if result is None or verdict is None:
            return "–", "not measured"
        if result.taken.scale == QUICK.name:
            return verdict.figure, "too small to judge"
        return verdict.figure, "reached" if verdict.is_reached else "**not reached**"


def _limit_share(least: float, _results: Results, result: Result) -> Verdict:
    share = figures.share_of_limit(result.series["limit"], result.series["ingestd"])
    return Verdict(share.text(), share.middle >= least)


def _files_a_second(least: float, _results: Results, result: Result) -> Verdict:
    pace = figures.files_a_second(result.series["ingestd"])
    return Verdict(f"{pace.text(0)} files/s", pace.middle >= least)


def _cpu_a_row(most: float, _results: Results, result: Result) -> Verdict | None:
    cost = figures.cpu_microseconds_a_row(result.series["ingestd"])
    return Verdict(f"{cost.text(1)} µs", cost.middle <= most) if cost else None


def _dropped_again(_results: Results, result: Result) -> Verdict:
    """Large files are bound by their bytes, small ones by their number: one of the two is due."""
    runs = result.series["dropped again"]
    files, megabytes = figures.files_a_second(runs), figures.megabytes_a_second(runs)
    return Verdict(
        f"{megabytes.text(0)} MB/s, {files.text(0)} files/s",
        megabytes.middle >= 1_000 or files.middle >= 1_000,
    )


def alternatives_in(result: Result) -> dict[str, list[Run]]:
    """The runs of all alternatives that store what they read."""
    ours = ("ingestd", instead.NODE)
    return {name: runs for name, runs in result.series.items() if name not in ours}


def _faster_than_each(_results: Results, result: Result) -> Verdict:
    ours = result.series["ingestd"]
    times = {
        name: figures.times_faster(runs, ours) for name, runs in alternatives_in(result).items()
    }
    nearest = min(times, key=lambda name: times[name].middle)
    return Verdict(
        f"{times[nearest].text(1)} × {nearest}, the fastest of them", times[nearest].middle > 1
    )


def _faster_than_orm(least: float, _results: Results, result: Result) -> Verdict:
    times = figures.times_faster(result.series[instead.ORM.name], result.series["ingestd"])
    return Verdict(f"{times.text(1)} ×", times.middle >= least)


def grown(result: Result, what: str) -> list[tuple[int, list[Run], list[Run]]]:
    """Table size, runs of the limit, runs of ingestd, of the rows or the files of a growth."""
    start = f"ingestd, {what} at "
    sizes = sorted(
        int(name.removeprefix(start)) for name in result.series if name.startswith(start)
    )
    return [
        (size, result.series[f"limit, {what} at {size}"], result.series[f"{start}{size}"])
        for size in sizes
    ]


def _growth(least: float, results: Results, result: Result) -> Verdict:
    del results
    course = grown(result, "rows")
    shares = [figures.share_of_limit(limit, ours).middle for _, limit, ours in course]
    kept = figures.kept_shares(shares)
    return Verdict(f"{kept:.2f} up to {amount(course[-1][0])} rows", kept >= least)


def _latency(_results: Results, result: Result) -> Verdict:
    p50, p99, settle = (result.numbers[name] for name in ("p50", "p99", "settle"))
    return Verdict(f"p50 {p50:.2f} s, p99 {p99:.2f} s", p50 < 0.3 and p99 < settle + 1)


def _flat_memory(most: float, _results: Results, result: Result) -> Verdict | None:
    small, large = (figures.peak_mb(result.series[name]) for name in ("small", "large"))
    if small is None or large is None:
        return None
    rows = amount(result.series["large"][0].rows)
    return Verdict(f"{large - small:+.0f} MB at {rows} rows", large - small < most)


def _whole_tree(most: float, results: Results, result: Result) -> Verdict | None:
    kind = "pg" if result is results.get("pg-memory") else "sqlite"
    peaks = {
        name: peak
        for name, other in results.items()
        if name.startswith(f"{kind}-") and other.taken.scale == result.taken.scale
        for peak in [figures.peak_mb(_ours(other))]
        if peak is not None
    }
    if not peaks:
        return None
    worst = max(peaks, key=lambda name: peaks[name])
    return Verdict(f"{peaks[worst]:.0f} MB ({worst})", peaks[worst] < most)


def _ours(result: Result) -> Sequence[Run]:
    """All runs whose memory was watched: those of ingestd."""
    return [run for runs in result.series.values() for run in runs if run.peak_mb is not None]


def election_minutes(results: Results, result: Result) -> float:
    """How long the whole election takes: the sample's time, times its part, times the slowing."""
    (sample, *_) = result.series["ingestd"]
    return sample.seconds * result.numbers["part"] * slowing(results, sample.rows) / 60


def slowing(results: Results, sample_rows: int) -> float:
    """How much longer a row takes in the whole election than in the sample; 1 if not measured."""
    growth = results.get("pg-growth")
    if growth is None:
        return 1
    curve = [
        (float(size), figures.rows_a_second(ours).middle) for size, _, ours in grown(growth, "rows")
    ]
    return figures.slowdown(curve, sample_rows, ELECTION_ROWS)


def _election(most: float, results: Results, result: Result) -> Verdict:
    minutes = election_minutes(results, result)
    part = round(result.numbers["part"])
    return Verdict(f"{minutes:.1f} minutes, extrapolated from 1/{part}", minutes <= most)


def _on_both(
    what: str, wanted: str, name: str, judge: Callable[[Results, Result], Verdict | None]
) -> list[Bar]:
    return [Bar(f"{what}, {TITLES[kind]}", wanted, f"{kind}-{name}", judge) for kind in TITLES]


BARS: Final[Sequence[Bar]] = (
    Bar(
        "PostgreSQL, 8 files, 2 workers",
        "≥ 0.55 of the limit with 2 connections",
        "pg-8-files",
        partial(_limit_share, 0.55),
    ),
    Bar(
        "PostgreSQL, one 1 GB file",
        "≥ 0.70 of the limit with 1 connection",
        "pg-1gb",
        partial(_limit_share, 0.70),
    ),
    Bar("SQLite, 8 files", "≥ 0.60 of the limit", "sqlite-8-files", partial(_limit_share, 0.60)),
    Bar(
        "Python CPU per row, everything on",
        f"≤ {CPU_MICROSECONDS} µs",
        "pg-8-files",
        partial(_cpu_a_row, CPU_MICROSECONDS),
    ),
    *_on_both("2 000 hourly ZIPs", "≥ 150 files/s", "zips", partial(_files_a_second, 150)),
    *_on_both("8 files dropped again", "≥ 1 GB/s or ≥ 1 000 files/s", "8-files", _dropped_again),
    *_on_both("2 000 ZIPs dropped again", "≥ 1 GB/s or ≥ 1 000 files/s", "zips", _dropped_again),
    *_on_both("against each alternative", "faster", "alternatives", _faster_than_each),
    *_on_both(
        "against the ORM pipeline",
        f"≥ {ORM_TIMES} ×",
        "alternatives",
        partial(_faster_than_orm, ORM_TIMES),
    ),
    *_on_both(
        "growth: share of the limit at the same size, over the first",
        "≥ 0.9 from 0.1 M to 10 M rows",
        "growth",
        partial(_growth, 0.9),
    ),
    *_on_both("latency at 100 files/s", "p50 < 0.3 s, p99 < settle + 1 s", "latency", _latency),
    *_on_both(
        "memory: a large file over a small one",
        f"< {MEMORY_GROWTH_MB} MB from 50 k to 5 M rows",
        "memory",
        partial(_flat_memory, MEMORY_GROWTH_MB),
    ),
    *_on_both(
        "memory of the process tree, most of all scenarios",
        f"< {MEMORY_MB} MB",
        "memory",
        partial(_whole_tree, MEMORY_MB),
    ),
    Bar(
        "a national election of 2026 (24.6 M transactions, 80 GB), PostgreSQL, 2 workers",
        f"≤ {ELECTION_MINUTES} minutes",
        "pg-national",
        partial(_election, ELECTION_MINUTES),
    ),
)
