"""`status`: what is there, on one screen."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestd.cli.flags import Flags, Json, command

if TYPE_CHECKING:
    from rich.console import Group
    from sqlalchemy.orm import Session

    from ingestd.config import Settings, Watch
    from ingestd.models import FileProcessing

_WATCH_SECONDS = 2.0
_ANSWER_SECONDS = 1.0
_LONGEST_ANSWER = 65_536


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd status", "ingestd status --json | jq .transactions")
    command(app, "status", examples=examples)(status)


def status(
    flags: Flags,
    *,
    is_json: Json = False,
    is_watching: Annotated[
        bool, typer.Option("--watch", help="Look again every two seconds; implies --fast.")
    ] = False,
    is_fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Take the number of transactions from the jobs instead of counting them, which "
            "takes seconds where there are millions.",
        ),
    ] = False,
) -> None:
    """Tell what is there: jobs, transactions, rejects, open alerts, and what is waiting."""
    from ingestd.cli import screen

    settings = flags.settings()
    if is_watching and not is_json:
        _watch(settings)
        return
    found = _look(settings, is_fast=is_fast or is_watching)
    if is_json:
        screen.print_json(found)
    else:
        screen.draw(_drawn(found))


def _watch(settings: Settings) -> None:
    from rich.live import Live

    from ingestd.cli import screen

    with Live(_drawn(_look(settings, is_fast=True)), console=screen.console()) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            live.update(_drawn(_look(settings, is_fast=True)), refresh=True)


def _look(settings: Settings, *, is_fast: bool) -> dict[str, Any]:
    """Everything, with keys that scripts may rely on."""
    from ingestd import crud
    from ingestd.cli.database import reading
    from ingestd.cli.notify import as_told
    from ingestd.config import redacted_url

    with reading(settings) as session:
        tables = _tables(session, is_fast=is_fast)
        told = crud.notices.standings(session, settings.notify.channels)
    return {
        "at": datetime.now(UTC),
        "database": redacted_url(settings.database.url),
        **tables,
        "notices": as_told(told, settings.notify.channels),
        "inbox": _inbox(settings.watch),
        "daemon": _daemon(settings.metrics.listen),
    }


def _tables(session: Session, *, is_fast: bool) -> dict[str, Any]:
    from ingestd import crud
    from ingestd.job_state import JobState

    books = crud.jobs.totals(session)
    one = crud.Window(limit=1)
    working = crud.jobs.find(
        session, statuses={JobState.PROCESSING}, window=crud.Window(limit=crud.LIMIT_CAP)
    )
    # Every transaction was stored by one row of one job; a job that was undone has none.
    transactions = books.stored if is_fast else crud.transactions.list(session, window=one).total
    rows = {name: value for name, value in asdict(books).items() if name != "jobs"}
    return {
        "jobs": {str(state): n for state, n in crud.jobs.count_by_status(session).items()},
        "transactions": transactions,
        "transactions_counted": not is_fast,
        "rows": rows,
        "is_balanced": books.is_balanced,
        "rejects": crud.rejects.list(session, window=one).total,
        "constituencies": crud.constituencies.list(session, window=one).total,
        "hours": crud.hours.list(session, window=one).total,
        "alerts": dict(crud.alerts.open_by_severity(session)),
        "last_finished": _told(crud.jobs.last_finished(session)),
        "oldest_queued": _told(crud.jobs.oldest_queued(session)),
        "working": [
            {"owner": job.owner, "lease_until": job.lease_until, **(_told(job) or {})}
            for job in working.items
        ],
    }


def _told(job: FileProcessing | None) -> dict[str, Any] | None:
    if job is None:
        return None
    return {
        "id": job.id,
        "path": job.path,
        "member": job.member,
        "status": str(job.status),
        "discovered_at": job.discovered_at,
        "finished_at": job.finished_at,
    }


def _inbox(watch: Watch) -> dict[str, Any]:
    """The files that lie in the inbox now (with `after = "leave"` that is every file)."""
    from ingestd.pipeline.watch import scan

    try:
        seen = list(scan(watch.inbox, watch.ignore))
    except OSError as error:
        return {"path": watch.inbox, "files": None, "bytes": None, "error": error.strerror}
    sizes = [file.size for file in seen]
    return {"path": watch.inbox, "files": len(sizes), "bytes": sum(sizes), "error": None}


def _daemon(listen: str) -> dict[str, Any] | None:
    """What the daemon says at its port; None where it is to have none that is known."""
    from http.client import HTTPConnection, HTTPException

    from ingestd.config import place_of

    if not listen or not place_of(listen)[1]:
        return None
    connection = HTTPConnection(*place_of(listen), timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/readyz")
        told = json.loads(connection.getresponse().read(_LONGEST_ANSWER))
        return {"listen": listen, "is_ready": bool(told["ready"]), "reasons": list(told["reasons"])}
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        reasons = [f"no answer at {listen}: {error}"]
        return {"listen": listen, "is_ready": False, "reasons": reasons}
    finally:
        connection.close()


def _drawn(found: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.text import Text

    from ingestd.cli import screen

    counted = "" if found["transactions_counted"] else " (by the jobs)"
    inbox = found["inbox"]
    lying = inbox["error"] or (
        f"{screen.amount(inbox['files'], 'file')}, {screen.size(inbox['bytes'])}"
    )
    summary = [
        *(("daemon", _in_words(each)) for each in [found["daemon"]] if each),
        ("database", found["database"]),
        ("inbox", f"{lying} in {inbox['path']}"),
        ("constituencies", screen.number(found["constituencies"])),
        ("hours", screen.number(found["hours"])),
        ("transactions", screen.number(found["transactions"]) + counted),
        ("rejects", screen.number(found["rejects"])),
        ("last finished", _one_line(found["last_finished"], "finished_at")),
        ("oldest queued", _one_line(found["oldest_queued"], "discovered_at")),
        *(("notices", _of_channel(each)) for each in found["notices"]),
        *(("at work", f"{job['owner']}: {_place(job)}") for job in found["working"]),
    ]
    balance = "balanced" if found["is_balanced"] else "NOT BALANCED: rows are unaccounted for"
    return Group(
        screen.table(("", ""), summary),
        Text(),
        screen.table(("jobs", ""), [item for item in found["jobs"].items() if item[1]]),
        Text(),
        screen.table(("rows", ""), list(found["rows"].items())),
        Text(balance, style="green" if found["is_balanced"] else "bold red"),
        Text(),
        screen.table(("open alerts", ""), list(found["alerts"].items())),
    )


def _of_channel(channel: dict[str, Any]) -> str:
    """How people are told by one channel."""
    from ingestd.cli import screen

    told = [f"{screen.number(channel['waiting'])} waiting"]
    if channel["oldest_waiting"]:
        told[0] += f" since {screen.moment(channel['oldest_waiting'])}"
    if channel["failed"]:
        told.append(f"{screen.number(channel['failed'])} GIVEN UP (ingestd notify retry)")
    if channel["error"]:
        told.append(channel["error"])
    if not channel["is_set"]:
        told.append("the settings do not name it")
    return f"{channel['channel']}: {'; '.join(told)}"


def _in_words(daemon: dict[str, Any]) -> str:
    if daemon["is_ready"]:
        return f"ready, at {daemon['listen']}"
    return f"not ready: {'; '.join(map(str, daemon['reasons']))}"


def _one_line(job: dict[str, Any] | None, when: str) -> str:
    from ingestd.cli import screen

    if job is None:
        return "none"
    return f"{screen.moment(job[when])} {job['status']}: {_place(job)}"


def _place(job: dict[str, Any]) -> str:
    return f"{job['path']} / {job['member']}" if job["member"] else str(job["path"])
