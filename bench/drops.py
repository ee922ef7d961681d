"""What is dropped: files of the project's own simulator, made once and kept."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from bench.scale import Scale
from ingestd.simulate import Plan, simulate

# About 0.9 of a roll vote, each in two rows.
ROWS_A_VOTER = 1.8
ELECTION_CONSTITUENCIES = 5_103
ELECTION_ROWS = 24_583_863


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Some files of a kind, and what they hold."""

    paths: tuple[Path, ...]
    rows: int
    bytes: int

    @property
    def files(self) -> int:
        """How many."""
        return len(self.paths)


def eight(folder: Path, scale: Scale) -> Drop:
    """Eight whole votings of a constituency each, 2.6 KB a row."""
    return _made(folder, _whole(8, scale.eight_rows, seed=8))


def big(folder: Path, scale: Scale) -> Drop:
    """One whole voting of a gigabyte."""
    return _made(folder, _whole(1, scale.big_rows, seed=1))


def small(folder: Path, scale: Scale) -> Drop:
    """One whole voting to hold the memory of a larger one against; the shortest ballots."""
    return _made(folder, _whole(1, scale.small_rows, seed=50, options=1))


def large(folder: Path, scale: Scale) -> Drop:
    """The larger one."""
    return _made(folder, _whole(1, scale.memory_rows, seed=51, options=1))


def zips(folder: Path, scale: Scale) -> Drop:
    """Hourly files of 150 rows in the mean, each in a ZIP."""
    # Besides the 12 hours there are short files of the evening before and after the end, so the
    # hours have more than the mean.
    constituencies = -(-scale.zips // 12)
    plan = _hourly(constituencies, rows=185 * 12, seed=2_000, packing="zip")
    return _first(_made(folder, plan), scale.zips)


def trickle(folder: Path, scale: Scale) -> Drop:
    """Hourly CSVs of 65 rows in the mean, as in a national election."""
    constituencies = -(-scale.latency_files // 12)
    plan = _hourly(constituencies, rows=78 * 12, seed=100, packing="csv")
    return _first(_made(folder, plan), scale.latency_files)


def hours_and_whole(folder: Path, scale: Scale) -> tuple[Drop, Drop]:
    """A voting in hourly CSVs, and the same once more in one."""
    made = _made(folder, replace(_whole(1, scale.eight_rows, seed=5), hourly=True, packing="csv"))
    whole = [path for path in made.paths if "_" not in path.stem]
    return _counted(set(made.paths) - set(whole)), _counted(whole)


def election(folder: Path, scale: Scale) -> Drop:
    """A part of a national election of 2026: 3 days, hourly ZIPs, 3.3 KB a row."""
    # Rolls are drawn: with this seed a part, too, has about the 4 800 rows a constituency that the
    # whole has.
    plan = Plan(
        seed=2028,
        constituencies=max(1, round(ELECTION_CONSTITUENCIES / scale.election_part)),
        regions=12,
        hours=60,
        voters_median=1_320,
        options=(6, 9),
        packing="zip",
        folders=False,
    )
    return _made(folder, plan)


def seedling(folder: Path) -> Drop:
    """One ordinary constituency in hourly files, of which a large table is grown."""
    return _made(
        folder,
        Plan(seed=77, constituencies=1, rolls=(2_700,), hours=60, options=(2,), folders=False),
    )


def some(drop: Drop, count: int) -> Drop:
    """The first files of a drop, their rows counted anew."""
    return _first(drop, count)


def published_again(drop: Drop, folder: Path) -> Drop:
    """The same files without their last row: another publication of each slot."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in drop.paths:
        _rewrite(path, folder / path.name)
    return _counted(folder.iterdir())


def unpacked(drop: Drop) -> Iterable[bytes]:
    """The CSV of each file."""
    return map(_csv_of, drop.paths)


# Making -------------------------------------------------------------------------------------


def _whole(constituencies: int, rows: int, *, seed: int, options: int = 5) -> Plan:
    return Plan(
        seed=seed,
        constituencies=constituencies,
        rolls=(round(rows / ROWS_A_VOTER),) * constituencies,
        options=(options,),
        hours=60,
        hourly=False,
        whole=True,
        folders=False,
    )


def _hourly(constituencies: int, *, rows: int, seed: int, packing: str) -> Plan:
    return Plan(
        seed=seed,
        constituencies=constituencies,
        rolls=(round(rows / ROWS_A_VOTER),) * constituencies,
        options=(5,),
        packing="zip" if packing == "zip" else "csv",
        folders=False,
        empty_hours=False,
    )


def _made(folder: Path, plan: Plan) -> Drop:
    """Simulate, unless this very plan was simulated before."""
    name = sha256(json.dumps(asdict(plan), default=str).encode()).hexdigest()[:16]
    place = folder / name
    if not (place / "truth.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        simulate(place, plan)
    told = json.loads((place / "truth.json").read_bytes())["totals"]
    paths = tuple(sorted(path for path in (place / "drop").rglob("*") if path.is_file()))
    return Drop(paths=paths, rows=told["lines"], bytes=told["bytes"])


def _first(drop: Drop, count: int) -> Drop:
    return drop if count >= drop.files else _counted(drop.paths[:count])


def _counted(paths: Iterable[Path]) -> Drop:
    found = tuple(sorted(paths))
    rows = size = 0
    for path in found:
        content = _csv_of(path)
        rows += content.count(b"\n")
        size += len(content)
    return Drop(paths=found, rows=rows, bytes=size)


def _csv_of(path: Path) -> bytes:
    if path.suffix != ".zip":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(archive.namelist()[0])


def _rewrite(path: Path, target: Path) -> None:
    content = _csv_of(path)
    shorter = content[: content[:-1].rfind(b"\n") + 1]
    if path.suffix != ".zip":
        target.write_bytes(shorter)
        return
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{path.stem}.csv", shorter)
