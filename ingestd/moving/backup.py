"""Backups: one file each, whole as of one moment; and databases made of them again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, inspect, make_url

from ingestd import migrate
from ingestd.db import make_engine
from ingestd.errors import NotMoved
from ingestd.moving import programs, sqlite_copy
from ingestd.moving.copying import Progress
from ingestd.moving.place import give_to_owner_of_its_folder, made_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Backups:
    """How backups of one database are made and taken back."""

    url: str
    postgresql_programs: str = ""
    on_progress: Progress = lambda _stage, _done, _total: None

    def make(self, target: Path) -> None:
        """Write the database as it is at this moment into a file of its own; others may work.

        Raises:
            NotMoved: the name is taken, or it could not be written.
        """
        if (file := _sqlite_file(self.url)) is not None:
            with made_whole(target) as partial:
                sqlite_copy.copy_pages(file, partial, on_progress=self.on_progress)
            return
        with self._on_server() as engine:
            pg_dump = self._program("pg_dump", engine)
            with made_whole(target) as partial:
                arguments = ["--format=custom", "--no-owner", "--no-privileges"]
                self._call(pg_dump, engine, [*arguments, f"--file={partial}"], partial)

    def restore(self, backup: Path) -> str:
        """Make the database of a backup; there must be none yet. Says the revision of its schema.

        Raises:
            NotMoved: there is a database already, or the file is no backup for it.
            SchemaMismatch: this program does not know the schema of the backup.
        """
        is_sqlite = _refuse_other(backup, self.url)
        if is_sqlite:
            return self._restore_sqlite(backup, Path(make_url(self.url).database or ""))
        with self._on_server() as engine:
            if tables := inspect(engine).get_table_names():
                raise NotMoved(
                    f"{engine.url.database} is not empty, it holds {tables[0]}: restore into an "
                    "empty database (`createdb NAME`), and name it by database.url"
                )
            arguments = ["--single-transaction", "--exit-on-error", "--no-owner"]
            arguments += ["--no-privileges", str(backup)]
            self._call(self._program("pg_restore", engine), engine, arguments, backup)
            return migrate.known_revision(engine)

    def _restore_sqlite(self, backup: Path, file: Path) -> str:
        with made_whole(file) as partial:
            sqlite_copy.copy_pages(backup, partial, on_progress=self.on_progress)
            engine = make_engine(f"sqlite:///{partial}")
            try:
                revision = migrate.known_revision(engine)
            finally:
                engine.dispose()
            give_to_owner_of_its_folder(partial)
        return revision

    @contextmanager
    def _on_server(self) -> Iterator[Engine]:
        engine = make_engine(self.url)
        try:
            yield engine
        finally:
            engine.dispose()

    def _program(self, name: str, engine: Engine) -> Path:
        server = programs.server_version(engine)
        return programs.find(name, folder=self.postgresql_programs, server=server)

    def _call(self, program: Path, engine: Engine, arguments: list[str], watched: Path) -> None:
        programs.call(program, engine, arguments, watched=watched, on_progress=self.on_progress)


def refuse_without_room(url: str, folder: Path) -> None:
    """See that a copy of an SQLite database fits into a folder.

    Raises:
        NotMoved: it does not.
    """
    if (file := _sqlite_file(url)) is None:
        return
    size, free = file.stat().st_size, shutil.disk_usage(folder).free
    if size > free:
        raise NotMoved(f"{folder} has {free} bytes free, a copy of {file} needs {size}")


def _sqlite_file(url: str) -> Path | None:
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _refuse_other(backup: Path, url: str) -> bool:
    """Say whether backup and database are SQLite's; both are, or neither."""
    with backup.open("rb") as stream:
        head = stream.read(len(sqlite_copy.HEADER))
    wanted = make_url(url).get_backend_name()
    kinds = {"sqlite": sqlite_copy.HEADER, "postgresql": programs.HEADER}
    found = next((kind for kind, header in kinds.items() if head.startswith(header)), None)
    if found is None:
        raise NotMoved(f"{backup} is no backup: `ingestd backup` makes them")
    if found != wanted:
        raise NotMoved(
            f"{backup} is a backup of {found}, and database.url names {wanted}: restore it into "
            f"{found} by --database-url, then `ingestd db copy --to` the other"
        )
    return found == "sqlite"
