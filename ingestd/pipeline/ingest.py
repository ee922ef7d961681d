"""The life of a file, told once: look, record, ingest, put away.

    source ─ look inside ─ record its jobs ─ for each job: ingest ─ put away

One commit holds a batch's records, its rejects and the job's new checkpoint;
the commit of the last batch also holds hours, alerts and the completed job. A
file that fits one batch is one commit. The source is touched only afterwards.
"""

from __future__ import annotations

import os
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import Clock, is_postgresql
from ingestd.elections import Elections
from ingestd.errors import (
    FileChanged,
    FileRefused,
    FileVanished,
    IngestError,
    LostClaim,
    ManifestNotMet,
    StopRequested,
    StorageFault,
)
from ingestd.job_state import PUT_AWAY, QUEUED, JobState
from ingestd.log import escape
from ingestd.models import FileProcessing
from ingestd.models import Reject as StoredReject
from ingestd.pipeline import alerts, archive, ledger, stats
from ingestd.pipeline.ahead import Ahead, look_ahead
from ingestd.pipeline.batches import Batch, Reading, read_batches
from ingestd.pipeline.beside import Reader
from ingestd.pipeline.evidence import Measured, contradiction
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.leave import Leaving
from ingestd.pipeline.ledger import Books, Twin
from ingestd.pipeline.load import load_batch
from ingestd.pipeline.look import look_inside, whole
from ingestd.pipeline.outbox import NOBODY, Wanted
from ingestd.pipeline.read import (
    Csv,
    Digest,
    ReadLimits,
    Source,
    open_source,
)
from ingestd.pipeline.sightings import FileRef, recompute_file, undo_file
from ingestd.pipeline.slot import parse_name
from ingestd.pipeline.step import Step
from ingestd.pipeline.tally import Tally
from ingestd.pipeline.touched import Touched
from ingestd.pipeline.validate import (
    Blank,
    Record,
    Reject,
    storable,
    storable_text,
)
from ingestd.thresholds import Alerts
from ingestd.transient import database_at_work, is_transient

log = structlog.get_logger()

_MOST_ATTEMPTS_SHIFT = 10
_REASONS_TOLD = 20
# An id of 32 characters, eleven semicolons, -1 and the line's end: no good row is shorter.
_SHORTEST_ROW_BYTES = 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What ingesting is held to; all of it settings."""

    read: ReadLimits
    batch_rows: int
    batch_bytes: int
    max_reject_rows: int
    max_reject_ratio: float
    max_entries: int
    max_json_depth: int
    max_field_bytes: int
    max_hours: int
    raw_text_bytes: int
    attempts: int
    retry_seconds: float
    lease_seconds: float
    is_archiving: bool
    archive: Path
    quarantine: Path
    alerts: Alerts = field(default_factory=Alerts)
    elections: Elections = field(default_factory=Elections)
    notices: Wanted = NOBODY


@dataclass(slots=True)
class Attempt:
    """What one go at a job has come to; in the ledger as far as it is committed."""

    books: Books
    touched: Touched
    first_rejects: list[Reject] = field(default_factory=list)
    # Where the file will be put, if it is the only CSV of it; else that is known when all are done.
    goes_to: str | None = None


@dataclass(slots=True)
class Ingest:
    """Takes files from found to put away, on one database."""

    sessions: sessionmaker[Session]
    terms: Terms
    clock: Clock
    owner: str
    should_stop: Callable[[], bool] = lambda: False
    on_progress: Callable[[str, int, int], None] = lambda _path, _done, _size: None
    on_step: Callable[[Step], None] = lambda _step: None
    # Reads files beside us; without one all are read here.
    reader: Reader | None = None
    # Files (path, stamp) that broke before they had a job: how often, and when to try again.
    unrecorded: dict[tuple[str, str], tuple[int, datetime]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    _ahead: dict[Path, Ahead] = field(default_factory=dict)
    # The files that will be taken next, in their order.
    _coming: deque[Found] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """Let the tally hear each step before whoever else listens."""
        tally, listen = self.tally, self.on_step

        def on_step(step: Step) -> None:
            tally(step)
            listen(step)

        self.on_step = on_step

    def look_ahead(self, run: Sequence[Found]) -> None:
        """Write down the jobs of the plain files among the next ones, all in one commit.

        Whatever is in the way of that is met, and said, when each of them is taken.

        Raises:
            StorageFault: the database did not answer; nothing is lost.
        """
        self.forget_ahead()
        if len(run) <= 1:  # it saves nothing
            return
        self._coming.extend(run)
        self.tally.begin()
        try:
            with database_at_work(), one_recorder():
                plain = look_ahead(
                    run,
                    sessions=self.sessions,
                    limits=self.terms.read,
                    archive_to=self.terms.archive if self.terms.is_archiving else None,
                    elections=self.terms.elections,
                    now=self.clock(),
                    on_step=self.on_step,
                )
        except StorageFault:
            raise
        except Exception as error:  # noqa: BLE001 - a file that cannot be read is one of many
            if not is_foreseen(error):
                log.warning("not_looked_ahead", files=len(run), error=_in_words(error))
            return
        self._ahead = {ahead.found.path: ahead for ahead in plain}
        if self.reader is not None:
            due = [ahead for ahead in plain if ahead.job and ahead.job.status in QUEUED]
            readings = [self._reading(each.source, each.csv, each.slot[0]) for each in due]
            self.reader.read_ahead(readings, sum(each.unpacked_bytes for each in due))

    def forget_ahead(self) -> None:
        """Let go of what was looked at and not taken; it is in the ledger."""
        self._coming.clear()
        while self._ahead:
            self._ahead.popitem()[1].source.close()

    def rest(self) -> None:
        """Let go of what waits for the next file, if it has waited for long."""
        if self.reader is not None:
            self.reader.rest()

    def close(self) -> None:
        """Let go of it for good."""
        if self.reader is not None:
            self.reader.close()

    def take(self, found: Found) -> list[FileProcessing]:
        """Take one file all the way; returns its jobs as they now stand.

        Raises:
            ManifestNotMet: it is not complete yet; nothing is recorded.
            StopRequested: a stop was asked for; what is committed stays.
            StorageFault: the database did not answer; nothing is lost.
        """
        self.tally.begin()
        try:
            with database_at_work():
                return self._take(found)
        except FileVanished:
            self._note_vanished(found)
            return []
        except FileChanged:
            return []
        except LostClaim as lost:
            log.debug("left_to_another", path=found.label, why=str(lost))
            return []

    def _take(self, found: Found) -> list[FileProcessing]:
        source, recorded = self._open(found)
        if self.reader is not None:
            self.reader.coming = None
            self.reader.start(source)
        try:
            members = recorded or self._record_at_last(found, source)
            jobs = []
            for number, (csv, job) in enumerate(members, start=1):
                self._heed_stop()
                if self.reader is not None and number == len(members):
                    self.reader.coming = self._reading_behind(found, self.reader.from_bytes)
                goes_to = self._place_in_archive(found) if len(members) == 1 else None
                jobs.append(self._work_off(found, source, csv, job, goes_to))
        finally:
            source.close()
        return self._put_away(found, source, jobs)

    def _open(self, found: Found) -> tuple[Source, list[tuple[Csv | None, FileProcessing]]]:
        """Open a file; with its job, where it was looked at ahead and is as it was."""
        ahead = self._ahead.pop(found.path, None)
        if ahead is not None and ahead.job is not None:
            is_still = _is_still(ahead.source)
            if ahead.found == found and is_still:
                return ahead.source, [(ahead.csv, ahead.job)]
            ahead.source.close()
            if not is_still:
                self._take_back(ahead.job)
        return open_source(found.path, self.terms.read), []

    def _take_back(self, job: FileProcessing) -> None:
        """Let go of a duplicate that never came: it would say for ever where it did not go."""
        target = job.archived_to
        if job.status == JobState.DUPLICATE and target and not os.path.lexists(target):
            with self.sessions.begin() as session:
                ledger.take_back(session, job)

    def _heed_stop(self) -> None:
        if self.should_stop():
            raise StopRequested

    # ── record ────────────────────────────────────────────────────────────

    def _record_at_last(
        self, found: Found, source: Source
    ) -> list[tuple[Csv | None, FileProcessing]]:
        """Record; a file that breaks every attempt to is quarantined by a job of its own."""
        key = (found.label, source.stamp)
        attempts, retry_at = self.unrecorded.get(key, (0, self.clock()))
        if self.clock() < retry_at:
            message = f"broken {attempts} times, tried again at {retry_at}"
            raise LostClaim(message)
        try:
            recorded = self._record(found, source)
        except Exception as error:
            if is_foreseen(error):
                raise
            if attempts + 1 < self.terms.attempts:
                retry_at = self.clock() + self._pause_after(attempts)
                self.unrecorded[key] = (attempts + 1, retry_at)
                raise
            refusal = _poison(attempts + 1, error)
            recorded = [(None, self._refuse_container(found, source, refusal))]
        self.unrecorded.pop(key, None)
        return recorded

    def _record(self, found: Found, source: Source) -> list[tuple[Csv | None, FileProcessing]]:
        """Write down a job for each CSV, all in one commit; a file seen before keeps its jobs."""
        with self.sessions.begin() as session:
            earlier = ledger.jobs_at(session, str(found.root), found.label)
        # A vanished job is none of them: its file is back and was never read.
        jobs = [
            job for job in earlier if job.stamp == source.stamp and job.status != JobState.VANISHED
        ]
        # A person asked again for a container that could not be opened: look inside once more.
        unopened = {job.id for job in jobs if _is_unopened(source, job)}
        is_known = jobs and not unopened and not _is_newly_claimed(found, jobs)
        if is_known and _are_all_of(source, jobs):
            by_member = self._members_of(source, jobs)
            return [(by_member.get(job.member), job) for job in jobs]
        if any(job.status in QUEUED for job in earlier):
            # Other bytes lie here than those that a queued job began to read, or a manifest
            # came that may say so.
            self._let_go(found.root, lambda job: job.id not in unopened, path=found.label)
        measured = Measured()
        try:
            deliveries = look_inside(
                found,
                source,
                measured,
                sessions=self.sessions,
                heed_stop=self._heed_stop,
                hashed=self._hashed,
            )
        except FileRefused as refusal:
            self._heed_manifest(found, measured)
            _refuse_replaced(found, source)
            return [(None, self._refuse_container(found, source, refusal))]
        unmet = self._heed_manifest(found, measured)
        _refuse_replaced(found, source)
        self.on_step(Step.LOOKED)
        recorded: list[tuple[Csv | None, FileProcessing]] = []
        with one_recorder(), self.sessions.begin() as session:
            ledger.hold_numbers(session, {delivery.contract_id for _, delivery, _ in deliveries})
            for csv, delivery, places in deliveries:
                if delivery.contract_id:
                    stats.ensure_constituency(
                        session, delivery.contract_id, places, self.terms.elections
                    )
                job = ledger.record(session, delivery, self.clock())
                if job is None:
                    message = "the same bytes are being worked on under another name"
                    raise LostClaim(message)
                if unmet and job.status in QUEUED:
                    contradicted = FileRefused(str(unmet), kind="manifest", field=unmet.what)
                    self._quarantine(session, job, contradicted, Attempt(Books(), Touched()))
                recorded.append((csv, job))
            # Asked again: where another process has put this very file away meanwhile, what
            # was just written down would be a second delivery that never came.
            _refuse_replaced(found, source)
            for asked in sorted(unopened):
                job = session.get_one(FileProcessing, asked)
                ledger.tell_by(session, job, recorded[0][1], self.clock())
                alerts.note_refused_file(session, job, self.clock(), self.terms.alerts)
                recorded.append((None, job))
            self.on_step(Step.NOTED)
        self.on_step(Step.RECORDED)
        return recorded

    @staticmethod
    def _heed_manifest(found: Found, measured: Measured) -> ManifestNotMet | None:
        """Let a file wait that contradicts its manifest, unless it has waited long enough."""
        unmet = contradiction(found.claim, found.label, measured)
        if unmet and not found.is_last_chance:
            raise unmet
        return unmet

    @staticmethod
    def _members_of(source: Source, jobs: Iterable[FileProcessing]) -> dict[str | None, Csv]:
        """Find the CSVs again; not needed where nothing is left to do."""
        if all(job.status not in QUEUED for job in jobs):
            return {}
        try:
            return {csv.member: csv for csv in source.csvs()}
        except FileRefused:
            return {}

    def _refuse_container(
        self, found: Found, source: Source, refusal: FileRefused
    ) -> FileProcessing:
        """A container that cannot be opened has a job of its own."""
        delivery = whole(found, source, heed_stop=self._heed_stop)
        with one_recorder(), self.sessions.begin() as session:
            job = ledger.record(session, delivery, self.clock())
            assert job is not None  # noqa: S101 - a delivery without contract always has a job
            self._quarantine(session, job, refusal, Attempt(Books(), Touched()))
        self.on_step(Step.REFUSED)
        return job

    # ── ingest ────────────────────────────────────────────────────────────

    def _work_off(
        self,
        found: Found,
        source: Source,
        csv: Csv | None,
        job: FileProcessing,
        goes_to: str | None,
    ) -> FileProcessing:
        """Ingest one job if it asks for work; what goes wrong costs what its type says.

        The only job of a file says when it is completed where that `goes_to`.
        """
        longest = self._pause_after(job.attempts)
        if not ledger.is_due(job, now=self.clock(), longest=longest):
            return job
        if csv is None:
            raise FileVanished(found.label)
        attempt = Attempt(Books.of(job), Touched.from_json(job.touched), goes_to=goes_to)
        try:
            return self.ingest_file(source, csv, job, attempt)
        except FileRefused as refusal:
            if not _is_still(source):
                # What is wrong with it may be the change itself: not these bytes are judged.
                self._forget_changed(found, job)
                raise FileChanged(found.label) from refusal
            with self.sessions.begin() as session:
                job = session.get_one(FileProcessing, job.id)
                self._quarantine(session, job, refusal, attempt)
            self.on_step(Step.REFUSED)
            return job
        except (FileChanged, FileVanished):
            self._forget_changed(found, job)
            raise
        except StopRequested:
            with self.sessions.begin() as session:
                stopped = session.get_one(FileProcessing, job.id)
                ledger.release(session, stopped, owner=self.owner)
            raise
        except Exception as error:  # a poison file must not stop the daemon
            if is_foreseen(error):
                raise
            return self._note_failure(job.id, error, attempt)

    def _forget_changed(self, found: Found, job: FileProcessing) -> None:
        """Undo a job whose bytes are no longer there; what lies there now is found anew."""
        with self.sessions.begin() as session:
            job = session.get_one(FileProcessing, job.id)
            self._undo(session, job)
            ledger.vanish(session, job, now=self.clock())
        self.tally.events["changed"] += 1
        log.warning("file_changed_while_read", path=found.label, member=job.member)

    def ingest_file(
        self, source: Source, csv: Csv, job: FileProcessing, attempt: Attempt
    ) -> FileProcessing:
        """Stream one CSV into the tables, from its checkpoint to its end; the job as it then is.

        Raises:
            FileRefused: unfit; the caller undoes and quarantines it.
            FileChanged: the bytes are no longer those of the job.
        """
        started = self.clock()
        self._refuse_nameless(job)
        file = FileRef.of(job)
        with closing(self._batches(source, csv, job)) as batches:
            for batch in batches:
                if self.should_stop() and not batch.is_last:
                    raise StopRequested
                self.on_step(Step.READ)
                with self.sessions.begin() as session:
                    is_last = batch.is_last
                    hold_constituency(session, file.constituency_id, job if is_last else None)
                    stored = ledger.hold(session, job)
                    self._store(session, stored, file, batch, attempt)
                    if not is_last:
                        _refuse_misnamed(stored, ledger.twins_of(session, stored))
                    if is_last:
                        self._refuse_changed(source, batch, job)
                    self._refuse_hopeless(attempt.books, job)
                    if is_last:
                        self._refuse_too_many_rejects(attempt.books)
                        seconds = (self.clock() - started).total_seconds()
                        self._finish(session, stored, attempt, batch.encoding, seconds)
                job = stored
                self.on_step(Step.STORED)
                self.on_progress(job.path, batch.bytes_read, job.size)
        log.info(
            "file_ingested",
            path=job.path,
            member=job.member,
            **{name: number for name, number in asdict(attempt.books).items() if number},
            seconds=round((self.clock() - started).total_seconds(), 3),
        )
        return job

    def _batches(self, source: Source, csv: Csv, job: FileProcessing) -> Generator[Batch]:
        """Read what is left of a CSV; in a process beside us where there is enough to read."""
        at = (job.checkpoint_byte, job.checkpoint_line)
        reading = self._reading(source, csv, job.contract_id or "", at)

        def on_open() -> None:
            self.on_step(Step.OPENED)

        left = job.size - job.checkpoint_byte
        if self.reader is None or not self.reader.wants(reading, left):
            return read_batches(source, reading, on_open)
        return self.reader.batches(source, reading, on_open=on_open, should_stop=self.should_stop)

    def _hashed(self, source: Source, csv: Csv) -> Digest | None:
        """The digest of a CSV that was hashed beside us while the file before it was stored."""
        if self.reader is None:
            return None
        return self.reader.hash_of(source, csv, self.should_stop)

    def _reading_behind(self, found: Found, large: int) -> Reading | None:
        """How the file behind this one will be read, if it is large and its name says whose it is.

        What is in its way is said when it is taken.
        """
        while self._coming and self._coming.popleft() != found:
            pass
        if not self._coming or self._coming[0].path in self._ahead:
            return None
        with (
            suppress(IngestError, OSError, BadZipFile),
            closing(open_source(self._coming[0].path, self.terms.read)) as source,
        ):
            csvs = list(islice(source.csvs(), 2))  # what nests many is not walked for this
            contract_id, _slot = parse_name((csvs[0].member or source.path.name).rsplit("/", 1)[-1])
            if len(csvs) == 1 and contract_id and source.unpacked_bytes(csvs[0]) >= large:
                return self._reading(source, csvs[0], contract_id)
        return None

    def _reading(
        self, source: Source, csv: Csv, contract_id: str, at: tuple[int, int] = (0, 0)
    ) -> Reading:
        """How a CSV is read behind a byte and a line."""
        return Reading(
            path=source.path,
            stamp=source.stamp,
            csv=csv,
            contract_id=contract_id,
            from_byte=at[0],
            from_line=at[1],
            limits=self.terms.read,
            batch_rows=self.terms.batch_rows,
            batch_bytes=self.terms.batch_bytes,
            max_entries=self.terms.max_entries,
            max_json_depth=self.terms.max_json_depth,
            max_field_bytes=self.terms.max_field_bytes,
            raw_text_bytes=self.terms.raw_text_bytes,
        )

    @staticmethod
    def _refuse_nameless(job: FileProcessing) -> None:
        if job.contract_id is None:
            reason = (
                "no contract id in the file's name, its folders or its rows; "
                "rename it to <contract>_<YYYY-MM-DD>_<HHMM-HHMM>.csv and drop it again"
            )
            raise FileRefused(reason, kind="no_contract", field="name", value=job.name)

    def _store(
        self,
        session: Session,
        job: FileProcessing,
        file: FileRef,
        batch: Batch,
        attempt: Attempt,
    ) -> None:
        """Put one batch, its rejects and the checkpoint behind it into the session's commit."""
        now = self.clock()
        lease = timedelta(seconds=self.terms.lease_seconds)
        ledger.claim(session, job, owner=self.owner, books=attempt.books, now=now, lease=lease)
        self.on_step(Step.CLAIMED)
        outcomes = batch.outcomes
        records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
        rejects = [outcome for outcome in outcomes if isinstance(outcome, Reject)]
        # Most files hold nothing that is known, and what holds some goes on to hold more.
        expects_new = not (attempt.books.known or attempt.books.rollbacks)
        loaded = load_batch(session, file, records, expects_new=expects_new)
        self.on_step(Step.LOADED)
        rejects += [_collision(record) for record in loaded.collisions]
        ledger.add_rejects(session, job, rejects)
        self.on_step(Step.REJECTED)
        attempt.first_rejects += rejects[: _REASONS_TOLD - len(attempt.first_rejects)]
        books = attempt.books
        books.read += len(outcomes)
        books.stored += loaded.stored
        books.known += loaded.known
        books.rollbacks += loaded.rollbacks
        books.rejected += len(rejects)
        books.blank += sum(isinstance(outcome, Blank) for outcome in outcomes)
        attempt.touched.update(loaded.touched)
        self._refuse_too_many_hours(attempt.touched)
        checkpoint = (job.checkpoint_byte, job.checkpoint_line)
        if outcomes:
            checkpoint = (outcomes[-1].end, outcomes[-1].line)
        ledger.advance(
            job,
            books=books,
            checkpoint=checkpoint,
            touched=attempt.touched.as_json(),
            lease_until=now + lease,
        )
        if not batch.is_last:
            ledger.save(session, job)
        self.on_step(Step.ADVANCED)

    @staticmethod
    def _refuse_changed(source: Source, batch: Batch, job: FileProcessing) -> None:
        if batch.sha256 != job.sha256 or not source.is_unchanged():
            message = f"{job.path} changed while it was read"
            raise FileChanged(message)

    def _refuse_hopeless(self, books: Books, job: FileProcessing) -> None:
        """Give a file up that has more bad rows than a good one of its size may have.

        Else gigabytes of anything, named .csv, would fill the database with rejects first. What
        is said must not depend on the batch in which it came out.
        """
        most = most_rejects(self.terms, job.size // _SHORTEST_ROW_BYTES)
        if books.rejected > most:
            reason = (
                f"more than {most} bad rows, which is more than any file of {job.size} bytes is "
                "allowed; nothing of this file was stored"
            )
            raise FileRefused(reason, kind="too_many_rejects")

    def _refuse_too_many_rejects(self, books: Books) -> None:
        rows = books.read - books.blank
        allowed = most_rejects(self.terms, rows)
        if books.rejected > allowed:
            reason = (
                f"{books.rejected} bad rows of {rows}, more than the {allowed} that are allowed; "
                "nothing of this file was stored"
            )
            raise FileRefused(reason, kind="too_many_rejects")

    def _refuse_too_many_hours(self, touched: Touched) -> None:
        if len(touched.hours) > self.terms.max_hours:
            reason = (
                f"its rows lie in more than max_hours = {self.terms.max_hours} different hours; "
                "no voting is so long"
            )
            raise FileRefused(reason, kind="hours", field="ts")

    def _finish(
        self,
        session: Session,
        job: FileProcessing,
        attempt: Attempt,
        encoding: str,
        seconds: float,
    ) -> None:
        """Close the job: publications, hours, totals and alerts in the commit of its last batch."""
        now = self.clock()
        books, touched = attempt.books, attempt.touched
        neighbours = ledger.neighbours_of(session, job)
        _refuse_misnamed(job, neighbours.twins)
        ledger.complete(
            session,
            job,
            now=now,
            encoding=encoding,
            seconds=seconds,
            goes_to=attempt.goes_to,
        )
        self.on_step(Step.COMPLETED)
        is_alone = neighbours.has_slot_alone
        publications = [job] if is_alone else ledger.publications_of(session, job)
        if len(publications) > 1:
            self._supersede(session, publications, touched)
        is_replacing = self._replace_slotless(session, job, neighbours.twins, touched)
        self.on_step(Step.SUPERSEDED)
        file = FileRef.of(job)
        if file.interval_slot:
            touched.slots.add(file.interval_slot)
        is_replacing |= len(publications) > 1
        has_history = bool(books.known or books.rollbacks) or is_replacing
        only_new = file if is_alone and not has_history and not neighbours.twins else None
        self._roll_up(
            session,
            file.constituency_id,
            touched,
            has_history=has_history,
            only_new=only_new,
            file_id=None if is_replacing else file.id,
        )
        if job.attempt_counts is not None:  # it was refused once
            alerts.note_refused_file(session, job, now, self.terms.alerts)

    @staticmethod
    def _replace_slotless(
        session: Session, job: FileProcessing, twins: Sequence[Twin], touched: Touched
    ) -> bool:
        """Let a file that names its slot take the place of its twins that do not; are there any?"""
        outdone = ledger.outdone(session, job, twins)
        for twin in outdone:
            ledger.move(session, twin, JobState.SUPERSEDED)
            hours = Touched.from_json(twin.touched).hours
            touched.update(recompute_file(session, FileRef.of(twin), hours))
        return bool(outdone)

    @staticmethod
    def _supersede(session: Session, publications: list[FileProcessing], touched: Touched) -> None:
        """Let the newest publication count, and every transaction of the slot say so."""
        ledger.make_newest_current(session, publications)
        for publication in publications:
            hours = Touched.from_json(publication.touched).hours
            touched.update(recompute_file(session, FileRef.of(publication), hours))

    def _roll_up(
        self,
        session: Session,
        constituency_id: uuid.UUID,
        touched: Touched,
        *,
        has_history: bool,
        only_new: FileRef | None = None,
        file_id: uuid.UUID | None = None,
    ) -> None:
        rolled_up = stats.roll_up(session, constituency_id, touched, only_new=only_new)
        self.on_step(Step.COUNTED)
        alerts.evaluate(
            session,
            constituency_id,
            touched,
            rolled_up,
            has_history=has_history,
            now=self.clock(),
            held=self.terms.alerts,
            file_id=file_id,
        )
        self.on_step(Step.ALERTED)

    def make_current(
        self, job_id: uuid.UUID, *, also: Callable[[Session], None] = lambda _session: None
    ) -> None:
        """Let an earlier publication of a slot count again, as a person decides.

        What `also` writes is in the same commit.

        Raises:
            LostClaim: the job was not superseded.
        """
        with database_at_work(), self.sessions.begin() as session:
            job = session.get_one(FileProcessing, job_id)
            if job.status != JobState.SUPERSEDED or job.constituency_id is None:
                message = f"job {job_id} is {job.status}; only a superseded one can be made current"
                raise LostClaim(message)
            ledger.hold_numbers(session, {job.contract_id})
            hold_constituency(session, job.constituency_id)
            ledger.renumber_as_newest(session, job)
            touched = Touched()
            self._supersede(session, ledger.publications_of(session, job), touched)
            self._roll_up(session, job.constituency_id, touched, has_history=True)
            also(session)

    # ── when it goes wrong ────────────────────────────────────────────────

    def _undo(self, session: Session, job: FileProcessing) -> None:
        """Take everything of a job out of the tables and count anew what it touched.

        Raises:
            LostClaim: another process is at work on it.
        """
        if job.constituency_id is not None:
            hold_constituency(session, job.constituency_id)
        # Read anew under the lock: its last batch may have come a moment ago.
        session.refresh(job, with_for_update=True)
        ledger.refuse_foreign(job, owner=self.owner, now=self.clock())
        if job.constituency_id is not None and job.checkpoint_line:
            file = FileRef.of(job)
            touched = Touched.from_json(job.touched)
            touched.update(undo_file(session, file, touched.hours))
            self._roll_up(session, file.constituency_id, touched, has_history=True)
        ledger.forget_attempt(session, job)
        self.on_step(Step.UNDONE)

    def _quarantine(
        self, session: Session, job: FileProcessing, refusal: FileRefused, attempt: Attempt
    ) -> None:
        """Undo a job and close it; the first bad rows stay on it as evidence."""
        earlier = ledger.first_rejects(session, job, _REASONS_TOLD)
        firsts: list[Reject | StoredReject] = [*earlier, *attempt.first_rejects]
        told = [_told(reject) for reject in firsts[:_REASONS_TOLD]]
        self._undo(session, job)
        ledger.quarantine(
            session, job, refusal, books=attempt.books, rejects=told, now=self.clock()
        )
        alerts.note_refused_file(session, job, self.clock(), self.terms.alerts)
        self.on_step(Step.QUARANTINED)
        log.warning(
            "file_quarantined",
            path=job.path,
            member=job.member,
            reason=refusal.reason,
            line=job.first_error_line,
            field=job.first_error_field,
            rejected=attempt.books.rejected,
        )

    def _note_failure(
        self, job_id: uuid.UUID, error: Exception, attempt: Attempt
    ) -> FileProcessing:
        """Something unforeseen: try again later, and quarantine a file that breaks every time."""
        told = _in_words(error)
        with self.sessions.begin() as session:
            job = session.get_one(FileProcessing, job_id, with_for_update=True)
            ledger.refuse_foreign(job, owner=self.owner, now=self.clock())
            if job.attempts + 1 >= self.terms.attempts:
                self._quarantine(session, job, _poison(job.attempts + 1, error), attempt)
                return job
            ledger.fail(
                session,
                job,
                reason=told,
                now=self.clock(),
                retry_after=self._pause_after(job.attempts),
            )
        self.tally.events["failed"] += 1
        log.error("attempt_failed", path=job.path, member=job.member, error=told, exc_info=error)
        return job

    def _pause_after(self, attempts: int) -> timedelta:
        """How long to wait after so many failed attempts; twice as long each time."""
        times = 2 ** min(attempts, _MOST_ATTEMPTS_SHIFT)
        return timedelta(seconds=self.terms.retry_seconds * times)

    def _note_vanished(self, found: Found) -> None:
        self._let_go(found.root, ledger.is_gone, path=found.label)

    def note_missing(self, root: Path, in_work: Collection[str] = ()) -> int:
        """Close the queued jobs of a root whose files were taken away; how many.

        Of those that a worker has `in_work` it tells by itself.
        """
        self.tally.begin()
        return self._let_go(root, lambda job: job.path not in in_work and ledger.is_gone(job))

    def _let_go(
        self, root: Path, is_gone: Callable[[FileProcessing], bool], *, path: str | None = None
    ) -> int:
        """Undo and close the queued jobs whose bytes are gone, each in its own commit."""
        with database_at_work(), self.sessions.begin() as session:
            gone = [job for job in ledger.queued_under(session, str(root), path) if is_gone(job)]
        number = 0
        for job in gone:
            try:
                with database_at_work(), self.sessions.begin() as session:
                    lost = session.get_one(FileProcessing, job.id)
                    self._undo(session, lost)
                    ledger.vanish(session, lost, now=self.clock())
            except LostClaim:  # another process has it, or has just finished it
                continue
            self.tally.events["vanished"] += 1
            log.warning("file_vanished", path=job.path, member=job.member)
            number += 1
        return number

    # ── put away ──────────────────────────────────────────────────────────

    def _place_in_archive(self, found: Found) -> str | None:
        if not self.terms.is_archiving:
            return None
        return label_of(archive.free_name(self.terms.archive / found.relative))

    def _put_away(
        self, found: Found, source: Source, jobs: list[FileProcessing]
    ) -> list[FileProcessing]:
        """Move the source once none of its jobs asks for work any more."""
        if not self.terms.is_archiving or any(job.status not in PUT_AWAY for job in jobs):
            return jobs
        if not source.is_unchanged():
            return jobs
        refused = [job for job in jobs if job.status == JobState.QUARANTINED]
        folder = self.terms.quarantine if refused else self.terms.archive
        reason = self.reasons(refused) if refused else ()
        leaving = Leaving(
            found,
            source,
            jobs,
            sessions=self.sessions,
            on_step=self.on_step,
            heed_stop=self._heed_stop,
        )
        # What changed since it was read stays, and is looked at anew.
        with suppress(FileChanged):
            leaving.go_to(folder, reason)
        return jobs

    def reasons(self, refused: list[FileProcessing]) -> list[str]:
        """Write down why jobs were refused, and what to do."""
        lines = ["ingestd refused this file; nothing of what is named here was stored.", ""]
        for job in refused[:_REASONS_TOLD]:
            lines += [
                f"file:    {job.path}" + (f" / {job.member}" if job.member else ""),
                f"sha256:  {job.sha256}",
                f"reason:  {job.first_error_message}",
            ]
            lines.append(f"job:     {job.id}")
            for told in (job.attempt_counts or {}).get("rejects", ()):
                lines.append(
                    f"line {told['line']}, {told['field'] or 'row'}: {told['reason']}"
                    + (f" ({told['value']})" if told["value"] else "")
                )
            lines.append("")
        lines.append("Mend the file and drop it again, or ask again with: ingestd retry JOB")
        # Names and cells are hostile, and this is read on a terminal.
        return [escape(line) for line in lines]


def is_foreseen(error: Exception) -> bool:
    """Say whether an error has a meaning of its own, and is not the file's to answer for."""
    is_storage = isinstance(error, DBAPIError) and is_transient(error)
    return is_storage or isinstance(error, IngestError | OSError)


def _poison(attempts: int, error: Exception) -> FileRefused:
    return FileRefused(f"it broke {attempts} attempts: {_in_words(error)}", kind="poison")


def _in_words(error: Exception) -> str:
    return storable_text("".join(traceback.format_exception_only(error)).strip())


def most_rejects(terms: Terms, rows: int) -> int:
    """How many of so many non-blank rows may be bad: the greater of a number and a share."""
    return max(terms.max_reject_rows, int(rows * terms.max_reject_ratio))


_HOLD = text("SELECT pg_advisory_xact_lock(:key)")
# In this order everywhere.
_HOLD_BOTH = text("SELECT pg_advisory_xact_lock(:key), pg_advisory_xact_lock(:bytes)")


def hold_constituency(
    session: Session, constituency_id: uuid.UUID, completed: FileProcessing | None = None
) -> None:
    """One constituency is loaded by one worker at a time; SQLite has one writer anyhow.

    Of two files with the same bytes, too, one is `completed` at a time.
    """
    if not is_postgresql(session):
        return
    key = int.from_bytes(constituency_id.bytes[:8], "big", signed=True)
    if completed is None:
        session.execute(_HOLD, {"key": key})
    else:
        sha256 = bytes.fromhex(completed.sha256)
        of_bytes = int.from_bytes(sha256[:8], "big", signed=True)
        session.execute(_HOLD_BOTH, {"key": key, "bytes": of_bytes})


def _refuse_replaced(found: Found, source: Source) -> None:
    """Stop where the path no longer is the file that was opened."""
    if not source.is_unchanged():
        raise FileVanished(found.label)


def _refuse_misnamed(job: FileProcessing, twins: Sequence[Twin]) -> None:
    twin = next((twin for twin in twins if twin.contract_id != job.contract_id), None)
    if twin is not None:
        reason = (
            f"these bytes are already here as {twin.name} of contract {twin.contract_id}, "
            f"this name says {job.contract_id}; one of the two names is wrong"
        )
        raise FileRefused(reason, kind="misnamed", field="name", value=job.name)


def _told(reject: Reject | StoredReject) -> dict[str, str | int | None]:
    line = reject.line if isinstance(reject, Reject) else reject.line_number
    return {
        "line": line,
        "field": reject.field,
        "kind": reject.kind,
        "value": reject.value,
        "reason": reject.reason,
    }


def _collision(record: Record) -> Reject:
    reason = "another transaction id has the same derived key"
    return Reject(
        record.line,
        record.end,
        "nestedTxId",
        "collision",
        record.tx_id,
        reason,
        record.tx_id,
        is_cut=False,
    )


def _is_unopened(source: Source, job: FileProcessing) -> bool:
    """Say whether a queued job is about a ZIP itself; every CSV in one has a member's name."""
    return source.is_zip and job.member is None and job.status in QUEUED


@contextmanager
def one_recorder() -> Iterator[None]:
    """Of two processes that record the same file at once, one has it."""
    try:
        yield
    except IntegrityError as error:
        raise LostClaim(str(error.orig)) from error


def _are_all_of(source: Source, jobs: Iterable[FileProcessing]) -> bool:
    """Say whether no member lacks its job: a twin of a refused ZIP takes over what was refused."""
    if not source.is_zip:
        return True
    try:
        members = {storable(csv.member) for csv in source.csvs() if csv.member}
    except FileRefused:  # its one job says so
        return True
    return members <= {job.member for job in jobs}


def _is_newly_claimed(found: Found, jobs: Iterable[FileProcessing]) -> bool:
    """Say whether a manifest came for a file that was begun on weaker evidence."""
    if found.claim is None or not found.claim.checks:
        return False
    return any(job.status in QUEUED and job.evidence != found.evidence for job in jobs)


def _is_still(source: Source) -> bool:
    try:
        return source.is_unchanged()
    except FileVanished:
        return False
