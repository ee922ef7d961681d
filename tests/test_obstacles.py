"""What is in the way of files: said once, tried again, summed."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingestd.pipeline.obstacles import Obstacle, Obstacles, Waiting, advice

ARCHIVE = Obstacle("archive_full", "archive_back", Path("/archive"))


def waiting(name: str, *, size: int = 10, stamp: str = "1") -> Waiting:
    """A file that waits."""
    return Waiting(Path(name), stamp, size)


def test_an_obstacle_is_said_once_and_summed_when_the_last_file_has_passed() -> None:
    """How many files, how often, how long."""
    obstacles = Obstacles()
    with capture_logs() as logs:
        for now in (0, 1, 3):
            for name in ("a", "b"):
                obstacles.meet(ARCHIVE, waiting(name), now)
        for name in ("a", "b"):
            obstacles.pass_(waiting(name), 7)
    assert ["archive_full", "archive_back"] == [line["event"] for line in logs]
    assert (2, 6, 7) == tuple(logs[1][name] for name in ("files", "tries", "seconds"))


def test_a_crowd_that_grows_is_said_again_but_not_within_a_minute() -> None:
    """Otherwise a thousand unreadable files would be a thousand lines, or one."""
    obstacles = Obstacles()
    with capture_logs() as logs:
        for number in range(100):
            obstacles.meet(ARCHIVE, waiting(str(number)), number)
    assert [1, 61] == [line["files"] for line in logs]


def test_pauses_grow_to_half_a_minute() -> None:
    """A file is held until its pause is over."""
    obstacles = Obstacles()
    now, pauses = 0.0, []
    for _ in range(7):
        obstacles.meet(ARCHIVE, waiting("a"), now)
        began = now
        while obstacles.holds(waiting("a"), now):
            now += 0.5
        pauses.append(now - began)
    assert [1, 2, 4, 8, 16, 30, 30] == pauses


def test_a_file_that_changes_is_tried_at_once() -> None:
    """A chmod is a change, too."""
    obstacles = Obstacles()
    obstacles.meet(ARCHIVE, waiting("a"), 0)
    assert obstacles.holds(waiting("a"), 0.5)
    assert not obstacles.holds(waiting("a", stamp="2"), 0.5)
    assert not obstacles.holds(waiting("other"), 0.5)


def test_what_did_not_fit_keeps_only_what_is_as_large_waiting() -> None:
    """The small ones are tried."""
    obstacles = Obstacles()
    for name, size in (("small", 1), ("large", 30), ("middle", 20)):
        obstacles.meet(ARCHIVE, waiting(name, size=size), 0)
    obstacles.meet(ARCHIVE, waiting("middle", size=20), 5)
    assert obstacles.holds(waiting("large", size=30), 5.5)
    assert obstacles.holds(waiting("middle", size=20), 5.5)
    assert not obstacles.holds(waiting("small", size=1), 5.5)


def test_a_file_that_was_taken_away_waits_no_longer() -> None:
    """Then it is over, too."""
    obstacles = Obstacles()
    obstacles.meet(ARCHIVE, waiting("a"), 0)
    with capture_logs() as logs:
        obstacles.forget_others([], 4)
    assert [("archive_back", 0)] == [(line["event"], line["files"]) for line in logs]
    assert not obstacles.holds(waiting("a"), 4)


@pytest.mark.parametrize(
    ("code", "words"),
    [(28, "make room"), (122, "make room"), (30, "read-only"), (13, "setfacl"), (5, "by itself")],
)
def test_each_refusal_has_its_advice(tmp_path: Path, code: int, words: str) -> None:
    """What a person can do about it."""
    assert words in advice(OSError(code, "?"), tmp_path)
