"""What is measured: each scenario on one kind of database, in turn with what it is held against."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from subprocess import CalledProcessError
from typing import Final

from bench import drops, growth, instead, stages
from bench.daemon import HAS_WORKERS, Daemon, daemon
from bench.databases import Database, PostgreSQL, SQLite, postgresql
from bench.drops import Drop
from bench.figures import amount
from bench.instead import Alternative
from bench.limit import BINARY, TEXT, Ready, load, ready_rows
from bench.results import Result, Run
from bench.scale import Scale

WORKERS: Final = 2
PACE: Final = 100  # files a second
SETTLE_SECONDS: Final = 1.0  # the default of watch.settle_seconds


@dataclass
class Bench:
    """Where it works, how large, and the databases, started when first asked for."""

    folder: Path
    scale: Scale
    tell: Callable[[str], None]
    _open: ExitStack = field(default_factory=ExitStack)
    _postgresql: PostgreSQL | None = None

    @property
    def files(self) -> Path:
        """What was simulated; kept between runs."""
        return self.folder / "files"

    @property
    def work(self) -> Path:
        """The daemon's folder."""
        return self.folder / "work"

    def database(self, kind: str) -> Database:
        """SQLite, or the one server of this run."""
        if kind == "sqlite":
            return SQLite(self.folder / "databases")
        if self._postgresql is None:
            self._postgresql = self._open.enter_context(postgresql())
        return self._postgresql

    def close(self) -> None:
        """Stop the server."""
        self._open.close()

    @contextmanager
    def daemon(self, url: str, *, workers: int = 1) -> Iterator[Daemon]:
        """A daemon in the folder for work."""
        with daemon(self.work, url, workers=workers) as running:
            yield running

    def note(self, result: Result, name: str, run: Run) -> Run:
        """Keep one more run, and say so."""
        self.tell(f"  {name}: {run.rows} rows, {run.files} files in {run.seconds:.2f} s")
        return result.add(name, run)


Scenario = Callable[[Bench, Database, Result], None]


def whole_votings(bench: Bench, database: Database, result: Result) -> None:
    """8 files of 60 k rows, and the same again."""
    workers = WORKERS if database.name == "pg" else 1
    drop = drops.eight(bench.files, bench.scale)
    _against_the_limit(bench, database, result, drop, workers=workers, is_dropped_again=True)
    result.notes.append(f"{_size(drop)}; {_hands(workers)}, the limit on as many connections.")


def one_big_file(bench: Bench, database: Database, result: Result) -> None:
    """One whole voting of 1 GB."""
    drop = drops.big(bench.files, bench.scale)
    _against_the_limit(bench, database, result, drop)
    result.notes.append(f"{_size(drop)}; 1 worker, the limit with 1 connection.")


def hourly_zips(bench: Bench, database: Database, result: Result) -> None:
    """2 000 hourly files of 150 rows in ZIPs, and the same again."""
    workers = WORKERS if database.name == "pg" else 1
    drop = drops.zips(bench.files, bench.scale)
    _against_the_limit(bench, database, result, drop, workers=workers, is_dropped_again=True)
    result.notes.append(
        f"{_size(drop)}; {_hands(workers)}. The limit commits each file by itself, too."
    )


def _against_the_limit(
    bench: Bench,
    database: Database,
    result: Result,
    drop: Drop,
    *,
    workers: int = 1,
    is_dropped_again: bool = False,
) -> None:
    """Take files and load their final rows, in turn; each repeat has its own limit."""
    forms = {"limit": TEXT} | ({"limit, binary": BINARY} if database.name == "pg" else {})
    ready: dict[str, Ready] = {}
    for _ in range(bench.scale.repeats):
        with database.fresh() as url:
            with bench.daemon(url, workers=workers) as running:
                bench.note(result, "ingestd", running.take(drop))
                running.check(completed=drop.files)
                if is_dropped_again:
                    again = running.take(drop, is_copied=True)
                    running.check(completed=drop.files, duplicate=drop.files)
                    bench.note(result, "dropped again", again)
            ready = ready or {what: _ready(bench, url, drop, form) for what, form in forms.items()}
        for what in forms:
            with database.fresh() as url:
                bench.note(result, what, load(url, ready[what], connections=workers))


def _ready(bench: Bench, url: str, drop: Drop, form: str) -> Ready:
    ready = ready_rows(url, bench.folder / "ready", csv_bytes=drop.bytes, form=form)
    if ready.rows != drop.rows:
        raise RuntimeError(f"{ready.rows} rows were stored of {drop.rows}")
    return ready


def published_again(bench: Bench, database: Database, result: Result) -> None:
    """Files again with one row less, which supersede the first; a whole voting after its hours."""
    whole = drops.some(drops.eight(bench.files, bench.scale), 1)
    hours = drops.some(drops.zips(bench.files, bench.scale), bench.scale.republished_zips)
    for name, drop in (("whole voting", whole), ("hourly ZIPs", hours)):
        other = drops.published_again(drop, bench.folder / "published-again")
        with database.fresh() as url, bench.daemon(url) as running:
            bench.note(result, f"{name}, first", running.take(drop))
            bench.note(result, f"{name}, published again", running.take(other))
            running.check(completed=other.files, superseded=drop.files)
        result.notes.append(f"{name}: {_size(drop)}, then each file without its last row.")
    hours, whole = drops.hours_and_whole(bench.files, bench.scale)
    with database.fresh() as url, bench.daemon(url) as running:
        bench.note(result, "hours of a voting, first", running.take(hours))
        bench.note(result, "the whole voting, after its hours", running.take(whole))
        running.check(completed=hours.files + whole.files)
    result.notes.append(f"The whole voting: {_size(whole)}, all known from {_size(hours)}.")


def alternatives(bench: Bench, database: Database, result: Result) -> None:
    """What people would use instead, on the same files, in turn."""
    drop = drops.some(drops.eight(bench.files, bench.scale), bench.scale.alternative_files)
    for _ in range(bench.scale.alternative_repeats):
        with database.fresh() as url, bench.daemon(url) as running:
            bench.note(result, "ingestd", running.take(drop))
        for other in instead.ALTERNATIVES:
            if database.name in other.databases:
                _run_alternative(bench, database, result, other, drop)
        if run_by_node := instead.read_by_node(drop):
            bench.note(result, instead.NODE, run_by_node)
    result.notes += [
        f"{_size(drop)}; one process each. The time to start and to import is left out.",
        f"With {instead.versions(result.series, bench.folder)}.",
    ]


def _run_alternative(
    bench: Bench, database: Database, result: Result, other: Alternative, drop: Drop
) -> None:
    """Their failure is theirs: it is told on the page, and the others are measured."""
    try:
        run = instead.run_alternative(other, database, drop, bench.folder)
    except (RuntimeError, CalledProcessError) as error:
        bench.tell(f"  {other.name} failed: {error}")
        told = f"**{other.name} failed and is not compared.**"
        if told not in result.notes:
            result.notes.append(told)
        return
    bench.note(result, other.name, run)


def growing(bench: Bench, database: Database, result: Result) -> None:
    """Rows and files a second while the table grows, beside the raw load at the same size."""
    scale = bench.scale
    whole = drops.some(drops.eight(bench.files, scale), scale.growth_files)
    hours = drops.some(drops.zips(bench.files, scale), scale.growth_zips)
    ready = {
        name: _ready_alone(bench, database, drop, name)
        for name, drop in (("rows", whole), ("files", hours))
    }
    with database.fresh() as base:
        seed = drops.seedling(bench.files)
        with bench.daemon(base) as running:
            running.take(seed)
            running.check(completed=seed.files)
        for size in scale.growth_sizes:
            bench.tell(f"  growing to {size} rows")
            held = growth.grow(base, to_rows=size)
            database.settle(base)
            for _ in range(scale.growth_repeats):
                for name, drop in (("rows", whole), ("files", hours)):
                    with database.fresh(of=base) as url, bench.daemon(url) as running:
                        running.wait_until_at_rest()
                        bench.note(result, f"ingestd, {name} at {held}", running.take(drop))
                    with database.fresh(of=base) as url:
                        bench.note(result, f"limit, {name} at {held}", load(url, ready[name]))
    result.notes += [
        f"Rows: {_size(whole)}. Files: {_size(hours)}.",
        (
            "The table is filled with copies of one constituency that ingestd took in, under other "
            "ids, with their hours and jobs, but without the JSON of the ballots; what is measured "
            "has all of it. Each figure is taken on a fresh copy of the same database."
        ),
    ]


def _ready_alone(bench: Bench, database: Database, drop: Drop, name: str) -> Ready:
    with database.fresh() as url:
        with bench.daemon(url) as running:
            running.take(drop)
        return ready_rows(url, bench.folder / "ready" / name, csv_bytes=drop.bytes)


def latency(bench: Bench, database: Database, result: Result) -> None:
    """From a file's last rename to its rows being visible, at 100 files a second."""
    drop = drops.trickle(bench.files, bench.scale)
    with database.fresh() as url, bench.daemon(url) as running:
        dropped: dict[str, float] = {}
        began = time.monotonic()
        for number, path in enumerate(drop.paths):
            time.sleep(max(0.0, began + number / PACE - time.monotonic()))
            place = running.inbox / f"{path.name}.part"
            place.write_bytes(path.read_bytes())
            place.rename(running.inbox / path.name)
            dropped[path.name] = time.time()
        running.wait_until_empty()
        running.check(completed=drop.files)
        seen = {
            told["path"]: datetime.fromisoformat(told["timestamp"]).timestamp()
            for told in running.told("file_ingested")
        }
    seconds = sorted(seen[name] - moment for name, moment in dropped.items())
    result.numbers["p50"] = quantiles(seconds, n=2)[0]
    result.numbers["p99"] = quantiles(seconds, n=100)[-1]
    result.numbers["longest"] = seconds[-1]
    result.numbers["settle"] = SETTLE_SECONDS
    bench.tell(f"  {json.dumps(result.numbers)}")
    result.notes.append(
        f"{_size(drop)}, {PACE} a second, each written under another name and renamed into place."
    )


def memory(bench: Bench, database: Database, result: Result) -> None:
    """The most memory for a small file and for a large one."""
    for name, drop in (
        ("small", drops.small(bench.files, bench.scale)),
        ("large", drops.large(bench.files, bench.scale)),
    ):
        with database.fresh() as url, bench.daemon(url) as running:
            run = bench.note(result, name, running.take(drop))
            bench.tell(f"  {run.peak_mb:.0f} MB")
        result.notes.append(f"The {name} file: {_size(drop)}.")


def cpu_by_stage(bench: Bench, database: Database, result: Result) -> None:
    """Where the CPU of the client goes, in microseconds a row and a file."""
    whole = drops.some(drops.eight(bench.files, bench.scale), 2)
    hours = drops.some(drops.zips(bench.files, bench.scale), bench.scale.stage_zips)
    for what, drop, count in (("row", whole, whole.rows), ("file", hours, hours.files)):
        samples = bench.folder / "samples" / f"{database.name}-{what}.txt"
        with database.fresh() as url, bench.daemon(url) as running:
            seconds = stages.sample(running, drop, samples)
        for stage, spent in seconds.items():
            result.numbers[f"{what}: {stage}"] = spent / count * 1e6
    result.notes += [
        f"µs a row: {_size(whole)}. µs a file: {_size(hours)}.",
        (
            f"Shares are those of {stages.SAMPLES_A_SECOND} samples a second by py-spy of what is "
            "not idle, the sum is the kernel's account. A sample belongs to the innermost module "
            "of ingestd in it, whatever library it called, and to `commit` while the database "
            "commits."
        ),
    ]


def national_election(bench: Bench, database: Database, result: Result) -> None:
    """A part of a national election in hourly ZIPs."""
    drop = drops.election(bench.files, bench.scale)
    with database.fresh() as url, bench.daemon(url, workers=WORKERS) as running:
        bench.note(result, "ingestd", running.take(drop))
        running.check(completed=drop.files)
    result.numbers["part"] = drops.ELECTION_ROWS / drop.rows
    result.notes.append(f"{_size(drop)}; {_hands(WORKERS)}.")


def _hands(workers: int) -> str:
    if workers > 1 and not HAS_WORKERS:
        return f"{workers} workers asked for, of which this version knows one"
    return f"{workers} workers" if workers > 1 else "1 worker"


def _size(drop: Drop) -> str:
    files = f"{amount(drop.files)} files" if drop.files > 1 else "1 file"
    mean = drop.bytes / drop.rows / 1000
    size = f"{amount(drop.bytes / 1e6)} MB of CSV ({mean:.1f} KB a row)"
    return f"{files}, {amount(drop.rows)} rows, {size}"


BOTH: Final = ("pg", "sqlite")
SCENARIOS: dict[str, tuple[Scenario, tuple[str, ...]]] = {
    "8-files": (whole_votings, BOTH),
    "1gb": (one_big_file, BOTH),
    "zips": (hourly_zips, BOTH),
    "republish": (published_again, BOTH),
    "alternatives": (alternatives, BOTH),
    "latency": (latency, BOTH),
    "memory": (memory, BOTH),
    "stages": (cpu_by_stage, BOTH),
    "growth": (growing, BOTH),
    "national": (national_election, ("pg",)),
}


def names() -> list[str]:
    """All scenarios, as `--only` takes them."""
    return [f"{kind}-{name}" for name, (_, kinds) in SCENARIOS.items() for kind in kinds]


def run(bench: Bench, name: str, result: Result) -> None:
    """Run one."""
    kind, _, what = name.partition("-")
    scenario, _ = SCENARIOS[what]
    scenario(bench, bench.database(kind), result)
