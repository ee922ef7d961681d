"""The first tables, and views of them for people with a SQL prompt."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
TIME = sa.DateTime(timezone=True)

NOT_A_BALLOT = sa.text("type NOT IN ('vote', 'blindSigIssue')")
OFF_CHAIN = sa.text("status IN ('rolled_back', 'withdrawn')")
HAS_VOTER = sa.text("voter_key IS NOT NULL")
OPEN = sa.text("cleared_at IS NULL")

# Times are ISO 8601 in UTC: `{second:table.column}` becomes the database's own way to write it.
ISO = {
    "sqlite": {
        "second": "strftime('%Y-%m-%dT%H:%M:%SZ', {0})",
        "milli": "strftime('%Y-%m-%dT%H:%M:%fZ', {0})",
    },
    "postgresql": {
        "second": """to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')""",
        "milli": """to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""",
    },
}

# `transaction` is a reserved word in SQLite: v_transactions spares people the quotes.
VIEWS = {
    "v_files": """
        SELECT f.path, f.member, f.status, f.contract_id, c.region_code, c.region_name,
            e.name AS election, c.name AS constituency, f.slot, f.publication,
            f.rows_read, f.rows_stored, f.rows_known, f.rows_rollbacks, f.rows_rejected,
            f.rows_blank, f.first_error_line, f.first_error_field, f.first_error_message,
            f.attempts, f.evidence, f.encoding, f.size, f.sha256,
            {second:f.mtime} AS modified, {second:f.discovered_at} AS discovered,
            {second:f.started_at} AS started, {second:f.finished_at} AS finished,
            f.throughput AS rows_per_second, f.archived_to, f.root, f.id,
            f.supersedes_id, f.duplicate_of_id, f.constituency_id
        FROM file_processing f
        LEFT JOIN constituency c ON c.id = f.constituency_id
        LEFT JOIN election e ON e.id = c.election_id
    """,
    "v_rejects": """
        SELECT f.path, f.member, f.status AS file_status, r.line_number, r.field, r.kind, r.value,
            r.reason, r.raw_text, r.is_cut, f.contract_id, c.region_code, c.region_name,
            e.name AS election, c.name AS constituency, r.id, r.file_id
        FROM reject r
        JOIN file_processing f ON f.id = r.file_id
        LEFT JOIN constituency c ON c.id = f.constituency_id
        LEFT JOIN election e ON e.id = c.election_id
    """,
    "v_constituencies": """
        SELECT c.contract_id, c.region_code, c.region_name, e.name AS election, c.name, c.type,
            c.status, c.registered_voters, c.bulletins_issued, c.votes_cast, c.votes_rejected,
            c.participation_rate, c.anomaly_score,
            {second:c.first_activity} AS first_activity, {second:c.last_activity} AS last_activity,
            {second:c.voting_start} AS voting_start, {second:c.voting_end} AS voting_end,
            c.is_revote_blocked, c.dimension, c.published_results, c.id, c.election_id
        FROM constituency c
        LEFT JOIN election e ON e.id = c.election_id
    """,
    "v_hours": """
        SELECT {second:h.hour} AS hour, c.contract_id, c.region_code, c.region_name,
            e.name AS election, c.name AS constituency, h.status, h.coverage, h.bulletins_issued,
            h.votes_cast, h.votes_rejected, h.issues_rejected, h.revotes, h.rolled_back,
            h.list_added, h.list_removed, h.transaction_count, h.bulletin_velocity,
            h.vote_velocity, h.cumulative_bulletins, h.cumulative_votes, h.expected_bulletins,
            h.expected_votes, h.phi, h.z_bulletins, h.z_votes, h.constituency_id
        FROM hourly_stats h
        JOIN constituency c ON c.id = h.constituency_id
        LEFT JOIN election e ON e.id = c.election_id
    """,
    "v_open_alerts": """
        SELECT a.severity, a.type, a."class", a.title, a.description, a.status, a.assigned_to,
            {second:a.detected_at} AS detected, c.contract_id, c.region_code, c.region_name,
            e.name AS election, c.name AS constituency, a.subject, a.details, a.notes, a.ruleset,
            a.id, a.constituency_id
        FROM alert a
        LEFT JOIN constituency c ON c.id = a.constituency_id
        LEFT JOIN election e ON e.id = c.election_id
        WHERE a.cleared_at IS NULL AND a.status <> 'resolved'
    """,
    # `timestamp` as it is stored, beside `time` for reading: only the first can use the index.
    "v_transactions": """
        SELECT {milli:t.timestamp} AS time, t.type, t.status, t.tally, t.tx_id, c.contract_id,
            c.region_code, c.region_name, e.name AS election, c.name AS constituency,
            t.tx_type, t.version, t.sender, t.signature, t.persons, t.raw_data, t.operation_data,
            t.extra, t.fee, t.fee_asset_id, t.block_height, f.path, f.member, t.line_number,
            t.slot, t.timestamp, t.voter_key, t.id, t.constituency_id, t.file_id
        FROM "transaction" t
        LEFT JOIN constituency c ON c.id = t.constituency_id
        LEFT JOIN election e ON e.id = c.election_id
        LEFT JOIN file_processing f ON f.id = t.file_id
    """,
}


def upgrade() -> None:
    create_tables()
    dialect = op.get_context().dialect.name
    for name, select in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {with_iso_times(select, dialect)}")
    if dialect == "postgresql":
        # A ballot is base64 of ciphertext, which no compression makes smaller: trying costs a
        # third of the time of a row.
        for column in ("raw_data", "operation_data"):
            op.execute(f'ALTER TABLE "transaction" ALTER COLUMN {column} SET STORAGE EXTERNAL')


def downgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW {name}")
    for table in TABLES:
        op.drop_table(table)  # with its indexes


def with_iso_times(select: str, dialect: str) -> str:
    return re.sub(
        r"\{(\w+):([\w.]+)\}", lambda found: ISO[dialect][found[1]].format(found[2]), select
    )


# What refers before what is referred to.
TABLES = (
    "reject",
    "hourly_stats",
    "file_processing",
    "alert",
    "constituency",
    "transaction_content",
    "transaction",
    "sighting",
    "election",
    "audit_log",
)


def create_tables() -> None:
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("who", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=50), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("before", JSON, nullable=True),
        sa.Column("after", JSON, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    with op.batch_alter_table("audit_log") as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_log_at"), ["at"], unique=False)

    op.create_table(
        "election",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("country", sa.String(length=100), nullable=True),
        sa.Column("type", sa.String(length=50), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("timezone", sa.String(length=50), nullable=True),
        sa.Column("start_date", TIME, nullable=True),
        sa.Column("end_date", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_election")),
    )
    op.create_table(
        "sighting",
        sa.Column("transaction_id", sa.Uuid(), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("line_number", sa.BigInteger(), nullable=False),
        sa.Column("sign", sa.SmallInteger(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(length=16), nullable=True),
        sa.PrimaryKeyConstraint(
            "transaction_id", "file_id", "line_number", name=op.f("pk_sighting")
        ),
    )
    with op.batch_alter_table("sighting") as batch_op:
        batch_op.create_index("ix_sighting_file", ["file_id", "transaction_id"], unique=False)

    op.create_table(
        "transaction",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("constituency_id", sa.Uuid(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("tally", sa.String(length=16), nullable=True),
        sa.Column("persons", sa.Integer(), nullable=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("tx_type", sa.SmallInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("slot", sa.String(length=24), nullable=True),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("line_number", sa.BigInteger(), nullable=False),
        sa.Column("voter_key", sa.BigInteger(), nullable=True),
        sa.Column("content_hash", sa.LargeBinary(length=16), nullable=False),
        sa.Column("tx_id", sa.String(length=64), nullable=False),
        sa.Column("fee", sa.BigInteger(), nullable=False),
        sa.Column("fee_asset_id", sa.Text(), nullable=False),
        sa.Column("block_height", sa.BigInteger(), nullable=True),
        sa.Column("sender", sa.String(length=100), nullable=False),
        sa.Column("signature", sa.String(length=100), nullable=False),
        sa.Column("extra", JSON, nullable=False),
        sa.Column("raw_data", JSON, nullable=False),
        sa.Column("operation_data", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transaction")),
    )
    with op.batch_alter_table("transaction") as batch_op:
        batch_op.create_index(
            "ix_transaction_constituency_time",
            ["constituency_id", "timestamp", "tally", "status"],
            unique=False,
        )
        batch_op.create_index(
            "ix_transaction_constituency_type",
            ["constituency_id", "type", "timestamp"],
            unique=False,
            postgresql_where=NOT_A_BALLOT,
            sqlite_where=NOT_A_BALLOT,
        )
        batch_op.create_index(
            "ix_transaction_off_chain",
            ["constituency_id", "status"],
            unique=False,
            postgresql_where=OFF_CHAIN,
            sqlite_where=OFF_CHAIN,
        )
        batch_op.create_index(
            "ix_transaction_voter_key",
            ["voter_key"],
            unique=False,
            postgresql_where=HAS_VOTER,
            sqlite_where=HAS_VOTER,
        )

    op.create_table(
        "transaction_content",
        sa.Column("transaction_id", sa.Uuid(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(length=16), nullable=False),
        sa.Column("content", JSON, nullable=False),
        sa.PrimaryKeyConstraint(
            "transaction_id", "content_hash", name=op.f("pk_transaction_content")
        ),
    )
    op.create_table(
        "constituency",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("contract_id", sa.String(length=64), nullable=False),
        sa.Column("election_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("region_code", sa.String(length=10), nullable=True),
        sa.Column("region_name", sa.Text(), nullable=True),
        sa.Column("named_by", sa.Text(), nullable=True),
        sa.Column("type", sa.String(length=50), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("registered_voters", sa.BigInteger(), nullable=True),
        sa.Column("bulletins_issued", sa.BigInteger(), nullable=False),
        sa.Column("votes_cast", sa.BigInteger(), nullable=False),
        sa.Column("votes_rejected", sa.BigInteger(), nullable=False),
        sa.Column("participation_rate", sa.Float(), nullable=True),
        sa.Column("anomaly_score", sa.Float(), nullable=True),
        sa.Column("first_activity", TIME, nullable=True),
        sa.Column("last_activity", TIME, nullable=True),
        sa.Column("voting_start", TIME, nullable=True),
        sa.Column("voting_end", TIME, nullable=True),
        sa.Column("dimension", JSON, nullable=True),
        sa.Column("published_results", JSON, nullable=True),
        sa.Column("is_revote_blocked", sa.Boolean(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["election_id"], ["election.id"], name=op.f("fk_constituency_election_id_election")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_constituency")),
        sa.UniqueConstraint("contract_id", name=op.f("uq_constituency_contract_id")),
    )
    with op.batch_alter_table("constituency") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_constituency_election_id"), ["election_id"], unique=False
        )

    op.create_table(
        "alert",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("class", sa.String(length=20), nullable=False),
        sa.Column("severity", sa.String(length=10), nullable=False),
        sa.Column("constituency_id", sa.Uuid(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("details", JSON, nullable=False),
        sa.Column("ruleset", sa.String(length=20), nullable=False),
        sa.Column("detected_at", TIME, nullable=True),
        sa.Column("cleared_at", TIME, nullable=True),
        sa.Column("cleared_reason", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("notes", JSON, nullable=False),
        sa.Column("assigned_to", sa.String(length=200), nullable=True),
        sa.Column("resolved_at", TIME, nullable=True),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["constituency_id"],
            ["constituency.id"],
            name=op.f("fk_alert_constituency_id_constituency"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert")),
    )
    with op.batch_alter_table("alert") as batch_op:
        batch_op.create_index(
            "ix_alert_constituency_type", ["constituency_id", "type"], unique=False
        )
        batch_op.create_index(
            "ix_alert_open",
            ["severity", "type"],
            unique=False,
            postgresql_where=OPEN,
            sqlite_where=OPEN,
        )

    op.create_table(
        "file_processing",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("container_sha256", sa.String(length=64), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime", TIME, nullable=True),
        sa.Column("stamp", sa.String(length=120), nullable=False),
        sa.Column("evidence", sa.String(length=40), nullable=True),
        sa.Column("archived_to", sa.Text(), nullable=True),
        sa.Column("contract_id", sa.String(length=64), nullable=True),
        sa.Column("constituency_id", sa.Uuid(), nullable=True),
        sa.Column("slot", sa.String(length=24), nullable=True),
        sa.Column("is_cumulative", sa.Boolean(), nullable=False),
        sa.Column("publication", sa.Integer(), nullable=False),
        sa.Column("supersedes_id", sa.Uuid(), nullable=True),
        sa.Column("duplicate_of_id", sa.Uuid(), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retry_at", TIME, nullable=True),
        sa.Column("owner", sa.String(length=200), nullable=True),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("rows_read", sa.BigInteger(), nullable=False),
        sa.Column("rows_stored", sa.BigInteger(), nullable=False),
        sa.Column("rows_known", sa.BigInteger(), nullable=False),
        sa.Column("rows_rollbacks", sa.BigInteger(), nullable=False),
        sa.Column("rows_rejected", sa.BigInteger(), nullable=False),
        sa.Column("rows_blank", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_byte", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_line", sa.BigInteger(), nullable=False),
        sa.Column("touched", JSON, nullable=False),
        sa.Column("slot_bulletins", sa.BigInteger(), nullable=False),
        sa.Column("slot_votes", sa.BigInteger(), nullable=False),
        sa.Column("attempt_counts", JSON, nullable=True),
        sa.Column("encoding", sa.String(length=20), nullable=True),
        sa.Column("first_error_line", sa.BigInteger(), nullable=True),
        sa.Column("first_error_field", sa.Text(), nullable=True),
        sa.Column("first_error_message", sa.Text(), nullable=True),
        sa.Column("discovered_at", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("throughput", sa.Float(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint(
            "status NOT IN ('completed', 'superseded') OR rows_read = rows_stored + rows_known"
            " + rows_rollbacks + rows_rejected + rows_blank",
            name=op.f("ck_file_processing_books"),
        ),
        sa.ForeignKeyConstraint(
            ["constituency_id"],
            ["constituency.id"],
            name=op.f("fk_file_processing_constituency_id_constituency"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_processing")),
    )
    with op.batch_alter_table("file_processing") as batch_op:
        batch_op.create_index("ix_file_processing_container", ["container_sha256"], unique=False)
        batch_op.create_index("ix_file_processing_discovered_at", ["discovered_at"], unique=False)
        batch_op.create_index("ix_file_processing_finished_at", ["finished_at"], unique=False)
        batch_op.create_index(
            "ix_file_processing_path", ["path"], unique=False, postgresql_using="hash"
        )
        batch_op.create_index("ix_file_processing_sha256", ["sha256"], unique=False)
        batch_op.create_index("ix_file_processing_slot", ["constituency_id", "slot"], unique=False)
        batch_op.create_index(
            "ix_file_processing_status", ["status", "discovered_at"], unique=False
        )

    op.create_table(
        "hourly_stats",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("constituency_id", sa.Uuid(), nullable=False),
        sa.Column("hour", TIME, nullable=False),
        sa.Column("bulletins_issued", sa.BigInteger(), nullable=False),
        sa.Column("votes_cast", sa.BigInteger(), nullable=False),
        sa.Column("votes_rejected", sa.BigInteger(), nullable=False),
        sa.Column("issues_rejected", sa.BigInteger(), nullable=False),
        sa.Column("revotes", sa.BigInteger(), nullable=False),
        sa.Column("rolled_back", sa.BigInteger(), nullable=False),
        sa.Column("list_added", sa.BigInteger(), nullable=False),
        sa.Column("list_removed", sa.BigInteger(), nullable=False),
        sa.Column("transaction_count", sa.BigInteger(), nullable=False),
        sa.Column("bulletin_velocity", sa.Float(), nullable=True),
        sa.Column("vote_velocity", sa.Float(), nullable=True),
        sa.Column("cumulative_bulletins", sa.BigInteger(), nullable=False),
        sa.Column("cumulative_votes", sa.BigInteger(), nullable=False),
        sa.Column("coverage", sa.Float(), nullable=True),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("expected_bulletins", sa.Float(), nullable=True),
        sa.Column("expected_votes", sa.Float(), nullable=True),
        sa.Column("phi", sa.Float(), nullable=True),
        sa.Column("z_bulletins", sa.Float(), nullable=True),
        sa.Column("z_votes", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["constituency_id"],
            ["constituency.id"],
            name=op.f("fk_hourly_stats_constituency_id_constituency"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hourly_stats")),
        sa.UniqueConstraint(
            "constituency_id", "hour", name=op.f("uq_hourly_stats_constituency_id_hour")
        ),
    )
    with op.batch_alter_table("hourly_stats") as batch_op:
        batch_op.create_index(batch_op.f("ix_hourly_stats_hour"), ["hour"], unique=False)

    op.create_table(
        "reject",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("line_number", sa.BigInteger(), nullable=False),
        sa.Column("field", sa.String(length=100), nullable=True),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("raw_text", sa.Text(), nullable=False),
        sa.Column("is_cut", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["file_processing.id"], name=op.f("fk_reject_file_id_file_processing")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reject")),
        sa.UniqueConstraint("file_id", "line_number", name=op.f("uq_reject_file_id_line_number")),
    )
