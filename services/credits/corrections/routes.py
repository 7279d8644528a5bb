"""HTTP routes for corrections by operators: reversals and adjustments."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response

from services.api.dependencies import CurrentUser, ReplicaWork, State, Work, page_of
from services.api.idempotency import IDEMPOTENCY_KEY_REQUIRED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.corrections import service as corrections
from services.credits.corrections.repository import ADJUSTMENTS
from services.credits.models import Account, Adjustment
from services.credits.schemas import (
    AdjustmentCreate,
    AdjustmentPublic,
    ReversalCreate,
    TransferDetail,
)
from services.credits.transfers.repository import TransferRow
from services.query import Page, PageQuery
from services.users.rights import Scope
from services.users.schemas import UserSummary

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


@router.post(
    "/transfers/{transfer_id}/reverse",
    status_code=201,
    response_model=TransferDetail,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 402, 403, 404, 409, 413, 422),
)
@needs(Scope.corrections_write)
async def reverse_transfer(
    transfer_id: UUID, wanted: ReversalCreate, operator: CurrentUser, response: Response, uow: Work
) -> TransferRow:
    """Reverse a posted transfer with another transfer."""
    reversal = await corrections.reverse(uow, operator, transfer_id, wanted.reason)
    response.headers["Location"] = f"/v1/transfers/{reversal.id}"
    return reversal


@router.post(
    "/adjustments",
    status_code=201,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 402, 403, 409, 413, 422),
)
@needs(Scope.corrections_write)
async def create_adjustment(
    wanted: AdjustmentCreate, operator: CurrentUser, response: Response, uow: Work, state: State
) -> AdjustmentPublic:
    """Adjust a user's balance: immediately or, above a set amount, once a second operator approves."""
    adjustment = await corrections.request(uow, operator, wanted, state.settings.adjustment_approval_above)
    response.headers["Location"] = f"/v1/adjustments/{adjustment.id}"
    return _public(adjustment)


@router.get("/adjustments", responses=responses(400, 401, 403, 422))
@needs(Scope.corrections_read)
async def list_adjustments(
    _: CurrentUser, page: Annotated[PageQuery, page_of(ADJUSTMENTS)], uow: ReplicaWork
) -> Page[AdjustmentPublic]:
    """List all adjustments, newest first."""
    found = await uow.adjustments.list_page(ADJUSTMENTS, page)
    return Page(
        data=[_public(one) for one in found.data],
        has_more=found.has_more,
        next_cursor=found.next_cursor,
        total=found.total,
    )


@router.get("/adjustments/{adjustment_id}", responses=responses(401, 403, 404, 422))
@needs(Scope.corrections_read)
async def read_adjustment(adjustment_id: UUID, _: CurrentUser, uow: Work) -> AdjustmentPublic:
    """Get an adjustment."""
    return _public(await corrections.get(uow, adjustment_id))


@router.post(
    "/adjustments/{adjustment_id}/approve",
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 402, 403, 404, 409, 422),
)
@needs(Scope.corrections_write)
async def approve_adjustment(adjustment_id: UUID, operator: CurrentUser, uow: Work) -> AdjustmentPublic:
    """Approve a pending adjustment, for an operator other than the one who requested it."""
    return _public(await corrections.approve(uow, operator, adjustment_id))


@router.post(
    "/adjustments/{adjustment_id}/reject",
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 409, 422),
)
@needs(Scope.corrections_write)
async def reject_adjustment(adjustment_id: UUID, operator: CurrentUser, uow: Work) -> AdjustmentPublic:
    """Reject a pending adjustment, for an operator other than the one who requested it."""
    return _public(await corrections.reject(uow, operator, adjustment_id))


def _public(adjustment: Adjustment) -> AdjustmentPublic:
    return AdjustmentPublic(**adjustment.model_dump(), user=_owner(adjustment.account))


def _owner(account: Account) -> UserSummary:
    assert account.user is not None, "a system account has no user"
    return UserSummary(id=account.user.id, full_name=account.user.full_name)
