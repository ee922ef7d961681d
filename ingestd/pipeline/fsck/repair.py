"""Repair: mends what can be mended from the evidence, and never the evidence itself.

What is derived is counted anew. Rows that are missing, altered or strange are
taken out, and the files that hold them are read again from where they were
put, one constituency in one commit. Each mend leaves a line in the audit log.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ingestd.errors import FileChanged, FileRefused, FileVanished
from ingestd.job_state import DELIVERED, JobState
from ingestd.models import Alert, Constituency, FileProcessing
from ingestd.pipeline import alerts, ledger, stats
from ingestd.pipeline.amend import Amendment, Note, amending, let_newest_count
from ingestd.pipeline.archive import write_reason
from ingestd.pipeline.batches import batched
from ingestd.pipeline.feed import evaluate_feed, note_look, state_of
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.fsck.jobs import name_of
from ingestd.pipeline.fsck.lines import (
    opened,
    outcomes_of,
    place_of,
    replayed_texts,
)
from ingestd.pipeline.ingest import Ingest, hold_constituency
from ingestd.pipeline.ledger import Books
from ingestd.pipeline.load import load_batch
from ingestd.pipeline.read import sha256_of
from ingestd.pipeline.sightings import FileRef, recompute_file, undo_file
from ingestd.pipeline.slot import contract_of_folders, parse_name
from ingestd.pipeline.touched import Touched, chunks, content, sighting, transaction
from ingestd.pipeline.validate import Blank, Record, Reject
from ingestd.transient import database_at_work

_Images = tuple[Mapping[str, Any], Mapping[str, Any]]
"""How a row was before a mend, and how it is after."""

_MendJob = Callable[[Session, FileProcessing], _Images | None]
_OUTSIDE = (FileRefused, FileVanished, FileChanged, OSError)


@dataclass(slots=True)
class Outcome:
    """What was mended, and what could not be."""

    mended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Plan:
    """What the differences ask for, each thing once."""

    by_mend: dict[Mend, dict[uuid.UUID, Difference]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    jobs: set[uuid.UUID] = field(default_factory=set)
    transactions: set[uuid.UUID] = field(default_factory=set)
    constituencies: set[uuid.UUID] = field(default_factory=set)
    alerts: set[uuid.UUID | None] = field(default_factory=set)
    evaluated: set[uuid.UUID | None] = field(default_factory=set)
    has_feed: bool = False

    def add(self, difference: Difference) -> None:
        """Take one difference in."""
        match difference.mend:
            case None:
                return
            case Mend.REREAD:
                self.jobs.update(difference.job_ids)
                self.transactions.update(difference.transaction_ids)
            case Mend.RECOUNT if difference.constituency_id:
                self.constituencies.add(difference.constituency_id)
            case Mend.ALERTS:
                self.alerts.add(difference.constituency_id)
            case Mend.FEED:
                self.has_feed = True
            case Mend.EVALUATE:
                self.evaluated.add(difference.constituency_id)
            case mend:
                for job_id in difference.job_ids:
                    self.by_mend[mend][job_id] = difference


@dataclass(slots=True)
class Repair:
    """Carries out a plan."""

    ingest: Ingest
    note: Note
    outcome: Outcome = field(default_factory=Outcome)

    def carry_out(self, plan: Plan) -> Outcome:
        """Mend in the order in which one thing rests on another."""
        for job_id in plan.by_mend[Mend.RELEASE]:
            self._job(job_id, "release", self._release)
        for job_id, difference in plan.by_mend[Mend.POINT].items():
            self._job(job_id, "point", _pointing_to(difference.path))
        for job_id in plan.by_mend[Mend.IDENTITY]:
            self._job(job_id, "identity", self._identify)
        for job_id in plan.by_mend[Mend.REASON]:
            self._job(job_id, "reason", self._explain)
        for constituency_id, (jobs, rows) in self._by_constituency(plan).items():
            self._read_again(constituency_id, jobs, rows)
        for constituency_id in sorted(plan.constituencies):
            self._count_anew(constituency_id)
        for whose in sorted(plan.alerts | plan.constituencies, key=str):
            self._settle(whose)
        if plan.has_feed:
            self._look_at_feed()
        if plan.evaluated:
            self._judge(plan.evaluated)
        return self.outcome

    # ── jobs ──────────────────────────────────────────────────────────────

    def _job(self, job_id: uuid.UUID, action: str, mend: _MendJob) -> None:
        """Change one job in a commit of its own, and write down how it was and is."""
        try:
            with database_at_work(), self.ingest.sessions.begin() as session:
                job = session.get_one(FileProcessing, job_id, with_for_update=True)
                images = mend(session, job)
                if images is None:
                    self.outcome.left.append(f"{name_of(job)}: nothing proves what is right")
                    return
                before, after = images
                self.note(session, f"fsck_{action}", str(job_id), before=before, after=after)
                self.outcome.mended.append(f"{name_of(job)}: {action}")
        except _OUTSIDE as error:
            self.outcome.left.append(f"job {job_id}: {error}")

    def _release(self, session: Session, job: FileProcessing) -> _Images | None:
        if not ledger.is_abandoned(job, now=self.ingest.clock(), owner=self.ingest.owner):
            return None
        before = {"status": str(job.status), "owner": job.owner}
        ledger.move(session, job, JobState.PENDING, owner=None, lease_until=None)
        return before, {"status": str(job.status), "owner": None}

    def _explain(self, _session: Session, job: FileProcessing) -> _Images | None:
        path = place_of(job)
        if path is None:
            return None
        write_reason(path, self.ingest.terms.quarantine, self.ingest.reasons([job]))
        return {"reason": None}, {"reason": job.first_error_message}

    def _identify(self, session: Session, job: FileProcessing) -> _Images | None:
        """Find what the id of a job was made of: its bytes are there, and its name.

        The hash of a ZIP is in no id, so nothing proves which is right, the ZIP or the ledger.
        """
        path = place_of(job)
        if path is None or job.duplicate_of_id is not None:
            return None
        with opened(path, self.ingest.terms.read) as (source, csvs):
            if job.member not in csvs:
                return None
            with source.open(csvs[job.member]) as stream:
                sha256, size = sha256_of(stream)
        told, slot = parse_name(job.name)
        contracts = {job.contract_id, told, contract_of_folders(job.path)} - {None}
        slots = {job.slot: job.is_cumulative, None: True}
        if slot is not None:
            slots[slot.text] = slot.is_cumulative
        for contract in contracts:
            for text, is_cumulative in slots.items():
                if contract and ledger.job_id(contract, text, sha256) == job.id:
                    return _restate(
                        session,
                        job,
                        contract_id=contract,
                        constituency_id=stats.constituency_id_of(contract),
                        slot=text,
                        is_cumulative=is_cumulative,
                        sha256=sha256,
                        size=size,
                    )
        return None

    # ── rows ──────────────────────────────────────────────────────────────

    def _by_constituency(
        self, plan: Plan
    ) -> dict[uuid.UUID, tuple[set[uuid.UUID], set[uuid.UUID]]]:
        """Sort what must be read again; what hangs on lost evidence is left as it is."""
        with database_at_work(), self.ingest.sessions.begin() as session:
            holders = _holders(session, plan.transactions)
            wanted = plan.jobs.union(*holders.values())
            query = select(FileProcessing).where(FileProcessing.status.in_(DELIVERED))
            jobs = {
                job.id: job
                for chunk in chunks(sorted(wanted))
                for job in session.scalars(query.where(FileProcessing.id.in_(chunk)))
            }
            unread = set(_unreadable(session, wanted - jobs.keys()))
        lost = {key for key, job in jobs.items() if not self._has_evidence(job)} | unread
        sorted_out: dict[uuid.UUID, tuple[set[uuid.UUID], set[uuid.UUID]]] = defaultdict(
            lambda: (set(), set())
        )
        rows = {key for key in plan.transactions if not holders.get(key, set()) & lost}
        for key in plan.transactions - rows:
            self.outcome.left.append(f"transaction {key}: the bytes of a file of it are lost")
        for key in (plan.jobs | {each for row in rows for each in holders.get(row, ())}) - lost:
            job = jobs.get(key)
            if job is not None and job.constituency_id is not None:
                sorted_out[job.constituency_id][0].add(key)
        self._assign(rows, holders, jobs, sorted_out)
        return sorted_out

    def _assign(
        self,
        rows: Iterable[uuid.UUID],
        holders: Mapping[uuid.UUID, set[uuid.UUID]],
        jobs: Mapping[uuid.UUID, FileProcessing],
        sorted_out: dict[uuid.UUID, tuple[set[uuid.UUID], set[uuid.UUID]]],
    ) -> None:
        """Take a row out in the commit that reads its files again; where it has none, at once."""
        for row in rows:
            homes = {jobs[key].constituency_id for key in holders.get(row, ()) if key in jobs}
            first = min((home for home in homes if home), default=None)
            if first is not None:
                sorted_out[first][1].add(row)
                continue
            with database_at_work(), self.ingest.sessions.begin() as session:
                whose = session.scalar(
                    select(transaction.c.constituency_id).where(transaction.c.id == row)
                )
                is_known = whose is not None and session.get(Constituency, whose) is not None
            if is_known and whose is not None:
                sorted_out[whose][1].add(row)
            else:
                with database_at_work(), self.ingest.sessions.begin() as session:
                    self._take_out(session, [row])

    def _has_evidence(self, job: FileProcessing) -> bool:
        """Say whether the very bytes of a job can be read again."""
        path = place_of(job)
        try:
            if path is not None:
                limits = self.ingest.terms.read
                with opened(path, limits) as (source, csvs), source.open(csvs[job.member]) as csv:
                    return sha256_of(csv)[0] == job.sha256
        except (KeyError, *_OUTSIDE):
            pass
        self.outcome.left.append(f"{name_of(job)}: its bytes are lost, so nothing is read again")
        return False

    def _read_again(
        self, constituency_id: uuid.UUID, job_ids: set[uuid.UUID], rows: set[uuid.UUID]
    ) -> None:
        try:
            with amending(self.ingest, constituency_id) as amendment:
                session = amendment.session
                amendment.touch(stats.everything(session, constituency_id))
                self._take_out(session, sorted(rows))
                query = select(FileProcessing).where(FileProcessing.id.in_(job_ids))
                jobs = session.scalars(
                    query.order_by(FileProcessing.publication, FileProcessing.id)
                ).all()
                for job in jobs:
                    self._undo(amendment, job)
                for job in jobs:
                    self._reload(amendment, job)
                for job in jobs:
                    amendment.touch(_let_slot_count(session, job))
                amendment.touch(stats.everything(session, constituency_id))
        except _OUTSIDE as error:
            self.outcome.left.append(f"constituency {constituency_id}: {error}")
            return
        self._settle(constituency_id)

    def _take_out(self, session: Session, rows: list[uuid.UUID]) -> None:
        """Delete transactions with everything that is known of them."""
        t = transaction.c
        for chunk in chunks(rows):
            names = ("id", "tx_id", "file_id", "line_number", "status", "content_hash")
            for row in session.execute(select(*(t[name] for name in names)).where(t.id.in_(chunk))):
                before = row._asdict() | {"content_hash": row.content_hash.hex()}
                image = {name: str(value) for name, value in before.items()}
                self.note(session, "fsck_take_out", str(row.id), before=image, after=None)
                self.outcome.mended.append(f"transaction {row.tx_id}: taken out")
            session.execute(delete(transaction).where(t.id.in_(chunk)))
            for table in (sighting, content):
                session.execute(delete(table).where(table.c.transaction_id.in_(chunk)))

    @staticmethod
    def _undo(amendment: Amendment, job: FileProcessing) -> None:
        session, file = amendment.session, FileRef.of(job)
        # Its rows may stand in hours of which it does not know: that is why we are here.
        hours = stats.hours_of_file(session, file.constituency_id, file.id)
        hours |= Touched.from_json(job.touched).hours
        amendment.touch(Touched(set(hours)))
        amendment.touch(undo_file(session, file, hours))

    def _reload(self, amendment: Amendment, job: FileProcessing) -> None:
        """Read a file's bytes again; rows that were refused stay refused, mended ones mended."""
        session, file, terms = amendment.session, FileRef.of(job), self.ingest.terms
        before = Books.of(job)
        books, touched, end = Books(), Touched(), (0, 0)
        path = place_of(job)
        if path is None:
            raise FileVanished(job.path)
        replayed = replayed_texts(session, job)
        with opened(path, terms.read) as (source, csvs), source.open(csvs[job.member]) as stream:
            rows, outcomes = outcomes_of(stream, job, terms, replayed)
            for batch, _is_last in batched(outcomes, terms.batch_rows, terms.batch_bytes):
                refused = set(ledger.refused_lines(session, job, [one.line for one in batch]))
                records = [
                    one for one in batch if isinstance(one, Record) and one.line not in refused
                ]
                loaded = load_batch(session, file, records)
                rejects = [
                    one for one in batch if isinstance(one, Reject) and one.line not in refused
                ]
                ledger.add_rejects(session, job, rejects)
                touched.update(loaded.touched)
                books.read += len(batch)
                books.stored += loaded.stored
                books.known += loaded.known
                books.rollbacks += loaded.rollbacks
                books.rejected += len(refused) + len(rejects)
                books.blank += sum(
                    isinstance(one, Blank) for one in batch if one.line not in refused
                )
                end = (batch[-1].end, batch[-1].line) if batch else end
            if rows.sha256 != job.sha256:
                message = f"{path}: its bytes changed while they were read"
                raise FileChanged(message)
            ledger.restate(session, job, {"size": rows.bytes_read})
        amendment.touch(touched)
        ledger.rewrite_books(session, job, books=books, touched=touched.as_json(), checkpoint=end)
        self.note(
            session,
            "fsck_reread",
            str(job.id),
            before=before.as_columns(),
            after=books.as_columns(),
        )
        self.outcome.mended.append(f"{name_of(job)}: read again")

    # ── what is derived ───────────────────────────────────────────────────

    def _count_anew(self, constituency_id: uuid.UUID) -> None:
        with amending(self.ingest, constituency_id) as amendment:
            session = amendment.session
            before = stats.totals_of(session, constituency_id)
            amendment.touch(stats.everything(session, constituency_id))
        with database_at_work(), self.ingest.sessions.begin() as session:
            after = stats.totals_of(session, constituency_id)
            self.note(session, "fsck_recount", str(constituency_id), before=before, after=after)
        self.outcome.mended.append(f"constituency {constituency_id}: counted anew")

    def _judge(self, whose: set[uuid.UUID | None]) -> None:
        """Leave marks for the evaluator, which holds everything against everything."""
        with database_at_work(), self.ingest.sessions.begin() as session:
            marked = sorted(one for one in whose if one is not None)
            if not marked:
                marked = list(session.scalars(select(Constituency.id).limit(1)))
            for one in marked:
                stats.mark_due(session, one)
            told = {"constituencies": [str(one) for one in marked]}
            self.note(session, "fsck_evaluate", "-", before=None, after=told)
        self.outcome.mended.append("evaluation: `ingestd run` or `once` does it again")

    def _look_at_feed(self) -> None:
        """Let the rules about all constituencies look again, and write down what was open."""
        with database_at_work(), self.ingest.sessions.begin() as session:
            before = _told(alerts.open_alerts_of_feed(session))
            held = self.ingest.terms.alerts
            evaluate_feed(session, now=self.ingest.clock(), held=held, is_thorough=True)
            after = _told(alerts.open_alerts_of_feed(session))
            self.note(session, "fsck_feed", "-", before=before, after=after)
            # What is noted here is a deed, of which a look is to know.
            note_look(session, state_of(session, held), has_read_ids=True)
        self.outcome.mended.append("alerts about all constituencies: set right")

    def _settle(self, constituency_id: uuid.UUID | None) -> None:
        """Let the alerts say what the rules find, and write down which were open."""
        with database_at_work(), self.ingest.sessions.begin() as session:
            rolled_up = None
            if constituency_id is not None:
                hold_constituency(session, constituency_id)
                touched = stats.everything(session, constituency_id)
                rolled_up = stats.roll_up(session, constituency_id, touched)
            before = _open(session, constituency_id)
            held = self.ingest.terms.alerts
            alerts.set_right(session, constituency_id, rolled_up, self.ingest.clock(), held)
            after = _open(session, constituency_id)
            if before != after:
                subject = str(constituency_id or "-")
                self.note(session, "fsck_alerts", subject, before=before, after=after)
                self.outcome.mended.append(f"alerts of {subject}: set right")


def _pointing_to(path: str | None) -> _MendJob:
    def point(session: Session, job: FileProcessing) -> _Images | None:
        return _restate(session, job, archived_to=path)

    return point


def _restate(session: Session, job: FileProcessing, **values: Any) -> _Images:
    before = {name: str(getattr(job, name)) for name in values}
    ledger.restate(session, job, values)
    return before, {name: str(value) for name, value in values.items()}


def _open(session: Session, constituency_id: uuid.UUID | None) -> dict[str, str]:
    return _told(alerts.open_alerts(session, constituency_id))


def _told(rows: Iterable[Alert]) -> dict[str, str]:
    return {
        f"{row.type} {row.subject}": f"{row.alert_class} {row.severity}: {row.title}"
        for row in rows
    }


def _holders(session: Session, rows: Iterable[uuid.UUID]) -> dict[uuid.UUID, set[uuid.UUID]]:
    """Which files say that they hold these transactions."""
    holders: dict[uuid.UUID, set[uuid.UUID]] = defaultdict(set)
    t, s = transaction.c, sighting.c
    for chunk in chunks(sorted(rows)):
        for query in (
            select(t.id.label("key"), t.file_id).where(t.id.in_(chunk)),
            select(s.transaction_id.label("key"), s.file_id).where(s.transaction_id.in_(chunk)),
        ):
            for row in session.execute(query):
                holders[row.key].add(row.file_id)
    return holders


def _unreadable(session: Session, ids: Iterable[uuid.UUID]) -> Iterator[uuid.UUID]:
    """Jobs that are there and not delivered: in work, or refused with rows in the tables."""
    for chunk in chunks(sorted(ids)):
        yield from session.scalars(select(FileProcessing.id).where(FileProcessing.id.in_(chunk)))


def _let_slot_count(session: Session, job: FileProcessing) -> Touched:
    """Let the newest publication of a job's slot count, or a twin that names its slot."""
    if job.slot is not None:
        publications = ledger.publications_of(session, job)
        return let_newest_count(session, publications) if _has_history(publications) else Touched()
    return _let_twin_stand(session, job)


def _has_history(publications: list[FileProcessing]) -> bool:
    alone = len(publications) == 1 and publications[0].status == JobState.COMPLETED
    return not alone or publications[0].supersedes_id is not None


def _let_twin_stand(session: Session, job: FileProcessing) -> Touched:
    """A file without a slot is current unless its bytes are here with one."""
    wanted = JobState.SUPERSEDED if ledger.is_outdone(session, job) else JobState.COMPLETED
    if job.status != wanted:
        ledger.move(session, job, wanted)
    hours = Touched.from_json(job.touched).hours
    is_current = wanted == JobState.COMPLETED
    return Touched() if is_current else recompute_file(session, FileRef.of(job), hours)
