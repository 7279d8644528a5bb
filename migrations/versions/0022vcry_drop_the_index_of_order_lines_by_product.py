"""drop the index of order lines by product

Revision ID: 0022vcry
Revises: 0021ngyh
Create Date: 2026-11-28 01:10:44.251317+00:00
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0022vcry"
down_revision: str | Sequence[str] | None = "0021ngyh"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

INDEX = "ix_order_items_product_id"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index any more, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(INDEX, "order_items", schema=schema, if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        # An interrupted attempt leaves an invalid index.
        op.drop_index(INDEX, "order_items", schema=schema, if_exists=True, postgresql_concurrently=True)
        op.create_index(INDEX, "order_items", ["product_id"], postgresql_concurrently=True)
