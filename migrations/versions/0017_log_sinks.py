"""log sinks: what was handed out to log consumers whose place is kept in another database

Revision ID: 0017
Revises: 0016mkdz
Create Date: 2026-11-27 21:10:00.000000+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from migrations.column_types import Xid8

revision: str = "0017"
down_revision: str | None = "0016mkdz"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "log_sinks",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("series", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("reads", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_read", sa.Uuid(), nullable=True),
        sa.Column("stored", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dropped_transaction_id", Xid8(), nullable=True),
        sa.Column("dropped_position", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("stored >= 0 AND stored <= reads", name=op.f("ck_log_sinks_stored")),
        sa.CheckConstraint(
            "(dropped_transaction_id IS NULL) = (dropped_position IS NULL)", name=op.f("ck_log_sinks_dropped")
        ),
        sa.ForeignKeyConstraint(
            ["name"], ["log_consumers.name"], name=op.f("fk_log_sinks_name_log_consumers"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_log_sinks")),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("log_sinks", schema=op.get_context().version_table_schema, if_exists=True)
