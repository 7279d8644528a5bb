"""event log: positions of events, and how far each reader has come

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-25 07:00:41.870112+00:00

Events that are there already get their positions by id, which is by the time they were made, in batches. Rows that are
written meanwhile wait for theirs, the last of them under a lock that keeps writers out for one batch at most. Each
partition's indexes are built beside the writers. Interrupted anywhere, it can run again. Filling writes every old event
anew: a log that is large and may forget is better pruned first.
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

    # Writers wait while the last ones are filled: from then on each event brings its position along.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE")
    fill()
    op.alter_column("events", "position", server_default=sa.text(f"nextval('{SEQUENCE}')"))
    op.drop_constraint(op.f(PRESENT), "events", if_exists=True)
    op.create_check_constraint(op.f(PRESENT), "events", "position IS NOT NULL", postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE events VALIDATE CONSTRAINT {PRESENT}")

    # The validated check spares SET NOT NULL its scan.
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
    """Give the events without a position theirs, by id, until a batch is not full: writers may add some meanwhile."""
    first = UUID(int=0)
    if context.is_offline_mode():
        op.execute(FILL.format(limit="", full=0).replace(":after", f"'{first}'"))
        return
    batch = sa.text(FILL.format(limit=f"LIMIT {batches.BATCH_SIZE}", full=batches.BATCH_SIZE - 1))
    last: UUID | None = first
    while last is not None:
        last = op.get_bind().scalar(batch, {"after": last})


def create_index(name: str, column: str) -> None:
    """Index the log without keeping its writers out for longer than a moment.

    CREATE INDEX CONCURRENTLY does not take a partitioned table: its own index comes first, empty and not valid, then
    each partition's; with the last one attached it is valid. With `--sql` nobody can say which partitions there are:
    one plain CREATE INDEX then, which keeps writers out while it runs.
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
                # What an interrupted run left may not be valid.
                if attached is not None:
                    op.execute(f"DROP INDEX CONCURRENTLY {part}")
                op.execute(f"CREATE INDEX CONCURRENTLY {part} ON {partition} ({column})")
        op.execute("SET LOCAL lock_timeout = '5s'")
        op.execute(f"ALTER INDEX {name} ATTACH PARTITION {part}")


def is_attached(partition: str, part: str) -> bool | None:
    """Whether a partition's index belongs to the log's; None where the partition has none of that name."""
    # Asked of the partition, not by the index's name alone: that could be found in another schema of the search path.
    attached: bool | None = op.get_bind().scalar(
        sa.text(
            "SELECT relispartition FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
            " WHERE indrelid = CAST(:partition AS regclass) AND relname = :part"
        ),
        {"partition": partition, "part": part},
    )
    return attached
