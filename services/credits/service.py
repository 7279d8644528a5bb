"""What can be done with credits."""

from decimal import Decimal

from services.credits.events import CreditsMoved
from services.credits.models import Account, Transfer, TransferKind
from services.credits.repository import Movement
from services.credits.schemas import TopUpCreate
from services.errors import Fault, InvalidInput, NotFound
from services.fields import new_id
from services.unit_of_work import UnitOfWork


async def account_of(uow: UnitOfWork, user_id: int) -> Account:
    """The user's account. Raises `NotFound` where there is no such user."""
    account = await uow.ledger.account_of(user_id)
    if account is None:
        raise NotFound(f"there is no user {user_id}")
    return account


async def top_up(uow: UnitOfWork, wanted: TopUpCreate) -> Transfer:
    """Issue credits to a user, from the issuance account."""
    to_account = await _recipient(uow, wanted.user_id, "#/user_id")
    return await _move(
        uow, await uow.ledger.issuance_account_id(), to_account.id, wanted.amount, TransferKind.top_up, wanted.note
    )


async def _recipient(uow: UnitOfWork, user_id: int, pointer: str) -> Account:
    user = await uow.users.get(user_id)
    account = await uow.ledger.account_of(user_id) if user is not None and user.is_active else None
    if account is None:
        raise InvalidInput(f"user {user_id} is unknown or closed", [Fault("is unknown or closed", pointer)])
    return account


async def _move(
    uow: UnitOfWork, from_account: int, to_account: int, amount: Decimal, kind: TransferKind, note: str
) -> Transfer:
    movement = Movement(new_id(), from_account, to_account, amount)
    await uow.ledger.transfer([movement], kind, note)
    uow.record(
        CreditsMoved(
            transfer_id=movement.transfer_id,
            kind=kind.value,
            from_account_id=from_account,
            to_account_id=to_account,
            amount=amount,
        )
    )
    return await uow.ledger.get_transfer(movement.transfer_id)
