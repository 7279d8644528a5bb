"""unpaid orders of a buyer: an index to count them by

Revision ID: 0037sjfm
Revises: 0036vkdt
Create Date: 2026-11-28 08:36:01.982065+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0037sjfm"
down_revision: str | Sequence[str] | None = "0036vkdt"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


INDEX = "ix_orders_buyer_id_unpaid"


def upgrade() -> None:
    # It blocks no writers, and can be run again if it is interrupted.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        # An interrupted build leaves an invalid index.
        op.drop_index(INDEX, "orders", schema=schema, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            INDEX,
            "orders",
            ["buyer_id"],
            postgresql_where=sa.text("expires_at IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(INDEX, "orders", schema=schema, if_exists=True, postgresql_concurrently=True)
