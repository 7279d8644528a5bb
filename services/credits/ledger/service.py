"""Operations on accounts, and movements of credits."""

from services.credits import events
from services.credits.events import CreditsMoved
from services.credits.ledger import rules
from services.credits.ledger.rules import Movement
from services.credits.models import Account, Transfer, TransferKind
from services.credits.schemas import TopUpCreate
from services.errors import Conflict, Fault, InvalidInput, NotFound
from services.fields import new_id, now
from services.unit_of_work import UnitOfWork


async def account_of(uow: UnitOfWork, user_id: int) -> Account:
    """The user's account. Raises `NotFound` if there is no such user."""
    account = await uow.ledger.account_of(user_id)
    if account is None:
        raise NotFound(f"there is no user {user_id}")
    return account


async def top_up(uow: UnitOfWork, wanted: TopUpCreate) -> Transfer:
    """Issue credits to a user, from the issuance account. Raises `InvalidInput`, `AccountClosed` or `AmountInvalid`."""
    to_account = await _recipient(uow, wanted.user_id, "#/user_id")
    if to_account.closed_at is not None:
        raise rules.closed(wanted.user_id, [Fault("is closed", "#/user_id")])
    movement = Movement(new_id(), await uow.ledger.issuance_account_id(), to_account.id, wanted.amount)
    await transfer(uow, movement, TransferKind.top_up, wanted.note)
    return await uow.ledger.get_transfer(movement.transfer_id)


async def transfer(uow: UnitOfWork, movement: Movement, kind: TransferKind, note: str) -> None:
    """Move credits immediately, or raise a refusal (`services/credits/ledger/rules.py`) and write nothing."""
    await uow.ledger.transfer([movement], kind, note)
    record_moved(uow, movement, kind)


def record_moved(uow: UnitOfWork, movement: Movement, kind: TransferKind) -> None:
    """Record that a transfer was posted. Not for transfers of orders: `CreditsMoved` says why."""
    assert kind not in (TransferKind.order, TransferKind.refund), "it is covered by an event of the order"
    uow.record(
        CreditsMoved(
            transfer_id=movement.transfer_id,
            kind=kind.value,
            from_account_id=movement.debit_account_id,
            to_account_id=movement.credit_account_id,
            amount=movement.amount,
        )
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
    account.closed_at = now()
    await uow.session.flush()
    uow.record(events.AccountClosed(account_id=account.id))
    return account


async def reopen_account(uow: UnitOfWork, user_id: int) -> Account:
    """Reopen an account: it can send and receive again. Raises `NotFound`, and `Conflict` if it is not closed."""
    account = await _locked_account(uow, user_id)
    if account.closed_at is None:
        raise Conflict("the account is not closed")
    account.closed_at = None
    await uow.session.flush()
    uow.record(events.AccountReopened(account_id=account.id))
    return account


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
