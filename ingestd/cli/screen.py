"""What is shown: tables for people, JSON and CSV for programs.

Everything may hold text from files: on its way to a terminal it is escaped, and it is never
read as markup.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ingestd.log import escape

if TYPE_CHECKING:
    from ingestd.crud import Page

Cell = str | int | float | datetime | UUID | Text | None

_WIDTH_ELSEWHERE = 1000
_COLOURS = {
    **dict.fromkeys(("ok", "completed", "accepted"), "green"),
    **dict.fromkeys(("warn", "warning", "failed", "vanished", "pending", "waiting"), "yellow"),
    **dict.fromkeys(("fail", "critical", "quarantined"), "bold red"),
}


def console(*, to_stderr: bool = False) -> Console:
    """A console for the stream as it is now; where nobody looks, lines are long enough."""
    width = None
    if not (sys.stderr if to_stderr else sys.stdout).isatty():
        width = int(os.environ.get("COLUMNS") or _WIDTH_ELSEWHERE)
    return Console(stderr=to_stderr, width=width, highlight=False, markup=False, emoji=False)


@contextmanager
def progress(at_first: str) -> Iterator[Callable[[str, int, int], None]]:
    """How far it has come (stage, done, of how much), on a terminal only."""
    target = console(to_stderr=True)
    if not target.is_terminal:
        yield lambda _stage, _done, _total: None
        return
    with target.status(at_first) as status:

        def tell(stage: str, done: int, total: int) -> None:
            of = f" of {number(total)}" if total else ""
            status.update(f"{stage}: {number(done)}{of}")

        yield tell


def say(line: str = "", *, colour_of: str | None = None) -> None:
    """One line for a person, not cut and not wrapped."""
    text = Text(escape(line), style=_COLOURS.get(colour_of or "", ""))
    console().print(text, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table of safe texts; numbers stand to the right."""
    drawn = Table(box=None, show_header=any(columns), pad_edge=False, padding=(0, 2, 0, 0))
    cells = [list(row) for row in rows]
    for at, name in enumerate(columns):
        is_number = any(isinstance(row[at], int | float) for row in cells)
        drawn.add_column(
            Text(name, style="dim"), justify="right" if is_number else "left", overflow="fold"
        )
    for row in cells:
        drawn.add_row(*map(shown, row))
    return drawn


def show(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table."""
    draw(table(columns, rows))


def draw(drawn: RenderableType) -> None:
    """Print what Rich draws; for programs, without the blanks that fill its lines."""
    target = console()
    if target.is_terminal:
        target.print(drawn)
        return
    with target.capture() as captured:
        target.print(drawn)
    for line in captured.get().rstrip("\n").split("\n"):
        print(line.rstrip())  # noqa: T201 - the answer


def shown(value: Cell) -> Text:
    """A value as a person reads it; text is escaped."""
    match value:
        case Text():
            return value
        case None:
            return Text("–", style="dim")
        case bool():
            return Text("yes" if value else "no")
        case int():
            return Text(number(value))
        case float():
            return Text(f"{value:.3g}")
        case datetime():
            return Text(moment(value))
        case _:
            text = str(value)
            return Text(escape(text), style=_COLOURS.get(text, ""))


def number(value: int) -> str:
    """1 234 567."""
    return f"{value:,}".replace(",", " ")


def amount(value: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number(value)} {what}{'' if value == 1 else 's'}"


def size(value: float) -> str:
    """1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:  # noqa: PLR2004 - SI
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def moment(value: datetime) -> str:
    """2024-09-06 12:00:05Z."""
    return f"{value:%Y-%m-%d %H:%M:%S}Z"


def cut(text: str | None, most: int) -> str | None:
    """At most so many characters of a text that may have millions."""
    return text if text is None or len(text) <= most else f"{text[: most - 1]}…"


def tell_page(page: Page[Any], *, what: str) -> None:
    """`showing 1–50 of 1 234 jobs, --offset 50 for more`."""
    if not page.items:
        beyond = f" from {number(page.offset)} on" if page.offset and page.total else ""
        say(f"no {what}{beyond}" + (f" (of {number(page.total)})" if beyond else ""))
        return
    last = page.offset + len(page.items)
    more = f", --offset {last} for more" if last < page.total else ""
    say(f"showing {number(page.offset + 1)}–{number(last)} of {number(page.total)} {what}{more}")


def print_json(value: object) -> None:
    """JSON without colours; what a terminal might obey is written as an escape of JSON's own."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_as_json)
    # Only strings can hold such characters, and line ends are ours.
    safe = "".join(
        char if char == "\n" or char.isprintable() else json.dumps(char)[1:-1] for char in text
    )
    print(safe)  # noqa: T201 - the answer


def _as_json(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case UUID() | Path():
            return str(value)
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not asdict(): it can't copy a Counter, and goes deeper than is asked here.
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON")


def print_page(page: Page[Any], items: Sequence[object]) -> None:
    """A page as JSON."""
    whole = {"total": page.total, "offset": page.offset, "limit": page.limit, "items": items}
    print_json(whole)


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """CSV with one line for each row; a text that a spreadsheet would run gets an apostrophe."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row])


def _csv_cell(value: Cell) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case str() if value.startswith(("=", "+", "-", "@", "\t", "\r")):
            return escape(f"'{value}")
        case str():
            return escape(value)
        case Text():
            return value.plain
    return value
