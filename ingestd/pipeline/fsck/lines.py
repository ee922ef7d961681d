"""Lines: the bytes of a file, wherever they lie now, held line by line against the tables."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from sqlalchemy import Text, cast, null, select, union_all
from sqlalchemy.orm import Session

from ingestd.db import AnyRow
from ingestd.errors import FileRefused, FileVanished
from ingestd.models import FileProcessing, Reject
from ingestd.pipeline.batches import batched
from ingestd.pipeline.fsck.difference import Difference, Mend
from ingestd.pipeline.fsck.jobs import name_of
from ingestd.pipeline.ingest import Terms
from ingestd.pipeline.ledger import Books, paths_of
from ingestd.pipeline.read import Csv, ReadLimits, Row, RowReader, Source, open_source, sha256_of
from ingestd.pipeline.replay import row_of, validator_of
from ingestd.pipeline.sightings import CONTENT_COLUMNS, JSON_COLUMNS
from ingestd.pipeline.touched import content, sighting, transaction
from ingestd.pipeline.validate import Blank, Outcome, Record, Validator, storable
from ingestd.pipeline.validate import Reject as RefusedRow

_ROWS_AT_ONCE = 500
_COLUMNS = ("constituency_id", "tx_id", *CONTENT_COLUMNS)


def place_of(job: FileProcessing) -> Path | None:
    """Where the bytes of a job lie: put away, or still where they were found."""
    ways = [Path(path) for path in paths_of(job.archived_to)] if job.archived_to else []
    ways += [Path(job.root, path) for path in paths_of(job.path)]
    return next((path for path in ways if os.path.lexists(path)), None)


@contextmanager
def opened(path: Path, limits: ReadLimits) -> Iterator[tuple[Source, dict[str | None, Csv]]]:
    """Open a file with its CSVs by the names that jobs have for them.

    Raises:
        FileRefused, FileVanished, OSError: its bytes cannot be read.
    """
    source = open_source(path, limits)
    try:
        csvs = {storable(csv.member) if csv.member else None: csv for csv in source.csvs()}
        yield source, csvs
    finally:
        source.close()


def hash_of(path: Path) -> str:
    """SHA-256 of a file as it lies there."""
    with path.open("rb", buffering=0) as stream:
        return sha256_of(stream)[0]


def check_bytes(path: Path, jobs: Sequence[FileProcessing]) -> Iterator[Difference]:
    """Compare the hash of a file with that of its jobs; a ZIP has one of its own."""
    try:
        found = hash_of(path)
    except OSError as error:
        yield from (_altered(job, path, "archive_unreadable", str(error)) for job in jobs)
        return
    for job in jobs:
        wanted = job.container_sha256 or job.sha256
        if wanted != found:
            what = f"its SHA-256 is {found}, the job says {wanted}"
            mend = None if job.container_sha256 else Mend.IDENTITY
            yield _altered(job, path, "archive_altered", what, mend)


def _altered(
    job: FileProcessing, path: Path, code: str, what: str, mend: Mend | None = None
) -> Difference:
    return Difference(
        code=code,
        about=f"{path}, {name_of(job)}",
        what=what,
        mend=mend,
        constituency_id=job.constituency_id,
        job_ids=(job.id,),
        path=str(path),
    )


def check_lines(
    session: Session,
    path: Path,
    jobs: Sequence[FileProcessing],
    terms: Terms,
    *,
    suspects: Collection[uuid.UUID],
) -> Iterator[Difference]:
    """Read delivered files again and compare every line with the row that it became.

    Of `suspects` the tables are known to hold other rows than the books say: those are named.
    """
    try:
        with opened(path, terms.read) as (source, csvs):
            for job in jobs:
                csv = csvs.get(job.member)
                if csv is None:
                    yield _altered(job, path, "archive_altered", "its member is not in the ZIP")
                    continue
                with source.open(csv) as stream:
                    lines = _Lines(session, job, terms, job.id in suspects)
                    yield from lines.differences(stream)
    except (FileRefused, FileVanished, OSError) as error:
        yield from (_altered(job, path, "archive_unreadable", str(error)) for job in jobs)


def outcomes_of(
    stream: BinaryIO, job: FileProcessing, terms: Terms, replayed: Mapping[int, str]
) -> tuple[RowReader, Iterator[Outcome]]:
    """Validate the rows of a file again, mended ones as they were mended."""
    rows = RowReader(stream, max_line_bytes=terms.read.max_line_bytes)
    validator: Validator = validator_of(job, terms)

    def mended(row: Row) -> Row:
        text = replayed.get(row.line)
        if text is None:
            return row
        other = row_of(row.line, text, terms)
        return Row(row.line, row.end, other.raw, other.is_too_long, row.start)

    return rows, (validator.check(mended(row)) for row in rows)


@dataclass(slots=True)
class _Lines:
    """One file's lines, a few hundred at a time."""

    session: Session
    job: FileProcessing
    terms: Terms
    is_suspect: bool
    books: Counter[str] = field(default_factory=Counter)
    # The next row of the tables, by line, and those behind it; for suspects only.
    own: list[AnyRow] = field(default_factory=list)
    rest: Iterator[AnyRow] = field(default_factory=lambda: iter(()))

    def differences(self, stream: BinaryIO) -> Iterator[Difference]:
        """Compare them all; in the end the books."""
        if self.is_suspect:
            self.rest = self._own_rows()
            self.own = [each] if (each := next(self.rest, None)) else []
        replayed = replayed_texts(self.session, self.job)
        rows, outcomes = outcomes_of(stream, self.job, self.terms, replayed)
        for batch, _is_last in batched(outcomes, _ROWS_AT_ONCE, self.terms.batch_bytes):
            yield from self._compare(batch)
        if rows.sha256 != self.job.sha256:
            what = f"its SHA-256 is {rows.sha256}, the job says {self.job.sha256}"
            yield self._about("archive_altered", name_of(self.job), what, Mend.IDENTITY)
            return
        yield from self._strays({}, None)
        yield from self._compare_books()

    def _compare(self, batch: Sequence[Outcome]) -> Iterator[Difference]:
        if not batch:
            return
        first, last = batch[0].line, batch[-1].line
        refused = self._refused(first, last)
        records = [one for one in batch if isinstance(one, Record) and one.line not in refused]
        self.books["read"] += len(batch)
        self.books["blank"] += sum(isinstance(one, Blank) for one in batch)
        for one in batch:
            if isinstance(one, RefusedRow):
                self.books["rejected"] += 1
                if one.line not in refused:
                    yield self._line(one.line, "reject_missing", f"it is refused: {one.reason}")
            elif one.line in refused:
                self.books["rejected"] += 1
                if refused[one.line] != "collision":
                    yield self._line(one.line, "reject_stray", "it was refused, and it is sound")
        yield from self._compare_records(records)
        yield from self._strays({record.line: record.id for record in records}, last)

    def _refused(self, first: int, last: int) -> dict[int, str]:
        query = select(Reject.line_number, Reject.kind).where(
            Reject.file_id == self.job.id,
            Reject.line_number.between(first, last),
            Reject.replayed_at.is_(None),
        )
        return {row.line_number: row.kind for row in self.session.execute(query)}

    def _compare_records(self, records: Sequence[Record]) -> Iterator[Difference]:
        ids = sorted({record.id for record in records})
        shown = {row.id: row for row in self.session.execute(_shown(ids))}
        s = sighting.c
        query = select(sighting).where(s.transaction_id.in_(ids), s.file_id == self.job.id)
        events = {(e.transaction_id, e.line_number): e for e in self.session.execute(query)}
        kept = {
            (row.transaction_id, row.content_hash): row.content
            for row in self.session.execute(
                select(content).where(content.c.transaction_id.in_(ids))
            )
        }
        for record in records:
            self.books["plus" if record.sign > 0 else "rollbacks"] += 1
            row, event = shown.get(record.id), events.get((record.id, record.line))
            is_own = row is not None and (row.file_id, row.line_number) == (
                self.job.id,
                record.line,
            )
            what = self._fault(record, row, event, is_own=is_own)
            if what is None and row is not None and record.sign > 0:
                what = _altered_content(record, row, kept, home=self.job.constituency_id)
            if what:
                code = "transaction_altered" if row is not None else "transaction_missing"
                about = f"transaction {record.tx_id}, line {record.line} of {name_of(self.job)}"
                yield self._about(code, about, what, Mend.REREAD, (record.id,))

    def _fault(
        self, record: Record, row: AnyRow | None, event: AnyRow | None, *, is_own: bool
    ) -> str | None:
        if row is None and record.sign > 0:
            return "the line is there, the row is not"
        if row is not None and row.tx_id != record.tx_id:
            return f"the row has the id {row.tx_id}"
        if event is None and not (is_own and record.sign > 0):
            return "the tables do not know that this line holds it"
        if event is not None and (event.sign, event.content_hash) != (
            record.sign,
            record.content_hash,
        ):
            return "its sighting says otherwise than the line"
        return None

    def _compare_books(self) -> Iterator[Difference]:
        told, found = Books.of(self.job), self.books
        pairs = {
            "read": (told.read, found["read"]),
            "stored and known": (told.stored + told.known, found["plus"]),
            "rollbacks": (told.rollbacks, found["rollbacks"]),
            "rejected": (told.rejected, found["rejected"]),
            "blank": (told.blank, found["blank"]),
        }
        wrong = [f"{name} {a}, in the file {b}" for name, (a, b) in pairs.items() if a != b]
        if wrong:
            what = "; ".join(wrong)
            yield self._about("books_wrong", name_of(self.job), what, Mend.REREAD)

    def _strays(self, told: Mapping[int, uuid.UUID], until: int | None) -> Iterator[Difference]:
        """Name the rows up to a line that say they are of this file and are not."""
        while self.own and (until is None or self.own[0].line_number <= until):
            row = self.own[0]
            self.own = [each] if (each := next(self.rest, None)) else []
            if told.get(row.line_number) != row.id:
                what = f"it says that it is line {row.line_number}, which holds something else"
                about = f"transaction {row.tx_id or row.id} of {name_of(self.job)}"
                yield self._about("transaction_stray", about, what, Mend.REREAD, (row.id,))

    def _own_rows(self) -> Iterator[AnyRow]:
        """Every row that says it is of this file, by line: a scan of the constituency."""
        t, s = transaction.c, sighting.c
        mine = select(t.id, t.line_number, t.tx_id).where(
            t.constituency_id == self.job.constituency_id, t.file_id == self.job.id
        )
        seen = select(s.transaction_id, s.line_number, null()).where(s.file_id == self.job.id)
        both = union_all(mine, seen).subquery()
        query = select(both).order_by(both.c.line_number, both.c.id)
        return iter(self.session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)))

    def _line(self, line: int, code: str, what: str) -> Difference:
        mend = Mend.REREAD if code == "reject_missing" else None
        return self._about(code, f"line {line} of {name_of(self.job)}", what, mend)

    def _about(
        self,
        code: str,
        about: str,
        what: str,
        mend: Mend | None,
        transaction_ids: tuple[uuid.UUID, ...] = (),
    ) -> Difference:
        return Difference(
            code=code,
            about=about,
            what=what,
            mend=mend,
            constituency_id=self.job.constituency_id,
            job_ids=(self.job.id,),
            transaction_ids=transaction_ids,
        )


def replayed_texts(session: Session, job: FileProcessing) -> dict[int, str]:
    """The rows of a file that a person mended, by line; few, since a person wrote them."""
    query = select(Reject.line_number, Reject.replayed_text).where(
        Reject.file_id == job.id, Reject.replayed_at.is_not(None)
    )
    return {row.line_number: row.replayed_text or "" for row in session.execute(query)}


def _shown(ids: Sequence[uuid.UUID]) -> Any:
    names = ("id", "file_id", "line_number", "content_hash", *_COLUMNS)
    texts = [cast(transaction.c[name], Text).label(name) for name in JSON_COLUMNS]
    columns = [transaction.c[name] for name in names]
    return select(*columns, *texts).where(transaction.c.id.in_(ids))


def _altered_content(
    record: Record,
    row: AnyRow,
    kept: Mapping[tuple[uuid.UUID, bytes], Mapping[str, Any]],
    *,
    home: uuid.UUID | None,
) -> str | None:
    """Say which column of the content is not what the line says."""
    values = record.values | {"constituency_id": home}
    found: Mapping[str, Any] = row._asdict()
    if row.content_hash != record.content_hash:
        other = kept.get((record.id, record.content_hash or b""))
        if other is None:
            return "the content of this line is not kept"
        values = values | {"timestamp": values["timestamp"].isoformat()}
        found = {"constituency_id": row.constituency_id, "tx_id": row.tx_id} | dict(other)
    for name in _COLUMNS:
        if found.get(name) != values[name]:
            return (
                f"{name} is {str(found.get(name))[:60]!r}, the line says {str(values[name])[:60]!r}"
            )
    for name in JSON_COLUMNS:
        if not _is_same_json(found.get(name), values[name]):
            return f"{name} is not what the line says"
    return None


def _is_same_json(found: object, told: str) -> bool:
    if found == told:
        return True
    try:
        return bool(orjson.loads(str(found)) == orjson.loads(str(told)))
    except ValueError:
        return False
