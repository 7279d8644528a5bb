"""A database in the middle of an incident, made by set-based SQL on top of that of `benchmarks/many.py`.

Each order has its three events in the log, among other events; a hundredth of the log was written within one minute,
around the order `BURST`. A tenth of the log's events wait, for each reason there is, and as many are dead, of 300 kinds
of which the first has a third.
"""

from dataclasses import dataclass

import psycopg

from benchmarks import many
from services.fields import sha256_of

TOKEN = "wbr_benchmark"
"""The refresh token in the cookie of the operator's session."""

KINDS = 300
WORKERS = 8
FIRST_LETTER = 1_000_000_000
"""The position of the first dead letter; below are the events that wait."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many orders there are, and events in the log, that wait, and that are dead."""

    orders: int
    events: int
    waiting: int
    dead: int
    acts: int
    """Entries of the audit log, and as many of what operators did to events."""

    @classmethod
    def of(cls, orders: int) -> "Scale":
        return cls(orders, orders * 10, orders, orders, orders)

    @property
    def size(self) -> many.Size:
        """The other rows."""
        return many.Size(
            users=max(2000, self.orders // 10),
            products=max(2000, self.orders // 10),
            orders=self.orders,
            others=max(500, self.orders // 50),
        )

    @property
    def burst(self) -> int:
        """The number of the order that was placed in the busy minute."""
        return self.orders * 3 // 4 + 1


# The log of a year, in months.
_MONTHS = """
    SELECT add_event_month(CAST(extract(year FROM month) AS integer), CAST(extract(month FROM month) AS integer))
    FROM generate_series(
        date_trunc('month', now() AT TIME ZONE 'UTC') - interval '13 months',
        date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', interval '1 month'
    ) AS month
    WHERE to_regclass(format('events_%s', to_char(month, 'YYYY_MM'))) IS NULL
"""

_PREPARE = """
    CREATE FUNCTION pg_temp.id_of(at timestamptz, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
        SELECT CAST(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5('e' || n), 1, 3)
            || '8' || substr(md5('e' || n), 4, 15) AS uuid)
    $$;
    SET session_replication_role = replica;
    SET synchronous_commit = off;
    SET jit = off;
    SET maintenance_work_mem = '512MB';
    SET work_mem = '256MB';
    -- Those of `many`: they are too few, and in no month.
    TRUNCATE events, outbox, dead_letters, idempotency_keys;
    CREATE TEMP TABLE numbered AS SELECT row_number() OVER (ORDER BY id) AS n, id, created_at AS at, buyer_id, status
    FROM orders;
    CREATE UNIQUE INDEX ON numbered (n);
    ANALYZE numbered
"""

# In steps, so that the log has many transactions. Three of `each` events are an order's.
_LOG = """
    INSERT INTO events (id, type, version, aggregate, payload, occurred_at, request_id, actor)
    SELECT pg_temp.id_of(at, k), type, 1, aggregate, jsonb_build_object('n', k, 'note', 'as usual'), at,
        CASE WHEN type = 'order.placed' THEN 'request-' || k END, CASE WHEN type = 'order.placed' THEN 'job:load' END
    FROM (
        SELECT k, CASE k % {each} WHEN 0 THEN 'order.placed' WHEN 1 THEN 'order.confirmed' WHEN 2 THEN 'order.fulfilled'
                ELSE 'thing.counted' END AS type,
            CASE WHEN k % {each} < 3 THEN 'order/' || numbered.id ELSE 'thing/' || k % 100000 END AS aggregate,
            numbered.at + (k % {each}) * (interval '1 year' / {orders} / {each}) AS at
        FROM generate_series({first}, {last}) AS k
        JOIN numbered ON numbered.n = k / {each}
    ) AS event ORDER BY at, k
"""

_BURST = """
    INSERT INTO events (id, type, version, aggregate, payload, occurred_at)
    SELECT pg_temp.id_of(time.at, -k), 'order.' || (ARRAY['placed', 'confirmed', 'fulfilled'])[1 + k % 3], 1,
        'order/' || gen_random_uuid(), '{{}}', time.at
    FROM generate_series(1, {burst}) AS k JOIN numbered ON numbered.n = {busy},
        LATERAL (SELECT numbered.at + (k - {burst} / 2) * (interval '1 minute' / {burst}) AS at) AS time
"""

_TRACEBACK = r"""
    'Traceback (most recent call last):' || repeat(E'\n  File "/app/services/orders/service.py", line 88, in run', 8)
"""

_QUEUED = """
    CREATE TEMP TABLE queued AS
    SELECT n, is_dead, pg_temp.id_of(at, 100000000000 + n) AS id, at,
        CASE WHEN is_dead THEN CASE WHEN n % 50 = 0 THEN 'order.fulfilled' ELSE 'order.placed' END
            WHEN n % 10 = 9 THEN 'reminder' WHEN n % 10 = 8 THEN 'order.returned' WHEN n % 10 = 7 THEN 'order.cancelled'
            ELSE 'order.placed' END AS type,
        CASE WHEN is_dead THEN 'dead/' ELSE 'thing/' END || n / 2 AS aggregate,
        CASE WHEN is_dead THEN 'dead' WHEN n % 10 = 9 THEN 'asked' WHEN n % 10 = 8 THEN 'unknown'
            WHEN n % 10 = 7 THEN 'paused' WHEN n % 1000 = 6 THEN 'begun' WHEN n % 10 = 6 THEN 'behind'
            WHEN n % 10 IN (4, 5) THEN 'retry' ELSE 'ready' END AS waits
    FROM generate_series(1, {waiting} + {dead}) AS n, LATERAL (SELECT n > {waiting} AS is_dead,
        now() - interval '1 day' + n * (interval '1 day' / ({waiting} + {dead})) AS at) AS state;
    INSERT INTO events (id, type, version, aggregate, payload, occurred_at)
    SELECT id, type, 1, aggregate, jsonb_build_object('n', n), at FROM queued ORDER BY n;
    INSERT INTO outbox (position, event_id, aggregate, type, version, available_at, waits, attempts, last_error,
        failures)
    OVERRIDING SYSTEM VALUE
    SELECT n, id, aggregate, type, 1,
        CASE WHEN waits IN ('ready', 'paused') THEN NULL WHEN waits = 'behind' AND n % 20 < 10 THEN 'infinity'
            WHEN waits = 'retry' AND n % 4 = 0 THEN now() - interval '1 minute' * (n % 60)
            ELSE now() + interval '1 day' + n * interval '10 ms' END,
        CASE WHEN waits NOT IN ('ready', 'paused') THEN waits END, CASE WHEN waits = 'retry' THEN 1 + n % 4 ELSE 0 END,
        CASE WHEN waits = 'retry' THEN {traceback} || E'\\nTimeoutError: the shop did not answer ' || n END,
        CASE WHEN waits = 'retry' THEN jsonb_build_array(jsonb_build_object('at', at, 'attempt', 1, 'reason',
            'handler_error', 'error', 'TimeoutError: the shop did not answer', 'fingerprint', 'kind' || n % 30)) END
    FROM queued WHERE NOT is_dead ORDER BY n;
    SELECT setval(pg_get_serial_sequence('outbox', 'position'), 2000000000);
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures, reason,
        died_at)
    SELECT {first_letter} + n, id, aggregate, type, 5, {traceback} || E'\\nValueError: no ' || n,
        'kind ' || CASE WHEN n % 3 = 0 THEN 0 ELSE n % {kinds} END,
        (SELECT jsonb_agg(jsonb_build_object('at', at, 'attempt', k, 'reason', 'handler_error', 'error',
            'ValueError: no', 'fingerprint', 'kind')) FROM generate_series(1, 2) AS k),
        (ARRAY['handler_error', 'time_limit', 'unreadable', 'worker_died'])[1 + n % {kinds} % 4],
        now() - ({waiting} + {dead} - n) * (interval '3 days' / {dead})
    FROM queued WHERE is_dead ORDER BY n;
    INSERT INTO outbox_types (type, paused, changed_by) VALUES ('order.cancelled', true, 'user/1');
    INSERT INTO outbox_actions (at, actor, action, type, event_id, aggregate, reason, detail)
    SELECT at, 'user/' || n % 50, 'replay', type, id, aggregate, 'again', jsonb_build_object('message', 'ValueError')
    FROM queued ORDER BY n LIMIT {acts}
"""

_ORDERS = """
    INSERT INTO idempotency_keys (caller_id, method, path, key, fingerprint, status, headers, body, created_at)
    SELECT buyer_id, 'POST', '/v1/orders', id::text, '', 201, jsonb_build_object('location', '/v1/orders/' || id),
        '{{}}', at FROM numbered ORDER BY n;
    INSERT INTO stock_movements (product_id, kind, order_id, pieces, created_at)
    SELECT product_id, 'shipped', order_id, -quantity, orders.created_at FROM order_items
    JOIN orders ON orders.id = order_id WHERE orders.status = 'fulfilled' ORDER BY order_id
"""

_OPERATIONS = """
    INSERT INTO audit_log (at, actor, user_id, action, object, reason, details, position, hash)
    SELECT now() - ({acts} - n) * (interval '1 year' / {acts}), 'user:' || who, who,
        (ARRAY['user.signed_in','credits.top_up','outbox.replayed','orders.exported'])[1 + n % 4],
        CASE WHEN n % 4 = 1 THEN 'account/' || n % 5000 ELSE 'user/' || who END, 'because', '{{}}', n,
        sha256(int8send(n))
    FROM generate_series(1::bigint, {acts}) AS n,
        LATERAL (SELECT CASE WHEN n % 3 = 0 THEN 1 ELSE n % 10000 END) AS one(who)
    ORDER BY n;
    UPDATE audit_log_head SET position = {acts}, hash = sha256(int8send({acts}::bigint));
    INSERT INTO bulk_actions (id, action, filter, reason, actor, state, estimate, precision, examined, done, ended_at,
        created_at, last_position)
    SELECT pg_temp.id_of(at, n), CASE WHEN n % 2 = 0 THEN 'replay' ELSE 'bury' END, '{{"type": "order.placed"}}',
        'because', 'user/1', CASE WHEN n < 3 THEN 'running' ELSE 'finished' END, 100, 'exact', 100, 100,
        CASE WHEN n >= 3 THEN at END, at, 100
    FROM generate_series(1, {acts} / 100) AS n, LATERAL (SELECT now() - n * interval '1 hour' AS at) AS time;
    INSERT INTO history (at, worker_id, processed, retried, buried, batches, rolled_back, rung, polled, queued,
        queue_seconds, waiting, dead_letters, oldest_due_seconds, position)
    SELECT date_bin('10 seconds', now(), 'epoch') - slot * interval '10 seconds',
        CAST(lpad(to_hex(worker), 32, '0') AS uuid), 1000, 3, 1, 20, 0, 5, 1, 1000, 90.0,
        CASE WHEN worker = 1 THEN 9000 END, CASE WHEN worker = 1 THEN 9000 END,
        CASE WHEN worker = 1 THEN 3.0 END, CASE WHEN worker = 1 THEN 1900000000 - slot * 100 END
    FROM generate_series(9000, 1, -1) AS slot, generate_series(1, {workers}) AS worker;
    INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report)
    SELECT CAST(lpad(to_hex(worker), 32, '0') AS uuid), 'worker-' || worker, 7, now() - interval '1 day',
        now() + interval '1 day', now() + interval '1 day', jsonb_build_object('version', '1.0', 'types',
            jsonb_build_array('order.placed', 'order.fulfilled', 'order.cancelled', 'reminder'), 'schedules',
            jsonb_build_array('expire_orders', 'audit_ledger'), 'batches', 100000, 'processed', 5000000, 'retried', 300,
            'buried', 3, 'rolled_back', 0, 'rates', jsonb_build_object('processed', 100.0, 'batches', 2.0),
            'last_batch', NULL, 'jobs', '{{}}'::jsonb, 'queue_length', 0, 'time_limit', 30)
    FROM generate_series(1, {workers}) AS worker;
    INSERT INTO jobs (name, schedule, due_at, started_at, finished_at, ok, seconds, runs)
    SELECT 'job_' || n, 'each minute', now() + interval '1 day', now() - interval '1 hour', now(), true, 0.2, 100
    FROM generate_series(1, 25) AS n;
    INSERT INTO log_consumers (name, seen) SELECT 'current', pg_current_snapshot();
    INSERT INTO log_consumers (name, seen) VALUES ('behind', '1:1:');
    INSERT INTO log_consumers (name, seen, reading, position, until)
    SELECT 'reading', '1:1:', pg_current_snapshot(), {events} / 2, max(position) FROM events;
    INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample)
    SELECT now() - n * interval '1 hour', 10, 1000000, 0, '[]' FROM generate_series(1, {acts} / 100) AS n;
    INSERT INTO sweep_failures (sweep, subject, attempts, error, first_at, last_at, next_at)
    SELECT 'unpaid_orders', gen_random_uuid(), 3, 'DataError: no', now(), now() - n * interval '1 s',
        now() + interval '1 day'
    FROM generate_series(1, {acts} / 10) AS n;
    INSERT INTO refresh_tokens (hash, session_id)
    SELECT decode('{token}', 'hex'), sessions.id FROM sessions WHERE user_id = (
        SELECT min(id) FROM users WHERE role = 'operator' AND deleted_at IS NULL AND is_active
    )
"""

_STEPS = 100


def fill(url: str, scale: Scale) -> None:
    """Fill a migrated, empty database, and vacuum and analyze it. The role must be a superuser's."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_MONTHS)
    many.fill(url, scale.size)
    # What waits and what is dead is in the log, too.
    each = max(3, (scale.events - scale.waiting - scale.dead) // scale.orders)
    logged = each * scale.orders
    values = {
        "orders": scale.orders,
        "events": scale.events,
        "waiting": scale.waiting,
        "dead": scale.dead,
        "acts": scale.acts,
        "each": each,
        "burst": scale.events // 100,
        "busy": scale.burst,
        "kinds": KINDS,
        "workers": WORKERS,
        "first_letter": FIRST_LETTER,
        "traceback": _TRACEBACK,
        "token": sha256_of(TOKEN).hex(),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_PREPARE)
        for step in range(_STEPS):
            first, last = logged * step // _STEPS, logged * (step + 1) // _STEPS - 1
            connection.execute(_LOG.format(**values, first=each + first, last=each + last).encode())
        for part in (_BURST, _QUEUED, _ORDERS, _OPERATIONS):
            connection.execute(part.format(**values).encode())
        connection.execute("VACUUM ANALYZE")
