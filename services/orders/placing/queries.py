"""The SQL that places a group of orders."""

from collections.abc import Sequence

from sqlalchemy import Table

from services.orders.models import ITEM_FIELDS, ORDER_FIELDS, OrderItem
from services.sql import Reading, Writing, array_of

# The index of references is partial: the condition on the column lets PostgreSQL use it.
USED_REFERENCES = Reading(
    """
    used_references AS MATERIALIZED (
        SELECT buyer_id, reference FROM orders JOIN unnest(CAST(:buyer_ids AS bigint[]), CAST(:names AS text[]))
            AS sought(buyer_id, reference) USING (buyer_id, reference)
        WHERE orders.reference IS NOT NULL
    )
    """,
    results={"used_references": ("buyer_id", "reference")},
)


UNPAID = Reading(
    """
    unpaid AS MATERIALIZED (
        SELECT buyer_id, number
        FROM unnest(CAST(:unpaid_buyer_ids AS bigint[])) AS buyer(buyer_id) CROSS JOIN LATERAL (
            SELECT count(*) AS number FROM (
                SELECT FROM orders WHERE orders.buyer_id = buyer.buyer_id AND expires_at IS NOT NULL
                LIMIT :most_unpaid
            ) AS bounded
        ) AS counted
    )
    """,
    results={"unpaid": ("buyer_id", "number")},
)


def placing_statement(said: Sequence[str], said_of_items: Sequence[str], orders: Table, items: Table) -> Writing:
    """Writes orders, their lines and their first transitions. What buyers said is stored in the columns of that name.

    All values are arrays: `each_reference` has the references. A line's `of_order` is the id of its order.
    """
    columns = ", ".join(said)
    arrays = ", ".join(array_of(orders.c[name], f"each_{name}") for name in said)
    of_items = [items.c[name] for name in (*said_of_items, "unit_price")]
    item_columns = ", ".join(column.name for column in of_items)
    item_arrays = ", ".join(array_of(column, f"each_{column.name}") for column in of_items)
    return Writing(
        f"""
        new_orders AS (
            SELECT * FROM unnest(
                CAST(:ids AS uuid[]), CAST(:buyer_ids AS bigint[]), CAST(:statuses AS text[]),
                CAST(:totals AS numeric[]), CAST(:item_counts AS integer[]), CAST(:lasting AS interval[]),
                CAST(:ats AS timestamptz[]), CAST(:actors AS text[]), {arrays}
            ) AS new(id, buyer_id, status, total, item_count, lasting, at, actor, {columns})
        ), placed AS (
            INSERT INTO orders (
                id, buyer_id, status, total, item_count, expires_at, created_at, updated_at, {columns}
            )
            SELECT id, buyer_id, status, total, item_count, statement_timestamp() + lasting, at, at, {columns}
            FROM new_orders
            RETURNING 1
        ), lines AS (
            INSERT INTO order_items (order_id, line, {item_columns})
            SELECT * FROM unnest(CAST(:of_orders AS uuid[]), CAST(:numbers AS integer[]), {item_arrays})
        ), begun AS (
            INSERT INTO order_transitions (order_id, to_status, actor) SELECT id, status, actor FROM new_orders
        )
        """,  # noqa: S608
        counted="placed",
    )


PLACE_ALL = placing_statement(
    ORDER_FIELDS, ITEM_FIELDS, OrderItem.metadata.tables["orders"], OrderItem.metadata.tables["order_items"]
)
