"""outbox errors: one error of each kind, to which operators' actions refer; an index of dead letters that block

Revision ID: 0013
Revises: 0012
Create Date: 2026-11-27 16:45:21.410332+00:00
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "outbox_errors",
        sa.Column("fingerprint", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_outbox_errors")),
        if_not_exists=True,
    )
    # Without blocking writers. It can run again after an interruption: an invalid index is rebuilt.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.drop_index(
            "ix_dead_letters_blocking", "dead_letters", schema=schema, if_exists=True, postgresql_concurrently=True
        )
        op.create_index(
            "ix_dead_letters_blocking",
            "dead_letters",
            ["aggregate", "position"],
            postgresql_where=sa.text("blocks"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    op.drop_table("outbox_errors", schema=schema, if_exists=True)
    with op.get_context().autocommit_block():
        op.drop_index(
            "ix_dead_letters_blocking", "dead_letters", schema=schema, if_exists=True, postgresql_concurrently=True
        )
