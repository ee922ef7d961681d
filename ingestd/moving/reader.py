"""A role that may read everything and write nothing, for the people who query."""

from __future__ import annotations

from typing import Any

from psycopg.errors import InsufficientPrivilege
from psycopg.sql import SQL, Composable, Identifier, Literal
from sqlalchemy import Engine, text

from ingestd.errors import NotMoved

_OWNER = text("""
    SELECT pg_get_userbyid(c.relowner) FROM pg_class c
    WHERE c.oid = to_regclass('alembic_version')
""")
_LATER = "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema}"
_MIGHTY = text("""
    SELECT rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication AS is_mighty,
        rolname = current_user AS is_ourselves,
        EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'v') AND (
                c.relowner = r.oid OR has_table_privilege(r.oid, c.oid, 'INSERT, UPDATE, DELETE')
            )
        ) AS may_write
    FROM pg_roles r WHERE rolname = :name
""")


def grant(engine: Engine, role: str, *, password: str | None) -> bool:
    """Let a role read all tables, also those of later upgrades; says whether it was made new.

    Without a password it has none (peer authentication), or keeps the one that it has.

    Raises:
        NotMoved: the role is there already, and may do more than read; or we may not make roles.
    """
    try:
        return _grant(engine, role, password)
    except InsufficientPrivilege as refused:
        raise NotMoved(
            f"{engine.url.username or 'this role'} may not make or change roles: "
            "let one do it who may; on the server's own machine: runuser -u postgres -- ingestd "
            f"--database-url 'postgresql:///{engine.url.database}?host=/run/postgresql' "
            f"db grant-reader {role}"
        ) from refused


def _grant(engine: Engine, role: str, password: str | None) -> bool:
    with engine.begin() as connection:
        found = connection.execute(_MIGHTY, {"name": role}).one_or_none()
        if found is not None and (found.is_mighty or found.is_ourselves or found.may_write):
            raise NotMoved(
                f"the role {role} may write already, and no grant takes that away: "
                "name a role of its own for reading"
            )
        driver: Any = connection.connection.driver_connection
        names = {
            "role": role,
            "database": str(engine.url.database),
            "schema": str(connection.scalar(text("SELECT current_schema()"))),
            # Who upgrades; a superuser may have been asked to grant.
            "owner": str(connection.scalar(_OWNER)),
        }
        for statement in _statements(names, is_new=found is None):
            driver.execute(statement)
        if password is not None:
            # Hashed here: the server's log may hold statements.
            secret = driver.pgconn.encrypt_password(password.encode(), role.encode())
            _set_password(driver, role, secret.decode())
    return found is None


def _statements(names: dict[str, str], *, is_new: bool) -> list[Composable]:
    identifiers = {name: Identifier(told) for name, told in names.items()}
    made = ["CREATE ROLE {role} LOGIN"] if is_new else []
    return [
        SQL(each).format(**identifiers)
        for each in (
            *made,
            "GRANT CONNECT ON DATABASE {database} TO {role}",
            "GRANT USAGE ON SCHEMA {schema} TO {role}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
            f"{_LATER} GRANT SELECT ON TABLES TO {{role}}",
            "ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = on",
            # A transaction that is left open keeps old rows from being cleared away.
            "ALTER ROLE {role} SET idle_in_transaction_session_timeout = '10min'",
        )
    ]


def _set_password(driver: Any, role: str, secret: str) -> None:
    driver.execute(SQL("ALTER ROLE {} PASSWORD {}").format(Identifier(role), Literal(secret)))
