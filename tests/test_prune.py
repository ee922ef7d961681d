"""Pruning: what is kept twice may go, what is the only copy of anything never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from ingestd.models import AuditLog
from ingestd.pipeline.prune import Prune, Redundant

from .conftest import DATABASES, Databases, Did, csv_of, rolled_back, zip_of
from .oracle import differences, snapshot, unsound
from .running import environment, open_sessions
from .test_fsck import World


@pytest.fixture(params=DATABASES)
def world(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> Iterator[World]:
    """A sound world with publications, duplicates, rejects, rollbacks."""
    with databases.fresh(request.param) as url, open_sessions(url) as sessions:
        yield World(tmp_path, sessions)


def pruning(world: World, *, days: float = 0) -> Prune:
    """What looks for files to prune in that world."""
    return Prune(sessions=world.sessions, clock=world.clock, keep=timedelta(days=days))


def names(found: list[Redundant]) -> list[str]:
    """Their places below the archive."""
    return sorted(os.fspath(each.path).split("/archive/", 1)[1] for each in found)


def hour(world: World, number: int, voters: int = 3) -> list[str]:
    """Rows of an hour that the world does not have yet."""
    return world.voting.ballots(number, voters)


def test_a_duplicate_goes_and_the_evidence_stays(world: World, did: Did) -> None:
    """The world's one file that another holds is its duplicate; rows and alerts do not change."""
    before = snapshot(world.sessions)
    (only,) = found = list(pruning(world).found())

    assert [f"again/{world.voting.name(10)}"] == names(found)
    assert [world.folder / "archive" / "new" / world.voting.name(10)] == list(only.kept_by)
    assert pruning(world).take_away(only, world.note)

    assert not only.path.exists()
    assert [] == world.check()
    assert [] == list(pruning(world).found())
    assert [("prune", str(only.job_ids[0]))] == world.deeds[-1:]
    assert [] == differences(before, snapshot(world.sessions))
    assert [] == unsound(world.sessions)
    did("1 duplicate pruned; fsck sound, tables the same")


def test_an_earlier_publication_goes_only_when_a_later_one_repeats_it_whole(world: World) -> None:
    """One that grew is repeated; one that lost or rewrote a row, or was refused rows, is not."""
    v = world.voting
    grown, cut, rewritten, refused = (hour(world, number) for number in (12, 13, 14, 15))
    bad = v.vote(910).replace(";104;", ";105;", 1)
    world.drop(v.name(12), csv_of([*grown, rolled_back(grown[0]), grown[0]]))
    world.drop(v.name(13), csv_of(cut))
    world.drop(v.name(14), csv_of(rewritten))
    world.drop(v.name(15), csv_of([*refused, bad]))
    world.drop(f"2/{v.name(12)}", csv_of([*grown, rolled_back(grown[0]), grown[0], v.vote(725)]))
    world.drop(f"2/{v.name(13)}", csv_of(cut[1:]))
    other = rewritten[1].replace('"contractVersion":1', '"contractVersion":2')
    world.drop(f"2/{v.name(14)}", csv_of([rewritten[0], other, *rewritten[2:]]))
    world.drop(f"2/{v.name(15)}", csv_of([*refused, v.vote(911)]))

    found = list(pruning(world).found())

    assert [f"{v.name(12)}", f"again/{v.name(10)}"] == sorted(names(found))
    for each in found:
        assert pruning(world).take_away(each, world.note)
    assert [] == world.check()
    assert [] == unsound(world.sessions)


def test_an_event_that_is_repeated_less_often_keeps_its_file(world: World) -> None:
    """On, off and on again is not the same as on."""
    v, rows = world.voting, hour(world, 12)
    world.drop(v.name(12), csv_of([*rows, rolled_back(rows[0]), rows[0]]))
    world.drop(f"2/{v.name(12)}", csv_of([*rows, rolled_back(rows[0]), v.vote(725)]))

    assert v.name(12) not in names(list(pruning(world).found()))


def test_what_is_new_stays(world: World) -> None:
    """Files are counted from the time when the last of the two was done with."""
    assert [] == list(pruning(world, days=10).found())
    world.clock.advance(timedelta(days=11).total_seconds())
    assert 1 == len(list(pruning(world, days=10).found()))


def test_a_zip_goes_only_with_all_that_is_in_it(world: World) -> None:
    """One member that is nowhere else keeps the whole."""
    v = world.voting
    first, second = csv_of(hour(world, 12)), csv_of(hour(world, 13))
    world.drop(v.name(12), first)
    world.drop(f"{v.contract}/both.zip", zip_of({v.name(12): first, v.name(13): second}))
    world.drop(f"{v.contract}/twice.zip", zip_of({v.name(12): first}))

    found = names(list(pruning(world).found()))

    assert f"{v.contract}/twice.zip" in found
    assert f"{v.contract}/both.zip" not in found


def test_nothing_goes_when_what_holds_it_is_altered(world: World) -> None:
    """The file that stays is read before the other goes."""
    (only,) = pruning(world).found()
    (kept,) = only.kept_by
    kept.write_bytes(kept.read_bytes().replace(b";0;;", b";1;;", 1))

    assert not pruning(world).take_away(only, world.note)
    assert only.path.exists()
    kept.unlink()
    assert not pruning(world).take_away(only, world.note)
    assert [] == list(pruning(world).found())


def test_a_kill_before_the_file_is_removed_is_ended_by_the_next_call(world: World) -> None:
    """Noted, but still there: fsck is sound, and the next call removes it."""
    (only,) = pruning(world).found()
    content = only.path.read_bytes()
    assert pruning(world).take_away(only, world.note)
    only.path.write_bytes(content)

    assert [] == world.check()
    assert [only.path] == list(pruning(world).leftovers())


def test_pruned_bytes_that_are_dropped_again_are_kept_again(world: World) -> None:
    """They are a duplicate like any other, and nothing is counted twice."""
    before = snapshot(world.sessions)
    (only,) = pruning(world).found()
    content = only.path.read_bytes()
    assert pruning(world).take_away(only, world.note)

    world.drop(f"again/{world.voting.name(10)}", content)

    assert only.path.exists()
    assert [] == list(pruning(world).leftovers()), "it is a file of the archive again"
    assert [] == world.check()
    assert [] == differences(before, snapshot(world.sessions))


def test_a_publication_that_counts_again_meanwhile_stays(world: World) -> None:
    """Between the look and the removal a person may have made it current."""
    v, rows = world.voting, hour(world, 12)
    world.drop(v.name(12), csv_of(rows))
    world.drop(f"2/{v.name(12)}", csv_of([*rows, v.vote(725)]))
    (old,) = (each for each in pruning(world).found() if each.path.parent.name == "archive")
    world.ingest.make_current(old.job_ids[0], also=lambda _session: None)

    assert not pruning(world).take_away(old, world.note)
    assert old.path.exists()
    assert [] == world.check()


@pytest.mark.slow
def test_the_command_asks_says_and_removes(sqlite_url: str, tmp_path: Path) -> None:
    """Nothing without a time, nothing without --yes, nothing in a dry run; then an audit line."""
    with open_sessions(sqlite_url) as sessions:
        world = World(tmp_path, sessions)
        (only,) = pruning(world).found()

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "ingestd.cli", "prune", *arguments],
                env=environment(tmp_path, sqlite_url),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )

        silent, unsure = run(), run("--older-than", "30")
        dry = run("--older-than", "30", "--dry-run")
        assert only.path.exists()
        done = run("--older-than", "30", "--yes", "--json")

        assert [2, 2, 0, 0] == [each.returncode for each in (silent, unsure, dry, done)]
        assert "set keep.redundant_days" in silent.stderr
        assert f"would go: {only.path}, held by" in dry.stdout
        assert [True] == [file["is_removed"] for file in json.loads(done.stdout)["files"]]
        assert not only.path.exists()
        assert [] == world.check()
        with sessions() as session:
            query = select(AuditLog.before).where(AuditLog.action == "prune")
            assert str(only.path) == (session.scalars(query).one() or {})["archived_to"]
