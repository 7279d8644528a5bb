"""roles

Revision ID: 0026dwrv
Revises: 0025qzgj
Create Date: 2026-11-28 04:10:43.912862+00:00

The release before does not know the new roles. No one gets one until an admin gives it.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0026dwrv"
down_revision: str | Sequence[str] | None = "0025qzgj"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NOW = "role = ANY ('{customer,seller,support,operator,auditor,admin}'::text[])"
BEFORE = "role = ANY ('{customer,operator}'::text[])"


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    replace_check(NOW)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # The release before does not know the other roles. Fewer rights are the safe choice.
    op.execute("UPDATE users SET role = 'customer' WHERE role NOT IN ('customer', 'operator')")
    replace_check(BEFORE)


def replace_check(condition: str) -> None:
    """Lock the table only briefly; rows are validated without blocking writers. Can be run again if interrupted."""
    op.drop_constraint(op.f("ck_users_role"), "users", if_exists=True)
    op.create_check_constraint(op.f("ck_users_role"), "users", condition, postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE users VALIDATE CONSTRAINT ck_users_role")
