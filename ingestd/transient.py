"""Which errors of a database mean "try the same again later", and which are our own fault."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from ingestd.db import sqlite_code
from ingestd.errors import StorageFault


class database_at_work:  # noqa: N801 - reads as a statement where it is used
    """Tell a database that is away from a program that is wrong."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        """Translate what means "try the same again later"."""
        if isinstance(error, DBAPIError) and is_transient(error):
            raise StorageFault(str(error.orig)) from error


# SQLSTATE classes and codes of a server that is away, restarting, full, in the way of others,
# or that shuts us out; https://www.postgresql.org/docs/current/errcodes-appendix.html
_TRANSIENT_STATES = (
    "08",  # connection lost
    "25006",  # read-only: a fail-over, or a full disk
    "25P03",  # idle in a transaction for too long: we were stopped
    "25P04",  # a transaction that took too long
    "28",  # refused at the door
    "40",  # deadlock, serialization
    "42501",  # a right was taken away: true for every file, so no fault of this one
    "53",  # connections, memory, disk used up
    "55",  # locked, not accepting connections
    "57",  # shut down, starting up, cancelled, timed out
    "58",  # the server's own input and output
    "XX001",  # a damaged table
    "XX002",  # a damaged index
)
_TRANSIENT_CODES = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
}


def is_transient(error: DBAPIError) -> bool:
    """Say whether a database error is about the database (away, locked, full), not about us."""
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_TRANSIENT_STATES)
    if isinstance(error.orig, sqlite3.Error):
        return sqlite_code(error.orig) in _TRANSIENT_CODES
    # psycopg's own, without a word from the server: it was not reached.
    return isinstance(error, OperationalError | InterfaceError)
