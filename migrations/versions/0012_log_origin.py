"""log origin: the cluster to which the transaction ids of the event log belong

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-27 16:30:00.000000+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# A dump of an earlier release may have been restored here: zero is the identifier of no cluster, so that the log is
# not used before it is adapted. A role that may not read the identifier stores none.
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


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("log_origin", schema=op.get_context().version_table_schema, if_exists=True)
