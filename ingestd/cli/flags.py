"""The options of every command, and what its errors become: one sentence and an exit status."""

# ruff: noqa: PLC0415 - `--help` needs neither Pydantic nor SQLAlchemy

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

    from ingestd.config import Settings

FINDINGS, USAGE, INTERNAL, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses other than 0."""

STOPPED = 128
"""And a signal's number on top, as shells do: 130 for Ctrl-C, 143 for SIGTERM."""

_FORBIDDEN = "42501"  # SQLSTATE insufficient_privilege

HELP_NAMES = {"help_option_names": ["--help", "-h"]}

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="PATH", help="The configuration file.", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        help="The database; wins over environment and file.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Log more, and show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
Csv = Annotated[bool, typer.Option("--csv", help="CSV on standard output.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")]
Offset = Annotated[int, typer.Option(min=0, help="How many to skip.")]

_EVERYWHERE: dict[str, tuple[Any, object]] = {
    "config": (Config, None),
    "database_url": (DatabaseUrl, None),
    "debug": (Debug, False),
}


@dataclass(frozen=True)
class Flags:
    """What was given to every command alike."""

    config: Path | None = None
    database_url: str | None = None
    is_debug: bool = False

    def settings(self) -> Settings:
        """The settings: flag over environment over file. Raises ConfigError."""
        from ingestd.config import load_settings

        return load_settings(self.config, database__url=self.database_url)

    def over(self, weaker: Flags | None) -> Flags:
        """These, and what was given before the sub-command where these say nothing."""
        if weaker is None:
            return self
        return Flags(
            self.config or weaker.config,
            self.database_url or weaker.database_url,
            self.is_debug or weaker.is_debug,
        )


Command = Callable[..., None]


def command(
    app: typer.Typer, name: str, *, examples: str | tuple[str, ...], is_group: bool = False
) -> Callable[[Command], Command]:
    """Add a function to the app as a command that takes the options of every command, too.

    The function is called with `Flags` and its own options. A group's function runs only
    where no sub-command follows.
    """
    given = (examples,) if isinstance(examples, str) else examples
    epilog = "\n\n".join(f"Example: {example}" for example in given)

    def register(function: Command) -> Command:
        guarded = _guarded(function)
        if is_group:
            app.callback(invoke_without_command=True, epilog=epilog)(guarded)
        else:
            app.command(name, epilog=epilog, context_settings=HELP_NAMES)(guarded)
        return function

    return register


def _guarded(function: Command) -> Command:
    @functools.wraps(function)
    def guarded(
        ctx: typer.Context,
        *,
        config: Path | None,
        database_url: str | None,
        debug: bool,
        **own: object,
    ) -> None:
        flags = Flags(config, database_url, debug).over(ctx.obj)
        ctx.obj = flags
        if ctx.invoked_subcommand is None:
            with exit_statuses(flags):
                function(flags, **own)

    # Typer reads a command's options from its signature, so the common ones are written there.
    hints = get_type_hints(function, include_extras=True)
    told = list(inspect.signature(function).parameters.values())[1:]
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(each.replace(annotation=hints[each.name]) for each in told),
        *(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
            )
            for name, (annotation, default) in _EVERYWHERE.items()
        ),
    ]
    del guarded.__wrapped__  # else Typer would look behind it
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # PEP 362
    guarded.__annotations__ = {each.name: each.annotation for each in parameters}
    return guarded


@contextmanager
def exit_statuses(flags: Flags) -> Iterator[None]:
    """Turn errors into a sentence on standard error and an exit status."""
    from ingestd import log

    # On standard error from the first line on: standard output belongs to the answer.
    log.configure("debug" if flags.is_debug else "warning", "auto")
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - no traceback ever reaches a user unasked
        if flags.is_debug:
            _tell_traceback(error)
        sentence = _sentence(error)
        if sentence is None:
            told = f"{type(error).__name__}: {error}".replace("\n", " ")
            hint = "" if flags.is_debug else "; run with --debug for the traceback"
            complain(f"internal error: {told}{hint}")
            raise typer.Exit(INTERNAL) from None
        complain(sentence)
        raise typer.Exit(USAGE) from None


def complain(text: str) -> None:
    """Write to standard error what is wrong, with nothing in it that a terminal obeys."""
    from ingestd.log import escape, redact

    for line in redact(text).split("\n"):
        print(f"ingestd: {escape(line)}", file=sys.stderr, flush=True)  # noqa: T201 - the place for it


def _sentence(error: Exception) -> str | None:
    """What a person can do something about, in words; None for a fault of this program."""
    from sqlalchemy.exc import DBAPIError

    from ingestd.config import ConfigError
    from ingestd.errors import IngestError, StorageFault

    match error:
        case StorageFault():
            return f"the database does not answer: {error}"
        case ConfigError() | IngestError():
            return str(error)
        case DBAPIError() if _is_about_access(error):
            return f"the database does not answer: {str(error.orig).strip()}"
        case ModuleNotFoundError(name="psycopg"):
            return "PostgreSQL needs one package more: pip install 'ingestd[postgresql]'"
        case OSError() if error.filename is not None:
            return f"{_name(error.filename)}: {error.strerror}"
        case OSError() if error.strerror:
            return error.strerror
    return None


def _name(filename: object) -> str:
    if isinstance(filename, bytes):
        return filename.decode("utf-8", "surrogateescape")
    return str(filename)


def _is_about_access(error: DBAPIError) -> bool:
    """Refused at the door: away, locked, no right to a table, a file that is no database."""
    from ingestd.transient import is_transient

    is_forbidden = getattr(error.orig, "sqlstate", None) == _FORBIDDEN
    return is_transient(error) or is_forbidden or "not a database" in str(error.orig)


def _tell_traceback(error: Exception) -> None:
    from ingestd.log import escape, redact

    for line in "".join(traceback.format_exception(error)).splitlines():
        print(escape(redact(line)), file=sys.stderr, flush=True)  # noqa: T201 - asked for by --debug
