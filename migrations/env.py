"""How Alembic meets our databases.

`ingestd.migrate` hands over a connection that holds the migration lock. The `alembic` command in
a checkout names a database by itself: `alembic -x url=sqlite:///ingestd.db check`.
"""

from __future__ import annotations

from typing import Literal

from alembic import context
from sqlalchemy import JSON, Connection

from ingestd import migrate
from ingestd.models import Base, UtcDateTime


def render_item(kind: str, item: object, _autogenerate: object) -> str | Literal[False]:
    """Write our own types as what they are in the database: a migration imports no models."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        json = "sa.JSON(none_as_null=True)"
        return f"{json}.with_variant(postgresql.JSONB(none_as_null=True), 'postgresql')"
    return False


def run(connection: Connection) -> None:
    """Run what was asked for inside the connection's transaction: all of it, or nothing."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        # SQLite changes a table by making it anew.
        render_as_batch=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    message = "--sql is not supported: `ingestd db upgrade` needs the database itself"
    raise NotImplementedError(message)

if "connection" in context.config.attributes:
    run(context.config.attributes["connection"])
else:
    with migrate.locked(context.get_x_argument(as_dictionary=True)["url"]) as own_connection:
        run(own_connection)
