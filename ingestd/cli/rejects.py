"""`rejects`: refused rows looked at, written out to be mended, and taken back."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import csv
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, Csv, Flags, Json, Limit, Offset, command, complain
from ingestd.cli.jobs import JobId, note, the_job

if TYPE_CHECKING:
    from ingestd.crud import Page
    from ingestd.models import Reject
    from ingestd.pipeline.replay import Answer, MendedRow

_SHORTEST_PREFIX = 8
_LONGEST_VALUE = 60
_MOST_TOLD = 1_000
_EXPORTED_AT_ONCE = 50
_COLUMNS = ("job", "line", "is_cut", "field", "reason", "text")
# No spreadsheet takes a cell that begins so for a formula.
_MARK = "> "


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="The rows that were refused.")
    examples = ("ingestd rejects --job 1b4e28ba", "ingestd rejects --job 1b4e28ba --raw > bad.txt")
    command(group, "rejects", examples=examples, is_group=True)(rejects)
    command(group, "export", examples="ingestd rejects export 1b4e28ba > bad.csv")(export)
    command(group, "replay", examples="ingestd rejects replay bad.csv")(replay)
    app.add_typer(group, name="rejects")


def rejects(  # noqa: PLR0913 - one for each option
    flags: Flags,
    *,
    job_id: Annotated[
        str | None, typer.Option("--job", metavar="JOB", help="Only of this job.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
    is_json: Json = False,
    is_csv: Csv = False,
    is_raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Only the raw text of the lines, as they were (a terminal gets them escaped).",
        ),
    ] = False,
) -> None:
    """List rows that were refused: where, which field, which value, why.

    To mend rows: export them, edit the column `text`, replay the file.
    """
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.schemas import RejectResponse

    with reading(flags.settings()) as session:
        file_id = the_job(session, job_id).id if job_id else None
        page = crud.rejects.find(
            session, file_id=file_id, kind=kind, window=crud.Window(offset, limit)
        )
        if is_raw:
            _print_raw(page)
        elif is_json:
            items = [RejectResponse.model_validate(each).model_dump() for each in page.items]
            screen.print_page(page, items)
        elif is_csv:
            columns = ("file_id", "line", "field", "kind", "value", "reason", "raw_text", "is_cut")
            rows = (
                (*_reject_row(each, each.value), each.raw_text, str(each.is_cut).lower())
                for each in page.items
            )
            screen.print_csv(columns, rows)
        else:
            heads = ("job", "line", "field", "kind", "value", "reason")
            values = [screen.cut(each.value, _LONGEST_VALUE) for each in page.items]
            told = [
                _reject_row(each, value) for each, value in zip(page.items, values, strict=True)
            ]
            if told:
                screen.show(heads, [(str(row[0])[:_SHORTEST_PREFIX], *row[1:]) for row in told])
            screen.tell_page(page, what="rejects")
    if (is_csv or is_raw) and page.offset + len(page.items) < page.total:
        last = page.offset + len(page.items)
        complain(f"{last} of {page.total} rejects, --offset {last} for more")


def _reject_row(reject: Reject, value: str | None) -> tuple[str | int | None, ...]:
    where = (str(reject.file_id), reject.line_number, reject.field, reject.kind)
    return (*where, value, reject.reason)


def _print_raw(page: Page[Reject]) -> None:
    from ingestd.log import escape

    is_terminal = sys.stdout.isatty()
    for each in page.items:
        text = each.raw_text.rstrip("\r\n")
        print(escape(text) if is_terminal else text)  # noqa: T201 - the answer
        if each.is_cut:
            complain(f"line {each.line_number} was longer than what is kept (raw_text_bytes)")


# Mending ------------------------------------------------------------------------------------


def export(flags: Flags, job_id: JobId) -> None:
    """Write the refused rows of a job as CSV, to be mended and replayed.

    UTF-8 with the columns job, line, is_cut, field, reason, text. Edit `text` and nothing else:
    it holds the whole row behind a "> ", quoted as CSV wants it. `is_cut` says that the row was
    longer than what is kept (limits.raw_text_bytes): its text must be completed. Rows that were
    replayed already are left out; lines that you delete stay refused.
    """
    from ingestd import crud
    from ingestd.cli.database import reading
    from ingestd.log import escape

    is_terminal = sys.stdout.isatty()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    with reading(flags.settings()) as session:
        job = the_job(session, job_id)
        for each in crud.rejects.walk(session, file_id=job.id, at_once=_EXPORTED_AT_ONCE):
            text = escape(each.raw_text) if is_terminal else each.raw_text
            about = (each.field or "", escape(each.reason))
            is_cut = str(each.is_cut).lower()
            writer.writerow((each.file_id, each.line_number, is_cut, *about, f"{_MARK}{text}"))
            session.expunge(each)


def replay(
    flags: Flags,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An edited export.")],
    *,
    is_json: Json = False,
) -> None:
    """Take mended rows in, each as the row at its line of its file.

    FILE is what `ingestd rejects export` wrote, with the column `text` edited. The books of the
    job, hours and alerts follow in the same commit; the refused row stays as evidence. A row
    that is still bad changes nothing; replaying a file twice changes nothing either.

    Exit status 1 when a row is still bad.
    """
    from ingestd import assembly
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.pipeline.replay import replay as replay_rows

    settings = flags.settings()
    counts: Counter[str] = Counter()
    bad: list[Answer] = []
    longest = settings.limits.max_line_bytes
    with opened(settings, writer=True) as engine, _mended(file, longest) as rows:
        ingest = assembly.make_ingest(settings, engine, is_archiving=False)
        for answer in replay_rows(ingest, rows, note):
            counts[answer.became] += 1
            if answer.became == "still bad" and len(bad) < _MOST_TOLD:
                bad.append(answer)
    if is_json:
        told = [_told(answer) for answer in bad]
        screen.print_json({"rows": dict(counts), "still_bad": told})
    else:
        screen.show(("rows", ""), list(counts.items()))
        _tell_bad(bad, counts["still bad"])
    if counts["still bad"]:
        raise typer.Exit(FINDINGS)


def _told(answer: Answer) -> dict[str, object]:
    where = {"job": answer.row.job_id, "line": answer.row.line}
    return {**where, "field": answer.field, "value": answer.value, "reason": answer.reason}


def _tell_bad(bad: list[Answer], number: int) -> None:
    from ingestd.cli import screen

    if not bad:
        return
    screen.say()
    rows = [
        (
            str(answer.row.job_id)[:_SHORTEST_PREFIX],
            answer.row.line,
            answer.field,
            screen.cut(answer.value, _LONGEST_VALUE),
            answer.reason,
        )
        for answer in bad
    ]
    screen.show(("job", "line", "field", "value", "still bad because"), rows)
    if number > len(bad):
        screen.say(f"and {screen.number(number - len(bad))} more")


@contextmanager
def _mended(file: Path, longest: int) -> Iterator[Iterator[MendedRow]]:
    """The rows of an edited export, one at a time. Raises ConfigError for what is none."""
    former = csv.field_size_limit(longest + len(_MARK) + 1)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield _rows_of(file, stream)
    finally:
        csv.field_size_limit(former)


def _rows_of(file: Path, stream: Iterator[str]) -> Iterator[MendedRow]:
    from ingestd.config import ConfigError

    try:
        head = next(stream, "")
        # A spreadsheet may have saved it with the separator of its country.
        separator = next((char for char in ",;\t" if char in head), ",")
        columns = next(csv.reader([head], delimiter=separator), [])
        if missing := {"job", "line", "text"} - set(columns):
            raise ConfigError(f"{file}: no column {', '.join(sorted(missing))}: not an export")
        reader = csv.DictReader(stream, columns, delimiter=separator, strict=True)
        for number, cells in enumerate(reader, 2):
            yield _row_of(f"{file}, row {number}", cells)
    except csv.Error as error:
        raise ConfigError(f"{file}: not CSV: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not UTF-8; save it as CSV in UTF-8") from None


def _row_of(where: str, cells: dict[str, str]) -> MendedRow:
    from ingestd.config import ConfigError
    from ingestd.pipeline.replay import MendedRow

    try:
        job_id, line = uuid.UUID(cells["job"]), int(cells["line"])
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{where}: job or line is no longer what was exported") from None
    return MendedRow(job_id, line, (cells["text"] or "").removeprefix(_MARK))
