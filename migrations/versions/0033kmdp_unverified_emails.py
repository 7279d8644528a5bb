"""addresses that wait to be confirmed, and mails that go to an address

Revision ID: 0033kmdp
Revises: 0032qtxt
Create Date: 2026-11-28 05:01:03.058946+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0033kmdp"
down_revision: str | Sequence[str] | None = "0032qtxt"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# lint-ignore: ban-drop-not-null (the release before joins users, so it does not see rows without one)
KINDS = "password_reset,verification,email_changed"
KIND_BEFORE = "password_reset"


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "unverified_emails",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("full_name", sa.String(length=200), nullable=True),
        sa.Column("hashed_password", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "CASE WHEN user_id IS NULL THEN num_nonnulls(full_name, hashed_password) = 2"
            " ELSE num_nonnulls(full_name, hashed_password) = 0 END",
            name=op.f("ck_unverified_emails_whose"),
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_unverified_emails_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unverified_emails")),
    )
    op.create_index("ix_unverified_emails_email", "unverified_emails", ["email"], unique=False)
    op.create_index("ix_unverified_emails_expires_at_id", "unverified_emails", ["expires_at", "id"], unique=False)
    op.create_index("ix_unverified_emails_user_id", "unverified_emails", ["user_id"], unique=False)
    # Workers of the release before send all mails as password resets. They find only those that have a user.
    op.alter_column("mails", "user_id", existing_type=sa.BIGINT(), nullable=True)
    op.add_column("mails", sa.Column("email", sa.String(length=254), nullable=True))
    op.alter_column("one_time_tokens", "user_id", existing_type=sa.BIGINT(), nullable=True)
    for table in ("mails", "one_time_tokens"):
        op.add_column(table, sa.Column("unverified_id", sa.BigInteger(), nullable=True))
        op.create_foreign_key(
            op.f(f"fk_{table}_unverified_id_unverified_emails"),
            table,
            "unverified_emails",
            ["unverified_id"],
            ["id"],
            ondelete="CASCADE",
            postgresql_not_valid=True,
        )
    check("mails", "addressed", "num_nonnulls(user_id, email) = 1")
    check("one_time_tokens", "about", "num_nonnulls(user_id, unverified_id) = 1")
    replace_kinds(KINDS)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM mails WHERE kind <> 'password_reset'")
    op.execute("DELETE FROM one_time_tokens WHERE purpose <> 'password_reset'")
    replace_kinds(KIND_BEFORE, not_valid=False)
    op.drop_constraint(op.f("ck_mails_addressed"), "mails")
    op.drop_constraint(op.f("ck_one_time_tokens_about"), "one_time_tokens")
    for table in ("mails", "one_time_tokens"):
        op.drop_column(table, "unverified_id")
        op.alter_column(table, "user_id", existing_type=sa.BIGINT(), nullable=False)
    op.drop_column("mails", "email")
    op.drop_table("unverified_emails")


def check(table: str, name: str, condition: str, *, not_valid: bool = True) -> None:
    """Hold for new rows. The next step checks the others, without blocking writers."""
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition, postgresql_not_valid=not_valid)


def replace_kinds(kinds: str, *, not_valid: bool = True) -> None:
    for table, column in (("mails", "kind"), ("one_time_tokens", "purpose")):
        op.drop_constraint(op.f(f"ck_{table}_{column}"), table)
        check(table, column, f"{column} = ANY ('{{{kinds}}}'::text[])", not_valid=not_valid)
