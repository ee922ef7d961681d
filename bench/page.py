"""docs/performance.md, written from the figures alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from bench import bars, figures, instead
from bench.bars import TITLES
from bench.databases import SERVER
from bench.figures import amount
from bench.limit import CACHE_MB
from bench.results import ROOT, Result, Results, Run
from bench.scale import FULL, QUICK, USUAL

TARGET: Final = ROOT / "docs" / "performance.md"
_DASH = "–"
_LEAST_SHOWN = 0.05  # of a microsecond

_INTRODUCTION = """\
# Performance

How fast ingestd is, measured against the database underneath it and against what people would use
instead. `make bench` writes this page from its figures
([latest.json](../bench/results/latest.json)); nobody edits it. A figure is the median of its
repeats, with the least and the most in brackets.
"""
_HOW: Final = f"""\
- **The limit** is the raw load of the very same final rows, read back from a database that ingestd
  filled: ready `COPY` bytes on PostgreSQL, ready tuples on SQLite, into the empty table
  `transaction` with its indexes, one commit for each file (on SQLite for each 5 000 rows, too), on
  as many connections. Making the rows ready is not in its time. On PostgreSQL the limit is `COPY`
  of text, as most programs send it. ingestd sends the binary format, which the server takes faster:
  what a raw load of ready binary rows would do is in the last column of its own.
- **ingestd** is the real daemon as a process with its default settings: from files that are renamed
  into place, all at once, until the last is in the archive. So it is hash, validation, ledger,
  rejects, hours, totals, alerts and archive; its start is not in the time.
- Limit, ingestd and alternatives run in turn, each on a fresh database; a ratio is that of one
  repeat. CPU and memory are those of the client's processes, what they share counted once; with
  SQLite the database is in them.
- PostgreSQL runs with `{"`, `".join(f"{name} = {value}" for name, value in SERVER.items())}`, else
  with its defaults; `fsync` and `synchronous_commit` are on. SQLite runs with ingestd's defaults:
  WAL, `synchronous = FULL`, a cache of {CACHE_MB} MB.
- The files are the simulator's (`ingestd simulate`); none was in the database before, unless the
  scenario says so. What lies in the page cache of the machine stays there.
"""


def page(results: Results) -> str:
    """The page, of whatever was measured so far."""
    return "\n".join(
        [
            _INTRODUCTION,
            *_section("The bars", _bars(results)),
            *_section("How it was measured", [_HOW, *_circumstances(results)]),
            *_section("Against the limit", _against_the_limit(results)),
            *_section("The same again, and published again", _again(results)),
            *_section("Against what people would use instead", _alternatives(results)),
            *_section("Where the CPU goes", _stages(results)),
            *_section("While the table grows", _growth(results)),
            *_section("From dropped to visible", _latency(results)),
            *_section("Memory", _memory(results)),
            *_section("A national election", _election(results)),
        ]
    )


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield f"## {title}\n"
        yield from found
        yield ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, figures to the right of their words."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _bars(results: Results) -> Iterator[str]:
    rows = [(bar.what, bar.wanted, *bar.told(results)) for bar in bars.BARS]
    yield from table(("scenario", "wanted", "measured", ""), rows)


def _circumstances(results: Results) -> Iterator[str]:
    """Where and when: once for all scenarios that were taken together."""

    def place(item: tuple[str, Result]) -> tuple[str, ...]:
        taken = item[1].taken
        return taken.commit, taken.scale, taken.machine, taken.versions

    for (commit, scale, machine, versions), found in groupby(
        sorted(results.items(), key=lambda item: (*place(item), item[0])), key=place
    ):
        names, taken = zip(*found, strict=True)
        when = f"{min(each.taken.at for each in taken)} to {max(each.taken.at for each in taken)}"
        minutes = sum(each.minutes for each in taken)
        yield f"- {', '.join(names)}: commit {commit}, {when}, {minutes:.0f} minutes, {scale} sizes"
        yield f"  ({_sizes(scale)}); {machine}; {versions}"


def _sizes(scale: str) -> str:
    if scale == QUICK.name:
        return "tiny, to see that the benchmark works: these figures mean nothing"
    if scale == FULL.name:
        return "nothing is scaled down, but that the election is a part of the whole"
    return (
        f"growth to {amount(USUAL.growth_sizes[-1])} rows instead of 10 M, memory at "
        f"{amount(USUAL.memory_rows)} rows instead of 5 M, 1/{USUAL.election_part} of the election "
        "instead of 1/20; `--full` runs these in full; all else is in full"
    )


# Tables -------------------------------------------------------------------------------------


def _against_the_limit(results: Results) -> Iterator[str]:
    rows, notes = [], []
    for what in ("8-files", "1gb", "zips"):
        for kind, title in TITLES.items():
            result = results.get(f"{kind}-{what}")
            if result is not None:
                limit, ours = result.series["limit"], result.series["ingestd"]
                share = figures.share_of_limit(limit, ours).text()
                binary = result.series.get("limit, binary")
                of_binary = figures.share_of_limit(binary, ours).text() if binary else _DASH
                name = f"{_NAMES[what]}, {title}"
                rows.append((name, *_pace(limit)[:1], *_pace(ours), share, of_binary))
                notes += [f"- {name}: {note}" for note in result.notes]
    if rows:
        head = ("", "limit rows/s", *_PACE, "of the limit", "of a binary COPY")
        yield from [*table(head, rows), "", *notes]


_NAMES: Final = {
    "8-files": "8 files",
    "1gb": "one 1 GB file",
    "zips": "2 000 hourly ZIPs",
    "republish": "publications",
}
_PACE: Final = ("rows/s", "files/s", "MB/s", "CPU µs/row", "peak MB")


def _pace(runs: Sequence[Run]) -> tuple[str, ...]:
    cost, peak = figures.cpu_microseconds_a_row(runs), figures.peak_mb(runs)
    return (
        figures.rows_a_second(runs).text(0),
        figures.files_a_second(runs).text(1),
        figures.megabytes_a_second(runs).text(0),
        cost.text(1) if cost else _DASH,
        f"{peak:.0f}" if peak is not None else _DASH,
    )


def _again(results: Results) -> Iterator[str]:
    rows, notes = [], []
    for what in ("8-files", "zips", "republish"):
        for kind, title in TITLES.items():
            result = results.get(f"{kind}-{what}")
            for name, runs in result.series.items() if result else ():
                if "again" in name or what == "republish":
                    rows.append((f"{_NAMES[what]}, {title}: {name}", *_pace(runs)))
            if result and what == "republish":
                notes += [f"- {title}, {note}" for note in result.notes]
    if rows:
        yield "Files with the same bytes are duplicates: they are hashed, recorded and archived."
        yield "A new publication of a slot supersedes the one before, row by row.\n"
        yield from [*table(("", *_PACE), rows), "", *notes]


def _alternatives(results: Results) -> Iterator[str]:
    for kind, title in TITLES.items():
        result = results.get(f"{kind}-alternatives")
        if result is None:
            continue
        ours = result.series["ingestd"]
        rows = [
            (
                name,
                figures.rows_a_second(runs).text(0),
                figures.megabytes_a_second(runs).text(0),
                f"{figures.times_faster(runs, ours).text(1)} ×" if name != "ingestd" else _DASH,
            )
            for name, runs in result.series.items()
        ]
        yield f"{title}: {' '.join(result.notes)}\n"
        yield from table(("", "rows/s", "MB/s", "ingestd is so many times as fast"), rows)
        yield ""
    if any(f"{kind}-alternatives" in results for kind in TITLES):
        yield "Only ingestd checks every column, knows a row again, keeps a ledger, counts and"
        yield "raises alerts. The others, each in an environment of its own:\n"
        yield from [f"- {each.name}: {each.about}" for each in instead.ALTERNATIVES]
        yield f"- {instead.NODE}: split, `JSON.parse`, all in memory, nothing stored; no bar"


def _stages(results: Results) -> Iterator[str]:
    for kind, title in TITLES.items():
        result = results.get(f"{kind}-stages")
        if result is None:
            continue
        yield f"{title}, CPU of the client by stage. {' '.join(result.notes)}\n"
        rows = [
            (stage, f"{a_row:.1f}", f"{a_file:.0f}")
            for stage, a_row, a_file in stage_costs(result)
            if a_row > _LEAST_SHOWN or a_file > 1
        ]
        yield from table(("stage", "µs a row", "µs a file"), rows)
        yield ""


def stage_costs(result: Result) -> list[tuple[str, float, float]]:
    """Stage, microseconds a row and microseconds a file, the dearest row first, and the sum."""
    numbers = result.numbers
    stages = {name.partition(": ")[2] for name in numbers}
    costs = [
        (stage, numbers.get(f"row: {stage}", 0.0), numbers.get(f"file: {stage}", 0.0))
        for stage in stages
    ]
    costs.sort(key=lambda cost: (-cost[1], -cost[2], cost[0]))
    return [*costs, ("all", sum(cost[1] for cost in costs), sum(cost[2] for cost in costs))]


def _growth(results: Results) -> Iterator[str]:
    for kind, title in TITLES.items():
        result = results.get(f"{kind}-growth")
        if result is None:
            continue
        yield f"{title}. {' '.join(result.notes)}\n"
        rows = [
            (
                amount(size),
                figures.rows_a_second(limit).text(0),
                figures.rows_a_second(ours).text(0),
                figures.share_of_limit(limit, ours).text(),
                figures.files_a_second(few_limit).text(0),
                figures.files_a_second(few).text(0),
            )
            for (size, limit, ours), (_, few_limit, few) in zip(
                bars.grown(result, "rows"), bars.grown(result, "files"), strict=True
            )
        ]
        head = ("rows there", "limit rows/s", "rows/s", "of the limit", "limit files/s", "files/s")
        yield from table(head, rows)
        yield ""


def _latency(results: Results) -> Iterator[str]:
    rows = [
        (title, *(f"{result.numbers[name]:.2f}" for name in ("p50", "p99", "longest")))
        for kind, title in TITLES.items()
        if (result := results.get(f"{kind}-latency"))
    ]
    if rows:
        notes = {note for kind in TITLES for note in _notes(results, f"{kind}-latency")}
        yield from [*sorted(notes), ""]
        yield from table(("seconds", "p50", "p99", "longest"), rows)


def _memory(results: Results) -> Iterator[str]:
    rows = [
        (f"{title}, {name}", amount(runs[0].rows), *_pace(runs)[-1:])
        for kind, title in TITLES.items()
        if (result := results.get(f"{kind}-memory"))
        for name, runs in result.series.items()
    ]
    if rows:
        notes = {note for kind in TITLES for note in _notes(results, f"{kind}-memory")}
        yield from [*sorted(notes), ""]
        yield from table(("one file", "rows", "peak MB of the process tree"), rows)


def _notes(results: Results, name: str) -> list[str]:
    return results[name].notes if name in results else []


def _election(results: Results) -> Iterator[str]:
    result = results.get("pg-national")
    if result is None:
        return
    (sample,) = result.series["ingestd"]
    part, slowing = result.numbers["part"], bars.slowing(results, sample.rows)
    minutes = bars.election_minutes(results, result)
    yield (
        f"A part of an election of the size of 2026: {' '.join(result.notes)} It took "
        f"{sample.seconds:.0f} s ({amount(sample.rows / sample.seconds)} rows/s, "
        f"{amount(sample.files / sample.seconds)} files/s). "
        f"**Extrapolated**, not measured: the whole is {part:.1f} times as much, and a row takes "
        f"{slowing:.2f} times as long in the mean while the table grows to its size (the curve of "
        "PostgreSQL above, its last slope carried on), "
        f"so {sample.seconds:.0f} s × {part:.1f} × {slowing:.2f} = **{minutes:.1f} minutes**."
    )
