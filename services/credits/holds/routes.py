"""HTTP routes for two-phase transfers."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response

from services.api.dependencies import CurrentUser, ReplicaWork, State, Work, page_of
from services.api.headers import located
from services.api.idempotency import IDEMPOTENCY_KEY_REQUIRED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.approval.rules import Limits
from services.credits.holds import service as holds
from services.credits.holds.service import UNRESOLVED
from services.credits.ledger.rules import REFUSALS
from services.credits.schemas import HoldCreate, HoldPost, Party, TransferDetail
from services.credits.transfers import service as transfers
from services.credits.transfers.repository import HOLDS, TransferRow
from services.credits.transfers.routes import AsParty
from services.query import Page, PageQuery
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


@router.post(
    "/holds",
    status_code=201,
    response_model=TransferDetail,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 413, 422, *REFUSALS) | located(201),
)
@needs(Scope.credits_write)
async def create_hold(
    wanted: HoldCreate, payer: CurrentUser, response: Response, uow: Work, state: State
) -> TransferRow:
    """Hold the caller's credits for another user until `expires_at`, as a pending transfer."""
    longest = timedelta(seconds=state.settings.transfer_hold_max)
    held = await holds.hold(uow, payer, wanted, longest)
    response.headers["Location"] = f"/v1/transfers/{held.id}"
    return held


@router.get("/holds", responses=responses(400, 401, 422))
@needs(Scope.credits_read)
async def list_holds(
    caller: CurrentUser, page: Annotated[PageQuery, page_of(HOLDS)], uow: ReplicaWork, party: AsParty = Party.payer
) -> Page[TransferDetail]:
    """List the holds that the caller pays or receives, the newest first, including those that have ended.

    Credits that are held for orders are left out: they are released or posted with their order.
    """
    return await transfers.listed(uow, caller, party, page, holds=True)


@router.post(
    "/transfers/{transfer_id}/post",
    response_model=TransferDetail,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 413, 422, *UNRESOLVED, *REFUSALS),
)
@needs(Scope.credits_write)
async def post_transfer(
    transfer_id: UUID, caller: CurrentUser, uow: Work, state: State, wanted: HoldPost | None = None
) -> TransferRow:
    """Post a pending transfer, or part of it and release the remainder, for its recipient and operators."""
    return await holds.post(uow, caller, transfer_id, wanted.amount if wanted else None, Limits.of(state.settings))


@router.post(
    "/transfers/{transfer_id}/void",
    response_model=TransferDetail,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 422, *UNRESOLVED, *REFUSALS),
)
@needs(Scope.credits_write)
async def void_transfer(transfer_id: UUID, caller: CurrentUser, uow: Work, state: State) -> TransferRow:
    """Void a pending transfer and release its credits, for its recipient and operators."""
    return await holds.void(uow, caller, transfer_id, Limits.of(state.settings))
