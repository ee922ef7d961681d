"""`coverage`: which hours of which constituencies are here."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestd.cli.flags import FINDINGS, Csv, Flags, Json, command

if TYPE_CHECKING:
    from ingestd.pipeline.feed import Covered

_STATES = ("delivered", "empty", "superseded", "refused", "missing")
_SIGNS = {"delivered": "█", "empty": "·", "superseded": "▓", "refused": "!", "missing": "×"}


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd coverage --region 77", "ingestd coverage --csv > coverage.csv")
    command(app, "coverage", examples=examples)(coverage)


def coverage(
    flags: Flags,
    *,
    contract: Annotated[str | None, typer.Option(help="Only of this contract.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="CODE", help="Only constituencies of this region.")
    ] = None,
    is_gaps: Annotated[
        bool, typer.Option("--gaps", help="Only constituencies that lack something.")
    ] = False,
    is_json: Json = False,
    is_csv: Csv = False,
) -> None:
    """Show for each constituency which hourly files are here.

    Constituencies that only the settings name stand here, too, until something comes. A missing
    hour is unknown, not zero: what is counted without it is provisional. Exit status 1 when an
    hour is missing.
    """
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.config import ConfigError
    from ingestd.pipeline.feed import coverage as covered

    settings = flags.settings()
    with reading(settings) as session:
        everything = list(covered(session, held=settings.held))
    if contract is not None and contract not in {one.contract_id for one in everything}:
        raise ConfigError(
            f"no constituency with the contract {contract}; `ingestd coverage` lists them"
        )
    found = [
        one
        for one in everything
        if contract in (None, one.contract_id)
        and region in (None, one.region_code)
        and (one.is_provisional or not is_gaps)
    ]
    if is_json:
        screen.print_json({"constituencies": [_told(one) for one in found]})
    elif is_csv:
        # What never came has no hours, and must not be left out for that.
        cells = (
            (one.contract_id, slot, what)
            for one in found
            for slot, what in (one.slots or {"": "" if one.has_files else "missing"}).items()
        )
        screen.print_csv(("contract_id", "slot", "state"), cells)
    else:
        _show(found)
    if any(one.is_provisional for one in found):
        raise typer.Exit(FINDINGS)


def _told(one: Covered) -> dict[str, Any]:
    return {
        "contract_id": one.contract_id,
        "region_code": one.region_code,
        "name": one.name,
        "has_files": one.has_files,
        "has_whole": one.has_whole,
        "is_provisional": one.is_provisional,
        "slots": dict(one.slots),
    }


def _show(found: list[Covered]) -> None:
    from ingestd.cli import screen

    if not found:
        screen.say("no constituencies")
        return
    rows: list[tuple[Any, ...]] = []
    for one in found:
        counts = Counter(one.slots.values())
        strip = "".join(_SIGNS[state] for state in one.slots.values())
        word = "provisional" if one.is_provisional else "whole file" if one.has_whole else ""
        word = word if one.has_files else "nothing came"
        about = (one.region_code or "", one.name or "", one.contract_id)
        rows.append((*about, *(counts[state] for state in _STATES), word, strip))
    screen.show(("region", "constituency", "contract", *_STATES, "", "hours"), rows)
    signs = ", ".join(f"{sign} {state}" for state, sign in _SIGNS.items())
    screen.say(signs)
