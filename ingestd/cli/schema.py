"""`db`: the schema of the database; `cli.moving` has what concerns it as a whole."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli import moving
from ingestd.cli.flags import FINDINGS, Flags, command

if TYPE_CHECKING:
    from sqlalchemy import Engine


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="The database: its schema, copies, readers.", no_args_is_help=True)
    command(group, "upgrade", examples="ingestd db upgrade")(upgrade)
    command(group, "downgrade", examples="ingestd db downgrade 0001 --yes")(downgrade)
    command(group, "current", examples="ingestd db current")(current)
    command(group, "check", examples="ingestd db check")(check)
    moving.add_to(app, group)
    app.add_typer(group, name="db")


Backup = Annotated[
    bool,
    typer.Option(
        "--backup/--no-backup", help="On SQLite, make a backup beside the database before."
    ),
]


def upgrade(
    flags: Flags,
    revision: Annotated[str, typer.Argument(help="How far.")] = "head",
    *,
    is_kept: Backup = True,
) -> None:
    """Bring the schema up to the one of this program; stop the daemon first.

    An SQLite database is copied beside itself before anything changes, and `ingestd restore`
    takes that back. On PostgreSQL run `ingestd backup` first. The change is one commit: all
    of it, or nothing.
    """
    from ingestd import migrate
    from ingestd.cli import screen

    if _change(flags, revision, migrate.upgrade, is_kept=is_kept):
        screen.say("the rules may find more than they did; next: ingestd fsck --quick --repair")


def downgrade(
    flags: Flags,
    revision: Annotated[str, typer.Argument(help="Back to this one; base leaves no table.")],
    *,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    is_kept: Backup = True,
) -> None:
    """Take the schema back to an earlier revision.

    What only the later one can hold is lost, but for the backup that is made on SQLite.
    """
    from ingestd import migrate
    from ingestd.config import ConfigError

    if not is_sure:
        if not sys.stdin.isatty():
            raise ConfigError("a downgrade loses data; say --yes to mean it")
        typer.confirm(f"A downgrade to {revision} loses data. Go on?", abort=True)
    _change(flags, revision, migrate.downgrade, is_kept=is_kept)


def _change(
    flags: Flags, revision: str, change: Callable[[str, str], None], *, is_kept: bool
) -> bool:
    """Keep what is there, then change it; says whether anything was there and is changed now."""
    from ingestd import migrate
    from ingestd.cli import screen

    settings = flags.settings()
    before = _revision(flags)
    with _known_revision():
        is_change = before not in (None, migrate.goal(revision))
        if is_kept and is_change and (kept := moving.before_change(settings, str(before))):
            screen.say(f"backup: {kept}")
        change(settings.database.url, revision)
    after = _revision(flags)
    same = "was already at" if before == after else f"{before or 'empty'} →"
    screen.say(f"the schema {same} {after or 'empty'}")
    return before not in (None, after)


def current(flags: Flags) -> None:
    """Tell the schema that is there, and the one of this program.

    Exit status 1 when they differ.
    """
    from ingestd import migrate
    from ingestd.cli import screen

    found, wanted = _revision(flags), migrate.head()
    screen.say(f"the schema is {found or 'empty'}, this program needs {wanted}")
    if found != wanted:
        raise typer.Exit(FINDINGS)


def check(flags: Flags) -> None:
    """Compare the tables with the models of this program.

    Exit status 1 when they differ.
    """
    from ingestd import migrate
    from ingestd.cli import screen

    with _engine(flags) as engine:
        differences = migrate.differences(engine)
    for line in differences:
        screen.say(line)
    if differences:
        raise typer.Exit(FINDINGS)
    screen.say("the tables are exactly what the models say", colour_of="ok")


def _revision(flags: Flags) -> str | None:
    from ingestd import migrate
    from ingestd.cli.database import sqlite_file

    file = sqlite_file(flags.settings().database.url)
    if file is not None and not file.exists():
        return None  # looking would make it
    with _engine(flags) as engine:
        return migrate.current(engine)


@contextmanager
def _engine(flags: Flags) -> Iterator[Engine]:
    from ingestd.db import make_engine

    database = flags.settings().database
    engine = make_engine(database.url, busy_timeout_seconds=database.busy_timeout_seconds)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _known_revision() -> Iterator[None]:
    """Alembic's complaint about a revision that it does not know is the user's to mend."""
    from alembic.util import CommandError

    from ingestd.config import ConfigError

    try:
        yield
    except CommandError as error:
        raise ConfigError(str(error)) from error
