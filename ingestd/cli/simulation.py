"""`simulate`: an election that never was, and the truth about it."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import Flags, Json, command

if TYPE_CHECKING:
    from ingestd.simulate import Packing, Truth

ALL = "all"


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = (
        "ingestd simulate simulated --defects all",
        "ingestd simulate big --constituencies 100 --hours 60 --zip --seed 7",
    )
    command(app, "simulate", examples=examples)(simulate)


def _tell_defects(is_asked: bool) -> None:  # noqa: FBT001 - Typer calls it so
    if is_asked:
        from ingestd.cli import screen
        from ingestd.simulate import defect_descriptions

        screen.show(("defect", "what it does"), list(defect_descriptions().items()))
        raise typer.Exit


def simulate(  # noqa: PLR0913 - one for each number of the plan
    flags: Flags,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    *,
    seed: Annotated[int, typer.Option(help="Equal seeds write equal files.")] = 1,
    constituencies: Annotated[int, typer.Option(min=1, help="How many.")] = 6,
    regions: Annotated[int, typer.Option(min=1, help="How many.")] = 2,
    day: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="The first day of voting.")
    ] = datetime(2024, 9, 6),  # noqa: DTZ001 - a calendar day
    hours: Annotated[int, typer.Option(min=1, help="Voting hours from 08:00; 60 is 3 days.")] = 12,
    voters_median: Annotated[int, typer.Option(min=1, help="Of a constituency.")] = 600,
    voters_sigma: Annotated[
        float, typer.Option(min=0, help="How unlike constituencies are (log-normal).")
    ] = 1.25,
    voters_min: Annotated[int, typer.Option(min=1, help="Of a constituency.")] = 15,
    voters_max: Annotated[int, typer.Option(min=1, help="Of a constituency.")] = 30_000,
    roll: Annotated[
        list[int] | None,
        typer.Option(help="Voters of one constituency; once for each, instead of drawing them."),
    ] = None,
    voters_per_list: Annotated[int, typer.Option(min=1, help="Voters in one list row.")] = 5_000,
    option: Annotated[
        list[int] | None, typer.Option(help="Options of a ballot; repeatable: one is drawn.")
    ] = None,
    is_zip: Annotated[bool, typer.Option("--zip", help="One ZIP for each file.")] = False,
    is_zip_of_zips: Annotated[
        bool, typer.Option("--zip-of-zips", help="ZIPs inside ZIPs.")
    ] = False,
    is_csv: Annotated[bool, typer.Option("--csv", help="Bare CSVs (the usual).")] = False,
    has_folders: Annotated[
        bool, typer.Option("--folders/--flat", help="Folders as on the portal, or none.")
    ] = True,
    is_hourly: Annotated[bool, typer.Option("--hourly/--no-hourly", help="Hourly files.")] = True,
    is_whole: Annotated[
        bool, typer.Option("--whole/--no-whole", help="A file of the whole voting, too.")
    ] = False,
    has_empty_hours: Annotated[
        bool, typer.Option("--empty-hours/--no-empty-hours", help="Empty files of quiet hours.")
    ] = True,
    defect: Annotated[
        list[str] | None,
        typer.Option(
            "--defect", "--defects", metavar="NAME|all", help="What goes wrong; repeatable."
        ),
    ] = None,
    has_transactions: Annotated[
        bool,
        typer.Option("--transactions", help="Every transaction in truth.json; small plans only."),
    ] = False,
    is_listing: Annotated[
        bool,
        typer.Option(
            "--list-defects", is_eager=True, callback=_tell_defects, help="Tell them and stop."
        ),
    ] = False,
    is_json: Json = False,
) -> None:
    """Write an election: files (drop/, drop-2/), and what a reader must find (truth.json)."""
    from ingestd.cli import screen
    from ingestd.config import ConfigError
    from ingestd.simulate import Plan, defect_names
    from ingestd.simulate import simulate as write

    del flags, is_listing
    given = tuple(defect or ())
    try:
        plan = Plan(
            seed=seed,
            constituencies=constituencies,
            regions=regions,
            day=day.date(),
            hours=hours,
            voters_median=voters_median,
            voters_sigma=voters_sigma,
            voters_min=voters_min,
            voters_max=voters_max,
            rolls=tuple(roll) if roll else None,
            voters_per_list=voters_per_list,
            options=tuple(option) if option else Plan().options,
            packing=_packing(is_zip=is_zip, is_zip_of_zips=is_zip_of_zips, is_csv=is_csv),
            folders=has_folders,
            hourly=is_hourly,
            whole=is_whole,
            empty_hours=has_empty_hours,
            defects=defect_names() if ALL in given else given,
            transactions_in_truth=has_transactions,
        )
        with _progress() as progress:
            truth = write(folder, plan, progress=progress)
    except (ValueError, FileExistsError) as error:
        raise ConfigError(str(error)) from error
    if is_json:
        screen.print_json({"folder": folder, "totals": truth.totals})
    else:
        _tell(folder, truth)


def _packing(*, is_zip: bool, is_zip_of_zips: bool, is_csv: bool) -> Packing:
    if is_zip + is_zip_of_zips + is_csv > 1:
        raise ValueError("--csv, --zip and --zip-of-zips: one of them")
    if is_zip:
        return "zip"
    return "zip-of-zips" if is_zip_of_zips else "csv"


@contextmanager
def _progress() -> Iterator[Callable[[int], None] | None]:
    """The bytes written so far, on a terminal."""
    from ingestd.cli import screen

    console = screen.console(to_stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("0 B", total=None)
        written = 0

        def tell(more: int) -> None:
            nonlocal written
            written += more
            bar.update(task, description=screen.size(written))

        yield tell


def _tell(folder: Path, truth: Truth) -> None:
    from ingestd.cli import screen

    totals = truth.totals
    files, rows = (screen.amount(totals[key], key[:-1]) for key in ("files", "lines"))
    places = "constituency" if totals["constituencies"] == 1 else "constituencies"
    screen.say(
        f"{files}, {rows.replace('line', 'row')}, {screen.size(totals['bytes'])} of CSV "
        f"in {totals['constituencies']} {places}"
    )
    screen.show(("what should become of them", ""), list(totals["outcomes"].items()))
    if truth.defects:
        counts = [(name, len(findings)) for name, findings in truth.defects.items()]
        screen.show(("defect", "times"), counts)
    screen.say()
    screen.say("Next (drop-2 comes after drop: it holds publications again):")
    screen.say(f"  ingestd once {shlex.quote(str(folder / 'drop'))}")
    screen.say(f"  ingestd once {shlex.quote(str(folder / 'drop-2'))}")
    screen.say(f"The truth to compare with: {folder / 'truth.json'}")
