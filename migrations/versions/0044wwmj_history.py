"""history

Revision ID: 0044wwmj
Revises: 0043tknd
Create Date: 2026-11-28 12:28:15.535118+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0044wwmj"
down_revision: str | Sequence[str] | None = "0043tknd"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "history",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("processed", sa.BigInteger(), nullable=False),
        sa.Column("retried", sa.BigInteger(), nullable=False),
        sa.Column("buried", sa.BigInteger(), nullable=False),
        sa.Column("batches", sa.BigInteger(), nullable=False),
        sa.Column("rolled_back", sa.BigInteger(), nullable=False),
        sa.Column("rung", sa.BigInteger(), nullable=False),
        sa.Column("polled", sa.BigInteger(), nullable=False),
        sa.Column("queued", sa.BigInteger(), nullable=False),
        sa.Column("queue_seconds", sa.Float(), nullable=False),
        sa.Column("waiting", sa.BigInteger(), nullable=True),
        sa.Column("dead_letters", sa.BigInteger(), nullable=True),
        sa.Column("oldest_due_seconds", sa.Float(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(waiting IS NULL) = (dead_letters IS NULL)", name=op.f("ck_history_looked_at_dead_letters")
        ),
        sa.CheckConstraint("(waiting IS NULL) = (oldest_due_seconds IS NULL)", name=op.f("ck_history_looked")),
        sa.PrimaryKeyConstraint("at", "worker_id", name=op.f("pk_history")),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("history")
