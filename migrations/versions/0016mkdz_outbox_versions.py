"""outbox versions: fill in the version of events that were written before outbox rows had one

Revision ID: 0016mkdz
Revises: 0015
Create Date: 2026-11-27 21:23:36.000000+00:00

The second of three steps: 0014 added the column, and this release writes it everywhere. The next release can then
require it, and need not look for rows without one. Only data changes here. It can run again after an interruption, and
continues where it stopped. An event that is being processed is left out: its row is deleted, or filled by the next run.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from migrations.batches import update_in_batches

revision: str = "0016mkdz"
down_revision: str | Sequence[str] | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

outbox = sa.table(
    "outbox",
    sa.column("position", sa.BigInteger()),
    sa.column("event_id", sa.Uuid()),
    sa.column("version", sa.Integer()),
)
events = sa.table("events", sa.column("id", sa.Uuid()), sa.column("version", sa.Integer()))


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    logged = sa.select(events.c.version).where(events.c.id == outbox.c.event_id).scalar_subquery()
    update_in_batches(
        outbox,
        key=outbox.c.position,
        values={"version": logged},
        pending=outbox.c.version.is_(sa.null()),
        skip_locked=True,
    )


def downgrade() -> None:
    # The rows stay as they are: the release before reads the version, too.
    op.execute("SET LOCAL lock_timeout = '5s'")
