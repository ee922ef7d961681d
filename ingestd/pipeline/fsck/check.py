"""The check, told once: folders, ledger, tables and what is derived from them, then the bytes.

Each part looks at one moment of the database: a page of jobs, a file, a
constituency with everything that is counted from it. So a daemon may be at
work meanwhile, no writer ever waits, and memory stays flat.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from ingestd.db import Clock
from ingestd.job_state import QUEUED
from ingestd.models import Constituency, FileProcessing, table_of
from ingestd.pipeline.feed import rules_seen
from ingestd.pipeline.found import label_of
from ingestd.pipeline.fsck import folders
from ingestd.pipeline.fsck.counts import check_alerts, check_counts, check_feed
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.fsck.evaluation import check_evaluation, is_judged_otherwise
from ingestd.pipeline.fsck.jobs import all_jobs, check_held, check_jobs
from ingestd.pipeline.fsck.lines import check_bytes, check_lines, place_of
from ingestd.pipeline.fsck.rows import Counted, Walk
from ingestd.pipeline.ingest import Terms
from ingestd.pipeline.prune import pruned_jobs
from ingestd.pipeline.validate import constituency_prefix
from ingestd.thresholds import Alerts

if TYPE_CHECKING:
    from ingestd.pipeline.evaluator import Thresholds

_LAST_KEY = (1 << 128) - 1
_FRESH_SECONDS = 60.0
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders that are compared, and whether the daemon puts files away."""

    inbox: Path
    archive: Path
    quarantine: Path
    is_archiving: bool


@dataclass(slots=True)
class Seen:
    """What was looked at, and what could not be, for the answer."""

    files: int = 0
    jobs: int = 0
    transactions: int = 0
    constituencies: int = 0
    rows_read_again: int = 0
    in_work: int = 0
    not_counted: int = 0
    not_judged: int = 0
    not_read_again: int = 0


@dataclass(slots=True, kw_only=True)
class Fsck:
    """Compares everything with everything; reads only."""

    sessions: sessionmaker[Session]
    terms: Terms
    places: Places
    owner: str
    clock: Clock
    # How hours are judged, and by which settings; None leaves that out.
    judged_by: tuple[Thresholds, str] | None = None
    is_quick: bool = False
    patience_seconds: float = 2.0
    on_progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None
    seen: Seen = field(default_factory=Seen)
    # Jobs whose books are not what the tables hold: their rows are named one by one.
    _suspects: set[uuid.UUID] = field(default_factory=set)
    _found_elsewhere: set[str] = field(default_factory=set)

    def differences(self) -> Iterator[Difference]:
        """Everything that does not fit, in the order in which a file meets it."""
        self.seen = Seen()
        self._suspects.clear()
        self._found_elsewhere.clear()
        for difference in self._tables():
            if difference.code in ("books_wrong", "line_twice", "rejects_wrong"):
                self._suspects.update(difference.job_ids)
            yield difference
        for folder in (self.places.archive, self.places.quarantine):
            yield from self._folder(folder)
        yield from self._ledger()

    # ── folders ───────────────────────────────────────────────────────────

    def _folder(self, folder: Path) -> Iterator[Difference]:
        for paths in folders.files_in(folder):
            self.seen.files += len(paths)
            self.on_progress(f"files in {folder.name}", self.seen.files, 0)
            with self.sessions.begin() as session:
                known = folders.jobs_of(session, folder, paths)
                for path in paths:
                    yield from self._file(session, path, known.get(path, []))
            strange = [path for path in paths if path not in known]
            if strange:
                yield from self._strangers(folder, strange)

    def _strangers(self, folder: Path, strange: list[Path]) -> Iterator[Difference]:
        """A file may have been moved a moment ago: ask again before it is called unknown."""
        if any(map(self._is_fresh, strange)):
            time.sleep(self.patience_seconds)
        with self.sessions.begin() as session:
            known = folders.jobs_of(session, folder, strange)
            forgotten = folders.forgotten_files(session)
            for path in strange:
                if path in known or label_of(path) in forgotten or not path.exists():
                    continue
                difference = folders.strange_file(session, path)
                if difference.code == "archived_to_missing":
                    self._found_elsewhere.update(map(str, difference.job_ids))
                yield difference

    @staticmethod
    def _is_fresh(path: Path) -> bool:
        try:
            return time.time() - path.lstat().st_ctime < _FRESH_SECONDS
        except FileNotFoundError:
            return True

    def _file(
        self, session: Session, path: Path, jobs: list[FileProcessing]
    ) -> Iterator[Difference]:
        if not jobs:
            return
        if self.is_quick:
            yield from _wrong_size(path, jobs)
            return
        faults = list(check_bytes(path, jobs))
        yield from faults
        if not faults:
            yield from self._lines(session, path, jobs)

    def _lines(
        self, session: Session, path: Path, jobs: list[FileProcessing]
    ) -> Iterator[Difference]:
        readable = [job for job in jobs if folders.is_readable(job)]
        if readable:
            self.seen.rows_read_again += sum(job.rows_read for job in readable)
            yield from check_lines(session, path, readable, self.terms, suspects=self._suspects)

    # ── ledger ────────────────────────────────────────────────────────────

    def _ledger(self) -> Iterator[Difference]:
        last: uuid.UUID | None = None
        while True:
            with self.sessions.begin() as session:
                jobs = all_jobs(session, after=last)
                yield from check_jobs(session, jobs, owner=self.owner, now=self.clock())
                yield from self._in_place(session, [job for job in jobs if not job.archived_to])
            yield from self._missing(jobs)
            if not jobs:
                return
            last = jobs[-1].id
            self.seen.jobs += len(jobs)
            self.seen.in_work += sum(job.status in QUEUED for job in jobs)
            self.on_progress("jobs", self.seen.jobs, 0)

    def _missing(self, jobs: Sequence[FileProcessing]) -> Iterator[Difference]:
        """A file may be on its way this very moment: look again before it is called lost."""
        lost = list(self._places_of(jobs))
        if not lost:
            return
        just_now = self.clock() - timedelta(seconds=_FRESH_SECONDS)
        if any(job.finished_at is None or job.finished_at > just_now for job in jobs):
            time.sleep(self.patience_seconds)
        ids = {each for difference in lost for each in difference.job_ids}
        with self.sessions.begin() as session:
            query = select(FileProcessing).where(FileProcessing.id.in_(ids))
            again = session.scalars(query.order_by(FileProcessing.id)).all()
            pruned = pruned_jobs(session, [str(id_) for id_ in ids])
        yield from self._places_of(again, pruned)

    def _places_of(
        self, jobs: Sequence[FileProcessing], pruned: Collection[str] = ()
    ) -> Iterator[Difference]:
        return folders.check_places(
            jobs,
            inbox=self.places.inbox,
            is_archiving=self.places.is_archiving,
            found=self._found_elsewhere,
            pruned=pruned,
        )

    def _in_place(self, session: Session, jobs: list[FileProcessing]) -> Iterator[Difference]:
        """Files that were left where they were found are read there."""
        if self.is_quick:
            return
        by_path: dict[Path | None, list[FileProcessing]] = defaultdict(list)
        for job in filter(folders.is_readable, jobs):
            by_path[place_of(job)].append(job)
        for path, delivered in by_path.items():
            # Its owner may have taken it away, or put something else there since.
            if path is None or any(check_bytes(path, delivered)):
                self.seen.not_read_again += len(delivered)
            else:
                yield from self._lines(session, path, delivered)

    # ── tables ────────────────────────────────────────────────────────────

    def _tables(self) -> Iterator[Difference]:
        """Walk all transactions in the order of their keys, constituency by constituency."""
        with self.sessions.begin() as session:
            columns = (Constituency.id, Constituency.contract_id)
            contracts = {row.id: row.contract_id for row in session.execute(select(*columns))}
        by_prefix = sorted((constituency_prefix(text), key) for key, text in contracts.items())
        begin = 0
        for prefix, group in groupby(by_prefix, key=lambda one: one[0]):
            low = int.from_bytes(prefix, "big") << 96
            yield from self._nobodys(contracts, begin, low - 1)
            begin = low + (1 << 96)
            yield from self._constituencies(contracts, [key for _, key in group], low)
        yield from self._nobodys(contracts, begin, _LAST_KEY)
        with self.sessions.begin() as session:
            if held := self._held_to(session, None):
                yield from check_alerts(session, None, None, "no constituency", held)
                yield from self._feed(session, contracts, held)
            if self.judged_by is not None:
                yield from check_evaluation(session, contracts, *self.judged_by)

    def _feed(
        self, session: Session, contracts: dict[uuid.UUID, str], held: Alerts
    ) -> Iterator[Difference]:
        """Alerts about all constituencies, where nothing has changed since the last look."""
        seen = rules_seen(session, held)
        found = list(check_feed(session, contracts, held, self.clock(), seen))
        # A daemon may be at work meanwhile.
        if seen and seen == rules_seen(session, held):
            yield from found
        else:
            self.seen.not_judged += 1

    def _nobodys(
        self, contracts: dict[uuid.UUID, str], low: int, high: int
    ) -> Iterator[Difference]:
        """Between the keys of two constituencies there is nothing."""
        if low <= high:
            with self.sessions.begin() as session:
                walk = Walk(session, contracts)
                yield from walk.differences(uuid.UUID(int=low), uuid.UUID(int=high))

    def _constituencies(
        self, contracts: dict[uuid.UUID, str], ids: list[uuid.UUID], low: int
    ) -> Iterator[Difference]:
        """Those whose keys begin alike (nearly always one), with all that is counted from them."""
        with self.sessions.begin() as session:
            walk = Walk(session, contracts)
            high = low + (1 << 96) - 1
            yield from walk.differences(uuid.UUID(int=low), uuid.UUID(int=high))
            for id_ in ids:
                yield from check_held(session, id_, walk.held)
                yield from self._counts(session, id_, walk.counted[id_])
        self.seen.transactions += walk.rows
        self.seen.constituencies += len(ids)
        self.on_progress("constituencies", self.seen.constituencies, len(contracts))

    def _counts(
        self, session: Session, constituency_id: uuid.UUID, counted: Counted
    ) -> Iterator[Difference]:
        constituency = session.get(Constituency, constituency_id)
        if constituency is None:  # forgotten meanwhile
            return
        f = table_of(FileProcessing).c
        is_in_work = session.scalar(
            select(func.count()).where(
                f.constituency_id == constituency_id, f.status.in_(QUEUED), f.checkpoint_line > 0
            )
        )
        if is_in_work:
            self.seen.not_counted += 1
            return
        try:
            held = self._held_to(session, constituency_id)
            yield from check_counts(session, constituency, counted, held)
        except _DAMAGED as error:
            yield Difference(
                code="total_wrong",
                about=f"its totals of {constituency.contract_id}",
                what=f"they cannot be counted from damaged rows ({type(error).__name__})",
                mend=Mend.RECOUNT,
                constituency_id=constituency_id,
            )

    def _held_to(self, session: Session, constituency_id: uuid.UUID | None) -> Alerts | None:
        """What alerts are held to; None where the daemon has yet to judge them by that."""
        if self.judged_by and is_judged_otherwise(session, constituency_id, self.judged_by[1]):
            self.seen.not_judged += 1
            return None
        return self.terms.alerts


def _wrong_size(path: Path, jobs: list[FileProcessing]) -> Iterator[Difference]:
    for job in jobs:
        size = path.stat().st_size
        if job.member is None and job.container_sha256 is None and size != job.size:
            yield Difference(
                code="archive_altered",
                about=f"{path}, job {job.id}",
                what=f"it has {size} bytes, the job says {job.size}",
                constituency_id=job.constituency_id,
                job_ids=(job.id,),
            )
