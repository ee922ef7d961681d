"""What taking files costs, and what happens besides: added up where it happens, told later.

A worker sends it with what became of a file, so that the daemon's figures are those of all.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ingestd.pipeline.step import Step

STAGES: dict[Step, str] = {
    Step.LOOKED: "look",
    Step.NOTED: "record",
    Step.RECORDED: "record",
    Step.OPENED: "read",
    Step.READ: "read",
    Step.CLAIMED: "load",
    Step.LOADED: "load",
    Step.REJECTED: "load",
    Step.ADVANCED: "load",
    Step.COMPLETED: "load",
    Step.SUPERSEDED: "load",
    Step.COUNTED: "count",
    Step.ALERTED: "judge",
    Step.STORED: "commit",
    Step.UNDONE: "undo",
    Step.QUARANTINED: "undo",
    Step.REFUSED: "undo",
    Step.ADDRESSED: "put_away",
    Step.EXPLAINED: "put_away",
    Step.COPIED: "put_away",
    Step.MOVED: "put_away",
    Step.JUDGED: "evaluate",
    Step.EVALUATED: "evaluate",
}
"""To which stage the time belongs that goes by before a step is over."""


@dataclass(slots=True)
class Tally:
    """Seconds by stage, and how often something happened that no job tells of."""

    seconds: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    clock: Callable[[], float] = time.perf_counter
    _since: float | None = None

    def begin(self) -> None:
        """Let the next step begin now: nobody worked since the last one."""
        self._since = self.clock()

    def __call__(self, step: Step) -> None:
        """Note that a step is over."""
        now = self.clock()
        if self._since is not None:
            self.seconds[STAGES[step]] += now - self._since  # type: ignore[assignment]  # a Counter of seconds
        self._since = now

    def add(self, seconds: Counter[str], events: Counter[str]) -> None:
        """Add what a worker tells."""
        self.seconds.update(seconds)
        self.events.update(events)

    def taken(self) -> tuple[Counter[str], Counter[str]]:
        """Give all that was added up, and begin anew."""
        told = self.seconds, self.events
        self.seconds, self.events = Counter(), Counter()
        return told
