"""log consumers: their leases, the cluster that their transaction ids belong to, and orders by day

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-27 16:30:00.000000+00:00
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# A dump of an earlier release may have been restored here. Then zero is stored, which is not the identifier of any
# cluster, so that the log is not used before it is adapted. A role that may not read the identifier stores none.
NOTE = """
    DO $$
    DECLARE
        newest xid8 := pg_snapshot_xmax(pg_current_snapshot());
        found bigint;
    BEGIN
        BEGIN
            SELECT system_identifier INTO found FROM pg_control_system();
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
        IF EXISTS (SELECT FROM events WHERE transaction_id > newest)
            OR EXISTS (
                SELECT FROM log_consumers WHERE greatest(pg_snapshot_xmax(seen), pg_snapshot_xmax(reading)) > newest
            )
        THEN
            found := 0;
        END IF;
        INSERT INTO log_origin (id, system_identifier) VALUES (1, found) ON CONFLICT DO NOTHING;
    END $$
"""

COLUMNS: Sequence[tuple[str, Any, sa.TextClause | None]] = (
    ("lease_token", sa.BigInteger(), sa.text("0")),
    ("lease_owner", sa.Uuid(), None),
    ("lease_until", sa.DateTime(timezone=True), None),
    ("failed_in_a_row", sa.Integer(), sa.text("0")),
    ("error", sa.Text(), None),
    ("retry_at", sa.DateTime(timezone=True), None),
    ("paused_at", sa.DateTime(timezone=True), None),
    ("paused_by", sa.String(200), None),
)
CHECKS = (
    ("ck_log_consumers_lease", "(lease_owner IS NULL) = (lease_until IS NULL)"),
    ("ck_log_consumers_paused", "(paused_at IS NULL) = (paused_by IS NULL)"),
    ("ck_log_consumers_failed_in_a_row", "failed_in_a_row >= 0"),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "log_origin",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("system_identifier", sa.BigInteger(), nullable=True),
        sa.Column("noted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_log_origin_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_origin")),
        if_not_exists=True,
    )
    op.execute(NOTE)
    for name, kind, default in COLUMNS:
        column = sa.Column(name, kind, server_default=default, nullable=default is None)
        op.add_column("log_consumers", column, if_not_exists=True)
    for name, condition in CHECKS:
        op.execute(f"ALTER TABLE log_consumers DROP CONSTRAINT IF EXISTS {name}")
        op.create_check_constraint(op.f(name), "log_consumers", condition)
    op.create_table(
        "order_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(18, 2), nullable=False),
        sa.CheckConstraint("orders > 0", name=op.f("ck_order_days_orders")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_order_days_amount")),
        sa.PrimaryKeyConstraint("day", "type", name=op.f("pk_order_days")),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    op.drop_table("order_days", schema=schema, if_exists=True)
    for name, _, _ in reversed(COLUMNS):
        # Its checks go with it.
        op.drop_column("log_consumers", name, schema=schema, if_exists=True)
    op.drop_table("log_origin", schema=schema, if_exists=True)
