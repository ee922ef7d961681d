"""The command line: what a person asks, and what a script reads.

Exit status: 0 fine, 1 findings, 2 usage or configuration, 3 an error inside ingestd, 4 the
inbox was away for too long (`run`), 130 stopped by Ctrl-C (143 by SIGTERM). Heavy modules are
imported by the commands that need them, so that `ingestd --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ingestd.cli import (
    check,
    coverage,
    findings,
    fsck,
    jobs,
    notify,
    prune,
    rejects,
    rulebook,
    schema,
    simulation,
    stats,
    status,
    unit,
    work,
)
from ingestd.cli.flags import HELP_NAMES, Config, DatabaseUrl, Debug, Flags

app = typer.Typer(
    name="ingestd",
    help="Ingest e-voting transaction exports into SQL tables, every line accounted for.",
    epilog="Example: ingestd init . && ingestd run",
    context_settings=HELP_NAMES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(is_asked: bool) -> None:  # noqa: FBT001 - Typer calls it so
    if is_asked:
        from ingestd import __version__  # noqa: PLC0415 - reads the metadata of the package

        typer.echo(f"ingestd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    *,
    config: Config = None,
    database_url: DatabaseUrl = None,
    debug: Debug = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_tell_version, help="Tell the version and stop."
        ),
    ] = False,
) -> None:
    del version
    ctx.obj = Flags(config, database_url, debug)


# In the order in which a person meets them.
work.add_to(app)
check.add_to(app)
status.add_to(app)
jobs.add_to(app)
rejects.add_to(app)
findings.add_to(app)
stats.add_to(app)
rulebook.add_to(app)
coverage.add_to(app)
notify.add_to(app)
fsck.add_to(app)
prune.add_to(app)
simulation.add_to(app)
schema.add_to(app)
unit.add_to(app)


def main() -> None:
    """Run `ingestd` as a program."""
    for stream in (sys.stdout, sys.stderr):
        # Names are Russian: a terminal that cannot show them gets escapes, not a traceback.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a real file
    app(prog_name="ingestd")
