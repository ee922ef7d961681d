"""From dropped to visible: how long an observer waits for a file's rows."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import quantiles

import pytest

from .conftest import Did, Voting, csv_of
from .oracle import unsound
from .running import is_empty, open_sessions, soon
from .victims import Victim

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

SETTLE_SECONDS = 1.0


def hourly_files(number: int) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of small hourly files, twelve of each constituency."""
    for seed in range(-(-number // 12)):
        voting = Voting(rng=random.Random(seed))
        for hour in range(8, min(20, 8 + number - 12 * seed)):
            yield voting.name(hour), csv_of(voting.ballots(hour, 5))


def drop_at(pace: float, files: list[tuple[str, bytes]], inbox: Path) -> dict[str, float]:
    """Write so many files a second; the moment at which each was whole."""
    dropped: dict[str, float] = {}
    began = time.monotonic()
    for number, (name, content) in enumerate(files):
        time.sleep(max(0.0, began + number / pace - time.monotonic()))
        (inbox / name).write_bytes(content)
        dropped[name] = time.time()
    return dropped


def seconds_to_be_visible(victim: Victim, dropped: dict[str, float]) -> list[float]:
    """How long each file took until its commit was over; the log line comes right after it."""
    told = (json.loads(line) for line in victim.log().splitlines())
    seen = {
        line["path"]: datetime.fromisoformat(line["timestamp"]).timestamp()
        for line in told
        if line["event"] == "file_ingested"
    }
    return [seen[name] - moment for name, moment in dropped.items()]


# The short form shows the way at a pace that any machine bears; `make reliability` the promise.
@pytest.mark.alone
@pytest.mark.promise(35)
@pytest.mark.parametrize(
    ("pace", "number", "longest"),
    [
        pytest.param(10, 50, 15.0, id="10-a-second"),
        pytest.param(100, 2_000, SETTLE_SECONDS + 1, id="100-a-second", marks=pytest.mark.campaign),
    ],
)
def test_a_dropped_file_is_visible_soon(
    migrated_url: str, tmp_path: Path, pace: int, number: int, longest: float, did: Did
) -> None:
    """99 of 100 are there within the settle time and a second."""
    (tmp_path / "inbox").mkdir()
    settings = {
        "INGESTD_WATCH__SETTLE_SECONDS": str(SETTLE_SECONDS),
        "INGESTD_DATABASE__SQLITE_SYNCHRONOUS": "FULL",
    }
    victim = Victim(tmp_path, migrated_url, "run", settings)
    soon(lambda: '"started"' in victim.log())
    dropped = drop_at(pace, list(hourly_files(number)), tmp_path / "inbox")
    soon(lambda: is_empty(tmp_path / "inbox"), seconds=120)
    assert 0 == victim.stop()
    seconds = seconds_to_be_visible(victim, dropped)
    p50, p99 = quantiles(seconds, n=2)[0], quantiles(seconds, n=100)[-1]
    kind = migrated_url.split("+", maxsplit=1)[0].split(":", maxsplit=1)[0]
    did(f"{pace} files/s on {kind}: p50 {p50:.2f} s, p99 {p99:.2f} s", files=number)
    assert number == len(seconds)
    assert p99 < longest
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
