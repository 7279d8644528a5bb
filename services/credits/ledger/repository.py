"""All SQL about accounts, transfers and entries. Accounts are locked in the order of their ids, everywhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy.orm import joinedload
from sqlmodel import col, select

from services.credits.ledger.resolution import ResolutionRepository
from services.credits.models import ISSUANCE, Account, Transfer, TransferKind
from services.errors import AccountClosed, AmountInvalid, InsufficientCredits
from services.fields import MAX_CREDITS, new_id
from services.sql import Statement, Write, Writing

# One conditional UPDATE checks and takes; where it finds too little, the INSERT has no row to join and writes nothing.
_HOLD = Statement("""
    WITH buyer AS (
        UPDATE accounts SET held = held + CAST(:total AS numeric)
        WHERE user_id = :buyer_id AND posted - held >= CAST(:total AS numeric) AND closed_at IS NULL
            AND NOT EXISTS (
                SELECT FROM accounts AS seller
                WHERE seller.id = ANY(CAST(:account_ids AS bigint[])) AND seller.closed_at IS NOT NULL
            )
        RETURNING id
    )
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT share.id, buyer.id, share.account_id, share.amount, 'order', 'pending', CAST(:order_id AS uuid),
        statement_timestamp() + CAST(:lasting AS interval)
    FROM buyer, unnest(CAST(:ids AS uuid[]), CAST(:account_ids AS bigint[]), CAST(:amounts AS numeric[]))
        AS share(id, account_id, amount)
""")

_CLOSED = Statement("""
    SELECT user_id FROM accounts
    WHERE (user_id = :buyer_id OR id = ANY(CAST(:account_ids AS bigint[]))) AND closed_at IS NOT NULL
""")

_LOCK_ACCOUNTS = Statement("""
    SELECT id, posted, held, version, system_name IS NOT NULL AS is_system, closed_at IS NOT NULL AS is_closed
    FROM accounts WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR NO KEY UPDATE
""")

# The entries and the balances: posting costs one trip to the database.
_POST = Writing(
    """
    entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT * FROM unnest(
            CAST(:account_ids AS bigint[]), CAST(:entry_versions AS bigint[]), CAST(:transfer_ids AS uuid[]),
            CAST(:amounts AS numeric[]), CAST(:balances AS numeric[])
        )
    ), balanced AS (
        UPDATE accounts SET posted = new.posted, version = new.version
        FROM unnest(CAST(:ids AS bigint[]), CAST(:posted AS numeric[]), CAST(:versions AS bigint[]))
            AS new(id, posted, version)
        WHERE accounts.id = new.id RETURNING 1
    )
    """,
    counted="balanced",
)

_WRITE_TRANSFERS = Statement("""
    INSERT INTO transfers (
        id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, order_id, reverses, note,
        resolved_at
    )
    SELECT id, debit, credit, amount, :kind, 'posted', amount, order_id, reverses, :note, now() FROM unnest(
        CAST(:ids AS uuid[]), CAST(:debits AS bigint[]), CAST(:credits AS bigint[]), CAST(:amounts AS numeric[]),
        CAST(:order_ids AS uuid[]), CAST(:reverses AS uuid[])
    ) AS new(id, debit, credit, amount, order_id, reverses)
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
    reverses: UUID | None = None


@dataclass(slots=True)
class Balance:
    """An account as it is while its row is locked."""

    id: int
    posted: Decimal
    held: Decimal
    version: int
    is_system: bool
    is_closed: bool


class LedgerRepository(ResolutionRepository):
    """Accounts, transfers and entries."""

    async def open_account(self, user_id: int) -> Account:
        account = Account(user_id=user_id)
        self.session.add(account)
        await self.session.flush()
        return account

    async def account_of(self, user_id: int) -> Account | None:
        return (await self.session.exec(select(Account).where(col(Account.user_id) == user_id))).one_or_none()

    async def lock_account(self, user_id: int) -> Account | None:
        """The account with its user, if there is one, locked until the transaction ends."""
        statement = (
            select(Account)
            .where(col(Account.user_id) == user_id)
            .options(joinedload(Account.user, innerjoin=True))  # type: ignore[arg-type]
            .with_for_update(of=Account, key_share=True)
        )
        return (await self.session.exec(statement)).one_or_none()

    async def issuance_account_id(self) -> int:
        statement = select(col(Account.id)).where(col(Account.system_name) == ISSUANCE)
        return (await self.session.exec(statement)).one()

    async def hold(self, order_id: UUID, buyer_id: int, shares: Sequence[Share], lasting: timedelta) -> None:
        """Hold the buyer's credits for `lasting`, by the database's clock: one pending transfer for each seller.

        Raises `AccountClosed` where the buyer's or a seller's is, `InsufficientCredits` where the available credits do
        not cover the sum, both with nothing written.
        """
        total = sum((share.amount for share in shares), Decimal(0))
        account_ids = [share.account_id for share in shares]
        held = await self.sql.run(
            _HOLD,
            order_id=order_id,
            buyer_id=buyer_id,
            total=total,
            ids=[new_id() for _ in shares],
            account_ids=account_ids,
            amounts=[share.amount for share in shares],
            lasting=lasting,
        )
        if held == 0:
            closed = [
                row["user_id"] for row in await self.sql.fetch(_CLOSED, buyer_id=buyer_id, account_ids=account_ids)
            ]
            if buyer_id in closed:
                raise AccountClosed("your account is closed")
            if closed:
                raise AccountClosed(f"the account of seller {min(closed)} is closed")
            raise InsufficientCredits(f"the available credits do not cover {total}")

    async def get_transfer(self, transfer_id: UUID) -> Transfer:
        return (await self.session.exec(select(Transfer).where(col(Transfer.id) == transfer_id))).one()

    async def post_part(self, hold: Movement, amount: Decimal) -> None:
        """Post so much of a pending transfer and release the remainder. The transfer is locked by the caller.

        Raises `AccountClosed` or `AmountInvalid`, with nothing written, where the payee's account does not take it.
        """
        balances = await self.lock_accounts([hold])
        _check_payees([replace(hold, amount=amount)], balances)
        await self.sql.write(self.resolving(post=[hold.transfer_id], part=amount))

    async def transfer(self, movements: Sequence[Movement], kind: TransferKind, note: str) -> None:
        """Write transfers that take effect at once.

        Raises `AccountClosed`, `InsufficientCredits` where a user's available credits would go below zero, or
        `AmountInvalid` where an account would hold more than it can, with nothing written.
        """
        balances = await self.lock_accounts(movements)
        spending: dict[int, Decimal] = {}
        for movement in movements:
            debit = movement.debit_account_id
            spending[debit] = spending.get(debit, Decimal(0)) + movement.amount
        for account_id, amount in spending.items():
            balance = balances[account_id]
            if balance.is_closed:
                raise AccountClosed("the account that the credits would come from is closed")
            if not balance.is_system and balance.posted - balance.held < amount:
                raise InsufficientCredits(f"the available credits do not cover {amount}")
        _check_payees(movements, balances)
        await self.sql.run(
            _WRITE_TRANSFERS,
            ids=[movement.transfer_id for movement in movements],
            debits=[movement.debit_account_id for movement in movements],
            credits=[movement.credit_account_id for movement in movements],
            amounts=[movement.amount for movement in movements],
            order_ids=[movement.order_id for movement in movements],
            reverses=[movement.reverses for movement in movements],
            kind=kind.value,
            note=note,
        )
        await self.sql.write(_posting(movements, balances))

    async def lock_accounts(self, movements: Iterable[Movement]) -> dict[int, Balance]:
        """The accounts on both sides by their ids, locked in the order of these until the transaction ends."""
        ids = {account for m in movements for account in (m.debit_account_id, m.credit_account_id)}
        rows = await self.sql.fetch(_LOCK_ACCOUNTS, ids=sorted(ids))
        return {row["id"]: Balance(**row) for row in rows}


def _posting(movements: Sequence[Movement], balances: dict[int, Balance]) -> Write:
    """Two entries for each movement, and one update for each account."""
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
    changed = list(balances.values())
    parameters = {
        "account_ids": [entry[0] for entry in entries],
        "entry_versions": [entry[1] for entry in entries],
        "transfer_ids": [entry[2] for entry in entries],
        "amounts": [entry[3] for entry in entries],
        "balances": [entry[4] for entry in entries],
        "ids": [balance.id for balance in changed],
        "posted": [balance.posted for balance in changed],
        "versions": [balance.version for balance in changed],
    }
    return Write(_POST, parameters, wanted=len(changed))


def _check_payees(movements: Iterable[Movement], balances: Mapping[int, Balance]) -> None:
    receiving: dict[int, Decimal] = {}
    for movement in movements:
        credit = movement.credit_account_id
        receiving[credit] = receiving.get(credit, Decimal(0)) + movement.amount
    for account_id, amount in receiving.items():
        if balances[account_id].is_closed:
            raise AccountClosed("the account that the credits would go to is closed")
        if balances[account_id].posted + amount > MAX_CREDITS:
            raise AmountInvalid(f"an account holds at most {MAX_CREDITS}")
