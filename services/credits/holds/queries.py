"""SQL statements about holds between users, and the one by which a sweep locks the holds of orders."""

from services.sql import Statement

# The caller has locked the accounts, so its checks of the balances still hold.
WRITE = Statement("""
    WITH written AS (
        INSERT INTO transfers
            (id, debit_account_id, credit_account_id, amount, kind, state, note, expires_at, actor)
        VALUES (:id, :debit, :credit, CAST(:amount AS numeric), 'transfer', 'pending', :note, :expires_at, :actor)
    )
    UPDATE accounts SET held = held + CAST(:amount AS numeric) WHERE id = :debit
""")

# The row comparison and ORDER BY match the index, so a slice reads only its own rows, not those of earlier slices.
DUE = Statement("""
    SELECT expires_at, id FROM transfers
    WHERE state = 'pending' AND order_id IS NULL AND expires_at <= now()
    AND (expires_at, id) > (CAST(:expires_at AS timestamptz), CAST(:id AS uuid))
    ORDER BY expires_at, id LIMIT :limit
""")

# Only the payer's account changes when credits are released. If it is locked, this does not wait. Rows are found by
# their ids, and only then checked: with one condition, the planner might read the index of all due rows.
LOCK_DUE = Statement("""
    WITH found AS MATERIALIZED (
        SELECT id, debit_account_id, credit_account_id, amount, state, order_id, expires_at FROM transfers
        WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    ), due AS MATERIALIZED (
        SELECT * FROM found WHERE state = 'pending' AND order_id IS NULL AND expires_at <= now()
    ), payers AS MATERIALIZED (
        SELECT id FROM accounts WHERE id = ANY(ARRAY(SELECT debit_account_id FROM due))
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT id, debit_account_id, credit_account_id, amount FROM due
    WHERE debit_account_id IN (SELECT id FROM payers)
""")

LOCK_OF_ORDERS = Statement("""
    WITH found AS MATERIALIZED (
        SELECT id, order_id, debit_account_id, expires_at, kind, state FROM transfers
        WHERE order_id = ANY(CAST(:order_ids AS uuid[]))
    ), pending AS MATERIALIZED (
        SELECT * FROM found WHERE kind = 'order' AND state = 'pending'
    ), payers AS MATERIALIZED (
        SELECT id FROM accounts WHERE id = ANY(ARRAY(SELECT debit_account_id FROM pending))
        ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT id, order_id, expires_at <= clock_timestamp() AS is_due FROM pending
    WHERE debit_account_id IN (SELECT id FROM payers) ORDER BY id
""")
