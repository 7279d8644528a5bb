"""HTTP routes for transfers that take effect immediately."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from services.api.bodies import AS_MUCH_AS_ANY, body_limit
from services.api.dependencies import CurrentUser, ReplicaWork, Work, page_of
from services.api.groups import Kind
from services.api.idempotency import IDEMPOTENCY_KEY_REQUIRED, forget_key
from services.api.intents import in_groups
from services.api.problems import domain_problem, responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.ledger.rules import REFUSALS, Posting
from services.credits.models import TransferKind, TransferState
from services.credits.schemas import (
    BatchMode,
    ItemError,
    ItemResult,
    ItemStatus,
    Party,
    TransferBatchCreate,
    TransferBatchReply,
    TransferCreate,
    TransferDetail,
    TransferMade,
    TransferReply,
)
from services.credits.transfers import planning
from services.credits.transfers import service as transfers
from services.credits.transfers.planning import Outcome
from services.credits.transfers.repository import TRANSFERS
from services.credits.transfers.service import Transferred
from services.errors import BatchRefused, DomainError, LinkedChainOpen
from services.query import Page, PageQuery
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


def _transferred(done: Transferred, *, dry_run: bool = False) -> Response:
    """The reply to a transfer, whether it was carried out alone or in a group."""
    reply = TransferReply(**_made(_posting(done), done.at, dry_run), dry_run=dry_run)
    return Response(reply.model_dump_json(), 200 if dry_run else 201, media_type="application/json")


def _posting(done: Transferred) -> Posting:
    """The outcome of a single transfer that was not refused."""
    [outcome] = done.outcomes
    assert isinstance(outcome, Posting)
    return outcome


_TRANSFERRING: Kind[TransferCreate, Transferred] = Kind(
    schema=TransferCreate,
    reads=transfers.reads,
    carry_out=lambda uow, asked, found, _: transfers.transfer_all(uow, asked, found),
    reply=_transferred,
    made=lambda done: _posting(done).transfer_id,
    writes=lambda wanted: not wanted.dry_run,
)


@router.post(
    "/transfers",
    status_code=201,
    response_model=TransferReply,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 413, 422, *REFUSALS)
    | {200: {"model": TransferReply, "description": "The outcome of a dry run."}},
)
@needs(Scope.credits_write)
@in_groups(_TRANSFERRING)
async def create_transfer(wanted: TransferCreate, sender: CurrentUser, request: Request, uow: Work) -> Response:
    """Move the caller's credits to another user. A dry run returns 200."""
    if wanted.dry_run:
        forget_key(request)
    try:
        done = await transfers.transfer(uow, sender, wanted)
    except DomainError as refusal:
        # As the reply, so that it is stored in this transaction, which the refusal has left as it was.
        return domain_problem(request, refusal)
    return _transferred(done, dry_run=wanted.dry_run)


@router.post(
    "/transfers/batch",
    response_model=TransferBatchReply,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 413, 422, LinkedChainOpen, BatchRefused, *REFUSALS),
)
@needs(Scope.credits_write)
@body_limit(AS_MUCH_AS_ANY, values=5000)
@rate_class(RateClass.batch)
async def create_transfers(
    wanted: TransferBatchCreate, sender: CurrentUser, request: Request, uow: Work
) -> TransferBatchReply | Response:
    """Carry out up to 500 transfers one after another.

    `independent`: each succeeds or fails on its own, linked ones together; the response is 200 with a result for each.
    `atomic`: all or none; if one fails, the response is the problem of that one.
    """
    if wanted.dry_run:
        forget_key(request)
    done = await transfers.transfer_batch(uow, sender, wanted)
    cause = planning.cause(done.outcomes) if wanted.mode is BatchMode.atomic else None
    if cause is not None:
        # Without the results, which would all be stored: the others failed because of this one.
        return domain_problem(request, cause)
    results = [_result(outcome, done.at, wanted.dry_run) for outcome in done.outcomes]
    posted = sum(isinstance(outcome, Posting) for outcome in done.outcomes)
    return TransferBatchReply(
        mode=wanted.mode, dry_run=wanted.dry_run, posted=posted, failed=len(results) - posted, results=results
    )


AsParty = Annotated[Party, Query(alias="as", description="Whether the caller pays or receives them.")]


@router.get("/transfers", responses=responses(400, 401, 422))
@needs(Scope.credits_read)
async def list_transfers(
    caller: CurrentUser, page: Annotated[PageQuery, page_of(TRANSFERS)], uow: ReplicaWork, party: AsParty = Party.payer
) -> Page[TransferDetail]:
    """List the transfers that the caller pays or receives, the newest first, other than those of orders."""
    return await transfers.listed(uow, caller, party, page)


@router.get("/transfers/{transfer_id}", responses=responses(401, 404, 422))
@needs(Scope.credits_read)
async def read_transfer(transfer_id: UUID, caller: CurrentUser, uow: Work) -> TransferDetail:
    """Get a transfer, for its payer, its recipient and callers with `credits:read_all`."""
    return transfers.shown(caller, await transfers.get(uow, caller, transfer_id))


def _made(posting: Posting, at: datetime, dry_run: bool) -> dict[str, Any]:
    return {
        "id": None if dry_run else posting.transfer_id,
        "kind": TransferKind.transfer,
        "state": TransferState.posted,
        "amount": posting.item.amount,
        "note": posting.item.note,
        "created_at": at,
    }


def _result(outcome: Outcome, at: datetime, dry_run: bool) -> ItemResult:
    if isinstance(outcome, Posting):
        return ItemResult(status=ItemStatus.posted, transfer=TransferMade(**_made(outcome, at, dry_run)))
    [fault] = outcome.faults
    return ItemResult(
        status=ItemStatus.failed,
        error=ItemError(code=outcome.code, detail=outcome.detail, pointer=fault.pointer),
    )
