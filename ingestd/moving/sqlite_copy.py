"""An SQLite database copied page by page while others write: backups, and back again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from ingestd.errors import NotMoved
from ingestd.moving.copying import Progress

HEADER = b"SQLite format 3\x00"
"""How every SQLite database begins."""

_PAGES_AT_ONCE = 4_096


def copy_pages(source: Path, target: Path, *, on_progress: Progress) -> None:
    """Copy the database as it is at this moment into one file, and see that it is sound.

    `target` is a file that is empty. No writer waits, and what is written meanwhile is left out.

    Raises:
        NotMoved: what cannot be read is no database, is damaged, or does not fit on the disk.
    """
    try:
        with _opened(source, "rw") as reading, _opened(target, "rw") as writing:
            # One moment for all steps: without it each commit of others would begin it anew.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM sqlite_master").fetchone()

            def tell(_status: int, remaining: int, total: int) -> None:
                on_progress("pages", total - remaining, total)

            reading.backup(writing, pages=_PAGES_AT_ONCE, progress=tell)
            # One file, which can be copied, and read where nothing can be written.
            writing.execute("PRAGMA journal_mode = DELETE")
            on_progress("looking at the copy", 0, 0)
            (answer,) = writing.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise NotMoved(f"{source} was not copied to {target.parent}: {error}") from error
    if answer != "ok":
        raise NotMoved(f"{source} is damaged: {answer}")


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path))}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)) as connection:
        yield connection
