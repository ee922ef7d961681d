"""What becomes of one file: every sentence is a promise to the person who dropped it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from ingestd.errors import StopRequested, StorageFault
from ingestd.models import (
    Alert,
    Constituency,
    Election,
    FileProcessing,
    HourlyStats,
    Reject,
    Sighting,
    Transaction,
    table_of,
)
from ingestd.pipeline import stats
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.load import Loaded, load_batch
from ingestd.pipeline.read import HASHED_AT_ONCE
from ingestd.pipeline.sightings import FileRef
from ingestd.pipeline.step import Step
from ingestd.pipeline.validate import Record

from .conftest import Clock, Did, DropFile, Simulated, Voting, csv_of, rolled_back, tx_of, zip_of
from .oracle import snapshot, unsound, untrue

REAL_CONTRACT = "C2PNTNPsNdVycjJs7BRD7aixkmPPbxj7PWjCxbo7ikC4"
REAL_ROW = Path(__file__).with_name("data") / "real_vote_2023.csv"
FOLDERS = "90 - Пермский край/Выборы депутатов  Думы /Округ №1_3"
Sessions = sessionmaker[Session]


def count(sessions: Sessions, model: type[Transaction | Reject | HourlyStats | Sighting]) -> int:
    """How many rows a table has."""
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(table_of(model))) or 0


def statuses(jobs: list[FileProcessing]) -> list[str]:
    """The states of jobs."""
    return [job.status for job in jobs]


def jobs_of(sessions: Sessions) -> list[FileProcessing]:
    """All jobs, in the order of their paths."""
    with sessions() as session:
        return list(session.scalars(select(FileProcessing).order_by(FileProcessing.path)))


def the(sessions: Sessions, name: str) -> FileProcessing:
    """The one job of that path."""
    (job,) = [job for job in jobs_of(sessions) if job.path == name]
    return job


# Rows ---------------------------------------------------------------------------------------


def assert_stored(cells: list[str], row: Transaction) -> None:
    """Hold the first eleven columns of a file's line against its row."""
    assert cells[:8] == [
        row.tx_id,
        str(row.tx_type),
        row.signature,
        str(row.version),
        str(round(row.timestamp.timestamp() * 1000)),
        row.sender,
        str(row.fee),
        row.fee_asset_id,
    ]
    assert [json.loads(cell) for cell in cells[8:11]] == [
        row.raw_data,
        row.operation_data,
        row.extra,
    ]


def test_the_real_vote_of_2023_is_stored_field_by_field(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile
) -> None:
    """The only real row that we have comes out of the table as it stands in the file."""
    raw = REAL_ROW.read_bytes()
    cells = raw.decode().rstrip("\n").split(";")
    (job,) = ingest.take(drop_file(f"{REAL_CONTRACT}_2023-03-17_1500-1600.csv", raw))
    with sessions() as session:
        row = session.scalars(select(Transaction)).one()
        hour = session.scalars(select(HourlyStats)).one()
        constituency = session.get_one(Constituency, row.constituency_id)
    assert ["completed", 1, 1] == [job.status, job.rows_read, job.rows_stored]
    assert_stored(cells, row)
    assert datetime(2023, 3, 17, 15, 12, 15, tzinfo=UTC) == row.timestamp
    assert ("vote", "accepted", "2023-03-17_1500-1600", None) == (
        row.type,
        row.status,
        row.slot,
        row.block_height,
    )
    assert (job.id, 1) == (row.file_id, row.line_number)
    assert (datetime(2023, 3, 17, 15, tzinfo=UTC), 1, 0) == (
        hour.hour,
        hour.votes_cast,
        hour.bulletins_issued,
    )
    assert (REAL_CONTRACT, 1) == (constituency.contract_id, constituency.votes_cast)


ODD_PARAMS = (
    '[{"key":"operation","stringValue":"Новая 🗳 \\t\\\\ \\"операция\\""},'
    '\t{"key":"a","intValue":-7}]'
)
ODD_DIFF = '[{"key":"операция","boolValue":false,"new":{"x":[1.5,null,9223372036854775807]}}]'


@pytest.mark.parametrize("version", ["-999999999999999999", "0", "999999999999999999"])
@pytest.mark.parametrize("milliseconds", [0, 946684799999, 253370764799999])
def test_odd_values_that_are_good_are_stored_field_by_field(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    version: str,
    milliseconds: int,
) -> None:
    """However a database is sent them: the least and the greatest, none, and any character."""
    sender = voting.new_id(64)
    texts = ("", version, str(milliseconds), sender, version, "ä\tß\\N")
    cells = [voting.new_id(), "104", *texts, ODD_PARAMS, ODD_DIFF, '{"à":"\\\\.\\n"}', ""]
    name = f"{voting.contract}_1970-01-01_0000-0100.csv"
    (job,) = ingest.take(drop_file(name, ";".join(cells).encode()))
    assert (1, 0) == (job.rows_stored, job.rows_rejected)
    with sessions() as session:
        row = session.scalars(select(Transaction)).one()
    assert_stored(cells, row)
    assert (None, None, None) == (row.tally, row.persons, row.voter_key)


def test_a_bad_row_is_set_aside_and_the_rest_is_stored(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """One unreadable timestamp costs one row, not the file."""
    rows = [voting.issue(485), voting.vote(486), voting.vote(487)]
    bad = rows[1].split(";")
    bad[4] = "yesterday"
    rows[1] = ";".join(bad)
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    with sessions() as session:
        reject = session.scalars(select(Reject)).one()
        stored = set(session.scalars(select(Transaction.tx_id)))
    assert (job.id, 2, "ts", "yesterday", rows[1], False) == (
        reject.file_id,
        reject.line_number,
        reject.field,
        reject.value,
        reject.raw_text,
        reject.is_cut,
    )
    assert {tx_of(rows[0]), tx_of(rows[2])} == stored
    assert ("completed", 3, 2, 1) == (
        job.status,
        job.rows_read,
        job.rows_stored,
        job.rows_rejected,
    )
    assert (2, "ts") == (job.first_error_line, job.first_error_field)


def test_every_line_of_every_defect_is_accounted_for(
    sessions: Sessions, ingest: Ingest, election: Simulated
) -> None:
    """Whatever the simulator can do to a file, each of its lines ends in one of five columns."""
    ingest.terms = replace(ingest.terms, is_archiving=False)
    for found in election.files:
        ingest.take(found)
    told = {
        (record["path"], record["member"]): (
            record["lines"],
            record["plus"],
            record["rollbacks"],
            record["bad"],
            record["blank"],
        )
        for record in election.truth["files"]
        if record["outcome"] in ("completed", "superseded")
    }
    found_in_ledger = {
        (f"{job.root.rsplit('/', 1)[-1]}/{job.path}", job.member): (
            job.rows_read,
            job.rows_stored + job.rows_known,
            job.rows_rollbacks,
            job.rows_rejected,
            job.rows_blank,
        )
        for job in jobs_of(sessions)
        if job.status in ("completed", "superseded")
    }
    assert told == found_in_ledger
    assert [] == unsound(sessions)
    assert [] == untrue(sessions, election.truth)


def test_a_rollback_that_comes_before_its_row_takes_it_off_the_chain(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The later hour may well be read first."""
    vote = voting.vote(485)
    ingest.take(drop_file(voting.name(9), [rolled_back(vote)]))
    ingest.take(drop_file(voting.name(8), [vote]))
    with sessions() as session:
        assert ["rolled_back"] == list(session.scalars(select(Transaction.status)))
    assert [] == unsound(sessions)


# The error budget ---------------------------------------------------------------------------


@pytest.mark.promise(15)
@pytest.mark.parametrize("batch_rows", [5_000, 7])
def test_a_file_at_the_error_budget_passes(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    batch_rows: int,
    did: Did,
) -> None:
    """Twenty bad rows are borne in any file."""
    ingest.terms = replace(ingest.terms, batch_rows=batch_rows)
    (job,) = ingest.take(drop_file(voting.name(8), [*voting.ballots(8, 20), *["torn"] * 20]))
    assert ("completed", 40, 20) == (job.status, job.rows_stored, job.rows_rejected)
    assert [] == unsound(sessions)
    did("20 bad rows of 60", files=1)


@pytest.mark.promise(15)
@pytest.mark.parametrize("batch_rows", [5_000, 7])
def test_a_file_over_the_error_budget_leaves_nothing_behind(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    batch_rows: int,
    did: Did,
) -> None:
    """One bad row more, and no row of it is in the tables, however many batches were stored."""
    ingest.terms = replace(ingest.terms, batch_rows=batch_rows)
    (job,) = ingest.take(drop_file(voting.name(8), [*voting.ballots(8, 20), *["torn"] * 21]))
    assert "quarantined" == job.status
    assert [0, 0, 0, 0] == [
        count(sessions, model) for model in (Transaction, Sighting, Reject, HourlyStats)
    ]
    assert 0 == job.rows_read
    assert job.attempt_counts
    assert (61, 21) == (job.attempt_counts["rows_read"], job.attempt_counts["rows_rejected"])
    reason = (tmp_path / "quarantine" / f"{job.path}.reason.txt").read_text(encoding="utf-8")
    assert "21 bad rows of 61, more than the 20 that are allowed" in reason
    assert job.sha256 in reason
    assert [] == unsound(sessions)
    did("21 bad rows of 61", files=1)


@pytest.mark.promise(15)
def test_a_share_of_bad_rows_is_borne_in_a_long_file(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Five in a hundred: 30 of 600 pass, 31 of 600 do not."""
    good = voting.ballots(8, 285)
    (job,) = ingest.take(drop_file(voting.name(8), [*good, *["torn"] * 30]))
    assert "completed" == job.status
    (job,) = ingest.take(drop_file(voting.name(9), [*good[:-1], *["torn"] * 31]))
    assert "quarantined" == job.status
    assert [] == unsound(sessions)
    did("30 and 31 bad rows of 600", files=2)


def test_what_other_files_delivered_stays_when_a_file_is_undone(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A refused file held rows of its neighbours, and rolled one of them back: all as before."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    eight, nine = voting.ballots(8, 10), voting.ballots(9, 10)
    ingest.take(drop_file(voting.name(8), eight))
    before = snapshot(sessions)
    refused = [*eight[:6], rolled_back(eight[7]), *nine, *["torn"] * 21]
    (job,) = ingest.take(drop_file(voting.name(9), refused))
    after = snapshot(sessions)
    assert "quarantined" == job.status
    assert ["file_rejected"] == [row["type"] for row in after.pop("alert").values()]
    del before["alert"]
    assert before == after
    assert [] == unsound(sessions)


def test_a_row_that_only_a_refused_file_held_first_stays_by_its_other_file(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, clock: Clock
) -> None:
    """The lineage of a shared row goes over to the file that is left."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    eight = voting.ballots(8, 5)
    stop_after = iter([False, False, True])
    ingest.should_stop = lambda: next(stop_after)
    refused = drop_file(voting.name(9), [*eight, *["torn"] * 21])
    with pytest.raises(StopRequested):
        ingest.take(refused)
    ingest.should_stop = lambda: False
    (kept,) = ingest.take(drop_file(voting.name(8), eight))
    before = snapshot(sessions)
    (job,) = ingest.take(refused)
    after = snapshot(sessions)
    assert ["completed", "quarantined"] == statuses([kept, job])
    assert ["file_rejected"] == [row["type"] for row in after.pop("alert").values()]
    # Without the other file, these rows belong to the only hour that holds them.
    assert {"2024-09-06_0800-0900"} == {row["slot"] for row in after["transaction"].values()}
    assert before["hourly_stats"] == after["hourly_stats"]
    with sessions() as session:
        assert {kept.id} == set(session.scalars(select(Transaction.file_id)))
    assert [] == unsound(sessions)


# The same again -----------------------------------------------------------------------------


@pytest.mark.promise(10)
def test_the_same_bytes_under_another_name_place_or_packing_are_duplicates(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Zero new rows, and each says of which job it is a copy."""
    content = csv_of(voting.ballots(8, 3))
    (original,) = ingest.take(drop_file(voting.name(8), content))
    before = snapshot(sessions)
    copies = [
        (voting.name(8, "-copy.csv"), content),
        (f"downloaded again/{voting.name(8)}", content),
        (voting.name(8, ".zip"), zip_of({voting.name(8): content})),
        (voting.name(8), content),
        # A name without hours takes nothing away from the bytes.
        (f"{voting.contract}/hours.csv", content),
    ]
    for name, copied in copies:
        (job,) = ingest.take(drop_file(name, copied))
        assert ("duplicate", original.id, 0) == (job.status, job.duplicate_of_id, job.rows_read)
    assert before == snapshot(sessions)
    assert 1 + len(copies) == len(jobs_of(sessions))


@pytest.mark.promise(10)
def test_a_zip_that_comes_again_is_known_without_unpacking(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """Its members are duplicates of what they were the first time."""
    content = zip_of({voting.name(hour): csv_of(voting.ballots(hour, 2)) for hour in (8, 9)})
    first = ingest.take(drop_file("hours.zip", content))
    again = ingest.take(drop_file("hours again.zip", content))
    assert ["completed"] * 2 == statuses(first)
    assert ["duplicate"] * 2 == statuses(again)
    assert {job.id for job in first} == {job.duplicate_of_id for job in again}
    assert (tmp_path / "archive" / "hours again.zip").exists()


def test_a_zip_with_the_same_csv_twice_is_ingested_once(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Twins in one container do not wait for each other."""
    content = csv_of(voting.ballots(8, 2))
    members = {f"{folder}/{voting.name(8)}": content for folder in ("a", "b")}
    jobs = ingest.take(drop_file("hours.zip", zip_of(members)))
    assert ["completed", "duplicate"] == sorted(statuses(jobs))
    assert 4 == count(sessions, Transaction)


def test_quarantined_bytes_that_are_dropped_again_are_tried_again(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """The settings may have changed meanwhile; it stays one job, and its alert is cleared."""
    rows = [*voting.ballots(8, 3), "torn"]
    ingest.terms = replace(ingest.terms, max_reject_rows=0, max_reject_ratio=0)
    (refused,) = ingest.take(drop_file(voting.name(8), rows))
    (again,) = ingest.take(drop_file(voting.name(8), rows))
    assert ["quarantined", "quarantined"] == statuses([refused, again])
    ingest.terms = replace(ingest.terms, max_reject_rows=1)
    (job,) = ingest.take(drop_file(voting.name(8), rows))
    assert (refused.id, "completed", 6) == (job.id, job.status, job.rows_stored)
    with sessions() as session:
        alert = session.scalars(select(Alert).where(Alert.type == "file_rejected")).one()
    assert alert.cleared_at is not None
    assert [voting.name(8)] == [path.name for path in (tmp_path / "archive").iterdir()]
    assert [] == unsound(sessions)


def test_empty_hours_are_no_duplicates_of_each_other(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """They share a hash, but each covers an hour of its own."""
    other = Voting(contract=voting.new_id())
    names = [voting.name(8), voting.name(9), other.name(8)]
    jobs = [job for name in names for job in ingest.take(drop_file(name))]
    assert ["completed"] * 3 == statuses(jobs)
    (again,) = ingest.take(drop_file(voting.name(8, " (1).csv")))
    assert ("duplicate", jobs[0].id) == (again.status, again.duplicate_of_id)


# Whose file ---------------------------------------------------------------------------------


def test_a_file_without_any_contract_is_quarantined_saying_so(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """Nothing says whose ballots these are."""
    (job,) = ingest.take(drop_file("hour.csv", voting.ballots(8, 2)))
    assert ("quarantined", 0) == (job.status, count(sessions, Transaction))
    reason = (tmp_path / "quarantine" / "hour.csv.reason.txt").read_text(encoding="utf-8")
    assert "no contract id in the file's name, its folders or its rows" in reason


def test_the_nearest_folder_names_the_contract(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """A folder further up may belong to another one."""
    name = f"{voting.new_id()}/{voting.contract}/hours/2024-09-06_0800-0900.csv"
    (job,) = ingest.take(drop_file(name, voting.ballots(8, 1)))
    assert ("completed", voting.contract, "2024-09-06_0800-0900") == (
        job.status,
        job.contract_id,
        job.slot,
    )


def test_the_row_that_creates_the_contract_names_it(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Its own id is the contract's; a list in the file has less weight."""
    rows = [Voting().voters_list(400, 2), *voting.ballots(8, 1), voting.create(300)]
    (job,) = ingest.take(drop_file("all.csv", rows))
    assert ("completed", voting.contract) == (job.status, job.contract_id)


def test_a_voters_list_names_the_contract(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """Where no other place does."""
    (job,) = ingest.take(drop_file("all.csv", [*voting.ballots(8, 1), voting.voters_list(400, 2)]))
    assert ("completed", voting.contract) == (job.status, job.contract_id)


def test_the_zip_around_a_file_names_the_contract(
    ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """`<contract>.zip` may hold a CSV with any name."""
    members = {"export.csv": csv_of(voting.ballots(8, 1))}
    (job,) = ingest.take(drop_file(f"{voting.contract}.zip", zip_of(members)))
    assert ("completed", voting.contract, "whole") == (job.status, job.contract_id, job.slot)


def test_a_misnamed_file_is_quarantined_naming_both(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The same ballots cannot belong to two contracts."""
    rows = voting.ballots(8, 2)
    wrong = Voting(contract=voting.new_id())
    ingest.take(drop_file(voting.name(8), rows))
    (job,) = ingest.take(drop_file(wrong.name(8), rows))
    assert "quarantined" == job.status
    assert job.first_error_message
    assert voting.contract in job.first_error_message
    assert wrong.contract in job.first_error_message
    assert 4 == count(sessions, Transaction)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_names_come_from_the_smallest_path_in_any_order(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, order: tuple[int, ...]
) -> None:
    """A bare file tells nothing, and two folders may tell two things."""
    paths = [
        f"{FOLDERS}/{voting.name(9)}",
        voting.name(8),
        f"91 - Другой край/Другие выборы/Округ №2/{voting.name(10)}",
    ]
    for number in order:
        ingest.take(drop_file(paths[number], voting.ballots(8 + number, 1)))
    with sessions() as session:
        constituency = session.scalars(select(Constituency)).one()
        elections = list(session.scalars(select(Election.name)))
    assert ("90", "Пермский край", "Округ №1_3") == (
        constituency.region_code,
        constituency.region_name,
        constituency.name,
    )
    assert ["Выборы депутатов Думы"] == elections


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_same_zip_in_two_places_names_its_constituency_in_any_order(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, order: tuple[int, ...]
) -> None:
    """Also the second place of a container that is known already may be the smaller one."""
    content = zip_of({voting.name(8): csv_of(voting.ballots(8, 1))})
    for number in order:
        ingest.take(drop_file(f"{90 + number} - Край/Выборы/Округ/hours.zip", content))
    with sessions() as session:
        assert ["90"] == list(session.scalars(select(Constituency.region_code)))


# Containers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no zip at all", zip_of({"read me.txt": b"?"})])
def test_a_container_that_cannot_be_opened_has_a_job_of_its_own(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, tmp_path: Path, content: bytes
) -> None:
    """It is in the ledger, in the alerts, and in quarantine."""
    (job,) = ingest.take(drop_file("hours.zip", content))
    assert ("quarantined", "hours.zip", None) == (job.status, job.path, job.member)
    assert (tmp_path / "quarantine" / "hours.zip").read_bytes() == content
    assert (tmp_path / "quarantine" / "hours.zip.reason.txt").exists()
    with sessions() as session:
        assert ["file_rejected"] == list(session.scalars(select(Alert.type)))


def test_one_bad_csv_in_a_zip_costs_only_itself(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """Its neighbour is stored; the ZIP goes to quarantine with the reason for the one."""
    members = {
        voting.name(8): csv_of(voting.ballots(8, 2)),
        voting.name(9): csv_of(["torn"] * 30),
    }
    jobs = ingest.take(drop_file("hours.zip", zip_of(members)))
    assert ["completed", "quarantined"] == statuses(jobs)
    reason = (tmp_path / "quarantine" / "hours.zip.reason.txt").read_text(encoding="utf-8")
    assert voting.name(9) in reason
    assert voting.name(8) not in reason
    assert 4 == count(sessions, Transaction)


# Putting away -------------------------------------------------------------------------------


def test_a_file_is_archived_below_its_own_folders(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """The way to a file tells what it is: it is kept."""
    name = f"{FOLDERS}/{voting.name(8)}"
    (job,) = ingest.take(drop_file(name, voting.ballots(8, 1)))
    assert (tmp_path / "archive" / name).exists()
    assert not (tmp_path / "inbox" / name).exists()
    assert str(tmp_path / "archive" / name) == the(sessions, job.path).archived_to


def test_a_name_that_is_taken_in_the_archive_is_never_overwritten(
    ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """What came before stays, whatever comes under its name."""
    contents = [csv_of(voting.ballots(8, size)) for size in (1, 2, 3)]
    for content in contents:
        ingest.take(drop_file(voting.name(8), content))
    names = [voting.name(8), voting.name(8, " (2).csv"), voting.name(8, " (3).csv")]
    assert contents == [(tmp_path / "archive" / name).read_bytes() for name in names]


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    folder = Path(tempfile.mkdtemp(prefix="ingestd-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_the_archive_may_be_on_another_file_system(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    elsewhere: Path,
) -> None:
    """Copied, made safe, renamed; no stub stays, and the original's time is kept."""
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("all temporary folders are on one file system here")
    ingest.terms = replace(ingest.terms, archive=elsewhere)
    content = csv_of(voting.ballots(8, 1))
    for name in (f"{FOLDERS}/{voting.name(8)}", f"{FOLDERS}/{voting.name(8)}"):
        found = drop_file(name, content)
        os.utime(found.path, (1_700_000_000, 1_700_000_000))
        ingest.take(found)
    archived = sorted(path for path in elsewhere.rglob("*") if path.is_file())
    assert [voting.name(8, " (2).csv"), voting.name(8)] == [path.name for path in archived]
    assert [content] * 2 == [path.read_bytes() for path in archived]
    assert {1_700_000_000} == {path.stat().st_mtime for path in archived}
    assert not found.path.exists()


@pytest.mark.promise(29)
def test_a_stop_is_heeded_while_a_file_is_hashed(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """At the next block: a file may be as large as a disk."""
    found = drop_file(voting.name(8), voting.ballots(8, 2_000))
    assert found.path.stat().st_size > 2 * HASHED_AT_ONCE
    times = iter(range(1, 1_000))
    ingest.should_stop = lambda: next(times) == 3
    with pytest.raises(StopRequested):
        ingest.take(found)
    assert [] == jobs_of(sessions)
    ingest.should_stop = lambda: False
    assert ["completed"] == statuses(ingest.take(found))
    did("a stop at the second block that is hashed")


@pytest.mark.promise(29)
def test_a_stop_is_heeded_while_a_file_is_copied_to_another_file_system(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    tmp_path: Path,
    elsewhere: Path,
    did: Did,
) -> None:
    """No stub stays; the next start copies it whole, and reads no line again."""
    if elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("all temporary folders are on one file system here")
    ingest.terms = replace(ingest.terms, archive=elsewhere)
    found = drop_file(voting.name(8), voting.ballots(8, 2))
    steps: list[Step] = []
    ingest.on_step = steps.append
    ingest.should_stop = lambda: Step.ADDRESSED in steps
    with pytest.raises(StopRequested):
        ingest.take(found)
    assert found.path.exists()
    assert [] == list(elsewhere.iterdir())
    steps.clear()
    ingest.should_stop = lambda: False
    assert ["completed"] == statuses(ingest.take(found))
    assert [voting.name(8)] == [path.name for path in elsewhere.iterdir()]
    assert Step.READ not in steps
    assert [] == unsound(sessions)
    did("a stop at the first block that is copied")


@pytest.mark.parametrize("rows", [["torn"] * 30, []])
def test_a_name_of_255_bytes_can_be_put_away(
    ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path, rows: list[str]
) -> None:
    """Twice, with a reason beside it or a number behind it: both are cut to fit."""
    tail = "_" + "я" * ((255 - len(voting.name(8)) - 1) // 2) + ".csv"
    for content in (rows, [*rows, ""]):
        (job,) = ingest.take(drop_file(voting.name(8, tail), content))
        assert ("quarantined" if rows else "completed") == job.status
    folder = tmp_path / ("quarantine" if rows else "archive")
    assert (4 if rows else 2) == len(list(folder.iterdir()))


def test_left_files_are_neither_moved_nor_recorded_twice(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """With `after = leave`, a second look finds nothing new."""
    ingest.terms = replace(ingest.terms, is_archiving=False)
    dropped = [
        drop_file(voting.name(8), voting.ballots(8, 2)),
        drop_file(voting.name(9), ["torn"] * 30),
        drop_file("hours.zip", zip_of({voting.name(10): csv_of(voting.ballots(10, 2))})),
        drop_file(voting.name(11), b""),
        drop_file("broken.zip", b"?"),
    ]
    first = [statuses(ingest.take(found)) for found in dropped]
    before = [(job.id, job.status, job.updated_at) for job in jobs_of(sessions)]
    assert first == [statuses(ingest.take(found)) for found in dropped]
    assert before == [(job.id, job.status, job.updated_at) for job in jobs_of(sessions)]
    assert all(found.path.exists() for found in dropped)
    assert not (tmp_path / "archive").exists()


# When it goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [5_000, 3])
def test_a_file_that_changes_while_it_is_read_is_undone_and_read_anew(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, batch_rows: int
) -> None:
    """No row of the attempt stays; the next look reads what is there then."""
    ingest.terms = replace(ingest.terms, batch_rows=batch_rows)
    rows = voting.ballots(8, 10)
    found = drop_file(voting.name(8), rows)
    grown: list[str] = []

    def grow(*_progress: object) -> None:
        if not grown:
            grown.append(voting.vote(539))
            with found.path.open("ab") as stream:
                stream.write(csv_of(grown))

    def grow_and_go_on() -> bool:
        grow()
        return False

    if batch_rows == 3:
        ingest.on_progress = grow
    else:
        # In a file of one batch, this is asked between its hash and its rows.
        ingest.should_stop = grow_and_go_on
    assert [] == ingest.take(found)
    assert 1 == len(grown)
    assert [0, 0] == [count(sessions, model) for model in (Transaction, HourlyStats)]
    (job,) = ingest.take(found)
    assert ("completed", 21) == (job.status, job.rows_stored)
    assert [] == unsound(sessions)


def test_a_database_that_is_away_burns_no_attempt(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same work is done later, from the checkpoint."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    breaks = Breaks(monkeypatch, at=lambda call, _line: call == 3)
    told = sqlite3.OperationalError("disk I/O error")
    told.sqlite_errorcode = sqlite3.SQLITE_IOERR
    breaks.error = OperationalError("INSERT", {}, told)
    with pytest.raises(StorageFault):
        ingest.take(found)
    assert (0, 10) == (the(sessions, found.label).attempts, the(sessions, found.label).rows_read)
    (job,) = ingest.take(found)
    assert ("completed", 0, 20) == (job.status, job.attempts, job.rows_stored)
    assert [] == unsound(sessions)


class Breaks:
    """Loads batches, and breaks on purpose at some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: Callable[[int, int], bool]) -> None:
        """Break where `at` (number of the call, first line of the batch) says so."""
        self.at, self.lines, self.broken = at, list[int](), 0
        self.error: Exception = ZeroDivisionError("poison")
        monkeypatch.setattr("ingestd.pipeline.ingest.load_batch", self)

    def __call__(
        self, session: Session, file: FileRef, records: Sequence[Record], **asked: bool
    ) -> Loaded:
        """Load, or break."""
        self.lines.append(records[0].line)
        if self.at(len(self.lines), records[0].line):
            self.broken += 1
            raise self.error
        return load_batch(session, file, records, **asked)


@pytest.mark.parametrize("broken_batch", [0, 2])
def test_a_poison_file_is_quarantined_after_its_attempts(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    broken_batch: int,
) -> None:
    """Failed, waited, failed, waited longer, given up; wherever in the file it breaks."""
    voting = Voting()
    ingest.terms = replace(ingest.terms, batch_rows=5, attempts=3, retry_seconds=30)
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    breaks = Breaks(monkeypatch, at=lambda _call, line: line == 5 * broken_batch + 1)
    states = []
    for seconds in (0, 29, 2, 58, 3, 1_000):
        clock.advance(seconds)
        states += [(breaks.broken, job.status, job.attempts) for job in ingest.take(found)]
        if not found.path.exists():
            break
    assert [
        (1, "failed", 1),
        (1, "failed", 1),
        (2, "failed", 2),
        (2, "failed", 2),
        (3, "quarantined", 2),
    ] == states
    assert [0, 0] == [count(sessions, model) for model in (Transaction, HourlyStats)]
    assert "ZeroDivisionError: poison" in (the(sessions, found.label).first_error_message or "")
    assert [] == unsound(sessions)


@pytest.mark.promise(13)
def test_a_clock_that_was_set_back_does_not_keep_a_failed_file_waiting(
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    clock: Clock,
    did: Did,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It failed in a year that is yet to come; nobody waits for that year."""
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    Breaks(monkeypatch, at=lambda call, _line: call == 1)
    clock.advance(365 * 86_400)
    (job,) = ingest.take(found)
    assert "failed" == job.status
    clock.advance(-365 * 86_400)
    (job,) = ingest.take(found)
    assert ("completed", 20) == (job.status, job.rows_stored)
    did("a clock set back by a year after a failure", faults=1)


def test_a_file_that_failed_once_goes_on_at_its_checkpoint(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was committed before the failure is not done again."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    breaks = Breaks(monkeypatch, at=lambda call, _line: call == 3)
    ingest.take(found)
    clock.advance(1_000)
    (job,) = ingest.take(found)
    assert ("completed", 20) == (job.status, job.rows_stored)
    assert [1, 6, 11, 11, 16] == breaks.lines
    assert [] == unsound(sessions)


def test_a_stop_hands_the_job_back_at_its_checkpoint(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The next start goes on there; no attempt is burnt."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    found = drop_file(voting.name(8), voting.ballots(8, 10))
    done: list[int] = []
    ingest.on_progress = lambda *_progress: done.append(1)
    ingest.should_stop = lambda: len(done) >= 2
    with pytest.raises(StopRequested):
        ingest.take(found)
    job = the(sessions, found.label)
    assert ("pending", 10, 0, None) == (job.status, job.checkpoint_line, job.attempts, job.owner)
    ingest.should_stop = lambda: False
    (job,) = ingest.take(found)
    assert ("completed", 20, 20) == (job.status, job.rows_stored, job.rows_read)
    assert 4 == len(done)


def test_a_queued_file_that_is_taken_away_has_vanished_and_may_come_back(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """Its rows leave the tables with it; the same bytes are read from the start."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    found = drop_file(f"folder/{voting.name(8)}", voting.ballots(8, 10))
    done: list[int] = []
    ingest.on_progress = lambda *_progress: done.append(1)
    ingest.should_stop = lambda: len(done) == 1
    with pytest.raises(StopRequested):
        ingest.take(found)
    # Its folder is moved: nothing about the file itself tells that it was away.
    found.path.parent.rename(tmp_path / "taken away")
    assert 1 == ingest.note_missing(found.root)
    assert ("vanished", 0) == (the(sessions, found.label).status, count(sessions, Transaction))
    assert 0 == ingest.note_missing(found.root)
    (tmp_path / "taken away").rename(found.path.parent)
    ingest.should_stop = lambda: False
    (job,) = ingest.take(found)
    assert ("completed", 20) == (job.status, job.rows_stored)
    assert [] == unsound(sessions)


def test_a_queued_file_with_a_name_that_is_no_text_has_not_vanished(
    sessions: Sessions, ingest: Ingest, inbox: Path, voting: Voting
) -> None:
    """Its label in the ledger is not its name on disk."""
    ingest.terms = replace(ingest.terms, batch_rows=5)
    name = Path(os.fsdecode(b"\xd0 \\x41 " + voting.name(8).encode()))
    (inbox / name).write_bytes(csv_of(voting.ballots(8, 10)))
    found = Found(inbox, name, "asked")
    done: list[int] = []
    ingest.on_progress = lambda *_progress: done.append(1)
    ingest.should_stop = lambda: len(done) == 1
    with pytest.raises(StopRequested):
        ingest.take(found)
    assert 0 == ingest.note_missing(inbox)
    ingest.should_stop = lambda: False
    (job,) = ingest.take(found)
    assert ("completed", 20) == (job.status, job.rows_stored)


class Crashed(BaseException):
    """The program ends here."""


def test_a_crash_before_the_move_to_quarantine_leaves_one_reason(
    ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """The reason is there before the file is, and the next start does not write it twice."""
    found = drop_file(voting.name(8), ["torn"] * 30)

    def crash(step: Step) -> None:
        if step == Step.EXPLAINED:
            raise Crashed

    ingest.on_step = crash
    with pytest.raises(Crashed):
        ingest.take(found)
    reason = f"{found.relative}.reason.txt"
    assert [reason] == [path.name for path in (tmp_path / "quarantine").iterdir()]
    ingest.on_step = lambda _step: None
    ingest.take(found)
    names = {path.name for path in (tmp_path / "quarantine").iterdir()}
    assert {str(found.relative), reason} == names


def test_hours_are_written_anew_when_a_late_file_comes(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting
) -> None:
    """The sums of all later hours grow with it."""
    for hour in (10, 8, 9):
        ingest.take(drop_file(voting.name(hour), voting.ballots(hour, 2)))
    with sessions() as session:
        found = session.scalars(select(HourlyStats).order_by(HourlyStats.hour)).all()
    assert [2, 4, 6] == [hour.cumulative_bulletins for hour in found][:3]
    assert stats.constituency_id_of(voting.contract) == found[0].constituency_id
    assert [] == unsound(sessions)
