"""SQL statements about accounts, transfers and entries, and those that resolve holds."""

from services.sql import Reading, Statement, Writing, without_waiting

LOCK_BALANCES = Statement("""
    SELECT id AS account_id, user_id, posted, held, version, closed_at IS NOT NULL AS is_closed
    FROM accounts WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
""")

# One conditional UPDATE checks and holds; if there are too few credits, the INSERT joins no row and writes nothing.
# Its conditions are those of `refusal` in rules.py, without the last one, which cannot occur between users.
HOLD = Statement("""
    WITH buyer AS (
        UPDATE accounts SET held = held + CAST(:total AS numeric)
        WHERE user_id = :buyer_id AND posted - held >= CAST(:total AS numeric) AND closed_at IS NULL
            AND NOT EXISTS (
                SELECT FROM accounts AS seller
                WHERE seller.id = ANY(CAST(:account_ids AS bigint[])) AND seller.closed_at IS NOT NULL
            )
        RETURNING id
    )
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at, actor)
    SELECT share.id, buyer.id, share.account_id, share.amount, 'order', 'pending', CAST(:order_id AS uuid),
        statement_timestamp() + CAST(:lasting AS interval), :actor
    FROM buyer, unnest(CAST(:ids AS uuid[]), CAST(:account_ids AS bigint[]), CAST(:amounts AS numeric[]))
        AS share(id, account_id, amount)
""")

# A buyer whose account another transaction has locked is left out.
LOCK_FREE_BUYERS = Reading(
    """
    free_buyers AS MATERIALIZED (
        SELECT id, user_id, posted, held, version, closed_at IS NOT NULL AS is_closed
        FROM accounts WHERE user_id = ANY(CAST(:user_ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    """,
    results={"free_buyers": ("id", "user_id", "posted", "held", "version", "is_closed")},
)

# The holds of several orders. The caller has locked the buyers' accounts, so its checks of the balances still hold.
HOLD_ALL = Writing(
    """
    pending AS (
        INSERT INTO transfers (
            id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at, actor
        )
        SELECT id, debit, credit, amount, 'order', 'pending', order_id,
            statement_timestamp() + CAST(:lasting AS interval), actor
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:debits AS bigint[]), CAST(:credits AS bigint[]), CAST(:amounts AS numeric[]),
            CAST(:order_ids AS uuid[]), CAST(:actors AS text[])
        ) AS share(id, debit, credit, amount, order_id, actor)
    ), held AS (
        UPDATE accounts SET held = held + buyer.total
        FROM unnest(CAST(:account_ids AS bigint[]), CAST(:totals AS numeric[])) AS buyer(account_id, total)
        WHERE accounts.id = buyer.account_id RETURNING 1
    )
    """,
    counted="held",
)

# Without locks: it only explains why the statement above has written nothing.
BALANCES_OF_HOLD = Statement("""
    SELECT id AS account_id, user_id, posted, held, version, closed_at IS NOT NULL AS is_closed
    FROM accounts WHERE user_id = :buyer_id OR id = ANY(CAST(:account_ids AS bigint[]))
""")

# The caller has locked the accounts, so the values that it has computed from them are current.
POST = Writing(
    """
    posted AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:amounts AS numeric[]), CAST(:notes AS text[]), CAST(:order_ids AS uuid[]),
            CAST(:reverses AS uuid[]),
            CAST(:debits AS bigint[]), CAST(:debit_versions AS bigint[]), CAST(:debit_balances AS numeric[]),
            CAST(:credits AS bigint[]), CAST(:credit_versions AS bigint[]), CAST(:credit_balances AS numeric[]),
            CAST(:actors AS text[])
        ) AS posted(
            id, amount, note, order_id, reverses, debit, debit_version, debit_balance,
            credit, credit_version, credit_balance, actor
        )
    ), written AS (
        INSERT INTO transfers (
            id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, order_id, reverses, note,
            resolved_at, actor
        )
        SELECT id, debit, credit, amount, :kind, 'posted', amount, order_id, reverses, note, now(), actor FROM posted
    ), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT debit, debit_version, id, -amount, debit_balance FROM posted
        UNION ALL SELECT credit, credit_version, id, amount, credit_balance FROM posted
    ), balanced AS (
        UPDATE accounts SET posted = after.posted, version = after.version
        FROM unnest(CAST(:account_ids AS bigint[]), CAST(:posted AS numeric[]), CAST(:versions AS bigint[]))
            AS after(account_id, posted, version)
        WHERE accounts.id = after.account_id RETURNING 1
    )
    """,
    counted="balanced",
)

# An array, not a join: each account is looked up by its id, whatever number of orders the planner expects. The clock,
# not the transaction's time, and after all accounts are locked: waiting for a lock does not make a hold last longer.
_LOCKING = """
    pending AS MATERIALIZED (
        SELECT id, order_id, debit_account_id, credit_account_id, expires_at FROM transfers
        WHERE order_id = ANY(CAST(:order_ids AS uuid[])) AND kind = 'order' AND state = 'pending' ORDER BY id
    ), locked_accounts AS MATERIALIZED (
        SELECT id, closed_at IS NOT NULL AS is_closed FROM accounts
        WHERE id = ANY(ARRAY(SELECT unnest(ARRAY[debit_account_id, credit_account_id]) FROM pending))
        ORDER BY id FOR NO KEY UPDATE
    )
"""
_LOCKED = {"locked_accounts": ("id", "is_closed")}
_PENDING = ("id", "order_id", "credit_account_id", "expires_at <= clock_timestamp()")
LOCK_HOLDS = Reading(_LOCKING, results={**_LOCKED, "pending": (*_PENDING, "false")})
_IS_MISSING = """
    NOT coalesce(ARRAY[debit_account_id, credit_account_id] <@ ARRAY(SELECT id FROM locked_accounts), false)
"""
LOCK_FREE_HOLDS = Reading(without_waiting(_LOCKING), results={**_LOCKED, "pending": (*_PENDING, _IS_MISSING)})

# Everything is computed in the database, from locked rows: that costs less than sending the values of the entries
# through the driver. An account's entries are numbered in the order of the given transfers.
RESOLVE = Writing(
    """
    resolving AS MATERIALIZED (
        SELECT id, new.state, debit_account_id, credit_account_id, amount AS held, place,
            coalesce(CAST(:part AS numeric), amount) AS amount
        FROM unnest(CAST(:resolved_ids AS uuid[]), CAST(:states AS text[])) WITH ORDINALITY AS new(id, state, place)
        JOIN transfers USING (id) WHERE transfers.state = 'pending'
    ), resolved AS (
        UPDATE transfers SET state = resolving.state, resolved_at = now(),
            posted_amount = CASE resolving.state WHEN 'posted' THEN resolving.amount END
        FROM resolving WHERE transfers.id = resolving.id RETURNING 1
    ), posting AS MATERIALIZED (
        SELECT account_id, id, amount, row_number() OVER up_to_it AS number, sum(amount) OVER up_to_it AS total
        FROM (
            SELECT debit_account_id AS account_id, id, -amount AS amount, place, 0 AS side
            FROM resolving WHERE state = 'posted'
            UNION ALL
            SELECT credit_account_id, id, amount, place, 1 FROM resolving WHERE state = 'posted'
        ) AS entry
        WINDOW up_to_it AS (PARTITION BY account_id ORDER BY place, side)
    ), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT account_id, accounts.version + posting.number, posting.id, posting.amount,
            accounts.posted + posting.total
        FROM posting JOIN accounts ON accounts.id = account_id
    ), changing AS (
        SELECT account_id, sum(posted) AS posted, sum(held) AS held, sum(entries) AS entries FROM (
            SELECT account_id, amount AS posted, 0 AS held, 1 AS entries FROM posting
            UNION ALL SELECT debit_account_id, 0, held, 0 FROM resolving
        ) AS change GROUP BY account_id
    ), balanced AS (
        UPDATE accounts SET posted = accounts.posted + changing.posted, held = accounts.held - changing.held,
            version = version + changing.entries
        FROM changing WHERE accounts.id = account_id
    )
    """,
    counted="resolved",
)
