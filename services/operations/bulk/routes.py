"""HTTP routes for bulk actions."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from services.api.dependencies import CurrentUser, ReplicaWork, Work, page_of
from services.api.headers import located
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED, IDEMPOTENCY_KEY_REQUIRED
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.fields import Instant
from services.operations.bulk.schemas import BulkActionCreate, BulkActionPublic
from services.operations.outbox.schemas import Because, Short
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkAction, BulkKind
from services.outbox.bulk.repository import BULK_ACTIONS
from services.outbox.bulk.schemas import BulkFilter, Preview
from services.outbox.control.schemas import By
from services.outbox.models import FailureReason, Waits
from services.query import Page, PageQuery, Rows
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/bulk-actions", response_model=Page[BulkActionPublic], responses=responses(400, 401, 403, 422))
@needs(Scope.operations_read)
async def list_bulk_actions(
    _: CurrentUser, page: Annotated[PageQuery, page_of(BULK_ACTIONS)], uow: ReplicaWork
) -> Rows[BulkAction]:
    """List bulk actions with their progress, newest first."""
    return await uow.bulk.list_page(BULK_ACTIONS, page)


@router.get("/bulk-actions/preview", responses=responses(400, 401, 403, 422))
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def preview_bulk_action(
    _: CurrentUser,
    uow: Work,
    action: Annotated[BulkKind, Query()],
    type: Annotated[Short | None, Query()] = None,  # noqa: A002  (the name of the parameter)
    aggregate: Annotated[Short | None, Query()] = None,
    fingerprint: Annotated[Short | None, Query()] = None,
    died_from: Annotated[Instant | None, Query()] = None,
    died_before: Annotated[Instant | None, Query()] = None,
    waits: Annotated[Waits | None, Query()] = None,
    failure_reason: Annotated[FailureReason | None, Query()] = None,
    everything: Annotated[bool, Query(description="Needed for a preview without any other field.")] = False,
) -> Preview:
    """Show how many events a bulk action would be about, and the first 20 of them. Nothing is changed.

    Up to 10,000 events are counted; beyond that, the number is an estimate.
    """
    wanted = BulkFilter(type, aggregate, fingerprint, died_from, died_before, waits, failure_reason)
    return await bulk.preview(uow, action, wanted, everything=everything)


@router.get("/bulk-actions/{action_id}", response_model=BulkActionPublic, responses=responses(401, 403, 404, 422))
@needs(Scope.operations_read)
async def read_bulk_action(action_id: UUID, _: CurrentUser, uow: Work) -> BulkAction:
    """Get a bulk action and its progress."""
    return await bulk.get(uow, action_id)


@router.post(
    "/bulk-actions",
    status_code=201,
    response_model=BulkActionPublic,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 409, 413, 422) | located(201),
)
@needs(Scope.operations_write)
async def start_bulk_action(wanted: BulkActionCreate, user: CurrentUser, response: Response, uow: Work) -> BulkAction:
    """Replay or discard all dead letters, or retry or bury all waiting events, that match now.

    Workers carry it out in chunks of up to 500 events, each in one transaction. What fails later is left out.
    """
    action = await bulk.start(
        uow, wanted.action, wanted.filter(), By.user(user.id, wanted.reason), everything=wanted.everything
    )
    response.headers["Location"] = f"/v1/operations/bulk-actions/{action.id}"
    return action


@router.post(
    "/bulk-actions/{action_id}/cancel",
    response_model=BulkActionPublic,
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 413, 422),
)
@needs(Scope.operations_write)
async def cancel_bulk_action(action_id: UUID, wanted: Because, user: CurrentUser, uow: Work) -> BulkAction:
    """End a bulk action where it is. What it has done so far stays."""
    return await bulk.cancel(uow, action_id, By.user(user.id, wanted.reason))
