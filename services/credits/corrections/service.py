"""What operators do with the credits of others: top-ups, adjustments and reversals.

Up to the limits of `services/credits/approval/`, it takes effect immediately. Beyond them it is stored as a pending
adjustment, whatever its operation, which takes effect once a second operator approves it.
"""

from typing import Any
from uuid import UUID

from services.acting import Action
from services.credits.approval.rules import Limits
from services.credits.approval.service import count, may_alone
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
from services.credits.models import (
    Adjustment,
    AdjustmentBase,
    AdjustmentState,
    Operation,
    Transfer,
    TransferKind,
    TransferState,
)
from services.credits.schemas import AdjustmentCreate, TopUpCreate
from services.credits.transfers import service as transfers
from services.credits.transfers.repository import TransferRow
from services.errors import (
    Conflict,
    Fault,
    NoteRequired,
    NotFound,
    OwnAccount,
    OwnRequest,
    TransferAlreadyReversed,
    TransferNotReversible,
    TransferOfOrder,
    UnknownRecipient,
)
from services.fields import new_id, now
from services.repository import Lock
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.roles.service import check_tenure

_OTHERWISE = {
    TransferKind.reversal: "a reversal cannot be reversed; make a new transfer instead",
    TransferKind.adjustment: "an adjustment cannot be reversed; make an opposite adjustment, which may need approval",
}


async def top_up(uow: UnitOfWork, operator: Caller, wanted: TopUpCreate, limits: Limits) -> Transfer | Adjustment:
    """Issue credits to a user, or leave the top-up pending if it needs approval; it then must say what it is for.

    Raises `InvalidInput`, `AccountClosed`, `AmountInvalid`, `OwnAccount` or `NoteRequired`.
    """
    movement = await ledger.issuing(uow, wanted)
    if await may_alone(uow, operator, [movement], limits):
        issued = await ledger.issue(uow, movement, wanted.note)
        count(uow, operator, [movement])
        return issued
    if not wanted.note.strip():
        fault = Fault("is required", "#/note")
        raise NoteRequired("this top-up needs the approval of another operator; say in note what it is for", [fault])
    asked = AdjustmentBase(amount=wanted.amount, reason=wanted.note)
    return await _ask(uow, operator, asked, movement.credit_account_id, Operation.top_up)


async def adjust(uow: UnitOfWork, operator: Caller, wanted: AdjustmentCreate, limits: Limits) -> Adjustment:
    """Adjust a user's balance immediately, or leave the adjustment pending if it needs approval.

    Raises `UnknownRecipient`, `AccountClosed`, `OwnAccount`, and if it takes effect immediately, `InsufficientCredits`
    or `AmountInvalid`.
    """
    account = await uow.ledger.account_of(wanted.user_id)
    if account is None:
        raise UnknownRecipient(f"there is no user {wanted.user_id}", [Fault("is unknown", "#/user_id")])
    if account.closed_at is not None:
        raise rules.closed(wanted.user_id, [Fault("is closed", "#/user_id")])
    movement = await _adjusting(uow, account.id, wanted)
    if not await may_alone(uow, operator, [movement], limits):
        return await _ask(uow, operator, wanted, account.id, Operation.adjustment)
    # The adjustment as well: one whose credits cannot move does not stay behind as a pending one.
    async with uow.savepoint():
        adjustment = await _written(uow, operator, wanted, account.id, needs_approval=False)
        await _apply(uow, adjustment, movement, decided_by=None)
        count(uow, operator, [movement])
    _record(uow, Action.adjustment_requested, adjustment)
    return await get(uow, adjustment.id)


async def get(uow: UnitOfWork, adjustment_id: UUID) -> Adjustment:
    """The adjustment with its user. Raises `NotFound`."""
    adjustment = await uow.adjustments.get(adjustment_id)
    if adjustment is None:
        raise NotFound(f"there is no adjustment {adjustment_id}")
    return adjustment


async def approve(uow: UnitOfWork, operator: Caller, adjustment_id: UUID, limits: Limits) -> Adjustment:
    """Apply a pending adjustment. Of several concurrent decisions, the first one counts.

    Raises `OwnRequest` for the operator who requested it, `OwnAccount` for one whose credits it concerns,
    `ApproverTooNew`, `Conflict` if it has already been decided, and the errors of its operation about the accounts.
    """
    adjustment = await _undecided(uow, operator, adjustment_id)
    await check_tenure(uow, operator, limits.tenure)
    movement = await _applying(uow, adjustment)
    await _apply(uow, adjustment, movement, decided_by=operator.id)
    _record(uow, Action.adjustment_approved, adjustment)
    return adjustment


async def reject(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    """Reject a pending adjustment. Raises `OwnRequest`, `OwnAccount` and `Conflict` as `approve` does."""
    adjustment = await _undecided(uow, operator, adjustment_id)
    await uow.adjustments.update(adjustment, state=AdjustmentState.rejected, decided_by=operator.id, decided_at=now())
    uow.record(
        AdjustmentRejected(adjustment_id=adjustment.id, account_id=adjustment.account_id, amount=adjustment.amount)
    )
    _record(uow, Action.adjustment_rejected, adjustment)
    return adjustment


async def reverse(
    uow: UnitOfWork, operator: Caller, transfer_id: UUID, reason: str, limits: Limits
) -> TransferRow | Adjustment:
    """Move the posted amount back to where it came from, or leave the reversal pending if it needs approval.

    Returns the reversal, or what is pending. A transfer can be reversed only once. Transfers between users and top-ups
    can be reversed. Raises `TransferOfOrder` for transfers of orders, which are
    refunded instead, `TransferNotReversible` for other kinds and for pending transfers, `TransferAlreadyVoided` or
    `TransferExpired` if nothing was posted, `TransferAlreadyReversed`, `OwnAccount`, `AccountClosed`, and
    `InsufficientCredits` if the recipient no longer has the credits.
    """
    # Read without a lock first: whether approval is needed is decided before the transfer and its accounts are locked.
    movement = _reversing(await transfers.get(uow, operator, transfer_id))
    if not await may_alone(uow, operator, [movement], limits):
        asked = AdjustmentBase(amount=-movement.amount, reason=reason)
        return await _ask(uow, operator, asked, movement.debit_account_id, Operation.reversal, reverses=transfer_id)
    await _reverse(uow, movement, reason)
    count(uow, operator, [movement])
    return await transfers.get(uow, operator, movement.transfer_id)


async def _reverse(uow: UnitOfWork, movement: Movement, reason: str) -> None:
    assert movement.reverses is not None, "it names what it reverses"
    found = await uow.transfers.find(movement.reverses, lock=True)
    assert found is not None, "transfers stay"
    # Another one may have reversed it meanwhile.
    _check_reversible(found)
    await ledger.transfer(uow, movement, TransferKind.reversal, reason)
    uow.record(TransferReversed(transfer_id=movement.reverses, reversal_id=movement.transfer_id, reason=reason))
    uow.record_act(Action.reversed, f"transfer/{movement.reverses}", reason=reason, reversal=movement.transfer_id)


async def _ask(
    uow: UnitOfWork,
    operator: Caller,
    wanted: AdjustmentBase,
    account_id: int,
    operation: Operation,
    reverses: UUID | None = None,
) -> Adjustment:
    """Leave it pending until a second operator decides on it."""
    adjustment = await _written(
        uow, operator, wanted, account_id, needs_approval=True, operation=operation, reverses=reverses
    )
    uow.record(
        AdjustmentRequested(
            adjustment_id=adjustment.id, account_id=account_id, amount=wanted.amount, reason=wanted.reason
        )
    )
    _record(uow, Action.adjustment_requested, adjustment)
    return await get(uow, adjustment.id)


async def _written(
    uow: UnitOfWork, operator: Caller, wanted: AdjustmentBase, account_id: int, **more: Any
) -> Adjustment:
    return await uow.adjustments.create(
        wanted,
        without={"user_id"},
        account_id=account_id,
        state=AdjustmentState.pending,
        requested_by=operator.id,
        **more,
    )


def _record(uow: UnitOfWork, action: Action, adjustment: Adjustment) -> None:
    about = {
        "account": f"account/{adjustment.account_id}",
        "amount": adjustment.amount,
        "operation": adjustment.operation.value,
    }
    uow.record_act(action, f"adjustment/{adjustment.id}", reason=adjustment.reason, **about)


async def _undecided(uow: UnitOfWork, operator: Caller, adjustment_id: UUID) -> Adjustment:
    adjustment = await uow.adjustments.get(adjustment_id, lock=Lock.change)
    if adjustment is None:
        raise NotFound(f"there is no adjustment {adjustment_id}")
    if adjustment.requested_by == operator.id:
        raise OwnRequest("you requested this adjustment; another operator must decide on it")
    if operator.id in await uow.approval.owners(adjustment.account_id, adjustment.reverses):
        raise OwnAccount("this concerns your own account; another operator must decide on it")
    if adjustment.state is not AdjustmentState.pending:
        raise Conflict(f"the adjustment is already {adjustment.state.value}")
    return adjustment


async def _adjusting(uow: UnitOfWork, account_id: int, wanted: AdjustmentBase) -> Movement:
    issuance = await uow.ledger.issuance_account_id()
    debit, credit = (issuance, account_id) if wanted.amount > 0 else (account_id, issuance)
    return Movement(new_id(), debit, credit, abs(wanted.amount))


async def _applying(uow: UnitOfWork, adjustment: Adjustment) -> Movement:
    """The movement with which a pending adjustment takes effect. It can still be refused."""
    if adjustment.reverses is None:
        return await _adjusting(uow, adjustment.account_id, adjustment)
    found = await uow.transfers.find(adjustment.reverses)
    assert found is not None, "transfers stay"
    return _reversing(found)


async def _apply(uow: UnitOfWork, adjustment: Adjustment, movement: Movement, *, decided_by: int | None) -> None:
    """Move the credits and mark the adjustment as applied. It is new, or the caller has locked it."""
    if adjustment.operation is Operation.reversal:
        await _reverse(uow, movement, adjustment.reason)
    else:
        await ledger.transfer(uow, movement, TransferKind(adjustment.operation), adjustment.reason)
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
            amount=adjustment.amount,
            reason=adjustment.reason,
            transfer_id=movement.transfer_id,
        )
    )


def _reversing(found: TransferRow) -> Movement:
    """The movement that reverses a transfer. Raises why it cannot be reversed."""
    _check_reversible(found)
    assert found.posted_amount is not None
    return Movement(new_id(), found.credit_account_id, found.debit_account_id, found.posted_amount, reverses=found.id)


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
