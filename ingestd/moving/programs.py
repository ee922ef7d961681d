"""pg_dump and pg_restore: where they are, whether they are new enough, and how they are called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqlalchemy import Engine, text

from ingestd.errors import NotMoved
from ingestd.log import redact
from ingestd.moving.copying import Progress

HEADER = b"PGDMP"
"""How every dump begins that pg_restore reads."""

_BY_DEBIAN = Path("/usr/lib/postgresql")
_SAYS_VERSION = re.compile(rb"\(PostgreSQL\) (\d+)")
_LOOK_SECONDS = 0.5
_LINES_TOLD = 5


def find(name: str, *, folder: str, server: int) -> Path:
    """The first program of this name that is as new as the server, or newer.

    `folder` is where to look; empty means the PATH, then where Debian keeps all versions.

    Raises:
        NotMoved: there is none, or none is new enough; the message says how to get one.
    """
    found = [(path, version) for path in _places(name, folder) if (version := _version_of(path))]
    for path, version in found:
        if version >= server:
            return path
    raise NotMoved(_missing(name, folder, server, [version for _, version in found]))


def _places(name: str, folder: str) -> Iterable[Path]:
    if folder:
        return [Path(folder, name)]
    on_path = shutil.which(name)
    newest_first = sorted(_BY_DEBIAN.glob(f"[0-9]*/bin/{name}"), key=_by_number, reverse=True)
    return [*([Path(on_path)] if on_path else []), *newest_first]


def _by_number(path: Path) -> int:
    number = path.parts[len(_BY_DEBIAN.parts)]
    return int(number) if number.isdecimal() else 0


def _version_of(path: Path) -> int | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, check=True).stdout  # noqa: S603 - the program that the operator installed
    except (OSError, subprocess.CalledProcessError):
        return None
    version = _SAYS_VERSION.search(said)
    return int(version[1]) if version else None


def _missing(name: str, folder: str, server: int, versions: Sequence[int]) -> str:
    where = folder or "the PATH"
    what = (
        f"{name} in {where} is of version {max(versions)}, older than the server ({server})"
        if versions
        else f"there is no {name} in {where}"
    )
    return (
        f"{what}: install postgresql-client-{server} or newer, or name its folder by "
        "database.postgresql_programs"
    )


def server_version(engine: Engine) -> int:
    """The major version of the server."""
    with engine.connect() as connection:
        return int(connection.scalar(text("SHOW server_version_num")) or 0) // 10_000


def call(
    program: Path, engine: Engine, arguments: Sequence[str], *, watched: Path, on_progress: Progress
) -> None:
    """Run it on the engine's database; `watched` is the file whose growth is told.

    Raises:
        NotMoved: it failed; the message is its own.
    """
    target, environment = _connection(engine)
    command = [str(program), *arguments, f"--dbname={target}", "--no-password"]
    with subprocess.Popen(  # noqa: S603 - the program that the operator installed
        command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            said = _said(running, program.name, watched, on_progress)
        except BaseException:
            running.kill()
            raise
    if running.returncode:
        told = "\n".join(redact(said).strip().splitlines()[:_LINES_TOLD])
        raise NotMoved(f"{program.name} failed with status {running.returncode}: {told}")


def _said(running: subprocess.Popen[str], name: str, watched: Path, on_progress: Progress) -> str:
    while True:
        try:
            return running.communicate(timeout=_LOOK_SECONDS)[1]
        except subprocess.TimeoutExpired:
            on_progress(f"{name}, MB", watched.stat().st_size // 1_000_000, 0)


def _connection(engine: Engine) -> tuple[str, dict[str, str]]:
    """What the engine's URL says, as libpq takes it; secrets by environment, which `ps` hides.

    Raises:
        NotMoved: a secret has no variable.
    """
    from psycopg import conninfo, pq  # noqa: PLC0415 - only where PostgreSQL is used

    said = engine.dialect.create_connect_args(engine.url)[1]
    environment, plain = dict(os.environ), {}
    for option in pq.Conninfo.get_defaults():
        keyword = option.keyword.decode()
        if keyword not in said:
            continue
        if option.dispchar != b"*":
            plain[keyword] = said[keyword]
        elif option.envvar:
            environment[option.envvar.decode()] = str(said[keyword])
        else:
            raise NotMoved(f"the URL holds {keyword}, which would be seen by everybody in `ps`")
    return conninfo.make_conninfo(**plain), environment
