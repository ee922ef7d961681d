"""Velocities that are smoothed, zones, provisional totals, and by what all of it was judged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ISO = {
    "sqlite": "strftime('%Y-%m-%dT%H:%M:%SZ', {0})",
    "postgresql": """to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')""",
}
# The same words as in crud.constituencies.provisional: what is not here in full.
PROVISIONAL = """
    (EXISTS (SELECT 1 FROM hourly_stats h WHERE h.constituency_id = c.id
        AND (h.status = 'missing' OR (h.coverage > 0 AND h.coverage < 0.99)))
    OR EXISTS (SELECT 1 FROM alert a WHERE a.constituency_id = c.id AND a.cleared_at IS NULL
        AND a.type IN ('missing_hour', 'constituency_missing'))
    OR EXISTS (SELECT 1 FROM file_processing q WHERE q.constituency_id = c.id
        AND q.status = 'quarantined' AND q.slot IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM file_processing f WHERE f.constituency_id = c.id
            AND f.status = 'completed' AND f.slot IN (q.slot, 'whole'))))
"""
CONSTITUENCIES = """
    SELECT c.contract_id, c.region_code, c.region_name, e.name AS election, c.name, c.type,
        c.status, c.registered_voters, c.bulletins_issued, c.votes_cast, c.votes_rejected,
        c.participation_rate, c.anomaly_score,{more}
        {first} AS first_activity, {last} AS last_activity,
        {start} AS voting_start, {end} AS voting_end,
        c.is_revote_blocked, c.dimension, c.published_results, c.id, c.election_id
    FROM constituency c
    LEFT JOIN election e ON e.id = c.election_id
"""
HOURS = """
    SELECT {hour} AS hour, c.contract_id, c.region_code, c.region_name,
        e.name AS election, c.name AS constituency, h.status, h.coverage, h.bulletins_issued,
        h.votes_cast, h.votes_rejected, h.issues_rejected, h.revotes, h.rolled_back,
        h.list_added, h.list_removed, h.transaction_count, h.bulletin_velocity,
        h.vote_velocity,{more} h.cumulative_bulletins, h.cumulative_votes, h.expected_bulletins,
        h.expected_votes, h.phi, h.z_bulletins, h.z_votes, h.constituency_id
    FROM hourly_stats h
    JOIN constituency c ON c.id = h.constituency_id
    LEFT JOIN election e ON e.id = c.election_id
"""
SMOOTHED = ("bulletin_velocity_ewma", "vote_velocity_ewma")


def upgrade() -> None:
    for name in SMOOTHED:
        op.add_column("hourly_stats", sa.Column(name, sa.Float(), nullable=True))
    op.add_column("constituency", sa.Column("timezone", sa.String(length=50), nullable=True))
    op.add_column("evaluation", sa.Column("judged_by", sa.Text(), nullable=True))
    op.add_column(
        "evaluation_due",
        sa.Column("is_anew", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    make_views(f" {PROVISIONAL} AS is_provisional, c.timezone,", " h.{}, h.{},".format(*SMOOTHED))


def downgrade() -> None:
    make_views("", "")
    # Plain SQL: Alembic would make the tables anew on SQLite, under the views that read them.
    op.execute("ALTER TABLE evaluation_due DROP COLUMN is_anew")
    op.execute("ALTER TABLE evaluation DROP COLUMN judged_by")
    op.execute("ALTER TABLE constituency DROP COLUMN timezone")
    for name in SMOOTHED:
        op.execute(f"ALTER TABLE hourly_stats DROP COLUMN {name}")


def make_views(totals: str, hours: str) -> None:
    iso = ISO[op.get_context().dialect.name]
    moments = ("first_activity", "last_activity", "voting_start", "voting_end")
    named = zip(("first", "last", "start", "end"), moments, strict=True)
    times = {name: iso.format(f"c.{column}") for name, column in named}
    views = {
        "v_constituencies": CONSTITUENCIES.format(more=totals, **times),
        "v_hours": HOURS.format(more=hours, hour=iso.format("h.hour")),
    }
    for name, query in views.items():
        op.execute(f"DROP VIEW {name}")
        op.execute(f"CREATE VIEW {name} AS {query}")
