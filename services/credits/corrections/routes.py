"""HTTP routes for what operators do with the credits of others: top-ups, reversals and adjustments."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Response

from services.api.dependencies import CurrentUser, ReplicaWork, State, Work, page_of
from services.api.headers import located
from services.api.idempotency import IDEMPOTENCY_KEY_REQUIRED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.approval.rules import Limits
from services.credits.corrections import service as corrections
from services.credits.corrections.repository import ADJUSTMENTS
from services.credits.ledger.rules import REFUSALS
from services.credits.models import Account, Adjustment, Transfer
from services.credits.schemas import (
    AdjustmentCreate,
    AdjustmentPublic,
    ReversalCreate,
    TopUpCreate,
    TransferDetail,
    TransferPublic,
)
from services.credits.transfers.repository import TransferRow
from services.errors import (
    ApproverTooNew,
    NoteRequired,
    OwnAccount,
    OwnRequest,
    TransferAlreadyReversed,
    TransferAlreadyVoided,
    TransferExpired,
    TransferNotReversible,
    TransferOfOrder,
)
from services.query import Page, PageQuery
from services.users.rights import Scope
from services.users.schemas import UserSummary

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


_NOT_REVERSED = (
    TransferOfOrder,
    TransferNotReversible,
    TransferAlreadyVoided,
    TransferExpired,
    TransferAlreadyReversed,
)
"""How a reversal may be refused, apart from what the ledger refuses."""

_PENDING: dict[int | str, dict[str, Any]] = {
    202: {
        "model": AdjustmentPublic,
        "description": "It waits for the approval of another operator.",
        **located(202)[202],
    }
}


@router.post(
    "/top-ups",
    status_code=201,
    response_model=TransferPublic,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 413, 422, OwnAccount, NoteRequired, *REFUSALS) | _PENDING,
)
@needs(Scope.corrections_write)
async def create_top_up(wanted: TopUpCreate, operator: CurrentUser, uow: Work, state: State) -> Transfer | Response:
    """Issue credits to a user: immediately or, beyond what one operator may do alone, once another one approves."""
    done = await corrections.top_up(uow, operator, wanted, Limits.of(state.settings))
    return _pending(done) if isinstance(done, Adjustment) else done


@router.post(
    "/transfers/{transfer_id}/reverse",
    status_code=201,
    response_model=TransferDetail,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 413, 422, OwnAccount, *_NOT_REVERSED, *REFUSALS) | located(201) | _PENDING,
)
@needs(Scope.corrections_write)
async def reverse_transfer(
    transfer_id: UUID, wanted: ReversalCreate, operator: CurrentUser, response: Response, uow: Work, state: State
) -> TransferRow | Response:
    """Reverse a posted transfer with another transfer, like a top-up at once or when it is approved."""
    done = await corrections.reverse(uow, operator, transfer_id, wanted.reason, Limits.of(state.settings))
    if isinstance(done, Adjustment):
        return _pending(done)
    response.headers["Location"] = f"/v1/transfers/{done.id}"
    return done


@router.post(
    "/adjustments",
    status_code=201,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 413, 422, OwnAccount, *REFUSALS) | located(201),
)
@needs(Scope.corrections_write)
async def create_adjustment(
    wanted: AdjustmentCreate, operator: CurrentUser, response: Response, uow: Work, state: State
) -> AdjustmentPublic:
    """Adjust a user's balance: immediately or, beyond what one operator may do alone, once another one approves."""
    adjustment = await corrections.adjust(uow, operator, wanted, Limits.of(state.settings))
    response.headers["Location"] = f"/v1/adjustments/{adjustment.id}"
    return _public(adjustment)


@router.get("/adjustments", responses=responses(400, 401, 403, 422))
@needs(Scope.corrections_read)
async def list_adjustments(
    _: CurrentUser, page: Annotated[PageQuery, page_of(ADJUSTMENTS)], uow: ReplicaWork
) -> Page[AdjustmentPublic]:
    """List all adjustments, newest first."""
    return (await uow.adjustments.list_page(ADJUSTMENTS, page)).shown(_public)


@router.get("/adjustments/{adjustment_id}", responses=responses(401, 403, 404, 422))
@needs(Scope.corrections_read)
async def read_adjustment(adjustment_id: UUID, _: CurrentUser, uow: Work) -> AdjustmentPublic:
    """Get an adjustment."""
    return _public(await corrections.get(uow, adjustment_id))


@router.post(
    "/adjustments/{adjustment_id}/approve",
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(
        400, 401, 403, 404, 409, 422, OwnAccount, OwnRequest, ApproverTooNew, *_NOT_REVERSED, *REFUSALS
    ),
)
@needs(Scope.corrections_write)
async def approve_adjustment(adjustment_id: UUID, operator: CurrentUser, uow: Work, state: State) -> AdjustmentPublic:
    """Approve a pending adjustment, top-up or reversal that another operator requested."""
    return _public(await corrections.approve(uow, operator, adjustment_id, Limits.of(state.settings)))


@router.post(
    "/adjustments/{adjustment_id}/reject",
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 409, 422, OwnAccount, OwnRequest),
)
@needs(Scope.corrections_write)
async def reject_adjustment(adjustment_id: UUID, operator: CurrentUser, uow: Work) -> AdjustmentPublic:
    """Reject a pending adjustment, top-up or reversal that another operator requested."""
    return _public(await corrections.reject(uow, operator, adjustment_id))


def _pending(adjustment: Adjustment) -> Response:
    """The reply to what was asked for, if it waits for approval."""
    headers = {"Location": f"/v1/adjustments/{adjustment.id}"}
    return Response(_public(adjustment).model_dump_json(), 202, headers, "application/json")


def _public(adjustment: Adjustment) -> AdjustmentPublic:
    return AdjustmentPublic(**adjustment.model_dump(), user=_owner(adjustment.account))


def _owner(account: Account) -> UserSummary:
    assert account.user is not None, "a system account has no user"
    return UserSummary(id=account.user.id, full_name=account.user.full_name)
