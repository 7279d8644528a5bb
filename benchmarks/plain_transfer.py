"""The baseline of transfers, in a separate process: plain asyncpg, one statement per transfer.

It updates two accounts, inserts the transfer and its two entries, and is committed automatically.
"""

from decimal import Decimal
from typing import Any

import asyncpg

from benchmarks.load import Seen, run_job
from benchmarks.plain_clients import run_clients
from services.fields import new_id

_TRANSFER = """
    WITH debit AS (
        UPDATE accounts SET posted = posted - $4, version = version + 1 WHERE id = $2 AND posted - held >= $4
        RETURNING id, version, posted
    ), credit AS (
        UPDATE accounts SET posted = accounts.posted + $4, version = accounts.version + 1
        FROM debit WHERE accounts.id = $3
        RETURNING accounts.id, accounts.version, accounts.posted
    ), written AS (
        INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, resolved_at)
        SELECT $1, debit.id, credit.id, $4, 'transfer', 'posted', $4, now() FROM debit, credit
    )
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT id, version, $1, -$4, posted FROM debit UNION ALL SELECT id, version, $1, $4, posted FROM credit
"""


async def transfer(connection: asyncpg.Connection, wanted: tuple[int, int, Decimal]) -> None:
    written = await connection.execute(_TRANSFER, new_id(), *wanted)
    assert written == "INSERT 0 2", written


async def run(job: dict[str, Any]) -> Seen:
    # Always from the lower id to the higher one: the updates lock in this order, so there are no deadlocks.
    wanted = [(min(pair), max(pair), Decimal(amount)) for *pair, amount in job["transfers"]]
    return await run_clients(job, wanted, transfer)


if __name__ == "__main__":
    run_job(run)
