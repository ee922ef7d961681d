"""`jobs`, `rejects`, `retry`: the ledger looked at, and asked again."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import getpass
import os
import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, Csv, Flags, Json, Limit, Offset, command, complain
from ingestd.job_state import JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ingestd.crud import Page
    from ingestd.models import FileProcessing, Reject

_SHORTEST_PREFIX = 8
_HEX_DIGITS = 32
_LONGEST_VALUE = 60

JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, or its first characters (8 or more).")
]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="The jobs: one for each CSV, bare or inside a ZIP.")
    examples = ("ingestd jobs --state quarantined", "ingestd jobs --path 77_ --limit 10 --json")
    command(group, "jobs", examples=examples, is_group=True)(jobs)
    command(group, "show", examples="ingestd jobs show 1b4e28ba")(show)
    command(group, "make-current", examples="ingestd jobs make-current 1b4e28ba")(make_current)
    app.add_typer(group, name="jobs")
    examples = ("ingestd rejects --job 1b4e28ba", "ingestd rejects --job 1b4e28ba --raw > bad.csv")
    command(app, "rejects", examples=examples)(rejects)
    examples = ("ingestd retry 1b4e28ba", "ingestd retry --all-quarantined")
    command(app, "retry", examples=examples)(retry)


# Looking ------------------------------------------------------------------------------------


def jobs(
    flags: Flags,
    *,
    states: Annotated[
        list[JobState] | None, typer.Option("--state", help="Only in this state; repeatable.")
    ] = None,
    path: Annotated[str | None, typer.Option(help="Only with this text in path or member.")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
    is_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.schemas import FileProcessingResponse

    with reading(flags.settings()) as session:
        page = crud.jobs.find(
            session, statuses=states or (), path=path, window=crud.Window(offset, limit)
        )
        if is_json:
            items = [FileProcessingResponse.model_validate(job).model_dump() for job in page.items]
            screen.print_page(page, items)
            return
    if page.items:
        columns = ("job", "state", "file", "read", "stored", "known", "rejected", "what went wrong")
        screen.show(columns, [_job_row(job) for job in page.items])
    screen.tell_page(page, what="jobs")


def _job_row(job: FileProcessing) -> Sequence[str | int | None]:
    from ingestd.cli import screen

    return (
        str(job.id)[:_SHORTEST_PREFIX],
        str(job.status),
        job.name,
        job.rows_read,
        job.rows_stored,
        job.rows_known,
        job.rows_rejected,
        screen.cut(job.first_error_message, _LONGEST_VALUE) or "",
    )


def show(flags: Flags, job_id: JobId, *, is_json: Json = False) -> None:
    """Tell everything about one job, with its rejects by kind."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.schemas import FileProcessingResponse

    with reading(flags.settings()) as session:
        job = _the_job(session, job_id)
        told = FileProcessingResponse.model_validate(job).model_dump()
        kinds = dict(crud.rejects.count_by_kind(session, file_id=job.id))
    if is_json:
        screen.print_json({**told, "rejects_by_kind": kinds})
        return
    screen.show(("", ""), [(name, _plain(value)) for name, value in told.items()])
    if kinds:
        screen.say()
        screen.show(("rejects", ""), list(kinds.items()))
        screen.say(f"`ingestd rejects --job {job.id}` shows them")


def _plain(value: object) -> str:
    from ingestd.cli import screen

    match value:
        case None:
            return "–"
        case datetime():
            return screen.moment(value)
    return str(value)


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
    """List rows that were refused: where, which field, which value, why."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.schemas import RejectResponse

    with reading(flags.settings()) as session:
        file_id = _the_job(session, job_id).id if job_id else None
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


def _the_job(session: Session, prefix: str) -> FileProcessing:
    """The job whose id begins so. Raises ConfigError where there is none, or more than one."""
    from sqlalchemy import select

    from ingestd import crud
    from ingestd.config import ConfigError
    from ingestd.models import FileProcessing

    digits = prefix.replace("-", "").lower()
    is_hex = all(char in "0123456789abcdef" for char in digits)
    if not is_hex or not _SHORTEST_PREFIX <= len(digits) <= _HEX_DIGITS:
        raise ConfigError(
            f"{prefix}: a job's id has 32 hexadecimal digits; give {_SHORTEST_PREFIX} or more "
            "of its first (`ingestd jobs` lists them)"
        )
    # A prefix is a range of ids, on SQLite (text) and PostgreSQL (uuid) alike.
    first, last = (uuid.UUID(digits.ljust(_HEX_DIGITS, fill)) for fill in "0f")
    query = select(FileProcessing).where(FileProcessing.id.between(first, last))
    page = crud.jobs.page(session, query, order=[], window=crud.Window(limit=3))
    if page.total == 0:
        raise ConfigError(f"{prefix}: no such job; `ingestd jobs` lists them")
    if page.total > 1:
        some = ", ".join(str(job.id) for job in page.items)
        raise ConfigError(f"{prefix}: {page.total} jobs begin so ({some} …); give more digits")
    return page.items[0]


# Asking -------------------------------------------------------------------------------------


def retry(
    flags: Flags,
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids, or their first characters.")
    ] = None,
    *,
    is_all: Annotated[
        bool, typer.Option("--all-quarantined", help="Every quarantined job.")
    ] = False,
) -> None:
    """Try quarantined, failed or vanished jobs again: their files go back into the inbox.

    Exit status 1 when one can't.
    """
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.config import ConfigError
    from ingestd.db import make_sessions
    from ingestd.errors import IngestError

    if bool(job_ids) == is_all:
        raise ConfigError("name jobs, or say --all-quarantined")
    refused = 0
    settings = flags.settings()
    with opened(settings, writer=True) as engine:
        sessions = make_sessions(engine)
        with sessions.begin() as session:
            asked = [_the_job(session, each).id for each in job_ids or []]
            asked = asked or [job.id for job in _quarantined(session)]
        for id_ in asked:
            try:
                with sessions.begin() as session:
                    path = _ask_again(session, id_)
            except (IngestError, OSError) as error:
                complain(str(error))
                refused += 1
            else:
                screen.say(f"{id_}: pending, at {path}")
                if not path.is_relative_to(settings.watch.inbox):
                    screen.say(
                        f"  outside of the inbox; next: ingestd once {shlex.quote(str(path))}"
                    )
    if not asked:
        screen.say("no quarantined jobs")
    if refused:
        raise typer.Exit(FINDINGS)


def _quarantined(session: Session) -> Iterator[FileProcessing]:
    from ingestd import crud

    offset = 0
    while True:
        window = crud.Window(offset, crud.LIMIT_CAP)
        page = crud.jobs.find(session, statuses={JobState.QUARANTINED}, window=window)
        yield from page.items
        offset += len(page.items)
        if offset >= page.total:
            return


def _ask_again(session: Session, id_: uuid.UUID) -> Path:
    """Queue a job and put its file back, in this order: what fails last is undone easily."""
    from ingestd import crud
    from ingestd.models import FileProcessing
    from ingestd.pipeline import ledger

    now = datetime.now(UTC)
    job = session.get_one(FileProcessing, id_)
    before = str(job.status)
    ledger.ask_again(session, job, now=now)
    crud.audit.append(
        session,
        who=_who(),
        action="retry",
        subject=str(id_),
        before={"status": before},
        after={"status": str(job.status)},
        at=now,
    )
    return _put_back(job)


def _put_back(job: FileProcessing) -> Path:
    """Move the file of a job from where it was put away to where the job says it lies."""
    from ingestd.errors import FileVanished
    from ingestd.pipeline import archive

    home = Path(job.root) / job.path
    if home.exists():
        return home
    away = Path(job.archived_to) if job.archived_to else None
    if away is None or not away.exists():
        place = f"nor at {away}" if away else "and was not put away"
        raise FileVanished(
            f"{job.id}: its file is not at {home} {place}; put it into the inbox again, "
            "which is all that is needed"
        )
    return archive.put_away_as(away, home, folder=Path(job.root))


def make_current(flags: Flags, job_id: JobId) -> None:
    """Let an earlier publication of a slot count again, in place of the one that superseded it."""
    from ingestd import crud, daemon
    from ingestd.cli import screen
    from ingestd.cli.database import opened

    settings = flags.settings()
    with opened(settings, writer=True) as engine:
        ingest = daemon.make_ingest(settings, engine, is_archiving=False)
        with ingest.sessions.begin() as session:
            id_ = _the_job(session, job_id).id

        def audit(session: Session) -> None:
            crud.audit.append(
                session,
                who=_who(),
                action="make_current",
                subject=str(id_),
                before={"status": "superseded"},
                after={"status": "completed"},
                at=datetime.now(UTC),
            )

        ingest.make_current(id_, also=audit)
    screen.say(f"{id_}: counts now; tables and alerts were recounted")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
