"""`backup`, `restore`, `db copy`, `db grant-reader`: the database as a whole, and who reads it."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, Flags, Json, command

if TYPE_CHECKING:
    from ingestd.cli.fsck import Answer
    from ingestd.config import Settings
    from ingestd.moving.backup import Backups
    from ingestd.moving.copying import Copied


def add_to(app: typer.Typer, group: typer.Typer) -> None:
    """Add these commands, those of the group `db` to it."""
    examples = ("ingestd backup", "ingestd backup /media/stick/")
    command(app, "backup", examples=examples)(backup)
    example = "ingestd restore ingestd-20240909T120000Z.db && ingestd fsck"
    command(app, "restore", examples=example)(restore)
    example = "ingestd db copy --to postgresql://ingestd@localhost/ingestd"
    command(group, "copy", examples=(example, "ingestd db copy --to sqlite:///one-file.db"))(copy)
    command(group, "grant-reader", examples="ingestd db grant-reader observer")(grant_reader)


# Backups ------------------------------------------------------------------------------------


def backup(
    flags: Flags,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A file that is not there yet, or a folder: it gets a name with the time.",
            show_default="the working folder",
        ),
    ] = Path(),
    *,
    is_json: Json = False,
) -> None:
    """Write the whole database into one file, as it is at this moment; a daemon may be at work.

    SQLite is copied page by page and the copy is checked; for PostgreSQL pg_dump is called, which
    must not be older than the server. The files in archive and quarantine are not in it: copy
    these folders after it.
    """
    from ingestd.cli import screen

    settings = flags.settings()
    _refuse_no_database(settings)
    file = target / _name(settings) if target.is_dir() else target
    with screen.progress("copying") as on_progress:
        _backups(settings, on_progress).make(file)
    size = file.stat().st_size
    if is_json:
        screen.print_json({"path": file.absolute(), "bytes": size})
        return
    screen.say(f"{file}: {screen.size(size)}, whole", colour_of="ok")
    screen.say("archive and quarantine are not in it: copy them after it", colour_of="warn")


def restore(
    flags: Flags,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `ingestd backup` made.")],
) -> None:
    """Make the database of a backup; where there is one already, nothing is done.

    Files that were put away after the backup are not in it: `ingestd fsck` names each as
    file_unknown, and dropped into the inbox again they are taken again.
    """
    from ingestd import migrate
    from ingestd.cli import screen
    from ingestd.config import redacted_url

    settings = flags.settings()
    with screen.progress("restoring") as on_progress:
        revision = _backups(settings, on_progress).restore(file)
    screen.say(f"{redacted_url(settings.database.url)}: as it was in {file}", colour_of="ok")
    if revision != migrate.head():
        screen.say(
            f"its schema is {revision}, this program needs {migrate.head()}; "
            "next: ingestd db upgrade",
            colour_of="warn",
        )
    screen.say("does it fit to archive and inbox? next: ingestd fsck")


def before_change(settings: Settings, revision: str) -> Path | None:
    """Make a backup beside an SQLite database before its schema changes; None for PostgreSQL."""
    from ingestd.cli import screen
    from ingestd.cli.database import sqlite_file
    from ingestd.moving.backup import refuse_without_room

    file = sqlite_file(settings.database.url)
    if file is None:
        return None
    refuse_without_room(settings.database.url, file.parent)
    kept = file.with_name(f"{file.name}.{revision}-{_now()}")
    with screen.progress("backup") as on_progress:
        _backups(settings, on_progress).make(kept)
    return kept


def _backups(settings: Settings, on_progress: Callable[[str, int, int], None]) -> Backups:
    from ingestd.moving.backup import Backups

    database = settings.database
    return Backups(
        url=database.url,
        postgresql_programs=database.postgresql_programs,
        on_progress=on_progress,
    )


def _refuse_no_database(settings: Settings) -> None:
    from ingestd.cli.database import sqlite_file
    from ingestd.config import ConfigError

    file = sqlite_file(settings.database.url)
    if file is not None and not file.exists():
        raise ConfigError(f"{file}: no database yet; there is nothing to keep")


def _name(settings: Settings) -> str:
    suffix = "db" if settings.database.url.startswith("sqlite") else "dump"
    return f"ingestd-{_now()}.{suffix}"


def _now() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


# Copies -------------------------------------------------------------------------------------


def copy(
    flags: Flags,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="URL", help="An SQLite file that is not there, or an empty PostgreSQL."
        ),
    ],
    *,
    is_checked: Annotated[
        bool, typer.Option("--fsck/--no-fsck", help="Let fsck look at both sides afterwards.")
    ] = True,
    is_thorough: Annotated[
        bool, typer.Option("--bytes", help="Let fsck read the archived bytes again, too.")
    ] = False,
    is_json: Json = False,
) -> None:
    """Copy the database whole into another one: from SQLite to PostgreSQL, or back.

    One moment is copied, every row is read back and compared, and then fsck looks at both. Stop
    the daemon before, set database.url to the copy after, and start it again. Exit status 1
    when fsck names a difference, or when the source went on meanwhile.
    """
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.config import ConfigError, load_settings
    from ingestd.moving import copying

    settings = flags.settings()
    target = load_settings(flags.config, database__url=to)
    if target.database.url == settings.database.url:
        raise ConfigError("--to names the database that is to be copied")
    with opened(settings, writer=False) as source, screen.progress("copying") as on_progress:
        copied = copying.copy(source, target.database.url, on_progress=on_progress)
    answers: dict[str, Answer] = {}
    if is_checked:
        answers["source"] = _fsck(settings, is_thorough=is_thorough)
        answers["copy"] = _fsck(target, is_thorough=is_thorough)
    if is_json:
        counts = {side: dict(answer.counts) for side, answer in answers.items()}
        rows = {name: digest.rows for name, digest in copied.tables.items()}
        screen.print_json({"rows": rows, "is_behind": copied.is_behind, "fsck": counts})
    else:
        _tell(copied, answers)
    if copied.is_behind or any(answer.counts for answer in answers.values()):
        raise typer.Exit(FINDINGS)


def _fsck(settings: Settings, *, is_thorough: bool) -> Answer:
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.cli.fsck import Answer, checker, differences

    answer = Answer()
    with opened(settings, writer=False) as engine, screen.progress("fsck") as on_progress:
        check = checker(settings, engine, is_quick=not is_thorough, on_progress=on_progress)
        for difference in differences(engine, check):
            answer.take(difference)
    return answer


def _tell(copied: Copied, answers: dict[str, Answer]) -> None:
    from ingestd.cli import screen

    tables = [(name, digest.rows) for name, digest in copied.tables.items() if digest.rows]
    screen.show(("table", "rows"), tables)
    screen.say(f"{screen.amount(copied.rows, 'row')} read back: the same", colour_of="ok")
    for side, answer in answers.items():
        if not answer.counts:
            screen.say(f"fsck of the {side}: sound", colour_of="ok")
        for each in answer.told:
            screen.say(f"fsck of the {side}: {each.code}: {each.about}", colour_of="fail")
            screen.say(f"    {each.what}")
    if copied.is_behind:
        screen.say(
            "the source went on meanwhile, and the copy ends where it began: stop the daemon, "
            "empty the target, copy again",
            colour_of="fail",
        )
    elif not any(answer.counts for answer in answers.values()):
        screen.say("next: set database.url to the copy, and start the daemon again")


# Who may read -------------------------------------------------------------------------------

_HOW_ON_SQLITE = """\
SQLite knows no roles: who may read the file, reads it. Let people open it read-only.

  sqlite3 -readonly {file}
  sqlite3.connect("file:{file}?mode=ro", uri=True)        # Python
  datasette serve {file}                                  # reads only
  PRAGMA query_only = ON;                                 # in a session that is open already

To read while a daemon writes they need the right to read {name}, {name}-wal and {name}-shm, and
to write the last: the same group, chmod g+rw, and a folder with setgid. A copy by
`ingestd backup` needs none of this. Nobody should keep a read open for hours: the write-ahead
log grows meanwhile (database.wal_warn_mb)."""


def grant_reader(
    flags: Flags,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="Made, where it is not there.")],
    *,
    is_asking: Annotated[
        bool,
        typer.Option("--password", help="Ask for its password, or read a line of standard input."),
    ] = False,
) -> None:
    """Let a role of PostgreSQL read all tables and views, and nothing else; on SQLite, say how.

    It holds for the tables of later upgrades, too. Making a role takes a role that may make
    them: where the service's own may not, say it as the superuser.
    """
    from ingestd.cli import screen
    from ingestd.cli.database import opened, sqlite_file

    settings = flags.settings()
    if (file := sqlite_file(settings.database.url)) is not None:
        for line in _HOW_ON_SQLITE.format(file=file, name=file.name).splitlines():
            screen.say(line)
        return
    from ingestd.moving.reader import grant

    with opened(settings, writer=True) as engine:
        is_new = grant(engine, role, password=_password() if is_asking else None)
        name = engine.url.database
    screen.say(f"{role} {'was made, and' if is_new else 'was there, and'} may read {name}")
    if is_new and not is_asking:
        screen.say("it has no password: pg_hba.conf says who may be it", colour_of="warn")


def _password() -> str:
    from ingestd.config import ConfigError

    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    line = sys.stdin.readline().rstrip("\n")
    if not line:
        raise ConfigError("--password: no line on standard input")
    return line
