"""Four eyes: the one policy for credits that the staff issues, takes or moves outside the will of their owners.

An operator may do that alone up to a limit for themselves and one for each account, both within a window of time.
Beyond that, a second operator must approve. No one does or approves anything with their own account.
"""

from collections.abc import Sequence

from services.credits.approval.rules import Limits, within
from services.credits.ledger.rules import Movement
from services.errors import ApprovalNeeded, OwnAccount
from services.unit_of_work import UnitOfWork
from services.users.models import Caller


async def may_alone(uow: UnitOfWork, operator: Caller, movements: Sequence[Movement], limits: Limits) -> bool:
    """Whether the operator may make these movements without approval. Once they are made, `count` them.

    Others who ask for the same operator or one of the accounts wait until this transaction ends, so that of two who
    ask at once, one counts what the other has done. Call it before rows of stock, transfers or accounts are locked.
    Raises `OwnAccount` if one of the accounts is the operator's.
    """
    accounts = {account for one in movements for account in (one.debit_account_id, one.credit_account_id)}
    record = await uow.approval.lock(operator.id, accounts, limits.window)
    if operator.id in record.owners.values():
        raise OwnAccount("this concerns your own account; another operator must do it")
    return within(limits, record.sums, movements)


async def check_alone(
    uow: UnitOfWork, operator: Caller, movements: Sequence[Movement], limits: Limits, otherwise: str
) -> None:
    """`may_alone`, for what no one else can approve. Raises `ApprovalNeeded`, which says what to do `otherwise`."""
    if not await may_alone(uow, operator, movements, limits):
        raise ApprovalNeeded(
            f"without approval, one operator may move at most {limits.per_operator} credits, and all operators "
            f"together {limits.per_account} of one account, within {limits.window.total_seconds():.0f} seconds; "
            f"{otherwise}"
        )


def count(uow: UnitOfWork, operator: Caller, movements: Sequence[Movement]) -> None:
    """Count these movements among what the operator and the accounts have had without approval."""
    uow.write_with_events(uow.approval.recording(operator.id, movements))
