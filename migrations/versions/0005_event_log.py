"""event log: positions of events, and the progress of each reader

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-25 07:00:41.870112+00:00

Existing events get their positions in batches, in order of id, which is the order of creation. Rows that are written
meanwhile get theirs later, the last of them under a lock that blocks writers for one batch at most. Each partition's
indexes are built without blocking writers. It can be run again after an interruption at any point. Filling rewrites
every old event: if the log is large and its retention allows, prune it first.
"""

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from alembic import context, op

from migrations import batches
from migrations.column_types import PgSnapshot

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

SEQUENCE = "events_position_seq"
PRESENT = "ck_events_position_present"
INDEXES = (("ix_events_position", "position"), ("ix_events_transaction_id", "transaction_id"))

FILL = """
    WITH pending AS (
        SELECT id FROM events WHERE position IS NULL AND id > :after ORDER BY id {limit}
    ), numbered AS (
        SELECT id, nextval('events_position_seq') AS position FROM (SELECT id FROM pending ORDER BY id) AS ordered
    ), filled AS (
        UPDATE events SET position = numbered.position FROM numbered WHERE events.id = numbered.id
    )
    SELECT id FROM pending ORDER BY id OFFSET {full} LIMIT 1
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(f"CREATE SEQUENCE IF NOT EXISTS {SEQUENCE}")
    op.add_column("events", sa.Column("position", sa.BigInteger(), nullable=True), if_not_exists=True)
    op.create_table(
        "log_consumers",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("seen", PgSnapshot(), nullable=False),
        sa.Column("reading", PgSnapshot(), nullable=True),
        sa.Column("position", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(reading IS NULL) = (until IS NULL)", name=op.f("ck_log_consumers_reading")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_log_consumers")),
        if_not_exists=True,
    )

    with op.get_context().autocommit_block():
        fill()

    # Writers wait while the last ones are filled; from then on, each new event gets its position by default.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE")
    fill()
    op.alter_column("events", "position", server_default=sa.text(f"nextval('{SEQUENCE}')"))
    op.drop_constraint(op.f(PRESENT), "events", if_exists=True)
    op.create_check_constraint(op.f(PRESENT), "events", "position IS NOT NULL", postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE events VALIDATE CONSTRAINT {PRESENT}")

    # Thanks to the validated check, SET NOT NULL needs no scan.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.alter_column("events", "position", nullable=False)
    op.drop_constraint(op.f(PRESENT), "events")
    for name, column in INDEXES:
        create_index(name, column)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("log_consumers")
    op.drop_index("ix_events_transaction_id", "events")
    op.drop_column("events", "position")
    op.execute(f"DROP SEQUENCE {SEQUENCE}")


def fill() -> None:
    """Number the events without a position, by id, until a batch is not full: writers may add some meanwhile."""
    first = UUID(int=0)
    if context.is_offline_mode():
        op.execute(FILL.format(limit="", full=0).replace(":after", f"'{first}'"))
        return
    batch = sa.text(FILL.format(limit=f"LIMIT {batches.BATCH_SIZE}", full=batches.BATCH_SIZE - 1))
    last: UUID | None = first
    while last is not None:
        last = op.get_bind().scalar(batch, {"after": last})


def create_index(name: str, column: str) -> None:
    """Index the log without blocking its writers for longer than a moment.

    CREATE INDEX CONCURRENTLY does not support partitioned tables: the parent's index is created first, invalid and
    empty, then each partition's; it becomes valid when the last one is attached. With `--sql` the partitions are
    unknown, so it prints one plain CREATE INDEX, which blocks writers while it runs.
    """
    if context.is_offline_mode():
        op.execute(f"CREATE INDEX {name} ON events ({column})")
        return
    op.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY events ({column})")
    partitions = op.get_bind().scalars(
        sa.text(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = 'events'::regclass ORDER BY 1"
        )
    )
    for partition in partitions.all():
        part = f"{partition}_{column}_idx"
        attached = is_attached(partition, part)
        if not attached:
            with op.get_context().autocommit_block():
                # One that an interrupted run left behind may be invalid.
                if attached is not None:
                    op.execute(f"DROP INDEX CONCURRENTLY {part}")
                op.execute(f"CREATE INDEX CONCURRENTLY {part} ON {partition} ({column})")
        op.execute("SET LOCAL lock_timeout = '5s'")
        op.execute(f"ALTER INDEX {name} ATTACH PARTITION {part}")


def is_attached(partition: str, part: str) -> bool | None:
    """Whether a partition's index is attached to the parent's; None if the partition has none of that name."""
    # Looked up by partition, not only by name, which might be found in another schema of the search path.
    attached: bool | None = op.get_bind().scalar(
        sa.text(
            "SELECT relispartition FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
            " WHERE indrelid = CAST(:partition AS regclass) AND relname = :part"
        ),
        {"partition": partition, "part": part},
    )
    return attached
