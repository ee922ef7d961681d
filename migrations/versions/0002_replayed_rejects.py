"""Rejects that a person mended, and what they were mended to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ISO = {
    "sqlite": "strftime('%Y-%m-%dT%H:%M:%SZ', r.replayed_at)",
    "postgresql": """to_char(r.replayed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')""",
}
COLUMNS = """
    SELECT f.path, f.member, f.status AS file_status, r.line_number, r.field, r.kind, r.value,
        r.reason, r.raw_text, r.is_cut, f.contract_id, c.region_code, c.region_name,
        e.name AS election, c.name AS constituency, r.id, r.file_id{replayed}
    FROM reject r
    JOIN file_processing f ON f.id = r.file_id
    LEFT JOIN constituency c ON c.id = f.constituency_id
    LEFT JOIN election e ON e.id = c.election_id
"""


def upgrade() -> None:
    op.add_column("reject", sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("reject", sa.Column("replayed_text", sa.Text(), nullable=True))
    make_view(f", {ISO[op.get_context().dialect.name]} AS replayed, r.replayed_text")


def downgrade() -> None:
    make_view("")
    # Plain SQL: Alembic would make the table anew on SQLite, under the views that read it.
    op.execute("ALTER TABLE reject DROP COLUMN replayed_text")
    op.execute("ALTER TABLE reject DROP COLUMN replayed_at")


def make_view(replayed: str) -> None:
    op.execute("DROP VIEW v_rejects")
    op.execute(f"CREATE VIEW v_rejects AS {COLUMNS.format(replayed=replayed)}")
