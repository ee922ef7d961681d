"""`unit`: ingestd as a service of systemd."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import Flags, Json, command

if TYPE_CHECKING:
    from ingestd.unit import Placed

DatabaseAt = Annotated[
    list[str] | None,
    typer.Option(
        "--database-at",
        metavar="ADDRESS",
        help="An address of a PostgreSQL on the network, which the service may then reach; "
        "say it again for each.",
        show_default=False,
    ),
]
NotifyAt = Annotated[
    list[str] | None,
    typer.Option(
        "--notify-at",
        metavar="ADDRESS",
        help="An address by which people are told, which the service may then reach, or any; "
        "the channels are in /etc/ingestd/notify-channels.",
        show_default=False,
    ),
]
Program = Annotated[
    str | None,
    typer.Option(
        "--program",
        metavar="PATH",
        help="What the service starts; usually this very program.",
        show_default=False,
    ),
]
Root = Annotated[
    Path,
    typer.Option(
        "--root", metavar="DIR", help="Write below DIR, for an image; nothing is run there."
    ),
]
HasMetrics = Annotated[
    bool,
    typer.Option(
        "--metrics",
        help="Let the service open port 9641 of 127.0.0.1: /metrics for Prometheus, /healthz, "
        "/readyz.",
    ),
]
_HERE = Path("/")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="The service of systemd.", no_args_is_help=True)
    command(
        group,
        "install",
        examples=(
            "ingestd unit install --now",
            "ingestd unit install --database-at 192.0.2.7 --metrics",
        ),
    )(install)
    command(group, "print", examples="ingestd unit print | less")(print_)
    command(group, "uninstall", examples="ingestd unit uninstall")(uninstall)
    app.add_typer(group, name="unit")


def install(  # noqa: PLR0913 - one for each option
    flags: Flags,
    *,
    database_at: DatabaseAt = None,
    has_metrics: HasMetrics = False,
    notify_at: NotifyAt = None,
    program: Program = None,
    root: Root = _HERE,
    is_now: Annotated[bool, typer.Option("--now", help="Start it, now and at every boot.")] = False,
) -> None:
    """Make it a service: unit, user, folders, limits, configuration, shell completion.

    Also after each upgrade. A configuration that is there is kept; changes of
    the unit belong into a drop-in (`systemctl edit ingestd`), which is kept, too.
    """
    from ingestd import unit
    from ingestd.cli import screen

    del flags
    _refuse_without_rights(root)
    if program is None:
        unit.refuse_unstartable(unit.this_program())
    wanted = unit.files(
        program or unit.this_program(),
        database_at or (),
        has_metrics=has_metrics,
        notified=notify_at or (),
    )
    for placed in wanted:
        screen.say(f"{_write(placed, root):<9} {placed.below(root)}")
    if root != _HERE:
        return
    _run("systemd-sysusers", str(unit.SYSUSERS))
    _run("systemd-tmpfiles", "--create", str(unit.TMPFILES))
    if not _run("sysctl", "--quiet", f"--load={unit.SYSCTL}", may_fail=True):
        screen.say("the limits of inotify stay as they are: a container may not change them")
    _run("systemctl", "daemon-reload")
    if is_now:
        _run("systemctl", "enable", unit.NAME)
        _run("systemctl", "restart", unit.NAME)  # with the program of now, if it ran before
    screen.say()
    screen.say("Next:")
    if not is_now:
        screen.say("  systemctl enable --now ingestd     start it, now and at every boot")
    screen.say("  usermod -aG ingestd-drop NAME      NAME may put files into the inbox")
    screen.say(f"  cp FILE {unit.HOME}/inbox/    and it is taken")
    screen.say("  systemctl status ingestd           how it goes; journalctl -u ingestd tells more")


def print_(  # noqa: PLR0913 - one for each option
    flags: Flags,
    *,
    database_at: DatabaseAt = None,
    has_metrics: HasMetrics = False,
    notify_at: NotifyAt = None,
    program: Program = None,
    is_all: Annotated[
        bool, typer.Option("--all", help="Every file that an install writes.")
    ] = False,
    is_json: Json = False,
) -> None:
    """Show the unit, and the drop-ins that are asked for; nothing is written."""
    from ingestd import unit
    from ingestd.cli import screen

    del flags
    program = program or unit.this_program()
    make = unit.files if is_all else unit.units
    shown = make(program, database_at or (), has_metrics=has_metrics, notified=notify_at or ())
    if is_json:
        screen.print_json({str(each.path): each.content for each in shown})
        return
    for number, each in enumerate(shown):
        typer.echo(f"{chr(10) if number else ''}# {each.path}\n{each.content}", nl=False)


def uninstall(flags: Flags, *, root: Root = _HERE) -> None:
    """Stop the service and take away what an install wrote.

    Configuration, user, database, inbox, archive and quarantine stay.
    """
    from ingestd import unit
    from ingestd.cli import screen
    from ingestd.config import SYSTEM_CONFIG

    del flags
    _refuse_without_rights(root)
    if root == _HERE:
        _run("systemctl", "disable", "--now", unit.NAME, may_fail=True)
    for placed in unit.leftovers("/ingestd"):
        path = placed.below(root)
        if path.exists():
            path.unlink()
            screen.say(f"removed   {path}")
    drop_ins = unit.units("/ingestd")[0].below(root).with_name(f"{unit.NAME}.d")
    if drop_ins.is_dir() and not any(drop_ins.iterdir()):
        drop_ins.rmdir()
    if root == _HERE:
        _run("systemctl", "daemon-reload")
    left = f"{SYSTEM_CONFIG.parent}, the user ingestd, all below {unit.HOME} and the program"
    screen.say(f"{left} are still there")


def _refuse_without_rights(root: Path) -> None:
    from ingestd.config import ConfigError

    if root == _HERE and os.geteuid() != 0:
        raise ConfigError("only root can change the services of a machine: say it with sudo")
    if root == _HERE and not Path("/run/systemd/system").is_dir():
        raise ConfigError(
            "systemd does not run here; for an image say --root DIR, to see the unit "
            "`ingestd unit print`"
        )


def _write(placed: Placed, root: Path) -> str:
    """Write one file, whole or not at all; what became of it in a word."""
    path = placed.below(root)
    if path.exists():
        if placed.is_kept:
            return "kept"
        if path.read_text(encoding="utf-8") == placed.content:
            return "unchanged"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(placed.content, encoding="utf-8")
    partial.chmod(0o644)
    partial.replace(path)
    return "wrote"


def _run(name: str, *arguments: str, may_fail: bool = False) -> bool:
    """Run a program of the system; what it complains of becomes our sentence."""
    from ingestd.config import ConfigError

    program = shutil.which(name)
    if program is None:
        if may_fail:
            return False
        message = f"{name}: there is no such program; install systemd"
        raise ConfigError(message)
    done = subprocess.run(  # noqa: S603 - names and paths of our own
        [program, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode and not may_fail:
        told = done.stderr.strip() or f"exit status {done.returncode}"
        message = f"{shlex.join([name, *arguments])}: {told}"
        raise ConfigError(message)
    return not done.returncode
