"""append only: what an event or an adjustment said stays

Revision ID: 0020hhch
Revises: 0019tqjx
Create Date: 2026-11-28 00:42:42.761672+00:00

The previous release changes events in two ways, which stay possible: events without a month of their own move to it
from the default partition, and `waybill outbox rebase` gives events other transaction ids.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0020hhch"
down_revision: str | None = "0019tqjx"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


# A row trigger of the log is one of each partition, also of those that are attached later, and leaves with a partition.
RENUMBERED = """
    (OLD.id, OLD.type, OLD.version, OLD.aggregate, OLD.payload, OLD.occurred_at, OLD.request_id, OLD.traceparent,
     OLD.position)
    IS NOT DISTINCT FROM
        (NEW.id, NEW.type, NEW.version, NEW.aggregate, NEW.payload, NEW.occurred_at, NEW.request_id, NEW.traceparent,
         NEW.position)
"""
DECIDED = """
    OLD.state = 'pending' AND NEW.state <> 'pending'
    AND (OLD.id, OLD.account_id, OLD.amount, OLD.reason, OLD.needs_approval, OLD.requested_by, OLD.created_at)
    IS NOT DISTINCT FROM
        (NEW.id, NEW.account_id, NEW.amount, NEW.reason, NEW.needs_approval, NEW.requested_by, NEW.created_at)
"""

# An event may leave the default partition for its month, whose table this transaction has made and not yet attached.
# The first 48 bits of an id are Unix milliseconds.
FUNCTION = """
    CREATE OR REPLACE FUNCTION keep_event() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        milliseconds bigint := ('x' || left(replace(OLD.id::text, '-', ''), 12))::bit(48)::bigint;
        month regclass := to_regclass(format('%I.%I', TG_TABLE_SCHEMA,
            to_char(to_timestamp(milliseconds / 1000) AT TIME ZONE 'UTC', '"events_"YYYY_MM')));
    BEGIN
        IF TG_TABLE_NAME = 'events_default' AND EXISTS (
            SELECT FROM pg_class WHERE oid = month AND NOT relispartition AND xmin = pg_current_xact_id()::xid
        ) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION '% on % is refused: what is written stays', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END
    $$
"""
REFUSE = "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
TRIGGERS = (
    (
        "events_keep",
        "events",
        f"BEFORE UPDATE ON events FOR EACH ROW WHEN (NOT ({RENUMBERED})) EXECUTE FUNCTION refuse_change()",
    ),
    ("events_stay", "events", "BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION keep_event()"),
    ("events_all_stay", "events", f"BEFORE TRUNCATE ON events {REFUSE}"),
    (
        "adjustments_decide_once",
        "adjustments",
        f"BEFORE UPDATE ON adjustments FOR EACH ROW WHEN (NOT ({DECIDED})) EXECUTE FUNCTION refuse_change()",
    ),
    (
        "adjustments_keep",
        "adjustments",
        f"BEFORE DELETE OR TRUNCATE ON adjustments {REFUSE}",
    ),
)

# A trigger of statements is not one of each partition.
OF_PARTITIONS = """
    DO $$
    DECLARE
        partition regclass;
    BEGIN
        FOR partition IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass ORDER BY 1 LOOP
            EXECUTE format('{statement}', partition);
        END LOOP;
    END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(FUNCTION)
    for name, _, definition in TRIGGERS:
        op.execute(f"CREATE OR REPLACE TRIGGER {name} {definition}")
    statement = f"CREATE OR REPLACE TRIGGER events_all_stay BEFORE TRUNCATE ON %s {REFUSE}"
    op.execute(OF_PARTITIONS.format(statement=statement))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(OF_PARTITIONS.format(statement="DROP TRIGGER IF EXISTS events_all_stay ON %s"))
    for name, table, _ in TRIGGERS:
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
    op.execute("DROP FUNCTION IF EXISTS keep_event()")
