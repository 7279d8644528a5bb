"""order item_count: the number of an order's lines, kept with the order

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22 14:40:12.310291+00:00

A pattern for data migrations: add the column as nullable, fill the rows in batches, and only then enforce it, without a
scan under a lock that blocks writers. It can be run again after an interruption at any point. The old services, which
write orders without the column, work until the checks are added; from then on, the new ones must be running.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from migrations.batches import update_in_batches

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

orders = sa.table("orders", sa.column("id", sa.Uuid()), sa.column("item_count", sa.Integer()))
order_items = sa.table("order_items", sa.column("order_id", sa.Uuid()))

PRESENT = "ck_orders_item_count_present"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("orders", sa.Column("item_count", sa.Integer(), nullable=True), if_not_exists=True)

    fill()

    # Added without checking the rows, which is quick, and validated by a scan that does not block writers.
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name, condition in (("ck_orders_item_count", "item_count > 0"), (PRESENT, "item_count IS NOT NULL")):
        op.drop_constraint(op.f(name), "orders", if_exists=True)
        op.create_check_constraint(op.f(name), "orders", condition, postgresql_not_valid=True)
    # Orders written while the others were filled; with the checks in place, there can be no more.
    fill()
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE orders VALIDATE CONSTRAINT ck_orders_item_count")
        op.execute(f"ALTER TABLE orders VALIDATE CONSTRAINT {PRESENT}")

    # Thanks to the validated check, SET NOT NULL needs no scan.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.alter_column("orders", "item_count", nullable=False)
    op.drop_constraint(op.f(PRESENT), "orders")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("orders", "item_count")


def fill() -> None:
    lines = sa.select(sa.func.count()).where(order_items.c.order_id == orders.c.id).scalar_subquery()
    update_in_batches(orders, key=orders.c.id, values={"item_count": lines}, pending=orders.c.item_count.is_(sa.null()))
