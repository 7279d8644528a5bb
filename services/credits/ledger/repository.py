"""All SQL about accounts, transfers and entries. Accounts are locked in the order of their ids, everywhere."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.orm import joinedload
from sqlmodel import col, select

from services.credits.ledger import queries
from services.credits.models import ISSUANCE, Account, Transfer, TransferKind, TransferState
from services.errors import AccountClosed, AmountInvalid, InsufficientCredits
from services.fields import MAX_CREDITS, new_id
from services.sql import Read, Results, SqlAccess, Write


class LedgerRepository(SqlAccess):
    """Accounts, transfers and entries; pending transfers, and what becomes of them."""

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

    async def hold(self, order_id: UUID, buyer_id: int, shares: Sequence["Share"], lasting: timedelta) -> None:
        """Hold the buyer's credits for `lasting`, by the database's clock: one pending transfer for each seller.

        Raises `AccountClosed` where the buyer's or a seller's is, `InsufficientCredits` where the available credits do
        not cover the sum, both with nothing written.
        """
        total = sum((share.amount for share in shares), Decimal(0))
        account_ids = [share.account_id for share in shares]
        held = await self.sql.run(
            queries.HOLD,
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
                row["user_id"]
                for row in await self.sql.fetch(queries.CLOSED, buyer_id=buyer_id, account_ids=account_ids)
            ]
            if buyer_id in closed:
                raise AccountClosed("your account is closed")
            if closed:
                raise AccountClosed(f"the account of seller {min(closed)} is closed")
            raise InsufficientCredits(f"the available credits do not cover {total}")

    async def get_transfer(self, transfer_id: UUID) -> Transfer:
        return (await self.session.exec(select(Transfer).where(col(Transfer.id) == transfer_id))).one()

    async def post_part(self, hold: "Movement", amount: Decimal) -> None:
        """Post so much of a pending transfer and release the remainder. The transfer is locked by the caller.

        Raises `AccountClosed` or `AmountInvalid`, with nothing written, where the payee's account does not take it.
        """
        balances = await self.lock_accounts([hold])
        _check_payees([replace(hold, amount=amount)], balances)
        await self.sql.write(self.resolving(post=[hold.transfer_id], part=amount))

    async def transfer(self, movements: Sequence["Movement"], kind: TransferKind, note: str) -> None:
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
            queries.WRITE_TRANSFERS,
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

    async def lock_accounts(self, movements: Iterable["Movement"]) -> dict[int, "Balance"]:
        """The accounts on both sides by their ids, locked in the order of these until the transaction ends."""
        ids = {account for m in movements for account in (m.debit_account_id, m.credit_account_id)}
        rows = await self.sql.fetch(queries.LOCK_ACCOUNTS, ids=sorted(ids))
        return {row["id"]: Balance(**row) for row in rows}

    async def lock_holds(self, order_ids: Sequence[UUID]) -> "LockedHolds":
        """The holds of these orders that are not resolved, and their accounts, locked until the transaction ends.

        The orders are locked by the caller, so that their holds stay as they are.
        """
        (found,) = await self.sql.read(self.locking_holds(order_ids))
        return found

    @staticmethod
    def locking_holds(order_ids: Sequence[UUID], *, wait: bool = True) -> "Read[LockedHolds]":
        """`lock_holds`, to be read after something else. Without `wait`, locked accounts are skipped."""
        reading = queries.LOCK_HOLDS if wait else queries.LOCK_FREE_HOLDS
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
        return Write(queries.RESOLVE, parameters, wanted=len(ids))


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
    return Write(queries.POST, parameters, wanted=len(changed))


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


def _locked_holds(results: Results) -> LockedHolds:
    accounts, holds = results
    return LockedHolds(
        holds=[OrderHold._make(hold) for hold in holds],
        closed={account_id for account_id, is_closed in accounts if is_closed},
    )
