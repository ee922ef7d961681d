"""Completeness by evidence: markers, manifests, and what is known of writers."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from structlog.testing import capture_logs
from watchdog.events import FileMovedEvent

from ingestd.config import Settings
from ingestd.errors import ManifestNotMet, StopRequested
from ingestd.models import Alert, FileProcessing, Transaction
from ingestd.once import once
from ingestd.pipeline.events import Wakeup
from ingestd.pipeline.evidence import Check, Claim, Manifests, RowCount, file_of_marker, is_marker
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.read import RowReader, stamp_of
from ingestd.pipeline.watch import Seen, Settling, closed, scan

from .conftest import Did, DropFile, Voting, csv_of, zip_of
from .oracle import unsound
from .running import Start, is_empty, jobs_on, open_sessions, soon
from .steps import CRASH_VARIABLE
from .test_discovery import is_listened_to
from .victims import Victim

Sessions = sessionmaker[Session]
AN_HOUR = "3600"
SUM = "a" * 64
NAME = "x.csv"


def sha256_of(content: bytes) -> str:
    """Its digest in hex."""
    return hashlib.sha256(content).hexdigest()


# What is said -------------------------------------------------------------------------------


def claims_in(folder: Path, manifests: Manifests | None = None) -> dict[Path, Claim]:
    """What the markers in a folder say of the files there."""
    markers: dict[Path, str] = {}
    files = [seen.relative for seen in scan(folder, (), markers=markers)]
    manifests = manifests or Manifests(most_bytes=2_000)
    return manifests.claims(folder, markers, files)


def checks_of(folder: Path, marker: str, content: bytes) -> list[tuple[str, str]] | None:
    """What one marker says of `x.csv`; None where it counts for nothing."""
    (folder / NAME).touch()
    (folder / marker).write_bytes(content)
    claim = claims_in(folder).get(Path(NAME))
    return None if claim is None else [(check.what, check.expected) for check in claim.checks]


@pytest.mark.parametrize(
    ("marker", "content", "expected"),
    [
        ("x.csv.done", "", []),
        ("x.csv.ok", "\n", []),
        ("x.csv.DONE", "finished at noon", []),
        ("x.csv.done", f"rows: 12\nsha256: {SUM.upper()}\n", [("rows", "12"), ("sha256", SUM)]),
        ("x.csv.ok", "Rows = 012\r\n", [("rows", "12")]),
        ("x.csv.rows", "12", [("rows", "12")]),
        ("x.csv.rows", "\ufeff12\r\n", [("rows", "12")]),
        ("x.csv.rows", "rows: 0", [("rows", "0")]),
        ("x.csv.sha256", f"{SUM}  x.csv\n", [("sha256", SUM)]),
        ("x.csv.sha256", f"{SUM} *x.csv\r\n", [("sha256", SUM)]),
        ("x.csv.sha256", f"{SUM}  ./x.csv\n", [("sha256", SUM)]),
        ("x.csv.sha256", SUM, [("sha256", SUM)]),
        ("x.csv.sha256", f"SHA256 (x.csv) = {SUM}\n", [("sha256", SUM)]),
        ("SHA256SUMS", f"{'b' * 64}  y.csv\n{SUM}  x.csv\n", [("sha256", SUM)]),
        ("sha256sums.txt", f"{SUM} *x.csv\nnot a sum\n", [("sha256", SUM)]),
    ],
)
def test_what_a_marker_says_is_understood(
    tmp_path: Path, marker: str, content: str, expected: list[tuple[str, str]]
) -> None:
    """As the programs write it that people have."""
    assert expected == checks_of(tmp_path, marker, content.encode())


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        ("x.csv.rows", b"twelve"),
        ("x.csv.rows", b""),
        ("x.csv.rows", b"-1"),
        ("x.csv.rows", b"9" * 400),
        ("x.csv.rows", b"\x00" * 64),
        ("x.csv.done", b"rows: many"),
        ("x.csv.done", b"sha256: 12"),
        ("x.csv.sha256", b""),
        ("x.csv.sha256", b"\xff\xfe" + random.Random(1).randbytes(64)),
        ("x.csv.sha256", f"{SUM}  y.csv".encode()),
        ("x.csv.sha256", f"{SUM}  /etc/passwd".encode()),
        ("x.csv.sha256", f"{SUM}  ../x.csv".encode()),
        ("x.csv.sha256", f"{SUM}  a\x1bb.csv".encode()),
        ("x.csv.sha256", f"{SUM[:-1]}  x.csv".encode()),
        ("x.csv.done", b"." * 2_001),
        ("SHA256SUMS", f"{SUM}  ../x.csv\n{SUM}  sub/x.csv\n{SUM}  /x.csv".encode()),
        ("SHA256SUMS", b"\n".join([SUM.encode()] * 3)),
        ("SHA256SUMS", f"{SUM}  x.csv\n".encode() * 100),
    ],
)
def test_what_cannot_be_read_is_ignored_and_said_once(
    tmp_path: Path, marker: str, content: bytes
) -> None:
    """Malformed, too long, or about something outside of its folder."""
    (tmp_path / NAME).touch()
    (tmp_path / marker).write_bytes(content)
    manifests = Manifests(most_bytes=2_000)
    with capture_logs() as logs:
        for _ in range(4):
            assert {} == claims_in(tmp_path, manifests)
    assert [("manifest_ignored", marker)] == [(entry["event"], entry["path"]) for entry in logs]


def test_a_marker_that_is_no_file_is_never_opened(tmp_path: Path) -> None:
    """A pipe would hang whoever opens it; a link may point anywhere."""
    (tmp_path / NAME).touch()
    (tmp_path / "elsewhere").write_text("12")
    os.mkfifo(tmp_path / "x.csv.done")
    (tmp_path / "x.csv.rows").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "SHA256SUMS").mkdir()
    assert {} == claims_in(tmp_path)
    # Nor when it becomes one between the look and the reading.
    stamps = {Path("x.csv.done"): "1", Path("x.csv.rows"): "1"}
    manifests = Manifests(most_bytes=2_000)
    assert {} == manifests.claims(tmp_path, stamps, [Path(NAME)])
    with capture_logs() as logs:
        manifests.complain()
    assert ["x.csv.done", "x.csv.rows"] == sorted(entry["path"] for entry in logs)


def test_only_markers_of_csv_and_zip_files_are_markers() -> None:
    """Other names stay odd files, which the log names."""
    names = ("a.csv.done", "A.ZIP.Sha256", "№ 1.csv.rows", "SHA256SUMS", "Sha256Sums.TXT")
    assert all(is_marker(name) for name in names)
    assert "A.ZIP" == file_of_marker("A.ZIP.Sha256")
    others = ("done", ".done", "a.done", "a.txt.done", "a.csv", "a.csv.done.done", "MD5SUMS", "")
    assert not any(is_marker(name) for name in others)


def test_markers_are_no_odd_files_and_no_files(tmp_path: Path) -> None:
    """A marker is neither taken nor complained about."""
    for name in (NAME, "x.csv.done", "gone.csv.sha256", "SHA256SUMS"):
        (tmp_path / name).touch()
    odd: set[str] = set()
    assert [NAME] == [str(seen.relative) for seen in scan(tmp_path, (), odd)]
    assert set() == odd


@given(
    st.lists(st.sampled_from((b"a", b"\n", b"\r\n", b"\r", b" ", b"\t", b"bc;d", b"\xef\xbb\xbf"))),
    st.integers(1, 9),
)
def test_rows_are_counted_as_the_reader_splits_them(parts: list[bytes], size: int) -> None:
    """However the blocks fall, and whatever ends the lines."""
    content = b"".join(parts)

    class Stream:
        at = 0

        def read(self, _size: int) -> bytes:
            # The first block is read whole by both, since it decides what ends a line.
            step = max(size, 16) if not self.at else size
            self.at += step
            return content[self.at - step : self.at]

    rows = RowReader(Stream(), max_line_bytes=1_000)  # type: ignore[arg-type]  # reads, and no more
    expected = sum(not row.is_blank for row in rows)
    counted = RowCount()
    update, stream = counted.next_csv(), Stream()
    while block := stream.read(0):
        update(block)
    assert expected == counted.rows


# When it is complete ------------------------------------------------------------------------


def look(stamp: str, name: str = NAME) -> Seen:
    """One file at one look."""
    return Seen(Path(name), stamp, 1, 0)


ROWS = Claim((Check("rows", "2", "x.csv.rows"),))


def test_a_manifest_is_tried_at_once_and_again_only_when_something_changed() -> None:
    """A file that grows beside its manifest is not hashed at every look."""
    settling = Settling(settle_seconds=2, manifest_wait_seconds=100)
    root = Path("/in")

    def ready(stamp: str, now: float, claim: Claim = ROWS) -> list[Found]:
        return settling.complete(root, [look(stamp)], {}, now, {Path(NAME): claim})

    (first,) = ready("1:1:1", 0)
    assert ("manifest:rows", True) == (first.evidence, first.may_be_open)
    assert settling.not_met(first, 0)
    assert [] == ready("1:1:1", 1) == ready("1:1:2", 50) == ready("1:1:3", 51)
    (second,) = ready("1:1:3", 53)
    assert (False, False) == (second.may_be_open, second.is_last_chance)
    assert not settling.not_met(second, 53)
    assert [] == ready("1:1:3", 60) == ready("1:1:3", 152)
    (mended,) = ready("1:1:3", 152, Claim((Check("rows", "3", "x.csv.rows"),)))
    assert not mended.is_last_chance
    (last,) = ready("1:1:3", 153)
    assert last.is_last_chance
    assert (2, 153) == settling.met(Path(NAME), 153)


def test_a_rename_is_no_evidence_for_what_was_written_afterwards() -> None:
    """The event that would say so may be lost; the stamp is not."""
    settling = Settling(settle_seconds=60)
    hints = {Path(NAME): "renamed"}
    assert 1 == len(settling.complete(Path("/in"), [look("1:1:10:1:1")], hints, 0))
    assert [] == settling.complete(Path("/in"), [look("1:1:20:2:2")], hints, 1)
    # Another file under that name is another matter.
    assert 1 == len(settling.complete(Path("/in"), [look("1:2:20:2:2")], hints, 2))


def test_the_files_of_a_folder_that_was_renamed_have_to_settle(tmp_path: Path) -> None:
    """Somebody may be in the middle of one of them."""
    wakeup = Wakeup(tmp_path)
    paths = (str(tmp_path / "a" / NAME), str(tmp_path / "b" / NAME))
    wakeup.on_any_event(FileMovedEvent(*paths, is_synthetic=True))
    assert {} == wakeup.take_hints([Path("b") / NAME])
    wakeup.on_any_event(FileMovedEvent(*paths))
    assert {Path("b") / NAME: "renamed"} == wakeup.take_hints([Path("b") / NAME])


def test_a_settled_file_that_nobody_writes_says_so(tmp_path: Path) -> None:
    """Unless a writer has it open, or it is no longer what was seen."""
    path = tmp_path / NAME
    path.write_text("a")

    def found(evidence: str) -> Found:
        return Found(tmp_path, Path(NAME), evidence, stamp=stamp_of(path.stat()))

    words = {evidence: closed(found(evidence)) for evidence in ("stable", "closed", "renamed")}
    assert ["no_writer", "no_writer", "renamed"] == [f.evidence for f in words.values() if f]
    with path.open("ab"):
        assert None is closed(found("renamed")) is closed(found("marker"))
    seen = found("stable")
    path.write_text("ab")
    assert closed(seen) is None
    path.unlink()
    assert closed(seen) is None


def test_where_nobody_can_tell_who_writes_a_settled_file_will_do(tmp_path: Path) -> None:
    """Linux gives leases on files only, so a pipe stands for a network here."""
    os.mkfifo(tmp_path / NAME)
    stamp = stamp_of((tmp_path / NAME).stat())
    found = closed(Found(tmp_path, Path(NAME), "stable", stamp=stamp))
    assert found is not None
    assert "stable" == found.evidence


# What is so ---------------------------------------------------------------------------------


def with_claim(found: Found, *checks: tuple[str, str], is_last_chance: bool = False) -> Found:
    """The file with a manifest."""
    claim = Claim(tuple(Check(what, value, "m") for what, value in checks))
    relative = found.relative
    return Found(found.root, relative, claim.evidence, claim, is_last_chance=is_last_chance)


def zipped(voting: Voting, rows: list[str]) -> bytes:
    """Two CSVs of the rows, with blank lines, the last line open."""
    halves = (rows[:3], rows[3:])
    members = {
        voting.name(hour): b"\n" + csv_of(half)[:-1] for hour, half in enumerate(halves, start=8)
    }
    return zip_of(members)


@pytest.mark.promise(8)
@pytest.mark.parametrize("is_zip", [False, True])
def test_a_file_that_contradicts_its_manifest_leaves_no_trace(
    sessions: Sessions,
    ingest: Ingest,
    drop_file: DropFile,
    voting: Voting,
    did: Did,
    is_zip: bool,
) -> None:
    """No job, no row; with the right manifest it is taken, and the job names the evidence."""
    did("sha256 and row count wrong, then right")
    rows = voting.ballots(8, 4)
    content = zipped(voting, rows) if is_zip else b"\r\n \n" + csv_of(rows)
    found = drop_file("hours.zip" if is_zip else voting.name(8), content)
    right = (("sha256", sha256_of(content)), ("rows", str(len(rows))))
    for wrong in (("sha256", SUM), ("rows", "7")):
        with pytest.raises(ManifestNotMet) as unmet:
            ingest.take(with_claim(found, right[0], right[1], wrong))
        assert wrong == (unmet.value.what, unmet.value.expected)
        assert unmet.value.found in {right[0][1], "8"}
    with sessions() as session:
        assert [] == session.scalars(select(FileProcessing)).all()
    jobs = ingest.take(with_claim(found, *right))
    assert {("completed", "manifest:sha256+rows")} == {(job.status, job.evidence) for job in jobs}
    assert len(rows) == sum(job.rows_stored for job in jobs)
    # The same bytes again are known without unpacking; their rows still are.
    again = drop_file(f"again/{found.relative}", content)
    with pytest.raises(ManifestNotMet):
        ingest.take(with_claim(again, ("rows", "9")))
    assert {"duplicate"} == {job.status for job in ingest.take(with_claim(again, *right))}
    assert [] == unsound(sessions)


@pytest.mark.promise(8)
def test_a_damaged_zip_with_a_manifest_has_not_come_whole_yet(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """Without one it would be quarantined; with one it waits for the rest."""
    did("a ZIP cut off, with SHA-256 and with a row count")
    rows = voting.ballots(8, 4)
    content = zipped(voting, rows)
    found = drop_file("hours.zip", content[:-9])
    for check in (("sha256", sha256_of(content)), ("rows", "8")):
        with pytest.raises(ManifestNotMet):
            ingest.take(with_claim(found, check))
    found.path.write_bytes(content)
    jobs = ingest.take(with_claim(found, ("rows", "8")))
    assert ["completed"] * 2 == [job.status for job in jobs]
    assert [] == unsound(sessions)


@pytest.mark.promise(8)
def test_a_manifest_that_comes_while_a_file_is_queued_is_heeded(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, did: Did
) -> None:
    """What was begun on weaker evidence is undone when the manifest says otherwise."""
    did("stopped after 1 of 4 batches, then a manifest with another row count")
    found = drop_file(voting.name(8), voting.ballots(8, 800))
    claimed = with_claim(found, ("rows", "1601"))
    stop_after_one_batch(ingest, found, rows=500)
    with pytest.raises(ManifestNotMet):
        ingest.take(claimed)
    with sessions() as session:
        assert [] == session.scalars(select(Transaction)).all()
    (job,) = ingest.take(with_claim(found, ("rows", "1600")))
    assert ("completed", 1600, "manifest:rows") == (job.status, job.rows_stored, job.evidence)
    assert [] == unsound(sessions)


def stop_after_one_batch(ingest: Ingest, found: Found, *, rows: int) -> None:
    """Begin a file and be stopped."""
    ingest.terms = replace(ingest.terms, batch_rows=rows)
    ingest.on_progress = lambda *_: setattr(ingest, "should_stop", lambda: True)
    with pytest.raises(StopRequested):
        ingest.take(found)
    ingest.on_progress = lambda *_: None
    ingest.should_stop = lambda: False


def test_a_marker_stays_with_its_file_under_the_name_that_was_free(
    ingest: Ingest, inbox: Path, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """Two publications of one name, each with a marker; nothing is overwritten."""
    name = voting.name(8)
    for voters in (1, 2):
        found = drop_file(name, voting.ballots(8, voters))
        done(found.path, b"")
        claim = claims_in(inbox)[found.relative]
        ingest.take(replace(found, claim=claim, evidence=claim.evidence))
    second = name.replace(".csv", " (2).csv")
    names = {path.name for path in (tmp_path / "archive").iterdir()}
    assert {name, f"{name}.done", second, f"{second}.done"} == names
    assert not list(inbox.iterdir())


def test_a_file_that_never_met_its_manifest_is_quarantined_and_may_be_asked_for_again(
    sessions: Sessions, ingest: Ingest, drop_file: DropFile, voting: Voting, tmp_path: Path
) -> None:
    """Nothing is stored; the reason names both numbers; without the manifest it is taken."""
    rows = voting.ballots(8, 4)
    found = drop_file(voting.name(8), rows)
    (job,) = ingest.take(with_claim(found, ("rows", "9"), is_last_chance=True))
    assert ("quarantined", 0, voting.contract) == (job.status, job.rows_stored, job.contract_id)
    reason = (tmp_path / "quarantine" / f"{voting.name(8)}.reason.txt").read_text()
    assert "m says rows 9, the file has 8" in reason
    with sessions() as session:
        assert ["file_rejected"] == session.scalars(select(Alert.type)).all()
        assert [] == session.scalars(select(Transaction)).all()
    (tmp_path / "quarantine" / voting.name(8)).rename(found.path)
    (job,) = ingest.take(found)
    assert ("completed", 8) == (job.status, job.rows_stored)
    assert [] == unsound(sessions)


@pytest.mark.promise(10)
def test_the_same_bytes_elsewhere_give_no_row_and_no_second_count(
    start_on_each: Start, migrated_url: str, voting: Voting, did: Did
) -> None:
    """Another folder, another name of the same slot, packed: duplicates of the first job."""
    did("1 file, then 4 copies: folder, tail, ZIP, ZIP of ZIP")
    daemon = start_on_each()
    rows = csv_of(voting.ballots(8, 4))
    (daemon.inbox / voting.name(8)).write_bytes(rows)
    soon(lambda: is_empty(daemon.inbox))
    packed = zip_of({voting.name(8): rows})
    (daemon.inbox / "folder").mkdir()
    (daemon.inbox / "folder" / voting.name(8)).write_bytes(rows)
    (daemon.inbox / voting.name(8, "-copy (1).csv")).write_bytes(rows)
    (daemon.inbox / voting.name(8, ".zip")).write_bytes(packed)
    (daemon.inbox / "hours.zip").write_bytes(zip_of({"inner.zip": packed}))
    soon(lambda: is_empty(daemon.inbox))
    jobs = jobs_on(migrated_url)
    (original,) = [job for job in jobs if job.status == "completed"]
    copies = [job for job in jobs if job is not original]
    assert [("duplicate", original.id, 0)] * 4 == [
        (job.status, job.duplicate_of_id, job.rows_stored) for job in copies
    ]
    with open_sessions(migrated_url) as sessions:
        with sessions() as session:
            assert 8 == len(session.scalars(select(Transaction)).all())
        assert [] == unsound(sessions)


# The real program ---------------------------------------------------------------------------


def done(path: Path, _content: bytes) -> None:
    """An empty marker."""
    path.with_name(f"{path.name}.done").touch()


def ok(path: Path, _content: bytes) -> None:
    """Another word for it."""
    path.with_name(f"{path.name}.ok").touch()


def rows_beside(path: Path, _content: bytes) -> None:
    """A row count."""
    path.with_name(f"{path.name}.rows").write_text("4\n")


def sum_beside(path: Path, content: bytes) -> None:
    """A sum of its own."""
    told = f"{sha256_of(content)}  {path.name}\n"
    path.with_name(f"{path.name}.sha256").write_text(told)


def sum_in_list(path: Path, content: bytes) -> None:
    """A line in the list of its folder."""
    with path.with_name("SHA256SUMS").open("a") as stream:
        stream.write(f"{sha256_of(content)} *{path.name}\n")


MARKS: dict[str, list[Callable[[Path, bytes], None]]] = {
    "marker": [done, ok],
    "manifest:rows": [rows_beside],
    "manifest:sha256": [sum_beside, sum_in_list],
}


@pytest.mark.promise(7)
def test_a_marker_or_a_manifest_completes_a_file_at_once(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Where a file settles for an hour; and the marker goes where its file goes."""
    daemon = start_on_each(WATCH__SETTLE_SECONDS=AN_HOUR, WATCH__MANIFEST_WAIT_SECONDS="0.5")
    expected = {}
    hour = 0
    for evidence, marks in MARKS.items():
        for mark in marks:
            for tail in (".csv", ".zip"):
                content = csv_of(voting.ballots(hour, 2))
                if tail == ".zip":
                    content = zip_of({voting.name(hour): content})
                path = daemon.inbox / voting.name(hour, tail)
                path.write_bytes(content)
                mark(path, content)
                expected[path.name] = evidence
                hour += 1
    did(f"{hour} files with done, ok, rows, sha256, SHA256SUMS; settle time 1 h")
    soon(lambda: is_empty(daemon.inbox))
    jobs = jobs_on(migrated_url)
    assert expected == {job.path: job.evidence for job in jobs}
    assert {("completed", 4)} == {(job.status, job.rows_stored) for job in jobs}
    assert [] == daemon.log("not_a_csv_or_zip")
    archived = {path.name for path in (tmp_path / "archive").iterdir()}
    assert 8 + 1 == len(archived - expected.keys())
    assert "SHA256SUMS" in archived
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


@pytest.mark.promise(8)
def test_a_file_that_grows_beside_its_manifest_is_read_when_it_is_whole(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """The pauses are far longer than the settle time, and the writer closes it each time."""
    did("5 parts, each followed by 3 settle times")
    daemon = start(WATCH__SETTLE_SECONDS="0.2", WATCH__POLL_SECONDS="0.1")
    rows = voting.ballots(8, 5)
    path = daemon.inbox / voting.name(8)
    sum_beside(path, csv_of(rows))
    for start_at in range(0, 10, 2):
        with path.open("ab") as stream:
            stream.write(csv_of(rows[start_at : start_at + 2]))
        if start_at == 0:
            soon(lambda: daemon.log("manifest_not_met"))
        if start_at < 8:
            time.sleep(0.6)
            assert [] == jobs_on(sqlite_url)
    soon(lambda: is_empty(daemon.inbox))
    (job,) = jobs_on(sqlite_url)
    assert ("completed", 10, "manifest:sha256") == (job.status, job.rows_stored, job.evidence)
    assert (1, 1) == (len(daemon.log("manifest_not_met")), len(daemon.log("manifest_met")))


@pytest.mark.promise(8)
def test_a_manifest_that_is_never_met_ends_in_quarantine(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """With a reason that names both numbers, the manifest beside it, and no row stored."""
    did("row count 9 of 4 rows, waited for 1 s")
    daemon = start_on_each(WATCH__MANIFEST_WAIT_SECONDS="1")
    path = daemon.inbox / voting.name(8)
    # Renamed into place: else it may be looked at, and its rows counted, before it has any.
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(csv_of(voting.ballots(8, 2)))
    path.with_name(f"{path.name}.rows").write_text("9")
    part.rename(path)
    soon(lambda: is_empty(daemon.inbox))
    (job,) = jobs_on(migrated_url)
    assert ("quarantined", 0) == (job.status, job.rows_stored)
    assert job.first_error_message == f"{path.name}.rows says rows 9, the file has 4"
    names = {found.name for found in (tmp_path / "quarantine").iterdir()}
    assert {path.name + tail for tail in ("", ".rows", ".reason.txt")} == names
    (said,) = daemon.log("manifest_not_met")
    assert ("9", "4") == (said["expected"], said["found"])
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


def test_a_required_marker_is_waited_for(start: Start, sqlite_url: str, voting: Voting) -> None:
    """It is said once that files wait, and once that it is over."""
    daemon = start(WATCH__REQUIRE_MARKER="true", WATCH__SETTLE_SECONDS="0.2")
    paths = [daemon.inbox / voting.name(hour) for hour in (8, 9, 10)]
    for path in paths:
        path.write_bytes(csv_of(voting.ballots(8, 1)))
    soon(lambda: daemon.log("files_without_marker"))
    time.sleep(1)
    assert [] == jobs_on(sqlite_url)
    for path in paths:
        done(path, b"")
    soon(lambda: is_empty(daemon.inbox))
    soon(lambda: daemon.log("files_without_marker_over"))
    assert ["marker"] * 3 == [job.evidence for job in jobs_on(sqlite_url)]
    assert 1 == len(daemon.log("files_without_marker"))


@pytest.mark.promise(8)
def test_no_writer_is_overtaken(
    start_on_each: Start, migrated_url: str, voting: Voting, did: Did
) -> None:
    """One dribbles, one holds the file open and says nothing, one lays the marker too early."""
    settle_seconds = 2.0  # a writer on a machine at its limits is not to be taken for a dead one
    daemon = start_on_each(WATCH__SETTLE_SECONDS=str(settle_seconds))
    rows = {hour: voting.ballots(hour, 4) for hour in (8, 9, 10)}

    def dribble(hour: int) -> None:
        for row in rows[hour]:
            with (daemon.inbox / voting.name(hour)).open("ab") as stream:
                stream.write(csv_of([row]))
            time.sleep(settle_seconds / 6)

    def hold(hour: int) -> None:
        path = daemon.inbox / voting.name(hour)
        with path.open("wb", buffering=0) as stream:
            stream.write(csv_of(rows[hour][:3]))
            if hour == 10:
                done(path, b"")
            time.sleep(2 * settle_seconds)
            stream.write(csv_of(rows[hour][3:]))

    writers = [
        threading.Thread(target=way, args=(hour,))
        for way, hour in ((dribble, 8), (hold, 9), (hold, 10))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    soon(lambda: is_empty(daemon.inbox))
    jobs = jobs_on(migrated_url)
    did("3 writers: 8 parts below settle; open for 2 settle times; the same with a marker")
    assert [("completed", 8)] * 3 == [(job.status, job.rows_stored) for job in jobs]
    by_path = {job.path: job.evidence for job in jobs}
    assert ["no_writer", "no_writer", "marker"] == [by_path[voting.name(h)] for h in (8, 9, 10)]
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


def test_a_rename_inside_the_inbox_completes_a_file_at_once(
    start: Start, sqlite_url: str, voting: Voting
) -> None:
    """From a folder in it, and from a name that is ignored."""
    daemon = start(WATCH__SETTLE_SECONDS=AN_HOUR)
    (daemon.inbox / "writing").mkdir()
    soon(lambda: is_listened_to(daemon.inbox / "writing", daemon.process.pid))
    for hour, before in ((8, "writing/x.csv"), (9, "y.csv.part")):
        (daemon.inbox / before).write_bytes(csv_of(voting.ballots(hour, 1)))
        (daemon.inbox / before).rename(daemon.inbox / voting.name(hour))
    soon(lambda: is_empty(daemon.inbox))
    assert ["renamed"] * 2 == [job.evidence for job in jobs_on(sqlite_url)]


@pytest.mark.promise(1)
@pytest.mark.parametrize("step", ["moved"])
def test_a_kill_between_a_file_and_its_marker_leaves_nothing_stuck(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did, step: str
) -> None:
    """The file goes first; its marker is found left over, also where markers are required."""
    did(f"kill -9 after '{step}', before the marker follows")
    inbox = tmp_path / "inbox"
    path = inbox / voting.name(8)
    path.write_bytes(csv_of(voting.ballots(8, 2)))
    sum_beside(path, path.read_bytes())
    settings = {"INGESTD_WATCH__REQUIRE_MARKER": "true", CRASH_VARIABLE: f"{step}:1"}
    victim = Victim(tmp_path, sqlite_url, "once", settings)
    assert -signal.SIGKILL == victim.wait()
    assert [f"{path.name}.sha256"] == [left.name for left in inbox.iterdir()]
    daemon = start(WATCH__REQUIRE_MARKER="true", WATCH__MANIFEST_WAIT_SECONDS="0.5")
    soon(lambda: is_empty(inbox))
    assert 0 == daemon.stop()
    names = {found.name for found in (tmp_path / "archive").iterdir()}
    assert {path.name, f"{path.name}.sha256"} == names
    told = {line["event"] for line in daemon.log()}
    assert set() == told & {"late_manifest_not_met", "marker_not_put_away", "marker_without_file"}
    with open_sessions(sqlite_url) as sessions:
        assert [] == unsound(sessions)


def test_a_late_manifest_is_held_against_what_was_read(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path
) -> None:
    """A list comes after its files, one line is wrong, and one file has yet to come."""
    daemon = start(WATCH__SETTLE_SECONDS="0.1", WATCH__MANIFEST_WAIT_SECONDS="0.5")
    contents = {voting.name(hour): csv_of(voting.ballots(hour, 1)) for hour in (8, 9, 10)}
    for name in list(contents)[:2]:
        (daemon.inbox / name).write_bytes(contents[name])
    soon(lambda: is_empty(daemon.inbox))
    lines = [f"{sha256_of(content)}  {name}\n" for name, content in contents.items()]
    lines[1] = f"{SUM}  {voting.name(9)}\n"
    (daemon.inbox / "SHA256SUMS").write_text("".join(lines))
    soon(lambda: daemon.log("marker_without_file"))
    (missing,) = daemon.log("marker_without_file")
    assert (1, [voting.name(10)]) == (missing["files"], missing["first"])
    (daemon.inbox / voting.name(10)).write_bytes(contents[voting.name(10)])
    soon(lambda: is_empty(daemon.inbox))
    (unmet, *_) = daemon.log("late_manifest_not_met")
    assert (voting.name(9), SUM) == (unmet["path"], unmet["expected"])
    evidence = {job.path: job.evidence for job in jobs_on(sqlite_url)}
    assert "manifest:sha256" == evidence[voting.name(10)]
    assert (tmp_path / "archive" / "SHA256SUMS").exists()


def test_a_marker_that_comes_first_waits_for_its_file(
    start: Start, sqlite_url: str, voting: Voting
) -> None:
    """Also when a file of that name was taken before."""
    daemon = start(WATCH__REQUIRE_MARKER="true", WATCH__MANIFEST_WAIT_SECONDS="30")
    path = daemon.inbox / voting.name(8)
    for rows in (voting.ballots(8, 1), voting.ballots(8, 2)):
        sum_beside(path, csv_of(rows))
        time.sleep(0.8)
        path.write_bytes(csv_of(rows))
        soon(lambda: is_empty(daemon.inbox))
    assert ["completed", "superseded"] == sorted(job.status for job in jobs_on(sqlite_url))


# Once ---------------------------------------------------------------------------------------


def test_once_heeds_manifests_markers_and_writers(
    sqlite_url: str, inbox: Path, voting: Voting, tmp_path: Path
) -> None:
    """What is not complete stays where it is, and is named."""
    watch = {
        "inbox": inbox,
        "archive": tmp_path / "archive",
        "quarantine": tmp_path / "quarantine",
        "require_marker": True,
    }
    settings = Settings.model_validate({"database": {"url": sqlite_url}, "watch": watch})
    for hour in (8, 9, 10, 11):
        (inbox / voting.name(hour)).write_bytes(csv_of(voting.ballots(hour, 2)))
    for hour, marker, told in ((8, "rows", "4"), (9, "rows", "5"), (10, "done", "")):
        (inbox / f"{voting.name(hour)}.{marker}").write_text(told)
    with (inbox / voting.name(10)).open("ab"):
        summary = once(settings)
    assert {"completed": 1} == dict(summary.files)
    waiting = dict(line.split(": ", 1) for line in summary.waiting)
    assert f"{voting.name(9)}.rows says rows 5, the file has 4" == waiting[voting.name(9)]
    assert "a process is still writing it" == waiting[voting.name(10)]
    assert "it has no marker and no manifest" == waiting[voting.name(11)]
    summary = once(settings, [inbox / voting.name(11), inbox / voting.name(9)])
    assert {"completed": 1} == dict(summary.files)
    assert 1 == len(summary.waiting)
    evidence = {job.path: job.evidence for job in jobs_on(sqlite_url)}
    assert {voting.name(8): "manifest:rows", voting.name(11): "asked"} == evidence
