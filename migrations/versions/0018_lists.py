"""lists: the sellers of each order, and an index for each sort and filter of a list

Revision ID: 0018
Revises: 0017
Create Date: 2026-11-27 21:05:31.402817+00:00

The previous release writes no sellers, so a trigger does. The indexes that are dropped are the beginnings of new ones.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.batches import copy_in_batches

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

orders = sa.table("orders", sa.column("id", sa.Uuid()))
order_items = sa.table("order_items", sa.column("order_id", sa.Uuid()), sa.column("product_id", sa.BigInteger()))
products = sa.table("products", sa.column("id", sa.BigInteger()), sa.column("seller_id", sa.BigInteger()))
order_sellers = sa.table("order_sellers", sa.column("seller_id", sa.BigInteger()), sa.column("order_id", sa.Uuid()))

# A subquery for each line, not a join: its plan is kept by the session, and must not read all products for a few lines.
FUNCTION = """
    CREATE OR REPLACE FUNCTION note_sellers() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO order_sellers (seller_id, order_id)
        SELECT DISTINCT (SELECT seller_id FROM products WHERE products.id = line.product_id), line.order_id
        FROM lines AS line ON CONFLICT DO NOTHING;
        RETURN NULL;
    END
    $$
"""
TRIGGER = """
    CREATE OR REPLACE TRIGGER order_items_sellers AFTER INSERT ON order_items
    REFERENCING NEW TABLE AS lines FOR EACH STATEMENT EXECUTE FUNCTION note_sellers()
"""


def trigrams(column: str) -> dict[str, Any]:
    return {"postgresql_using": "gin", "postgresql_ops": {column: "gin_trgm_ops"}}


ACTIVE, PRESENT, ASKED = "is_active", "deleted_at IS NULL", "waits = 'asked'"

Indexes = Sequence[tuple[str, str, list[str], dict[str, Any]]]

NOW: Indexes = (
    ("ix_orders_reference_id", "orders", ["reference", "id"], {"postgresql_where": "reference IS NOT NULL"}),
    ("ix_refunds_order_id_id", "refunds", ["order_id", "id"], {}),
    ("ix_categories_name_id", "categories", ["name", "id"], {}),
    *(
        (f"ix_products_active_{'_'.join(columns)}", "products", columns, {"postgresql_where": ACTIVE})
        for columns in (
            ["price", "id"],
            ["name", "id"],
            ["created_at", "id"],
            ["sku", "id"],
            ["seller_id", "id"],
            ["seller_id", "price", "id"],
            ["seller_id", "name", "id"],
            ["category_id", "id"],
            ["category_id", "price", "id"],
            ["category_id", "name", "id"],
        )
    ),
    ("ix_users_present", "users", ["id"], {"postgresql_where": PRESENT}),
    *(
        (f"ix_users_{column}_id", "users", [column, "id"], {"postgresql_where": PRESENT})
        for column in ("created_at", "email", "full_name", "role", "is_active")
    ),
    *((f"ix_users_{column}_trgm", "users", [column], trigrams(column)) for column in ("email", "full_name")),
    *(
        (f"ix_adjustments_{column}_id", "adjustments", [column, "id"], {})
        for column in ("account_id", "requested_by", "state")
    ),
    ("ix_outbox_asked", "outbox", ["position"], {"postgresql_where": ASKED}),
    ("ix_outbox_asked_type", "outbox", ["type", "position"], {"postgresql_where": ASKED}),
    ("ix_outbox_asked_available_at", "outbox", ["available_at", "position"], {"postgresql_where": ASKED}),
    *(
        (f"ix_dead_letters_{column}_position", "dead_letters", [column, "position"], {})
        for column in ("aggregate", "fingerprint", "type")
    ),
)
BEFORE: Indexes = (
    ("ix_refunds_order_id", "refunds", ["order_id"], {}),
    ("ix_products_category_id_price", "products", ["category_id", "price"], {}),
    ("ix_adjustments_account_id", "adjustments", ["account_id"], {}),
    ("ix_dead_letters_aggregate", "dead_letters", ["aggregate"], {}),
    ("ix_dead_letters_fingerprint", "dead_letters", ["fingerprint"], {}),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "order_sellers",
        sa.Column("seller_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("seller_id", "order_id", name=op.f("pk_order_sellers")),
        schema=op.get_context().version_table_schema,
        if_not_exists=True,
    )
    # It waits for transactions that write lines; those after it find the trigger, and those before it the batches.
    op.execute(FUNCTION)
    op.execute(TRIGGER)
    copy_in_batches(orders, orders.c.id, sellers_of)
    op.execute("ANALYZE order_sellers")
    replace_indexes(drop=BEFORE, create=NOW)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP TRIGGER IF EXISTS order_items_sellers ON order_items")
    op.execute("DROP FUNCTION IF EXISTS note_sellers()")
    op.drop_table("order_sellers", schema=op.get_context().version_table_schema, if_exists=True)
    replace_indexes(drop=NOW, create=BEFORE)


def sellers_of(some: sa.ColumnElement[bool]) -> sa.Executable:
    """Write the sellers of these orders that have no row yet."""
    found = (
        sa.select(products.c.seller_id, order_items.c.order_id)
        .distinct()
        .select_from(orders)
        .join(order_items, order_items.c.order_id == orders.c.id)
        .join(products, products.c.id == order_items.c.product_id)
        .where(some)
    )
    return postgresql.insert(order_sellers).from_select(["seller_id", "order_id"], found).on_conflict_do_nothing()


def replace_indexes(*, drop: Indexes, create: Indexes) -> None:
    """Does not block writers. It can run again after an interruption: an invalid index is rebuilt."""
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for name, table, columns, options in create:
            where = options.get("postgresql_where")
            op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                columns,
                postgresql_concurrently=True,
                **{**options, **({"postgresql_where": sa.text(where)} if where else {})},
            )
        for name, table, _, _ in drop:
            op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
