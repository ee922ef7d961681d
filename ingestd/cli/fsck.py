"""`fsck`: everything compared with everything, and mended where that is possible."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs; `--help` stays quick

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from ingestd.cli.flags import FINDINGS, Flags, Json, command
from ingestd.cli.jobs import note

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ingestd.config import Settings
    from ingestd.pipeline.fsck.check import Fsck, Seen
    from ingestd.pipeline.fsck.difference import Difference
    from ingestd.pipeline.fsck.repair import Outcome

_MOST_OF_A_CODE = 100


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    examples = ("ingestd fsck", "ingestd fsck --quick --json", "ingestd fsck --repair")
    command(app, "fsck", examples=examples)(fsck)


@dataclass(slots=True)
class Answer:
    """The differences of one run: all are counted, the first of each code are told."""

    counts: Counter[str] = field(default_factory=Counter)
    told: list[Difference] = field(default_factory=list)

    def take(self, difference: Difference) -> None:
        """Count it, and keep it while there are few of its kind."""
        self.counts[difference.code] += 1
        if self.counts[difference.code] <= _MOST_OF_A_CODE:
            self.told.append(difference)


def fsck(
    flags: Flags,
    *,
    is_repairing: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Mend what can be mended: recount, re-read files from the archive, free dead "
            "jobs. Never the evidence: archived bytes, rejects, the audit log.",
        ),
    ] = False,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the archived bytes again.")
    ] = False,
    is_json: Json = False,
) -> None:
    """Compare folders, ledger, tables, counts, alerts and archived bytes; name each difference.

    Nothing is written without --repair, and a daemon may be at work meanwhile: what is in work
    is left out, and said. Exit status 0 when all is sound, 1 when a difference is left.
    """
    from ingestd import assembly
    from ingestd.cli import screen
    from ingestd.cli.database import opened
    from ingestd.pipeline.fsck.repair import Plan, Repair

    settings = flags.settings()
    answer, plan, outcome = Answer(), Plan(), None
    with opened(settings, writer=False) as engine, screen.progress("looking") as on_progress:
        check = checker(settings, engine, is_quick=is_quick, on_progress=on_progress)
        for difference in differences(engine, check):
            answer.take(difference)
            if is_repairing:
                plan.add(difference)
    if is_repairing and answer.counts:
        with opened(settings, writer=True) as engine:
            ingest = assembly.make_ingest(settings, engine, is_archiving=False)
            outcome = Repair(ingest, note).carry_out(plan)
        answer = Answer()
        with opened(settings, writer=False) as engine, screen.progress("looking") as on_progress:
            check = checker(settings, engine, is_quick=is_quick, on_progress=on_progress)
            for difference in differences(engine, check):
                answer.take(difference)
    seen = check.seen
    if is_json:
        told = [
            {"code": each.code, "about": each.about, "what": each.what, "hint": each.hint}
            for each in answer.told
        ]
        screen.print_json(
            {
                "is_sound": not answer.counts,
                "differences": told,
                "counts": dict(answer.counts),
                "seen": asdict(seen),
                "repaired": outcome and {"mended": outcome.mended, "left": outcome.left},
            }
        )
    else:
        _tell(answer, seen, outcome)
    if answer.counts:
        raise typer.Exit(FINDINGS)


def checker(
    settings: Settings,
    engine: Engine,
    *,
    is_quick: bool,
    on_progress: Callable[[str, int, int], None],
) -> Fsck:
    """Make what compares a database with these folders."""
    from ingestd import assembly
    from ingestd.cli.database import readers
    from ingestd.pipeline.fsck.check import Fsck, Places
    from ingestd.pipeline.ledger import owner_name
    from ingestd.pipeline.worker import utc_now

    watch = settings.watch
    is_archiving = watch.after == "archive"
    return Fsck(
        sessions=readers(engine),
        terms=assembly.terms_of(settings, is_archiving=is_archiving),
        places=Places(
            inbox=watch.inbox,
            archive=watch.archive,
            quarantine=watch.quarantine,
            is_archiving=is_archiving,
        ),
        owner=owner_name(),
        clock=utc_now,
        judged_by=(assembly.thresholds_of(settings), assembly.standard_of(settings).text()),
        is_quick=is_quick,
        on_progress=on_progress,
    )


def differences(engine: Engine, check: Fsck) -> Iterator[Difference]:
    """Those of the schema first; where a table is missing, there is nothing else to compare."""
    from ingestd import migrate
    from ingestd.pipeline.fsck.difference import Difference

    differs = migrate.differences(engine)
    for line in differs:
        yield Difference(code="schema_wrong", about="the schema", what=line)
    if not any(line.startswith(("add_table", "add_column")) for line in differs):
        yield from check.differences()


def _tell(answer: Answer, seen: Seen, outcome: Outcome | None) -> None:
    from ingestd.cli import screen

    if outcome is not None:
        for line in outcome.mended:
            screen.say(f"mended: {line}", colour_of="ok")
        for line in outcome.left:
            screen.say(f"left: {line}", colour_of="warn")
        screen.say()
    for each in answer.told:
        screen.say(f"{each.code}: {each.about}", colour_of="fail")
        screen.say(f"    {each.what}")
        screen.say(f"    → {each.hint}")
    for code, number in answer.counts.items():
        if number > _MOST_OF_A_CODE:
            screen.say(f"{code}: {screen.number(number - _MOST_OF_A_CODE)} more")
    if answer.told:
        screen.say()
    counted = asdict(seen)
    screen.show(
        ("looked at", ""),
        [(name.replace("_", " "), number) for name, number in counted.items() if number],
    )
    if not answer.counts:
        screen.say("sound: nothing differs", colour_of="ok")
