"""what operators ask of workers

Revision ID: 0046hfsr
Revises: 0045zqyk
Create Date: 2026-11-28 12:23:34.927333+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

# lint-ignore: constraint-missing-not-valid (the table has one row for each running worker)

revision: str = "0046hfsr"
down_revision: str | Sequence[str] | None = "0045zqyk"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    op.add_column("workers", sa.Column("asked", sa.String(32), nullable=True), schema=schema)
    op.add_column("workers", sa.Column("asked_by", sa.String(200), nullable=True), schema=schema)
    op.create_check_constraint(
        op.f("ck_workers_asked"), "workers", "asked = ANY ('{quiet,stop}'::text[])", schema=schema
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("workers", "asked_by")
    op.drop_column("workers", "asked")
