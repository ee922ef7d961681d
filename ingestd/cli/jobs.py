"""`jobs`, `retry`, `audit`: the ledger looked at, asked again, and what people did to it."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import getpass
import os
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, Flags, Json, Limit, Offset, command, complain
from ingestd.job_state import JobState

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ingestd.models import FileProcessing

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
    examples = ("ingestd jobs forget 1b4e28ba", "ingestd jobs forget 1b4e28ba --yes")
    command(group, "forget", examples=examples)(forget)
    app.add_typer(group, name="jobs")
    examples = ("ingestd retry 1b4e28ba", "ingestd retry --all-quarantined")
    command(app, "retry", examples=examples)(retry)
    command(app, "audit", examples=("ingestd audit", "ingestd audit --json"))(audit)


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
        job = the_job(session, job_id)
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


def the_job(session: Session, prefix: str) -> FileProcessing:
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
            asked = [the_job(session, each).id for each in job_ids or []]
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
    from ingestd.models import FileProcessing
    from ingestd.pipeline import ledger
    from ingestd.pipeline.read import stamp_of

    now = datetime.now(UTC)
    job = session.get_one(FileProcessing, id_)
    before = str(job.status)
    ledger.ask_again(session, job, now=now)
    note(
        session,
        "retry",
        str(id_),
        before={"status": before, "archived_to": job.archived_to},
        after={"status": str(job.status)},
    )
    path, has_moved = _put_back(job)
    if has_moved and path == Path(job.root, job.path):
        ledger.note_put_back(session, job, stamp_of(path.stat()))
    return path


def _put_back(job: FileProcessing) -> tuple[Path, bool]:
    """Move the file of a job from where it was put away to where the job says it lies.

    Says where that is, and whether it was moved.
    """
    from ingestd.errors import FileVanished
    from ingestd.pipeline import archive
    from ingestd.pipeline.ledger import paths_of

    home = Path(job.root) / job.path
    if home.exists():
        return home, False
    ways = paths_of(job.archived_to) if job.archived_to else ()
    away = next((path for path in ways if path.exists()), None)
    if away is None:
        place = f"nor at {job.archived_to}" if job.archived_to else "and was not put away"
        raise FileVanished(
            f"{job.id}: its file is not at {home} {place}; put it into the inbox again, "
            "which is all that is needed"
        )
    return archive.put_away_as(away, home, folder=Path(job.root)), True


def forget(
    flags: Flags,
    job_id: JobId,
    *,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take a file out of the tables as if it had never been dropped.

    Its rows and rejects leave, an earlier publication of its slot counts again, its duplicates
    are forgotten with it. Its bytes stay where they are and can be dropped again.
    """
    from ingestd import assembly
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.config import ConfigError
    from ingestd.log import escape
    from ingestd.pipeline.forget import forget as forget_job

    settings = flags.settings()
    with opened(settings, writer=True) as engine:
        ingest = assembly.make_ingest(settings, engine, is_archiving=False)
        with ingest.sessions.begin() as session:
            job = the_job(session, job_id)
        if not is_sure:
            if not sys.stdin.isatty():
                raise ConfigError(f"{job.id}: its rows leave the tables; say --yes to mean it")
            rows = job.rows_stored + job.rows_known + job.rows_rollbacks
            what = f"{screen.amount(rows, 'row')} of {job.name} leave the tables. Go on?"
            typer.confirm(escape(what), abort=True)
        gone = forget_job(ingest, job.id, note)
    screen.say(f"{job.id}: forgotten, {screen.amount(gone.duplicates, 'duplicate')} with it")
    for path in gone.files:
        screen.say(f"  its bytes are at {path}; drop them again to have them back")


def make_current(flags: Flags, job_id: JobId) -> None:
    """Let an earlier publication of a slot count again, in place of the one that superseded it."""
    from ingestd import assembly
    from ingestd.cli import screen
    from ingestd.cli.database import opened

    settings = flags.settings()
    with opened(settings, writer=True) as engine:
        ingest = assembly.make_ingest(settings, engine, is_archiving=False)
        with ingest.sessions.begin() as session:
            id_ = the_job(session, job_id).id

        def audit(session: Session) -> None:
            before, after = {"status": "superseded"}, {"status": "completed"}
            note(session, "make_current", str(id_), before=before, after=after)

        ingest.make_current(id_, also=audit)
    screen.say(f"{id_}: counts now; tables and alerts were recounted")


def audit(flags: Flags, *, limit: Limit = 50, offset: Offset = 0, is_json: Json = False) -> None:
    """List what people did to the tables by hand, the newest first."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.schemas import AuditLogResponse

    with reading(flags.settings()) as session:
        page = crud.audit.list(session, window=crud.Window(offset, limit))
        if is_json:
            items = [AuditLogResponse.model_validate(deed).model_dump() for deed in page.items]
            screen.print_page(page, items)
            return
    if page.items:
        columns = ("when", "who", "what", "to", "before", "after")
        told = [
            (deed.at, deed.who, deed.action, deed.subject, _brief(deed.before), _brief(deed.after))
            for deed in page.items
        ]
        screen.show(columns, told)
    screen.tell_page(page, what="deeds")


def _brief(image: dict[str, object] | None) -> str:
    """An image of a row in a few words; `--json` has all of it."""
    from ingestd.cli import screen

    if image is None:
        return ""
    # A whole job is known by what its name and state were.
    telling = {name: image[name] for name in ("name", "status") if name in image} or image
    told = ", ".join(f"{name} {value}" for name, value in telling.items())
    return screen.cut(told, _LONGEST_VALUE) or ""


def note(
    session: Session,
    action: str,
    subject: str,
    *,
    before: Mapping[str, object] | None,
    after: Mapping[str, object] | None,
) -> None:
    """Write a line of the audit log in the name of who runs this program."""
    from ingestd import crud

    now = datetime.now(UTC)
    crud.audit.append(
        session, who=_who(), action=action, subject=subject, before=before, after=after, at=now
    )


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
