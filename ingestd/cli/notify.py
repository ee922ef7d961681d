"""`notify`: who is told of alerts, whether the way to them works, what waits."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ingestd.cli.flags import FINDINGS, Flags, Json, Limit, Offset, command

if TYPE_CHECKING:
    from ingestd.config import Settings
    from ingestd.crud import Standing
    from ingestd.telling.channels import Channel

_STATES = ("waiting", "sent", "failed", "settled")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="Notices of alerts: who is told, and what waits.")
    command(group, "notify", examples="ingestd notify", is_group=True)(status)
    command(group, "status", examples="ingestd notify status --json")(status)
    command(group, "test", examples=("ingestd notify test", "ingestd notify test duty"))(try_)
    examples = ("ingestd notify list --status waiting", "ingestd notify list --json")
    command(group, "list", examples=examples)(list_)
    command(group, "send", examples="ingestd notify send --digest")(send)
    command(group, "retry", examples="ingestd notify retry")(retry)
    app.add_typer(group, name="notify")


@dataclass(frozen=True)
class _Tried:
    channel: str
    kind: str
    is_sent: bool
    error: str | None


def try_(
    flags: Flags,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[CHANNEL]...", help="Only by these.")
    ] = None,
    *,
    is_json: Json = False,
) -> None:
    """Send a test by every channel, and say what came of each.

    Needs no database. Exit status 1 when one could not be sent.
    """
    from ingestd.cli import screen

    settings = flags.settings()
    tried = [_try(channel, settings) for channel in _channels(settings, names or ())]
    if is_json:
        screen.print_json({"channels": [asdict(each) for each in tried]})
    else:
        screen.show(
            ("", "channel", "", "what came of it"),
            [
                ("ok" if each.is_sent else "fail", each.channel, each.kind, each.error or "sent")
                for each in tried
            ],
        )
    if not all(each.is_sent for each in tried):
        raise typer.Exit(FINDINGS)


def _channels(settings: Settings, names: Sequence[str]) -> list[Channel]:
    from ingestd.config import ConfigError
    from ingestd.telling.channels import channels_of

    found = channels_of(settings.notify)
    known = ", ".join(channel.name for channel in found)
    if not found:
        raise ConfigError(
            'no channel is set: name one below [notify.channels], such as duty = "https://host/hook"'
        )
    if strangers := sorted(set(names) - {channel.name for channel in found}):
        raise ConfigError(f"{strangers[0]}: no such channel; there are: {known}")
    return [channel for channel in found if not names or channel.name in names]


def _try(channel: Channel, settings: Settings) -> _Tried:
    from ingestd.errors import Undelivered
    from ingestd.telling import message
    from ingestd.telling.channels import send_in_time
    from ingestd.telling.teller import now

    try:
        send_in_time(channel, message.of_test(now()), settings.notify.timeout_seconds)
    except Undelivered as error:
        return _Tried(channel.name, channel.kind, is_sent=False, error=str(error))
    return _Tried(channel.name, channel.kind, is_sent=True, error=None)


def status(flags: Flags, *, is_json: Json = False) -> None:
    """Tell for each channel what waits, what was sent, what was given up and why.

    Exit status 1 when something was given up.
    """
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading

    settings = flags.settings()
    with reading(settings) as session:
        standings = crud.notices.standings(session, settings.notify.channels)
    if is_json:
        screen.print_json({"channels": as_told(standings, settings.notify.channels)})
    elif not standings:
        screen.say("no channel is set: nobody is told of anything (docs/operating.md)")
    else:
        screen.show(
            ("channel", "waiting", "since", "sent", "last", "given up", "next try", "error"),
            [
                (
                    one.channel,
                    one.waiting,
                    one.oldest_waiting,
                    one.sent,
                    one.last_sent,
                    one.failed,
                    one.next_try_at,
                    one.error or "",
                )
                for one in standings
            ],
        )
    if any(one.failed for one in standings):
        raise typer.Exit(FINDINGS)


def as_told(standings: Iterable[Standing], channels: Container[str]) -> list[dict[str, Any]]:
    """How channels stand, and whether the settings name them, with keys that scripts rely on."""
    return [{**asdict(one), "is_set": one.channel in channels} for one in standings]


def list_(
    flags: Flags,
    *,
    state: Annotated[
        str | None, typer.Option("--status", help="waiting, sent, failed or settled.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="Only of this channel.")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
    is_json: Json = False,
) -> None:
    """List notices, the newest first; settled: the alert cleared itself before it was told."""
    from ingestd import crud
    from ingestd.cli import screen
    from ingestd.cli.database import reading
    from ingestd.config import ConfigError
    from ingestd.schemas import NoticeResponse

    if state is not None and state not in _STATES:
        raise ConfigError(f"--status {state}: must be one of {', '.join(_STATES)}")
    asked = {"status": state, "channel": channel}
    filters = {name: value for name, value in asked.items() if value is not None}
    with reading(flags.settings()) as session:
        page = crud.notices.list(session, filters=filters, window=crud.Window(offset, limit))
        items = [NoticeResponse.model_validate(each) for each in page.items]
    if is_json:
        told = [each.model_dump() for each in items]
        screen.print_json({"total": page.total, "offset": page.offset, "items": told})
        return
    screen.show(
        ("at", "channel", "status", "severity", "what", "alert", "error"),
        [
            (
                each.at,
                each.channel,
                each.status,
                each.severity,
                f"{each.kind}: {each.title}",
                str(each.alert_id or "")[:8],
                each.last_error or "",
            )
            for each in items
        ],
    )
    screen.say(f"{len(items)} of {page.total}")


def send(
    flags: Flags,
    *,
    is_all: Annotated[
        bool, typer.Option("--digest", help="What waits for the digest, too.")
    ] = False,
    is_json: Json = False,
) -> None:
    """Send now what waits; the daemon, and the end of `ingestd once`, do so by themselves."""
    from ingestd.cli import screen
    from ingestd.telling.teller import send_what_waits

    settings = flags.settings()
    _channels(settings, ())
    number = send_what_waits(settings, is_all=is_all)
    if is_json:
        screen.print_json({"messages": number})
    else:
        screen.say(f"{screen.amount(number, 'message')} sent; next: ingestd notify status")


def retry(flags: Flags, *, is_json: Json = False) -> None:
    """Let what was given up be sent again, and what waits for its next try be tried at once."""
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.db import make_sessions
    from ingestd.pipeline import outbox

    with opened(flags.settings(), writer=True) as engine, make_sessions(engine).begin() as session:
        number = outbox.try_again(session)
    if is_json:
        screen.print_json({"notices": number})
    else:
        screen.say(f"{screen.amount(number, 'notice')} that had been given up will be sent again")
