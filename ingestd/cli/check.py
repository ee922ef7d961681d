"""`check`: is everything as it should be before the first file comes?"""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ingestd.cli.flags import FINDINGS, Flags, Json, command

if TYPE_CHECKING:
    from ingestd.config import Settings

_INOTIFY = Path("/proc/sys/fs/inotify")
_SPARE_WATCHES = 1_000
_LITTLE_SPACE, _NO_SPACE = 5 * 10**9, 200 * 10**6


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what to do where it is not ok."""

    what: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "check", examples=("ingestd check", "ingestd check --json"))(check)


def check(flags: Flags, *, is_json: Json = False) -> None:
    """Look at configuration, database, folders, disk space and inotify limits.

    Exit status 1 when something fails.
    """
    from ingestd.cli import screen

    findings = [
        Finding("configuration", "ok", _configuration(flags)),
        *look_at(flags.settings()),
    ]
    if is_json:
        screen.print_json({"findings": findings})
    else:
        screen.show(
            ("", "what", "finding"), [(each.status, each.what, each.detail) for each in findings]
        )
    if any(each.status == "fail" for each in findings):
        raise typer.Exit(FINDINGS)


def look_at(settings: Settings) -> Iterator[Finding]:
    """Every finding, in the order in which a file meets them."""
    watch = settings.watch
    yield from _folder("inbox", watch.inbox)
    yield from _inotify(watch.inbox, is_used=watch.events != "never")
    yield from _database(settings)
    yield from _types(settings)
    yield from _folder("quarantine", watch.quarantine)
    if watch.after == "archive":
        yield from _folder("archive", watch.archive)
        yield from _same_file_system(watch.inbox, watch.archive)
    yield from _space(settings)
    yield from _channels(settings)


def _configuration(flags: Flags) -> str:
    from ingestd.config import CONFIG_VARIABLE, LOCAL_CONFIG, SYSTEM_CONFIG, is_there

    named = flags.config or os.environ.get(CONFIG_VARIABLE)
    if named:
        return str(named)
    file = next((each for each in (LOCAL_CONFIG, SYSTEM_CONFIG) if is_there(each)), None)
    return str(file.absolute()) if file else "no file: defaults and environment"


def _types(settings: Settings) -> Iterator[Finding]:
    """Thresholds of a type that no election has hold for nobody."""
    types = {one.type for one in settings.elections.by_name.values()}
    for name in sorted(settings.alerts.types.keys() - types):
        told = f'no election has the type {name}: say so in [elections."name"], type = "{name}"'
        yield Finding("alerts.types", "warn", told)


def _database(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy.exc import DBAPIError

    from ingestd.cli.database import opened, sqlite_file
    from ingestd.config import ConfigError, redacted_url
    from ingestd.errors import SchemaMismatch
    from ingestd.log import redact

    url = settings.database.url
    shown = redacted_url(url)
    file = sqlite_file(url)
    if file is not None and (fault := _unusable(file.parent)):
        # SQLite makes its journal beside the file.
        yield Finding("database", "fail", f"{shown}: {file.parent} {fault}")
        return
    try:
        with opened(settings, writer=False):
            yield Finding("database", "ok", f"{shown}, its schema is the one of this program")
    except ConfigError as nothing_yet:
        yield Finding("database", "ok", str(nothing_yet))
    except SchemaMismatch as mismatch:
        yield Finding("database", "fail", f"{shown}: {mismatch}")
    except DBAPIError as error:
        yield Finding("database", "fail", f"{shown}: {redact(str(error.orig)).strip()}")


def _channels(settings: Settings) -> Iterator[Finding]:
    """Whether the channels can be used; `ingestd notify test` tries them."""
    from ingestd.config import ConfigError
    from ingestd.telling.channels import channels_of

    try:
        names = [channel.name for channel in channels_of(settings.notify)]
    except ConfigError as error:
        yield Finding("notices", "fail", str(error))
        return
    if names:
        yield Finding("notices", "ok", f"to {', '.join(names)}; `ingestd notify test` tries them")


def _folder(what: str, folder: Path) -> Iterator[Finding]:
    if folder.is_dir():
        fault = _unusable(folder)
        status: Literal["ok", "fail"] = "fail" if fault else "ok"
        yield Finding(what, status, f"{folder} {fault}" if fault else str(folder))
        return
    if os.path.lexists(folder):
        yield Finding(what, "fail", f"{folder} is there and no folder")
        return
    parent = _nearest_existing(folder)
    if fault := _unusable(parent):
        yield Finding(what, "fail", f"{folder} is not there and can't be made: {parent} {fault}")
    else:
        yield Finding(what, "warn", f"{folder} is not there; `ingestd run` makes it")


def _unusable(folder: Path) -> str | None:
    """Why this process can't read, write and enter a folder; None where it can."""
    if not folder.is_dir():
        return "is no folder"
    rights = {"read": os.R_OK, "write": os.W_OK, "enter": os.X_OK}
    missing = [name for name, right in rights.items() if not os.access(folder, right)]
    if not missing:
        return None
    there = folder.stat()
    return (
        f"can't be used by uid {os.geteuid()} ({', '.join(missing)}): "
        f"it is {stat.filemode(there.st_mode)} and belongs to uid {there.st_uid}, "
        f"gid {there.st_gid}"
    )


def _nearest_existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _same_file_system(inbox: Path, archive: Path) -> Iterator[Finding]:
    devices = {_nearest_existing(each).stat().st_dev for each in (inbox, archive)}
    if len(devices) == 1:
        yield Finding("move", "ok", "inbox and archive are on one file system: a move is a rename")
    else:
        yield Finding("move", "warn", "the archive is on another file system: every file is copied")


def _space(settings: Settings) -> Iterator[Finding]:
    from ingestd.cli.database import sqlite_file
    from ingestd.cli.screen import size

    folders = {"inbox": settings.watch.inbox, "archive": settings.watch.archive}
    if (file := sqlite_file(settings.database.url)) is not None:
        folders["database"] = file.parent
    sharing: dict[int, list[str]] = {}
    for what, folder in folders.items():
        sharing.setdefault(_nearest_existing(folder).stat().st_dev, []).append(what)
    for whats in sharing.values():
        free = shutil.disk_usage(_nearest_existing(folders[whats[0]])).free
        told = f"{size(free)} free for {', '.join(whats)}"
        if free >= _LITTLE_SPACE:
            yield Finding("space", "ok", told)
            continue
        status: Literal["warn", "fail"] = "fail" if free < _NO_SPACE else "warn"
        least = size(_NO_SPACE if free < _NO_SPACE else _LITTLE_SPACE)
        yield Finding("space", status, f"{told}, under {least}: make room or mount a larger disk")


def _inotify(inbox: Path, *, is_used: bool) -> Iterator[Finding]:
    if not is_used:
        yield Finding("events", "ok", "switched off: files are found by looking")
        return
    most = _limit("max_user_watches")
    if most is None:
        yield Finding("events", "warn", "no inotify here: files are found by looking")
        return
    if _limit("max_user_instances") == 0:
        yield Finding("events", "warn", "fs.inotify.max_user_instances is 0: found by looking")
        return
    folders = sum(1 for _ in os.walk(inbox))
    if folders + _SPARE_WATCHES > most:
        told = f"{folders} folders, fs.inotify.max_user_watches is {most}: raise it"
        yield Finding("events", "warn", f"{told}, or files may be found by looking only")
    else:
        there = "1 folder" if folders == 1 else f"{folders} folders"
        yield Finding("events", "ok", f"{there} to watch, {most} are allowed")


def _limit(name: str) -> int | None:
    try:
        return int((_INOTIFY / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
