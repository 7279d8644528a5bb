"""idempotency scopes: the scopes of the API key for which a stored reply was made

Revision ID: 0035hcvw
Revises: 0034pkvn
Create Date: 2026-11-28 05:40:00.000000+00:00

A process of the release before stores none: it knows no keys, so such replies were made for people.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0035hcvw"
down_revision: str | Sequence[str] | None = "0034pkvn"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("idempotency_keys", sa.Column("scopes", sa.Text(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("idempotency_keys", "scopes")
