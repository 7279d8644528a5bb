"""lists of parties: indexes for what payers, recipients and sellers list

Revision ID: 0038vnbx
Revises: 0037sjfm
Create Date: 2026-11-28 08:17:23.101692+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0038vnbx"
down_revision: str | Sequence[str] | None = "0037sjfm"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

PRESENT, LISTED, HELD = "deleted_at IS NULL", "order_id IS NULL", "order_id IS NULL AND expires_at IS NOT NULL"

INDEXES = (
    ("ix_products_present_seller_id_id", "products", ["seller_id", "id"], PRESENT),
    ("ix_products_present_seller_id_name_id", "products", ["seller_id", "name", "id"], PRESENT),
    ("ix_transfers_listed_of_debit", "transfers", ["debit_account_id", "id"], LISTED),
    ("ix_transfers_listed_of_credit", "transfers", ["credit_account_id", "id"], LISTED),
    ("ix_transfers_holds_of_debit", "transfers", ["debit_account_id", "id"], HELD),
    ("ix_transfers_holds_of_credit", "transfers", ["credit_account_id", "id"], HELD),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for name, table, columns, condition in INDEXES:
            # An interrupted attempt leaves an invalid index.
            op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
            where = sa.text(condition)
            op.create_index(name, table, columns, postgresql_concurrently=True, postgresql_where=where)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for name, table, _, _ in INDEXES:
            op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
