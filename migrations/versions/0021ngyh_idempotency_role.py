"""idempotency role: the role of the caller for whom a stored reply was made

Revision ID: 0021ngyh
Revises: 0020hhch
Create Date: 2026-11-28 01:04:33.155462+00:00

The previous release stores none: such replies are answered as before.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0021ngyh"
down_revision: str | None = "0020hhch"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("idempotency_keys", sa.Column("role", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("idempotency_keys", "role")
