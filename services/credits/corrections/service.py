"""Corrections by operators.

An adjustment gives credits to an account or takes them; above a set amount, a second operator must approve it. A
reversal undoes a posted transfer with another one of the same amount, in the opposite direction.
"""

from decimal import Decimal
from uuid import UUID

from services.acting import Action
from services.credits.events import (
    AdjustmentApplied,
    AdjustmentRejected,
    AdjustmentRequested,
    TransferReversed,
)
from services.credits.holds import service as holds
from services.credits.ledger import rules
from services.credits.ledger import service as ledger
from services.credits.ledger.rules import Movement
from services.credits.models import Adjustment, AdjustmentState, TransferKind, TransferState
from services.credits.schemas import AdjustmentCreate
from services.credits.transfers import service as transfers
from services.credits.transfers.repository import TransferRow
from services.errors import (
    Conflict,
    Fault,
    Forbidden,
    NotFound,
    TransferAlreadyReversed,
    TransferNotReversible,
    TransferOfOrder,
    UnknownRecipient,
)
from services.fields import new_id, now
from services.repository import Lock
from services.unit_of_work import UnitOfWork
from services.users.models import Caller

_OTHERWISE = {
    TransferKind.reversal: "a reversal cannot be reversed; make a new transfer instead",
    TransferKind.adjustment: "an adjustment cannot be reversed; make an opposite adjustment, which may need approval",
}


async def request(uow: UnitOfWork, operator: Caller, wanted: AdjustmentCreate, approval_above: Decimal) -> Adjustment:
    """Adjust a user's balance immediately, or leave it pending if the absolute amount is above `approval_above`.

    Raises `UnknownRecipient`, `AccountClosed`, and if it takes effect immediately, `InsufficientCredits` or
    `AmountInvalid`.
    """
    account = await uow.ledger.account_of(wanted.user_id)
    if account is None:
        raise UnknownRecipient(f"there is no user {wanted.user_id}", [Fault("is unknown", "#/user_id")])
    if account.closed_at is not None:
        raise rules.closed(wanted.user_id, [Fault("is closed", "#/user_id")])
    needs_approval = abs(wanted.amount) > approval_above
    # The adjustment as well: one whose credits cannot move does not stay behind as a pending one.
    async with uow.savepoint():
        adjustment = await uow.adjustments.create(
            wanted,
            without={"user_id"},
            account_id=account.id,
            state=AdjustmentState.pending,
            needs_approval=needs_approval,
            requested_by=operator.id,
        )
        if needs_approval:
            uow.record(
                AdjustmentRequested(
                    adjustment_id=adjustment.id, account_id=account.id, amount=wanted.amount, reason=wanted.reason
                )
            )
        else:
            await _apply(uow, adjustment, decided_by=None)
    _record(uow, Action.adjustment_requested, adjustment)
    return await get(uow, adjustment.id)


async def get(uow: UnitOfWork, adjustment_id: UUID) -> Adjustment:
    """The adjustment with its user. Raises `NotFound`."""
    adjustment = await uow.adjustments.get(adjustment_id)
    if adjustment is None:
        raise NotFound(f"there is no adjustment {adjustment_id}")
    return adjustment


async def approve(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    """Apply a pending adjustment. Of several concurrent decisions, the first one counts.

    Raises `Forbidden` for the operator who requested it, `Conflict` if it has already been decided, and the errors of
    `request` about the account.
    """
    adjustment = await _undecided(uow, operator, adjustment_id)
    await _apply(uow, adjustment, decided_by=operator.id)
    _record(uow, Action.adjustment_approved, adjustment)
    return adjustment


async def reject(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    """Reject a pending adjustment. Raises `Forbidden` and `Conflict` as `approve` does."""
    adjustment = await _undecided(uow, operator, adjustment_id)
    await uow.adjustments.update(adjustment, state=AdjustmentState.rejected, decided_by=operator.id, decided_at=now())
    uow.record(
        AdjustmentRejected(adjustment_id=adjustment.id, account_id=adjustment.account_id, amount=adjustment.amount)
    )
    _record(uow, Action.adjustment_rejected, adjustment)
    return adjustment


async def reverse(uow: UnitOfWork, operator: Caller, transfer_id: UUID, reason: str) -> TransferRow:
    """Move the posted amount back to where it came from; returns the reversal. A transfer can be reversed only once.

    Transfers between users and top-ups can be reversed. Raises `TransferOfOrder` for transfers of orders, which are
    refunded instead, `TransferNotReversible` for other kinds and for pending transfers, `TransferAlreadyVoided` or
    `TransferExpired` if nothing was posted, `TransferAlreadyReversed`, `AccountClosed`, and `InsufficientCredits` if
    the recipient no longer has the credits.
    """
    found = await transfers.get(uow, operator, transfer_id, lock=True)
    _check_reversible(found)
    assert found.posted_amount is not None
    reversal_id = new_id()
    movement = Movement(
        reversal_id, found.credit_account_id, found.debit_account_id, found.posted_amount, reverses=transfer_id
    )
    await ledger.transfer(uow, movement, TransferKind.reversal, reason)
    uow.record(TransferReversed(transfer_id=transfer_id, reversal_id=reversal_id, reason=reason))
    uow.record_act(Action.reversed, f"transfer/{transfer_id}", reason=reason, reversal=reversal_id)
    return await transfers.get(uow, operator, reversal_id)


def _record(uow: UnitOfWork, action: Action, adjustment: Adjustment) -> None:
    about = {"account": f"account/{adjustment.account_id}", "amount": adjustment.amount}
    uow.record_act(action, f"adjustment/{adjustment.id}", reason=adjustment.reason, **about)


async def _undecided(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    adjustment = await uow.adjustments.get(adjustment_id, lock=Lock.change)
    if adjustment is None:
        raise NotFound(f"there is no adjustment {adjustment_id}")
    if adjustment.requested_by == operator.id:
        raise Forbidden("you requested this adjustment; another operator must decide on it")
    if adjustment.state is not AdjustmentState.pending:
        raise Conflict(f"the adjustment is already {adjustment.state.value}")
    return adjustment


async def _apply(uow: UnitOfWork, adjustment: Adjustment, *, decided_by: int | None) -> None:
    """Move the credits and mark the adjustment as applied. It is new, or the caller has locked it."""
    issuance, amount = await uow.ledger.issuance_account_id(), adjustment.amount
    debit, credit = (issuance, adjustment.account_id) if amount > 0 else (adjustment.account_id, issuance)
    movement = Movement(new_id(), debit, credit, abs(amount))
    await ledger.transfer(uow, movement, TransferKind.adjustment, adjustment.reason)
    await uow.adjustments.update(
        adjustment,
        state=AdjustmentState.applied,
        transfer_id=movement.transfer_id,
        decided_by=decided_by,
        decided_at=now(),
    )
    uow.record(
        AdjustmentApplied(
            adjustment_id=adjustment.id,
            account_id=adjustment.account_id,
            amount=amount,
            reason=adjustment.reason,
            transfer_id=movement.transfer_id,
        )
    )


def _check_reversible(found: TransferRow) -> None:
    if found.kind in (TransferKind.order, TransferKind.refund):
        raise TransferOfOrder("this transfer belongs to an order; refund the order instead")
    if found.kind in _OTHERWISE:
        raise TransferNotReversible(_OTHERWISE[found.kind])
    if found.state is TransferState.pending:
        raise TransferNotReversible("the transfer is pending; void it instead")
    if found.state is not TransferState.posted:
        holds.check_unresolved(found)
    if found.reversed_by is not None:
        raise TransferAlreadyReversed(f"the transfer was already reversed by transfer {found.reversed_by}")
