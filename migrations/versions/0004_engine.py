"""engine: rows are ready or wait for a reason, a history of failures, operators' controls, workers' heartbeats

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-25 07:05:12.104224+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Held to the end of the migration: workers of the previous release must not see rows that are half converted.
    op.execute("LOCK TABLE outbox, dead_letters IN ACCESS EXCLUSIVE MODE")
    op.add_column("outbox", sa.Column("waits", sa.String(32), nullable=True))
    op.add_column("outbox", sa.Column("failures", postgresql.JSONB(), nullable=True))
    op.alter_column("outbox", "available_at", nullable=True, server_default=None)
    op.execute(
        "UPDATE outbox SET waits = CASE WHEN attempts > 0 THEN 'retry' ELSE 'behind' END"
        " WHERE available_at > now() OR attempts > 0"
    )
    op.execute("UPDATE outbox SET available_at = NULL WHERE waits IS NULL")
    # Rows that waited for an earlier event now wait for that event itself, if there is one that will wake them.
    op.execute(
        "UPDATE outbox SET available_at = CASE WHEN EXISTS ("
        " SELECT FROM outbox AS earlier WHERE earlier.aggregate = outbox.aggregate"
        " AND earlier.position < outbox.position AND earlier.waits = 'retry'"
        ") OR EXISTS ("
        " SELECT FROM dead_letters WHERE dead_letters.aggregate = outbox.aggregate"
        " AND dead_letters.position < outbox.position"
        ") THEN 'infinity' ELSE now() END WHERE waits = 'behind'"
    )
    op.create_check_constraint(op.f("ck_outbox_waits"), "outbox", "waits IN ('asked', 'retry', 'behind', 'unknown')")
    op.create_check_constraint(op.f("ck_outbox_ready_or_waits"), "outbox", "(available_at IS NULL) = (waits IS NULL)")
    op.create_index("ix_outbox_ready", "outbox", ["type", "position"], postgresql_where=sa.text("available_at IS NULL"))
    waiting = sa.text("available_at IS NOT NULL")
    due = sa.text("available_at < 'infinity'")
    op.create_index("ix_outbox_waiting", "outbox", ["type", "available_at", "position"], postgresql_where=due)
    op.create_index("ix_outbox_waiting_aggregate", "outbox", ["aggregate", "position"], postgresql_where=waiting)

    op.add_column("dead_letters", sa.Column("fingerprint", sa.String(16), server_default="", nullable=False))
    op.add_column(
        "dead_letters", sa.Column("failures", postgresql.JSONB(), server_default=sa.text("'[]'"), nullable=False)
    )
    op.add_column("dead_letters", sa.Column("blocks", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.create_index("ix_dead_letters_fingerprint", "dead_letters", ["fingerprint"])
    op.create_index("ix_dead_letters_event_id", "dead_letters", ["event_id"])

    op.create_table(
        "outbox_types",
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("max_batches", sa.Integer(), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_by", sa.String(200), server_default="", nullable=False),
        sa.CheckConstraint("max_batches > 0", name=op.f("ck_outbox_types_max_batches")),
        sa.PrimaryKeyConstraint("type", name=op.f("pk_outbox_types")),
    )
    op.create_table(
        "outbox_actions",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("event_id", sa.Uuid(), nullable=True),
        sa.Column("aggregate", sa.String(100), nullable=True),
        sa.Column("reason", sa.String(500), server_default="", nullable=False),
        sa.Column("detail", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_actions")),
    )
    op.create_index("ix_outbox_actions_event_id", "outbox_actions", ["event_id"])
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    # Each row is updated again and again: no index but the key, and room for the next version in the same page.
    op.execute("ALTER TABLE workers SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("LOCK TABLE outbox, dead_letters IN ACCESS EXCLUSIVE MODE")
    for table in ("workers", "outbox_actions", "outbox_types"):
        op.drop_table(table)
    # In the previous release, every dead letter blocks later events, and a replay works as it did there.
    op.drop_index("ix_dead_letters_fingerprint", "dead_letters")
    for column in ("blocks", "failures", "fingerprint"):
        op.drop_column("dead_letters", column)
    op.drop_index("ix_dead_letters_event_id", "dead_letters")
    for index in ("ix_outbox_waiting_aggregate", "ix_outbox_waiting", "ix_outbox_ready"):
        op.drop_index(index, "outbox")
    op.drop_constraint(op.f("ck_outbox_ready_or_waits"), "outbox")
    op.drop_constraint(op.f("ck_outbox_waits"), "outbox")
    # That release wakes only rows that wait behind a dead letter; those behind a retry become due immediately.
    op.execute(
        "UPDATE outbox SET available_at = now() WHERE available_at IS NULL OR (waits = 'behind' AND NOT EXISTS ("
        " SELECT FROM dead_letters WHERE dead_letters.aggregate = outbox.aggregate"
        " AND dead_letters.position < outbox.position))"
    )
    op.alter_column("outbox", "available_at", nullable=False, server_default=sa.text("now()"))
    op.drop_column("outbox", "failures")
    op.drop_column("outbox", "waits")
