"""The real daemon tells people, through kills and while its database is away."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import pytest
from sqlalchemy import select, update

from ingestd.daemon import GAVE_UP
from ingestd.models import Notice

from .conftest import Databases, Did, Voting, csv_of
from .hook import Hook, hook_server
from .oracle import unsound
from .running import is_empty, open_sessions, soon
from .victims import Mode, Victim

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

NO_MORE: Mapping[str, str] = MappingProxyType({})
MOST_FILES = 400
TEAM = {"INGEST__WORKERS": "2", "INGEST__WORKERS_FROM_MB": "0"}


@pytest.fixture
def hook() -> Iterator[Hook]:
    """A web server that takes messages."""
    with hook_server() as hook:
        yield hook


class Run(Protocol):
    """Starts the program, which is killed in the end."""

    def __call__(
        self, url: str, mode: Mode = "run", more: Mapping[str, str] = NO_MORE, **told: object
    ) -> Victim:
        """Start it on a database; it tells `hook`, and `told` are settings of notify."""


@pytest.fixture
def run(hook: Hook, inbox: Path) -> Iterator[Run]:
    """Starts the program on the inbox of this test."""
    with ExitStack() as started:

        def run(
            url: str, mode: Mode = "run", more: Mapping[str, str] = NO_MORE, **told: object
        ) -> Victim:
            usual = {"GATHER_SECONDS": 0, "TROUBLE_SECONDS": 0, "DIGEST": "critical"}
            named = {f"NOTIFY__{name}": str(value) for name, value in (usual | told).items()}
            named |= {"WATCH__SETTLE_SECONDS": "0.2", "WATCH__POLL_SECONDS": "0.2", **more}
            named |= {"NOTIFY__CHANNELS": json.dumps({"duty": hook.url}), "LOG__LEVEL": "debug"}
            settings = {f"INGESTD_{name}": value for name, value in named.items()}
            victim = Victim(inbox.parent, url, mode, settings)
            started.callback(victim.kill)
            return victim

        yield run


def refused(voting: Voting, hour: int) -> tuple[str, bytes]:
    """A file that goes to quarantine, which is a critical alert."""
    return voting.name(hour), csv_of([f"torn {hour}"] * 50)


def drop(inbox: Path, name: str, content: bytes) -> None:
    """Put a file there in one move, and wait until it is taken."""
    (inbox / f"{name}.tmp").write_bytes(content)
    (inbox / f"{name}.tmp").rename(inbox / name)
    soon(lambda: is_empty(inbox))


def lose_leases(url: str) -> None:
    """Let what somebody has in hand be free at once, as after half a minute."""
    with open_sessions(url) as sessions, sessions.begin() as session:
        held = update(Notice).where(Notice.next_try_at.is_not(None))
        session.execute(held.values(next_try_at=datetime(2020, 1, 1, tzinfo=UTC)))


def told_of(hook: Hook) -> int:
    """How many alerts somebody was told of."""
    return len({change["alert_id"] for each in hook.posted for change in each.json["changes"]})


def states_on(url: str) -> list[str]:
    """What became of all notices."""
    with open_sessions(url) as sessions, sessions() as session:
        return list(session.scalars(select(Notice.status)))


@pytest.mark.promise(1, 31)
def test_an_alert_is_told_once_through_kills_before_it_is_sent(
    run: Run, migrated_url: str, hook: Hook, voting: Voting, inbox: Path, did: Did
) -> None:
    """Killed between the commit and the message, twice; the same file again is no news."""
    for hour in (8, 9):
        daemon = run(migrated_url, GATHER_SECONDS=3600)
        name, content = refused(voting, hour)
        drop(inbox, name, content)
        drop(inbox, name, content)
        daemon.kill()
    assert [] == hook.posted
    daemon = run(migrated_url)
    soon(lambda: states_on(migrated_url) == ["sent", "sent"])
    assert 0 == daemon.stop()
    assert (1, 2, 2) == (len(hook.posted), len(hook.titles()), told_of(hook))
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
    did("2 SIGKILLs between the commit of an alert and its message: each told once")


@pytest.mark.promise(1)
def test_killed_between_sending_and_marking_the_same_message_comes_again(
    run: Run, migrated_url: str, hook: Hook, voting: Voting, inbox: Path, did: Did
) -> None:
    """At least once; by its id whoever gets it knows that it is the same."""
    daemon = run(migrated_url)
    hook.before = lambda _posted: daemon.kill()
    name, content = refused(voting, 8)
    (inbox / name).write_bytes(content)
    soon(lambda: not daemon.is_alive)
    hook.before = lambda _posted: None
    lose_leases(migrated_url)
    daemon = run(migrated_url)
    soon(lambda: states_on(migrated_url) == ["sent"])
    assert 0 == daemon.stop()
    first, again = hook.ids()
    assert first == again
    with open_sessions(migrated_url) as sessions:
        assert [] == unsound(sessions)
    did("SIGKILL while the other end had the message: sent again under its id")


def test_a_message_that_is_not_answered_keeps_no_file_and_no_stop_waiting(
    run: Run, sqlite_url: str, hook: Hook, voting: Voting, inbox: Path
) -> None:
    """A thread of its own waits for it."""
    go_on = threading.Event()
    hook.before = lambda _posted: go_on.wait(120)
    daemon = run(sqlite_url, TIMEOUT_SECONDS=100)
    drop(inbox, *refused(voting, 8))
    soon(lambda: hook.posted)
    drop(inbox, voting.name(9), csv_of(voting.ballots(9, 3)))
    assert 0 == daemon.stop()
    assert ["waiting"] == states_on(sqlite_url)
    go_on.set()


@pytest.mark.promise(22)
def test_a_database_that_is_away_is_told_from_memory(
    run: Run, sqlite_url: str, hook: Hook, voting: Voting, inbox: Path, did: Did
) -> None:
    """And that it is back; a message that is refused meanwhile is told when it is."""
    hook.answers = [500, 200]
    daemon = run(sqlite_url)
    drop(inbox, voting.name(7), csv_of(voting.ballots(7, 1)))
    database = Path(sqlite_url.removeprefix("sqlite:///"))
    away = database.with_suffix(".away")
    database.rename(away)
    (inbox / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 3)))
    soon(lambda: hook.posted)
    assert not database.exists()
    away.rename(database)
    soon(lambda: hook.titles()[-1:] == ["over: the database does not answer"])
    soon(lambda: is_empty(inbox))
    assert 0 == daemon.stop()
    assert "the database does not answer" == hook.titles()[0]
    with open_sessions(sqlite_url) as sessions:
        assert [] == unsound(sessions)
    did("a database away: told while it was, and when it was back")


@pytest.mark.promise(22)
def test_a_database_that_was_never_there_is_told(run: Run, hook: Hook, did: Did) -> None:
    """PostgreSQL down at the start: nothing but memory can tell it."""
    daemon = run("postgresql+psycopg://nobody@127.0.0.1:1/none")
    soon(lambda: "the database does not answer" in hook.titles())
    assert 0 == daemon.stop()
    did("a database down at the start: told")


@pytest.mark.promise(29)
@pytest.mark.parametrize("broken", ["configuration", "secret"])
def test_a_configuration_that_was_refused_is_told(
    run: Run, sqlite_url: str, hook: Hook, inbox: Path, did: Did, broken: str
) -> None:
    """By the channels of the old one, which stays, also where its own secret is gone since."""
    config, secret = inbox.with_name("config.toml"), inbox.with_name("secret")
    secret.write_text("s3cret\n")
    config.write_text("")
    more = {"CONFIG": str(config)}
    daemon = run(sqlite_url, more=more, WEBHOOK_SECRET_FILE=secret)
    soon(lambda: "started" in daemon.log())
    if broken == "secret":
        secret.unlink()
    else:
        config.write_text("[odd]\n")
    daemon.hang_up()
    soon(lambda: "the new configuration was refused" in hook.titles())
    soon(lambda: daemon.log().count('"started"') == len(("before", "after")))
    assert 0 == daemon.stop()
    assert all("X-Ingestd-Signature" in posted.headers for posted in hook.posted)
    did(f"SIGHUP with a broken {broken}: told by the old channels, and the daemon goes on")


def test_a_daemon_that_gives_up_leaves_word(
    run: Run, sqlite_url: str, hook: Hook, inbox: Path
) -> None:
    """The next start tells that it did, and why."""
    away = inbox.with_name("away")
    daemon = run(sqlite_url, more={"WATCH__GIVE_UP_SECONDS": "1"})
    soon(lambda: "started" in daemon.log())
    inbox.rename(away)
    assert GAVE_UP == daemon.wait()
    away.rename(inbox)
    daemon = run(sqlite_url)
    soon(lambda: "the daemon ends, since its inbox is away" in hook.titles())
    assert 0 == daemon.stop()


def test_what_a_worker_finds_is_told_by_the_daemon(
    databases: Databases, run: Run, hook: Hook, inbox: Path
) -> None:
    """Workers write into the outbox with their alerts; they send nothing themselves."""
    with databases.fresh("postgresql") as url:
        daemon = run(url, more=TEAM, GATHER_SECONDS=1)
        number = 0
        # The first files the daemon takes itself, until its workers have begun.
        while not _by_a_worker(daemon):
            assert number < MOST_FILES
            drop_many(inbox, [refused(Voting(random.Random(number + n)), 8) for n in range(8)])
            number += 8
        soon(lambda: states_on(url) == ["sent"] * number)
        assert 0 == daemon.stop()
        assert (number, number) == (told_of(hook), len(hook.titles()))
        with open_sessions(url) as sessions:
            assert [] == unsound(sessions)


def drop_many(inbox: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """Put files there all at once, in a folder, and wait until they are taken."""
    folder = inbox.with_name("many")
    folder.mkdir()
    for name, content in files:
        (folder / name).write_bytes(content)
    folder.rename(inbox / f"many {files[0][0]}")
    soon(lambda: is_empty(inbox))


def _by_a_worker(daemon: Victim) -> bool:
    lines = (json.loads(line) for line in daemon.log().splitlines() if line.startswith("{"))
    return any(line["event"] == "file_quarantined" and "worker" in line for line in lines)


def test_once_tells_what_it_found(
    run: Run, migrated_url: str, hook: Hook, voting: Voting, inbox: Path
) -> None:
    """No daemon need run; what cannot be sent goes with the next run, and no URL is logged."""
    name, content = refused(voting, 8)
    (inbox / name).write_bytes(content)
    hook.answers = [503, 200]
    for _ in range(2):
        once = run(migrated_url, "once")
        assert 0 == once.wait()
        lose_leases(migrated_url)
    assert ["sent"] == states_on(migrated_url)
    first, again = hook.ids()
    assert first == again
    assert "answered 503" in once.log()
    assert "SECRET-TOKEN" not in once.log()


def test_once_that_is_stopped_while_it_tells_ends(
    run: Run, sqlite_url: str, hook: Hook, voting: Voting, inbox: Path
) -> None:
    """Files are in; the message goes with the next run."""
    go_on = threading.Event()
    hook.before = lambda _posted: go_on.wait(120)
    name, content = refused(voting, 8)
    (inbox / name).write_bytes(content)
    once = run(sqlite_url, "once", TIMEOUT_SECONDS=100)
    soon(lambda: hook.posted)
    assert 0 == once.stop()
    assert not go_on.is_set()
    assert ["waiting"] == states_on(sqlite_url)
    assert "stopped before its end" in once.log()
    go_on.set()
