"""The checks of the audit that compare stored replies with the tables."""

from services.sql import Statement

# What a reply acknowledged must exist and match it. Statuses change later: for an order the transition must exist, and
# the state of a transfer or an adjustment is compared only if it is final. A transaction that was lost as a whole took
# its stored reply with it; detecting that is the canary's task.
_UUID = "'^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'"
_KEPT = "caller_id, method, path, key"


def _replies(paths: str, statuses: str = "BETWEEN 200 AND 299") -> str:
    """The stored 2xx replies for these paths, whatever the prefix under which the API is served.

    OFFSET 0 keeps the planner from parsing a body once for each use of `reply`.
    """
    return f"""(
        SELECT {_KEPT}, json_or_null(body) AS reply FROM idempotency_keys
        WHERE status {statuses} AND path ~ '/v1/({paths})$' OFFSET 0
    ) AS kept"""  # noqa: S608


def _id_in(json: str) -> str:
    """The id in a reply, or NULL if there is none: a cast that fails would end the audit."""
    return f"CASE WHEN {json} ->> 'id' ~ {_UUID} THEN CAST({json} ->> 'id' AS uuid) END AS id"


def _acknowledged(kind: str, subject: str) -> str:
    """The columns of a difference, which has another kind if the reply cannot be read."""
    return f"""
        SELECT CASE WHEN named.id IS NULL THEN 'acknowledged_unreadable' ELSE '{kind}' END AS kind,
            {_KEPT}, named.id AS {subject},
            CASE WHEN named.id IS NULL THEN 'a JSON object with an id' ELSE expected END AS expected,
            CASE WHEN named.id IS NULL THEN coalesce(left(named.reply::text, 80), 'no JSON') ELSE found END AS found
    """


_ACKNOWLEDGED_ORDERS = Statement(f"""
    {_acknowledged("acknowledged_order", "order_id")}
    FROM (
        SELECT {_KEPT}, reply, {_id_in("reply")}, reply ->> 'total' AS total, reply ->> 'status' AS status,
            CASE WHEN path ~ '/orders$' THEN caller_id::text ELSE reply #>> '{{buyer,id}}' END AS buyer
        FROM {_replies("orders|orders/[^/]+/(pay|cancel|fulfil)")}
    ) AS named
    LEFT JOIN orders ON orders.id = named.id
    LEFT JOIN order_transitions AS moved ON moved.order_id = orders.id AND moved.to_status = named.status
    CROSS JOIN LATERAL (SELECT
        format('%s of buyer %s, made %s', named.total, buyer, named.status) AS expected,
        CASE WHEN orders.id IS NOT NULL THEN format('%s of buyer %s, %s %s', orders.total, orders.buyer_id,
            CASE WHEN moved.id IS NULL THEN 'never made' ELSE 'made' END, named.status) END AS found
    ) AS compared
    WHERE expected IS DISTINCT FROM found OR named.id IS NULL
""")  # noqa: S608

_ACKNOWLEDGED_REFUNDS = Statement(f"""
    {_acknowledged("acknowledged_refund", "refund_id")}
    FROM (
        SELECT {_KEPT}, reply, {_id_in("reply")}, reply ->> 'amount' AS amount, reply ->> 'order_id' AS order_id
        FROM {_replies("orders/[^/]+/refunds")}
    ) AS named
    LEFT JOIN refunds ON refunds.id = named.id
    CROSS JOIN LATERAL (SELECT
        format('%s of order %s', named.amount, named.order_id) AS expected,
        CASE WHEN refunds.id IS NOT NULL THEN format('%s of order %s', refunds.amount, refunds.order_id) END AS found
    ) AS compared
    WHERE expected IS DISTINCT FROM found OR named.id IS NULL
""")  # noqa: S608

# A top-up or a reversal that needs approval is answered with 202 and the adjustment that waits for it.
# A batch names each transfer that it posted; one that posted none names none.
_ACKNOWLEDGED_TRANSFERS = Statement(f"""
    {_acknowledged("acknowledged_transfer", "transfer_id")}
    FROM (
        SELECT {_KEPT}, reply, {_id_in("made")}, made ->> 'kind' AS kind, made ->> 'amount' AS amount,
            made ->> 'state' AS state, made ->> 'posted_amount' AS posted_amount
        FROM {_replies("top-ups|holds|transfers|transfers/batch|transfers/[^/]+/(post|void|reverse)", "IN (200, 201)")}
        LEFT JOIN LATERAL jsonb_path_query(reply, CASE WHEN path ~ '/transfers/batch$'
            THEN '$.results[*] ? (@.status == "posted").transfer' ELSE '$' END::jsonpath) AS made ON true
        WHERE made IS NOT NULL OR path !~ '/transfers/batch$' OR jsonb_typeof(reply) IS DISTINCT FROM 'object'
    ) AS named
    LEFT JOIN transfers ON transfers.id = named.id
    CROSS JOIN LATERAL (SELECT
        concat_ws(' ', named.kind, 'of', named.amount || ',', CASE
            WHEN named.state = 'pending' AND transfers.id IS NOT NULL
                THEN concat_ws(' ', transfers.state, transfers.posted_amount)
            WHEN named.state = 'posted' THEN 'posted ' || coalesce(named.posted_amount, named.amount)
            ELSE named.state END) AS expected,
        CASE WHEN transfers.id IS NOT NULL THEN concat_ws(' ', transfers.kind, 'of', transfers.amount || ',',
            transfers.state, transfers.posted_amount) END AS found
    ) AS compared
    WHERE expected IS DISTINCT FROM found OR named.id IS NULL
""")  # noqa: S608

_ACKNOWLEDGED_ADJUSTMENTS = Statement(f"""
    {_acknowledged("acknowledged_adjustment", "adjustment_id")}
    FROM (
        SELECT {_KEPT}, reply, {_id_in("reply")}, reply ->> 'amount' AS amount, reply ->> 'state' AS state,
            reply ->> 'transfer_id' AS transfer_id
        FROM (
            SELECT * FROM {_replies("adjustments|adjustments/[^/]+/(approve|reject)")}
            UNION ALL SELECT * FROM {_replies("top-ups|transfers/[^/]+/reverse", "= 202")}
        ) AS kept
    ) AS named
    LEFT JOIN adjustments ON adjustments.id = named.id
    CROSS JOIN LATERAL (SELECT
        concat_ws(' ', named.amount || ',', CASE WHEN named.state = 'pending' AND adjustments.id IS NOT NULL
            THEN concat_ws(' by ', adjustments.state, adjustments.transfer_id::text)
            ELSE concat_ws(' by ', named.state, named.transfer_id) END) AS expected,
        CASE WHEN adjustments.id IS NOT NULL THEN concat_ws(' ', adjustments.amount || ',',
            concat_ws(' by ', adjustments.state, adjustments.transfer_id::text)) END AS found
    ) AS compared
    WHERE expected IS DISTINCT FROM found OR named.id IS NULL
""")  # noqa: S608

CHECKS = (_ACKNOWLEDGED_ORDERS, _ACKNOWLEDGED_REFUNDS, _ACKNOWLEDGED_TRANSFERS, _ACKNOWLEDGED_ADJUSTMENTS)
