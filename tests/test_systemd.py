"""What the daemon tells systemd, heard on a real socket, from the real command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from ingestd.standing import Standing
from ingestd.systemd import Systemd

from .conftest import Databases, Did, PostgreSQL, Voting, csv_of
from .oracle import unsound
from .proxy import proxy_before
from .running import environment, is_empty, open_sessions, soon

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "ingestd.cli", "run")
# The daemon, which hangs as soon as it has read a batch.
HANGING = """
import os, pathlib, time
from ingestd.config import load_settings
from ingestd.daemon import run
from ingestd.systemd import Systemd
def hang(step):
    if step == "read":
        pathlib.Path(os.environ["INGESTD_WATCH__INBOX"]).with_name("hangs").touch()
        time.sleep(1000)
run(load_settings(), on_step=hang, systemd=Systemd.of(os.environ))
"""


@dataclass
class Ear:
    """A socket as systemd has one; a thread empties it, since the kernel keeps ten messages."""

    path: str
    told: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    _socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        """Listen."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.path[1:]}" if self.path.startswith("@") else self.path)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while message := self._socket.recv(65536).decode():
            pairs = (line.split("=", 1) for line in message.split("\n"))
            self.told.append((time.monotonic(), dict(pairs)))

    def close(self) -> None:
        """Hear no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.sendto(b"", self._socket.getsockname())
        self._socket.close()

    def all(self, name: str) -> list[str]:
        """Every value of a variable, in the order in which they came."""
        return [message[name] for _, message in list(self.told) if name in message]

    def since(self, moment: float, name: str) -> int:
        """How often a variable came after a moment."""
        return sum(at > moment and name in message for at, message in list(self.told))

    def names(self) -> list[str]:
        """The variables in the order in which they came, without what is told all the time."""
        chatter = {"STATUS", "WATCHDOG", "EXTEND_TIMEOUT_USEC", "MONOTONIC_USEC"}
        return [name for _, message in list(self.told) for name in message if name not in chatter]


class Serve(Protocol):
    """Starts `ingestd run` as systemd would."""

    def __call__(
        self, url: str, *, command: Sequence[str] = COMMAND, **more: str
    ) -> subprocess.Popen[str]:
        """Start it."""


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Listens where the daemon talks to systemd."""
    # Not under tmp_path: the path of a Unix socket is 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ingestd-", dir="/tmp") as folder:
        ear = Ear(f"{folder}/notify")
        yield ear
        ear.close()


@contextmanager
def serving(folder: Path, ear: Ear) -> Iterator[Serve]:
    """Ends what it started."""
    started: list[subprocess.Popen[str]] = []
    (folder / "inbox").mkdir(exist_ok=True)

    def serve(url: str, *, command: Sequence[str] = COMMAND, **more: str) -> subprocess.Popen[str]:
        usual = {
            "NOTIFY_SOCKET": ear.path,
            "WATCHDOG_USEC": "1000000",
            "INGESTD_WATCH__SETTLE_SECONDS": "0.2",
            "INGESTD_WATCH__POLL_SECONDS": "0.3",
        }
        with (folder / "log.jsonl").open("a") as errors:
            started.append(
                subprocess.Popen(
                    command,
                    env=environment(folder, url, **usual | more),
                    stderr=errors,
                    text=True,
                )
            )
        return started[-1]

    try:
        yield serve
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def serve(tmp_path: Path, ear: Ear) -> Iterator[Serve]:
    """Starts the daemon in the folder of this test."""
    with serving(tmp_path, ear) as serve:
        yield serve


def ended(process: subprocess.Popen[str]) -> int:
    """Its exit status after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=30)


def test_a_life_is_told_from_ready_to_stopping(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """READY after the first look, the watchdog fed, a status for a person, STOPPING at the end."""
    process = serve(sqlite_url)
    soon(lambda: ear.all("READY"))
    (tmp_path / "inbox" / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 3)))
    soon(lambda: is_empty(tmp_path / "inbox"))
    soon(lambda: "nothing queued; 1 taken" in ear.all("STATUS")[-1])
    fed = len(ear.all("WATCHDOG"))
    soon(lambda: len(ear.all("WATCHDOG")) > fed + 2)
    assert 0 == ended(process)
    soon(lambda: ear.all("STOPPING"))
    assert ["READY", "STOPPING"] == ear.names()
    assert ["80000000"] == ear.all("EXTEND_TIMEOUT_USEC")[-1:]


def test_ready_is_not_told_before_the_database_answers(
    ear: Ear, databases: Databases, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    """Meanwhile the status says what is missing, and each try asks for more time to start."""
    with (
        databases.fresh("postgresql") as url,
        proxy_before(postgresql.socket_folder) as proxy,
        serving(tmp_path, ear) as serve,
    ):
        proxy.hang()
        process = serve(proxy.url(url))
        soon(lambda: "waiting for the database" in "".join(ear.all("STATUS")))
        soon(lambda: len(ear.all("EXTEND_TIMEOUT_USEC")) > 1)
        assert [] == ear.all("READY")
        proxy.go_on()
        soon(lambda: ear.all("READY"))
        assert 0 == ended(process)


def test_ready_does_not_wait_for_the_files_that_are_there(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """A file that takes hours is work, not a start."""
    path = tmp_path / "inbox" / voting.name(8)
    path.write_bytes(csv_of(voting.ballots(8, 3)))
    path.with_name(f"{path.name}.done").touch()  # complete at the first look
    serve(sqlite_url, command=[sys.executable, "-c", HANGING])
    soon((tmp_path / "hangs").exists)
    soon(lambda: ["READY"] == ear.names())
    assert path.exists()


def test_a_long_file_feeds_the_watchdog_and_tells_how_far_it_is(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """Many batches, one turn of the loop."""
    path = tmp_path / "inbox" / voting.name(8)
    path.write_bytes(csv_of(voting.ballots(8, 3_000)))
    process = serve(sqlite_url, INGESTD_INGEST__BATCH_ROWS="5", WATCHDOG_USEC="200000")
    soon(lambda: any(status.endswith(" %") for status in ear.all("STATUS")), seconds=40)
    status = next(status for status in ear.all("STATUS") if status.endswith(" %"))
    assert f"1 queued, reading {path.name[-60:]}" in status.replace("…", "")
    fed = len(ear.all("WATCHDOG"))
    soon(lambda: len(ear.all("WATCHDOG")) > fed + 3)
    assert path.exists(), "it was read before the watchdog could be heard"
    assert 0 == ended(process)
    assert "stopping; 1 queued, reading" in ear.all("STATUS")[-1] or ear.all("STOPPING")


def test_a_database_that_says_nothing_starves_the_watchdog(
    ear: Ear, databases: Databases, postgresql: PostgreSQL, tmp_path: Path, voting: Voting
) -> None:
    """No thread of its own feeds it: whoever waits for an answer gives no sign of life."""
    with (
        databases.fresh("postgresql") as url,
        proxy_before(postgresql.socket_folder) as proxy,
        serving(tmp_path, ear) as serve,
    ):
        process = serve(proxy.url(url))
        soon(lambda: ear.all("READY"))
        proxy.hang()
        time.sleep(1.5)  # what was on its way has come
        silent = time.monotonic()
        time.sleep(2)
        assert 0 == ear.since(silent, "WATCHDOG")
        proxy.go_on()
        soon(lambda: ear.since(silent, "WATCHDOG") > 2)
        (tmp_path / "inbox" / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 3)))
        soon(lambda: is_empty(tmp_path / "inbox"))
        assert 0 == ended(process)
        with open_sessions(url) as sessions:
            assert [] == unsound(sessions)


def test_a_loop_that_hangs_starves_the_watchdog(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """Also while other threads, such as the watcher's, go on."""
    serve(sqlite_url, command=[sys.executable, "-c", HANGING])
    soon(lambda: ear.all("READY"))
    (tmp_path / "inbox" / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 3)))
    soon((tmp_path / "hangs").exists)
    silent = time.monotonic()
    time.sleep(2)
    assert 0 == ear.since(silent, "WATCHDOG")


def test_what_the_watchdog_ends_says_where_it_hung(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path
) -> None:
    """It sends SIGABRT; the log shows what every thread was doing."""
    process = serve(sqlite_url)
    soon(lambda: ear.all("READY"))
    process.send_signal(signal.SIGABRT)
    assert -signal.SIGABRT == process.wait(timeout=20)
    log = (tmp_path / "log.jsonl").read_text()
    assert "most recent call first" in log
    assert "daemon.py" in log


def test_an_inbox_that_is_away_is_said_and_no_reason_for_the_watchdog(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path
) -> None:
    """The loop knows what it waits for; how long it may is a setting of its own."""
    process = serve(sqlite_url)
    soon(lambda: ear.all("READY"))
    (tmp_path / "inbox").rename(tmp_path / "elsewhere")
    soon(lambda: "waiting for the inbox" in ear.all("STATUS")[-1])
    away = time.monotonic()
    soon(lambda: ear.since(away, "WATCHDOG") > 2)
    (tmp_path / "elsewhere").rename(tmp_path / "inbox")
    soon(lambda: ear.all("STATUS")[-1] == "nothing queued")
    assert 0 == ended(process)


def test_a_reload_is_told_and_what_is_wrong_with_it_stays_in_the_status(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path
) -> None:
    """RELOADING with its moment, then READY; so too with a configuration that is refused."""
    config = tmp_path / "ingestd.toml"
    config.write_text("[ingest]\nbatch_rows = 7\n")
    process = serve(sqlite_url, INGESTD_CONFIG=str(config))
    soon(lambda: ["READY"] == ear.names())
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    process.send_signal(signal.SIGHUP)
    soon(lambda: ["READY", "RELOADING", "READY"] == ear.names())
    assert before < int(ear.all("MONOTONIC_USEC")[0])
    config.write_text("[ingest]\nbatch_rows = 'many'\n")
    process.send_signal(signal.SIGHUP)
    soon(lambda: ["READY", *["RELOADING", "READY"] * 2] == ear.names())
    soon(lambda: "the new configuration was refused" in ear.all("STATUS")[-1])
    config.write_text("")
    process.send_signal(signal.SIGHUP)
    soon(lambda: ear.all("STATUS")[-1] == "nothing queued")
    assert 0 == ended(process)


@pytest.mark.promise(29)
def test_a_reload_with_a_folder_that_cannot_be_made_keeps_the_old_configuration(
    serve: Serve, ear: Ear, sqlite_url: str, tmp_path: Path, did: Did
) -> None:
    """A typing mistake in a path ends no daemon."""
    config = tmp_path / "ingestd.toml"
    config.write_text("")
    process = serve(sqlite_url, INGESTD_CONFIG=str(config))
    soon(lambda: ear.all("READY"))
    (tmp_path / "file").touch()
    config.write_text(f"[watch]\ninbox = '{tmp_path}/file/inbox'\n")
    process.send_signal(signal.SIGHUP)
    soon(lambda: 2 == len(ear.all("READY")))
    assert 0 == ended(process)
    did("1 SIGHUP, a folder that cannot be made")


def test_an_abstract_socket_is_understood() -> None:
    """A name that begins with @ is in no folder; containers use it."""
    ear = Ear(f"@ingestd-test-{os.getpid()}")
    Systemd(ear.path).ready()
    soon(lambda: ear.names() == ["READY"])
    ear.close()


def test_a_status_cannot_forge_a_message() -> None:
    """A file's name is hostile: no line end in it begins another variable."""
    ear = Ear(f"@ingestd-test-forged-{os.getpid()}")
    Systemd(ear.path).status("reading x\nREADY=1\x1b[31m")
    soon(lambda: ear.told)
    assert ["reading x\\nREADY=1\\x1b[31m"] == ear.all("STATUS")
    assert [] == ear.names()
    ear.close()


def test_nobody_listens_and_nothing_breaks() -> None:
    """Outside of systemd, and where its socket is gone."""
    for systemd in (Systemd(), Systemd("/nowhere/notify", 1)):
        systemd.ready()
        systemd.status("fine")
        systemd.alive()


def test_the_watchdog_of_another_process_is_none_of_ours() -> None:
    """A shell between systemd and the daemon hands down what was meant for itself."""
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}
    assert Systemd("/x", 0) == Systemd.of(dict(environment))
    ours = environment | {"WATCHDOG_PID": str(os.getpid())}
    assert Systemd("/x", 5) == Systemd.of(ours)
    assert {} == ours


def test_a_standing_says_what_a_person_wants_to_know() -> None:
    """In the words of the issue."""
    standing = Standing()
    assert "nothing queued" == standing.sentence()
    standing.looked(12, 0)
    standing.begin("x.csv")
    standing.read("x.csv", 43, 100)
    assert "12 queued, reading x.csv 43 %" == standing.sentence()
    standing.end("x.csv", is_taken=True)
    standing.looked(0, 2)
    assert "nothing queued; 1 taken, the last x.csv; 2 held up (see the log)" == standing.sentence()
    standing.lacks("the database", OSError("postgresql://u:secret@h/d\nrefused"))
    assert "waiting for the database: postgresql://u:***@h/d refused" == standing.sentence()
