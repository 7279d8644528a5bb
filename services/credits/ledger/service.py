"""Operations on accounts, and movements of credits.

Credits move in a savepoint, one for each transfer that is refused or takes effect on its own (`moving`). If the
database refuses, only that is undone, and the caller gets the refusal that the rules would have given.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal

from sqlalchemy.exc import DBAPIError

from services.acting import Action
from services.credits import events
from services.credits.events import CreditsMoved
from services.credits.ledger import rules
from services.credits.ledger.rules import Movement
from services.credits.models import Account, Transfer, TransferKind
from services.credits.schemas import TopUpCreate
from services.errors import Conflict, DomainError, Fault, InvalidInput, NotFound, OwnAccount
from services.fields import new_id, now
from services.outbox.events import Trace
from services.sql import constraint_of, objects_to_rows, sqlstate
from services.unit_of_work import UnitOfWork
from services.users.models import Caller

logger = logging.getLogger(__name__)


@asynccontextmanager
async def moving(uow: UnitOfWork, amount: Decimal, pointer: str = "") -> AsyncIterator[None]:
    """Move credits in a savepoint. After a refusal, the unit of work is as it was before, and can continue.

    The block raises a refusal (`services/credits/ledger/rules.py`), whether it comes from a check or from the database.
    Contention and an unusable server are not refusals: they end the transaction, which its edge then tries again.
    """
    with refusals(amount, pointer):
        async with uow.savepoint(plain=True):
            yield


@contextmanager
def refusals(amount: Decimal, pointer: str = "") -> Iterator[None]:
    """Turn what the database refuses into a refusal. The caller undoes the block, which is in a savepoint."""
    try:
        yield
    except DBAPIError as error:
        if not objects_to_rows(error):
            raise
        raise refused(error, amount, pointer) from error


def refused(error: DBAPIError, amount: Decimal, pointer: str = "") -> DomainError:
    """The refusal for an error that objects to the rows of a transfer. It is logged, since the rules allowed them."""
    rule = constraint_of(error) or sqlstate(error)
    refusal = rules.refused_by(rule, amount, pointer)
    logger.warning("PostgreSQL refused a transfer that the rules allow (%s: %s): %s", rule, refusal.code, error.orig)
    return refusal


async def account_of(uow: UnitOfWork, user_id: int) -> Account:
    """The user's account. Raises `NotFound` if there is no such user."""
    account = await uow.ledger.account_of(user_id)
    if account is None:
        raise NotFound(f"there is no user {user_id}")
    return account


async def account_with_user(uow: UnitOfWork, user_id: int) -> Account:
    """The user's account with the user, even one who was deleted. Raises `NotFound`."""
    account = await uow.ledger.account_with_user(user_id)
    if account is None:
        raise NotFound(f"there is no user {user_id}")
    return account


async def top_up(uow: UnitOfWork, wanted: TopUpCreate) -> Transfer:
    """Issue credits to a user, from the issuance account. Raises `InvalidInput`, `AccountClosed` or `AmountInvalid`."""
    return await issue(uow, await issuing(uow, wanted), wanted.note)


async def issuing(uow: UnitOfWork, wanted: TopUpCreate) -> Movement:
    """The movement of a top-up, which the user can receive. Raises `InvalidInput` or `AccountClosed`."""
    to_account = await _recipient(uow, wanted.user_id, "#/user_id")
    if to_account.closed_at is not None:
        raise rules.closed(wanted.user_id, [Fault("is closed", "#/user_id")])
    return Movement(new_id(), await uow.ledger.issuance_account_id(), to_account.id, wanted.amount)


async def issue(uow: UnitOfWork, movement: Movement, note: str) -> Transfer:
    """Carry out a top-up. Raises a refusal (`services/credits/ledger/rules.py`)."""
    await transfer(uow, movement, TransferKind.top_up, note)
    uow.record_act(
        Action.top_up,
        f"account/{movement.credit_account_id}",
        reason=note,
        transfer=movement.transfer_id,
        amount=movement.amount,
    )
    return await uow.ledger.get_transfer(movement.transfer_id)


async def transfer(uow: UnitOfWork, movement: Movement, kind: TransferKind, note: str) -> None:
    """Move credits immediately, or raise a refusal (`services/credits/ledger/rules.py`) and write nothing."""
    async with moving(uow, movement.amount):
        await uow.ledger.transfer([movement], kind, note)
    record_moved(uow, movement, kind)


def record_moved(uow: UnitOfWork, movement: Movement, kind: TransferKind, trace: Trace | None = None) -> None:
    """Record that a transfer was posted. Not for transfers of orders: `CreditsMoved` says why.

    `trace` says where it came from, if that is not the trace of the unit of work.
    """
    assert kind not in (TransferKind.order, TransferKind.refund), "it is covered by an event of the order"
    uow.record(
        CreditsMoved(
            transfer_id=movement.transfer_id,
            kind=kind.value,
            from_account_id=movement.debit_account_id,
            to_account_id=movement.credit_account_id,
            amount=movement.amount,
        ),
        trace,
    )


async def close_account(uow: UnitOfWork, user_id: int) -> Account:
    """Close a user's account: it can neither send nor receive, and its balance stays as it is, until it is reopened.

    Raises `NotFound`, and `Conflict` if it is already closed or holds credits, which are promised to someone.
    """
    account = await _locked_account(uow, user_id)
    if account.closed_at is not None:
        raise Conflict("the account is already closed")
    if account.held:
        raise Conflict(f"{account.held} of the account's credits are held; post or void the holds, or let them expire")
    await uow.accounts.update(account, closed_at=now())
    uow.record(events.AccountClosed(account_id=account.id))
    _record(uow, Action.account_closed, account)
    return account


async def reopen_account(uow: UnitOfWork, user_id: int) -> Account:
    """Reopen an account: it can send and receive again. Raises `NotFound`, and `Conflict` if it is not closed."""
    account = await _locked_account(uow, user_id)
    if account.closed_at is None:
        raise Conflict("the account is not closed")
    await uow.accounts.update(account, closed_at=None)
    uow.record(events.AccountReopened(account_id=account.id))
    _record(uow, Action.account_reopened, account)
    return account


def _record(uow: UnitOfWork, action: Action, account: Account, *, reason: str = "", **details: object) -> None:
    uow.record_act(action, f"account/{account.id}", reason=reason, user=f"user/{account.user_id}", **details)


def check_of_another(operator: Caller, user_id: int) -> None:
    """Raises `OwnAccount` if the account is the operator's."""
    if operator.id == user_id:
        raise OwnAccount("this concerns your own account; another operator must do it")


async def _locked_account(uow: UnitOfWork, user_id: int) -> Account:
    account = await uow.ledger.lock_account(user_id)
    if account is None:
        raise NotFound(f"there is no user {user_id}")
    return account


async def _recipient(uow: UnitOfWork, user_id: int, pointer: str) -> Account:
    user = await uow.users.get(user_id)
    account = await uow.ledger.account_of(user_id) if user is not None and user.is_active else None
    if account is None:
        raise InvalidInput(f"user {user_id} is unknown or inactive", [Fault("is unknown or inactive", pointer)])
    return account
