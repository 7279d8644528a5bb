"""bulk actions: what is done to all events that match a filter, and how far it has come

Revision ID: 0041ftxc
Revises: 0040zcbt
Create Date: 2026-11-28 12:02:16.236070+00:00

The release before does not know the table. Its workers leave bulk actions to those of this one.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0041ftxc"
down_revision: str | Sequence[str] | None = "0040zcbt"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "bulk_actions",
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("filter", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("estimate", sa.BigInteger(), nullable=False),
        sa.Column("precision", sa.String(32), nullable=False),
        sa.Column("examined", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("done", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("skipped", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("statement_timestamp()"), nullable=False
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("touched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_by", sa.String(200), nullable=True),
        sa.Column("cancel_reason", sa.String(500), nullable=True),
        sa.Column("acting", sa.String(120), nullable=True),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("after_position", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("after_aggregate", sa.String(100), server_default="", nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("last_aggregate", sa.String(100), server_default="", nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint(
            "(state = 'cancelled') = (cancelled_by IS NOT NULL)", name=op.f("ck_bulk_actions_cancelled")
        ),
        sa.CheckConstraint(
            "(state = ANY ('{waiting,running}'::text[])) = (ended_at IS NULL)", name=op.f("ck_bulk_actions_ended")
        ),
        sa.CheckConstraint(
            "action = ANY ('{replay,discard,retry_now,bury}'::text[])", name=op.f("ck_bulk_actions_action")
        ),
        sa.CheckConstraint("btrim(reason) <> ''", name=op.f("ck_bulk_actions_reason")),
        sa.CheckConstraint(
            "precision = ANY ('{exact,at_least,estimate}'::text[])", name=op.f("ck_bulk_actions_precision")
        ),
        sa.CheckConstraint(
            "state = ANY ('{waiting,running,finished,cancelled}'::text[])", name=op.f("ck_bulk_actions_state")
        ),
        sa.CheckConstraint("done + failed + skipped <= examined", name=op.f("ck_bulk_actions_examined")),
        sa.CheckConstraint("done >= 0 AND failed >= 0 AND skipped >= 0", name=op.f("ck_bulk_actions_counted")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulk_actions")),
    )
    op.create_index("ix_bulk_actions_action_id", "bulk_actions", ["action", "id"])
    op.create_index(
        "ix_bulk_actions_active",
        "bulk_actions",
        [sa.text("coalesce(touched_at, created_at)"), "id"],
        postgresql_where=sa.text("state = ANY ('{waiting,running}'::text[])"),
    )
    op.create_index("ix_bulk_actions_state_id", "bulk_actions", ["state", "id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("bulk_actions")
