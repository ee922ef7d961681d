"""What a person's decision on an alert was about, so that new evidence shows it again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ISO = {
    "sqlite": "strftime('%Y-%m-%dT%H:%M:%SZ', a.detected_at)",
    "postgresql": """to_char(a.detected_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')""",
}
VIEW = """
    SELECT a.severity, a.type, a."class", a.title, a.description, a.status, a.assigned_to,
        {detected} AS detected, c.contract_id, c.region_code, c.region_name,
        e.name AS election, c.name AS constituency, a.subject, a.details, a.notes, a.ruleset,
        a.id, a.constituency_id
    FROM alert a
    LEFT JOIN constituency c ON c.id = a.constituency_id
    LEFT JOIN election e ON e.id = c.election_id
    WHERE a.cleared_at IS NULL AND {is_open}
"""


def upgrade() -> None:
    op.add_column(
        "alert", sa.Column("gravity", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column("alert", sa.Column("answered_gravity", sa.BigInteger(), nullable=True))
    make_view("(a.status <> 'resolved' OR a.gravity > a.answered_gravity)")


def downgrade() -> None:
    make_view("a.status <> 'resolved'")
    # Plain SQL: Alembic would make the table anew on SQLite, under the views that read it.
    op.execute("ALTER TABLE alert DROP COLUMN answered_gravity")
    op.execute("ALTER TABLE alert DROP COLUMN gravity")


def make_view(is_open: str) -> None:
    detected = ISO[op.get_context().dialect.name]
    op.execute("DROP VIEW v_open_alerts")
    op.execute(f"CREATE VIEW v_open_alerts AS {VIEW.format(detected=detected, is_open=is_open)}")
