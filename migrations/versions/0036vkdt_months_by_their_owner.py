"""months by their owner: functions that add and drop months of the event log with the rights of its owner

Revision ID: 0036vkdt
Revises: 0035hcvw
Create Date: 2026-11-28 08:10:00.000000+00:00

The API and the workers may run as a role that cannot create, drop or lock tables. A month is a table. A process of the
release before does not call the functions, and needs the owner's role.
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0036vkdt"
down_revision: str | Sequence[str] | None = "0035hcvw"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

LOCK_LOG = """
    CREATE OR REPLACE FUNCTION lock_event_log() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE;
    END
    $$
"""

# A UUIDv7 begins with 48 bits of Unix milliseconds. Events of the month that are in the default partition move; so that
# no query that was planned without the new partition runs after that, the whole log is locked first.
ADD_MONTH = """
    CREATE OR REPLACE FUNCTION add_event_month(year integer, month integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE
        name text := format('events_%s_%s', lpad(year::text, 4, '0'), lpad(month::text, 2, '0'));
        first timestamptz := make_timestamptz(year, month, 1, 0, 0, 0, 'UTC');
        following timestamptz := make_timestamptz(year + month / 12, month % 12 + 1, 1, 0, 0, 0, 'UTC');
        least uuid := (lpad(to_hex((extract(epoch FROM first) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
        above uuid := (lpad(to_hex((extract(epoch FROM following) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
        strays boolean := EXISTS (SELECT FROM events_default WHERE id >= least AND id < above);
        reader oid;
    BEGIN
        IF strays THEN
            LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE;
        END IF;
        EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING ALL)', name);
        EXECUTE format(
            'CREATE TRIGGER events_all_stay BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
            name
        );
        FOR reader IN
            SELECT DISTINCT given.grantee FROM pg_class, aclexplode(pg_class.relacl) AS given
            WHERE pg_class.oid = 'events'::regclass AND given.privilege_type = 'SELECT'
            AND given.grantee NOT IN (0, pg_class.relowner)
        LOOP
            EXECUTE format('GRANT SELECT ON %I TO %s', name, reader::regrole);
        END LOOP;
        IF strays THEN
            EXECUTE format(
                'WITH moved AS (DELETE FROM events_default WHERE id >= %L AND id < %L RETURNING *)'
                ' INSERT INTO %I SELECT * FROM moved', least, above, name
            );
        END IF;
        EXECUTE format('ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, least, above);
    END
    $$
"""

LOCK_MONTH = """
    CREATE OR REPLACE FUNCTION lock_event_month(name text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
            WHERE inhparent = 'events'::regclass AND relname = name
        ) THEN
            RAISE EXCEPTION '% is not a partition of the event log', name USING ERRCODE = 'undefined_table';
        END IF;
        EXECUTE format('LOCK TABLE ONLY %I IN SHARE ROW EXCLUSIVE MODE', name);
    END
    $$
"""

# Its caller has checked all this. It is checked again so that the role that may call it can drop nothing else.
DROP_MONTH = """
    CREATE OR REPLACE FUNCTION drop_event_month(name text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE
        first timestamptz;
        following timestamptz;
        least uuid;
        above uuid;
        needed boolean;
    BEGIN
        PERFORM lock_event_month(name);
        IF name !~ '^events_[0-9]{4}_[0-9]{2}$' THEN
            RAISE EXCEPTION '% is not a month of the event log', name USING ERRCODE = 'restrict_violation';
        END IF;
        first := make_timestamptz(substr(name, 8, 4)::integer, substr(name, 13, 2)::integer, 1, 0, 0, 0, 'UTC');
        following := (first AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
        IF following > clock_timestamp() THEN
            RAISE EXCEPTION '% has not ended', name USING ERRCODE = 'restrict_violation';
        END IF;
        least := (lpad(to_hex((extract(epoch FROM first) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
        above := (lpad(to_hex((extract(epoch FROM following) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;
        EXECUTE format('
            SELECT EXISTS (SELECT FROM outbox WHERE event_id >= $1 AND event_id < $2)
            OR EXISTS (SELECT FROM dead_letters WHERE event_id >= $1 AND event_id < $2)
            OR EXISTS (
                SELECT FROM log_consumers WHERE EXISTS (
                    SELECT FROM %I AS unread
                    WHERE unread.transaction_id >= pg_snapshot_xmin(seen)
                    AND NOT pg_visible_in_snapshot(unread.transaction_id, seen)
                    AND (
                        reading IS NULL OR unread.position > log_consumers.position
                        OR NOT pg_visible_in_snapshot(unread.transaction_id, reading)
                    )
                )
            )', name) INTO needed USING least, above;
        IF needed THEN
            RAISE EXCEPTION 'something still needs %', name USING ERRCODE = 'restrict_violation';
        END IF;
        EXECUTE format('DROP TABLE %I', name);
    END
    $$
"""

FUNCTIONS = {
    "lock_event_log()": LOCK_LOG,
    "add_event_month(integer, integer)": ADD_MONTH,
    "lock_event_month(text)": LOCK_MONTH,
    "drop_event_month(text)": DROP_MONTH,
}

# With a temporary table, a caller could otherwise put another `events` in front of the owner's.
OWN_NAMES_ONLY = """
    DO $$ BEGIN
        EXECUTE format('ALTER FUNCTION {function} SET search_path = %I, pg_temp', current_schema());
    END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for function, statement in FUNCTIONS.items():
        op.execute(statement)
        op.execute(OWN_NAMES_ONLY.format(function=function))
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for function in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION IF EXISTS {function}")
