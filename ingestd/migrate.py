"""The schema of a database: what it is, what it should be, and how it gets there.

Alembic without `alembic.ini`, from the source tree (`migrations/` beside the package) and from
an installed wheel (`ingestd/migrations`).
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, event, inspect, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CheckConstraint

from ingestd.db import make_engine
from ingestd.errors import SchemaMismatch
from ingestd.models import Base

# Importing Alembic takes 100 ms, which `ingestd --help` should not pay: the functions that need
# it import it.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

T = TypeVar("T")

VIEWS = (
    "v_constituencies",
    "v_files",
    "v_hours",
    "v_open_alerts",
    "v_rejects",
    "v_transactions",
)
"""For people with a SQL prompt; made by the migrations, the models don't know them."""

# One number for every ingestd that migrates in one PostgreSQL database.
_ADVISORY_LOCK = int.from_bytes(b"ingestd", "big")
_LOCK_SECONDS = 60.0


# What a database holds ----------------------------------------------------------------------


def ensure_current(engine: Engine, url: str, *, patience_seconds: float = _LOCK_SECONDS) -> None:
    """Let nothing pass but the schema of this program; an empty database is given it.

    Raises SchemaMismatch for a schema that is older or newer, and for a database that holds
    something else.
    """
    if _patiently(lambda: current(engine), patience_seconds) is None:
        _refuse_foreign(engine)
        upgrade(url)
    found, wanted = current(engine), head()
    if found == wanted:
        return
    with engine.connect() as connection:
        _refuse_unknown(connection)
    raise SchemaMismatch(
        f"the schema of {engine.url.database} is {found}, this program needs {wanted}: "
        "make a backup, then run `ingestd db upgrade`"
    )


def current(engine: Engine) -> str | None:
    """The revision of the schema that is there; None where there is none."""
    with engine.connect() as connection:
        return _context(connection).get_current_revision()


def known_revision(engine: Engine) -> str:
    """The revision that is there, where this program can work with it or upgrade it.

    Raises SchemaMismatch for a newer schema, and where there is none of ours.
    """
    with engine.connect() as connection:
        _refuse_unknown(connection)
    found = current(engine)
    if found is None:
        raise SchemaMismatch(_not_ours(engine, set(inspect(engine).get_table_names())))
    return found


def goal(revision: str) -> str | None:
    """The very revision that a word such as `head` means; None for `base`.

    Raises Alembic's CommandError for one that it does not know.
    """
    if revision.startswith(("+", "-")):
        return revision  # so many steps: never where it is now
    found = _scripts().get_revisions(revision)
    return found[0].revision if found and found[0] is not None else None


def head() -> str:
    """The revision of the schema that this program was written for."""
    revision = _scripts().get_current_head()
    if revision is None:
        raise SchemaMismatch(f"no migrations in {_folder()}: install ingestd again")
    return revision


def differences(engine: Engine) -> list[str]:
    """What the database has otherwise than the models say, one line each; empty when equal."""
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - slow, see the top

    with engine.connect() as connection:
        found = compare_metadata(_context(connection), Base.metadata)
        # Alembic compares neither CHECK constraints nor views.
        return [
            *(_told(one) for one in _flat(found)),
            *_missing_checks(connection),
            *_missing_views(connection),
        ]


# Getting there ------------------------------------------------------------------------------


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema up to a revision in one commit: all the way, or not at all."""
    from alembic import command  # noqa: PLC0415 - slow, see the top

    with locked(url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to a revision in one commit; `base` leaves no table of ours."""
    from alembic import command  # noqa: PLC0415 - slow, see the top

    with locked(url) as connection:
        command.downgrade(_config(connection), revision)


@contextmanager
def locked(url: str) -> Iterator[Connection]:
    """Open a transaction in which nobody else can migrate this database.

    A second program waits for its end and then finds the work done, because Alembic looks for
    the revision inside. Raises SchemaMismatch where that revision is unknown.
    """
    engine = make_engine(url, writer=True, busy_timeout_seconds=_LOCK_SECONDS)
    is_sqlite = engine.dialect.name == "sqlite"
    if is_sqlite:
        event.listen(engine, "connect", _leave_foreign_keys_unchecked)
    try:
        with _patiently(engine.connect) as connection, connection.begin():
            if not is_sqlite:
                lock = text("SELECT pg_advisory_xact_lock(:number)")
                connection.execute(lock, {"number": _ADVISORY_LOCK})
            _refuse_unknown(connection)
            yield connection
            if is_sqlite:
                _refuse_dangling(connection)
    finally:
        engine.dispose()


def _leave_foreign_keys_unchecked(connection: DBAPIConnection, _record: object) -> None:
    """Let SQLite replace a table that others refer to; `_refuse_dangling` looks afterwards.

    The pragma does nothing inside a transaction, so it is given before.
    """
    connection.cursor().execute("PRAGMA foreign_keys = OFF")


def _refuse_dangling(connection: Connection) -> None:
    if dangling := connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise SchemaMismatch(
            f"a row of {dangling[0]} (rowid {dangling[1]}) refers to a row of {dangling[2]} "
            "that is not there; the schema was left as it was"
        )


def _patiently(ask: Callable[[], T], seconds: float = _LOCK_SECONDS) -> T:
    """Ask again while SQLite answers "locked".

    Two programs that open a new file at once both switch it to WAL, and there SQLite refuses
    one of them without waiting for its busy time-out.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except OperationalError as error:
            if "database is locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


# Refusals -----------------------------------------------------------------------------------


def _refuse_foreign(engine: Engine) -> None:
    tables = set(inspect(engine).get_table_names()) - {"alembic_version"}
    # Asked again after the look: another program may have made our tables between the two.
    if tables and current(engine) is None:
        raise SchemaMismatch(_not_ours(engine, tables))


def _refuse_unknown(connection: Connection) -> None:
    found = _context(connection).get_current_revision()
    if found is None or found in _known_revisions():
        return
    tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
    if not tables & set(Base.metadata.tables):
        raise SchemaMismatch(_not_ours(connection.engine, tables))
    raise SchemaMismatch(
        f"the schema of {connection.engine.url.database} is {found}, which this program does not "
        f"know (it ends at {head()}): the program is older than the database; install the "
        "ingestd that made it, or a newer one"
    )


def _not_ours(engine: Engine, tables: set[str]) -> str:
    some = ", ".join(sorted(tables)[:3]) or "a schema"
    return (
        f"{engine.url.database} holds {some} and no tables of ingestd: "
        "give ingestd a database of its own"
    )


# Differences in words -----------------------------------------------------------------------


def _flat(found: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Alembic's changes; those of one column come as a list of their own."""
    for one in found:
        if isinstance(one, list):
            yield from one
        else:
            yield one


def _told(change: tuple[Any, ...]) -> str:
    """`remove_column: election.color`: what Alembic would do to make them equal."""
    what, *about = change
    if what.startswith("modify_"):
        _schema, table, column, _rest, was, wanted = about
        return f"{what}: {table}.{column} is {was!r}, the model says {wanted!r}"
    if what.endswith("_column"):
        return f"{what}: {about[1]}.{about[2].name}"
    return f"{what}: {getattr(about[0], 'name', None) or about[0]}"


def _missing_checks(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    there = set(inspector.get_table_names())
    for table in Base.metadata.sorted_tables:
        if table.name not in there:
            continue  # told by Alembic
        found = {check["name"] for check in inspector.get_check_constraints(table.name)}
        wanted = {str(each.name) for each in table.constraints if isinstance(each, CheckConstraint)}
        for name in sorted(wanted - found):
            yield f"add_check: {table.name}.{name}"


def _missing_views(connection: Connection) -> Iterator[str]:
    found = inspect(connection).get_view_names()
    return (f"add_view: {name}" for name in VIEWS if name not in found)


# Alembic without a file of its own ----------------------------------------------------------


def _folder() -> Path:
    """Where the migrations are: in the package when installed, beside it in the source tree.

    In this order, since "beside" is a folder of everybody's packages when installed.
    """
    package = Path(__file__).parent
    inside, beside = package / "migrations", package.parent / "migrations"
    return inside if inside.is_dir() else beside


def _config(connection: Connection | None = None) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - slow, see the top

    # Alembic logs each step at INFO; where a program logs to stdout, they don't belong there.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config(stdout=io.StringIO())
    # ConfigParser takes % for its own.
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - slow, see the top

    return ScriptDirectory.from_config(_config())


def _known_revisions() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _context(connection: Connection) -> MigrationContext:
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415 - slow, see the top

    return MigrationContext.configure(connection, opts={"compare_type": True})
