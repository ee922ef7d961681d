"""Any bytes as a ZIP: read or refused, twice the same, and nothing leaves the file."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from ingestd.errors import FileRefused
from ingestd.pipeline.read import Csv, ReadLimits, Source, open_source, sha256_of

LIMITS = ReadLimits(
    max_line_bytes=1000,
    max_member_bytes=1 << 16,
    max_ratio=200,
    max_nesting=3,
    max_members=30,
    max_name_bytes=300,
)


@cache
def place() -> Path:
    """A file in a folder of its own, in memory where there is such a place."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="ingestd-fuzz-", dir=memory if memory.is_dir() else None)
    return Path(folder) / "a.zip"


def check(data: bytes) -> None:
    """List it and read it, forwards and backwards."""
    path = place()
    path.write_bytes(data)
    source = open_source(path, LIMITS)
    try:
        csvs = list(source.csvs())
        there = {csv: sha256_of_csv(source, csv) for csv in csvs}
        back = {csv: sha256_of_csv(source, csv) for csv in reversed(csvs)}
    except FileRefused:
        return
    finally:
        source.close()
        assert [path] == list(path.parent.iterdir())
    assert there == back
    assert 0 < len(csvs) <= LIMITS.max_members
    assert len({csv.member for csv in csvs}) == len(csvs)
    for csv in csvs:
        assert csv.member
        assert "\x00" not in csv.member
        csv.member.encode()
    assert all(size <= LIMITS.max_member_bytes for _sha256, size in there.values())


def sha256_of_csv(source: Source, csv: Csv) -> tuple[str, int]:
    """Digest and size of one CSV."""
    with source.open(csv) as stream:
        return sha256_of(stream)
