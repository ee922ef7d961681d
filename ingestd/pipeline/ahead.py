"""Looking ahead: the next small files are hashed, and their jobs written, in one commit.

What an hourly file costs beyond its rows is mostly questions to the database, and one question
about many files costs little more than one about a single file. Only what is plain is looked at:
one CSV, contract and slot in its own name, no manifest, no history that asks for a closer look.
All others are taken one by one, as all are when anything goes wrong here: nothing is judged ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session, sessionmaker

from ingestd.elections import Elections
from ingestd.errors import FileVanished, IngestError
from ingestd.models import FileProcessing
from ingestd.pipeline import archive, ledger, stats
from ingestd.pipeline.found import Found, label_of
from ingestd.pipeline.ledger import Delivery, Member
from ingestd.pipeline.look import deliver, places_of
from ingestd.pipeline.read import Csv, Digest, ReadLimits, Source, open_source, sha256_of
from ingestd.pipeline.slot import Place, parse_name
from ingestd.pipeline.step import Step
from ingestd.pipeline.validate import storable

FILES_AHEAD = 32
"""Files looked at together; more of them save little and wait longer for the first."""

_MOST_BYTES = 2 << 20
# Of what is unpacked to be hashed, so much is held until it is read.
_MOST_KEPT_BYTES = 8 << 20


@dataclass(slots=True)
class Ahead:
    """A file that was looked at ahead, with its only CSV and, at last, its job."""

    found: Found
    source: Source
    csv: Csv
    slot: tuple[str, str]
    unpacked_bytes: int
    container_sha256: str | None = None
    delivery: Delivery | None = None
    job: FileProcessing | None = None


def look_ahead(  # noqa: PLR0913 - what a commit is told
    run: Sequence[Found],
    *,
    sessions: sessionmaker[Session],
    limits: ReadLimits,
    archive_to: Path | None,
    elections: Elections,
    now: datetime,
    on_step: Callable[[Step], None],
) -> list[Ahead]:
    """Write down the jobs of the plain files among the next ones, in their order.

    `archive_to` is where duplicates will go, said in the same commit. The sources of the files
    given back are open; of all others nothing was kept.

    Raises:
        Exception: nothing was written; take the files one by one.
    """
    opened: list[Ahead] = []
    try:
        opened += _plain(run, limits)
        plain = _measured(opened, sessions)
        on_step(Step.LOOKED)
        if plain:
            with sessions.begin() as session:
                jobs = _record(session, plain, archive_to, elections, now)
                _refuse_replaced(plain)
                on_step(Step.NOTED)
            on_step(Step.RECORDED)
            for ahead, job in zip(plain, jobs, strict=True):
                ahead.job = job
        return [ahead for ahead in plain if ahead.job is not None]
    finally:
        for ahead in opened:
            if ahead.job is None:
                ahead.source.close()


def _refuse_replaced(plain: list[Ahead]) -> None:
    """As for a single file: another process may have put one of them away meanwhile."""
    for ahead in plain:
        if not ahead.source.is_unchanged():
            raise FileVanished(ahead.found.label)


def _plain(run: Iterable[Found], limits: ReadLimits) -> Iterator[Ahead]:
    """Give the files up to the first that is not plain.

    What that one covers is not known, and what comes behind it may be a later publication of it.
    """
    for found in run:
        if found.claim is not None:
            return
        source = open_source(found.path, limits)
        ahead = _with_its_csv(found, source)
        if ahead is None:
            source.close()
            return
        yield ahead


def _with_its_csv(found: Found, source: Source) -> Ahead | None:
    if source.size > _MOST_BYTES:
        return None
    try:
        csvs = list(source.csvs())
    except (IngestError, OSError):  # what is wrong with it is said when it is taken
        return None
    if len(csvs) != 1 or len(csvs[0].steps) > 1:
        return None
    contract_id, slot = parse_name((csvs[0].member or found.label).rsplit("/", 1)[-1])
    unpacked = source.unpacked_bytes(csvs[0])
    if contract_id is None or slot is None or unpacked > _MOST_BYTES:
        return None
    return Ahead(found, source, csvs[0], (contract_id, slot.text), unpacked)


def _measured(plain: list[Ahead], sessions: sessionmaker[Session]) -> list[Ahead]:
    """Hash the CSVs; one in a container that was delivered before is known by it.

    Left out is what was seen before as it lies there or is being worked on, and all but the
    first of one slot: their order counts.
    """
    for ahead in plain:
        if ahead.source.is_zip:
            with ahead.found.path.open("rb", buffering=0) as stream:
                ahead.container_sha256, _size = sha256_of(stream)
    with sessions.begin() as session:
        here = [(str(ahead.found.root), ahead.found.label, ahead.source.stamp) for ahead in plain]
        seen = ledger.seen_or_queued(session, here)
        containers = {ahead.container_sha256 for ahead in plain if ahead.container_sha256}
        known = ledger.only_members(session, containers) if containers else {}
    firsts = {ahead.slot: ahead for ahead in reversed(plain)}
    room = _MOST_KEPT_BYTES
    measured: list[Ahead] = []
    for place, ahead in zip(here, plain, strict=True):
        if place in seen or firsts[ahead.slot] is not ahead:
            continue
        digest = _told(ahead.csv, known.get(ahead.container_sha256 or ""))
        if digest is None:
            if ahead.source.is_zip and (room := room - ahead.unpacked_bytes) >= 0:
                ahead.source.keep(ahead.csv)
            with ahead.source.open(ahead.csv) as stream:
                digest = sha256_of(stream)
        ahead.delivery = deliver(
            ahead.found, ahead.source, ahead.csv, digest, ahead.container_sha256, alone=True
        )
        measured.append(ahead)
    return measured


def _told(csv: Csv, member: Member | None) -> Digest | None:
    """Give the digest of a CSV by its container, if its name meant there what it means here."""
    if member is None or csv.member is None or member.member != storable(csv.member):
        return None
    contract_id, slot = parse_name(member.name)
    if (contract_id, slot.text if slot else None) != (member.contract_id, member.slot):
        return None
    return Digest(member.sha256, member.size)


def _record(
    session: Session,
    plain: list[Ahead],
    archive_to: Path | None,
    elections: Elections,
    now: datetime,
) -> list[FileProcessing | None]:
    """Write the jobs; a file whose history asks for a closer look gets none."""
    places: dict[str, list[Place]] = {}
    deliveries: list[Delivery] = []
    for ahead in plain:
        delivery = ahead.delivery
        assert delivery is not None  # noqa: S101 - it was measured
        deliveries.append(delivery)
        told = places.setdefault(delivery.contract_id or "", [])
        told += places_of(ahead.found, ahead.csv.member)
    ledger.hold_numbers(session, places)
    stats.ensure_constituencies(session, places, elections)
    goes_to = [
        label_of(archive.free_name(archive_to / ahead.found.relative)) if archive_to else None
        for ahead in plain
    ]
    return ledger.record_plain(session, deliveries, goes_to, now)
