"""sweep failures: rows that a sweep could not end, and indexes in which a sweep continues where it stopped

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-27 03:58:12.204519+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Name, table, columns, condition.
NOW = (
    ("ix_orders_expires_at_id", "orders", ["expires_at", "id"], "expires_at IS NOT NULL"),
    (
        "ix_transfers_due_of_orders",
        "transfers",
        ["expires_at", "id"],
        "state = 'pending' AND order_id IS NOT NULL",
    ),
    ("ix_transfers_due_of_users", "transfers", ["expires_at", "id"], "state = 'pending' AND order_id IS NULL"),
)
BEFORE = (
    ("ix_orders_expires_at", "orders", ["expires_at"], "expires_at IS NOT NULL"),
    ("ix_transfers_expires_at", "transfers", ["expires_at"], "state = 'pending'"),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "sweep_failures",
        sa.Column("sweep", sa.String(32), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("attempts > 0", name=op.f("ck_sweep_failures_attempts")),
        sa.PrimaryKeyConstraint("sweep", "subject", name=op.f("pk_sweep_failures")),
        if_not_exists=True,
    )
    replace_indexes(drop=BEFORE, create=NOW)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema, like the indexes: when run again for a tenant, it must not find another schema's table.
    op.drop_table("sweep_failures", schema=op.get_context().version_table_schema, if_exists=True)
    replace_indexes(drop=NOW, create=BEFORE)


Indexes = Sequence[tuple[str, str, list[str], str]]


def replace_indexes(*, drop: Indexes, create: Indexes) -> None:
    """Does not block writers. It can run again after an interruption: an invalid index is rebuilt."""
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for name, table, columns, condition in create:
            op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
            op.create_index(name, table, columns, postgresql_where=sa.text(condition), postgresql_concurrently=True)
        for name, table, _, _ in drop:
            op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
