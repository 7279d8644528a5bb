"""role requests: roles that wait for the approval of a second admin

Revision ID: 0031wxqq
Revises: 0030fpkb
Create Date: 2026-11-28 05:02:13.536250+00:00

The release before lets an operator change roles at once, and stores no requests.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0031wxqq"
down_revision: str | Sequence[str] | None = "0030fpkb"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "role_requests",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("requested_by", sa.BigInteger(), nullable=False),
        sa.Column("decided_by", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(decided_at IS NULL) = (state = 'pending')", name=op.f("ck_role_requests_decided")),
        sa.CheckConstraint(
            "(decided_by IS NULL) = (state = ANY ('{pending,expired}'::text[]))",
            name=op.f("ck_role_requests_decided_by"),
        ),
        sa.CheckConstraint(
            "role = ANY ('{customer,seller,support,operator,auditor,admin}'::text[])",
            name=op.f("ck_role_requests_role"),
        ),
        sa.CheckConstraint(
            "state = ANY ('{pending,approved,rejected,expired}'::text[])", name=op.f("ck_role_requests_state")
        ),
        sa.CheckConstraint(
            "decided_by <> requested_by AND decided_by <> user_id", name=op.f("ck_role_requests_second_admin")
        ),
        sa.CheckConstraint("requested_by <> user_id", name=op.f("ck_role_requests_of_another")),
        sa.ForeignKeyConstraint(["decided_by"], ["users.id"], name=op.f("fk_role_requests_decided_by_users")),
        sa.ForeignKeyConstraint(["requested_by"], ["users.id"], name=op.f("fk_role_requests_requested_by_users")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_role_requests_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_requests")),
    )
    op.create_index(
        "uq_role_requests_pending",
        "role_requests",
        ["user_id"],
        unique=True,
        postgresql_where=sa.text("state = 'pending'"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("role_requests")
