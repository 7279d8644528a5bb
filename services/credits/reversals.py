"""Undoing a posted transfer: another one, of the same amount, back the way it came."""

from uuid import UUID

from services.credits import holds
from services.credits.events import CreditsMoved, TransferReversed
from services.credits.hold_repository import TransferRow
from services.credits.models import TransferKind, TransferState
from services.credits.repository import Movement
from services.errors import TransferAlreadyReversed, TransferNotReversible, TransferOfOrder
from services.fields import new_id
from services.unit_of_work import UnitOfWork
from services.users.models import Caller

_OTHERWISE = {
    TransferKind.reversal: "a reversal is not reversed; make the transfer anew",
    TransferKind.adjustment: "an adjustment is corrected by another adjustment, with the approval that it needs",
}


async def reverse(uow: UnitOfWork, operator: Caller, transfer_id: UUID, reason: str) -> TransferRow:
    """Move what was posted back to where it came from; the reversal. A transfer is reversed once.

    What users and top-ups moved can be reversed. Raises `TransferOfOrder` for an order's payment, which is refunded,
    `TransferNotReversible` for other kinds and what is still pending, `TransferAlreadyVoided` or `TransferExpired`
    where nothing was posted, `TransferAlreadyReversed`, `AccountClosed`, and `InsufficientCredits` where whoever got
    the credits no longer has them.
    """
    found = await holds.get(uow, operator, transfer_id, lock=True)
    _check_reversible(found)
    assert found.posted_amount is not None
    reversal_id = new_id()
    movement = Movement(
        reversal_id, found.credit_account_id, found.debit_account_id, found.posted_amount, reverses=transfer_id
    )
    await uow.ledger.transfer([movement], TransferKind.reversal, reason)
    uow.record(
        CreditsMoved(
            transfer_id=reversal_id,
            kind=TransferKind.reversal.value,
            from_account_id=movement.debit_account_id,
            to_account_id=movement.credit_account_id,
            amount=movement.amount,
        )
    )
    uow.record(TransferReversed(transfer_id=transfer_id, reversal_id=reversal_id, reason=reason))
    return await holds.get(uow, operator, reversal_id)


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
