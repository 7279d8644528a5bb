"""ledger: holds that expire, partial postings, reversals, adjustments, refunds of lines; append-only tables

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-25 06:50:02.118530+00:00

Rows are filled and checked while the services run, as in 0002; everything before the last transaction is safe to
repeat. Existing holds expire a day from now, and existing unpaid orders a week from now.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from migrations.batches import update_in_batches

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

MONEY = sa.Numeric(precision=18, scale=2)
TIME = sa.DateTime(timezone=True)

transfers = sa.table(
    "transfers",
    sa.column("id", sa.Uuid()),
    sa.column("order_id", sa.Uuid()),
    sa.column("amount", MONEY),
    sa.column("kind", sa.Text()),
    sa.column("state", sa.Text()),
    sa.column("posted_amount", MONEY),
    sa.column("expires_at", TIME),
)
orders = sa.table(
    "orders",
    sa.column("id", sa.Uuid()),
    sa.column("status", sa.Text()),
    sa.column("total", MONEY),
    sa.column("refunded", MONEY),
    sa.column("expires_at", TIME),
)

CHECKS = (
    ("accounts", "closed", "closed_at IS NULL OR held = 0 AND system_name IS NULL"),
    ("transfers", "kind", "kind IN ('top_up', 'transfer', 'order', 'refund', 'reversal', 'adjustment')"),
    ("transfers", "state", "state IN ('pending', 'posted', 'voided', 'expired')"),
    ("transfers", "posted", "(state = 'posted') = (posted_amount IS NOT NULL)"),
    ("transfers", "posted_amount", "posted_amount > 0 AND posted_amount <= amount"),
    ("transfers", "expires", "state NOT IN ('pending', 'expired') OR expires_at IS NOT NULL"),
    ("transfers", "reversal", "(kind = 'reversal') = (reverses IS NOT NULL)"),
    ("orders", "refunded", "refunded >= 0 AND refunded <= total"),
    ("orders", "expires", "(status = 'awaiting_payment') = (expires_at IS NOT NULL)"),
    ("order_items", "returned", "returned >= 0 AND returned <= quantity"),
)
CHECKS_BEFORE = (
    ("transfers", "kind", "kind IN ('top_up', 'transfer', 'order', 'refund')"),
    ("transfers", "state", "state IN ('pending', 'posted', 'voided')"),
)

# A transfer may only be changed to resolve it while it is pending; none of these columns may change.
RESOLVED = """
    OLD.state = 'pending' AND NEW.state <> 'pending'
    AND (OLD.id, OLD.amount, OLD.debit_account_id, OLD.credit_account_id, OLD.kind, OLD.order_id, OLD.reverses,
         OLD.note, OLD.created_at, OLD.expires_at)
    IS NOT DISTINCT FROM
        (NEW.id, NEW.amount, NEW.debit_account_id, NEW.credit_account_id, NEW.kind, NEW.order_id, NEW.reverses,
         NEW.note, NEW.created_at, NEW.expires_at)
"""
APPEND_ONLY = ("entries", "order_transitions", "refunds", "refund_lines")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("accounts", sa.Column("closed_at", TIME, nullable=True), if_not_exists=True)
    op.add_column("transfers", sa.Column("posted_amount", MONEY, nullable=True), if_not_exists=True)
    op.add_column("transfers", sa.Column("expires_at", TIME, nullable=True), if_not_exists=True)
    op.add_column("transfers", sa.Column("reverses", sa.Uuid(), nullable=True), if_not_exists=True)
    op.add_column(
        "orders", sa.Column("refunded", MONEY, server_default=sa.text("0"), nullable=False), if_not_exists=True
    )
    op.add_column("orders", sa.Column("expires_at", TIME, nullable=True), if_not_exists=True)
    op.add_column(
        "order_items",
        sa.Column("returned", sa.Integer(), server_default=sa.text("0"), nullable=False),
        if_not_exists=True,
    )
    op.alter_column("entries", "created_at", server_default=sa.text("clock_timestamp()"))

    fill()

    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, name, condition in CHECKS:
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table, if_exists=True)
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition, postgresql_not_valid=True)
    op.drop_constraint(op.f("fk_transfers_reverses_transfers"), "transfers", if_exists=True)
    op.create_foreign_key(
        op.f("fk_transfers_reverses_transfers"),
        "transfers",
        "transfers",
        ["reverses"],
        ["id"],
        postgresql_not_valid=True,
    )
    # Rows written while the others were filled; with the checks in place, there can be no more.
    fill()
    with op.get_context().autocommit_block():
        for table, name, _ in CHECKS:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_{name}")
        op.execute("ALTER TABLE transfers VALIDATE CONSTRAINT fk_transfers_reverses_transfers")
        index("ix_transfers_expires_at", "transfers", ["expires_at"], "state = 'pending'")
        index("uq_transfers_reverses", "transfers", ["reverses"], "reverses IS NOT NULL", unique=True)
        index("ix_orders_expires_at", "orders", ["expires_at"], "expires_at IS NOT NULL")
        index("ix_entries_account_id_created_at", "entries", ["account_id", "created_at"])

    op.execute("SET LOCAL lock_timeout = '5s'")
    create_tables()
    create_triggers()


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("accounts", "transfers", "entries", "order_transitions"):
        op.execute(f"DROP TRIGGER {table}_keep ON {table}")
    op.execute("DROP TRIGGER transfers_resolve_once ON transfers")
    for table in ("adjustments", "refund_lines", "refunds"):
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_change()")
    # The previous ledger has fewer kinds and states; entries and balances stay. A partial posting becomes a transfer of
    # that amount.
    op.execute(
        "UPDATE transfers SET kind = CASE WHEN kind IN ('reversal', 'adjustment') THEN 'transfer' ELSE kind END,"
        " state = CASE state WHEN 'expired' THEN 'voided' ELSE state END, amount = coalesce(posted_amount, amount),"
        " reverses = NULL"
        " WHERE kind IN ('reversal', 'adjustment') OR state = 'expired' OR posted_amount <> amount"
    )
    for table, name, _ in CHECKS:
        op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
    for table, name, condition in CHECKS_BEFORE:
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)
    op.drop_index("ix_entries_account_id_created_at", "entries")
    op.alter_column("entries", "created_at", server_default=sa.text("now()"))
    op.drop_column("order_items", "returned")
    op.drop_column("orders", "expires_at")
    op.drop_column("orders", "refunded")
    for column in ("reverses", "expires_at", "posted_amount"):
        op.drop_column("transfers", column)
    op.drop_column("accounts", "closed_at")


def fill() -> None:
    """Fill the new columns of existing rows."""
    update_in_batches(
        transfers,
        key=transfers.c.id,
        values={"posted_amount": transfers.c.amount},
        pending=(transfers.c.state == "posted") & transfers.c.posted_amount.is_(sa.null()),
    )
    update_in_batches(
        transfers,
        key=transfers.c.id,
        values={"expires_at": sa.text("now() + interval '1 day'")},
        pending=(transfers.c.state == "pending") & transfers.c.expires_at.is_(sa.null()),
    )
    update_in_batches(
        orders,
        key=orders.c.id,
        values={"expires_at": sa.text("now() + interval '7 days'")},
        pending=(orders.c.status == "awaiting_payment") & orders.c.expires_at.is_(sa.null()),
    )
    # So far, orders were refunded only as a whole, when they were cancelled.
    refunded = sa.select(transfers.c.order_id).where(transfers.c.kind == "refund")
    update_in_batches(
        orders,
        key=orders.c.id,
        values={"refunded": orders.c.total},
        pending=(orders.c.status == "cancelled") & (orders.c.refunded == 0) & orders.c.id.in_(refunded),
    )
    op.execute(
        "UPDATE order_items SET returned = quantity FROM orders"
        " WHERE orders.id = order_id AND refunded = total AND returned = 0"
    )


def index(name: str, table: str, columns: list[str], where: str | None = None, *, unique: bool = False) -> None:
    """Build an index without blocking writers. An invalid one that an interrupted run left behind is rebuilt."""
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    op.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        postgresql_where=None if where is None else sa.text(where),
        postgresql_concurrently=True,
    )


def create_tables() -> None:
    op.create_table(
        "adjustments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("amount", MONEY, nullable=False),
        sa.Column("reason", sa.String(200), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("requested_by", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.BigInteger(), nullable=True),
        sa.Column("transfer_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("decided_at", TIME, nullable=True),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_adjustments_amount")),
        sa.CheckConstraint("length(reason) > 0", name=op.f("ck_adjustments_reason")),
        sa.CheckConstraint("state IN ('pending', 'applied', 'rejected')", name=op.f("ck_adjustments_state")),
        sa.CheckConstraint("decided_by <> requested_by", name=op.f("ck_adjustments_second_operator")),
        sa.CheckConstraint(
            "CASE state WHEN 'pending' THEN decided_by IS NULL WHEN 'rejected' THEN decided_by IS NOT NULL"
            " ELSE needs_approval = (decided_by IS NOT NULL) END",
            name=op.f("ck_adjustments_decided_by"),
        ),
        sa.CheckConstraint("(state = 'pending') = (decided_at IS NULL)", name=op.f("ck_adjustments_decided")),
        sa.CheckConstraint("(state = 'applied') = (transfer_id IS NOT NULL)", name=op.f("ck_adjustments_applied")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_adjustments_account_id_accounts")),
        sa.ForeignKeyConstraint(["requested_by"], ["users.id"], name=op.f("fk_adjustments_requested_by_users")),
        sa.ForeignKeyConstraint(["decided_by"], ["users.id"], name=op.f("fk_adjustments_decided_by_users")),
        sa.ForeignKeyConstraint(["transfer_id"], ["transfers.id"], name=op.f("fk_adjustments_transfer_id_transfers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjustments")),
        sa.UniqueConstraint("transfer_id", name=op.f("uq_adjustments_transfer_id")),
    )
    op.create_index("ix_adjustments_account_id", "adjustments", ["account_id"])
    op.create_table(
        "refunds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("amount", MONEY, nullable=False),
        sa.Column("reason", sa.String(200), server_default="", nullable=False),
        sa.Column("requested_by", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("amount > 0", name=op.f("ck_refunds_amount")),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name=op.f("fk_refunds_order_id_orders")),
        sa.ForeignKeyConstraint(["requested_by"], ["users.id"], name=op.f("fk_refunds_requested_by_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refunds")),
    )
    op.create_index("ix_refunds_order_id", "refunds", ["order_id"])
    op.create_table(
        "refund_lines",
        sa.Column("refund_id", sa.Uuid(), nullable=False),
        sa.Column("line", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("order_id", sa.Uuid(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.CheckConstraint("quantity > 0", name=op.f("ck_refund_lines_quantity")),
        sa.ForeignKeyConstraint(["refund_id"], ["refunds.id"], name=op.f("fk_refund_lines_refund_id_refunds")),
        sa.ForeignKeyConstraint(
            ["order_id", "line"],
            ["order_items.order_id", "order_items.line"],
            name=op.f("fk_refund_lines_order_id_line_order_items"),
        ),
        sa.PrimaryKeyConstraint("refund_id", "line", name=op.f("pk_refund_lines")),
    )
    op.create_index("ix_refund_lines_order_id_line", "refund_lines", ["order_id", "line"])


def create_triggers() -> None:
    """Make the tables append-only for everyone: triggers apply to the tables' owner, too.

    To restore or load rows, set `session_replication_role`, which requires a superuser.
    """
    op.execute("""
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% on % is refused: what is written stays', TG_OP, TG_TABLE_NAME
                USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
        END
        $$
    """)
    # A statement trigger fires even if no row matches, and once for any number of rows.
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    op.execute(
        "CREATE TRIGGER transfers_keep BEFORE DELETE OR TRUNCATE ON transfers"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    # The condition is evaluated without calling the function, so a resolution costs next to nothing.
    op.execute(
        "CREATE TRIGGER transfers_resolve_once BEFORE UPDATE ON transfers"
        f" FOR EACH ROW WHEN (NOT ({RESOLVED})) EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER accounts_keep BEFORE UPDATE ON accounts FOR EACH ROW"
        " WHEN (OLD.closed_at IS NOT NULL AND (OLD.posted, OLD.held, OLD.version)"
        " IS DISTINCT FROM (NEW.posted, NEW.held, NEW.version)) EXECUTE FUNCTION refuse_change()"
    )
