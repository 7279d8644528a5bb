"""Two-phase transfers: credits are held, then posted (in full or in part), voided or expired, once.

Holds for orders are resolved with their order: `services/orders/processing/` and `services/orders/expiry/`.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from services.credits.approval.rules import Limits
from services.credits.approval.service import check_alone, count
from services.credits.events import CreditsHeld, CreditsReleased
from services.credits.holds.repository import DueHold
from services.credits.ledger.rules import Item, Movement, refusal
from services.credits.ledger.service import moving, record_moved
from services.credits.models import TransferKind, TransferState
from services.credits.schemas import HoldCreate
from services.credits.transfers import service as transfers
from services.credits.transfers.repository import TransferRow
from services.errors import (
    AmountInvalid,
    ApprovalNeeded,
    Fault,
    Forbidden,
    InvalidInput,
    OwnAccount,
    TransferAlreadyPosted,
    TransferAlreadyVoided,
    TransferExpired,
    TransferOfOrder,
)
from services.fields import new_id
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope


async def hold(uow: UnitOfWork, payer: Caller, wanted: HoldCreate, longest: timedelta) -> TransferRow:
    """Hold the payer's credits for another user until `expires_at`, which is at most `longest` from now.

    Raises `InsufficientCredits`, `AccountClosed`, `SameAccount`, `UnknownRecipient`, `AmountInvalid`, or `InvalidInput`
    for a time that has passed or is too far in the future.
    """
    parties = await uow.transfers.parties(payer.id, [wanted.to_user_id], lock=True)
    _check_time(wanted.expires_at, parties.at, longest)
    item = Item("#", parties.sender, parties.recipients.get(wanted.to_user_id), wanted.amount, wanted.note)
    error = refusal(item)
    if error is not None:
        raise error
    assert item.credit is not None
    transfer_id = new_id()
    async with moving(uow, item.amount, item.pointer):
        await uow.holds.write(transfer_id, item, wanted.expires_at)
    uow.record(
        CreditsHeld(
            transfer_id=transfer_id,
            from_account_id=item.debit.account_id,
            to_account_id=item.credit.account_id,
            amount=wanted.amount,
            expires_at=wanted.expires_at,
        )
    )
    return await transfers.get(uow, payer, transfer_id)


async def post(
    uow: UnitOfWork, caller: Caller, transfer_id: UUID, amount: Decimal | None, limits: Limits
) -> TransferRow:
    """Post a pending transfer, or only `amount` of it and release the remainder, for the payee or an operator.

    What an operator posts for others counts among what they do alone (`services/credits/approval/`). Raises
    `TransferAlreadyPosted`, `TransferAlreadyVoided` or `TransferExpired` if it is already resolved or its time has
    passed, `TransferOfOrder`, `OwnAccount` for an operator who pays it, `ApprovalNeeded`, `AmountInvalid` for more than
    is held, and `AccountClosed`.
    """
    found = await _pending(uow, caller, transfer_id, amount, limits, "post less, or leave it to the recipient")
    posted = found.amount if amount is None else amount
    if posted > found.amount:
        raise AmountInvalid(f"the transfer holds only {found.amount}", [Fault("is more than is held", "#/amount")])
    movement = found.movement()
    async with moving(uow, posted):
        await uow.ledger.post_part(movement, posted)
    record_moved(uow, replace(movement, amount=posted), TransferKind.transfer)
    _count(uow, caller, found, posted)
    return await transfers.get(uow, caller, transfer_id)


async def void(uow: UnitOfWork, caller: Caller, transfer_id: UUID, limits: Limits) -> TransferRow:
    """Void a pending transfer and release its credits, for the payee or an operator; the payer may not.

    Raises what `post` raises, except for amounts and accounts.
    """
    found = await _pending(uow, caller, transfer_id, None, limits, "leave it to the recipient, or let it expire")
    async with moving(uow, found.amount):
        await uow.ledger.resolve_holds(void=[transfer_id])
    _record_release(uow, found.movement(), TransferState.voided)
    _count(uow, caller, found, None)
    return await transfers.get(uow, caller, transfer_id)


async def expire(uow: UnitOfWork, due: Sequence[DueHold]) -> list[str]:
    """Expire those of the holds that are overdue; returns their ids.

    Holds that another transaction has locked are skipped: that transaction resolves them, or the next sweep finds them.
    """
    locked = await uow.holds.lock_due([one.transfer_id for one in due])
    await uow.ledger.resolve_holds(expire=[movement.transfer_id for movement in locked])
    for movement in locked:
        _record_release(uow, movement, TransferState.expired)
    return [str(movement.transfer_id) for movement in locked]


HOLDS: Sweep[DueHold] = Sweep("holds", lambda uow, after, limit: uow.holds.due(after, limit), expire)
"""Holds between users that were not posted in time."""


UNRESOLVED = (
    ApprovalNeeded,
    OwnAccount,
    TransferAlreadyPosted,
    TransferAlreadyVoided,
    TransferExpired,
    TransferOfOrder,
)
"""How the resolution of a pending transfer may be refused, apart from what the ledger refuses."""


def check_unresolved(found: TransferRow) -> None:
    """Raise the error that says how a transfer was resolved, if it was."""
    match found.state:
        case TransferState.posted:
            raise TransferAlreadyPosted("the transfer has already been posted")
        case TransferState.voided:
            raise TransferAlreadyVoided("the transfer has already been voided")
        case TransferState.expired:
            raise TransferExpired(f"the transfer expired at {found.expires_at}")


async def _pending(
    uow: UnitOfWork, caller: Caller, transfer_id: UUID, amount: Decimal | None, limits: Limits, otherwise: str
) -> TransferRow:
    """The transfer, locked, if the caller may resolve it now."""
    # Read without a lock first: callers who may not see it neither wait for its lock nor make others wait.
    found = await transfers.get(uow, caller, transfer_id)
    is_payee = caller.id == found.to_user_id
    if not (is_payee or caller.may(Scope.corrections_write)):
        raise Forbidden("only the recipient or an operator may post or void this transfer")
    if found.order_id is not None:
        raise TransferOfOrder("this transfer pays for an order and is resolved with it")
    if not is_payee:
        check_unresolved(found)
        await check_alone(uow, caller, [_resolved(found, amount)], limits, otherwise)
    found = await transfers.get(uow, caller, transfer_id, lock=True)
    check_unresolved(found)
    if found.is_due:
        raise TransferExpired(f"the transfer expired at {found.expires_at}")
    return found


def _resolved(found: TransferRow, amount: Decimal | None) -> Movement:
    return replace(found.movement(), amount=found.amount if amount is None else amount)


def _count(uow: UnitOfWork, caller: Caller, found: TransferRow, amount: Decimal | None) -> None:
    if caller.id != found.to_user_id:
        count(uow, caller, [_resolved(found, amount)])


def _check_time(expires_at: datetime, at: datetime, longest: timedelta) -> None:
    """`at` is the database's time: the hold expires by that clock."""
    if not at < expires_at <= at + longest:
        raise InvalidInput(
            f"expires_at must be in the future, at most {str(longest).removesuffix(', 0:00:00')} from now",
            [Fault("must be in the future" if expires_at <= at else "is too far in the future", "#/expires_at")],
        )


def _record_release(uow: UnitOfWork, movement: Movement, state: TransferState) -> None:
    uow.record(
        CreditsReleased(
            transfer_id=movement.transfer_id,
            from_account_id=movement.debit_account_id,
            to_account_id=movement.credit_account_id,
            amount=movement.amount,
            state=state.value,
        )
    )
