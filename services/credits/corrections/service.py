"""What operators put right.

An adjustment gives credits to an account or takes them; above a set amount a second operator approves it. A reversal
undoes a posted transfer: another one, of the same amount, back the way it came.
"""

from decimal import Decimal
from uuid import UUID

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
from services.credits.models import Adjustment, AdjustmentBase, AdjustmentState, TransferKind, TransferState
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
from services.fields import new_id, now, picked
from services.unit_of_work import UnitOfWork
from services.users.models import Caller

_OTHERWISE = {
    TransferKind.reversal: "a reversal is not reversed; make the transfer anew",
    TransferKind.adjustment: "an adjustment is corrected by another adjustment, with the approval that it needs",
}


async def request(uow: UnitOfWork, operator: Caller, wanted: AdjustmentCreate, approval_above: Decimal) -> Adjustment:
    """Adjust a user's balance at once, or leave it pending where the amount, either way, is above `approval_above`.

    Raises `UnknownRecipient`, `AccountClosed`, and where it takes effect at once `InsufficientCredits` or
    `AmountInvalid`.
    """
    account = await uow.ledger.account_of(wanted.user_id)
    if account is None:
        raise UnknownRecipient(f"there is no user {wanted.user_id}", [Fault("is unknown", "#/user_id")])
    if account.closed_at is not None:
        raise rules.closed(wanted.user_id, [Fault("is closed", "#/user_id")])
    needs_approval = abs(wanted.amount) > approval_above
    adjustment = Adjustment(
        **picked(wanted, AdjustmentBase.model_fields),
        account_id=account.id,
        state=AdjustmentState.pending,
        needs_approval=needs_approval,
        requested_by=operator.id,
    )
    if not needs_approval:
        await _apply(uow, adjustment)
    await uow.adjustments.add(adjustment)
    if needs_approval:
        uow.record(
            AdjustmentRequested(
                adjustment_id=adjustment.id, account_id=account.id, amount=wanted.amount, reason=wanted.reason
            )
        )
    return await get(uow, adjustment.id)


async def get(uow: UnitOfWork, adjustment_id: UUID) -> Adjustment:
    """The adjustment with its user. Raises `NotFound`."""
    adjustment = await uow.adjustments.get(adjustment_id)
    if adjustment is None:
        raise NotFound(f"there is no adjustment {adjustment_id}")
    return adjustment


async def approve(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    """Let a pending adjustment take effect. Of several decisions at once the first one counts.

    Raises `Forbidden` for the operator who asked for it, `Conflict` where it was decided before, and what `request`
    raises of the account.
    """
    adjustment = await _undecided(uow, operator, adjustment_id)
    await _apply(uow, adjustment)
    adjustment.decided_by = operator.id
    await uow.session.flush()
    return adjustment


async def reject(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    """Refuse a pending adjustment. Raises `Forbidden` and `Conflict` as `approve` does."""
    adjustment = await _undecided(uow, operator, adjustment_id)
    adjustment.state = AdjustmentState.rejected
    adjustment.decided_by = operator.id
    adjustment.decided_at = now()
    await uow.session.flush()
    uow.record(
        AdjustmentRejected(adjustment_id=adjustment.id, account_id=adjustment.account_id, amount=adjustment.amount)
    )
    return adjustment


async def reverse(uow: UnitOfWork, operator: Caller, transfer_id: UUID, reason: str) -> TransferRow:
    """Move what was posted back to where it came from; the reversal. A transfer is reversed once.

    What users and top-ups moved can be reversed. Raises `TransferOfOrder` for an order's payment, which is refunded,
    `TransferNotReversible` for other kinds and what is still pending, `TransferAlreadyVoided` or `TransferExpired`
    where nothing was posted, `TransferAlreadyReversed`, `AccountClosed`, and `InsufficientCredits` where whoever got
    the credits no longer has them.
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
    return await transfers.get(uow, operator, reversal_id)


async def _undecided(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    adjustment = await uow.adjustments.get(adjustment_id, lock=True)
    if adjustment is None:
        raise NotFound(f"there is no adjustment {adjustment_id}")
    if adjustment.requested_by == operator.id:
        raise Forbidden("whoever asks for an adjustment does not decide on it; another operator does")
    if adjustment.state is not AdjustmentState.pending:
        raise Conflict(f"the adjustment is {adjustment.state.value} already")
    return adjustment


async def _apply(uow: UnitOfWork, adjustment: Adjustment) -> None:
    """Move the credits, and write down that they were. The adjustment is new, or locked by the caller."""
    issuance, amount = await uow.ledger.issuance_account_id(), adjustment.amount
    debit, credit = (issuance, adjustment.account_id) if amount > 0 else (adjustment.account_id, issuance)
    movement = Movement(new_id(), debit, credit, abs(amount))
    await ledger.transfer(uow, movement, TransferKind.adjustment, adjustment.reason)
    adjustment.state = AdjustmentState.applied
    adjustment.transfer_id = movement.transfer_id
    adjustment.decided_at = now()
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
        raise TransferOfOrder("this transfer belongs to an order, which is refunded, not reversed")
    if found.kind in _OTHERWISE:
        raise TransferNotReversible(_OTHERWISE[found.kind])
    if found.state is TransferState.pending:
        raise TransferNotReversible("the transfer is pending; it can be voided")
    if found.state is not TransferState.posted:
        holds.check_unresolved(found)
    if found.reversed_by is not None:
        raise TransferAlreadyReversed(f"transfer {found.reversed_by} has reversed it")
