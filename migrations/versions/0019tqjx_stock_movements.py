"""stock movements: every change of the pieces on hand leaves a row that stays

Revision ID: 0019tqjx
Revises: 0018
Create Date: 2026-11-28 00:33:55.134166+00:00

The previous release writes no movements, so a trigger does, also for changes by hand. Existing products get one
with the pieces that their movements do not explain.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from migrations.batches import copy_in_batches

revision: str = "0019tqjx"
down_revision: str | None = "0018"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


inventory = sa.table(
    "inventory",
    sa.column("product_id", sa.BigInteger()),
    sa.column("on_hand", sa.BigInteger()),
)
stock_movements = sa.table(
    "stock_movements",
    sa.column("product_id", sa.BigInteger()),
    sa.column("kind", sa.String()),
    sa.column("pieces", sa.BigInteger()),
)

# Waybill's processes connect under this name. Those of this release write the movements themselves. A change by hand
# may come with another schema's search path.
FUNCTION = """
    CREATE OR REPLACE FUNCTION record_stock() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        kind text := 'opening';
        pieces bigint := NEW.on_hand;
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            kind := CASE WHEN current_setting('application_name') LIKE 'waybill-%' THEN 'unrecorded' ELSE 'by_hand' END;
            pieces := NEW.on_hand - OLD.on_hand;
        END IF;
        EXECUTE format('INSERT INTO %I.stock_movements (product_id, kind, pieces) VALUES ($1, $2, $3)', TG_TABLE_SCHEMA)
            USING NEW.product_id, kind, pieces;
        RETURN NULL;
    END
    $$
"""
# The conditions are evaluated without a call: a change that comes with its movements costs next to nothing.
TRIGGERS = (
    """
    CREATE OR REPLACE TRIGGER inventory_opening AFTER INSERT ON inventory FOR EACH ROW
    WHEN (NEW.on_hand <> 0) EXECUTE FUNCTION record_stock()
    """,
    """
    CREATE OR REPLACE TRIGGER inventory_unrecorded AFTER UPDATE ON inventory FOR EACH ROW
    WHEN (OLD.on_hand <> NEW.on_hand AND OLD.recorded = NEW.recorded)
    EXECUTE FUNCTION record_stock()
    """,
    """
    CREATE OR REPLACE TRIGGER stock_movements_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON stock_movements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "stock_movements",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=True),
        sa.Column("pieces", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind = ANY ('{opening,stocked,shipped,returned,unrecorded,by_hand}'::text[])",
            name=op.f("ck_stock_movements_kind"),
        ),
        sa.CheckConstraint("pieces <> 0", name=op.f("ck_stock_movements_pieces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stock_movements")),
        schema=op.get_context().version_table_schema,
        if_not_exists=True,
    )
    op.add_column(
        "inventory",
        sa.Column("recorded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        if_not_exists=True,
    )
    # It waits for transactions that change stock; those after it find the triggers, and those before it the batches.
    op.execute(FUNCTION)
    for trigger in TRIGGERS:
        op.execute(trigger)
    copy_in_batches(inventory, inventory.c.product_id, opening)
    op.execute("ANALYZE stock_movements")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in ("inventory_opening", "inventory_unrecorded"):
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON inventory")
    op.execute("DROP FUNCTION IF EXISTS record_stock()")
    op.drop_column("inventory", "recorded", if_exists=True)
    op.drop_table("stock_movements", schema=op.get_context().version_table_schema, if_exists=True)


def opening(some: sa.ColumnElement[bool]) -> sa.Executable:
    """Write what the movements of these products do not explain: nothing, where it was done before.

    A change and its movement are committed together, so one statement sees both or neither.
    """
    moved = (
        sa.select(stock_movements.c.product_id, sa.func.sum(stock_movements.c.pieces).label("pieces"))
        .group_by(stock_movements.c.product_id)
        .subquery("moved")
    )
    unexplained = inventory.c.on_hand - sa.func.coalesce(moved.c.pieces, 0).cast(sa.BigInteger())
    found = (
        sa.select(inventory.c.product_id, sa.literal_column("'opening'"), unexplained)
        .select_from(inventory.outerjoin(moved, moved.c.product_id == inventory.c.product_id))
        .where(some, unexplained != 0)
        .order_by(inventory.c.product_id)
    )
    return sa.insert(stock_movements).from_select(["product_id", "kind", "pieces"], found)
