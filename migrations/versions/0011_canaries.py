"""canaries: rows that API processes write and read back, and a function with which the audit reads any JSON

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-27 04:00:12.310448+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "canaries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_canaries")),
    )
    # A cast that fails aborts the statement, and pg_input_is_valid needs PostgreSQL 16. PARALLEL UNSAFE, because a
    # parallel worker cannot set the savepoint that catches the error.
    op.execute("""
        CREATE FUNCTION json_or_null(body bytea) RETURNS jsonb LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE AS $$
        BEGIN
            RETURN convert_from(body, 'UTF8')::jsonb;
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            RETURN NULL;
        END
        $$
    """)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP FUNCTION json_or_null(bytea)")
    op.drop_table("canaries")
