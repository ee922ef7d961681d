"""`init`, `run`, `once`, `try`: a folder to work in, and files going through."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, STOPPED, Flags, Json, command, complain

if TYPE_CHECKING:
    from ingestd.once import Progress, Summary
    from ingestd.pipeline.trial import TrialFile

_LINE_EVERY_SECONDS = 2.0
_LONGEST_VALUE = 60


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "init", examples="ingestd init /srv/ingestd")(init)
    command(app, "run", examples="ingestd --config /etc/ingestd/config.toml run")(run)
    command(app, "once", examples=("ingestd once", "ingestd once --json downloads/ whole.zip"))(
        once
    )
    command(app, "try", examples="ingestd try --rejects 5 downloads/whole.zip")(try_)


def init(
    flags: Flags,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to make.")] = Path(),
) -> None:
    """Make a folder to work in: ingestd.toml, inbox, archive, quarantine.

    Nothing is overwritten.
    """
    from ingestd.cli import screen
    from ingestd.config import write_config

    del flags
    config = write_config(folder)
    screen.say(f"made {config}, with inbox, archive and quarantine beside it")
    screen.say()
    screen.say("Next:")
    if folder.absolute() != Path.cwd():
        screen.say(f"  cd {folder}")
    screen.say("  ingestd check        is everything as it should be?")
    screen.say("  ingestd run          take every file that is put into the inbox")
    screen.say("  ingestd status       what is there")
    screen.say("No files yet? `ingestd simulate simulated` writes some.")


def run(flags: Flags) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C.

    SIGHUP reads the settings again. Exit status 4 when the inbox could not be
    listed for watch.give_up_seconds. Under systemd it tells how it goes and feeds
    the watchdog; `ingestd unit install` makes it a service.
    """
    from ingestd import daemon, log
    from ingestd.garbage import look_for_cycles_rarely
    from ingestd.systemd import Systemd

    look_for_cycles_rarely()
    systemd = Systemd.of(os.environ)
    settings = flags.settings()
    log.configure("debug" if flags.is_debug else settings.log.level, settings.log.format)
    if sys.stderr is not None:
        # A watchdog ends what hangs by SIGABRT: the log then shows where it hung.
        faulthandler.enable()
    raise typer.Exit(daemon.run(settings, reload=flags.settings, systemd=systemd))


def once(
    flags: Flags,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PATH]...", help="Files and folders; none means the inbox."),
    ] = None,
    *,
    is_archiving: Annotated[
        bool | None,
        typer.Option(
            "--archive/--leave",
            help="Move files away after their commit, or leave them. Usually: those of the inbox "
            "as configured, all others are left.",
            show_default=False,
        ),
    ] = None,
    is_json: Json = False,
) -> None:
    """Take what is there, and stop.

    Exit status 1 when a file was quarantined or has to wait, 130 when it was stopped by Ctrl-C
    (143 by SIGTERM).
    """
    from ingestd.cli import screen
    from ingestd.garbage import look_for_cycles_rarely
    from ingestd.once import once as once_through

    look_for_cycles_rarely()
    settings = flags.settings()
    with _progress() as on_progress:
        summary = once_through(
            settings, paths or [], is_archiving=is_archiving, on_progress=on_progress
        )
    if is_json:
        screen.print_json(summary)
    else:
        _tell_summary(summary)
    if summary.stopped_by is not None:
        raise typer.Exit(STOPPED + summary.stopped_by)
    if summary.files["quarantined"] or summary.waiting:
        raise typer.Exit(FINDINGS)


def _tell_summary(summary: Summary) -> None:
    from ingestd.cli import screen

    if not summary.files and not summary.waiting:
        screen.say("no files")
        return
    screen.show(("files", ""), sorted(summary.files.items()))
    screen.say()
    screen.show(("rows", ""), list(summary.rows.items()))
    screen.say()
    pace = ""
    if summary.seconds > 0 and summary.rows["read"]:
        pace = f", {screen.number(round(summary.rows['read'] / summary.seconds))} rows/s"
    screen.say(f"{screen.size(summary.bytes)} in {summary.seconds:.1f} s{pace}")
    if summary.files["quarantined"]:
        screen.say("why: `ingestd jobs --state quarantined`", colour_of="quarantined")
    if summary.rows["rejected"]:
        screen.say(
            f"{screen.amount(summary.rows['rejected'], 'row')} rejected: `ingestd rejects`",
            colour_of="warn",
        )
    for line in summary.waiting:
        screen.say(f"waiting: {line}", colour_of="waiting")


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Progress on standard error: a bar on a terminal, now and then a line elsewhere."""
    from ingestd.cli import screen

    console = screen.console(to_stderr=True)
    if not console.is_terminal:
        yield _plain_progress()
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("files", total=None)

        def tell(now: Progress) -> None:
            bar.update(
                task,
                description=f"{now.files_done}/{now.files_total} files",
                completed=now.bytes_done,
                total=now.bytes_total or 1,
            )

        yield tell


def _plain_progress() -> Callable[[Progress], None]:
    said_at = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal said_at
        if time.monotonic() - said_at < _LINE_EVERY_SECONDS:
            return
        said_at = time.monotonic()
        files = f"{progress.files_done} of {progress.files_total} files"
        complain(f"{files}, {progress.bytes_done} of {progress.bytes_total} bytes")

    return tell


def try_(
    flags: Flags,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV or a ZIP.")],
    *,
    rejects: Annotated[int, typer.Option(min=0, help="How many rejects of each CSV to show.")] = 20,
    is_json: Json = False,
) -> None:
    """Say what would become of a file; nothing is written.

    Exit status 1 when rows of it, or all of it, would be refused.
    """
    from ingestd.assembly import terms_of
    from ingestd.cli import screen
    from ingestd.errors import FileRefused
    from ingestd.pipeline import trial

    settings = flags.settings()
    file.stat()  # says what is wrong with the path, better than what follows
    try:
        terms = terms_of(settings, is_archiving=False)
        files = trial.try_file(file.absolute(), terms, most_shown=rejects)
        refusal = None
    except FileRefused as refused:
        files, refusal = [], refused.reason
    would_quarantine = refusal is not None or any(each.would_quarantine for each in files)
    if is_json:
        screen.print_json({"would_quarantine": would_quarantine, "reason": refusal, "files": files})
    elif refusal is not None:
        screen.say(f"{file} would be quarantined: {refusal}", colour_of="quarantined")
    else:
        for each in files:
            _tell_trial(each, file)
    if would_quarantine or any(each.rejected for each in files):
        raise typer.Exit(FINDINGS)


def _tell_trial(tried: TrialFile, file: Path) -> None:
    from ingestd.cli import screen

    screen.say(tried.member or file.name)
    screen.say(f"  contract {tried.contract_id or 'unknown'}, slot {tried.slot or 'unknown'}")
    rows = ("good", "rollbacks", "rejected", "blank")
    counts = ", ".join(f"{screen.number(getattr(tried, name))} {name}" for name in rows)
    screen.say(f"  {screen.amount(tried.rows, 'row')}: {counts}")
    for operation, count in sorted(tried.operations.items(), key=lambda item: -item[1]):
        screen.say(f"    {screen.number(count):>12} {operation}")
    if tried.rejects:
        columns = ("line", "field", "kind", "value", "reason")
        screen.show(
            columns,
            [
                (
                    each.line,
                    each.field,
                    each.kind,
                    screen.cut(each.value, _LONGEST_VALUE),
                    each.reason,
                )
                for each in tried.rejects
            ],
        )
    if (hidden := tried.rejected - len(tried.rejects)) > 0:
        screen.say(f"  and {screen.amount(hidden, 'reject')} more: --rejects {tried.rejected}")
    if tried.would_quarantine:
        screen.say(f"  would be quarantined: {tried.reason}", colour_of="quarantined")
    elif not tried.rejected:
        screen.say("  would be taken as it is", colour_of="ok")
