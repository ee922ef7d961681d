"""A simulator of e-voting exports that knows the truth about what it writes.

`simulate` draws an election, bends some of its constituencies by the defects asked for, writes the
files that an observer would download, and writes beside them what a reader must find in them. It
shares no code with the readers: a reader that agrees with it agrees with a second opinion.

The directory then holds `drop/` (files for the inbox), `drop-2/` (publications again, for the
inbox after `drop/`, at the same relative paths) and `truth.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .defects import DEFECTS, apply_defects, assign_defects
from .files import write_contest
from .life import begin_contest
from .plan import Packing, Plan
from .shape import draw_constituencies
from .truth import Truth, begin_truth

__all__ = ["Packing", "Plan", "Truth", "defect_descriptions", "defect_names", "simulate"]


def simulate(
    directory: Path, plan: Plan, *, progress: Callable[[int], None] | None = None
) -> Truth:
    """Write the planned election into `directory`, which must be new or empty; return its truth.

    `progress` is called with the number of CSV bytes just written. Memory stays flat: one
    constituency at a time is held as times, and its rows pass through in blocks.
    Raises FileExistsError for a directory in use and ValueError for an impossible plan.
    """
    chosen = assign_defects(plan)
    _claim(directory)
    constituencies = draw_constituencies(
        plan,
        afflicted=frozenset(chosen),
        crowded=frozenset(number for number in chosen if "over_registered" in chosen[number]),
    )
    truth = begin_truth(plan)
    for constituency in constituencies:
        contest = begin_contest(plan, constituency)
        apply_defects(contest, chosen.get(constituency.number, ()))
        records = write_contest(directory, contest, progress or _silent)
        truth.add_contest(contest, records)
    truth.finish()
    truth.save(directory / "truth.json")
    return truth


def defect_names() -> tuple[str, ...]:
    """The names that `Plan.defects` takes."""
    return tuple(DEFECTS)


def defect_descriptions() -> dict[str, str]:
    """What each defect does, in a few words, for a help text."""
    return {name: defect.description for name, defect in DEFECTS.items()}


def _claim(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        msg = f"{directory} is not empty: a simulation needs a directory of its own"
        raise FileExistsError(msg)
    (directory / "drop").mkdir()
    (directory / "drop-2").mkdir()


def _silent(_: int) -> None:
    """Nobody is watching."""
