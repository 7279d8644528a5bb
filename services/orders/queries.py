"""The SQL that places, locks and moves orders."""

from collections.abc import Sequence

from sqlalchemy import Table

from services.orders.models import (
    ITEM_FIELDS,
    ORDER_FIELDS,
    OrderItem,
)
from services.sql import Statement, Writing, array_of


def placing_statement(said: Sequence[str], said_of_items: Sequence[str], items: Table) -> Writing:
    """Writes an order, its lines and its first transition. What the buyer said is stored in the columns of that name.

    The lines' values are arrays: `each_quantity` has the quantities.
    """
    of_items = [items.c[name] for name in (*said_of_items, "unit_price")]
    names = ", ".join(column.name for column in of_items)
    parameters = ", ".join(f":{name}" for name in said)
    arrays = ", ".join(array_of(column, f"each_{column.name}") for column in of_items)
    return Writing(
        f"""
        placed AS (
            INSERT INTO orders (
                id, buyer_id, status, total, item_count, expires_at, created_at, updated_at, {", ".join(said)}
            )
            VALUES (
                :id, :buyer_id, :status, :total, :item_count,
                statement_timestamp() + CAST(:expires_in AS interval), :at, :at, {parameters}
            )
            ON CONFLICT (buyer_id, reference) WHERE reference IS NOT NULL DO NOTHING
            RETURNING id
        ), lines AS (
            INSERT INTO order_items (order_id, line, {names})
            SELECT placed.id, line.line, {", ".join(f"line.{column.name}" for column in of_items)}
            FROM placed, unnest({arrays}) WITH ORDINALITY AS line({names}, line)
        ), begun AS (
            INSERT INTO order_transitions (order_id, to_status, actor) SELECT id, :status, :actor FROM placed
        )
        """,  # noqa: S608
        counted="placed",
    )


PLACE = placing_statement(ORDER_FIELDS, ITEM_FIELDS, OrderItem.metadata.tables["order_items"])

LOCK = Statement("""
    SELECT id, buyer_id, status, total FROM orders
    WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
""")

PIECES = Statement("""
    SELECT order_id, product_id, sum(quantity - returned)::bigint AS pieces FROM order_items
    WHERE order_id = ANY(CAST(:ids AS uuid[])) GROUP BY order_id, product_id
""")

SHARES = Statement("""
    SELECT products.seller_id, accounts.id AS account_id, sum(order_items.quantity * order_items.unit_price) AS amount
    FROM order_items
    JOIN products ON products.id = order_items.product_id
    JOIN accounts ON accounts.user_id = products.seller_id
    WHERE order_items.order_id = :id GROUP BY products.seller_id, accounts.id ORDER BY accounts.id
""")

# Not a join: a plan for any values might read all products.
SOLD = Statement("""
    SELECT order_id, count(*) AS item_count, sum(quantity * unit_price) AS total, sum(returned * unit_price) AS refunded
    FROM order_items
    WHERE order_id = ANY(CAST(:ids AS uuid[]))
        AND (SELECT seller_id FROM products WHERE products.id = order_items.product_id) = :seller_id
    GROUP BY order_id
""")

MOVE = Statement("""
    WITH move AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:from_statuses AS text[]), CAST(:to_statuses AS text[]), CAST(:reasons AS text[])
        ) AS move(id, from_status, to_status, reason)
    ), moved AS (
        UPDATE orders SET status = move.to_status, expires_at = NULL, version = version + 1,
            updated_at = clock_timestamp()
        FROM move WHERE orders.id = move.id AND orders.status = move.from_status
        RETURNING orders.id, move.from_status, move.to_status, move.reason
    )
    INSERT INTO order_transitions (order_id, from_status, to_status, reason, created_at, actor)
    SELECT id, from_status, to_status, reason, clock_timestamp(), :actor FROM moved
""")

BY_STATUS = Statement("""
    SELECT status, count(*) AS number FROM (SELECT status FROM orders LIMIT :most) AS bounded GROUP BY status
""")
