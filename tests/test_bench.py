"""The benchmark's arithmetic and its page; its figures are made by `make bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import bars, drops, figures, growth, page, results, scenarios, stages, study
from bench.daemon import BenchmarkFailed, daemon
from bench.databases import ask, is_postgresql
from bench.limit import BINARY, TEXT, load, ready_rows
from bench.results import Result, Run, Taken
from bench.scale import QUICK
from ingestd.pipeline.ingest import Ingest

from .conftest import Databases, DropFile, Voting, csv_of
from .elections import draw

TAKEN = Taken(at="2026-01-02 03:04 UTC", commit="abc", scale="full", machine="m", versions="v")


def runs(*seconds: float, rows: int = 1_000, files: int = 10, peak: float = 100) -> list[Run]:
    """Runs that took so long each."""
    return [
        Run(seconds=each, rows=rows, files=files, bytes=1_000_000, cpu_seconds=0.01, peak_mb=peak)
        for each in seconds
    ]


def result(**series: Sequence[Run]) -> Result:
    """A result of runs."""
    return Result(taken=TAKEN, series={name: list(runs) for name, runs in series.items()})


def verdict_of(what: str, measured: results.Results) -> tuple[str, str]:
    """What the page says of one bar."""
    (bar,) = [bar for bar in bars.BARS if bar.what == what]
    return bar.told(measured)


# Arithmetic ---------------------------------------------------------------------------------


def test_a_spread_tells_the_median_and_how_far_the_others_lie() -> None:
    """One figure would hide what a noisy machine did."""
    assert "2.00 (1.00–9.00)" == figures.spread([9, 1, 2]).text()
    assert "12 345" == figures.spread([12_345.0]).text(0)


def test_a_ratio_is_that_of_one_repeat() -> None:
    """A machine that was slow for one repeat was slow for the limit, too."""
    share = figures.share_of_limit(runs(1, 10), runs(2, 20))
    assert (0.5, 0.5) == (share.least, share.most)


def test_growth_is_judged_by_the_worst_share_over_the_first() -> None:
    """0.45 of the limit after 0.5 keeps nine tenths."""
    assert pytest.approx(0.9) == figures.kept_shares([0.5, 0.55, 0.45])


@pytest.mark.parametrize(
    ("rows", "rate"), [(10, 100), (100, 100), (1_000, 75), (10_000, 50), (100_000, 25)]
)
def test_a_growth_curve_goes_on_as_it_ended(rows: int, rate: float) -> None:
    """Straight over the logarithm of the size; before the first point it is flat."""
    assert pytest.approx(rate) == figures.rate_at([(100, 100), (10_000, 50)], rows)


def test_no_table_gets_faster_by_growing() -> None:
    """Noise at the last point must not make the extrapolation rosy."""
    assert 60 == figures.rate_at([(100, 50), (1_000, 60)], 1e9)
    assert 1 == figures.slowdown([(100, 50), (1_000, 60)], 100, 1e6)


def test_a_row_takes_longer_while_the_table_grows() -> None:
    """At half the rate for nearly all rows, the mean row takes nearly twice as long."""
    assert 1.8 < figures.slowdown([(100, 100), (200, 50), (300, 50)], 100, 100_000) < 2


# Bars ---------------------------------------------------------------------------------------


def test_a_bar_is_reached_or_not() -> None:
    """The median decides."""
    reached = {"pg-1gb": result(limit=runs(7, 7, 7), ingestd=runs(7, 10, 20))}
    assert ("0.70 (0.35–1.00)", "reached") == verdict_of("PostgreSQL, one 1 GB file", reached)
    missed = {"pg-1gb": result(limit=runs(6.9), ingestd=runs(10))}
    assert ("0.69", "**not reached**") == verdict_of("PostgreSQL, one 1 GB file", missed)


def test_a_bar_that_was_not_measured_says_so() -> None:
    """Silence would look like success."""
    assert ("–", "not measured") == verdict_of("SQLite, 8 files", {})


def test_a_quick_run_judges_nothing() -> None:
    """Its sizes are for development."""
    quick = result(limit=runs(1), ingestd=runs(1))
    quick.taken = replace(TAKEN, scale=QUICK.name)
    assert "too small to judge" == verdict_of("SQLite, 8 files", {"sqlite-8-files": quick})[1]


def test_what_reads_without_storing_is_no_alternative() -> None:
    """Node's way of reading is shown, and holds no bar."""
    measured = result(ingestd=runs(2))
    measured.series |= {"ORM pipeline": runs(20), "pandas to_sql": runs(5)}
    measured.series["Node, reading only"] = runs(1)
    told = verdict_of("against each alternative, SQLite", {"sqlite-alternatives": measured})
    assert ("2.5 × pandas to_sql, the fastest of them", "reached") == told


def test_an_election_is_extrapolated_from_its_sample() -> None:
    """Time, times the part, times the slowing of a growing table."""
    sample = result(ingestd=runs(60, rows=1_000_000))
    sample.numbers["part"] = 20
    assert 20 == bars.election_minutes({}, sample)
    course = Result(
        taken=TAKEN,
        series={
            f"{what}, rows at {size}": runs(seconds)
            for size, seconds in ((100_000, 1), (1_000_000, 1), (10_000_000, 2))
            for what in ("limit", "ingestd")
        },
    )
    slowed = bars.election_minutes({"pg-growth": course}, sample)
    assert 30 < slowed < 45


# The page -----------------------------------------------------------------------------------


def everything() -> results.Results:
    """Figures of every scenario."""
    again = {"dropped again": runs(1)}
    grown = {
        f"{who}, {what} at {size}": runs(1)
        for who in ("limit", "ingestd")
        for what in ("rows", "files")
        for size in (100_000, 10_000_000)
    }
    series: dict[str, dict[str, list[Run]]] = {
        "8-files": {"limit": runs(1), "limit, binary": runs(0.5), "ingestd": runs(2)} | again,
        "1gb": {"limit": runs(1), "ingestd": runs(2)},
        "zips": {"limit": runs(1), "ingestd": runs(2)} | again,
        "republish": {"whole voting, first": runs(1), "whole voting, published again": runs(1)},
        "alternatives": {"ingestd": runs(1), "ORM pipeline": runs(9), "pandas to_sql": runs(2)},
        "latency": {},
        "memory": {"small": runs(1, peak=90), "large": runs(1, peak=115)},
        "stages": {},
        "growth": grown,
        "national": {"ingestd": runs(60, rows=1_229_193)},
    }
    numbers = {
        "latency": {"p50": 0.1, "p99": 1.2, "longest": 1.3, "settle": 1.0},
        "stages": {"row: validate": 7.0, "row: load": 5.0, "file: ledger": 900.0},
        "national": {"part": 20.0},
    }
    return {
        name: Result(taken=TAKEN, series=series[what], numbers=numbers.get(what, {}))
        for name in scenarios.names()
        for what in [name.partition("-")[2]]
    }


def test_the_page_tells_of_every_scenario() -> None:
    """What is measured is told, each bar with its verdict."""
    told = page.page(everything())
    assert "not measured" not in told.split("## How")[0]
    for text in (
        "| 2 000 hourly ZIPs, SQLite | ≥ 150 files/s | 5 files/s | **not reached** |",
        "| +25 MB at 1 000 rows | **not reached** |",
        "| 10 000 000 | 1 000 | 1 000 | 1.00 | 10 | 10 |",
        "| validate | 7.0 | 0 |",
        "| all | 12.0 | 900 |",
        "60 s × 20.0 × 1.00 = **20.0 minutes**",
        "commit abc",
    ):
        assert text in told


def test_the_page_is_written_of_what_there_is() -> None:
    """A benchmark that was run in parts has a page at each moment."""
    for name, one in everything().items():
        assert "# Performance" in page.page({name: one})
    assert "not measured" in page.page({})


def test_the_page_in_the_repository_is_what_its_figures_say() -> None:
    """Nobody edits it."""
    kept = results.load(results.LATEST)
    if kept:
        assert page.page(kept) == page.TARGET.read_text(encoding="utf-8")


def test_parts_of_a_benchmark_keep_each_others_figures(tmp_path: Path) -> None:
    """A scenario that is run again replaces its own figures alone."""
    kept = tmp_path / "results" / "latest.json"
    first, second = result(limit=runs(1)), result(limit=runs(2))
    results.keep(kept, "pg-1gb", first)
    results.keep(kept, "sqlite-1gb", first)
    results.keep(kept, "pg-1gb", second)
    assert {"pg-1gb": second, "sqlite-1gb": first} == results.load(kept)


# Files, rows and tables ---------------------------------------------------------------------


def test_files_are_simulated_once(tmp_path: Path) -> None:
    """The same sizes give the same files, and a change of sizes others."""
    few = replace(QUICK, zips=8)
    first = drops.zips(tmp_path, few)
    times = [path.stat().st_mtime_ns for path in first.paths]
    assert first == drops.zips(tmp_path, few)
    assert times == [path.stat().st_mtime_ns for path in first.paths]
    assert 8 == first.files
    assert first.paths != drops.zips(tmp_path, replace(few, zips=13)).paths


def test_a_publication_has_one_row_less_in_each_file(tmp_path: Path) -> None:
    """The other bytes that a slot gets."""
    first = drops.zips(tmp_path / "files", replace(QUICK, zips=10))
    again = drops.published_again(first, tmp_path / "again")
    assert [path.name for path in first.paths] == [path.name for path in again.paths]
    assert first.rows - first.files == again.rows
    assert first.rows == sum(csv.count(b"\n") for csv in drops.unpacked(first))


def test_the_limit_writes_the_very_same_rows(
    migrated_url: str,
    ingest: Ingest,
    databases: Databases,
    voting: Voting,
    drop_file: DropFile,
    tmp_path: Path,
) -> None:
    """All columns of all rows, by as many connections as there are files."""
    for hour in (8, 9):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 3)))
    everything = 'SELECT * FROM "transaction" ORDER BY id'
    kind = "postgresql" if is_postgresql(migrated_url) else "sqlite"
    for form in (TEXT, BINARY) if kind == "postgresql" else (TEXT,):
        ready = ready_rows(migrated_url, tmp_path / "ready", csv_bytes=1, form=form)
        assert (12, 2) == (ready.rows, ready.files)
        with databases.fresh(kind) as other:
            assert 12 == load(other, ready, connections=len(ready.parts)).rows
            assert ask(migrated_url, everything) == ask(other, everything)


def test_a_table_grows_by_copies_under_other_keys(
    migrated_url: str, ingest: Ingest, voting: Voting, drop_file: DropFile
) -> None:
    """Each copy is a constituency with its rows, hours and jobs; its keys begin as its own."""
    ingest.take(drop_file(voting.name(8), voting.ballots(8, 5)))
    assert 30 == growth.grow(migrated_url, to_rows=25)
    assert 50 == growth.grow(migrated_url, to_rows=50)
    for table, expected in (("constituency", 5), ("file_processing", 5), ("hourly_stats", 5)):
        assert [(expected,)] == ask(migrated_url, f"SELECT count(*) FROM {table}")
    counted = ask(
        migrated_url,
        'SELECT constituency_id, count(*) FROM "transaction" GROUP BY constituency_id',
    )
    assert [10] * 5 == [count for _, count in counted]
    keys = ask(migrated_url, 'SELECT id, voter_key FROM "transaction" WHERE voter_key IS NOT NULL')
    assert 25 == len(keys) == len(set(keys))
    for key, voter in keys:
        number = int(str(voter)).to_bytes(8, "big", signed=True)
        assert number[:3] == bytes.fromhex(str(key)[:6])


def test_the_daemon_is_measured_until_its_files_are_away(
    sqlite_url: str, voting: Voting, tmp_path: Path
) -> None:
    """Time, CPU and memory of the real program; what became of the files is looked at."""
    files = tmp_path / "files"
    files.mkdir()
    path = files / voting.name(8)
    path.write_bytes(csv_of(voting.ballots(8, 5)))
    drop = drops.Drop(paths=(path,), rows=10, bytes=path.stat().st_size)
    with daemon(tmp_path / "work", sqlite_url) as running:
        run = running.take(drop)
        running.check(completed=1)
        with pytest.raises(BenchmarkFailed, match="not"):
            running.check(completed=2)
    assert (1, 10) == (run.files, run.rows)
    assert run.seconds > 0
    assert run.cpu_seconds is not None
    assert (run.peak_mb or 0) > 10
    assert path.exists()


def test_stages_are_the_innermost_modules() -> None:
    """Whatever library was called; a commit is one by itself, and waiting costs nothing."""
    root = "<module> (ingestd/cli/__main__.py:5);Daemon.turn (ingestd/daemon.py:9)"
    ingest = f"{root};Ingest.ingest_file (ingestd/pipeline/ingest.py:300)"
    load = f"{ingest};load_batch (ingestd/pipeline/load.py:9)"
    lines = (
        f"{ingest};check (ingestd/pipeline/validate.py:9);loads (orjson.py:1) 200",
        f"{load};see (ingestd/pipeline/sightings.py:9) 100",
        f"{load};wait (ingestd/db.py:9);_split (psycopg/_queries.py:1) 60",
        f"{load};wait (ingestd/db.py:9);_happened (ingestd/db.py:9) 999",
        f"{ingest};DefaultDialect.do_commit (sqlalchemy/default.py:9);fetch (psycopg.py:1) 50",
        "InotifyFD.run (watchdog/observers/inotify_c.py:407) 10",
    )
    expected = {"validate": 200, "sightings": 100, "load": 60, "commit": 50, stages.ELSEWHERE: 10}
    assert expected == dict(stages.by_stage(lines))


def test_the_detector_of_the_study_finds_what_was_put_into_an_hour_and_hardly_more() -> None:
    """It is what ours is held against in docs/detection.md, so it must be a detector."""
    drawn = draw(np.random.default_rng(7), rolls=[2_000] * 3)
    clean = study.found(drawn.bulletins, drawn.roll, drawn.region)
    assert clean.sum() <= 3
    drawn.stuff(0, 13, 100)
    drawn.stuff(2, 19, 10)  # by night
    found = study.found(drawn.bulletins, drawn.roll, drawn.region)
    assert [True, True] == [found[0, 13], found[2, 19]]
    assert found.sum() <= clean.sum() + 2
