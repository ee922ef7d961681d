"""Discovery cannot go deaf: the real program, its events taken away in every way that is known.

These tests run on watchdog 6.0 and on 7.1; what the two do differently must not show.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from ingestd.daemon import GAVE_UP
from ingestd.pipeline.events import PAIRED_WITHIN_SECONDS, PAIRING, Watcher
from ingestd.pipeline.watch import SENTINEL, look_at

from .conftest import Did, Voting, csv_of, zip_of
from .oracle import unsound
from .running import (
    SETTLE_SECONDS,
    Running,
    Start,
    is_empty,
    jobs_on,
    open_sessions,
    soon,
    states_on,
)

PROBE_SECONDS = 1.0
PROBED = str(PROBE_SECONDS)
# So long that a writer on a machine at its limits is not taken for one that has ended.
PATIENT_SECONDS = 2.0


def stays_sound(url: str) -> bool:
    """Whether the books and tables agree."""
    with open_sessions(url) as sessions:
        return unsound(sessions) == []


def hour_of(voting: Voting, inbox: Path, hour: int) -> Path:
    """Drop an hour of four rows."""
    path = inbox / voting.name(hour)
    path.write_bytes(csv_of(voting.ballots(hour, 2)))
    return path


# Arriving -----------------------------------------------------------------------------------

Way = Callable[[Path, str, bytes, Path], None]


def copied(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """Cp."""
    (outside / name).write_bytes(content)
    shutil.copyfile(outside / name, inbox / name)


def moved(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """Mv from the same file system."""
    (outside / name).write_bytes(content)
    (outside / name).rename(inbox / name)


def linked(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """A hard link."""
    (outside / name).write_bytes(content)
    (inbox / name).hardlink_to(outside / name)


def renamed_from(pattern: str) -> Way:
    """Write under a name that says so, slower than the settle time, then rename."""

    def way(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
        partial = inbox / pattern.format(name)
        with partial.open("wb", buffering=0) as stream:
            stream.write(content[:-7])
            time.sleep(1.5 * PATIENT_SECONDS)
            stream.write(content[-7:])
        partial.rename(inbox / name)

    return way


def in_new_folders(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """Mkdir -p, and write at once."""
    folder = inbox / "90 - Край" / "Выборы" / "Округ №1_3"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


def folder_moved_in(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """A whole folder, moved in."""
    (outside / "folder").mkdir()
    (outside / "folder" / name).write_bytes(content)
    (outside / "folder").rename(inbox / "folder")


def into_a_folder_that_was_moved_in(inbox: Path, name: str, content: bytes, outside: Path) -> None:
    """Later, too: watchdog 6 never watches such a folder."""
    (outside / "empty").mkdir()
    (outside / "empty").rename(inbox / "empty")
    time.sleep(SETTLE_SECONDS)
    (inbox / "empty" / name).write_bytes(content)


def written_slowly(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """A line at a time, each sooner than the settle time after the one before."""
    with (inbox / name).open("wb", buffering=0) as stream:
        for line in content.splitlines(keepends=True):
            stream.write(line)
            time.sleep(PATIENT_SECONDS / 6)


def held_open(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """The writer says nothing for several times the settle time, but holds the file open."""
    middle = content.index(b"\n") + 1
    with (inbox / name).open("wb", buffering=0) as stream:
        stream.write(content[:middle])
        time.sleep(2 * PATIENT_SECONDS)
        stream.write(content[middle:])


def opened_again_and_again(inbox: Path, name: str, content: bytes, _outside: Path) -> None:
    """A writer that closes the file after each line."""
    for line in content.splitlines(keepends=True):
        with (inbox / name).open("ab") as stream:
            stream.write(line)
        time.sleep(PATIENT_SECONDS / 6)


WAYS: dict[str, Way] = {
    "cp": copied,
    "mv": moved,
    "ln": linked,
    "tmp + rename": renamed_from("{}.tmp"),
    "rsync": renamed_from(".{}.x7Yz0q"),
    ".part": renamed_from("{}.part"),
    ".filepart": renamed_from("{}.filepart"),
    "mkdir -p && write": in_new_folders,
    "mv of a folder": folder_moved_in,
    "write into a folder that was moved in": into_a_folder_that_was_moved_in,
    "slow writer": written_slowly,
    "held open": held_open,
    "open-close-open": opened_again_and_again,
}


@pytest.mark.promise(7, 8)
@pytest.mark.parametrize("events", ["auto", "never"])
def test_every_way_of_arriving_gives_one_job(
    start: Start, sqlite_url: str, tmp_path: Path, did: Did, events: str
) -> None:
    """And all of its rows: nothing is read early, nothing is missed, nothing is read twice."""
    settle = str(PATIENT_SECONDS)
    daemon = start(WATCH__EVENTS=events, WATCH__SETTLE_SECONDS=settle, WATCH__PROBE_SECONDS=PROBED)
    votings = {way: Voting(Random(way)) for way in WAYS}
    with ThreadPoolExecutor(len(WAYS)) as writers:
        for number, (way, arrive) in enumerate(WAYS.items()):
            outside = tmp_path / f"outside-{number}"
            outside.mkdir()
            content = csv_of(votings[way].ballots(8, 5))
            writers.submit(arrive, daemon.inbox, votings[way].name(8), content, outside)
    soon(lambda: is_empty(daemon.inbox))
    time.sleep(PATIENT_SECONDS)
    way_of = {voting.contract: way for way, voting in votings.items()}
    jobs = jobs_on(sqlite_url)
    assert dict.fromkeys(WAYS, ("completed", 10)) == {
        way_of[job.contract_id or ""]: (job.status, job.rows_stored) for job in jobs
    }
    assert len(WAYS) == len(jobs)
    assert [] == daemon.log("file_changed_while_read")
    assert stays_sound(sqlite_url)
    did(f"{len(WAYS)} ways at once, events {events}")


def test_files_are_found_without_events(
    start_on_each: Start, migrated_url: str, voting: Voting
) -> None:
    """The full look finds all that events would have told."""
    daemon = start_on_each(WATCH__EVENTS="false")
    (daemon.inbox / "new").mkdir()
    hour_of(voting, daemon.inbox / "new", 8)
    (daemon.inbox / "hours.zip").write_bytes(
        zip_of({voting.name(hour): csv_of(voting.ballots(hour, 2)) for hour in (9, 10)})
    )
    soon(lambda: is_empty(daemon.inbox))
    assert ["completed"] * 3 == [job.status for job in jobs_on(migrated_url)]
    assert stays_sound(migrated_url)


def test_files_that_are_there_at_the_start_are_taken(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path
) -> None:
    """Also those in folders."""
    (tmp_path / "inbox" / "folder").mkdir()
    hour_of(voting, tmp_path / "inbox", 8)
    hour_of(voting, tmp_path / "inbox" / "folder", 9)
    daemon = start_on_each()
    soon(lambda: is_empty(daemon.inbox))
    assert [("completed", 4)] * 2 == [(job[1], job[2]) for job in states_on(migrated_url)]
    assert 0 == daemon.stop()


def test_left_files_are_taken_once(start: Start, sqlite_url: str, voting: Voting) -> None:
    """With `after = leave` they stay, also through a restart."""
    daemon = start(WATCH__AFTER="leave")
    hour_of(voting, daemon.inbox, 8)
    soon(lambda: daemon.log("file_ingested"))
    daemon.stop()
    daemon = start(WATCH__AFTER="leave")
    hour_of(voting, daemon.inbox, 9)
    soon(lambda: len(daemon.log("file_ingested")) == 2)
    time.sleep(2 * SETTLE_SECONDS)
    assert 2 == len(daemon.log("file_ingested")) == len(jobs_on(sqlite_url))
    assert 2 == len(list(daemon.inbox.glob("*.csv")))


def test_an_inbox_that_is_a_link_gets_events_too(
    start: Start, voting: Voting, tmp_path: Path
) -> None:
    """Inotify does not follow links; a watch on the link itself never tells anything."""
    (tmp_path / "inbox").rename(tmp_path / "real")
    (tmp_path / "inbox").symlink_to("real")
    daemon = start(WATCH__PROBE_SECONDS=PROBED)
    hour_of(voting, daemon.inbox, 8)
    soon(lambda: daemon.log("file_ingested"))
    daemon.stop()
    (heard,) = daemon.log("events_summary")
    assert heard["events"] > 0 == heard["rebuilds"]


# Overflow -----------------------------------------------------------------------------------


def flood(inbox: Path, voting: Voting, files: int) -> None:
    """Empty hours of strangers, and a day of real ones among them."""
    contracts = (Voting(Random(number)).contract for number in count())
    names = (
        f"{contract}_2024-09-{day:02}_{hour:02}00-{hour + 1:02}00.csv"
        for contract in contracts
        for day in range(1, 29)
        for hour in range(23)
    )
    for _ in range(files - 20):
        (inbox / next(names)).touch()
    for hour in range(20):
        hour_of(voting, inbox, hour)


def overflow(daemon: Running, voting: Voting, files: int) -> None:
    """Stop the program, drop more than the queue of the kernel holds, let it go on."""
    daemon.process.send_signal(signal.SIGSTOP)
    flood(daemon.inbox, voting, files)
    daemon.process.send_signal(signal.SIGCONT)
    soon(lambda: daemon.log("events_overflowed"), seconds=180)
    soon(lambda: daemon.log("events_overflow_over"), seconds=180)


@pytest.mark.promise(5)
def test_an_overflow_of_events_loses_nothing(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """20 000 files at once: all are found by the look, the overflow is counted and said once.

    They must not settle here, since to take them all is a matter of minutes; the next start
    takes those that hold rows.
    """
    daemon = start(WATCH__SETTLE_SECONDS="3600", WATCH__PROBE_SECONDS="2")
    overflow(daemon, voting, 20_000)
    assert 0 == daemon.stop()
    assert 20_000 == daemon.log("stopped")[0]["waiting"]
    (said,), (summed,) = daemon.log("events_overflowed"), daemon.log("events_overflow_over")
    (heard,) = daemon.log("events_summary")
    assert heard["overflows"] >= 1
    assert 1 <= said["missed"] <= summed["missed"] <= heard["missed"] < 20_000
    for path in daemon.inbox.iterdir():
        if path.stat().st_size == 0:
            path.unlink()
    start()
    soon(lambda: is_empty(tmp_path / "inbox"))
    assert [("completed", 4)] * 20 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    did(f"SIGSTOP, 20 000 files, SIGCONT; {heard['missed']} missed by events", overflows=1)


@pytest.mark.campaign
@pytest.mark.promise(5)
def test_all_files_of_an_overflow_are_taken(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """20 000 files at once, and each has a job in the end."""
    daemon = start(WATCH__PROBE_SECONDS="2")
    daemon.process.send_signal(signal.SIGSTOP)
    flood(daemon.inbox, voting, 20_000)
    daemon.process.send_signal(signal.SIGCONT)
    soon(lambda: is_empty(daemon.inbox), seconds=3_000)
    assert daemon.log("events_overflowed")
    assert ["completed"] * 20_000 == [job.status for job in jobs_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    did("SIGSTOP, 20 000 files, SIGCONT; all taken", files=20_000)


# Deaf ---------------------------------------------------------------------------------------

_PIDFD_GETFD = 438
libc = ctypes.CDLL(None, use_errno=True)


def inotifies(pid: int) -> list[Path]:
    """What the kernel says of each inotify of a process: proc_pid_fdinfo(5)."""
    found = []
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if "inotify" in str(handle.readlink()):
                found.append(Path(f"/proc/{pid}/fdinfo", handle.name))
    return found


def is_listened_to(folder: Path, pid: int) -> bool:
    """Whether the kernel tells a process what happens in a folder."""
    watched = f" ino:{folder.stat().st_ino:x} "
    return any(watched in info.read_text(encoding="ascii") for info in inotifies(pid))


def deafen(pid: int) -> int:
    """Take all watches from a running program, as if the kernel had; how many."""
    process = os.pidfd_open(pid)
    taken = 0
    for info in inotifies(pid):
        handle = libc.syscall(_PIDFD_GETFD, process, int(info.name), 0)
        assert handle >= 0, os.strerror(ctypes.get_errno())
        for line in info.read_text(encoding="ascii").splitlines():
            if line.startswith("inotify wd:"):
                number = int(line.removeprefix("inotify wd:").split(" ")[0], 16)
                taken += libc.inotify_rm_watch(handle, number) == 0
        os.close(handle)
    os.close(process)
    return taken


def reasons(daemon: Running, event: str) -> list[str]:
    """Why the events failed, or came back."""
    return [line["reason"] for line in daemon.log(event)]


@pytest.mark.promise(6)
def test_a_deaf_watcher_is_noticed_and_built_anew(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """Threads alive, watches gone: only the probe can tell. Files are found all the while."""
    daemon = start(WATCH__PROBE_SECONDS="1")
    (daemon.inbox / "folder").mkdir()
    soon(lambda: is_listened_to(daemon.inbox / "folder", daemon.process.pid))
    assert deafen(daemon.process.pid) >= 2
    hour_of(voting, daemon.inbox, 8)
    soon(lambda: "probe_unanswered" in reasons(daemon, "events_failed"))
    soon(lambda: "probe_unanswered" in reasons(daemon, "events_back"))
    hour_of(voting, daemon.inbox / "folder", 9)
    soon(lambda: is_empty(daemon.inbox))
    assert [("completed", 4)] * 2 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    daemon.stop()
    (heard,) = daemon.log("events_summary")
    assert heard["probes_missed"] >= 2
    assert heard["rebuilds"] >= 1
    did("all watches taken from the running program", faults=1)


@pytest.mark.promise(6)
def test_an_inbox_that_was_replaced_is_listened_to_anew(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Renamed with another in its place; removed and made again; renamed and brought back."""
    daemon = start(WATCH__PROBE_SECONDS=PROBED)

    def came_back(times: int) -> bool:
        return len(daemon.log("events_back")) >= times

    daemon.inbox.rename(tmp_path / "old")
    daemon.inbox.mkdir()
    soon(lambda: came_back(1))
    hour_of(voting, daemon.inbox, 8)
    soon(lambda: is_empty(daemon.inbox))

    daemon.inbox.rmdir()
    soon(lambda: daemon.log("inbox_away"))
    time.sleep(2 * SETTLE_SECONDS)
    assert not daemon.inbox.exists()
    daemon.inbox.mkdir()
    soon(lambda: came_back(2))
    hour_of(voting, daemon.inbox, 9)
    soon(lambda: is_empty(daemon.inbox))

    daemon.inbox.rename(tmp_path / "elsewhere")
    soon(lambda: len(daemon.log("inbox_away")) == 2)
    hour_of(voting, tmp_path / "elsewhere", 10)
    (tmp_path / "elsewhere").rename(daemon.inbox)
    soon(lambda: is_empty(daemon.inbox))
    soon(lambda: len(daemon.log("inbox_back")) == 2)

    assert daemon.log("inbox_back")[0]["away_seconds"] >= 2 * SETTLE_SECONDS
    assert 2 == len(daemon.log("inbox_away"))
    assert [("completed", 4)] * 3 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    did("inbox replaced, removed and made again, renamed and brought back", faults=3)


@pytest.mark.promise(6)
def test_an_inbox_that_stays_away_ends_the_program(start: Start, tmp_path: Path, did: Did) -> None:
    """With a status of its own and a reason; the inbox is not made anew."""
    daemon = start(WATCH__GIVE_UP_SECONDS="1")
    daemon.inbox.rename(tmp_path / "old")
    assert GAVE_UP == daemon.ended()
    (said,) = daemon.log("gave_up")
    assert (GAVE_UP, str(daemon.inbox)) == (said["status"], said["path"])
    assert 1 == len(daemon.log("inbox_away"))
    assert not daemon.inbox.exists()
    did("inbox renamed for longer than give_up_seconds", faults=1)


# A watcher in this process: what takes a program minutes, or cannot be done to it from outside ----


class Listening:
    """A watcher and the looks at its inbox."""

    def __init__(self, root: Path) -> None:
        """Begin, with an empty inbox."""
        self.root = root
        self.watcher = Watcher(root, wanted="auto", probe_seconds=PROBE_SECONDS)
        self.later = 0.0

    def look(self) -> None:
        """Look once."""
        self.watcher.wakeup.begin_look()
        self.watcher.attend(look_at(self.root, (".*",), set()), time.monotonic() + self.later)

    def look_until(self, holds: Callable[[], object]) -> None:
        """Look until something holds."""

        def look_and_ask() -> object:
            self.look()
            return holds()

        soon(look_and_ask)

    def wait(self, seconds: float) -> None:
        """Let time pass for the watcher."""
        self.later += seconds

    def has_probed(self, times: int) -> Callable[[], bool]:
        """Whether so many more sentinels were sent and heard."""
        wanted = self.watcher.heard.probes + times
        return lambda: self.watcher.heard.probes >= wanted


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    """A watcher that has heard its first sentinels."""
    (tmp_path / "inbox").mkdir()
    listening = Listening(tmp_path / "inbox")
    listening.look_until(listening.has_probed(2))
    yield listening
    listening.watcher.stop()


@pytest.mark.promise(6)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, did: Did
) -> None:
    """A handler that raises ends watchdog's thread."""
    wakeup = listening.watcher.wakeup

    def broken(_event: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(wakeup, "on_any_event", broken)
        (listening.root / "a.csv").touch()
        listening.look_until(lambda: any(line["event"] == "events_failed" for line in logs))
    assert "thread_died" == logs[0]["reason"]
    listening.look_until(listening.has_probed(2))
    assert listening.watcher.heard.rebuilds >= 1
    wakeup.woken.clear()
    (listening.root / "b.csv").touch()
    assert wakeup.woken.wait(60)
    did("a handler that raises", faults=1)


@pytest.mark.promise(6)
def test_a_folder_that_was_moved_in_is_listened_to(
    listening: Listening, tmp_path: Path, did: Did
) -> None:
    """Watchdog 6 does not watch it; the observer is built anew."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new").rename(listening.root / "new")
    listening.look_until(lambda: is_listened_to(listening.root / "new", os.getpid()))
    listening.look_until(listening.has_probed(2))
    assert is_listened_to(listening.root / "new", os.getpid())
    did("an empty folder moved in", faults=1)


@pytest.mark.promise(6)
def test_a_watcher_that_stays_deaf_gives_way_to_looking(listening: Listening, did: Did) -> None:
    """It is built anew a few times, then seldom; said once, and said when it is over."""
    handles = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    watcher = listening.watcher
    with capture_logs() as logs:

        def said(event: str) -> int:
            return sum(line["event"] == event for line in logs)

        def is_alone() -> bool:
            deafen(os.getpid())
            listening.wait(PROBE_SECONDS)
            return not watcher.heard.is_listening

        def is_tried_again() -> bool:
            if not watcher.heard.is_listening:
                listening.wait(10)
            return watcher.heard.is_listening

        listening.look_until(is_alone)
        assert (1, 1) == (said("events_failed"), said("watching_without_events"))
        for _ in range(2):
            listening.look_until(is_tried_again)
            listening.look_until(is_alone)
        assert (1, 1, 0) == tuple(
            said(event) for event in ("events_failed", "watching_without_events", "events_back")
        )
        listening.look_until(is_tried_again)
        listening.look_until(lambda: said("events_back"))
    soon(
        lambda: (
            (handles, threads)
            == (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
        )
    )
    did("deafened after every rebuild", faults=watcher.heard.rebuilds)


def test_sentinels_leave_nothing_behind_and_are_no_files(listening: Listening) -> None:
    """Nobody who lists the inbox should wonder about them."""
    listening.look_until(listening.has_probed(3))
    assert [] == list(listening.root.iterdir())
    (listening.root / f"{SENTINEL}-of-a-program-that-was-killed").touch()
    odd: set[str] = set()
    assert [] == look_at(listening.root, (), odd).files
    assert set() == odd


def test_no_event_is_held_back_for_long(listening: Listening) -> None:
    """Each file that goes to the archive is half a rename, for which watchdog keeps all waiting."""
    assert listening.watcher.heard.is_listening
    held_back = [
        getattr(import_module(module), name).delay for module, name in PAIRING if find_spec(module)
    ]
    assert [PAIRED_WITHIN_SECONDS] == held_back


# Limits and rights --------------------------------------------------------------------------

IN_A_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec")


def first(command: str) -> tuple[str, ...]:
    """Run a command in a user and mount namespace of its own, and then the program there."""
    return (*IN_A_NAMESPACE, f'{command}; exec "$@"', "sh")


def enter(daemon: Running, *command: str) -> None:
    """Run a command where a daemon in a namespace lives."""
    inside = ("nsenter", f"--target={daemon.process.pid}", "--user", "--mount")
    subprocess.run([*inside, "--preserve-credentials", *command], check=True)


@pytest.mark.promise(28)
@pytest.mark.parametrize(
    ("limit", "folders"),
    [("max_inotify_instances=0", 1), ("max_inotify_watches=5", 20)],
    ids=["instances", "watches"],
)
def test_a_limit_of_inotify_at_the_start_means_looking_alone(
    start: Start, sqlite_url: str, tmp_path: Path, did: Did, limit: str, folders: int
) -> None:
    """It is said once, with what to do; every file is found."""
    votings = [Voting(Random(number)) for number in range(folders)]
    for voting in votings:
        (tmp_path / "inbox" / voting.contract).mkdir()
    name, number = limit.split("=")
    daemon = start(
        under=first(f"echo {number} > /proc/sys/user/{name}"), WATCH__PROBE_SECONDS=PROBED
    )
    for voting in votings:
        hour_of(voting, daemon.inbox / voting.contract, 8)
    soon(lambda: is_empty(daemon.inbox))
    (said,) = daemon.log("watching_without_events")
    assert said["advice"].startswith(f"raise fs.inotify.{name.replace('inotify', 'user')}")
    assert [("completed", 4)] * folders == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    did(f"{name} = {number}, {folders} folders", files=folders)


@pytest.mark.promise(28)
def test_a_limit_of_inotify_that_is_met_later_means_looking_alone(
    start: Start, sqlite_url: str, did: Did
) -> None:
    """Watchdog says nothing of folders that it cannot watch."""
    limit = first("echo 5 > /proc/sys/user/max_inotify_watches")
    daemon = start(under=limit, WATCH__PROBE_SECONDS=PROBED)
    for number in range(20):
        voting = Voting(Random(number))
        (daemon.inbox / voting.contract).mkdir()
        hour_of(voting, daemon.inbox / voting.contract, 8)
    soon(lambda: is_empty(daemon.inbox))
    soon(lambda: daemon.log("watching_without_events"))
    time.sleep(4 * PROBE_SECONDS)
    (said,) = daemon.log("watching_without_events")
    assert "raise fs.inotify.max_user_watches" == said["advice"]
    assert ["folder_unwatched"] == reasons(daemon, "events_failed")
    assert [("completed", 4)] * 20 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    did("max_inotify_watches = 5, 20 folders made later", files=20)


@pytest.mark.promise(28)
def test_a_network_file_system_is_looked_at_only(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Where others write the kernel tells nothing; it is said once, and the files are found."""
    (tmp_path / "far").mkdir()
    server = (sys.executable, "-m", "tests.far_folder", str(tmp_path / "inbox"))
    inside = (*IN_A_NAMESPACE[:-2], *server, str(tmp_path / "far"))
    daemon = start(under=inside, WATCH__AFTER="leave", WATCH__PROBE_SECONDS=PROBED)
    (said,) = daemon.log("scanning_only")
    assert "fuse.far" == said["file_system"]
    hour_of(voting, tmp_path / "far", 8)
    soon(lambda: daemon.log("file_ingested"))
    assert [(voting.name(8), "completed", 4)] == states_on(sqlite_url)
    assert [] == daemon.log("watching_without_events") + daemon.log("cannot_probe")
    daemon.stop()
    (heard,) = daemon.log("events_summary")
    assert (False, 0, 0) == (heard["is_listening"], heard["events"], heard["probes"])
    did("a file written behind a FUSE mount", files=1)


@pytest.mark.promise(6, 27)
def test_an_inbox_that_cannot_be_read_is_waited_for(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """Said once with the uid that may not; taken up again by itself."""
    powerless = ("unshare", "--user")  # nobody's rights, also where the tests run as root
    daemon = start(under=powerless, WATCH__PROBE_SECONDS=PROBED)
    hour_of(voting, daemon.inbox, 8)
    soon(lambda: is_empty(daemon.inbox))
    daemon.inbox.chmod(0)
    soon(lambda: daemon.log("inbox_away"))
    time.sleep(2 * SETTLE_SECONDS)
    daemon.inbox.chmod(0o755)
    hour_of(voting, daemon.inbox, 9)
    soon(lambda: daemon.log("inbox_back"))
    soon(lambda: is_empty(daemon.inbox))
    (said,) = daemon.log("inbox_away")
    assert said["uid"] != 0
    assert "Permission denied" in said["error"]
    assert [("completed", 4)] * 2 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert stays_sound(sqlite_url)
    did("chmod 000 on the inbox", faults=1)


@pytest.mark.promise(27)
def test_an_inbox_that_may_not_be_written_is_not_probed(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Said once; its files are found as ever."""
    inbox = hour_of(voting, tmp_path / "inbox", 8).parent
    inbox.chmod(0o555)
    daemon = start(under=("unshare", "--user"), WATCH__AFTER="leave", WATCH__PROBE_SECONDS=PROBED)
    soon(lambda: daemon.log("file_ingested"))
    time.sleep(3 * PROBE_SECONDS)
    inbox.chmod(0o755)
    assert 1 == len(daemon.log("cannot_probe"))
    assert [] == daemon.log("events_failed")
    assert [(voting.name(8), "completed", 4)] == states_on(sqlite_url)
    assert stays_sound(sqlite_url)
    did("chmod 555 on the inbox", faults=1)


@pytest.mark.promise(6, 32)
def test_a_disk_that_is_missing_takes_no_job_away(
    start: Start, sqlite_url: str, tmp_path: Path, did: Did
) -> None:
    """Another file system lies where the inbox was: its half-read file has not vanished."""
    voting = Voting()
    (tmp_path / "inbox" / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 1_000)))
    daemon = start(wait=False, INGEST__BATCH_ROWS="50", TEST__FREEZE_AT="stored:2")
    daemon.wait_until_frozen().kill()
    (half,) = jobs_on(sqlite_url)
    inbox = tmp_path / "inbox"
    daemon = start(under=first(f"mount -t tmpfs empty {inbox}"), WATCH__PROBE_SECONDS=PROBED)
    time.sleep(2 * SETTLE_SECONDS)
    (job,) = jobs_on(sqlite_url)
    assert (half.id, half.rows_read) == (job.id, job.rows_read)
    assert job.status in ("pending", "processing")
    enter(daemon, "umount", "--lazy", str(inbox))
    soon(lambda: is_empty(inbox))
    (job,) = jobs_on(sqlite_url)
    assert ("completed", 2_000, 2_000, 0) == (
        job.status,
        job.rows_read,
        job.rows_stored,
        job.rows_known,
    )
    assert 1 == len(daemon.log("inbox_on_another_file_system"))
    assert [] == daemon.log("file_vanished")
    assert stays_sound(sqlite_url)
    did("the disk of a half-read file missing at a restart", faults=1)


@pytest.mark.promise(32)
def test_a_file_that_is_deleted_while_it_is_read_has_vanished(
    start: Start, sqlite_url: str, did: Did
) -> None:
    """One log line, no row left, nothing stuck."""
    voting = Voting()
    daemon = start(INGEST__BATCH_ROWS="50", TEST__FREEZE_AT="stored:2")
    path = daemon.inbox / voting.name(8)
    path.write_bytes(csv_of(voting.ballots(8, 1_000)))
    daemon.wait_until_frozen()
    path.unlink()
    daemon.thaw()
    soon(lambda: [(path.name, "vanished", 0)] == states_on(sqlite_url))
    time.sleep(2 * SETTLE_SECONDS)
    told = daemon.log("file_changed_while_read") + daemon.log("file_vanished")
    assert 1 == len(told)
    hour_of(voting, daemon.inbox, 9)
    soon(lambda: is_empty(daemon.inbox))
    assert stays_sound(sqlite_url)
    did("a file deleted while it was read", faults=1)


# Clocks and odd files -----------------------------------------------------------------------


@pytest.mark.promise(13)
def test_no_clock_keeps_a_file_waiting(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """Files of 1970 and of 2400, an inode that is used again, an mtime that never changes."""
    daemon = start(WATCH__PROBE_SECONDS=PROBED)
    for hour, moment in ((5, 0), (6, 13_569_465_600), (7, -1)):
        os.utime(hour_of(voting, daemon.inbox, hour), (moment, moment))
    first_one = hour_of(voting, daemon.inbox, 8)
    inode = first_one.stat().st_ino
    first_one.unlink()
    inodes = {hour_of(voting, daemon.inbox, hour).stat().st_ino for hour in (9, 10)}
    with (daemon.inbox / voting.name(11)).open("ab") as stream:
        for line in csv_of(voting.ballots(11, 2)).splitlines(keepends=True):
            stream.write(line)
            stream.flush()
            os.utime(stream.fileno(), (1_725_600_000, 1_725_600_000))
            time.sleep(SETTLE_SECONDS / 2)
    soon(lambda: is_empty(daemon.inbox))
    names = [voting.name(hour) for hour in (5, 6, 7, 9, 10, 11)]
    assert sorted((name, "completed", 4) for name in names) == states_on(sqlite_url)
    assert stays_sound(sqlite_url)
    again = "one inode used again" if inode in inodes else "no inode used again"
    did(f"6 files: mtime 1970, 1969, 2400 and standing still; {again}", files=6)


def deep_tree(root: Path, levels: int) -> None:
    """Folders in folders, each name as long as can be."""
    handle = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 255, dir_fd=handle)
        inner = os.open("d" * 255, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


@pytest.mark.promise(20)
def test_odd_files_are_taken_or_said_once_and_never_stop_it(
    start: Start, sqlite_url: str, tmp_path: Path, did: Did
) -> None:
    """Whatever opens a pipe, follows a link, or believes in names as texts, is stopped here."""
    votings = {way: Voting(Random(way)) for way in ("bytes", "lines", "long", "last")}
    names = {way: voting.name(8).encode() for way, voting in votings.items()}
    names["bytes"] = b"\xd0\xff " + names["bytes"]
    names["lines"] = b"a\nb\x1b[31m " + names["lines"]
    names["long"] = b"x" * (254 - len(names["long"])) + b" " + names["long"]
    (tmp_path / "secret.csv").write_bytes(csv_of(votings["last"].ballots(7, 2)))
    inbox = tmp_path / "inbox"
    daemon = start(WATCH__PROBE_SECONDS=PROBED)
    os.mkfifo(inbox / "fifo.csv")
    (inbox / "link.csv").symlink_to(tmp_path / "secret.csv")
    (inbox / "dangling.csv").symlink_to("nowhere")
    (inbox / "self.csv").symlink_to("self.csv")
    (inbox / "loop").symlink_to(inbox)
    odd = ["fifo.csv", "link.csv", "dangling.csv", "self.csv", "loop", "socket.csv"]
    if os.geteuid() == 0:  # nobody else may make one
        os.mknod(inbox / "device.csv", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        odd.append("device.csv")
    deep_tree(inbox, 20)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(inbox / "socket.csv"))
        for way, voting in votings.items():
            path = inbox / os.fsdecode(names[way])
            path.write_bytes(csv_of(voting.ballots(8, 2)))
        soon(lambda: len(jobs_on(sqlite_url)) >= len(votings))
        soon(lambda: not any(os.path.lexists(inbox / os.fsdecode(name)) for name in names.values()))
        time.sleep(2 * SETTLE_SECONDS)
    assert [("completed", 4)] * 4 == [(job[1], job[2]) for job in states_on(sqlite_url)]
    assert set(names.values()) == {os.fsencode(path.name) for path in put_away(tmp_path)}
    said = [line["path"] for line in daemon.log("not_a_regular_file")]
    assert sorted(odd) == sorted(said)
    assert {1} == {
        [line["path"] for line in daemon.log("folder_not_readable")].count(path)
        for path in {line["path"] for line in daemon.log("folder_not_readable")}
    }
    assert stays_sound(sqlite_url)
    shutil.rmtree(inbox / ("d" * 255))
    did(f"{len(odd)} odd files, 3 odd names, 20 folders of 255 bytes")


@pytest.mark.promise(20)
def test_an_inbox_that_is_mounted_into_itself_is_counted_once(
    start: Start, sqlite_url: str, voting: Voting, tmp_path: Path, did: Did
) -> None:
    """Every file lies there twice; there is no end of the ways, but an end of the looks."""
    inbox = tmp_path / "inbox"
    (inbox / "again").mkdir()
    mounted = first(f"mount --bind {inbox} {inbox / 'again'}")
    daemon = start(under=mounted, WATCH__AFTER="leave", WATCH__PROBE_SECONDS=PROBED)
    hour_of(voting, inbox, 8)
    soon(lambda: len(jobs_on(sqlite_url)) == 2)
    time.sleep(3 * PROBE_SECONDS)
    jobs = jobs_on(sqlite_url)
    assert ["completed", "duplicate"] == sorted(job.status for job in jobs)
    assert 4 == sum(job.rows_stored for job in jobs)
    assert [] == daemon.log("events_failed")
    assert stays_sound(sqlite_url)
    did("a bind mount of the inbox in itself", faults=1)


def put_away(folder: Path) -> list[Path]:
    """What lies in the archive."""
    return [path for path in (folder / "archive").rglob("*") if path.is_file()]
