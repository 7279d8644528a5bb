"""The statements that find what happened to an order. Each reads a limited number of rows."""

from services.sql import Statement

TRANSITIONS = Statement("""
    SELECT from_status, to_status, reason, created_at, actor FROM order_transitions
    WHERE order_id = :order_id ORDER BY id LIMIT :most
""")

REFUNDS = Statement("""
    SELECT id, amount, requested_by, reason, created_at,
        (SELECT sum(quantity)::bigint FROM refund_lines WHERE refund_id = refunds.id) AS pieces
    FROM refunds WHERE order_id = :order_id ORDER BY id LIMIT :most
""")

# All of the order's first: to sort by the key, the planner might otherwise read the whole table in its order.
_OF_ORDER = """
    of_order AS MATERIALIZED (
        SELECT id, debit_account_id, credit_account_id, amount, posted_amount, kind, state, created_at, resolved_at,
            expires_at, actor, note
        FROM transfers WHERE order_id = :order_id
    )
"""

TRANSFERS = Statement(f"WITH {_OF_ORDER} SELECT * FROM of_order ORDER BY id LIMIT :most")  # noqa: S608

# The table has no index on the transfer. Its entries are written right after `resolved_at`, the beginning of that
# transaction, and the first one that is the transfer's ends the look.
ENTRIES = Statement(f"""
    WITH {_OF_ORDER}, posted AS MATERIALIZED (
        SELECT id, kind, resolved_at, debit_account_id, credit_account_id FROM of_order
        WHERE state = 'posted' ORDER BY id LIMIT :most
    )
    SELECT entry.account_id, entry.amount, entry.balance, entry.created_at, posted.id AS transfer_id, posted.kind
    FROM posted CROSS JOIN LATERAL (VALUES (debit_account_id), (credit_account_id)) AS side(account_id)
    CROSS JOIN LATERAL (
        SELECT * FROM (
            SELECT account_id, transfer_id, amount, balance, created_at FROM entries
            WHERE entries.account_id = side.account_id AND entries.created_at >= posted.resolved_at
            ORDER BY entries.created_at LIMIT :examined
        ) AS near WHERE near.transfer_id = posted.id LIMIT 1
    ) AS entry
    ORDER BY entry.created_at, posted.id, entry.amount LIMIT :most
""")  # noqa: S608

MOVEMENTS = Statement("""
    SELECT product_id, kind, pieces, created_at, actor FROM stock_movements
    WHERE order_id = :order_id ORDER BY id LIMIT :most
""")

_EVENT = "id, type, version, occurred_at, request_id, traceparent, actor"

EVENTS = Statement(f"SELECT {_EVENT} FROM events WHERE id = ANY(CAST(:ids AS uuid[]))")  # noqa: S608


def _near(comparison: str, direction: str) -> str:
    """Events on one side of a moment, the nearest first."""
    return f"""
        (SELECT {_EVENT}, aggregate FROM events WHERE {comparison} ORDER BY id {direction} LIMIT :examined)
    """  # noqa: S608


# The log has no index on the aggregate, which each event would pay for. Its key is ordered by time, and when an event
# was written is known to within the length of its transaction.
NEAR = Statement(f"""
    SELECT near.* FROM unnest(
        CAST(:types AS text[]), CAST(:lows AS uuid[]), CAST(:middles AS uuid[]), CAST(:highs AS uuid[])
    ) AS wanted(type, low, middle, high) CROSS JOIN LATERAL (
        {_near("events.id >= wanted.low AND events.id < wanted.middle", "DESC")}
        UNION ALL {_near("events.id >= wanted.middle AND events.id < wanted.high", "ASC")}
    ) AS near WHERE near.aggregate = :aggregate AND near.type = wanted.type
""")  # noqa: S608

# For `NEAR`: otherwise the planner might read all events of the minute to sort them, although the partitions have them
# in order.
WITHOUT_SORTING = Statement("SET LOCAL enable_sort = off")
SORTING = Statement("SET LOCAL enable_sort = on")

FAILURES = Statement("""
    SELECT event_id, failures::text AS failures FROM outbox
    WHERE position = ANY(CAST(:positions AS bigint[])) AND failures IS NOT NULL
    UNION ALL SELECT event_id, failures::text FROM dead_letters WHERE position = ANY(CAST(:positions AS bigint[]))
""")

ACTIONS = Statement("""
    SELECT at, actor, action, type, event_id, reason, detail ->> 'message' AS message FROM outbox_actions
    WHERE event_id = ANY(CAST(:ids AS uuid[])) ORDER BY id LIMIT :most
""")

# The key begins with the caller and the path. Of the requests that placed orders, the buyer may have sent any number.
REQUESTS = Statement("""
    SELECT caller_id, method, path, key, status, created_at FROM idempotency_keys
    WHERE caller_id = ANY(CAST(:caller_ids AS bigint[])) AND method = 'POST' AND path = ANY(CAST(:paths AS text[]))
    UNION ALL
    SELECT caller_id, method, path, key, status, created_at FROM (
        SELECT caller_id, method, path, key, status, created_at, headers FROM idempotency_keys
        WHERE caller_id = :buyer_id AND method = 'POST' AND path = :placed_at LIMIT :examined
    ) AS placed WHERE headers ->> 'location' = :location
    ORDER BY created_at LIMIT :most
""")
