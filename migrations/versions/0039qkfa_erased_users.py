"""erased users: when what identifies a user was erased

Revision ID: 0039qkfa
Revises: 0038vnbx
Create Date: 2026-11-28 08:30:00.000000+00:00

The release before does not know the column. If it restored an erased user, the CHECK would refuse that.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0039qkfa"
down_revision: str | Sequence[str] | None = "0038vnbx"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("users", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    # The column is new, so there is no row to check.
    op.execute(
        "ALTER TABLE users ADD CONSTRAINT ck_users_erased CHECK (erased_at IS NULL OR deleted_at IS NOT NULL) NOT VALID"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("users", "erased_at")
