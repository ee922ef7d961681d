"""`prune`: archived files that are kept twice need not be."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, Flags, Json, command
from ingestd.cli.jobs import note

if TYPE_CHECKING:
    from ingestd.pipeline.prune import Prune, Redundant


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd prune --dry-run --older-than 30", "ingestd prune --yes")
    command(app, "prune", examples=examples)(prune)


def prune(
    flags: Flags,
    *,
    days: Annotated[
        int | None,
        typer.Option(
            "--older-than",
            metavar="DAYS",
            min=0,
            help="Leave what is newer.",
            show_default="keep.redundant_days",
        ),
    ] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    is_json: Json = False,
) -> None:
    """Remove archived files of which another archived file, read again now, holds every row.

    These are duplicates, and earlier publications that a later one repeats whole. What is the
    only copy of anything stays, and so do jobs, rows, rejects, alerts, quarantine and audit
    log, which gets a line for each file. Exit status 1 when a file that stays is not sound.
    """
    from ingestd.cli.database import opened
    from ingestd.config import ConfigError
    from ingestd.db import make_sessions
    from ingestd.pipeline.prune import Prune
    from ingestd.pipeline.worker import utc_now

    settings = flags.settings()
    least = settings.keep.redundant_days if days is None else days
    if days is None and not least:
        raise ConfigError("everything is kept: set keep.redundant_days, or say --older-than DAYS")
    if not (is_dry or is_sure or sys.stdin.isatty()):
        raise ConfigError("files are removed; say --yes to mean it, or --dry-run to see which")
    with opened(settings, writer=not is_dry) as engine:
        sessions = make_sessions(engine)
        pruning = Prune(sessions=sessions, clock=utc_now, keep=timedelta(days=least))
        found = list(pruning.found())
        if found and not (is_dry or is_sure):
            _tell(found, [], is_dry=True)
            typer.confirm("Remove them?", abort=True)
        left = [] if is_dry else _take_away(pruning, found)
    if is_json:
        _print(found, left, is_dry=is_dry)
    else:
        _tell(found, left, is_dry=is_dry)
    if left:
        raise typer.Exit(FINDINGS)


def _take_away(pruning: Prune, found: list[Redundant]) -> list[Redundant]:
    """Remove them, and what an earlier call left; the ones that had to stay."""
    for path in pruning.leftovers():
        path.unlink()
    return [each for each in found if not pruning.take_away(each, note)]


def _print(found: list[Redundant], left: list[Redundant], *, is_dry: bool) -> None:
    from ingestd.cli import screen

    told = [
        {
            "path": each.path,
            "bytes": each.size,
            "jobs": each.job_ids,
            "kept_by": each.kept_by,
            "is_removed": not is_dry and each not in left,
        }
        for each in found
    ]
    screen.print_json({"files": told})


def _tell(found: list[Redundant], left: list[Redundant], *, is_dry: bool) -> None:
    from ingestd.cli import screen

    gone = [each for each in found if each not in left]
    for each in gone:
        held = ", ".join(map(str, each.kept_by))
        screen.say(f"{'would go' if is_dry else 'removed'}: {each.path}, held by {held}")
    for each in left:
        screen.say(f"left: {each.path}, since what holds it is not sound", colour_of="fail")
    size = screen.size(sum(each.size for each in gone))
    screen.say(f"{screen.amount(len(gone), 'file')}, {size}{', nothing done' if is_dry else ''}")
    if left:
        screen.say("next: ingestd fsck")
