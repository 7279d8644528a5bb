"""check erased users: validate what the step before has added

Revision ID: 0040zcbt
Revises: 0039qkfa
Create Date: 2026-11-28 08:31:00.000000+00:00
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0040zcbt"
down_revision: str | Sequence[str] | None = "0039qkfa"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # It blocks no writers, and can be run again if it is interrupted.
    op.execute("SET LOCAL lock_timeout = '5s'")
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE users VALIDATE CONSTRAINT ck_users_erased")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # As it was before: not checked for the rows that there were.
    op.execute("ALTER TABLE users DROP CONSTRAINT ck_users_erased")
    op.execute(
        "ALTER TABLE users ADD CONSTRAINT ck_users_erased CHECK (erased_at IS NULL OR deleted_at IS NOT NULL) NOT VALID"
    )
