"""What was here when the rules about all constituencies looked: fsck holds their alerts to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SEEN = ("feed_seen", "ids_seen")


def upgrade() -> None:
    for name in SEEN:
        op.add_column("evaluation", sa.Column(name, sa.Text(), nullable=True))


def downgrade() -> None:
    # Plain SQL: Alembic would make the table anew on SQLite.
    for name in SEEN:
        op.execute(f"ALTER TABLE evaluation DROP COLUMN {name}")
