"""The checks of the audit, each a statement that returns the differences it finds.

Each row is a difference: its `kind`, the ids of its subject, and the `expected` and `found` values as text. Every
statement reads each table once, with sorts and hashes that spill to disk if they exceed the memory of `SETTINGS`.
"""

from services.outbox.engine.queries import sleeps_for_nothing
from services.sql import Statement

SNAPSHOT = Statement("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

# The sorts and hashes of one statement together stay below about 100 MiB. The server enforces the time limit, too: a
# killed process leaves its statement running.
SETTINGS = Statement("""
    SELECT set_config('work_mem', '32MB', true), set_config('hash_mem_multiplier', '1', true),
        set_config('statement_timeout', CAST(:milliseconds AS text), true)
""")

ROWS = Statement("""
    SELECT (SELECT count(*) FROM entries) + (SELECT count(*) FROM transfers) + (SELECT count(*) FROM accounts)
        + (SELECT count(*) FROM adjustments) + (SELECT count(*) FROM unapproved_movements)
        + (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_items)
        + (SELECT count(*) FROM order_transitions) + (SELECT count(*) FROM refunds)
        + (SELECT count(*) FROM refund_lines) + (SELECT count(*) FROM inventory) + (SELECT count(*) FROM outbox)
        + (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM idempotency_keys)
        + (SELECT count(*) FROM stock_movements) + (SELECT count(*) FROM events)
        + (SELECT count(*) FROM audit_log) AS rows
""")

_LEDGER_SUM = Statement("""
    SELECT 'ledger_sum' AS kind, '0.00' AS expected, sum(amount)::text AS found FROM entries HAVING sum(amount) <> 0
""")

# Compares each entry with the one before it. If all agree, every balance is the running sum; no later entry is blamed.
_ENTRIES = Statement("""
    SELECT kind, account_id, version, after, expected, found FROM (
        SELECT account_id, version, amount, balance, coalesce(lag(version) OVER earlier, 0) AS after,
            coalesce(lag(balance) OVER earlier, 0) + amount AS sum
        FROM entries WINDOW earlier AS (PARTITION BY account_id ORDER BY version)
    ) AS entry, LATERAL (VALUES
        ('entry_version', version <> after + 1, (after + 1)::text, version::text),
        ('entry_balance', version = after + 1 AND balance <> sum, sum::text, balance::text)
    ) AS compared(kind, differs, expected, found)
    WHERE (version <> after + 1 OR balance <> sum) AND differs
""")

ACCOUNTS = Statement("""
    SELECT kind, accounts.id AS account_id, expected::text, found::text FROM accounts
    LEFT JOIN (SELECT account_id, sum(amount) AS amount, count(*) AS number FROM entries GROUP BY account_id)
        AS entered ON entered.account_id = accounts.id
    LEFT JOIN (SELECT debit_account_id, sum(amount) AS amount FROM transfers WHERE state = 'pending'
               GROUP BY debit_account_id) AS pending ON pending.debit_account_id = accounts.id
    CROSS JOIN LATERAL (VALUES
        ('account_posted', coalesce(entered.amount, 0.00), posted),
        ('account_held', coalesce(pending.amount, 0.00), held),
        ('account_version', coalesce(entered.number, 0), version)
    ) AS compared(kind, expected, found)
    WHERE expected <> found
""")

OVERDRAWN = Statement("""
    SELECT 'account_overdrawn' AS kind, id AS account_id, 'at least 0.00' AS expected, (posted - held)::text AS found
    FROM accounts WHERE system_name IS NULL AND posted - held < 0
""")

# One pass over both tables: an entry is correct if it has the account and the amount of one side of its transfer.
_TRANSFERS = Statement("""
    SELECT CASE WHEN sum <> 0 THEN 'transfer_unbalanced' ELSE 'transfer_entries' END AS kind, id AS transfer_id,
        CASE WHEN state = 'posted'
            THEN format('%s: %s, %s: %s', debit_account_id, -posted_amount, credit_account_id, posted_amount)
            ELSE 'none: it is ' || state
        END AS expected,
        coalesce(listed, 'none') AS found
    FROM (
        SELECT transfers.id, state, debit_account_id, credit_account_id, posted_amount,
            count(entries.version) AS number, coalesce(sum(entries.amount), 0) AS sum,
            count(*) FILTER (WHERE account_id = debit_account_id AND entries.amount = -posted_amount) AS debits,
            count(*) FILTER (WHERE account_id = credit_account_id AND entries.amount = posted_amount) AS credits,
            string_agg(entries.account_id || ': ' || entries.amount, ', ') AS listed
        FROM transfers LEFT JOIN entries ON entries.transfer_id = transfers.id
        GROUP BY transfers.id
    ) AS counted
    WHERE number <> CASE state WHEN 'posted' THEN 2 ELSE 0 END OR state = 'posted' AND (debits <> 1 OR credits <> 1)
""")

_ORPHANS = Statement("""
    SELECT 'entry_orphan' AS kind, account_id, version, transfer_id, 'a transfer' AS expected, amount::text AS found
    FROM entries WHERE NOT EXISTS (SELECT FROM transfers WHERE transfers.id = entries.transfer_id)
""")

_POSTINGS = Statement("""
    SELECT 'transfer_posting' AS kind, id AS transfer_id,
        CASE state WHEN 'posted' THEN format('above 0.00, at most %s', amount) ELSE 'nothing: it is ' || state END
            AS expected,
        posted_amount::text AS found
    FROM transfers
    WHERE CASE state WHEN 'posted' THEN coalesce(posted_amount, 0) NOT BETWEEN 0.01 AND amount
        ELSE posted_amount IS NOT NULL END
""")

_REVERSALS = Statement("""
    SELECT 'reversal' AS kind, transfers.id AS transfer_id, transfers.reverses AS reversed_id,
        format('from %s to %s: %s', reversed.credit_account_id, reversed.debit_account_id, reversed.posted_amount)
            AS expected,
        format('from %s to %s: %s', transfers.debit_account_id, transfers.credit_account_id, transfers.posted_amount)
            AS found
    FROM transfers LEFT JOIN transfers AS reversed ON reversed.id = transfers.reverses
    WHERE transfers.reverses IS NOT NULL
    AND (transfers.debit_account_id, transfers.credit_account_id, transfers.posted_amount)
        IS DISTINCT FROM (reversed.credit_account_id, reversed.debit_account_id, reversed.posted_amount)
""")

# What an adjustment asked for is what its transfer did: a reversal takes the amount from the account and gives it
# back to the one who had paid it. The check `reversal` compares that transfer with the one it reverses.
_ADJUSTMENTS = Statement("""
    SELECT 'adjustment' AS kind, adjustments.id AS adjustment_id, adjustments.transfer_id,
        concat_ws(' ', operation, format('%s: %s, %s', adjustments.account_id, adjustments.amount, reason),
            'reverses ' || adjustments.reverses) AS expected,
        CASE WHEN transfers.id IS NOT NULL THEN concat_ws(' ', transfers.kind,
            format('%s: %s, %s', did.account_id, did.amount, note), 'reverses ' || transfers.reverses) END AS found
    FROM adjustments
    LEFT JOIN transfers ON transfers.id = adjustments.transfer_id
    LEFT JOIN accounts AS issuance ON issuance.system_name = 'issuance'
    LEFT JOIN LATERAL (
        SELECT CASE WHEN transfers.kind = 'reversal' OR credit_account_id = issuance.id THEN debit_account_id
                WHEN debit_account_id = issuance.id THEN credit_account_id END AS account_id,
            CASE WHEN transfers.kind = 'reversal' OR debit_account_id <> issuance.id THEN -posted_amount
                ELSE posted_amount END AS amount
    ) AS did ON true
    WHERE adjustments.state = 'applied'
    AND (operation, adjustments.account_id, adjustments.amount, reason, adjustments.reverses)
        IS DISTINCT FROM (transfers.kind, did.account_id, did.amount, note, transfers.reverses)
    UNION ALL
    SELECT 'adjustment_orphan', NULL, id, 'an adjustment', amount::text FROM transfers
    WHERE kind = 'adjustment' AND NOT EXISTS (SELECT FROM adjustments WHERE transfer_id = transfers.id)
""")

# A movement that an operator made alone is the transfer that it names, as far as that was posted or, if it was voided,
# released. No one approved it, and neither account is the operator's.
_UNAPPROVED = Statement("""
    SELECT 'unapproved_movement' AS kind, alone.transfer_id, operator_id,
        coalesce(format('from %s to %s: %s, of others, without approval', transfers.debit_account_id,
            transfers.credit_account_id, coalesce(posted_amount, transfers.amount)), 'a transfer') AS expected,
        format('from %s to %s: %s', alone.debit_account_id, alone.credit_account_id, alone.amount)
            || CASE WHEN own.id IS NULL THEN '' ELSE ', of the operator' END
            || CASE WHEN needs_approval THEN ', approved' ELSE '' END AS found
    FROM unapproved_movements AS alone
    LEFT JOIN transfers ON transfers.id = alone.transfer_id
    LEFT JOIN adjustments ON adjustments.transfer_id = alone.transfer_id
    LEFT JOIN accounts AS own
        ON own.user_id = operator_id AND own.id IN (alone.debit_account_id, alone.credit_account_id)
    WHERE own.id IS NOT NULL OR needs_approval OR (alone.debit_account_id, alone.credit_account_id, alone.amount)
        IS DISTINCT FROM
        (transfers.debit_account_id, transfers.credit_account_id, coalesce(posted_amount, transfers.amount))
""")

# For a cancelled order, the refunds equal the payments.
PAYMENTS = Statement("""
    SELECT compared.kind, orders.id AS order_id, orders.status, compared.expected, compared.found::text
    FROM orders
    LEFT JOIN accounts ON accounts.user_id = orders.buyer_id
    LEFT JOIN (
        SELECT order_id, debit_account_id AS account_id,
            sum(amount) FILTER (WHERE state = 'pending') AS held, sum(posted_amount) AS paid
        FROM transfers WHERE kind = 'order' GROUP BY order_id, debit_account_id
    ) AS payment ON payment.order_id = orders.id AND payment.account_id = accounts.id
    LEFT JOIN (
        SELECT order_id, credit_account_id AS account_id, sum(posted_amount) AS refunded
        FROM transfers WHERE kind = 'refund' GROUP BY order_id, credit_account_id
    ) AS refund ON refund.order_id = orders.id AND refund.account_id = accounts.id
    CROSS JOIN LATERAL (
        SELECT coalesce(payment.held, 0.00) AS held, coalesce(payment.paid, 0.00) AS paid,
            coalesce(refund.refunded, 0.00) AS refunded
    ) AS moved
    CROSS JOIN LATERAL (VALUES
        ('order_held', moved.held <> CASE status WHEN 'pending' THEN total ELSE 0 END,
            CASE status WHEN 'pending' THEN total ELSE 0.00 END::text, moved.held),
        ('order_paid', moved.paid <> CASE WHEN status IN ('confirmed', 'fulfilled') THEN total
                WHEN status = 'cancelled' THEN moved.refunded ELSE 0 END,
            CASE WHEN status IN ('confirmed', 'fulfilled') THEN total
                WHEN status = 'cancelled' THEN moved.refunded ELSE 0.00 END::text, moved.paid),
        ('order_refunded_above_paid', moved.refunded > moved.paid, 'at most ' || moved.paid, moved.refunded)
    ) AS compared(kind, differs, expected, found)
    WHERE differs
""")

# For each order and account, what the order's transfers hold for it, pay it and take back, and what the lines of the
# account's user cost. What was voided or has expired moved nothing. An order that was cancelled before it was paid, was
# rejected or awaits payment has neither.
_PAYEES = Statement("""
    SELECT compared.kind, orders.id AS order_id, account_id, compared.expected::text, compared.found::text
    FROM (
        SELECT order_id, accounts.id AS account_id, sum(quantity * unit_price) AS cost,
            sum(returned * unit_price) AS returned
        FROM order_items JOIN products ON products.id = product_id JOIN accounts ON accounts.user_id = seller_id
        GROUP BY order_id, accounts.id
    ) AS due
    FULL JOIN (
        SELECT order_id, CASE kind WHEN 'order' THEN credit_account_id ELSE debit_account_id END AS account_id,
            sum(amount) FILTER (WHERE kind = 'order' AND state = 'pending') AS held,
            sum(posted_amount) FILTER (WHERE kind = 'order') AS paid,
            sum(posted_amount) FILTER (WHERE kind = 'refund') AS refunded
        FROM transfers WHERE order_id IS NOT NULL AND state IN ('pending', 'posted') GROUP BY 1, 2
    ) AS moved USING (order_id, account_id)
    JOIN orders ON orders.id = order_id
    CROSS JOIN LATERAL (VALUES
        ('payee_held', CASE WHEN status = 'pending' THEN cost END, moved.held),
        ('payee_paid', CASE WHEN status IN ('confirmed', 'fulfilled') OR status = 'cancelled' AND returned > 0
            THEN cost END, moved.paid),
        ('payee_refunded', CASE WHEN status IN ('confirmed', 'fulfilled', 'cancelled') THEN returned END,
            moved.refunded)
    ) AS difference(kind, wanted, given)
    CROSS JOIN LATERAL (
        SELECT difference.kind, coalesce(wanted, 0.00) AS expected, coalesce(given, 0.00) AS found
    ) AS compared
    WHERE expected <> found
""")

_REFUNDED = Statement("""
    SELECT 'order_refunded' AS kind, orders.id AS order_id, coalesce(refund.amount, 0.00)::text AS expected,
        orders.refunded::text AS found
    FROM orders
    LEFT JOIN (SELECT order_id, sum(posted_amount) AS amount FROM transfers WHERE kind = 'refund' GROUP BY order_id)
        AS refund ON refund.order_id = orders.id
    WHERE orders.refunded <> coalesce(refund.amount, 0)
""")

_STRAY_PAYMENTS = Statement("""
    SELECT 'transfer_order' AS kind, transfers.id AS transfer_id, 'an order' AS expected, order_id::text AS found
    FROM transfers LEFT JOIN orders ON orders.id = order_id
    WHERE orders.id IS NULL AND (order_id IS NOT NULL OR kind IN ('order', 'refund'))
""")

_LINES = Statement("""
    SELECT kind, orders.id AS order_id, expected::text, found::text FROM orders
    LEFT JOIN (
        SELECT order_id, count(*) AS number, sum(quantity * unit_price) AS cost, sum(returned * unit_price) AS returned
        FROM order_items GROUP BY order_id
    ) AS line ON line.order_id = orders.id
    CROSS JOIN LATERAL (VALUES
        ('order_total', coalesce(cost, 0.00), total),
        ('order_item_count', coalesce(number, 0), item_count),
        ('order_returned', coalesce(returned, 0.00), refunded)
    ) AS compared(kind, expected, found)
    WHERE expected <> found
""")

# Orders that were cancelled before refunds existed have returned pieces but no refund.
_REFUNDS = Statement("""
    SELECT 'refund_amount' AS kind, refunds.id AS refund_id, refunds.order_id, NULL::integer AS line,
        coalesce(cost, 0.00)::text AS expected, refunds.amount::text AS found
    FROM refunds
    LEFT JOIN (
        SELECT refund_id, sum(refund_lines.quantity * unit_price) AS cost FROM refund_lines
        JOIN order_items USING (order_id, line) GROUP BY refund_id
    ) AS given ON given.refund_id = refunds.id
    WHERE refunds.amount <> coalesce(cost, 0)
    UNION ALL
    SELECT 'refund_returned', NULL, order_id, line, coalesce(pieces, 0)::text, returned::text
    FROM order_items LEFT JOIN (
        SELECT order_id, line, sum(quantity) AS pieces FROM refund_lines GROUP BY order_id, line
    ) AS refunded USING (order_id, line)
    WHERE returned <> coalesce(pieces, 0) AND EXISTS (SELECT FROM refunds WHERE refunds.order_id = order_items.order_id)
""")

_STATUSES = Statement("""
    SELECT 'order_status' AS kind, orders.id AS order_id, last.to_status AS expected, orders.status AS found FROM orders
    LEFT JOIN (SELECT DISTINCT ON (order_id) order_id, to_status FROM order_transitions ORDER BY order_id, id DESC)
        AS last ON last.order_id = orders.id
    WHERE orders.status IS DISTINCT FROM last.to_status
""")

_HISTORIES = Statement("""
    SELECT 'order_history' AS kind, order_id, id AS transition_id, before AS expected, from_status AS found FROM (
        SELECT id, order_id, from_status, lag(to_status) OVER (PARTITION BY order_id ORDER BY id) AS before
        FROM order_transitions
    ) AS transition WHERE from_status IS DISTINCT FROM before
""")

RESERVED_STOCK = Statement("""
    SELECT 'stock_reserved' AS kind, product_id, coalesce(pieces, 0)::text AS expected, reserved::text AS found
    FROM inventory
    FULL JOIN (
        SELECT product_id, sum(quantity - returned) AS pieces FROM order_items JOIN orders ON orders.id = order_id
        WHERE orders.status = 'confirmed' GROUP BY product_id
    ) AS due USING (product_id)
    WHERE coalesce(reserved, 0) <> coalesce(pieces, 0)
""")

IMPOSSIBLE_STOCK = Statement("""
    SELECT 'stock_impossible' AS kind, product_id, '0 <= reserved <= on hand' AS expected,
        format('%s reserved, %s on hand', reserved, on_hand) AS found
    FROM inventory WHERE on_hand < 0 OR reserved < 0 OR reserved > on_hand
""")

# A product without a row has no stock.
_MOVED_STOCK = Statement("""
    SELECT 'stock_moved' AS kind, product_id, coalesce(pieces, 0)::text AS expected, coalesce(on_hand, 0)::text AS found
    FROM inventory
    FULL JOIN (SELECT product_id, sum(pieces) AS pieces FROM stock_movements GROUP BY product_id) AS moved
        USING (product_id)
    WHERE coalesce(on_hand, 0) <> coalesce(pieces, 0)
""")

_STOCK_BY_HAND = Statement("""
    SELECT 'stock_by_hand' AS kind, product_id, '0' AS expected, sum(pieces)::text AS found
    FROM stock_movements WHERE kind = 'by_hand' GROUP BY product_id HAVING sum(pieces) <> 0
""")

# For each line, the pieces that were shipped and did not come back. An order that was shipped before its movements were
# recorded, or of which the release before may have taken pieces back, is only known not to have brought more back than
# was returned.
_MOVED_FOR_ORDERS = Statement("""
    SELECT 'stock_moved_for_order' AS kind, order_id, product_id,
        CASE WHEN complete THEN left_pieces ELSE 'at most ' || coalesce(returned, 0) END AS expected,
        pieces::text AS found
    FROM (
        SELECT order_id, product_id, sum(pieces) AS pieces, min(id) FILTER (WHERE kind = 'shipped') AS shipment
        FROM stock_movements WHERE order_id IS NOT NULL GROUP BY order_id, product_id
    ) AS moved
    LEFT JOIN (SELECT product_id, max(id) AS id FROM stock_movements WHERE kind = 'unrecorded' GROUP BY product_id)
        AS unrecorded USING (product_id)
    LEFT JOIN (
        SELECT order_id, product_id, sum(quantity - returned) AS kept, sum(returned) AS returned
        FROM order_items GROUP BY order_id, product_id
    ) AS line USING (order_id, product_id)
    LEFT JOIN orders ON orders.id = order_id
    CROSS JOIN LATERAL (SELECT
        coalesce(shipment > coalesce(unrecorded.id, 0), false) AS complete,
        CASE WHEN status = 'fulfilled' THEN -coalesce(kept, 0) ELSE 0 END::text AS left_pieces
    ) AS known
    WHERE CASE WHEN complete THEN pieces::text <> left_pieces ELSE pieces > coalesce(returned, 0) END
""")

_OUTBOX = Statement("""
    SELECT queued.kind, queued.position, queued.event_id, format('%s of %s', queued.type, queued.aggregate) AS expected,
        events.type || ' of ' || events.aggregate AS found
    FROM (
        SELECT 'outbox_event' AS kind, position, event_id, aggregate, type FROM outbox
        UNION ALL SELECT 'dead_letter_event', position, event_id, aggregate, type FROM dead_letters
    ) AS queued LEFT JOIN events ON events.id = queued.event_id
    WHERE (events.type, events.aggregate) IS DISTINCT FROM (queued.type, queued.aggregate)
""")

# A pending order is moved by its event, and at the latest by the end of its hold. One that awaits payment has a due
# date: a CHECK says so. All other statuses are final, or wait for a person.
_ORDER_EVENTS = Statement("""
    SELECT 'order_event' AS kind, orders.id AS order_id, 'an event in the outbox or among the dead letters' AS expected,
        coalesce('no event; its hold expires at ' || to_char(hold.expires_at AT TIME ZONE 'UTC',
            'YYYY-MM-DD HH24:MI:SS') || ' UTC', 'no event and no hold') AS found
    FROM orders LEFT JOIN (
        SELECT order_id, min(expires_at) AS expires_at FROM transfers
        WHERE state = 'pending' AND order_id IS NOT NULL GROUP BY order_id
    ) AS hold ON hold.order_id = orders.id
    WHERE status = 'pending' AND NOT EXISTS (
        SELECT FROM outbox WHERE outbox.aggregate = 'order/' || orders.id
    ) AND NOT EXISTS (
        SELECT FROM dead_letters WHERE dead_letters.aggregate = 'order/' || orders.id
    )
""")

# Of each aggregate, the first row that waits for something other than its time. If that one sleeps, what should wake it
# must be a dead letter. The later ones have the first one before them.
_SLEEPERS = Statement(f"""
    SELECT 'outbox_sleeper' AS kind, position, event_id, aggregate,
        'an earlier event of its aggregate that waits or is dead' AS expected, NULL AS found
    FROM (
        SELECT DISTINCT ON (aggregate) aggregate, position, event_id, available_at FROM outbox
        WHERE available_at IS NOT NULL AND waits <> 'asked' ORDER BY aggregate, position
    ) AS first
    WHERE {sleeps_for_nothing("first")}
""")  # noqa: S608

CHECKS = (
    _LEDGER_SUM, _ENTRIES, ACCOUNTS, OVERDRAWN, _TRANSFERS, _ORPHANS, _POSTINGS, _REVERSALS, _ADJUSTMENTS, _UNAPPROVED,
    PAYMENTS, _PAYEES, _REFUNDED, _STRAY_PAYMENTS, _LINES, _REFUNDS, _STATUSES, _HISTORIES,
    RESERVED_STOCK, IMPOSSIBLE_STOCK, _MOVED_STOCK, _STOCK_BY_HAND, _MOVED_FOR_ORDERS,
    _OUTBOX, _ORDER_EVENTS, _SLEEPERS,
)  # fmt: skip
"""The checks of tables against each other."""

KEEP = Statement("""
    INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample)
    VALUES (:started_at, :seconds, :rows_checked, :differences, CAST(:sample AS jsonb))
""")

# The audit reports what is wrong; this counts the rows concerned. Checks that compare entry by entry are left out.
BOOKS = Statement(
    f"""
    SELECT
        (SELECT coalesce(sum(amount), 0) FROM entries) AS entries_sum,
        (SELECT coalesce(sum(posted), 0) FROM accounts) AS posted_sum,
        (SELECT count(*) FROM ({OVERDRAWN.text}) AS wrong) AS overdrawn_accounts,
        (SELECT count(DISTINCT account_id) FROM ({ACCOUNTS.text}) AS wrong) AS miscounted_accounts,
        (SELECT count(*) FROM ({IMPOSSIBLE_STOCK.text}) AS wrong) AS negative_stock,
        (SELECT count(*) FROM ({RESERVED_STOCK.text}) AS wrong) AS miscounted_stock,
        (SELECT count(DISTINCT order_id) FROM ({PAYMENTS.text}) AS wrong) AS mispaid_orders
""",  # noqa: S608
    limit=65.0,
)

# The limit for requests is shorter. PostgreSQL 17 and newer also limit the transaction: a new value does not change a
# running timer; only 0 stops it. A limit for statements that is not shorter than the transaction's is ignored.
TAKE_TIME = Statement("""
    SELECT set_config(name, '0', true),
        set_config(name, CASE name WHEN 'statement_timeout' THEN '60s' ELSE '62s' END, true)
    FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')
""")
