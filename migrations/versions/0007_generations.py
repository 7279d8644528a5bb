"""generations: new outbox rows use only a small part of the index that finds an aggregate's rows

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-25 10:05:12.120311+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_outbox_ready_aggregate",
        "outbox",
        [sa.text("(position >> 21)"), "aggregate", "position"],
        postgresql_where=sa.text("available_at IS NULL"),
    )
    op.drop_index("ix_outbox_aggregate_position", "outbox")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index("ix_outbox_aggregate_position", "outbox", ["aggregate", "position"])
    op.drop_index("ix_outbox_ready_aggregate", "outbox")
