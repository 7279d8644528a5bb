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
    # Without blocking writers. It can run again after an interruption: an invalid index is rebuilt.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(
            "ix_outbox_ready_aggregate", "outbox", schema=schema, if_exists=True, postgresql_concurrently=True
        )
        op.create_index(
            "ix_outbox_ready_aggregate",
            "outbox",
            [sa.text("(position >> 21)"), "aggregate", "position"],
            postgresql_where=sa.text("available_at IS NULL"),
            postgresql_concurrently=True,
        )
        op.drop_index(
            "ix_outbox_aggregate_position", "outbox", schema=schema, if_exists=True, postgresql_concurrently=True
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(
            "ix_outbox_aggregate_position", "outbox", schema=schema, if_exists=True, postgresql_concurrently=True
        )
        op.create_index(
            "ix_outbox_aggregate_position", "outbox", ["aggregate", "position"], postgresql_concurrently=True
        )
        op.drop_index(
            "ix_outbox_ready_aggregate", "outbox", schema=schema, if_exists=True, postgresql_concurrently=True
        )
