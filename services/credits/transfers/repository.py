"""All SQL of transfers between users. A request's transfers take two statements, however many there are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from services.credits.ledger.repository import Movement
from services.credits.models import TransferKind, TransferState
from services.credits.transfers.planning import Balance, Posting
from services.sql import SqlAccess, Statement

# Not a join: for that, a plan made for any number of users would read the whole table while it is small.
_PARTIES = """
    SELECT user_id, id AS account_id, posted, held, version, closed_at IS NOT NULL AS is_closed, now() AS at,
        (SELECT is_active AND deleted_at IS NULL FROM users WHERE users.id = accounts.user_id) AS is_known
    FROM accounts WHERE user_id = ANY(CAST(:user_ids AS bigint[]))
"""
_READ_PARTIES = Statement(_PARTIES)
_LOCK_PARTIES = Statement(f"{_PARTIES} ORDER BY id FOR NO KEY UPDATE")

# The accounts are locked, so what is written is what was computed from them.
_WRITE = Statement("""
    WITH new AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:amounts AS numeric[]), CAST(:notes AS text[]),
            CAST(:debits AS bigint[]), CAST(:debit_versions AS bigint[]), CAST(:debit_balances AS numeric[]),
            CAST(:credits AS bigint[]), CAST(:credit_versions AS bigint[]), CAST(:credit_balances AS numeric[])
        ) AS new(
            id, amount, note, debit, debit_version, debit_balance, credit, credit_version, credit_balance
        )
    ), written AS (
        INSERT INTO transfers
            (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, note, resolved_at)
        SELECT id, debit, credit, amount, 'transfer', 'posted', amount, note, now() FROM new
    ), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT debit, debit_version, id, -amount, debit_balance FROM new
        UNION ALL SELECT credit, credit_version, id, amount, credit_balance FROM new
    )
    UPDATE accounts SET posted = after.posted, version = after.version
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:posted AS numeric[]), CAST(:versions AS bigint[]))
        AS after(account_id, posted, version)
    WHERE accounts.id = after.account_id
""")


_FIND = """
    SELECT transfers.id, kind, state, amount, posted_amount, debit_account_id, credit_account_id, order_id, reverses,
        note, transfers.created_at, expires_at, resolved_at, payer.user_id AS from_user_id,
        payee.user_id AS to_user_id, coalesce(expires_at <= clock_timestamp(), false) AS is_due,
        (SELECT id FROM transfers AS reversal WHERE reversal.reverses = transfers.id) AS reversed_by
    FROM transfers
    JOIN accounts AS payer ON payer.id = debit_account_id
    JOIN accounts AS payee ON payee.id = credit_account_id
    WHERE transfers.id = :id
"""
_GET = Statement(_FIND)
# The transfer, then the accounts: nothing is waited for between the look at the clock and the posting. The accounts of
# an order's payment are left alone: it is resolved with its order, which is locked first.
_LOCK = Statement("""
    WITH locked AS (
        SELECT debit_account_id, credit_account_id, order_id FROM transfers WHERE id = :id FOR NO KEY UPDATE
    )
    SELECT id FROM accounts
    WHERE id = ANY(ARRAY(
        SELECT unnest(ARRAY[debit_account_id, credit_account_id]) FROM locked WHERE order_id IS NULL
    ))
    ORDER BY id FOR NO KEY UPDATE
""")


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A transfer with the users on both sides of it; None where a system account is."""

    id: UUID
    kind: TransferKind
    state: TransferState
    amount: Decimal
    posted_amount: Decimal | None
    debit_account_id: int
    credit_account_id: int
    order_id: UUID | None
    reverses: UUID | None
    note: str
    created_at: datetime
    expires_at: datetime | None
    resolved_at: datetime | None
    from_user_id: int | None
    to_user_id: int | None
    is_due: bool
    """Its time to be posted is over, swept or not."""
    reversed_by: UUID | None

    @classmethod
    def from_row(cls, row: Any) -> "TransferRow":
        return cls(**{**row, "kind": TransferKind(row["kind"]), "state": TransferState(row["state"])})

    def movement(self) -> Movement:
        return Movement(self.id, self.debit_account_id, self.credit_account_id, self.amount, self.order_id)


@dataclass(frozen=True, slots=True)
class Parties:
    """The accounts that transfers are about, by user. Of the recipients, unknown ones are missing."""

    sender: Balance
    recipients: Mapping[int, Balance]
    at: datetime
    """The transaction's time, which the transfers get."""


class TransferRepository(SqlAccess):
    """Transfers between users."""

    async def parties(self, sender_id: int, recipient_ids: Iterable[int], *, lock: bool) -> Parties:
        """The users' accounts; locked, in the order of their ids, until the transaction ends, or only read."""
        statement = _LOCK_PARTIES if lock else _READ_PARTIES
        rows = await self.sql.fetch(statement, user_ids=list({sender_id, *recipient_ids}))
        balances = {
            row["user_id"]: Balance(row["account_id"], row["posted"], row["held"], row["version"], row["is_closed"])
            for row in rows
            # Who was deleted or deactivated is as unknown as who never was; the sender has signed in a moment ago.
            if row["is_known"] or row["user_id"] == sender_id
        }
        return Parties(balances[sender_id], balances, rows[0]["at"])

    async def write(self, postings: Sequence[Posting]) -> None:
        """Write transfers that take effect at once, their entries, and the balances they lead to."""
        touched = {balance.account_id: balance for p in postings for balance in (p.debit, p.credit)}
        await self.sql.run(
            _WRITE,
            ids=[posting.transfer_id for posting in postings],
            amounts=[posting.item.amount for posting in postings],
            notes=[posting.item.note for posting in postings],
            debits=[posting.debit.account_id for posting in postings],
            debit_versions=[posting.debit_version for posting in postings],
            debit_balances=[posting.debit_balance for posting in postings],
            credits=[posting.credit.account_id for posting in postings],
            credit_versions=[posting.credit_version for posting in postings],
            credit_balances=[posting.credit_balance for posting in postings],
            account_ids=list(touched),
            posted=[balance.posted for balance in touched.values()],
            versions=[balance.version for balance in touched.values()],
        )

    async def find(self, transfer_id: UUID, *, lock: bool = False) -> TransferRow | None:
        """The transfer, if there is one; `lock` takes the row and its accounts until the transaction ends."""
        if lock:
            # A statement of its own: the one after it sees what whoever held the lock has committed.
            await self.sql.fetch(_LOCK, id=transfer_id)
        rows = await self.sql.fetch(_GET, id=transfer_id)
        return TransferRow.from_row(rows[0]) if rows else None
