"""failed attempts: how often signing in to an account or from an address has failed

Revision ID: 0024rnrg
Revises: 0023yxpn
Create Date: 2026-11-28 00:51:50.127222+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0024rnrg"
down_revision: str | Sequence[str] | None = "0023yxpn"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "failed_attempts",
        sa.Column("subject", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("failed_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("failures >= 0", name=op.f("ck_failed_attempts_counted")),
        sa.CheckConstraint("length(subject) = 32", name=op.f("ck_failed_attempts_sha256")),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_failed_attempts")),
    )
    op.create_index("ix_failed_attempts_updated_at", "failed_attempts", ["updated_at"], unique=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_failed_attempts_updated_at", table_name="failed_attempts")
    op.drop_table("failed_attempts")
