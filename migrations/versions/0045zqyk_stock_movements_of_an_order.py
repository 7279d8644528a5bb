"""stock movements of an order: an index to find them by

Revision ID: 0045zqyk
Revises: 0044wwmj
Create Date: 2026-11-28 12:00:25.294069+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0045zqyk"
down_revision: str | Sequence[str] | None = "0044wwmj"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


INDEX = "ix_stock_movements_order_id_id"


def upgrade() -> None:
    # It blocks no writers, and can be run again if it is interrupted.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        # An interrupted build leaves an invalid index.
        op.drop_index(INDEX, "stock_movements", schema=schema, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            INDEX,
            "stock_movements",
            ["order_id", "id"],
            postgresql_where=sa.text("order_id IS NOT NULL"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(INDEX, "stock_movements", schema=schema, if_exists=True, postgresql_concurrently=True)
