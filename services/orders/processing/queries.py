"""The SQL that locks and settles a batch of placed orders."""

from services.sql import Reading, Statement, Writing, without_waiting

# Orders are locked before the stock, as everywhere. The lines are read as of before any wait for a lock, which makes no
# difference: nothing changes the lines of a pending order.
LOCKING = """
    locked_orders AS MATERIALIZED (
        SELECT id, buyer_id, status, total FROM orders
        WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
    ), lines AS MATERIALIZED (
        SELECT order_id, product_id, sum(quantity - returned)::bigint AS pieces FROM order_items
        WHERE order_id = ANY(ARRAY(SELECT id FROM locked_orders WHERE status = 'pending'))
        GROUP BY order_id, product_id
    ), locked_stock AS MATERIALIZED (
        SELECT product_id, on_hand - reserved AS available FROM inventory
        WHERE product_id = ANY(ARRAY(SELECT product_id FROM lines)) ORDER BY product_id FOR NO KEY UPDATE
    )
"""

LOCKED = {
    "locked_orders": ("id", "buyer_id", "status", "total"),
    "lines": ("order_id", "product_id", "pieces"),
    "locked_stock": ("product_id", "available"),
}

LOCK = Reading(LOCKING, results=LOCKED)

LOCK_FREE = Reading(without_waiting(LOCKING), results=LOCKED)

SETTLE = Writing(
    """
    moved AS (
        UPDATE orders SET status = move.to_status, expires_at = NULL, version = version + 1,
            updated_at = clock_timestamp()
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:to_statuses AS text[]), CAST(:reasons AS text[])
        ) AS move(id, to_status, reason)
        WHERE orders.id = move.id AND orders.status = 'pending'
        RETURNING orders.id, move.to_status, move.reason
    ), noted AS (
        INSERT INTO order_transitions (order_id, from_status, to_status, reason, created_at, actor)
        SELECT id, 'pending', to_status, reason, clock_timestamp(), :actor FROM moved
    ), reserved AS (
        UPDATE inventory SET reserved = inventory.reserved + wanted.pieces
        FROM unnest(CAST(:product_ids AS bigint[]), CAST(:pieces AS bigint[])) AS wanted(product_id, pieces)
        WHERE inventory.product_id = wanted.product_id
    )
    """,
    counted="moved",
)

HELD_UNTIL = Statement("SELECT min(expires_at) AS expires_at FROM transfers WHERE order_id = :id AND state = 'pending'")
