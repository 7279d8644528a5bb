"""attempts and versions: an outbox row says that an attempt has begun, and which version its event has

Revision ID: 0014
Revises: 0013
Create Date: 2026-11-27 16:40:08.114906+00:00

The version is null in rows written by processes of the previous release: it is in the log.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NOW = "waits = ANY ('{asked,retry,behind,begun,unknown}'::text[])"
BEFORE = "waits = ANY ('{asked,retry,behind,unknown}'::text[])"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("outbox", sa.Column("version", sa.SmallInteger(), nullable=True), if_not_exists=True)
    replace_check(NOW)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # The previous release would try such an event again, together with others.
    op.execute("UPDATE outbox SET waits = 'retry' WHERE waits = 'begun'")
    op.drop_column("outbox", "version", if_exists=True)
    replace_check(BEFORE)


def replace_check(condition: str) -> None:
    """Lock the table only briefly; rows are validated without blocking writers. Can be run again if interrupted."""
    op.drop_constraint(op.f("ck_outbox_waits"), "outbox", if_exists=True)
    op.create_check_constraint(op.f("ck_outbox_waits"), "outbox", condition, postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE outbox VALIDATE CONSTRAINT ck_outbox_waits")
