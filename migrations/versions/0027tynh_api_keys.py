"""API keys

Revision ID: 0027tynh
Revises: 0026dwrv
Create Date: 2026-11-28 04:28:38.945847+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0027tynh"
down_revision: str | Sequence[str] | None = "0026dwrv"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("replaces", sa.Uuid(), nullable=True),
        sa.Column("retires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "NOT scopes && '{keys:write,profile:read,profile:write,roles:write}'::text[]",
            name=op.f("ck_api_keys_for_programs"),
        ),
        sa.CheckConstraint("cardinality(scopes) > 0", name=op.f("ck_api_keys_scoped")),
        sa.CheckConstraint("expires_at > created_at", name=op.f("ck_api_keys_expires_later")),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_api_keys_sha256")),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_api_keys_named")),
        sa.ForeignKeyConstraint(
            ["replaces"], ["api_keys.id"], name=op.f("fk_api_keys_replaces_api_keys"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(
        "ix_api_keys_ended",
        "api_keys",
        [sa.literal_column("least(expires_at, retires_at, revoked_at)"), "id"],
        unique=False,
    )
    op.create_index("ix_api_keys_replaces", "api_keys", ["replaces"], unique=False)
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"], unique=False)
    op.create_index("uq_api_keys_hash", "api_keys", ["hash"], unique=True)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("uq_api_keys_hash", table_name="api_keys")
    op.drop_index("ix_api_keys_user_id", table_name="api_keys")
    op.drop_index("ix_api_keys_replaces", table_name="api_keys")
    op.drop_index("ix_api_keys_ended", table_name="api_keys")
    op.drop_table("api_keys")
