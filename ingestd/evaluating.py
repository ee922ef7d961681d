"""Evaluating beside the files: the statistics and the rules about all constituencies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import structlog

from ingestd.assembly import make_evaluator
from ingestd.config import Settings
from ingestd.errors import StorageFault
from ingestd.pipeline import stats
from ingestd.pipeline.feed import Kept, evaluate_feed
from ingestd.pipeline.ingest import Ingest
from ingestd.pipeline.standard import review_due
from ingestd.transient import database_at_work

if TYPE_CHECKING:
    from ingestd.pipeline.evaluator import Evaluator

log = structlog.get_logger()

_BETWEEN_EVALUATIONS_SECONDS, _AFTER_FAILURE_SECONDS = 3.0, 60.0
_PAUSE_PER_EVALUATION = 4
_REVIEWING_SECONDS = 2.0


@dataclass(slots=True)
class Evaluating:
    """Lets the evaluator work off what files left for it, in a fifth of the time at most."""

    settings: Settings
    ingest: Ingest
    on_due: Callable[[int], None] = lambda _due: None
    is_thorough: bool = False
    _evaluator: Evaluator | None = None
    _next: float = 0.0

    def attend(self) -> None:
        """Evaluate what is due, unless the last time was a moment ago.

        Raises:
            StorageFault: the database is away; what is due stays so.
        """
        started = time.monotonic()
        if started < self._next:
            return
        pause = _BETWEEN_EVALUATIONS_SECONDS
        try:
            with database_at_work():
                self._work_off()
        except StorageFault:
            raise
        except Exception:
            # The rows are in: what cannot be judged must not keep files waiting.
            log.exception("evaluation_failed", again_in_seconds=_AFTER_FAILURE_SECONDS)
            pause = _AFTER_FAILURE_SECONDS
        now = time.monotonic()
        self._next = now + max(pause, _PAUSE_PER_EVALUATION * (now - started))

    def _work_off(self) -> None:
        self._review()
        with self.ingest.sessions() as session:
            due = stats.number_due(session)
        self.on_due(due)
        if not due:
            return
        self.ingest.tally.begin()
        is_first = self._evaluator is None
        if self._evaluator is None:
            self._evaluator = make_evaluator(self.settings, self.ingest)
        # What a killed process left of its turn is ours: it will not come back to it.
        done = self._evaluator.work_off(is_alone=is_first)
        if done:
            log.debug("evaluated", **asdict(done))

    def _review(self) -> None:
        """Judge anew what is held to other thresholds now; files wait for a moment of it."""
        end = None if self.is_thorough else time.monotonic() + _REVIEWING_SECONDS

        def should_stop() -> bool:
            return self.ingest.should_stop() or (end is not None and time.monotonic() > end)

        if reviewed := review_due(self.ingest, should_stop):
            log.info("judged_anew", constituencies=reviewed)


def look_at_feed(ingest: Ingest, *, is_thorough: bool = False, kept: Kept | None = None) -> None:
    """Let the rules about all constituencies look at what is here now."""
    with database_at_work(), ingest.sessions.begin() as session:
        evaluate_feed(
            session,
            now=ingest.clock(),
            held=ingest.terms.alerts,
            is_thorough=is_thorough,
            kept=kept,
        )
