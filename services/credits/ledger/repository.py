"""All SQL about accounts, transfers and entries. Accounts are always locked in the order of their ids."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.orm import joinedload
from sqlmodel import col, select

from services.credits.ledger import queries
from services.credits.ledger.rules import Balance, Item, Movement, Posting, joint_refusal, not_covered, post
from services.credits.models import ISSUANCE, Account, Transfer, TransferKind, TransferState
from services.errors import DomainError
from services.fields import new_id
from services.repository import Repository
from services.sql import Read, Results, SqlAccess, Write
from services.users.repository import WITHOUT_PASSWORD


class AccountRepository(Repository[Account]):
    """Accounts, apart from their balances, which the ledger changes."""

    model = Account


class LedgerRepository(SqlAccess):
    """Accounts, entries and transfers, including pending ones and their resolution."""

    async def account_of(self, user_id: int) -> Account | None:
        return (await self.session.exec(select(Account).where(col(Account.user_id) == user_id))).one_or_none()

    async def account_with_user(self, user_id: int) -> Account | None:
        """The account with its user, if there is one."""
        shown = joinedload(Account.user, innerjoin=True).options(WITHOUT_PASSWORD)  # type: ignore[arg-type]
        statement = select(Account).where(col(Account.user_id) == user_id).options(shown)
        return (await self.session.exec(statement)).one_or_none()

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

        Raises `AccountClosed` if the buyer's or a seller's account is closed, or `InsufficientCredits` if the available
        credits do not cover the total. Nothing is written then.
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
            actor=self.actor,
        )
        if held == 0:
            raise await self._why_not_held(buyer_id, shares)

    @staticmethod
    def locking_free_buyers(user_ids: Sequence[int]) -> Read[dict[int, Balance]]:
        """Lock the users' accounts until the transaction ends, by user id, as a part of a longer read.

        Those that another transaction has locked are left out.
        """
        return Read(queries.LOCK_FREE_BUYERS, {"user_ids": list(user_ids)}, _balances_of_users)

    @staticmethod
    def holding(holds: "Sequence[NewHold]", lasting: timedelta) -> Write:
        """Hold credits for several orders as `hold` does. The caller has locked and checked the buyers' accounts."""
        totals: dict[int, Decimal] = {}
        for hold in holds:
            totals[hold.debit_account_id] = totals.get(hold.debit_account_id, Decimal(0)) + hold.share.amount
        parameters = {
            "ids": [new_id() for _ in holds],
            "debits": [hold.debit_account_id for hold in holds],
            "credits": [hold.share.account_id for hold in holds],
            "amounts": [hold.share.amount for hold in holds],
            "order_ids": [hold.order_id for hold in holds],
            "actors": [hold.actor for hold in holds],
            "account_ids": list(totals),
            "totals": list(totals.values()),
            "lasting": lasting,
        }
        return Write(queries.HOLD_ALL, parameters, wanted=len(totals))

    async def get_transfer(self, transfer_id: UUID) -> Transfer:
        return (await self.session.exec(select(Transfer).where(col(Transfer.id) == transfer_id))).one()

    async def post_part(self, hold: Movement, amount: Decimal) -> None:
        """Post `amount` of a pending transfer and release the remainder. The caller has locked the transfer.

        Raises `AccountClosed` or `AmountInvalid` if the payee's account cannot receive it. Nothing is written then.
        """
        balances = await self._lock_balances([hold])
        payer = balances[hold.debit_account_id]
        # The transfer moves the credits that it holds.
        payer.held -= hold.amount
        _check([Item("", payer, balances[hold.credit_account_id], amount, "")])
        await self.sql.write(self.resolving(post=[hold.transfer_id], part=amount))

    async def transfer(self, movements: Sequence[Movement], kind: TransferKind, note: str) -> None:
        """Write transfers that take effect immediately, all or none. Raises their `joint_refusal`, if there is one."""
        balances = await self._lock_balances(movements)
        items = [
            Item(
                "",
                balances[movement.debit_account_id],
                balances[movement.credit_account_id],
                movement.amount,
                note,
                movement.order_id,
                movement.reverses,
            )
            for movement in movements
        ]
        _check(items)
        postings = [post(item, movement.transfer_id) for item, movement in zip(items, movements, strict=True)]
        await self.write(postings, kind)

    async def write(self, postings: Sequence[Posting], kind: TransferKind) -> None:
        """Write transfers now, as `posting` does."""
        await self.sql.write(self.posting(postings, kind))

    def posting(
        self, postings: Sequence[Posting], kind: TransferKind, actors: Sequence[str | None] | None = None
    ) -> Write:
        """Write transfers that take effect immediately, their entries and the resulting balances.

        `actors` has who makes each; the default is the actor of the unit of work. The caller has locked the accounts.
        """
        touched = {balance.account_id: balance for p in postings for balance in (p.debit, p.credit)}
        parameters = {
            "ids": [posting.transfer_id for posting in postings],
            "amounts": [posting.item.amount for posting in postings],
            "notes": [posting.item.note for posting in postings],
            "actors": [self.actor] * len(postings) if actors is None else actors,
            "order_ids": [posting.item.order_id for posting in postings],
            "reverses": [posting.item.reverses for posting in postings],
            "debits": [posting.debit.account_id for posting in postings],
            "debit_versions": [posting.debit_version for posting in postings],
            "debit_balances": [posting.debit_balance for posting in postings],
            "credits": [posting.credit.account_id for posting in postings],
            "credit_versions": [posting.credit_version for posting in postings],
            "credit_balances": [posting.credit_balance for posting in postings],
            "account_ids": list(touched),
            "posted": [balance.posted for balance in touched.values()],
            "versions": [balance.version for balance in touched.values()],
            "kind": kind.value,
        }
        return Write(queries.POST, parameters, wanted=len(touched))

    async def lock_holds(self, order_ids: Sequence[UUID]) -> "LockedHolds":
        """The unresolved holds of these orders, with their accounts locked until the transaction ends.

        The caller has locked the orders, so their holds do not change.
        """
        (found,) = await self.sql.read(self.locking_holds(order_ids))
        return found

    @staticmethod
    def locking_holds(order_ids: Sequence[UUID], *, wait: bool = True) -> "Read[LockedHolds]":
        """`lock_holds`, as a part of a longer read. Without `wait`, locked accounts are skipped."""
        reading = queries.LOCK_HOLDS if wait else queries.LOCK_FREE_HOLDS
        return Read(reading, {"order_ids": list(order_ids)}, _locked_holds)

    async def resolve_holds(self, *, void: Sequence[UUID] = (), expire: Sequence[UUID] = ()) -> None:
        """Void some pending transfers and expire others, as `resolving` does."""
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
        """Post some pending transfers, void others and expire others, with one update for each account.

        `part` is how much to post of each, instead of all; the remainder is released.

        The caller has locked their accounts and, so that no transfer is resolved twice, its order, or the transfer
        itself if it has none.
        """
        states = {TransferState.posted: post, TransferState.voided: void, TransferState.expired: expire}
        ids = [transfer_id for named in states.values() for transfer_id in named]
        parameters = {
            "resolved_ids": ids,
            "states": [state.value for state, named in states.items() for _ in named],
            "part": part,
        }
        return Write(queries.RESOLVE, parameters, wanted=len(ids))

    async def _lock_balances(self, movements: Iterable[Movement]) -> dict[int, Balance]:
        """The accounts on both sides by id, locked in the order of their ids until the transaction ends."""
        ids = {account for m in movements for account in (m.debit_account_id, m.credit_account_id)}
        rows = await self.sql.fetch(queries.LOCK_BALANCES, ids=sorted(ids))
        return {row["account_id"]: Balance.from_row(row) for row in rows}

    async def _why_not_held(self, buyer_id: int, shares: Sequence["Share"]) -> DomainError:
        account_ids = [share.account_id for share in shares]
        rows = await self.sql.fetch(queries.BALANCES_OF_HOLD, buyer_id=buyer_id, account_ids=account_ids)
        balances = {row["account_id"]: Balance.from_row(row) for row in rows}
        (buyer,) = (balance for balance in balances.values() if balance.user_id == buyer_id)
        items = [Item("", buyer, balances[share.account_id], share.amount, "") for share in shares]
        # The obstacle may be gone by now.
        return joint_refusal(items) or not_covered(sum((share.amount for share in shares), Decimal(0)))


@dataclass(frozen=True, slots=True)
class Share:
    """What one seller is due from an order."""

    account_id: int
    amount: Decimal


class NewHold(NamedTuple):
    """What an order's buyer is to hold for one seller."""

    order_id: UUID
    debit_account_id: int
    share: Share
    actor: str


class OrderHold(NamedTuple):
    """A pending transfer for an order. If it `is_due`, its time has passed and it can no longer be posted.

    If it `is_busy`, another transaction has locked one of its accounts.
    """

    id: UUID
    order_id: UUID
    credit_account_id: int
    is_due: bool
    is_busy: bool


@dataclass(frozen=True, slots=True)
class LockedHolds:
    """Pending transfers for orders, with the accounts on both sides locked; `closed` has the ids of closed ones."""

    holds: Sequence[OrderHold]
    closed: Collection[int]


def _check(items: Sequence[Item]) -> None:
    error = joint_refusal(items)
    if error is not None:
        raise error


def _balances_of_users(results: Results) -> dict[int, Balance]:
    (accounts,) = results
    return {account[1]: Balance(*account) for account in accounts}


def _locked_holds(results: Results) -> LockedHolds:
    accounts, holds = results
    return LockedHolds(
        holds=[OrderHold._make(hold) for hold in holds],
        closed={account_id for account_id, is_closed in accounts if is_closed},
    )
