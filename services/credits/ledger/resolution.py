"""All SQL of holds for orders, and of how any pending transfer is resolved."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from services.credits.models import TransferState
from services.sql import Read, Reading, Results, SqlAccess, Write, Writing, without_waiting

# An array, not a join: each account is looked up by its id, however few the orders are held to be. The clock, not the
# transaction's time, and after all accounts are locked: a lock that was waited for does not make a hold last longer.
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
_LOCK_HOLDS = Reading(_LOCKING, results={**_LOCKED, "pending": (*_PENDING, "false")})
_IS_MISSING = """
    NOT coalesce(ARRAY[debit_account_id, credit_account_id] <@ ARRAY(SELECT id FROM locked_accounts), false)
"""
_LOCK_FREE_HOLDS = Reading(without_waiting(_LOCKING), results={**_LOCKED, "pending": (*_PENDING, _IS_MISSING)})

# All is computed where the rows are, which are locked: sending what the entries are to hold costs the driver
# more than this does. An account's entries are numbered in the order of the transfers that were named.
_RESOLVE = Writing(
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


class OrderHold(NamedTuple):
    """A pending transfer for an order. One that `is_due` can no longer be posted: its time is over.

    `is_busy` is whether another transaction has locked one of its accounts.
    """

    id: UUID
    order_id: UUID
    credit_account_id: int
    is_due: bool
    is_busy: bool


@dataclass(frozen=True, slots=True)
class LockedHolds:
    """Pending transfers for orders, and which of the accounts on both sides, which are locked, are closed."""

    holds: Sequence[OrderHold]
    closed: Collection[int]


class ResolutionRepository(SqlAccess):
    """Pending transfers, and what becomes of them."""

    async def lock_holds(self, order_ids: Sequence[UUID]) -> LockedHolds:
        """The holds of these orders that are not resolved, and their accounts, locked until the transaction ends.

        The orders are locked by the caller, so that their holds stay as they are.
        """
        (found,) = await self.sql.read(self.locking_holds(order_ids))
        return found

    @staticmethod
    def locking_holds(order_ids: Sequence[UUID], *, wait: bool = True) -> Read[LockedHolds]:
        """`lock_holds`, to be read after something else. Without `wait`, locked accounts are skipped."""
        reading = _LOCK_HOLDS if wait else _LOCK_FREE_HOLDS
        return Read(reading, {"order_ids": list(order_ids)}, _locked_holds)

    async def resolve_holds(self, *, void: Sequence[UUID] = (), expire: Sequence[UUID] = ()) -> None:
        """Void some pending transfers and let others expire, as `resolving` does."""
        if void or expire:
            await self.sql.write(self.resolving(void=void, expire=expire))

    @staticmethod
    def resolving(
        *,
        post: Sequence[UUID] = (),
        void: Sequence[UUID] = (),
        expire: Sequence[UUID] = (),
        part: Decimal | None = None,
    ) -> Write:
        """Post some pending transfers, void others and let others expire, with one update for each account.

        `part` is how much to post of each, instead of all; the remainder is released.

        The caller has locked their accounts, and nobody resolves a transfer twice: the caller has locked its order, or
        itself where it has none.
        """
        states = {TransferState.posted: post, TransferState.voided: void, TransferState.expired: expire}
        ids = [transfer_id for named in states.values() for transfer_id in named]
        parameters = {
            "resolved_ids": ids,
            "states": [state.value for state, named in states.items() for _ in named],
            "part": part,
        }
        return Write(_RESOLVE, parameters, wanted=len(ids))


def _locked_holds(results: Results) -> LockedHolds:
    accounts, holds = results
    return LockedHolds(
        holds=[OrderHold._make(hold) for hold in holds],
        closed={account_id for account_id, is_closed in accounts if is_closed},
    )
