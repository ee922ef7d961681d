"""Looking inside a file: which CSVs it holds, with which bytes, and what their names say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from sqlalchemy.orm import Session, sessionmaker

from ingestd.models import FileProcessing
from ingestd.pipeline import ledger, stats
from ingestd.pipeline.evidence import Measured, RowCount
from ingestd.pipeline.found import Found
from ingestd.pipeline.ledger import Delivery
from ingestd.pipeline.read import Csv, Digest, RowReader, Source, sha256_of
from ingestd.pipeline.slot import Place, Slot, contract_of_folders, parse_name, place_of
from ingestd.pipeline.validate import contract_in_row, storable

Inside = tuple[Csv | None, Delivery, list[Place]]
"""A CSV (None where its bytes are known already), its delivery, and what the folders tell."""


def look_inside(
    found: Found,
    source: Source,
    measured: Measured,
    *,
    sessions: sessionmaker[Session],
    heed_stop: Callable[[], None],
    hashed: Callable[[Source, Csv], Digest | None] = lambda _source, _csv: None,
) -> list[Inside]:
    """Hash every CSV, measure what a manifest asks for, and read what the names say.

    A stop is heeded at every block: what is hashed may be as large as a disk. What somebody has
    `hashed` meanwhile is not hashed again.
    """
    container_sha256 = None
    if source.is_zip:
        with found.path.open("rb", buffering=0) as stream:
            container_sha256, _size = sha256_of(stream, _heeding(heed_stop))
        measured.sha256 = container_sha256
        with sessions.begin() as session:
            known = ledger.container_is_known(session, container_sha256)
        if known and _is_told_by_members(source, known):
            measured.rows = sum(job.rows_read - job.rows_blank for job in known)
            return [
                (None, _again(found, source, job), places_of(found, job.member)) for job in known
            ]
    csvs = list(source.csvs())
    counted = RowCount() if found.claim and found.claim.asks_for_rows else None
    deliveries: list[Inside] = []
    for csv in csvs:
        heed_stop()
        digest = None if counted else hashed(source, csv)
        if digest is None:
            with source.open(csv) as stream:
                count = counted.next_csv() if counted else _nothing
                digest = sha256_of(stream, _heeding(heed_stop, count))
        is_alone = len(csvs) == 1
        delivery = deliver(found, source, csv, digest, container_sha256, alone=is_alone)
        deliveries.append((csv, delivery, places_of(found, csv.member)))
    measured.sha256 = container_sha256 or deliveries[0][1].sha256
    measured.rows = counted.rows if counted else None
    return deliveries


def deliver(
    found: Found,
    source: Source,
    csv: Csv,
    digest: Digest,
    container_sha256: str | None,
    *,
    alone: bool,
) -> Delivery:
    """Say what a CSV with this `digest` is, by its name and the folders."""
    way = "/".join([*found.label.split("/")[:-1], *csv.steps]) if csv.steps else found.label
    name = way.rsplit("/", 1)[-1]
    contract_id, slot = parse_name(name)
    if contract_id is None:
        contract_id = contract_of_folders(way) or _contract_inside(source, csv)
    for container in reversed([found.relative.name, *csv.steps[:-1]] if csv.steps else []):
        told, covered = parse_name(container.rsplit("/", 1)[-1])
        contract_id = contract_id or told
        # A ZIP's name says what its one CSV covers, but not what each of several does.
        slot = slot or (covered if alone and told == contract_id else None)
    return Delivery(
        root=str(found.root),
        path=found.label,
        member=storable(csv.member) if csv.member else None,
        name=storable(name),
        stamp=source.stamp,
        mtime=_moment_of(source.mtime_ns),
        sha256=digest[0],
        container_sha256=container_sha256,
        size=digest[1],
        contract_id=contract_id,
        constituency_id=stats.constituency_id_of(contract_id) if contract_id else None,
        slot=slot,
        evidence=found.evidence,
    )


def _contract_inside(source: Source, csv: Csv) -> str | None:
    """Look for the contract in the rows: createContract, else a voters list."""
    told_by_list = None
    with source.open(csv) as stream:
        for row in RowReader(stream, max_line_bytes=source.limits.max_line_bytes):
            told = contract_in_row(row)
            if told and told.is_create:
                return told.contract_id
            told_by_list = told_by_list or (told.contract_id if told else None)
    return told_by_list


def _again(found: Found, source: Source, job: FileProcessing) -> Delivery:
    """The delivery of a member of a container whose bytes are known already."""
    return Delivery(
        root=str(found.root),
        path=found.label,
        member=job.member,
        name=job.name,
        stamp=source.stamp,
        mtime=_moment_of(source.mtime_ns),
        sha256=job.sha256,
        container_sha256=job.container_sha256,
        size=job.size,
        contract_id=job.contract_id,
        constituency_id=job.constituency_id,
        slot=Slot(job.slot, job.is_cumulative) if job.slot else None,
        evidence=found.evidence,
    )


def whole(found: Found, source: Source, *, heed_stop: Callable[[], None]) -> Delivery:
    """The delivery of a container that cannot be opened, as a file of its own."""
    with found.path.open("rb", buffering=0) as stream:
        sha256, size = sha256_of(stream, _heeding(heed_stop))
    return Delivery(
        root=str(found.root),
        path=found.label,
        member=None,
        name=found.label.rsplit("/", 1)[-1],
        stamp=source.stamp,
        mtime=_moment_of(source.mtime_ns),
        sha256=sha256,
        container_sha256=sha256,
        size=size,
        contract_id=None,
        constituency_id=None,
        slot=None,
        evidence=found.evidence,
    )


def _is_told_by_members(source: Source, known: list[FileProcessing]) -> bool:
    """Say whether a known container means the same wherever it lies.

    Its members' own names must say all, or its new name and folders might say
    something else; and all of them must be known.
    """
    for job in known:
        contract_id, slot = parse_name(job.name)
        if contract_id != job.contract_id or slot is None or slot.text != job.slot:
            return False
    return {job.member for job in known} == {
        storable(csv.member) if csv.member else None for csv in source.csvs()
    }


def places_of(found: Found, member: str | None) -> list[Place]:
    """What the folders on the way to a CSV tell, outside and inside its ZIP."""
    steps = [*found.label.split("/")[:-1], member] if member else [found.label]
    place = place_of("/".join(steps))
    return [place] if place else []


def _nothing(_block: bytes) -> None:
    """Nobody counts."""


def _heeding(
    heed_stop: Callable[[], None], also: Callable[[bytes], None] = _nothing
) -> Callable[[bytes], None]:
    def take(block: bytes) -> None:
        heed_stop()
        also(block)

    return take


# A day inside of what `datetime` holds: the same moment must have a name in every time zone.
_FIRST_SECOND, _LAST_SECOND = -62_135_510_400, 253_402_214_400


def _moment_of(mtime_ns: int) -> datetime:
    """UTC time of a file's mtime; what no calendar holds becomes its first or last day."""
    seconds = max(_FIRST_SECOND, min(mtime_ns // 10**9, _LAST_SECOND))
    return datetime.fromtimestamp(seconds, UTC)
