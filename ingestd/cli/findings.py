"""`alerts`: what the rules found."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestd.cli.flags import FINDINGS, Csv, Flags, Json, Limit, Offset, command

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ingestd.crud import Page
    from ingestd.models import Alert

_SHORTEST_PREFIX = 8
_HEX_DIGITS = 32
_ALERT_COLUMNS = (
    *("id", "type", "class", "severity", "contract_id", "subject", "title", "description"),
    *("detected_at", "cleared_at", "status", "is_provisional"),
)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="What the rules found: open alerts, how they came about, evidence.")
    examples = ("ingestd alerts --severity critical", "ingestd alerts --all --json")
    command(group, "alerts", examples=examples, is_group=True)(alerts)
    command(group, "explain", examples="ingestd alerts explain 1b4e28ba")(explain)
    examples = ("ingestd alerts export 1b4e28ba", "ingestd alerts export 1b4e28ba --to out.zip")
    command(group, "export", examples=examples)(export)
    app.add_typer(group, name="alerts")


# Alerts -------------------------------------------------------------------------------------


def alerts(  # noqa: PLR0913 - one for each option
    flags: Flags,
    *,
    severity: Annotated[str | None, typer.Option(help="critical, warning or info.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="Only of this rule, such as history_withdrawn.")
    ] = None,
    contract: Annotated[str | None, typer.Option(help="Only of this contract.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Cleared and resolved ones, too.")] = False,
    limit: Limit = 50,
    offset: Offset = 0,
    is_json: Json = False,
    is_csv: Csv = False,
) -> None:
    """List open alerts, the worst first; `explain` and `export` tell more of one."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.cli.stats import the_constituency
    from ingestd.config import ConfigError
    from ingestd.schemas import AlertResponse

    if severity is not None and severity not in crud.SEVERITIES:
        raise ConfigError(f"--severity {severity}: must be one of {', '.join(crud.SEVERITIES)}")
    window = crud.Window(offset, limit)
    with reading(flags.settings()) as session:
        owner = the_constituency(session, contract) if contract else None
        if is_all:
            asked = {
                "severity": severity,
                "type": type_,
                "constituency_id": owner.id if owner else None,
            }
            filters = {name: value for name, value in asked.items() if value is not None}
            page = crud.alerts.list(session, filters=filters, window=window)
        else:
            page = crud.alerts.open(
                session, severity=severity, type=type_, contract_id=contract, window=window
            )
        names = _contracts(session, page)
        if is_json:
            items = [
                {
                    "contract_id": names.get(alert.constituency_id),
                    **AlertResponse.model_validate(alert).model_dump(),
                }
                for alert in page.items
            ]
            screen.print_page(page, items)
            return
    if is_csv:
        cells = (_alert_cells(alert, names.get(alert.constituency_id)) for alert in page.items)
        screen.print_csv(_ALERT_COLUMNS, cells)
        return
    if page.items:
        columns = ("id", "severity", "alert", "what", "contract", "when", "state")
        rows = [_alert_row(alert, names.get(alert.constituency_id)) for alert in page.items]
        screen.show(columns if is_all else columns[:-1], rows if is_all else [r[:-1] for r in rows])
    screen.tell_page(page, what="alerts" if is_all else "open alerts")


def _contracts(session: Session, page: Page[Alert]) -> dict[Any, str]:
    from ingestd import crud

    owners = {alert.constituency_id for alert in page.items if alert.constituency_id}
    found = (crud.constituencies.get(session, owner) for owner in owners)
    return {each.id: each.contract_id for each in found if each}


def _alert_row(alert: Alert, contract: str | None) -> tuple[Any, ...]:
    state = "cleared" if alert.cleared_at else alert.status
    short = str(alert.id)[:_SHORTEST_PREFIX]
    title = f"{alert.title} (provisional)" if is_provisional(alert) else alert.title
    told = (alert.severity, alert.type, title, contract or "", alert.detected_at)
    return (short, *told, state)


def _alert_cells(alert: Alert, contract: str | None) -> tuple[Any, ...]:
    what = (alert.type, alert.alert_class, alert.severity, contract, alert.subject, alert.title)
    moments = (alert.description, alert.detected_at, alert.cleared_at, alert.status)
    return (alert.id, *what, *moments, is_provisional(alert))


def is_provisional(alert: Alert) -> bool:
    """Whether files that are missing may explain it."""
    return bool(alert.details.get("is_provisional"))


def the_alert(session: Session, prefix: str) -> Alert:
    """The alert whose id begins so. Raises ConfigError where there is none, or more than one."""
    from ingestd import crud
    from ingestd.config import ConfigError

    digits = prefix.replace("-", "").lower()
    is_hex = all(char in "0123456789abcdef" for char in digits)
    if not is_hex or not _SHORTEST_PREFIX <= len(digits) <= _HEX_DIGITS:
        raise ConfigError(
            f"{prefix}: an alert's id has 32 hexadecimal digits; give {_SHORTEST_PREFIX} or more "
            "of its first (`ingestd alerts` lists them)"
        )
    first, last = (uuid.UUID(digits.ljust(_HEX_DIGITS, fill)) for fill in "0f")
    page = crud.alerts.between(session, first, last)
    if page.total == 0:
        raise ConfigError(f"{prefix}: no such alert; `ingestd alerts --all` lists them")
    if page.total > 1:
        raise ConfigError(f"{prefix}: {page.total} alerts begin so; give more digits")
    return page.items[0]


Id = Annotated[str, typer.Argument(metavar="ID", help="The alert's id, or how it begins.")]


def explain(flags: Flags, id_: Id, *, is_json: Json = False) -> None:
    """Tell how a finding came about: numbers, formula, files and lines, usual causes."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.cli.stats import bars
    from ingestd.models import Election
    from ingestd.pipeline.bundle import words_of
    from ingestd.pipeline.rules import RULES
    from ingestd.schemas import AlertResponse

    settings = flags.settings()
    with reading(settings) as session:
        alert = the_alert(session, id_)
        owner = alert.constituency_id and crud.constituencies.get(session, alert.constituency_id)
        contract = owner.contract_id if owner else None
        files = alert.details.get("files", ())
        names = crud.jobs.paths_by_sha256(session, {file["sha256"] for file in files})
        if is_json:
            rule = RULES.get(alert.type)
            election = owner and owner.election_id and session.get(Election, owner.election_id)
            name, type_ = (election.name, election.type) if election else (None, None)
            statistics = settings.statistics.for_election(name, type_)
            names_of = rule.settings if rule else ()
            told = {
                "contract_id": contract,
                "formula": rule.formula if rule else None,
                "thresholds": settings.alerts.for_election(name, type_).of(alert.type)
                | {name: statistics[name] for name in names_of},
                "paths": names,
                **AlertResponse.model_validate(alert).model_dump(),
            }
            screen.print_json(told)
            return
        for line in words_of(alert, contract).splitlines():
            screen.say(line)
        window = alert.details.get("window")
        if owner and window and (hours := crud.hours.of_constituency(session, owner.id)):
            screen.say()
            for line in bars(hours, window["utc"]):
                screen.say(line)
    if files:
        rows = [
            (
                file["slot"],
                names.get(file["sha256"], "not in the ledger"),
                ", ".join(map(str, file.get("lines", ()))) or "all",
                file["sha256"],
            )
            for file in files
        ]
        screen.say()
        screen.show(("hour", "file", "lines", "sha256"), rows)


def export(
    flags: Flags,
    id_: Id,
    *,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The ZIP to write; by default finding-ID.zip here."),
    ] = None,
    is_json: Json = False,
) -> None:
    """Write the evidence of one finding: words, numbers, raw lines, and a script that checks it.

    The raw lines are read again from the archive, each with its file, line number and SHA-256.
    `python3 check.py` in the unpacked ZIP needs nothing of this program. Exit status 1 when a
    file could not be read.
    """
    from ingestd import assembly, crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.pipeline.bundle import evidence_of, write_bundle

    settings = flags.settings()
    with reading(settings) as session:
        alert = the_alert(session, id_)
        owner = alert.constituency_id and crud.constituencies.get(session, alert.constituency_id)
        path = to or Path(f"finding-{str(alert.id)[:_SHORTEST_PREFIX]}.zip")
        limits, thresholds = assembly.read_limits(settings), assembly.thresholds_of(settings)
        evidence = evidence_of(session, alert, limits, thresholds)
        lines = write_bundle(path, alert, owner.contract_id if owner else None, evidence)
    if is_json:
        told = {"file": path, "lines": lines, "unread": list(evidence.unread)}
        screen.print_json(told | {"is_due": evidence.is_due})
    else:
        screen.say(f"{path}: {screen.amount(lines, 'raw line')}")
        for line in evidence.unread:
            screen.say(f"could not be read: {line}", colour_of="warning")
        if evidence.is_due:
            due = "counts have changed that are not judged yet; export it again when they are"
            screen.say(due, colour_of="warning")
    if evidence.unread:
        raise typer.Exit(FINDINGS)
