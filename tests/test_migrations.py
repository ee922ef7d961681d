"""The schema: migrations make what the models say, and nothing else is let through."""

import logging
import multiprocessing
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, insert, inspect, text
from sqlalchemy.exc import IntegrityError

from ingestd import migrate
from ingestd.db import make_engine, make_sessions
from ingestd.errors import SchemaMismatch
from ingestd.models import Base, Constituency, FileProcessing, Transaction

AT = datetime(2024, 9, 6, 5, 30, 1, 250_000, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on this test's database, which is empty."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def migrated(engine: Engine, database_url: str) -> Engine:
    """The same with the newest schema."""
    migrate.upgrade(database_url)
    return engine


def run(engine: Engine, *statements: str) -> None:
    """Change a database by hand."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def job(**values: object) -> FileProcessing:
    """A completed job of ten rows."""
    return FileProcessing(
        **{
            "id": uuid4(),
            "root": "/inbox",
            "path": "Округ №1_3/a.csv",
            "name": "a.csv",
            "sha256": "0" * 64,
            "size": 1,
            "stamp": "0:0:1:0:0",
            "status": "completed",
            "rows_read": 10,
            "rows_stored": 10,
            "discovered_at": AT,
        }
        | values
    )


def test_the_migrations_make_exactly_the_models(migrated: Engine) -> None:
    """Nothing is missing, nothing is left over, and every type is the model's."""
    assert migrate.differences(migrated) == []
    assert migrate.current(migrated) == migrate.head()


def test_a_downgrade_leaves_nothing_and_an_upgrade_brings_all_back(
    migrated: Engine, database_url: str
) -> None:
    """Down to `base` only Alembic's own table stays."""
    migrate.downgrade(database_url, "base")
    assert migrate.current(migrated) is None
    assert inspect(migrated).get_table_names() == ["alembic_version"]
    assert inspect(migrated).get_view_names() == []

    migrate.upgrade(database_url)
    assert migrate.differences(migrated) == []


def test_every_constraint_has_a_name(migrated: Engine) -> None:
    """SQLite can only change a constraint that has one."""
    inspector = inspect(migrated)
    for table in Base.metadata.tables:
        named = [
            inspector.get_pk_constraint(table),
            *inspector.get_foreign_keys(table),
            *inspector.get_unique_constraints(table),
            *inspector.get_check_constraints(table),
        ]
        assert all(each["name"] for each in named), table


def test_differences_are_told_in_words(migrated: Engine) -> None:
    """A column too many, an index and a view too few: one line each."""
    run(
        migrated,
        "ALTER TABLE election ADD COLUMN color TEXT",
        "DROP INDEX ix_audit_log_at",
        "DROP VIEW v_hours",
    )
    assert {
        "remove_column: election.color",
        "add_index: ix_audit_log_at",
        "add_view: v_hours",
    } == set(migrate.differences(migrated))


def test_a_lost_check_is_a_difference(migrated: Engine) -> None:
    """Alembic does not compare CHECK constraints, and the books hang on one."""
    if migrated.dialect.name == "sqlite":
        pytest.skip("SQLite cannot drop a constraint")
    run(migrated, "ALTER TABLE file_processing DROP CONSTRAINT ck_file_processing_books")
    assert ["add_check: file_processing.ck_file_processing_books"] == migrate.differences(migrated)


@pytest.mark.parametrize("status", ["completed", "superseded"])
def test_the_database_refuses_books_that_do_not_balance(migrated: Engine, status: str) -> None:
    """Ten rows read and nine accounted for is no completed job."""
    with (
        pytest.raises(IntegrityError, match="ck_file_processing_books"),
        make_sessions(migrated).begin() as session,
    ):
        session.add(job(status=status, rows_stored=9))


def test_the_books_of_an_unfinished_job_may_be_open(migrated: Engine) -> None:
    """Only completed and superseded jobs promise anything."""
    with make_sessions(migrated).begin() as session:
        session.add(job(status="processing", rows_stored=9))


@pytest.mark.parametrize("view", migrate.VIEWS)
def test_every_view_can_be_read(migrated: Engine, view: str) -> None:
    """On both databases."""
    with migrated.connect() as connection:
        assert connection.execute(text(f"SELECT * FROM {view}")).all() == []


def test_v_transactions_joins_the_names_and_writes_iso_times(migrated: Engine) -> None:
    """One row as a person sees it, without quotes around a reserved word."""
    here, file = Constituency(id=uuid4(), contract_id="C" * 43, name="Округ №1_3"), job()
    row = Transaction(
        id=uuid4(),
        constituency_id=here.id,
        timestamp=AT,
        status="accepted",
        type="vote",
        tx_type=104,
        version=4,
        file_id=file.id,
        line_number=7,
        content_hash=b"0" * 16,
        tx_id="65db",
        fee=0,
        fee_asset_id="",
        sender="",
        signature="",
        extra={},
        raw_data=[],
        operation_data=[],
    )
    with make_sessions(migrated).begin() as session:
        session.add_all([here, file, row])
    with migrated.connect() as connection:
        found = connection.execute(
            text("SELECT time, tx_id, contract_id, constituency, path FROM v_transactions")
        ).one()
        files = connection.execute(text("SELECT discovered, started FROM v_files")).one()
    assert ("2024-09-06T05:30:01.250Z", "65db", "C" * 43, "Округ №1_3", file.path) == found
    assert ("2024-09-06T05:30:01Z", None) == files


def test_postgresql_does_not_try_to_compress_ballots(migrated: Engine) -> None:
    """Ciphertext gets no smaller, and trying costs a third of a row's time."""
    if migrated.dialect.name == "sqlite":
        pytest.skip("SQLite compresses nothing")
    with migrated.connect() as connection:
        external = connection.scalars(
            text(
                "SELECT attname FROM pg_attribute WHERE attstorage = 'e' "
                "AND attrelid = '\"transaction\"'::regclass ORDER BY attname"
            )
        ).all()
    assert ["operation_data", "raw_data"] == external


def test_an_empty_database_is_given_the_schema(engine: Engine, database_url: str) -> None:
    """The first start needs no command, the second finds nothing to do."""
    migrate.ensure_current(engine, database_url)
    migrate.ensure_current(engine, database_url)
    assert migrate.differences(engine) == []


def test_an_older_schema_is_left_alone_until_somebody_upgrades_it(
    migrated: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the command, and the command does it."""
    newer = tmp_path / "migrations"
    shutil.copytree(migrate._folder(), newer)  # noqa: SLF001 - a program with one migration more
    ours = migrate.head()
    (newer / "versions" / "next.py").write_text(
        f"revision = 'next'\ndown_revision = '{ours}'\n\ndef upgrade():\n    pass\n"
    )
    monkeypatch.setattr(migrate, "_folder", lambda: newer)
    with pytest.raises(SchemaMismatch, match=rf"is {ours}.* needs next.*`ingestd db upgrade`"):
        migrate.ensure_current(migrated, database_url)
    migrate.upgrade(database_url)
    migrate.ensure_current(migrated, database_url)


def test_a_newer_schema_is_not_touched(migrated: Engine, database_url: str) -> None:
    """Neither the daemon nor a person's upgrade works on what this program doesn't know."""
    run(migrated, "UPDATE alembic_version SET version_num = '9999'")
    older = pytest.raises(SchemaMismatch, match="the program is older than the database")
    with older:
        migrate.ensure_current(migrated, database_url)
    with older:
        migrate.upgrade(database_url)
    with older:
        migrate.downgrade(database_url, "base")


def test_a_database_of_somebody_else_is_refused(engine: Engine, database_url: str) -> None:
    """Tables that are not ours, and no schema of ours: nothing is added."""
    run(engine, "CREATE TABLE invoice (id INTEGER)")
    with pytest.raises(SchemaMismatch, match="holds invoice and no tables of ingestd"):
        migrate.ensure_current(engine, database_url)
    assert inspect(engine).get_table_names() == ["invoice"]


def test_a_database_that_somebody_else_migrates_is_refused(
    engine: Engine, database_url: str
) -> None:
    """Another program's Alembic revision says nothing about our tables."""
    run(
        engine,
        "CREATE TABLE invoice (id INTEGER)",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('ae1027a6acf')",
    )
    with pytest.raises(SchemaMismatch, match="holds invoice and no tables of ingestd"):
        migrate.ensure_current(engine, database_url)


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the way in one commit, on SQLite too."""
    broken = tmp_path / "migrations"
    shutil.copytree(migrate._folder(), broken)  # noqa: SLF001 - a program with a bad migration
    (broken / "versions" / "broken.py").write_text(
        f"revision = 'broken'\ndown_revision = '{migrate.head()}'\n\n"
        "def upgrade():\n    raise OSError('no')\n"
    )
    monkeypatch.setattr(migrate, "_folder", lambda: broken)
    with pytest.raises(OSError, match="no"):
        migrate.upgrade(database_url)
    assert inspect(engine).get_table_names() == []


def test_a_migration_may_not_leave_a_row_without_the_row_that_it_names(
    migrated: Engine, database_url: str
) -> None:
    """SQLite does not check while tables are made anew, so all is checked at the end."""
    if migrated.dialect.name != "sqlite":
        pytest.skip("PostgreSQL checks all the time")
    lost = {"id": uuid4(), "contract_id": "C", "election_id": UUID(int=1)}
    with (
        pytest.raises(SchemaMismatch, match=r"constituency .* refers to a row of election"),
        migrate.locked(database_url) as connection,
    ):
        connection.execute(insert(Constituency), lost)


def start(url: str, barrier: Barrier) -> None:
    """What a program does first."""
    migrate.head()  # Alembic is imported before the start shot
    engine = make_engine(url)
    barrier.wait(timeout=60)
    migrate.ensure_current(engine, url)


def test_two_programs_that_start_at_once_do_not_fight(engine: Engine, database_url: str) -> None:
    """One makes the schema, the other waits and finds it made."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    programs = [spawn.Process(target=start, args=(database_url, barrier)) for _ in range(2)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(timeout=60)
    assert [0, 0] == [program.exitcode for program in programs]
    assert migrate.differences(engine) == []


def test_migrations_say_nothing_on_stdout(
    database_url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Standard output belongs to the command's answer, even when all of logging goes there."""
    caplog.set_level(logging.INFO)
    migrate.upgrade(database_url)
    assert capsys.readouterr().out == ""
    assert [] == [each for each in caplog.records if each.name.startswith("alembic")]


def test_an_installed_package_uses_its_own_migrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside an installed package may lie anybody's folder of that name."""
    for folder in ("ingestd", "migrations"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "ingestd" / "migrate.py"))
    assert migrate._folder() == tmp_path / "migrations"  # noqa: SLF001 - the source tree
    (tmp_path / "ingestd" / "migrations").mkdir()
    assert migrate._folder() == tmp_path / "ingestd" / "migrations"  # noqa: SLF001 - the wheel


def test_a_missing_folder_of_migrations_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged installation is named as such."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    monkeypatch.setattr(migrate, "__file__", str(tmp_path / "ingestd" / "migrate.py"))
    with pytest.raises(SchemaMismatch, match="install ingestd again"):
        migrate.head()
