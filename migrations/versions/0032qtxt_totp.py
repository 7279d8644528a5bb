"""second factors: secrets of authenticator apps, and recovery codes

Revision ID: 0032qtxt
Revises: 0031wxqq
Create Date: 2026-11-28 04:27:30.330025+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0032qtxt"
down_revision: str | Sequence[str] | None = "0031wxqq"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

NOW = "signed_out,reused,password_changed,factor_changed,removed,crowded_out"
BEFORE = "signed_out,reused,password_changed,removed,crowded_out"


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    replace_check(NOW)
    op.create_table(
        "recovery_codes",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_recovery_codes_sha256")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_recovery_codes_user_id_users")),
        sa.PrimaryKeyConstraint("user_id", "hash", name=op.f("pk_recovery_codes")),
    )
    op.create_table(
        "totp_secrets",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("last_step >= 0", name=op.f("ck_totp_secrets_step")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_totp_secrets_user_id_users")),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_totp_secrets")),
    )
    op.create_index("ix_totp_secrets_key_id_user_id", "totp_secrets", ["key_id", "user_id"], unique=False)
    op.add_column("users", sa.Column("totp_since", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("UPDATE sessions SET end_reason = 'removed' WHERE end_reason = 'factor_changed'")
    replace_check(BEFORE)
    op.drop_column("users", "totp_since")
    op.drop_index("ix_totp_secrets_key_id_user_id", table_name="totp_secrets")
    op.drop_table("totp_secrets")
    op.drop_table("recovery_codes")


def replace_check(reasons: str) -> None:
    """Lock the table only briefly; rows are validated without blocking writers. Can be run again if interrupted."""
    op.drop_constraint(op.f("ck_sessions_end_reason"), "sessions", if_exists=True)
    op.create_check_constraint(
        op.f("ck_sessions_end_reason"),
        "sessions",
        f"end_reason IS NULL OR end_reason = ANY ('{{{reasons}}}'::text[])",
        postgresql_not_valid=True,
    )
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE sessions VALIDATE CONSTRAINT ck_sessions_end_reason")
    op.execute("SET LOCAL lock_timeout = '5s'")
