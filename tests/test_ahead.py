"""Many small files: their jobs are written in one commit, and each file ends as it would alone."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import FileProcessing
from ingestd.pipeline.ahead import FILES_AHEAD
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.step import Step

from .conftest import DATABASES, Databases, Did, DropFile, Voting, csv_of, zip_of
from .oracle import differences, snapshot, unsound
from .running import is_empty, open_sessions
from .steps import CRASH_VARIABLE
from .victims import Victim

Sessions = sessionmaker[Session]
HOURS = range(8, 14)


def hourly(votings: int = 2) -> dict[str, bytes]:
    """Some hours of some votings, every third of them in a ZIP of its own."""
    files: dict[str, bytes] = {}
    for number in range(votings):
        voting = Voting(rng=random.Random(number))
        for hour in HOURS:
            name, content = voting.name(hour), csv_of(voting.ballots(hour, 3))
            files[f"{number}-{hour}.zip" if hour % 3 == 0 else name] = (
                zip_of({name: content}) if hour % 3 == 0 else content
            )
    return files


@pytest.fixture(params=["read here", "read in advance"])
def ingest(ingest: Ingest, request: pytest.FixtureRequest) -> Ingest:
    """With what is said to be small enough for it read by a process beside, and without."""
    if request.param == "read in advance":
        ingest.reader = request.getfixturevalue("reader")
    return ingest


def take_all(ingest: Ingest, run: Sequence[Found]) -> Counter[str]:
    """Look ahead, then take each; how many jobs ended in which state."""
    ingest.look_ahead(run)
    return Counter(str(job.status) for found in run for job in ingest.take(found))


@pytest.fixture
def commits() -> Iterator[Callable[[], int]]:
    """Counts the commits of all databases."""
    counted: list[object] = []

    def note(connection: Connection) -> None:
        counted.append(connection)

    event.listen(Engine, "commit", note)
    yield lambda: len(counted)
    event.remove(Engine, "commit", note)


def jobs(sessions: Sessions) -> list[FileProcessing]:
    """All jobs in the order of their paths."""
    with sessions() as session:
        return list(session.scalars(select(FileProcessing).order_by(FileProcessing.path)))


def test_an_ordinary_file_costs_one_commit(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, commits: Callable[[], int]
) -> None:
    """What is asked and written down before it is shared by all of them."""
    run = [drop_file(name, content) for name, content in hourly().items()]
    before = commits()
    assert {"completed": len(run)} == take_all(ingest, run)
    assert len(run) + 2 == commits() - before
    assert [] == unsound(sessions)


def test_duplicates_cost_one_commit_together(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, commits: Callable[[], int]
) -> None:
    """Bare or in the same ZIP again; each is moved and says where to."""
    files = hourly()
    take_all(ingest, [drop_file(name, content) for name, content in files.items()])
    expected = snapshot(sessions)
    run = [drop_file(f"again/{name}", content) for name, content in files.items()]
    before = commits()
    assert {"duplicate": len(run)} == take_all(ingest, run)
    assert 2 == commits() - before
    again = [job for job in jobs(sessions) if job.path.startswith("again/")]
    assert [job.path for job in again] == [
        str(Path(job.archived_to or "").relative_to(ingest.terms.archive)) for job in again
    ]
    assert all(Path(job.archived_to or "").is_file() for job in again)
    assert [] == differences(expected, snapshot(sessions))
    assert [] == unsound(sessions)


def test_publications_keep_their_order(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile
) -> None:
    """Also where the earlier one asks for a closer look, and the later one does not."""
    voting = Voting()
    rows = voting.ballots(8, 4)
    both = {voting.name(8): csv_of(rows[:1]), voting.name(9): csv_of(voting.ballots(9, 1))}
    run = [
        drop_file("two-hours.zip", zip_of(both)),
        drop_file(f"b/{voting.name(8)}", csv_of(rows[:2])),
        drop_file(f"c/{voting.name(8)}", csv_of(rows[:3])),
        drop_file(f"d/{voting.name(10)}", csv_of(voting.ballots(10, 1))),
    ]
    take_all(ingest, run)
    # And where both are plain.
    take_all(
        ingest,
        [
            drop_file(f"e/{voting.name(8)}", csv_of(rows[:2] + rows[3:])),
            drop_file(f"f/{voting.name(8)}", csv_of(rows)),
        ],
    )
    numbers = {job.path[0]: job.publication for job in jobs(sessions) if job.name == voting.name(8)}
    assert {"t": 1, "b": 2, "c": 3, "e": 4, "f": 5} == numbers
    assert [] == unsound(sessions)


def test_a_file_that_changes_after_the_look_ahead_is_read_as_it_is(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile
) -> None:
    """What was written down of it is let go."""
    voting = Voting()
    first, second = voting.ballots(8, 2), voting.ballots(9, 2)
    run = [drop_file(voting.name(8), first[:1]), drop_file(voting.name(9), second)]
    ingest.look_ahead(run)
    drop_file(voting.name(8), first)
    assert ["completed"] == [str(job.status) for job in ingest.take(run[0])]
    assert ["completed"] == [str(job.status) for job in ingest.take(run[1])]
    assert {"vanished": 1, "completed": 2} == Counter(job.status for job in jobs(sessions))
    assert len(first) + len(second) == sum(job.rows_stored for job in jobs(sessions))
    assert [] == unsound(sessions)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_duplicate_that_goes_after_the_look_ahead_says_of_no_place_that_it_lies_there(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile, voting: Voting, *, is_replaced: bool
) -> None:
    """Taken away, or replaced by a later publication, which then lies at that place."""
    rows = {hour: voting.ballots(hour, 2) for hour in (8, 9)}
    take_all(ingest, [drop_file(voting.name(hour), rows[hour]) for hour in rows])
    run = [drop_file(f"again/{voting.name(hour)}", rows[hour]) for hour in rows]
    ingest.look_ahead(run)
    if is_replaced:
        drop_file(f"again/{voting.name(9)}", [*rows[9], voting.vote(570)])
    else:
        run[1].path.unlink()
    states = [str(job.status) for found in run for job in ingest.take(found)]
    assert ["duplicate", *(["completed"] if is_replaced else [])] == states
    assert 3 + is_replaced == len(jobs(sessions))
    for job in jobs(sessions):
        assert job.sha256 == hashlib.sha256(Path(job.archived_to or "").read_bytes()).hexdigest()
    assert [] == unsound(sessions)


def test_a_file_that_is_gone_keeps_no_other_from_being_taken(
    ingest: Ingest, sessions: Sessions, drop_file: DropFile
) -> None:
    """The look ahead is given up; each is taken by itself."""
    run = [drop_file(name, content) for name, content in hourly(1).items()]
    run[2].path.unlink()
    assert {"completed": len(run) - 1} == take_all(ingest, run)
    assert [] == unsound(sessions)


@pytest.mark.promise(1)
@pytest.mark.parametrize("kind", DATABASES)
@pytest.mark.parametrize(
    "step", [Step.LOOKED, Step.NOTED, Step.RECORDED, Step.STORED, Step.ADDRESSED, Step.MOVED]
)
def test_kill_9_among_many_small_files_changes_nothing(
    databases: Databases, tmp_path: Path, step: Step, kind: str, did: Did
) -> None:
    """New files and duplicates in one look ahead, killed at its steps and between its files."""
    files = hourly()
    inbox = tmp_path / "inbox"
    with databases.fresh(kind) as url:
        _drop(inbox, dict(list(files.items())[: len(files) // 2]))
        first = Victim(tmp_path, url)
        assert 0 == first.wait(), first.log()
        _drop(inbox, files)
        did("SIGKILL among many small files, half of them duplicates", kills=1, files=len(files))
        dying = Victim(tmp_path, url, settings={CRASH_VARIABLE: f"{step}:1"})
        assert -signal.SIGKILL == dying.wait(), dying.log()
        heir = Victim(tmp_path, url)
        assert 0 == heir.wait(), heir.log()
        with open_sessions(url) as sessions:
            assert [] == unsound(sessions)
            states = Counter(job.status for job in jobs(sessions))
            assert {"completed": len(files), "duplicate": len(files) // 2} == states
            rows = sum(job.rows_stored for job in jobs(sessions))
    assert 2 * len(HOURS) * len(Voting().ballots(8, 3)) == rows
    assert is_empty(inbox)
    archived = [path for path in (tmp_path / "archive").rglob("*") if path.is_file()]
    assert len(files) + len(files) // 2 == len(archived)
    shutil.rmtree(tmp_path / "archive")


def _drop(inbox: Path, files: dict[str, bytes]) -> None:
    assert len(files) <= FILES_AHEAD
    for number, (name, content) in enumerate(files.items()):
        path = inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_700_000_000 + number,) * 2)
