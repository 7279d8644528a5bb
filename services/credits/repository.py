"""All SQL about accounts, transfers and entries. Accounts are locked in the order of their ids, everywhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlmodel import col, select

from services.credits.models import ISSUANCE, Account, Transfer, TransferKind
from services.errors import InsufficientCredits
from services.fields import new_id
from services.sql import SqlAccess, Statement

# One conditional UPDATE checks and takes; where it finds too little, the INSERT has no row to join and writes nothing.
_HOLD = Statement("""
    WITH buyer AS (
        UPDATE accounts SET held = held + CAST(:total AS numeric)
        WHERE user_id = :buyer_id AND posted - held >= CAST(:total AS numeric)
        RETURNING id
    )
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT share.id, buyer.id, share.account_id, share.amount, 'order', 'pending', CAST(:order_id AS uuid),
        CAST(:expires_at AS timestamptz)
    FROM buyer, unnest(CAST(:ids AS uuid[]), CAST(:account_ids AS bigint[]), CAST(:amounts AS numeric[]))
        AS share(id, account_id, amount)
""")

_LOCK_ACCOUNTS = Statement("""
    SELECT id, posted, held, version, system_name IS NOT NULL AS is_system FROM accounts
    WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
""")

_WRITE_BALANCES = Statement("""
    UPDATE accounts SET posted = new.posted, held = new.held, version = new.version
    FROM unnest(
        CAST(:ids AS bigint[]), CAST(:posted AS numeric[]), CAST(:held AS numeric[]), CAST(:versions AS bigint[])
    ) AS new(id, posted, held, version)
    WHERE accounts.id = new.id
""")

_WRITE_ENTRIES = Statement("""
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT * FROM unnest(
        CAST(:account_ids AS bigint[]), CAST(:versions AS bigint[]), CAST(:transfer_ids AS uuid[]),
        CAST(:amounts AS numeric[]), CAST(:balances AS numeric[])
    )
""")

_WRITE_TRANSFERS = Statement("""
    INSERT INTO transfers
        (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, order_id, note, resolved_at)
    SELECT id, debit, credit, amount, :kind, 'posted', amount, order_id, :note, now() FROM unnest(
        CAST(:ids AS uuid[]), CAST(:debits AS bigint[]), CAST(:credits AS bigint[]), CAST(:amounts AS numeric[]),
        CAST(:order_ids AS uuid[])
    ) AS new(id, debit, credit, amount, order_id)
""")

_OF_ORDERS = Statement("""
    SELECT id, order_id, debit_account_id, credit_account_id, amount FROM transfers
    WHERE order_id = ANY(CAST(:order_ids AS uuid[])) AND kind = 'order' AND state = :state ORDER BY id
""")

_RESOLVE = Statement("""
    UPDATE transfers SET state = CAST(:state AS text), resolved_at = now(),
        posted_amount = CASE CAST(:state AS text) WHEN 'posted' THEN amount END
    WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'pending'
""")


@dataclass(frozen=True, slots=True)
class Share:
    """What one seller is due from an order."""

    account_id: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Movement:
    """A transfer as the ledger sees it: `amount` credits from the debit account to the credit account."""

    transfer_id: UUID
    debit_account_id: int
    credit_account_id: int
    amount: Decimal
    order_id: UUID | None = None


@dataclass(slots=True)
class _Balance:
    id: int
    posted: Decimal
    held: Decimal
    version: int
    is_system: bool


class LedgerRepository(SqlAccess):
    """Accounts, transfers and entries."""

    async def open_account(self, user_id: int) -> Account:
        account = Account(user_id=user_id)
        self.session.add(account)
        await self.session.flush()
        return account

    async def account_of(self, user_id: int) -> Account | None:
        return (await self.session.exec(select(Account).where(col(Account.user_id) == user_id))).one_or_none()

    async def issuance_account_id(self) -> int:
        statement = select(col(Account.id)).where(col(Account.system_name) == ISSUANCE)
        return (await self.session.exec(statement)).one()

    async def hold(self, order_id: UUID, buyer_id: int, shares: Sequence[Share], expires_at: datetime) -> None:
        """Set the buyer's credits aside until then: one pending transfer for each seller.

        Raises `InsufficientCredits`, with nothing written, where the available credits do not cover the sum.
        """
        total = sum((share.amount for share in shares), Decimal(0))
        held = await self.sql.run(
            _HOLD,
            order_id=order_id,
            buyer_id=buyer_id,
            total=total,
            ids=[new_id() for _ in shares],
            account_ids=[share.account_id for share in shares],
            amounts=[share.amount for share in shares],
            expires_at=expires_at,
        )
        if held == 0:
            raise InsufficientCredits(f"the available credits do not cover {total}")

    async def get_transfer(self, transfer_id: UUID) -> Transfer:
        return (await self.session.exec(select(Transfer).where(col(Transfer.id) == transfer_id))).one()

    async def pending_of(self, order_ids: Sequence[UUID]) -> list[Movement]:
        """The holds of these orders that are neither posted nor voided."""
        return await self._of_orders(order_ids, "pending")

    async def posted_of(self, order_ids: Sequence[UUID]) -> list[Movement]:
        """The payments of these orders."""
        return await self._of_orders(order_ids, "posted")

    async def resolve_holds(self, *, post: Sequence[Movement], void: Sequence[Movement]) -> None:
        """Post some pending transfers and void others, with one update for each account.

        The orders are locked by the caller, so that nobody resolves a transfer twice.
        """
        balances = await self._lock([*post, *void])
        for movement in [*post, *void]:
            balances[movement.debit_account_id].held -= movement.amount
        if void:
            await self.sql.run(_RESOLVE, ids=[movement.transfer_id for movement in void], state="voided")
        if post:
            await self.sql.run(_RESOLVE, ids=[movement.transfer_id for movement in post], state="posted")
        await self._post(post, balances)

    async def transfer(self, movements: Sequence[Movement], kind: TransferKind, note: str) -> None:
        """Write transfers that take effect at once.

        Raises `InsufficientCredits`, with nothing written, where a user's available credits would go below zero.
        """
        balances = await self._lock(movements)
        spending: dict[int, Decimal] = {}
        for movement in movements:
            debit = movement.debit_account_id
            spending[debit] = spending.get(debit, Decimal(0)) + movement.amount
        for account_id, amount in spending.items():
            balance = balances[account_id]
            if not balance.is_system and balance.posted - balance.held < amount:
                raise InsufficientCredits(f"the available credits do not cover {amount}")
        await self.sql.run(
            _WRITE_TRANSFERS,
            ids=[movement.transfer_id for movement in movements],
            debits=[movement.debit_account_id for movement in movements],
            credits=[movement.credit_account_id for movement in movements],
            amounts=[movement.amount for movement in movements],
            order_ids=[movement.order_id for movement in movements],
            kind=kind.value,
            note=note,
        )
        await self._post(movements, balances)

    async def _of_orders(self, order_ids: Sequence[UUID], state: str) -> list[Movement]:
        rows = await self.sql.fetch(_OF_ORDERS, order_ids=list(order_ids), state=state)
        return [
            Movement(row["id"], row["debit_account_id"], row["credit_account_id"], row["amount"], row["order_id"])
            for row in rows
        ]

    async def _lock(self, movements: Iterable[Movement]) -> dict[int, _Balance]:
        ids = {account for m in movements for account in (m.debit_account_id, m.credit_account_id)}
        rows = await self.sql.fetch(_LOCK_ACCOUNTS, ids=sorted(ids))
        return {row["id"]: _Balance(**row) for row in rows}

    async def _post(self, movements: Sequence[Movement], balances: dict[int, _Balance]) -> None:
        """Two entries for each movement, then one update for each account."""
        entries: list[tuple[int, int, UUID, Decimal, Decimal]] = []
        for movement in movements:
            for account_id, amount in (
                (movement.debit_account_id, -movement.amount),
                (movement.credit_account_id, movement.amount),
            ):
                balance = balances[account_id]
                balance.posted += amount
                balance.version += 1
                entries.append((account_id, balance.version, movement.transfer_id, amount, balance.posted))
        if entries:
            account_ids, versions, transfer_ids, amounts, after = map(list, zip(*entries, strict=True))
            await self.sql.run(
                _WRITE_ENTRIES,
                account_ids=account_ids,
                versions=versions,
                transfer_ids=transfer_ids,
                amounts=amounts,
                balances=after,
            )
        if balances:
            changed = list(balances.values())
            await self.sql.run(
                _WRITE_BALANCES,
                ids=[balance.id for balance in changed],
                posted=[balance.posted for balance in changed],
                held=[balance.held for balance in changed],
                versions=[balance.version for balance in changed],
            )
