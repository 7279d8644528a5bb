"""reasons of dead letters: why each one failed

Revision ID: 0042prwm
Revises: 0041ftxc
Create Date: 2026-11-28 11:57:36.320635+00:00

The previous release leaves the column null.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0042prwm"
down_revision: str | Sequence[str] | None = "0041ftxc"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

REASONS = (
    "handler_error",
    "time_limit",
    "unreadable",
    "unknown_version",
    "worker_died",
    "bisected",
    "locked",
    "buried",
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("dead_letters", sa.Column("reason", sa.String(32), nullable=True))
    # The column is new, so there is no row to check.
    op.execute(
        "ALTER TABLE dead_letters ADD CONSTRAINT ck_dead_letters_reason"
        f" CHECK (reason = ANY ('{{{','.join(REASONS)}}}'::text[])) NOT VALID"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("dead_letters", "reason")
