"""Where the lines go: names, folders, ZIPs, and an account of every file written."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from .contest import Contest, Dress, Edition, Kind, Naming
from .plan import Packing

WHOLE = "whole"
DROPS = {Edition.FIRST: "drop", Edition.SECOND: "drop-2", Edition.WHOLE: "drop"}

Progress = Callable[[int], None]
_PUBLISHED_AFTER_MS = 5 * 60_000
_PUBLISHED_AGAIN_MS = 3 * 3_600_000
_LATE_MS = 5 * 3_600_000
_A_DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One CSV as it was written, and what a reader must make of it at the end."""

    path: str
    member: str | None
    contract: str
    slot: str
    bytes: int
    lines: int
    blank: int
    plus: int
    rollbacks: int
    bad: int
    outcome: str
    written_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A CSV's folder, the stem of its name, its packing, and the folder of an unpacked ZIP."""

    folder: PurePosixPath
    stem: str
    packing: Packing
    own_folder: bool

    @property
    def path(self) -> PurePosixPath:
        """The file that is dropped, relative to the inbox."""
        if self.packing == "zip":
            return self.folder / f"{self.stem}.zip"
        if self.packing == "zip-of-zips":
            return self.folder / "hours.zip"
        return (self.folder / self.stem if self.own_folder else self.folder) / f"{self.stem}.csv"

    @property
    def member(self) -> str | None:
        """The CSV inside, nested ZIPs joined by "/"."""
        if self.packing == "csv":
            return None
        inner = f"{self.stem}.csv"
        return inner if self.packing == "zip" else f"{self.stem}.zip/{inner}"


def hourly_place(contest: Contest, slot: int) -> Place:
    """Where the file of a slot stands, its oddities included."""
    naming = contest.namings.get(slot, Naming())
    stem = contest.slot_name(slot, naming.midnight)
    if not naming.nameless:
        stem = f"{contest.constituency.contract}_{stem}"
    folder = _folder(contest)
    needs_folder = naming.nameless or contest.plan.packing == "zip-of-zips"
    if needs_folder and not contest.plan.folders:
        folder /= contest.constituency.contract
    return Place(
        folder=folder,
        stem=stem + naming.tail,
        packing=contest.plan.packing,
        own_folder=contest.plan.folders,
    )


def write_contest(directory: Path, contest: Contest, progress: Progress) -> list[FileRecord]:
    """Write all files of a constituency: hours, copies, publications again, and the whole."""
    records = []
    for edition in (Edition.FIRST, Edition.SECOND):
        with ExitStack() as stack:
            shelf = _Shelf(directory / DROPS[edition], stack, progress)
            for slot in range(contest.slots):
                if contest.is_written(slot, edition):
                    place = hourly_place(contest, slot)
                    records.append(_write_slot(shelf, contest, slot, edition, place))
    for number, slot in enumerate(sorted(contest.copied)):
        with ExitStack() as stack:
            shelf = _Shelf(directory / DROPS[Edition.FIRST], stack, progress)
            place = _copy_place(contest, slot, number)
            records.append(
                _write_slot(shelf, contest, slot, Edition.FIRST, place, outcome="duplicate")
            )
    if contest.plan.whole:
        records.append(_write_whole(directory, contest, progress))
    return records


def _written_ms(contest: Contest, slot: int, edition: Edition, packing: Packing) -> int:
    """When a file was published: after its hour, and what holds many hours after all of them."""
    if edition is Edition.WHOLE or packing == "zip-of-zips":
        return _midnight_ms(contest) + contest.plan.hours * 3_600_000 + _A_DAY_MS
    moment = contest.moment(slot, 1) + _PUBLISHED_AFTER_MS
    moment += _LATE_MS * (slot in contest.late)
    return moment + _PUBLISHED_AGAIN_MS * (edition is Edition.SECOND)


def _midnight_ms(contest: Contest) -> int:
    day = contest.plan.day
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def _folder(contest: Contest) -> PurePosixPath:
    """`<code> - <region>/<election>/<constituency>/<contract>`, or nothing."""
    if not contest.plan.folders:
        return PurePosixPath()
    found = contest.constituency
    region, name = f"{found.region.code} - {found.region.name}", found.name
    if contest.odd_folder:
        name = name.replace(" ", "  ") + " "
    return PurePosixPath(region, found.election, name, found.contract)


def _copy_place(contest: Contest, slot: int, number: int) -> Place:
    """The same bytes under another tail, in another folder, and packed the other way."""
    stem = f"{contest.constituency.contract}_{contest.slot_name(slot)}"
    packing: Packing = "csv" if contest.plan.packing == "csv" else "zip"
    other: Packing = "zip" if packing == "csv" else "csv"
    folder = _folder(contest)
    if number == 0:
        return Place(folder=folder, stem=f"{stem} (2)", packing=packing, own_folder=False)
    if number == 1:
        again = PurePosixPath("downloaded again")
        return Place(folder=again, stem=stem, packing=packing, own_folder=False)
    return Place(folder=folder, stem=f"{stem}-repacked", packing=other, own_folder=False)


def _write_slot(
    shelf: _Shelf,
    contest: Contest,
    slot: int,
    edition: Edition,
    place: Place,
    *,
    outcome: str = "",
) -> FileRecord:
    dress = contest.dresses.get((slot, edition), Dress())
    written_ms = _written_ms(contest, slot, edition, place.packing)
    with shelf.opened(place, written_ms) as stream:
        size = _write_lines(stream, contest.chunks(slot, edition), dress, shelf.progress)
    superseded = edition is Edition.FIRST and slot in contest.republished
    verdict = "superseded" if superseded else "completed"
    if slot in contest.refused:
        verdict = "quarantined"
    return _record(
        contest,
        [slot],
        edition,
        place=place,
        size=size,
        outcome=outcome or verdict,
    )


def _write_whole(directory: Path, contest: Contest, progress: Progress) -> FileRecord:
    place = Place(
        folder=_folder(contest),
        stem=contest.constituency.contract,
        packing="csv" if contest.plan.packing == "csv" else "zip",
        own_folder=False,
    )
    slots = range(contest.slots)
    chunks = (chunk for slot in slots for chunk in contest.chunks(slot, Edition.WHOLE))
    with ExitStack() as stack:
        shelf = _Shelf(directory / DROPS[Edition.WHOLE], stack, progress)
        written_ms = _written_ms(contest, 0, Edition.WHOLE, place.packing)
        with shelf.opened(place, written_ms) as stream:
            size = _write_lines(stream, chunks, Dress(), shelf.progress)
    return _record(
        contest,
        slots,
        Edition.WHOLE,
        place=place,
        size=size,
        outcome="completed",
    )


def _record(
    contest: Contest,
    slots: Iterable[int],
    edition: Edition,
    *,
    place: Place,
    size: int,
    outcome: str,
) -> FileRecord:
    held = list(slots)
    plain = sum(contest.plain_count(slot) for slot in held)
    singles = [line for slot in held for line in contest.singles(slot, edition)]
    bad = sum(line.kind is Kind.BAD for line in singles)
    blank = sum(line.kind is Kind.BLANK for line in singles)
    rollbacks = sum(line.sign < 0 for line in singles)
    return FileRecord(
        path=f"{DROPS[edition]}/{place.path}",
        member=place.member,
        contract=contest.constituency.contract,
        slot=WHOLE if edition is Edition.WHOLE else contest.slot_name(held[0]),
        bytes=size,
        lines=plain + len(singles),
        blank=blank,
        plus=plain + len(singles) - rollbacks - bad - blank,
        rollbacks=rollbacks,
        bad=bad,
        outcome=outcome,
        written_at=_moment_text(_written_ms(contest, held[0], edition, place.packing)),
    )


def _moment_text(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def _write_lines(
    stream: IO[bytes], chunks: Iterable[list[bytes]], dress: Dress, progress: Progress
) -> int:
    """Write the lines as the dress says; return the number of bytes."""
    end = b"\r\n" if dress.crlf else b"\n"
    size = stream.write(b"\xef\xbb\xbf") if dress.bom else 0
    between = b""
    for lines in chunks:
        if lines:
            block = between + end.join(lines)
            stream.write(block)
            size += len(block)
            progress(len(block))
            between = end
    if between and dress.last_newline:
        size += stream.write(between)
    return size


class _Shelf:
    """A drop directory; a ZIP of ZIPs stays open in it until its constituency is through."""

    def __init__(self, root: Path, stack: ExitStack, progress: Progress) -> None:
        self.root = root
        self.progress = progress
        self._stack = stack
        self._container: zipfile.ZipFile | None = None

    @contextmanager
    def opened(self, place: Place, written_ms: int) -> Iterator[IO[bytes]]:
        """Open the CSV of a place for writing; afterwards it has the time that it was published."""
        path = self.root / place.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened(place, path, written_ms) as stream:
            yield stream
        if place.packing != "zip-of-zips":
            _set_time(path, written_ms)

    @contextmanager
    def _opened(self, place: Place, path: Path, written_ms: int) -> Iterator[IO[bytes]]:
        if place.packing == "csv":
            with path.open("wb", buffering=1 << 20) as stream:
                yield stream
        elif place.packing == "zip":
            with _archive(path) as archive, _member(archive, f"{place.stem}.csv") as stream:
                yield stream
        else:
            if self._container is None:
                # Left last, when the container is closed.
                self._stack.callback(_set_time, path, written_ms)
                self._container = self._stack.enter_context(zipfile.ZipFile(path, "w"))
            with (
                _member(self._container, f"{place.stem}.zip") as nested,
                _archive(nested) as archive,
                _member(archive, f"{place.stem}.csv") as stream,
            ):
                yield stream


def _set_time(path: Path, ms: int) -> None:
    os.utime(path, (ms / 1000, ms / 1000))


def _archive(target: Path | IO[bytes]) -> zipfile.ZipFile:
    return zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member for writing; its date stays at 1980, so equal plans write equal ZIPs."""
    return archive.open(name, "w", force_zip64=True)
