"""The log under systemd: a real journald, in a file system of its own, and what it then holds."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from ingestd import journal, log
from ingestd.journal import datagram_of, is_behind

from .conftest import Voting, csv_of
from .running import RUN, environment

JOURNALD = Path("/lib/systemd/systemd-journald")
# What systemd does for a service: standard error is a stream to the journal, and it says so.
SERVICE = """
import os, socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.connect("/run/systemd/journal/stdout")
stream.sendall(b"ingestd\\n\\n6\\n1\\n0\\n0\\n0\\n")
status = os.fstat(stream.fileno())
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
os.dup2(stream.fileno(), 2)
"""
PROGRAM = """
import sys, structlog
from ingestd import log
log.configure("info", sys.argv[1])
say = structlog.get_logger()
say.info("file_ingested", path="a\\nFORGED=1\\x1b[2J \\u202e.csv", stored=5, member=None)
say.warning("file_quarantined", reason="two \\"bad\\" rows", password="geheim")
try:
    raise ValueError("no way\\x1b")
except ValueError:
    say.exception("attempt_failed")
say.info("long", told=["é" * 4000] * 100)
"""
# /run is its own, and nothing of the machine's journal is touched.
MACHINE = """
mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal || exit 1
{journald} 2>/dev/null &
for _ in $(seq 600); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.05; done
"$@" || exit 1
journalctl --sync
for file in /run/log/journal/*/system.journal; do
    journalctl --no-pager --all --output=json --file="$file" SYSLOG_IDENTIFIER=ingestd
done
status=$?
kill %1
exit $status
"""


def in_the_journal(program: str, *arguments: str, **environment_: str) -> list[dict[str, Any]]:
    """What a program left in a journal of its own."""
    alone = ["unshare", "--mount"]
    if os.geteuid() != 0:
        alone += ["--user", "--map-root-user"]
    told = ["bash", "-m", "-c", MACHINE.format(journald=JOURNALD), "-"]
    command = [*alone, *told, sys.executable, "-c", SERVICE + program, *arguments]
    done = subprocess.run(
        command,
        env=os.environ | environment_,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert 0 == done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def kept() -> list[dict[str, Any]]:
    """What the journal holds of some events."""
    return in_the_journal(PROGRAM, "auto")


def test_each_event_has_its_priority(kept: list[dict[str, Any]]) -> None:
    """So that `journalctl -p warning` shows what matters."""
    priorities = {each.get("INGESTD_EVENT"): each["PRIORITY"] for each in kept}
    expected = {"file_ingested": "6", "file_quarantined": "4", "attempt_failed": "3"}
    assert expected == {event: priorities[event] for event in expected}


def test_each_value_is_a_field_and_the_message_is_for_people(kept: list[dict[str, Any]]) -> None:
    """`journalctl INGESTD_EVENT=file_ingested` finds them."""
    ingested, quarantined = kept[0], kept[1]
    assert "5" == ingested["INGESTD_STORED"]
    assert "journal" == ingested["_TRANSPORT"]
    assert 'two "bad" rows' == quarantined["INGESTD_REASON"]
    assert ingested["MESSAGE"].startswith("file_ingested path=")
    assert ingested["MESSAGE"].endswith(" stored=5")


def test_a_name_forges_no_field_and_no_line(kept: list[dict[str, Any]]) -> None:
    """A line end in it would begin another field."""
    ingested, quarantined, failed = kept[:3]
    assert r"a\nFORGED=1\x1b[2J \u202e.csv" == ingested["INGESTD_PATH"]
    assert "FORGED" not in ingested
    assert "***" == quarantined["INGESTD_PASSWORD"]
    assert r"ValueError: no way\x1b" == json.loads(failed["INGESTD_EXCEPTION"])[-1]
    assert all("\n" not in str(each["MESSAGE"]) for each in kept[:3])


def test_an_event_that_is_too_long_for_a_datagram_is_not_lost(kept: list[dict[str, Any]]) -> None:
    """It comes as a line, with its priority."""
    assert any(each["_TRANSPORT"] == "stdout" and "6" == each["PRIORITY"] for each in kept[3:])


def test_json_that_is_asked_for_is_json_with_a_priority() -> None:
    """For those who collect the lines."""
    lines = [each for each in in_the_journal(PROGRAM, "json") if each["MESSAGE"]]
    assert "4" == lines[1]["PRIORITY"]
    assert "file_quarantined" == json.loads(lines[1]["MESSAGE"])["event"]


@pytest.mark.slow
def test_the_daemon_and_its_workers_leave_one_event_for_each_file(
    tmp_path: Path, voting: Voting
) -> None:
    """As a service: the real program, from its start to its stop."""
    (tmp_path / "inbox").mkdir()
    names = [voting.name(hour) for hour in (8, 9, 10)]
    for name in names:
        (tmp_path / "inbox" / name).write_bytes(csv_of(voting.ballots(8, 2)))
    program = """
import os, signal, threading, time
from pathlib import Path
def stop():
    while any(Path(os.environ["INGESTD_WATCH__INBOX"]).iterdir()):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop, daemon=True).start()
""" + RUN.replace('"json"', '"auto"')
    told = environment(tmp_path, f"sqlite:///{tmp_path / 'x.db'}")
    told |= {"INGESTD_WATCH__SETTLE_SECONDS": "0.2", "INGESTD_WATCH__POLL_SECONDS": "0.2"}
    kept = in_the_journal(program.replace('print("ready", flush=True)', "None"), **told)
    events = [(each.get("INGESTD_EVENT"), str(each.get("INGESTD_PATH"))) for each in kept]
    ingested = [path for event, path in events if event == "file_ingested"]
    assert sorted(names) == sorted(ingested)
    assert "stopped" == kept[-1]["INGESTD_EVENT"]


# Where there is no journal ------------------------------------------------------------------


def test_a_stream_is_the_journal_only_where_systemd_says_so(tmp_path: Path) -> None:
    """The variable is inherited by programs whose output goes elsewhere."""
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        ours = f"{status.st_dev}:{status.st_ino}"
        assert is_behind(stream, {"JOURNAL_STREAM": ours})
        assert not is_behind(stream, {"JOURNAL_STREAM": "1:1"})
        assert not is_behind(stream, {"JOURNAL_STREAM": "what?"})
        assert not is_behind(stream, {})
    assert not is_behind(io.StringIO(), {"JOURNAL_STREAM": ours})
    assert not is_behind(None, {"JOURNAL_STREAM": ours})


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is said to be the journal; logging is put back."""
    root = logging.getLogger()
    handlers, level, complains = root.handlers, root.level, logging.raiseExceptions
    path = tmp_path / "stderr"
    with path.open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "nobody"))
        log.configure("info", "auto", stream)
        yield path
    logging.raiseExceptions = complains
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers = handlers
    root.setLevel(level)


def test_without_a_journald_events_are_lines(logs: Path) -> None:
    """It restarts now and then; standard error it keeps open."""
    structlog.get_logger().warning("seen", path="a b.csv")
    assert '<4>seen path="a b.csv"\n' == logs.read_text()


def test_a_journald_that_takes_nothing_stops_nothing(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event waits for it a moment, then goes as a line."""
    monkeypatch.setattr(journal, "_SEND_SECONDS", 0.05)
    # Not under tmp_path: the path of a Unix socket is 107 bytes at most.
    with (
        tempfile.TemporaryDirectory(prefix="ingestd-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf,
    ):
        monkeypatch.setattr(journal, "SOCKET", f"{folder}/socket")
        deaf.bind(f"{folder}/socket")
        for number in range(1_000):
            structlog.get_logger().info("seen", number=number)
            if logs.read_text():
                break
    assert logs.read_text().startswith("<6>seen number=")


def test_a_key_is_a_name_that_the_journal_takes() -> None:
    """Letters, digits and underscores, 64 of them at most."""
    text = datagram_of({"event": "e", "level": "info", "a-b c" + "x" * 100: 1})
    names = [line.partition("=")[0] for line in text.splitlines()]
    assert ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "INGESTD_EVENT"] == names[:4]
    assert names[4].startswith("INGESTD_A_B_CXXX")
    assert 64 == len(names[4])
