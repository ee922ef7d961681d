"""What the evaluator of the statistical rules has to do, and hours without a transaction."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("busy_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_evaluation"),
    )
    op.create_table(
        "evaluation_due",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("constituency_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluation_due"),
    )
    op.add_column(
        "hourly_stats",
        sa.Column("is_empty", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    # What is there already is evaluated once.
    op.execute("INSERT INTO evaluation_due (id, constituency_id) SELECT id, id FROM constituency")


def downgrade() -> None:
    op.execute("DELETE FROM hourly_stats WHERE is_empty")
    # Plain SQL: Alembic would make the table anew on SQLite, under the views that read it.
    op.execute("ALTER TABLE hourly_stats DROP COLUMN is_empty")
    op.drop_table("evaluation_due")
    op.drop_table("evaluation")
