"""Full disks, refusals and cut moves: the source is kept, all is said once, and it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from psycopg.sql import SQL, Identifier, Literal
from sqlalchemy import make_url

from ingestd.pipeline import archive
from ingestd.pipeline.step import Step

from .conftest import Databases, Did, PostgreSQL, Voting, csv_of
from .oracle import unsound
from .running import (
    ONCE,
    Running,
    Start,
    environment,
    is_empty,
    jobs_on,
    open_sessions,
    soon,
    starter,
    states_on,
)
from .steps import CRASH_VARIABLE
from .victims import Victim
from .volumes import Commoner, Disk, Mount, commoner, disk, idle, mount, run

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

__all__ = ["commoner", "disk", "mount"]  # fixtures

FULL = {"INGESTD_DATABASE__SQLITE_SYNCHRONOUS": "FULL"}


def sound(url: str) -> bool:
    """Whether the tables balance; says what does not."""
    with open_sessions(url) as sessions:
        assert [] == unsound(sessions)
    return True


def put(inbox: Path, voting: Voting, hour: int, voters: int = 2, *, bad: bool = False) -> Path:
    """An hour's file in the inbox."""
    inbox.mkdir(parents=True, exist_ok=True)
    path = inbox / voting.name(hour)
    path.write_bytes(csv_of(["torn"] * 30 if bad else voting.ballots(hour, voters)))
    return path


# Commit, then touch -------------------------------------------------------------------------

CALLS = "fsync,fdatasync,write,pwrite64,rename,renameat,renameat2,linkat,unlink,unlinkat"


def traced_once(folder: Path, url: str, calls: str = CALLS, **settings: str) -> list[str]:
    """Run `once` and give its system calls, one a line, with the paths of their files."""
    trace = folder / "trace"
    command = ["strace", "-f", "-y", "-s", "64", "-qq", "-e", "signal=none", "-o", str(trace)]
    subprocess.run(
        [*command, "-e", f"trace={calls}", sys.executable, "-c", ONCE],
        env=environment(folder, url, **FULL | settings),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return whole_calls(trace.read_text(encoding="utf-8", errors="replace").splitlines())


def whole_calls(lines: list[str]) -> list[str]:
    """Put calls that were cut by another thread's together, in the order of their ends."""
    begun: dict[str, str] = {}
    whole = []
    for line in lines:
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[pid] = call.removesuffix("<unfinished ...>")
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>", call)
        whole.append(begun.pop(pid) + call[resumed.end() :] if resumed else call)
    return whole


def where(calls: list[str], pattern: str) -> list[int]:
    """At which places calls match."""
    return [number for number, call in enumerate(calls) if re.match(pattern, call)]


@pytest.mark.promise(2)
def test_sqlite_has_the_commit_on_disk_before_the_source_moves(
    tmp_path: Path, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """All that was written to the WAL until then is synced; peers are evaluated afterwards."""
    source = put(tmp_path / "inbox", voting, 8)
    calls = traced_once(tmp_path, sqlite_url)
    (move,) = where(calls, rf'rename\w*\(.*"{source}".*archive/')
    assert committed(calls[:move]) < move
    assert [] == where(calls, rf'(unlink|link)\w*\(.*"{source}"')
    did(f"strace of 1 file: {len(where(calls, WAL_WRITE))} writes of the WAL, a sync, 1 rename")


WAL_WRITE = r"pwrite64\(\d+<.*-wal>"


def committed(calls: list[str]) -> int:
    """The sync of the WAL that is behind all that was written to it."""
    written = max(where(calls, WAL_WRITE))
    return min(at for at in where(calls, r"f(data)?sync\(\d+<.*-wal>") if at > written)


@pytest.mark.promise(2)
def test_a_reason_is_on_disk_before_its_file_moves(
    tmp_path: Path, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """Commit, reason, sync, its name, sync, and only then the file itself."""
    source = put(tmp_path / "inbox", voting, 8, bad=True)
    calls = traced_once(tmp_path, sqlite_url)
    steps = [
        r"write\(\d+<.*quarantine/.partial/",
        r"fsync\(\d+<.*quarantine/.partial/",
        r"rename\w*\(.*quarantine/.partial/.*\.reason\.txt",
        r"fsync\(\d+<.*quarantine>",
        rf'rename\w*\(.*"{source}".*quarantine/',
    ]
    commit = committed(calls[: where(calls, steps[0])[0]])
    assert in_order(calls[commit:], steps)
    assert not in_order(calls[:commit], steps[:1])
    did("strace of 1 refused file: 6 steps in order")


def in_order(calls: list[str], steps: list[str]) -> bool:
    """Whether the last call of each step is before the first one of the next; each is there."""
    places = [where(calls, step) for step in steps]
    return all(places) and all(max(these) < min(next_ones) for these, next_ones in pairwise(places))


@pytest.mark.promise(2, 26)
def test_to_another_file_system_it_is_copy_sync_rename_sync_unlink(
    tmp_path: Path, sqlite_url: str, voting: Voting, mount: Mount, did: Did
) -> None:
    """In this order, after the commit; the time of the file is kept."""
    source = put(tmp_path / "inbox", voting, 8, 40)
    content = source.read_bytes()
    os.utime(source, (1_700_000_000, 1_700_000_000))
    volume = mount("size=16m")
    calls = traced_once(tmp_path, sqlite_url, INGESTD_WATCH__ARCHIVE=str(volume.folder))
    steps = [
        rf"write\(\d+<{volume.folder}/.partial/",
        rf"fsync\(\d+<{volume.folder}/.partial/",
        rf"rename\w*\(.*{volume.folder}/.partial/.*{source.name}",
        rf"fsync\(\d+<{volume.folder}>",
        rf'unlink\w*\(.*"{source}"',
    ]
    commit = committed(calls[: where(calls, steps[0])[0]])
    assert in_order(calls[commit:], steps)
    assert not in_order(calls[:commit], steps[:1])
    assert [volume.folder / source.name] == volume.files()
    assert content == volume.files()[0].read_bytes()
    assert 1_700_000_000 == volume.files()[0].stat().st_mtime
    did("strace of 1 file to another file system: 6 steps in order")


@pytest.mark.promise(2)
def test_postgresql_has_answered_before_the_source_moves(
    tmp_path: Path, databases: Databases, voting: Voting, did: Did
) -> None:
    """Every COMMIT that was sent before the rename has its answer by then."""
    source = put(tmp_path / "inbox", voting, 8)
    with databases.fresh("postgresql") as url:
        calls = traced_once(tmp_path, url, "sendto,recvfrom,rename,renameat,renameat2")
    (move,) = where(calls, rf'rename\w*\(.*"{source}".*archive/')
    sent = where(calls, r'sendto\(.*"Q.*COMMIT')
    answered = where(calls, r'recvfrom\(.*"C[^"]*COMMIT')
    before = [call for call in sent if call < move]
    heard = [call for call in answered if call < move]
    assert len(before) == len(heard) > 1
    assert max(before) < max(heard)
    did(f"strace of 1 file: {len(before)} commits sent and answered, 1 rename")


@pytest.mark.promise(2)
def test_a_power_cut_takes_back_a_move_but_no_commit(
    disk: Disk, databases: Databases, voting: Voting, did: Did
) -> None:
    """The rename is not synced: its file is in the inbox again, known by its stamp, and moved."""
    database = disk.folder / "ingestd.db"
    shutil.copyfile(databases.sqlite_template, database)
    url = f"sqlite:///{database}"
    source = put(disk.folder / "inbox", voting, 8)
    run("sync", "--file-system", disk.folder)
    dying = Victim(disk.folder, url, settings=FULL | {CRASH_VARIABLE: f"{Step.MOVED}:1"})
    assert -signal.SIGKILL == dying.wait()
    archived = disk.folder / "archive" / source.name
    assert (False, True) == (source.exists(), archived.exists())
    disk.cut_power()
    assert (True, False) == (source.exists(), archived.exists())
    assert [(source.name, "completed", 4)] == states_on(url)
    assert 0 == run_once(disk.folder, url)
    assert (False, True) == (source.exists(), archived.exists())
    assert [(source.name, "completed", 4)] == states_on(url)
    assert [str(archived)] == [job.archived_to for job in jobs_on(url)]
    assert sound(url)
    did("1 power cut (ext4, what the device had) right after the rename of 1 file")


@pytest.mark.promise(2, 10)
def test_a_file_that_somebody_puts_back_is_a_duplicate_and_moved_again(
    tmp_path: Path, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """No row twice, and every job says where its file is."""
    source = put(tmp_path / "inbox", voting, 8)
    assert 0 == run_once(tmp_path, sqlite_url)
    archived = tmp_path / "archive" / source.name
    for _ in range(2):
        archived.rename(source)
        assert 0 == run_once(tmp_path, sqlite_url)
        assert [archived] == list(archived.parent.iterdir())
        assert not source.exists()
    assert {("completed", 4), ("duplicate", 0)} == {job[1:] for job in states_on(sqlite_url)}
    assert {str(archived)} == {job.archived_to for job in jobs_on(sqlite_url)}
    assert sound(sqlite_url)
    did("1 archived file put back into the inbox 2 times")


def run_once(
    folder: Path, url: str, *, archive: Path | None = None, prefix: tuple[str, ...] = ()
) -> int:
    """Run the program over the inbox until it is done, or is killed; its exit status."""
    more = {"INGESTD_WATCH__ARCHIVE": str(archive)} if archive else {}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", ONCE],
        env=environment(folder, url, **more),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


# Moves that are cut -------------------------------------------------------------------------


def killed_at(call: str, path: Path) -> tuple[str, ...]:
    """Start the program so that SIGKILL ends it at a call on this path."""
    return (
        *("strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path)),
        *("-e", f"trace={call}", "-e", f"inject={call}:error=EIO:signal=SIGKILL:when=1"),
    )


CUTS = {
    "while it is copied": ("write", "partial"),
    "before the copy is safe": ("fsync", "partial"),
    "before the copy has its name": ("renameat2", "partial"),
    "before its folder is safe": ("fsync", "archive"),
    "before the source goes": ("unlink", "source"),
}


@pytest.mark.promise(26)
@pytest.mark.parametrize("cut", CUTS)
def test_a_copy_that_is_killed_is_neither_lost_nor_doubled_nor_left_half_done(
    tmp_path: Path, sqlite_url: str, voting: Voting, mount: Mount, cut: str, did: Did
) -> None:
    """No stub under a final name, ever; the next start ends it with one copy and says where."""
    volume = mount("size=32m")
    source = put(tmp_path / "inbox", voting, 8, 40)
    content = source.read_bytes()
    partial = volume.folder / ".partial" / archive.name_on_the_way(source)
    call, place = CUTS[cut]
    path = {"partial": partial, "archive": volume.folder, "source": source}[place]
    prefix = killed_at(call, path)
    # strace ends as its child did.
    assert -signal.SIGKILL == run_once(tmp_path, sqlite_url, archive=volume.folder, prefix=prefix)
    assert content == source.read_bytes()
    assert all(content == path.read_bytes() for path in volume.files() if path.suffix == ".csv")
    assert 0 == run_once(tmp_path, sqlite_url, archive=volume.folder)
    assert [volume.folder / source.name] == volume.files()
    assert content == volume.files()[0].read_bytes()
    assert not source.exists()
    (job,) = jobs_on(sqlite_url)
    assert ("completed", 80, str(volume.files()[0])) == (
        *(job.status, job.rows_stored, job.archived_to),
    )
    assert sound(sqlite_url)
    did(f"1 SIGKILL {cut}")


@pytest.mark.promise(26)
def test_a_broken_copy_whose_source_was_taken_away_is_removed(
    tmp_path: Path, sqlite_url: str, voting: Voting, mount: Mount, did: Did
) -> None:
    """The next start sweeps."""
    volume = mount("size=32m")
    source = put(tmp_path / "inbox", voting, 8)
    partial = volume.folder / ".partial" / archive.name_on_the_way(source)
    prefix = killed_at("fsync", partial)
    assert -signal.SIGKILL == run_once(tmp_path, sqlite_url, archive=volume.folder, prefix=prefix)
    assert [partial] == volume.files()
    source.unlink()
    assert 0 == run_once(tmp_path, sqlite_url, archive=volume.folder)
    assert [] == list(volume.folder.iterdir())
    did("1 SIGKILL in a copy, its source deleted")


@pytest.mark.promise(26)
def test_two_programs_that_want_the_same_names_overwrite_nothing(
    tmp_path: Path, databases: Databases, voting: Voting, mount: Mount, did: Did
) -> None:
    """Two inboxes with other files of the same names, one archive: all of them are in it."""
    volume = mount("size=64m")
    expected = []
    with databases.fresh("sqlite") as one, databases.fresh("sqlite") as other:
        urls = {tmp_path / "one": one, tmp_path / "other": other}
        for folder in urls:
            for hour in range(12):
                for copy in range(2):
                    path = put(folder / "inbox" / str(copy), voting, hour, 1)
                    expected.append(path.read_bytes())
        running = [
            subprocess.Popen(
                [sys.executable, "-c", ONCE],
                env=environment(folder, url, INGESTD_WATCH__ARCHIVE=str(volume.folder)),
                stdout=subprocess.DEVNULL,
            )
            for folder, url in urls.items()
        ]
        assert [0, 0] == [process.wait(120) for process in running]
        assert sorted(expected) == sorted(path.read_bytes() for path in volume.files())
        for url in urls.values():
            jobs = jobs_on(url)
            assert len(jobs) == len({job.archived_to for job in jobs}) == 24
            assert sound(url)
    did("2 programs, 48 files of 24 names, 1 archive on another file system")


def test_a_link_and_an_unlink_move_where_renames_know_no_flags(tmp_path: Path) -> None:
    """As on NFS: a name that is taken is refused."""
    (tmp_path / "a").write_text("a")
    archive.link_and_unlink(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").write_text("other")
    with pytest.raises(FileExistsError):
        archive.link_and_unlink(tmp_path / "a", tmp_path / "b")
    assert ["other", "a"] == [(tmp_path / name).read_text() for name in ("a", "b")]


# Full ---------------------------------------------------------------------------------------


def goes_on_when_there_is_room(  # the story of every full volume
    daemon: Running, url: str, source: Path, full: str, mend: Callable[[], None]
) -> None:
    """It has said it once, it keeps the source and idles, and then it ends what it began."""
    soon(lambda: daemon.log(full))
    with idle(daemon.process.pid):
        time.sleep(2)
    assert source.exists()
    assert 1 == len(daemon.log(full))
    mend()
    soon(lambda: is_empty(daemon.inbox), seconds=120)
    assert 1 == len(daemon.log(full))
    assert sound(url)


@pytest.mark.promise(25)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_full_database_volume_loses_nothing(
    tmp_path: Path,
    databases: Databases,
    request: pytest.FixtureRequest,
    voting: Voting,
    mount: Mount,
    kind: str,
    did: Did,
) -> None:
    """The WAL, or a table, cannot grow; no attempt is burnt, and all comes in the end."""
    volume = mount("size=16m")
    with database_on(volume.folder, databases, kind, request) as url:
        starting = starter(tmp_path, url)
        daemon = next(starting)(INGEST__BATCH_ROWS="150")
        volume.fill()
        source = put(daemon.inbox, voting, 8, 600)

        def mend() -> None:
            assert all(job.rows_read == job.rows_stored < 1_200 for job in jobs_on(url))
            volume.empty()

        goes_on_when_there_is_room(daemon, url, source, "storage_away", mend)
        soon(lambda: daemon.log("storage_back"))
        assert [(source.name, "completed", 1_200)] == states_on(url)
        assert [0] == [job.attempts for job in jobs_on(url)]
        assert 0 == daemon.stop()
        assert next(starting, None) is None
    did("a volume of 16 MB full before 1 200 rows, 8 batches")


@contextmanager
def database_on(
    folder: Path, databases: Databases, kind: str, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A fresh database whose tables lie in a folder."""
    if kind == "sqlite":
        file = folder / "ingestd.db"
        shutil.copyfile(databases.sqlite_template, file)
        yield f"sqlite:///{file}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    space = f"space_{folder.name.replace('-', '_')}"
    home = folder / "tables"
    home.mkdir()
    owner = server.socket_folder.stat()
    os.chown(home, owner.st_uid, owner.st_gid)
    with server.admin() as admin:
        admin.execute(
            SQL("CREATE TABLESPACE {} LOCATION {}").format(Identifier(space), Literal(str(home)))
        )
        try:
            with server.new_database(template=databases.postgresql_template) as url:
                name = make_url(url).database or ""
                admin.execute(
                    SQL("ALTER DATABASE {} SET TABLESPACE {}").format(
                        Identifier(name), Identifier(space)
                    )
                )
                yield url
        finally:
            admin.execute(SQL("DROP TABLESPACE {}").format(Identifier(space)))


@pytest.mark.promise(25)
@pytest.mark.parametrize("lacking", ["bytes", "inodes", "the right to write"])
def test_a_full_archive_keeps_its_file_and_nobody_else(
    start: Start, sqlite_url: str, voting: Voting, mount: Mount, lacking: str, did: Did
) -> None:
    """No stub; what fits goes on; said once with what to do, and summed when there is room."""
    volume = mount("size=2m,nr_inodes=100")
    daemon = start(WATCH__ARCHIVE=str(volume.folder))
    damage, mend, said = {
        "bytes": (volume.fill, volume.empty, "archive_full"),
        "inodes": (volume.fill_inodes, volume.empty, "archive_full"),
        "the right to write": (
            *(lambda: volume.remount("ro"), lambda: volume.remount("rw"), "archive_not_writable"),
        ),
    }[lacking]
    damage()
    sources = [put(daemon.inbox, voting, hour, 20) for hour in (8, 9, 10)]
    soon(lambda: len(daemon.log("file_ingested")) == 3)

    def mend_at_last() -> None:
        assert [] == volume.files()
        assert {("completed", 40, None)} == {
            (job.status, job.rows_stored, job.archived_to) for job in jobs_on(sqlite_url)
        }
        mend()

    goes_on_when_there_is_room(daemon, sqlite_url, sources[0], said, mend_at_last)
    soon(lambda: daemon.log("archive_back"))
    assert [3] == [line["files"] for line in daemon.log("archive_back")]
    assert str(volume.folder) in daemon.log(said)[0]["advice"]
    assert sorted(path.name for path in volume.files()) == sorted(path.name for path in sources)
    assert {str(path) for path in volume.files()} == {
        job.archived_to for job in jobs_on(sqlite_url)
    }
    assert 3 == len(daemon.log("file_ingested"))
    did(f"3 files, an archive of 2 MB without {lacking} for 2 s")


@pytest.mark.promise(25)
def test_a_file_that_does_not_fit_keeps_none_that_does_waiting(
    start: Start, sqlite_url: str, voting: Voting, mount: Mount, did: Did
) -> None:
    """An archive with little room takes the small ones; the big one is not copied in part."""
    volume = mount("size=1m")
    daemon = start(WATCH__ARCHIVE=str(volume.folder))
    big = put(daemon.inbox, voting, 8, 1_000)
    assert big.stat().st_size > 1 << 20
    soon(lambda: daemon.log("archive_full"))
    small = [put(daemon.inbox, voting, hour, 5).name for hour in range(9, 14)]
    soon(lambda: {path.name for path in volume.files()} == set(small))
    assert big.exists()
    volume.remount("size=16m")
    soon(lambda: is_empty(daemon.inbox), seconds=60)
    soon(lambda: daemon.log("archive_back"))
    assert 1 == len(daemon.log("archive_full")) == len(daemon.log("archive_back"))
    assert sound(sqlite_url)
    did("1 file larger than the archive, 5 that fit")


@pytest.mark.promise(25)
def test_a_full_quarantine_keeps_the_refused_file_until_its_reason_has_room(
    start: Start, sqlite_url: str, voting: Voting, mount: Mount, did: Did
) -> None:
    """No half a reason, no file without one."""
    volume = mount("size=1m")
    daemon = start(WATCH__QUARANTINE=str(volume.folder))
    volume.fill()
    source = put(daemon.inbox, voting, 8, bad=True)

    def mend() -> None:
        assert [] == volume.files()
        volume.empty()

    goes_on_when_there_is_room(daemon, sqlite_url, source, "quarantine_full", mend)
    names = [source.name, f"{source.name}.reason.txt"]
    assert names == sorted(path.name for path in volume.files())
    assert "bad rows" in volume.files()[1].read_text(encoding="utf-8")
    assert [(source.name, "quarantined", 0)] == states_on(sqlite_url)
    did("1 refused file, a quarantine full for 2 s")


@pytest.mark.promise(25)
def test_a_full_log_volume_stops_nothing_and_the_lost_lines_are_counted(
    start: Start, sqlite_url: str, voting: Voting, mount: Mount, tmp_path: Path, did: Did
) -> None:
    """Every line in the log is whole."""
    volume = mount("size=64k")
    (tmp_path / "log.jsonl").symlink_to(volume.folder / "log.jsonl")
    daemon = start()
    volume.fill()
    for hour in range(6, 18):
        put(daemon.inbox, voting, hour)
    soon(lambda: is_empty(daemon.inbox))
    volume.empty()
    put(daemon.inbox, voting, 20)
    soon(lambda: is_empty(daemon.inbox))
    assert 0 == daemon.stop()
    lines = (volume.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    assert len(lines) - len(whole) <= 1  # the one in which the room ended
    told = sum(line["event"] == "file_ingested" for line in whole)
    lost = sum(line["lines"] for line in whole if line["event"] == "log_lines_lost")
    assert 13 == told + lost
    assert [("completed", 4)] * 13 == [job[1:] for job in states_on(sqlite_url)]
    assert sound(sqlite_url)
    did(f"13 files, {lost} log lines lost and counted")


@pytest.mark.promise(25)
@pytest.mark.parametrize("way", ["a pipe that nobody reads", "none at all"])
def test_a_log_that_is_gone_stops_nothing(
    tmp_path: Path, sqlite_url: str, voting: Voting, way: str, did: Did
) -> None:
    """Its reader has died, or there never was a standard error."""
    source = put(tmp_path / "inbox", voting, 8)
    bad = put(tmp_path / "inbox", voting, 9, bad=True)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", ONCE.replace('"error"', '"info"')]
    if way == "none at all":
        command = ["sh", "-c", 'exec "$0" "$@" 2>&-', *command]
    done = subprocess.run(
        command,
        env=environment(tmp_path, sqlite_url),
        stdout=subprocess.DEVNULL,
        stderr=writer,
        check=False,
    )
    os.close(writer)
    assert 0 == done.returncode
    assert {(source.name, "completed", 4), (bad.name, "quarantined", 0)} == set(
        states_on(sqlite_url)
    )
    assert sound(sqlite_url)
    did(f"2 files, standard error is {way}")


@pytest.mark.promise(25)
def test_a_full_folder_for_sqlites_temporary_files_loses_nothing(
    sqlite_url: str,
    voting: Voting,
    mount: Mount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    did: Did,
) -> None:
    """What a recount collects spills to disk; with no room there the file waits."""
    volume = mount("size=1m")
    monkeypatch.setenv("SQLITE_TMPDIR", str(volume.folder))
    starting = starter(tmp_path, sqlite_url)
    daemon = next(starting)(DATABASE__SQLITE_CACHE_MB="1")
    rows = voting.ballots(8, 1_500)
    source = daemon.inbox / voting.name(8)
    source.write_bytes(csv_of(rows))
    soon(lambda: is_empty(daemon.inbox), seconds=60)
    volume.fill()
    source.write_bytes(csv_of(rows[::2]))  # a publication that leaves 1 500 rows out
    goes_on_when_there_is_room(daemon, sqlite_url, source, "storage_away", volume.empty)
    assert 0 == daemon.stop()
    assert next(starting, None) is None
    assert {"superseded", "completed"} == {job[1] for job in states_on(sqlite_url)}
    did("3 000 rows, 1 500 of them withdrawn, SQLITE_TMPDIR full for 2 s")


# Refused ------------------------------------------------------------------------------------


@pytest.fixture
def humble(commoner: Commoner, databases: Databases) -> Iterator[tuple[Running, str]]:
    """A daemon of a user without privileges, and its database."""
    file = commoner.folder / "ingestd.db"
    shutil.copyfile(databases.sqlite_template, file)
    commoner.own(file)
    url = f"sqlite:///{file}"
    settings = {
        "INGESTD_WATCH__SETTLE_SECONDS": "0.3",
        "INGESTD_WATCH__POLL_SECONDS": "0.3",
    }
    daemon = Running(commoner.folder, url, settings, commoner.prefix).wait_until_ready()
    try:
        yield daemon, url
    finally:
        daemon.stop()


@dataclass(frozen=True)
class Refusal:
    """What is closed, for which file, with which mode, and what is to be said of it."""

    place: str
    file: str
    mode: int
    event: str
    over: str
    rows_before: int


NO_FOLDER = ("folder_not_readable", "folder_readable_again", 0)
REFUSALS = {
    "a file": Refusal("inbox/{}", "inbox/{}", 0, "file_not_readable", "file_readable_again", 0),
    "a folder": Refusal("inbox/sub", "inbox/sub/{}", 0, *NO_FOLDER),
    "a folder to enter": Refusal("inbox/sub", "inbox/sub/{}", 0o400, *NO_FOLDER),
    "an inbox": Refusal("inbox/sub", "inbox/sub/{}", 0o500, "inbox_not_writable", "inbox_back", 4),
    "an archive": Refusal("archive", "inbox/{}", 0o500, "archive_not_writable", "archive_back", 4),
}


@pytest.mark.promise(27)
@pytest.mark.parametrize("closed", REFUSALS)
def test_what_is_refused_is_said_with_uid_and_mode_and_tried_again(
    humble: tuple[Running, str], commoner: Commoner, voting: Voting, closed: str, did: Did
) -> None:
    """Once, with what to do; nothing is ingested twice, nothing spins, others go on."""
    daemon, url = humble
    refusal = REFUSALS[closed]
    mode, event, over = refusal.mode, refusal.event, refusal.over
    ways = (refusal.place, refusal.file)
    place, path = (commoner.folder / way.format(voting.name(8)) for way in ways)
    outside = put(commoner.folder / "outside", voting, 8)
    commoner.own(outside)
    if place != path:
        place.mkdir(exist_ok=True)
        commoner.own(place)
    if place == path:
        outside.chmod(mode)
        outside.rename(path)
    else:
        outside.rename(path)
        place.chmod(mode)
    other = put(commoner.folder / "outside", voting, 9)
    commoner.own(other)
    commoner.own(other.parent)
    other.rename(daemon.inbox / other.name)
    soon(lambda: daemon.log(event))
    soon(lambda: any(job.path == other.name for job in jobs_on(url)))
    with idle(daemon.process.pid):
        time.sleep(2)
    (said,) = daemon.log(event)
    assert (commoner.uid, f"{mode:04o}") == (said["uid"], said["mode"])
    assert f"setfacl -m u:{commoner.uid}:" in said["advice"]
    assert str(place) in said["advice"]
    stored = {job.path.rsplit("/", 1)[-1]: job.rows_stored for job in jobs_on(url)}
    assert refusal.rows_before == stored.get(path.name, 0)
    place.chmod(0o700)
    soon(lambda: is_empty(daemon.inbox), seconds=60)
    soon(lambda: daemon.log(over))
    assert [1, 1] == [len(daemon.log(each)) for each in (event, over)]
    assert 2 == len(daemon.log("file_ingested"))
    assert [("completed", 4)] * 2 == [job[1:] for job in states_on(url)]
    assert sound(url)
    did(f"{closed} of mode {mode:04o} for 2 s, as uid {commoner.uid}; 1 file beside it")
