"""Putting together what works on an inbox, from the settings: for `run`, `once` and all others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine, make_url

from ingestd.config import Settings
from ingestd.db import make_sessions
from ingestd.log import chosen
from ingestd.pipeline import archive, ledger, outbox
from ingestd.pipeline.beside import Reader
from ingestd.pipeline.ingest import Ingest, Terms
from ingestd.pipeline.read import ReadLimits
from ingestd.pipeline.standard import Standard, take_up
from ingestd.pipeline.step import Step
from ingestd.pipeline.worker import Post, utc_now
from ingestd.pipeline.workers import Workers
from ingestd.telling.sender import wanted_of
from ingestd.transient import database_at_work

if TYPE_CHECKING:
    from ingestd.pipeline.evaluator import Evaluator, Thresholds

log = structlog.get_logger()

_MOST_WORKERS = 2


def read_limits(settings: Settings) -> ReadLimits:
    """What reading is held to."""
    limits = settings.limits
    return ReadLimits(
        max_line_bytes=limits.max_line_bytes,
        max_member_bytes=limits.max_member_bytes,
        max_ratio=limits.max_ratio,
        max_nesting=limits.max_nesting,
        max_members=limits.max_members,
        max_name_bytes=limits.max_name_bytes,
    )


def terms_of(settings: Settings, *, is_archiving: bool) -> Terms:
    """What ingesting is held to."""
    return Terms(
        read=read_limits(settings),
        batch_rows=settings.ingest.batch_rows,
        batch_bytes=settings.ingest.batch_bytes,
        max_reject_rows=settings.ingest.max_reject_rows,
        max_reject_ratio=settings.ingest.max_reject_ratio,
        max_entries=settings.limits.max_entries,
        max_json_depth=settings.limits.max_json_depth,
        max_field_bytes=settings.limits.max_field_bytes,
        max_hours=settings.limits.max_hours,
        raw_text_bytes=settings.limits.raw_text_bytes,
        attempts=settings.ingest.attempts,
        retry_seconds=settings.ingest.retry_seconds,
        lease_seconds=settings.ingest.lease_seconds,
        is_archiving=is_archiving,
        archive=settings.watch.archive,
        quarantine=settings.watch.quarantine,
        alerts=settings.held,
        elections=settings.elections,
        notices=wanted_of(settings.notify),
    )


def make_ingest(
    settings: Settings,
    engine: Engine,
    *,
    is_archiving: bool,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[Step], None] = lambda _step: None,
) -> Ingest:
    """Put an `Ingest` together for these settings."""
    terms = terms_of(settings, is_archiving=is_archiving)
    return Ingest(
        sessions=outbox.telling(make_sessions(engine), terms.notices),
        terms=terms,
        clock=utc_now,
        owner=ledger.owner_name(),
        should_stop=should_stop,
        on_step=on_step,
        reader=make_reader(settings),
    )


def make_reader(settings: Settings) -> Reader | None:
    """A reader for the daemon itself, where there is a core for it."""
    from_mb = settings.ingest.reader_from_mb
    if not from_mb or len(os.sched_getaffinity(0)) == 1:
        return None
    return Reader(from_mb * 1024 * 1024)


def make_workers(settings: Settings, ingest: Ingest) -> Workers:
    """Put `Workers` together for these settings; with SQLite the daemon takes all files itself."""
    database = settings.database
    is_sqlite = make_url(database.url).get_backend_name() == "sqlite"
    most = settings.ingest.workers or min(_MOST_WORKERS, len(os.sched_getaffinity(0)))

    def post(number: int) -> Post:
        return Post(
            number=number,
            url=database.url,
            busy_timeout_seconds=database.busy_timeout_seconds,
            answer_timeout_seconds=database.answer_timeout_seconds,
            stop_seconds=settings.ingest.stop_seconds,
            terms=ingest.terms,
            owner=ingest.owner,
            log=chosen(),
        )

    return Workers(
        ingest, post, 1 if is_sqlite else most, settings.ingest.workers_from_mb * 1024 * 1024
    )


def make_evaluator(settings: Settings, ingest: Ingest) -> Evaluator:
    """Put an evaluator together for these settings."""
    # numpy takes a while to import, and `--help` does without.
    from ingestd.pipeline.evaluator import Evaluator  # noqa: PLC0415

    return Evaluator(ingest.sessions, thresholds_of(settings), ingest.clock, ingest.on_step)


def thresholds_of(settings: Settings) -> Thresholds:
    """What the statistical rules are held to."""
    from ingestd.pipeline.evaluator import Thresholds  # noqa: PLC0415

    told = settings.statistics
    numbers = {name: getattr(told, name) for name in type(told).thresholds()}
    return Thresholds(
        values=numbers,
        overrides=told.overrides,
        held=settings.held,
        voting_hours=told.voting_hours,
        first_hour=told.first_hour,
    )


def standard_of(settings: Settings) -> Standard:
    """By what these settings judge."""
    statistics = settings.statistics.model_dump(mode="json")
    return Standard(alerts=settings.held, elections=settings.elections, statistics=statistics)


def take_over(ingest: Ingest) -> None:
    """Take over what an earlier process left behind."""
    with database_at_work(), ingest.sessions.begin() as session:
        freed = ledger.release_dead(session, now=ingest.clock(), owner=ingest.owner)
    if freed:
        log.info("jobs_taken_over", jobs=freed)
    if ingest.terms.is_archiving:
        for folder in (ingest.terms.archive, ingest.terms.quarantine):
            if swept := archive.sweep(folder):
                log.info("broken_copies_removed", folder=str(folder), files=swept)


def take_up_settings(ingest: Ingest, settings: Settings) -> None:
    """Let these settings hold for what is stored, too."""
    with database_at_work(), ingest.sessions.begin() as session:
        anew = take_up(session, standard_of(settings), ingest.clock())
    if anew:
        log.info("thresholds_changed", constituencies=anew, judged="again, one after the other")
