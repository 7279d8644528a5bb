"""actors: who did it, in events, transfers, transitions of orders and movements of stock

Revision ID: 0028bczj
Revises: 0027tynh
Create Date: 2026-11-28 04:22:53.550394+00:00

The previous release leaves the columns null. What it may change of events and transfers stays as it was; the actor
cannot be changed.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0028bczj"
down_revision: str | Sequence[str] | None = "0027tynh"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TABLES = ("events", "order_transitions", "stock_movements", "transfers")

OF_EVENTS = (
    "id",
    "type",
    "version",
    "aggregate",
    "payload",
    "occurred_at",
    "request_id",
    "traceparent",
    "position",
)
OF_TRANSFERS = (
    "id",
    "amount",
    "debit_account_id",
    "credit_account_id",
    "kind",
    "order_id",
    "reverses",
    "note",
    "created_at",
    "expires_at",
)
"""Columns that never change."""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in TABLES:
        op.add_column(table, sa.Column("actor", sa.String(120), nullable=True))
    keep(of_events=(*OF_EVENTS, "actor"), of_transfers=(*OF_TRANSFERS, "actor"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    keep(of_events=OF_EVENTS, of_transfers=OF_TRANSFERS)
    for table in reversed(TABLES):
        op.drop_column(table, "actor")


def keep(of_events: Sequence[str], of_transfers: Sequence[str]) -> None:
    """Let triggers refuse changes of these columns."""
    old, new = (", ".join(f"{row}.{column}" for column in of_events) for row in ("OLD", "NEW"))
    op.execute(
        "CREATE OR REPLACE TRIGGER events_keep BEFORE UPDATE ON events FOR EACH ROW"
        f" WHEN (NOT (({old}) IS NOT DISTINCT FROM ({new}))) EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        f"CREATE OR REPLACE TRIGGER transfers_keep BEFORE UPDATE OF {', '.join(of_transfers)} OR DELETE OR TRUNCATE"
        " ON transfers FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
