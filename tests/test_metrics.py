"""The local port of a real daemon: what it says is what the ledger says, whoever asks how."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select
from structlog.testing import capture_logs

from ingestd.config import ConfigError, Settings, load_settings
from ingestd.metrics import DIRECT, OTHERS, Figures, source_of
from ingestd.models import FileProcessing
from ingestd.pipeline.ledger import Books
from ingestd.pipeline.step import Step
from ingestd.pipeline.tally import STAGES, Tally
from ingestd.pipeline.worker import Told
from ingestd.port import Page, Port
from ingestd.standing import Standing

from .conftest import Databases, PostgreSQL, Voting, csv_of, zip_of
from .hook import hook_server
from .oracle import unsound
from .proxy import proxy_before
from .running import ROOT, RUN, Running, Start, is_empty, open_sessions, soon, starter
from .test_telling_daemon import lose_leases
from .test_workers import gate_before, workers_of

NOW = datetime(2024, 9, 9, 12, tzinfo=UTC)
ANYWHERE = {"METRICS__LISTEN": "127.0.0.1:0"}
# Workers from the first two files on.
TEAM = {"INGEST__WORKERS": "2", "INGEST__WORKERS_FROM_MB": "0", "INGEST__BATCH_ROWS": "20"}

Figure = tuple[str, str]
"""The name of a figure, and the value of its label if it has one."""


@dataclass
class Asked:
    """An answer of the port."""

    status: int
    text: str

    @property
    def reasons(self) -> list[str]:
        """Why it said no."""
        told: list[str] = json.loads(self.text)["reasons"]
        return told


def port_of(daemon: Running) -> int:
    """Where it listens now."""
    soon(lambda: daemon.log("port_opened"))
    return int(daemon.log("port_opened")[-1]["port"])


def ask(port: int, path: str, *, method: str = "GET") -> Asked:
    """Ask it as a stranger would."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return Asked(answer.status, answer.read().decode())
    finally:
        connection.close()


def figures_of(text: str) -> dict[Figure, float]:
    """Every figure by its name and label; of histograms the count alone."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def told_by(daemon: Running) -> dict[Figure, float]:
    """What it says now."""
    return figures_of(ask(port_of(daemon), "/metrics").text)


def drop(inbox: Path, files: Mapping[str, bytes]) -> None:
    """Put files there, each in one move, in this order."""
    for name, content in files.items():
        path = inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_bytes(content)
        partial.rename(path)


def ledger_of(url: str) -> dict[Figure, float]:
    """The same figures, added up from the jobs."""
    found: Counter[Figure] = Counter()
    with open_sessions(url) as sessions, sessions() as session:
        for job in session.scalars(select(FileProcessing)):
            status = "completed" if job.status == "superseded" else job.status
            found["ingestd_files_total", status] += 1
            if status == "completed":
                found["ingestd_bytes_total", ""] += job.size
                found["ingestd_lag_seconds_count", ""] += 1
                for name in ("stored", "known", "rollbacks", "rejected", "blank"):
                    found["ingestd_rows_total", name] += getattr(job, f"rows_{name}")
    return {figure: float(number) for figure, number in found.items() if number}


def agrees(daemon: Running, url: str) -> bool:
    """Whether it counts what the ledger holds, no more and no less."""
    names = {"ingestd_files_total", "ingestd_bytes_total", "ingestd_rows_total"}
    names.add("ingestd_lag_seconds_count")
    told = {key: value for key, value in told_by(daemon).items() if key[0] in names and value}
    return told == ledger_of(url)


def every_outcome(voting: Voting) -> dict[str, bytes]:
    """Files of which each comes to another end, in two folders and beside them."""
    eight, nine = voting.ballots(8, 30), voting.ballots(9, 40)
    return {
        f"one/{voting.name(8)}": csv_of([*eight, "", "torn"]),
        f"one/again/{voting.name(8)}": csv_of([*eight, "", "torn"]),
        f"two/{voting.name(9)}": csv_of(nine),
        f"two/more/{voting.name(9)}": csv_of([*nine, voting.issue(550)]),
        voting.name(10, ".zip"): zip_of({voting.name(10): csv_of(voting.ballots(10, 20))}),
        f"two/{voting.name(11)}": csv_of(["torn"] * 30),
        "nameless.csv": csv_of(voting.ballots(12, 1)[:1]).replace(b";", b","),
    }


# What is counted -----------------------------------------------------------------------------


def test_what_it_counts_is_what_the_ledger_holds(
    start_on_each: Start, migrated_url: str, voting: Voting
) -> None:
    """Files by outcome, rows by what became of them, bytes; the lag of each completed file."""
    daemon = start_on_each(wait=True, **ANYWHERE)
    drop(daemon.inbox, every_outcome(voting))
    soon(lambda: is_empty(daemon.inbox) and agrees(daemon, migrated_url))
    told = told_by(daemon)
    by_outcome = {label: n for (name, label), n in told.items() if name == "ingestd_files_total"}
    expected = {"completed": 4, "duplicate": 1, "quarantined": 2, "vanished": 0, "changed": 0}
    assert expected == by_outcome
    assert 1 == told["ingestd_rows_total", "rejected"]
    assert 0 == told["ingestd_queue_files", ""]
    assert 0 == told["ingestd_queue_oldest_age_seconds", ""]
    for stage in ("look", "read", "load", "count", "judge", "commit", "put_away", "scan"):
        assert 0 < told["ingestd_stage_seconds_total", stage], stage
    sources = {label for name, label in told if "source_last_success" in name}
    assert {"one", "two", DIRECT} == sources
    assert 0 < told["ingestd_disk_free_bytes", "archive"]
    assert 0 < told["process_cpu_seconds_total", ""]
    assert 10**7 < told["process_resident_memory_bytes", ""]
    assert 0 < told["ingestd_database_seconds_count", ""]
    assert 0 == daemon.stop()
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
    # After a restart a source has been silent for as long as before; counts begin at nothing.
    again = told_by(start_on_each(wait=True, **ANYWHERE))
    last = {key: value for key, value in told.items() if "source_last_success" in key[0]}
    assert last == {key: again[key] for key in last}
    assert 0 == again["ingestd_files_total", "completed"]


@pytest.fixture
def team(databases: Databases, tmp_path: Path) -> Iterator[tuple[Start, str]]:
    """Starts a daemon on PostgreSQL, where workers take the files; and the database's URL."""
    with databases.fresh("postgresql") as url, ExitStack() as stack:
        starting = starter(tmp_path, url)
        start = next(starting)
        stack.callback(lambda: next(starting, None))
        yield start, url


@pytest.mark.slow
def test_what_workers_do_is_counted_also_when_one_is_killed(
    team: tuple[Start, str],
) -> None:
    """A file is counted once, by whichever worker it was brought to its end."""
    start, url = team
    daemon = start(wait=True, **ANYWHERE, **TEAM)
    votings = [_voting(number) for number in range(4)]
    drop(daemon.inbox, {each.name(8): csv_of(each.ballots(8, 400)) for each in votings})
    soon(lambda: daemon.log("worker_started"))
    os.kill(daemon.log("worker_started")[0]["process"], signal.SIGKILL)
    soon(lambda: daemon.log("worker_died"))
    drop(daemon.inbox, {each.name(9): csv_of(each.ballots(9, 20)) for each in votings})
    soon(lambda: is_empty(daemon.inbox) and agrees(daemon, url))
    told = told_by(daemon)
    assert 1 == told["ingestd_workers_died_total", ""]
    assert 8 == told["ingestd_files_total", "completed"]
    assert 0 < told["ingestd_stage_seconds_total", "load"]
    assert 0 == daemon.stop()
    with open_sessions(url) as sessions:
        assert [] == unsound(sessions)


def _voting(number: int) -> Voting:
    voting = Voting()
    voting.rng.seed(number)
    voting.contract = voting.new_id()
    return voting


def test_a_file_that_waits_is_seen_with_its_age(start: Start, voting: Voting) -> None:
    """Also one that waits for a marker."""
    daemon = start(wait=True, **ANYWHERE, WATCH__REQUIRE_MARKER="true")
    content = csv_of(voting.ballots(8, 1))
    drop(daemon.inbox, {voting.name(8): content})
    soon(lambda: told_by(daemon)["ingestd_queue_files", ""] == 1)
    told = told_by(daemon)
    assert len(content) == told["ingestd_queue_bytes", ""]
    soon(lambda: told_by(daemon)["ingestd_queue_oldest_age_seconds", ""] > 1)


# Ready and healthy ---------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_not_ready_before_the_database_answers_but_healthy(
    databases: Databases, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    """The port answers all the time; a restart would help nobody."""
    with (
        databases.fresh("postgresql") as url,
        proxy_before(postgresql.socket_folder) as proxy,
        ExitStack() as stack,
    ):
        proxy.hang()
        starting = starter(tmp_path, proxy.url(url))
        start = next(starting)
        stack.callback(lambda: next(starting, None))
        daemon = start(wait=False, **ANYWHERE)
        port = port_of(daemon)
        soon(lambda: "waiting for the database" in "".join(ask(port, "/readyz").reasons))
        assert 503 == ask(port, "/readyz").status
        assert 200 == ask(port, "/healthz").status
        assert 0 == told_by(daemon)["ingestd_ready", ""]
        assert 0 < told_by(daemon)["ingestd_storage_faults_total", ""]
        proxy.go_on()
        soon(lambda: ask(port, "/readyz").status == 200)


def test_it_is_ready_but_while_the_inbox_is_away(start: Start) -> None:
    """And says so in JSON."""
    daemon = start(wait=True, **ANYWHERE)
    port = port_of(daemon)
    soon(lambda: ask(port, "/readyz").status == 200)
    assert {"ready": True, "reasons": []} == json.loads(ask(port, "/readyz").text)
    assert {"healthy": True, "reasons": []} == json.loads(ask(port, "/healthz").text)
    assert 1 == told_by(daemon)["ingestd_ready", ""]
    elsewhere = daemon.inbox.rename(daemon.folder / "elsewhere")
    soon(lambda: ask(port, "/readyz").status == 503)
    assert ["waiting for the inbox"] == [each[:21] for each in ask(port, "/readyz").reasons]
    elsewhere.rename(daemon.inbox)
    soon(lambda: ask(port, "/readyz").status == 200)


def test_status_says_whether_the_daemon_is_ready(start: Start, sqlite_url: str) -> None:
    """Where the settings say that it has a port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    daemon = start(wait=True, METRICS__LISTEN=listen)
    soon(lambda: daemon.log("port_opened"))
    soon(lambda: ask(port_of(daemon), "/readyz").status == 200)
    assert {"listen": listen, "is_ready": True, "reasons": []} == status_of(sqlite_url, listen)
    assert 0 == daemon.stop()
    told = status_of(sqlite_url, listen)
    assert not told["is_ready"]
    assert "no answer" in told["reasons"][0]


def status_of(url: str, listen: str) -> dict[str, Any]:
    """What `ingestd status` says of the daemon."""
    told: dict[str, Any] = screen_of(url, INGESTD_METRICS__LISTEN=listen)["daemon"]
    return told


def screen_of(url: str, **more: str) -> dict[str, Any]:
    """What `ingestd status` says."""
    done = subprocess.run(
        [sys.executable, "-m", "ingestd.cli", "--database-url", url, "status", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | more,
        capture_output=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


HANGING = """
import os, pathlib, time
from ingestd import log
from ingestd.config import load_settings
from ingestd.daemon import run
log.configure("info", "json")
def hang(step):
    if step == "read":
        time.sleep(1000)
run(load_settings(), on_step=hang)
"""


def test_a_daemon_that_hangs_is_not_healthy(
    start: Start, voting: Voting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what would have fed the watchdog; the port itself still answers."""
    monkeypatch.setattr("tests.running.RUN", HANGING)
    daemon = start(wait=False, **ANYWHERE, METRICS__SILENT_SECONDS="1")
    port = port_of(daemon)
    soon(lambda: ask(port, "/readyz").status == 200)
    drop(daemon.inbox, {voting.name(8): csv_of(voting.ballots(8, 1))})
    soon(lambda: ask(port, "/healthz").status == 503)
    (reason,) = ask(port, "/healthz").reasons
    assert reason.startswith("it came no step further for ")
    daemon.process.kill()


# As in a daemon that is patient for a second instead of a minute.
IMPATIENT = f"from ingestd.pipeline import workers\nworkers._SILENT_SECONDS = 1\n{RUN}"


@pytest.mark.slow
def test_a_daemon_of_which_a_worker_hangs_is_not_healthy(
    team: tuple[Start, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it goes on itself, and its statements are answered."""
    start, url = team
    monkeypatch.setattr("tests.running.RUN", IMPATIENT)
    daemon = start(wait=True, **ANYWHERE, **TEAM, METRICS__SILENT_SECONDS="2")
    votings = [_voting(number) for number in range(2)]
    # Both at once: for a single file no worker is started.
    (first := daemon.folder / "first").mkdir()
    for each in votings:
        (first / each.name(8)).write_bytes(csv_of(each.ballots(8, 1)))
    first.rename(daemon.inbox / "first")
    soon(lambda: is_empty(daemon.inbox) and workers_of(daemon))
    with gate_before(url, *votings) as gate:
        drop(daemon.inbox, {each.name(9): csv_of(each.ballots(9, 40)) for each in votings})
        soon(lambda: gate.waiting() == 2)
        frozen = workers_of(daemon)
        try:
            for process in frozen:
                os.kill(process, signal.SIGSTOP)
            soon(lambda: ask(port_of(daemon), "/healthz").status == 503)
        finally:  # who is frozen does not see that its daemon is gone
            for process in frozen:
                os.kill(process, signal.SIGCONT)
        gate.open()
    soon(lambda: is_empty(daemon.inbox), seconds=60)
    soon(lambda: ask(port_of(daemon), "/healthz").status == 200)
    with open_sessions(url) as sessions:
        assert [] == unsound(sessions)


# Telling people ------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_people_are_not_told_is_counted_for_each_channel(
    start_on_each: Start, migrated_url: str, voting: Voting, tmp_path: Path
) -> None:
    """What waits and for how long, until it goes; what was given up; a person sees the same."""
    config = tmp_path / "config.toml"
    with hook_server() as away, hook_server() as duty:
        channels = {"away": away.url, "duty": duty.url}

        def write(give_up_hours: float) -> None:
            told = [f'{name} = "{url}"' for name, url in channels.items()]
            lines = ["[notify]", "gather_seconds = 0", f"give_up_hours = {give_up_hours}"]
            config.write_text("\n".join([*lines, "[notify.channels]", *told]))

        write(72)
        away.answers = [503]
        daemon = start_on_each(wait=True, **ANYWHERE, CONFIG=str(config))
        drop(daemon.inbox, {voting.name(8): csv_of(["torn"] * 50)})
        soon(lambda: told_by(daemon)["ingestd_notices_total", "dutysent"] == 1)
        soon(lambda: told_by(daemon)["ingestd_notices_waiting", "away"] == 1)
        soon(lambda: told_by(daemon)["ingestd_notices_overdue_seconds", "away"] > 0)
        told = told_by(daemon)
        assert 0 < told["ingestd_notices_oldest_age_seconds", "away"]
        assert 0 == told["ingestd_notices_waiting", "duty"]
        assert 0 == told["ingestd_notices_overdue_seconds", "duty"]
        assert 0 == told["ingestd_notices_total", "awaygiven_up"]
        more = {"INGESTD_CONFIG": str(config)}
        first, second = screen_of(migrated_url, **more)["notices"]
        assert ("away", 1, 0, "answered 503") == notices_of(first)
        assert ("duty", 0, 0, None) == notices_of(second)
        write(1e-9)
        daemon.process.send_signal(signal.SIGHUP)
        soon(lambda: daemon.log("configuration_reloaded"))
        lose_leases(migrated_url)
        soon(lambda: told_by(daemon)["ingestd_notices_total", "awaygiven_up"] == 1)
        soon(lambda: told_by(daemon)["ingestd_notices_waiting", "away"] == 0)
        first, _ = screen_of(migrated_url, **more)["notices"]
        assert ("away", 0, 1, "answered 503") == notices_of(first)
        assert 0 == daemon.stop()
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)


def notices_of(channel: dict[str, Any]) -> tuple[str, int, int, str | None]:
    """What a person sees of a channel: waiting, given up, and why."""
    return channel["channel"], channel["waiting"], channel["failed"], channel["error"]


# The port ------------------------------------------------------------------------------------


def test_a_reload_moves_the_port(start: Start, tmp_path: Path) -> None:
    """And an empty setting closes it."""
    config = tmp_path / "ingestd.toml"
    config.write_text('[metrics]\nlisten = "127.0.0.1:0"\n')
    daemon = start(CONFIG=str(config))
    before = port_of(daemon)
    config.write_text('[metrics]\nlisten = "localhost:0"\n')
    daemon.process.send_signal(signal.SIGHUP)
    soon(lambda: len(daemon.log("port_opened")) == 2)
    assert 200 == ask(port_of(daemon), "/healthz").status
    assert before == port_of(daemon) or _is_closed(before)
    config.write_text("")
    daemon.process.send_signal(signal.SIGHUP)
    soon(lambda: len(daemon.log("configuration_reloaded")) == 2)
    soon(lambda: _is_closed(port_of(daemon)))


def _is_closed(port: int) -> bool:
    try:
        ask(port, "/healthz")
    except ConnectionError:
        return True
    return False


def test_a_port_that_is_taken_is_said_once_and_opened_when_it_is_free() -> None:
    """It is tried again every half a minute; whoever calls never waits or fails."""
    now = [0.0]
    port = Port({"/healthz": lambda: Page(b"yes", "text/plain")}, clock=lambda: now[0])
    with socket.create_server(("127.0.0.1", 0)) as taken, capture_logs() as logs:
        number = taken.getsockname()[1]
        port.listen_at(f"127.0.0.1:{number}")
        now[0] = 31
        port.attend()
    (said,) = logs
    assert "port_not_opened" == said["event"]
    assert "metrics.listen" in said["remedy"]
    port.attend()
    assert _is_closed(number)
    now[0] = 62
    port.attend()
    assert "yes" == ask(number, "/healthz").text
    port.close()
    assert _is_closed(number)


def test_nothing_listens_unless_it_is_asked_for() -> None:
    """Two daemons on one machine shall not quarrel about a port by default."""
    assert "" == Settings().metrics.listen


def test_a_page_that_cannot_be_made_is_answered_and_said_once_a_minute() -> None:
    """500 rather than silence, which would look like a daemon that is gone."""

    def broken() -> Page:
        raise ZeroDivisionError

    port = Port({"/metrics": broken})
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    port.listen_at(f"127.0.0.1:{number}")
    with capture_logs() as logs:
        assert [500, 500] == [ask(number, "/metrics").status for _ in range(2)]
    port.close()
    assert ["page_failed"] == [line["event"] for line in logs]


@pytest.fixture
def asked() -> Iterator[int]:
    """A port with one page."""
    port = Port({"/healthz": lambda: Page(b"yes", "text/plain")})
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    port.listen_at(f"127.0.0.1:{number}")
    yield number
    port.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz?x=1", 200),
        ("HEAD", "/healthz", 200),
        ("GET", "/", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/healthz", 501),
        ("DELETE", "/healthz", 501),
    ],
)
def test_it_answers_what_is_there_and_nothing_else(
    asked: int, method: str, path: str, status: int
) -> None:
    """Reading is all that it can do."""
    assert status == ask(asked, path, method=method).status


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /healthz\x1b[2J HTTP/1.1\r\n\r\n",
        b"GET " + b"/" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 3_000,
        b"GET /<script>alert(1)</script> HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_whatever_is_sent_it_goes_on(asked: int, request_: bytes) -> None:
    """A request is an answer of one screen at most, or hung up on; the next one is answered."""
    with socket.create_connection(("127.0.0.1", asked)) as stranger:
        stranger.settimeout(30)
        try:
            stranger.sendall(request_)
            stranger.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: stranger.recv(4096), b""))
        except OSError:  # it was hung up on while it still sent
            answer = b""
    assert len(answer) < 2_000
    assert b"<script>" not in answer
    assert b"\x1b" not in answer
    assert "yes" == ask(asked, "/healthz").text


def test_strangers_that_say_nothing_do_not_keep_others_out(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many at once are listened to; each has a few seconds for all that it says."""
    monkeypatch.setattr("ingestd.port._REQUEST_SECONDS", 1.0)
    with ExitStack() as strangers:
        for _ in range(20):
            silent = socket.create_connection(("127.0.0.1", asked))
            strangers.enter_context(silent).sendall(b"GET /heal")

        def is_answered() -> bool:
            try:
                return ask(asked, "/healthz").text == "yes"
            except OSError:
                return False

        soon(is_answered)
        assert 12 > sum("process_request" in each.name for each in threading.enumerate())


# What it makes of settings and names ----------------------------------------------------------


@pytest.mark.parametrize(
    "listen", ["9641", "somewhere:9641", "127.0.0.1:", ":1", "127.0.0.1:70000"]
)
def test_what_is_no_address_is_refused(listen: str, tmp_path: Path) -> None:
    """At the start, with an example."""
    with pytest.raises(ConfigError, match=r"metrics\.listen"):
        load_settings(metrics__listen=listen)


@pytest.mark.parametrize("listen", ["", "127.0.0.1:9641", "localhost:0", "[::1]:9641"])
def test_an_address_with_a_port_is_taken(listen: str) -> None:
    """Of either family."""
    assert listen == load_settings(metrics__listen=listen).metrics.listen


def told(number: int, **more: Any) -> Told:
    """A job that was completed a second after `NOW`, three after its file came."""
    values = {"status": "completed", "finished_at": NOW + timedelta(seconds=1), "size": 10} | more
    ctime = int((NOW.timestamp() - 2) * 1e9)
    job = {"books": Books(read=1, stored=1), "message": None, "stamp": f"1:2:3:4:{ctime}"} | values
    return Told(id=uuid.UUID(int=number), **job)  # type: ignore[arg-type]  # any key


def test_each_step_belongs_to_a_stage() -> None:
    """Or the seconds before it would be nowhere."""
    assert set(Step) == set(STAGES)


def test_seconds_go_to_the_stage_of_the_step_that_they_end_with() -> None:
    """And not those before it was begun, when nobody worked."""
    now = [0.0]
    tally = Tally(clock=lambda: now[0])
    for seconds, step in ((5, Step.LOOKED), (1, Step.RECORDED), (2, Step.READ), (3, Step.READ)):
        now[0] += seconds
        tally(step)
    assert {"record": 1, "read": 5} == tally.taken()[0]
    now[0] += 100
    tally.begin()
    now[0] += 4
    tally(Step.MOVED)
    assert {"put_away": 4} == tally.taken()[0]


def test_the_number_of_sources_has_a_bound() -> None:
    """Whoever may drop a file may make folders, and a label for each would fill a memory."""
    figures = Figures(NOW, Standing())
    for number in range(300):
        figures.took(Path(f"source-{number}", "x.csv"), [told(number)])
    figures.took(Path("source-1", "y.csv"), [told(301)])
    labels = [
        label
        for name, label in figures_of(figures.page().decode())
        if name == "ingestd_source_last_success_timestamp_seconds"
    ]
    assert 101 == len(labels)
    assert {OTHERS, "source-1"} <= set(labels)


def test_a_hostile_name_is_a_label_that_can_be_shown() -> None:
    """Neither a line end nor a byte that is no text gets through."""
    name = os.fsdecode(b'a\n"} 1\n\x1b[2J\xff' + b"x" * 200)
    figures = Figures(NOW, Standing())
    figures.took(Path(name, "x.csv"), [told(1)])
    page = figures.page().decode()
    assert not set("\x1b") & set(page)
    assert 1 == figures_of(page)["ingestd_files_total", "completed"]
    assert len(source_of(Path(name, "x.csv"))) <= 80


def test_a_job_that_is_told_of_twice_is_counted_once() -> None:
    """A ZIP of which a member waits tells of all its jobs at each attempt."""
    figures = Figures(NOW, Standing())
    done, waits = told(1), told(2, status="failed", finished_at=None)
    figures.took(Path("x.zip"), [done, waits])
    figures.looked([], [Path("x.zip")])
    figures.took(Path("x.zip"), [done, told(2)])
    counted = figures_of(figures.page().decode())
    assert 2 == counted["ingestd_files_total", "completed"]
    assert 3.0 == counted["ingestd_lag_seconds_sum", ""] / 2


def test_what_was_done_before_the_start_is_not_counted() -> None:
    """Its file was only moved away now."""
    figures = Figures(NOW, Standing())
    figures.took(Path("x.csv"), [told(1, finished_at=NOW - timedelta(1))])
    assert 0 == figures_of(figures.page().decode())["ingestd_files_total", "completed"]
