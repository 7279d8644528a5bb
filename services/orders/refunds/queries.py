"""The SQL of refunds."""

from services.orders.models import RefundBase
from services.sql import Statement

SAID = tuple(RefundBase.model_fields)
"""What the caller says of a refund, each in the column of that name."""

SOLD = Statement("""
    SELECT order_items.line, order_items.product_id, order_items.quantity, order_items.returned, order_items.unit_price,
        products.seller_id, accounts.id AS seller_account_id
    FROM order_items
    JOIN products ON products.id = order_items.product_id
    JOIN accounts ON accounts.user_id = products.seller_id
    WHERE order_items.order_id = :order_id ORDER BY order_items.line
""")

AMOUNTS = Statement("""
    SELECT refund_id, sum(refund_lines.quantity * order_items.unit_price) AS amount
    FROM refund_lines JOIN order_items USING (order_id, line)
    WHERE refund_id = ANY(CAST(:ids AS uuid[]))
        AND (SELECT seller_id FROM products WHERE products.id = order_items.product_id) = :seller_id
    GROUP BY refund_id
""")

# One statement for the whole refund. CHECKs refuse more pieces than were sold and more credits than were paid.
WRITE = Statement(f"""
    WITH given AS (
        SELECT * FROM unnest(CAST(:lines AS integer[]), CAST(:quantities AS integer[])) AS given(line, quantity)
    ), returned AS (
        UPDATE order_items SET returned = returned + given.quantity FROM given
        WHERE order_items.order_id = :order_id AND order_items.line = given.line
    ), refunded AS (
        UPDATE orders SET refunded = refunded + CAST(:amount AS numeric), version = version + 1,
            updated_at = clock_timestamp()
        WHERE id = :order_id
    ), refund AS (
        INSERT INTO refunds (id, order_id, amount, requested_by, {", ".join(SAID)})
        VALUES (:id, :order_id, CAST(:amount AS numeric), :requested_by, {", ".join(f":{name}" for name in SAID)})
    )
    INSERT INTO refund_lines (refund_id, line, order_id, quantity)
    SELECT :id, line, :order_id, quantity FROM given
""")  # noqa: S608
