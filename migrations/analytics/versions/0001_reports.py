"""reports: what happened to orders by day, how long they waited, and how far the event log was read

Revision ID: 0001
Revises:
Create Date: 2026-11-27 21:10:00.000000+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

WITHIN = ("within_1s", "within_10s", "within_1m", "within_10m", "within_1h")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "report_days",
        sa.Column("seller_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("product_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(100), nullable=False),
        sa.Column("orders", sa.BigInteger(), nullable=False),
        sa.Column("pieces", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(18, 2), nullable=False),
        sa.CheckConstraint("seller_id >= 0 AND product_id >= 0", name=op.f("ck_report_days_ids")),
        sa.CheckConstraint("orders > 0", name=op.f("ck_report_days_orders")),
        sa.CheckConstraint("pieces >= 0", name=op.f("ck_report_days_pieces")),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_report_days_amount")),
        sa.PrimaryKeyConstraint("seller_id", "day", "product_id", "type", name=op.f("pk_report_days")),
    )
    op.create_index(op.f("ix_report_days_day"), "report_days", ["day"])
    op.create_table(
        "report_waits",
        sa.Column("seller_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("orders", "milliseconds", "slowest", *WITHIN)),
        sa.CheckConstraint("seller_id >= 0", name=op.f("ck_report_waits_ids")),
        sa.CheckConstraint("orders > 0", name=op.f("ck_report_waits_orders")),
        sa.CheckConstraint("milliseconds >= 0 AND slowest >= 0", name=op.f("ck_report_waits_milliseconds")),
        sa.CheckConstraint(f"least({', '.join(WITHIN)}) >= 0", name=op.f("ck_report_waits_within")),
        sa.CheckConstraint(f"greatest({', '.join(WITHIN)}) <= orders", name=op.f("ck_report_waits_most")),
        sa.PrimaryKeyConstraint("seller_id", "day", name=op.f("pk_report_waits")),
    )
    op.create_index(op.f("ix_report_waits_day"), "report_waits", ["day"])
    op.create_table(
        "log_places",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("series", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("read_id", sa.Uuid(), nullable=True),
        sa.Column("seen", sa.Text(), nullable=False),
        sa.Column("reading", sa.Text(), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("newest", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("number >= 0", name=op.f("ck_log_places_number")),
        sa.CheckConstraint("(reading IS NULL) = (until IS NULL)", name=op.f("ck_log_places_reading")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_log_places")),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("log_places", "report_waits", "report_days"):
        op.drop_table(table, schema=op.get_context().version_table_schema)
