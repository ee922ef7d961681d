"""The limit: the very same final rows, ready for the driver, into an empty table as it is.

`ready_rows` reads them back from a database that ingestd filled. `load` writes them with as many
processes as asked for, each with a connection of its own: on PostgreSQL one COPY and one commit
for each file, as text or in COPY's binary format, on SQLite batches as large as ingestd's. Reading
what is ready is not in the time on SQLite, and is a read of the page cache on PostgreSQL.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench.databases import dsn_of, file_of, is_postgresql
from bench.results import ROOT, Run
from ingestd.config import SECTIONS
from ingestd.models import Transaction, table_of

BATCH_ROWS = 5_000
CACHE_MB: int = SECTIONS["database"].model_fields["sqlite_cache_mb"].default
BLOCK_BYTES = 1 << 20
COLUMNS = [column.name for column in table_of(Transaction).columns]
NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
COPY = f'COPY "transaction" ({NAMES}) FROM STDIN (FORMAT %s)'
TEXT, BINARY = "text", "binary"
INSERT = f'INSERT INTO "transaction" ({NAMES}) VALUES ({", ".join("?" * len(COLUMNS))})'  # noqa: S608
_BY_FILE = COLUMNS.index("file_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Rows that only have to be written: COPY bytes of each file, or an SQLite database."""

    parts: tuple[Path, ...]
    rows: int
    bytes: int
    files: int


def ready_rows(url: str, folder: Path, *, csv_bytes: int, form: str = TEXT) -> Ready:
    """Read the transactions of a database back, as the driver takes them; `form` is COPY's."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_postgresql(url):
        return _ready_database(url, folder, csv_bytes)
    parts = []
    with psycopg.connect(dsn_of(url)) as connection:
        (rows,) = connection.execute('SELECT count(*) FROM "transaction"').fetchone() or (0,)
        # This database is dropped soon; without an index each file would cost a look at all rows.
        connection.execute(
            'CREATE INDEX IF NOT EXISTS by_file ON "transaction" (file_id, line_number)'
        )
        files = connection.execute('SELECT DISTINCT file_id FROM "transaction"').fetchall()
        for number, (file,) in enumerate(files):
            part = folder / f"{number}.{form}"
            query = f"""COPY (SELECT {NAMES} FROM "transaction" WHERE file_id = '{file}'
                ORDER BY line_number) TO STDOUT (FORMAT {form})"""  # noqa: S608 - our own ids
            with part.open("wb") as stream, connection.cursor().copy(query.encode()) as copy:
                for block in copy:
                    stream.write(block)
            parts.append(part)
    return Ready(parts=tuple(parts), rows=rows, bytes=csv_bytes, files=len(parts))


def _ready_database(url: str, folder: Path, csv_bytes: int) -> Ready:
    """A copy of the table alone, in the order in which it was filled."""
    part = folder / "ready.db"
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("ATTACH ? AS filled", (str(file_of(url)),))
        connection.execute(
            f'CREATE TABLE ready AS SELECT {NAMES} FROM filled."transaction" ORDER BY rowid'  # noqa: S608
        )
        connection.commit()
        counted = "SELECT count(*), count(DISTINCT file_id) FROM ready"
        rows, files = connection.execute(counted).fetchone()
    return Ready(parts=(part,), rows=rows, bytes=csv_bytes, files=files)


def load(url: str, ready: Ready, *, connections: int = 1) -> Run:
    """Write them; every process is connected before the time begins."""
    shares = _dealt(ready.parts, connections)
    loaders = [_loader(url, share) for share in shares]
    try:
        for loader in loaders:
            _expect(loader, "connected")
        began = time.monotonic()
        for loader in loaders:
            _say(loader, "go")
        told = [float(_expect(loader, "loaded")) for loader in loaders]
        seconds = time.monotonic() - began if is_postgresql(url) else max(told)
    finally:
        for loader in loaders:
            loader.kill()
            loader.communicate()
    return Run(seconds=seconds, rows=ready.rows, files=ready.files, bytes=ready.bytes)


def _dealt(parts: Sequence[Path], hands: int) -> list[list[Path]]:
    """The parts, shared out so that all have about as much to write."""
    dealt: list[list[Path]] = [[] for _ in range(min(hands, len(parts)))]
    weights = [0] * len(dealt)
    for part in sorted(parts, key=lambda part: -part.stat().st_size):
        lightest = weights.index(min(weights))
        dealt[lightest].append(part)
        weights[lightest] += part.stat().st_size
    return dealt


def _loader(url: str, parts: Sequence[Path]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.limit", url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _say(process, "\t".join(map(str, parts)))
    return process


def _say(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is not None:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _expect(process: subprocess.Popen[str], word: str) -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line.startswith(word):
        raise RuntimeError(f"the raw load said {line!r} instead of {word!r}")
    return line.removeprefix(word).strip()


# In a process of its own --------------------------------------------------------------------


def main(url: str) -> None:
    """Be one of the loaders: connect, wait for the word, write, say how long it took."""
    parts = [Path(part) for part in sys.stdin.readline().rstrip("\n").split("\t")]
    loading = _copying(url, parts) if is_postgresql(url) else _inserting(url, parts[0])
    next(loading)
    print("connected", flush=True)
    sys.stdin.readline()
    print("loaded", next(loading), flush=True)


def _copying(url: str, parts: Sequence[Path]) -> Iterator[float]:
    with psycopg.connect(dsn_of(url)) as connection:
        yield 0
        began = time.monotonic()
        for part in parts:
            copying = (COPY % part.suffix.removeprefix(".")).encode()
            with part.open("rb") as stream, connection.cursor().copy(copying) as copy:
                while block := stream.read(BLOCK_BYTES):
                    copy.write(block)
            connection.commit()
        yield time.monotonic() - began


def _inserting(url: str, part: Path) -> Iterator[float]:
    with (
        closing(sqlite3.connect(file_of(url), isolation_level=None)) as target,
        closing(sqlite3.connect(part)) as source,
    ):
        # As ingestd opens it.
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"cache_size = -{CACHE_MB * 1024}",
        ):
            target.execute(f"PRAGMA {pragma}")
        yield 0
        seconds = 0.0
        for batch in _batches(source):
            began = time.monotonic()
            target.execute("BEGIN IMMEDIATE")
            target.executemany(INSERT, batch)
            target.execute("COMMIT")
            seconds += time.monotonic() - began
        yield seconds


def _batches(source: sqlite3.Connection) -> Iterator[list[tuple[Any, ...]]]:
    """As many rows as ingestd commits at once: of one file, and not too many."""
    batch: list[tuple[Any, ...]] = []
    for row in source.execute("SELECT * FROM ready ORDER BY rowid"):
        if batch and (len(batch) == BATCH_ROWS or batch[-1][_BY_FILE] != row[_BY_FILE]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


if __name__ == "__main__":
    main(sys.argv[1])
