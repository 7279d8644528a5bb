"""catalogue life: categories have a version and can be deleted, products can be archived

Revision ID: 0015
Revises: 0014
Create Date: 2026-11-27 21:00:00.000000+00:00

The previous release does not know deleted categories and archived products. It shows the categories until it is
replaced; an archived product is off sale, which it knows.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("categories", sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("categories", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("products", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("products", "deleted_at")
    op.drop_column("categories", "deleted_at")
    op.drop_column("categories", "version")
