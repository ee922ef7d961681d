"""Any order of the same files, any repetition, any drops: the same tables on both databases."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session, sessionmaker

from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.ledger import owner_name
from ingestd.simulate import Plan, defect_names

from .conftest import (
    DATABASES,
    Clock,
    Databases,
    Did,
    DropFile,
    Simulated,
    Voting,
    simulated,
    terms_in,
)
from .oracle import Snapshot, differences, snapshot, unsound, untrue
from .running import open_sessions

QUICK = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    # An example takes seconds: a failure is told as it was found, in time for a person to see it.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LONG = settings(QUICK, max_examples=12, derandomize=False)

plans = st.builds(
    Plan,
    seed=st.integers(0, 10_000),
    constituencies=st.integers(1, 2),
    hours=st.sampled_from((4, 5)),
    voters_median=st.just(30),
    voters_max=st.just(150),
    options=st.just((2,)),
    packing=st.sampled_from(("csv", "zip", "zip-of-zips")),
    whole=st.booleans(),
    folders=st.booleans(),
    defects=st.one_of(
        st.just(defect_names()),
        st.sets(st.sampled_from(defect_names())).map(lambda names: tuple(sorted(names))),
    ),
    transactions_in_truth=st.just(True),
)


@dataclass(frozen=True)
class Arrival:
    """One way in which the same files may arrive."""

    files: list[Found]
    batch_rows: int
    databases: tuple[str, ...]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[int, int]:
    """What decides an arrival: a seed of its order, and the size of a batch."""
    return draw(st.integers(0, 2**32)), draw(st.sampled_from((5_000, 37, 7, 1)))


@pytest.mark.promise(12)
@QUICK
@given(plan=plans, ways=st.lists(arrivals(), min_size=2, max_size=2))
def test_any_order_of_all_files_gives_the_truth(
    databases: Databases, plan: Plan, ways: list[tuple[int, int]], did: Did
) -> None:
    """Shuffled and repeated, in batches of any size, on either database."""
    did("files shuffled and repeated, on both databases", elections=1, arrivals=len(ways))
    _check_all_files(databases, plan, ways)


@pytest.mark.promise(12)
@QUICK
@given(plan=plans, ways=st.lists(arrivals(), min_size=3, max_size=3), part=st.floats(0.1, 0.95))
def test_any_order_of_some_files_gives_the_same_tables(
    databases: Databases, plan: Plan, ways: list[tuple[int, int]], part: float, did: Did
) -> None:
    """There is no truth about half an election, but there are no two opinions either."""
    did("some of the files, shuffled and repeated", elections=1, arrivals=len(ways))
    _check_some_files(databases, plan, ways, part)


@pytest.mark.promise(12)
@pytest.mark.campaign
@LONG
@given(plan=plans, ways=st.lists(arrivals(), min_size=2, max_size=2))
def test_any_order_of_all_files_gives_the_truth_in_a_long_campaign(
    databases: Databases, plan: Plan, ways: list[tuple[int, int]], did: Did
) -> None:
    """The same with more elections, new ones every time."""
    did("files shuffled and repeated, on both databases", elections=1, arrivals=len(ways))
    _check_all_files(databases, plan, ways)


@pytest.mark.promise(12)
@pytest.mark.campaign
@LONG
@given(plan=plans, ways=st.lists(arrivals(), min_size=3, max_size=3), part=st.floats(0.1, 0.95))
def test_any_order_of_some_files_gives_the_same_tables_in_a_long_campaign(
    databases: Databases, plan: Plan, ways: list[tuple[int, int]], part: float, did: Did
) -> None:
    """The same with more elections, new ones every time."""
    did("some of the files, shuffled and repeated", elections=1, arrivals=len(ways))
    _check_some_files(databases, plan, ways, part)


@pytest.mark.promise(12)
@pytest.mark.parametrize("kind", DATABASES)
def test_evidence_is_the_same_in_any_order_of_cumulative_files(
    databases: Databases, kind: str, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """The same rows in a day's file, in that of the whole voting, and some of them in an hour's."""
    key = voting.new_id(64)
    rows = [voting.create(10), voting.start(481), voting.issue(490), voting.issue(491)]
    rows += [voting.vote(500, sender=key), voting.vote(501, sender=key)]
    files = [
        drop_file(f"{voting.contract}.csv", reversed(rows)),
        drop_file(f"{voting.contract}_2024-09-06.csv", rows),
        drop_file(f"{voting.contract}_2024-09-06_0700-2200.csv", [rows[5], *rows[:5]]),
        drop_file(voting.name(8), rows[2:5]),
    ]
    orders = [order for number in (3, 4) for order in permutations(files[:number])][::5]
    did("the same rows in cumulative files, in many orders", arrivals=len(orders))
    first: dict[int, Snapshot] = {}
    for order in orders:
        with databases.fresh(kind) as url, open_sessions(url) as sessions:
            ingest_all(sessions, order, 5_000)
            assert [] == unsound(sessions)
            found = snapshot(sessions)
        told = first.setdefault(len(order), found)
        assert {"duplicate_vote_key"} <= {alert["type"] for alert in told["alert"].values()}
        assert [] == differences(told, found)


def _check_all_files(databases: Databases, plan: Plan, ways: Sequence[tuple[int, int]]) -> None:
    with _on_disk(plan) as election:
        first: Snapshot | None = None
        for kind, (seed, batch_rows) in zip(_kinds(len(ways)), ways, strict=True):
            order = in_some_order(election, election.files, seed)
            again = repeated(election, order, seed)
            with databases.fresh(kind) as url, open_sessions(url) as sessions:
                ingest_all(sessions, again, batch_rows)
                assert [] == unsound(sessions)
                assert [] == untrue(sessions, election.truth)
                found = snapshot(sessions)
            first = first or found
            assert [] == differences(first, found)


def _check_some_files(
    databases: Databases, plan: Plan, ways: Sequence[tuple[int, int]], part: float
) -> None:
    with _on_disk(plan) as election:
        chosen = random.Random(plan.seed)
        files = [found for found in election.files if chosen.random() < part]
        first: Snapshot | None = None
        for kind, (seed, batch_rows) in zip(_kinds(len(ways)), ways, strict=True):
            with databases.fresh(kind) as url, open_sessions(url) as sessions:
                ingest_all(sessions, in_some_order(election, files, seed), batch_rows)
                assert [] == unsound(sessions)
                found = snapshot(sessions)
            first = first or found
            assert [] == differences(first, found)


def _kinds(number: int) -> list[str]:
    return [DATABASES[turn % len(DATABASES)] for turn in range(number)]


@contextmanager
def _on_disk(plan: Plan) -> Iterator[Simulated]:
    folder = Path(tempfile.mkdtemp(prefix="ingestd-order-"))
    try:
        yield simulated(folder / "files", plan)
    finally:
        shutil.rmtree(folder)


def in_some_order(election: Simulated, files: Iterable[Found], seed: int) -> list[Found]:
    """Shuffle the files; what was published again for a slot stays behind its first publication."""
    rng = random.Random(seed)
    slots = slots_of(election.truth)
    place = {found: rng.random() for found in files}
    later = [found for found in place if found.root.name == "drop-2"]
    for again in later:
        before = [
            place[found]
            for found in place
            if found.root.name == "drop" and slots[found.path] & slots[again.path]
        ]
        place[again] = max([place[again], *before])
    # At equal places, `drop` comes before `drop-2`.
    return sorted(place, key=lambda found: (place[found], found.root.name))


def slots_of(truth: dict[str, Any]) -> _SlotsByPath:
    """Which hours of which contracts each file holds; whole-voting files belong to no hour."""
    return _SlotsByPath(truth)


class _SlotsByPath:
    def __init__(self, truth: dict[str, Any]) -> None:
        self._slots: dict[str, set[tuple[str, str]]] = {}
        for record in truth["files"]:
            key = (record["contract"], record["slot"])
            self._slots.setdefault(record["path"], set()).add(key)

    def __getitem__(self, path: Path) -> set[tuple[str, str]]:
        return next(
            slots for name, slots in self._slots.items() if str(path).endswith(f"/files/{name}")
        )


def repeated(election: Simulated, files: Sequence[Found], seed: int) -> list[Found]:
    """Drop some of the files a second time, somewhere later, from another folder."""
    rng = random.Random(seed)
    once_more = list(files)
    root = election.folder / f"again-{seed}"
    for found in files:
        if rng.random() < 0.25:
            copy = Found(root / found.root.name, found.relative, "asked")
            copy = replace(copy, root=root / f"{found.root.name}-again")
            copy.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.path, copy.path)
            once_more.insert(rng.randint(once_more.index(found) + 1, len(once_more)), copy)
    return once_more


def ingest_all(sessions: sessionmaker[Session], files: Iterable[Found], batch_rows: int) -> None:
    """Take the files one after another and leave them where they lie."""
    terms = replace(terms_in(Path("/nowhere"), is_archiving=False), batch_rows=batch_rows)
    ingest = Ingest(sessions, terms, Clock(), owner_name())
    for found in files:
        ingest.take(found)


def test_the_truth_lies_on_disk_as_json(election: Simulated) -> None:
    """What the comparisons start from is not empty."""
    told = json.loads((election.folder / "truth.json").read_text(encoding="utf-8"))
    assert told == election.truth
    assert set(defect_names()) == set(told["defects"])
