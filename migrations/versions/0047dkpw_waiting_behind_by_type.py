"""waiting behind by type: an index to count what waits behind other events

Revision ID: 0047dkpw
Revises: 0046hfsr
Create Date: 2026-11-28 13:25:04.517230+00:00

Only rows that wait until another event is out of the way have an entry.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0047dkpw"
down_revision: str | Sequence[str] | None = "0046hfsr"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


INDEX = "ix_outbox_behind"


def upgrade() -> None:
    # It blocks no writers, and can be run again if it is interrupted.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        # An interrupted build leaves an invalid index.
        op.drop_index(INDEX, "outbox", schema=schema, if_exists=True, postgresql_concurrently=True)
        op.create_index(
            INDEX,
            "outbox",
            ["type", "position"],
            postgresql_where=sa.text("available_at = 'infinity'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(INDEX, "outbox", schema=schema, if_exists=True, postgresql_concurrently=True)
