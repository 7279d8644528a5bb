"""The checks of the audit that compare the event log with the tables."""

from services.sql import Statement

# What each row implies: an event of this type about this aggregate, with at least these values. `key` tells apart the
# events of one type about one aggregate. `at` is when the event was written; it is NULL where the event may be missing,
# since rows of that kind are also written without it. Amounts are text with two decimals, as in events.
_ORDERS = """
    SELECT 'order/' || order_id AS aggregate,
        'order.' || CASE to_status WHEN 'pending' THEN 'placed' ELSE to_status END AS type,
        '' AS key, order_transitions.created_at AS at,
        jsonb_build_object('order_id', order_id) || CASE
            WHEN to_status IN ('pending', 'awaiting_payment')
                THEN jsonb_build_object('buyer_id', buyer_id, 'total', total::text)
            WHEN to_status = 'confirmed' THEN jsonb_build_object('total', total::text)
            WHEN to_status = 'rejected' THEN jsonb_build_object('reason', reason)
            WHEN to_status = 'cancelled' THEN jsonb_build_object('from_status', from_status, 'reason', reason)
            ELSE '{}' END AS payload
    FROM order_transitions JOIN orders ON orders.id = order_id
"""

_REFUNDS = """
    SELECT 'order/' || refunds.order_id, 'order.refunded', refunds.id::text, refunds.created_at, jsonb_build_object(
        'order_id', refunds.order_id, 'refund_id', refunds.id, 'amount', amount::text, 'pieces', pieces)
    FROM refunds LEFT JOIN (
        SELECT refund_id, jsonb_object_agg(line, quantity) AS pieces FROM refund_lines GROUP BY refund_id
    ) AS line ON refund_id = refunds.id
"""

# Payments and refunds of orders have no events of their own.
_TRANSFERS = """
    SELECT 'transfer/' || transfers.id, told.type, '', told.at, told.more || jsonb_build_object(
        'transfer_id', transfers.id, 'from_account_id', debit_account_id, 'to_account_id', credit_account_id)
    FROM transfers CROSS JOIN LATERAL (VALUES
        ('credits.moved', resolved_at, state = 'posted',
            jsonb_build_object('kind', kind, 'amount', posted_amount::text)),
        ('credits.held', created_at, expires_at IS NOT NULL, jsonb_build_object('amount', amount::text)),
        ('credits.released', resolved_at, state IN ('voided', 'expired'),
            jsonb_build_object('state', state, 'amount', amount::text))
    ) AS told(type, at, happened, more)
    WHERE transfers.kind NOT IN ('order', 'refund') AND told.happened
    UNION ALL
    SELECT 'transfer/' || reverses, 'transfer.reversed', '', resolved_at,
        jsonb_build_object('transfer_id', reverses, 'reversal_id', id, 'reason', note)
    FROM transfers WHERE kind = 'reversal'
"""

_ADJUSTMENTS = """
    SELECT 'adjustment/' || adjustments.id, 'adjustment.' || told.type, '', told.at, jsonb_build_object(
        'adjustment_id', adjustments.id, 'account_id', account_id, 'amount', amount::text) || told.more
    FROM adjustments CROSS JOIN LATERAL (VALUES
        ('requested', created_at, needs_approval, jsonb_build_object('reason', reason)),
        ('applied', decided_at, state = 'applied', jsonb_build_object('reason', reason, 'transfer_id', transfer_id)),
        ('rejected', decided_at, state = 'rejected', '{}')
    ) AS told(type, at, happened, more)
    WHERE told.happened
"""

_PRODUCTS = """
    SELECT 'product/' || id, 'product.created', '', NULL, jsonb_build_object('product_id', id, 'seller_id', seller_id)
    FROM products
"""

TYPES = (
    "order.placed", "order.awaiting_payment", "order.confirmed", "order.rejected", "order.cancelled", "order.fulfilled",
    "order.refunded", "credits.moved", "credits.held", "credits.released", "transfer.reversed", "adjustment.requested",
    "adjustment.applied", "adjustment.rejected", "product.created",
)  # fmt: skip
"""The types that are compared. For the others, no row has the same values."""

# A month that is gone takes its events with it. An event's month is that of its id, which the application's clock gives
# it: a day more or less makes no difference.
_IS_KEPT = """
    to_char((made.at - interval '1 day') AT TIME ZONE 'UTC', '"events_"YYYY_MM') = ANY(months.names)
    AND to_char((made.at + interval '1 day') AT TIME ZONE 'UTC', '"events_"YYYY_MM') = ANY(months.names)
"""

_EVENTS = Statement(f"""
    SELECT CASE WHEN told.id IS NULL THEN 'event_missing' ELSE 'event_differs' END AS kind, told.id AS event_id,
        coalesce(told.aggregate, made.aggregate) AS aggregate, coalesce(told.type, made.type) AS type,
        left(made.payload::text, 500) AS expected, left(told.payload::text, 500) AS found
    FROM (
        SELECT id, aggregate, type, payload,
            CASE type WHEN 'order.refunded' THEN payload ->> 'refund_id' ELSE '' END AS key
        FROM events WHERE type IN ({", ".join(f"'{name}'" for name in TYPES)})
    ) AS told
    FULL JOIN ({" UNION ALL ".join((_ORDERS, _REFUNDS, _TRANSFERS, _ADJUSTMENTS, _PRODUCTS))}) AS made
    ON made.aggregate = told.aggregate AND made.type = told.type AND made.key = told.key
    CROSS JOIN (
        SELECT array_agg(relname::text) AS names FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'events'::regclass
    ) AS months
    WHERE CASE WHEN told.id IS NULL THEN {_IS_KEPT} ELSE (told.payload @> made.payload) IS NOT TRUE END
""")  # noqa: S608

CHECKS = (_EVENTS,)
