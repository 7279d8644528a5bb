"""HTTP for credits."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from services.api.dependencies import CurrentUser, Filters, Operator, PageParams, State, Work
from services.api.idempotency import IDEMPOTENCY_KEY_REQUIRED, forget_key
from services.api.problems import domain_problem, responses
from services.api.transaction import TransactionRoute
from services.credits import planning, service, transfers
from services.credits.export import statement_csv
from services.credits.models import Entry, Transfer, TransferKind, TransferState
from services.credits.planning import Outcome, Posting
from services.credits.schemas import (
    AccountPublic,
    BatchMode,
    EntryPublic,
    ItemError,
    ItemResult,
    ItemStatus,
    TopUpCreate,
    TransferBatchCreate,
    TransferBatchReply,
    TransferCreate,
    TransferMade,
    TransferPublic,
    TransferReply,
)
from services.query import Page, Rows
from services.unit_of_work import UnitOfWork

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


@router.get("/accounts/me", responses=responses(401))
async def read_account(user: CurrentUser, uow: Work) -> AccountPublic:
    """The caller's credits."""
    account = await service.account_of(uow, user.id)
    return AccountPublic(
        posted=account.posted,
        held=account.held,
        available=account.posted - account.held,
        version=account.version,
        closed_at=account.closed_at,
    )


@router.get("/accounts/me/statement", response_model=Page[EntryPublic], responses=responses(400, 401, 422))
async def read_statement(user: CurrentUser, page: PageParams, uow: Work) -> Rows[Entry]:
    """What came in and went out, the newest first, with the balance after each. Filters: created_at, kind."""
    account = await service.account_of(uow, user.id)
    return await uow.statements.page(
        account.id, filters=page.filters, sort=page.sort, limit=page.limit, cursor=page.cursor
    )


@router.get(
    "/accounts/me/statement.csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **responses(400, 401, 422)},
)
async def export_statement(user: CurrentUser, uow: Work, state: State, filters: Filters = []) -> StreamingResponse:  # noqa: B006
    """The whole statement as CSV (RFC 4180), the oldest entry first. Filters: created_at, kind."""
    # The connection goes back to the pool: the export takes one for a moment at a time.
    await uow.rollback()
    pieces = statement_csv(lambda: UnitOfWork(state.database.read), user.id, filters)
    # What is wrong with the request shows here, while there can be another answer.
    first = await anext(pieces)
    return StreamingResponse(
        _joined(first, pieces),
        media_type="text/csv; charset=utf-8; header=present",
        headers={"Content-Disposition": 'attachment; filename="statement.csv"'},
    )


@router.post(
    "/top-ups",
    status_code=201,
    response_model=TransferPublic,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 409, 413, 422),
)
async def create_top_up(wanted: TopUpCreate, _: Operator, uow: Work) -> Transfer:
    """Issue credits to a user, for operators."""
    return await service.top_up(uow, wanted)


@router.post(
    "/transfers",
    status_code=201,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 402, 409, 413, 422),
)
async def create_transfer(
    wanted: TransferCreate, sender: CurrentUser, request: Request, response: Response, uow: Work
) -> TransferReply:
    """Move the caller's credits to another user. A dry run answers 200."""
    if wanted.dry_run:
        forget_key(request)
        response.status_code = 200
    done = await transfers.transfer(uow, sender, wanted)
    [outcome] = done.outcomes
    assert isinstance(outcome, Posting)
    return TransferReply(**_made(outcome, done.at, wanted.dry_run), dry_run=wanted.dry_run)


@router.post(
    "/transfers/batch",
    response_model=TransferBatchReply,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 402, 409, 413, 422),
)
async def create_transfers(
    wanted: TransferBatchCreate, sender: CurrentUser, request: Request, uow: Work
) -> TransferBatchReply | Response:
    """Carry out up to 500 transfers one after another.

    `independent`: each succeeds or fails for itself, linked ones together; the answer is 200 with one result for each.
    `atomic`: all or none; where one fails, the answer is that one's problem, with the results beside it.
    """
    if wanted.dry_run:
        forget_key(request)
    done = await transfers.transfer_batch(uow, sender, wanted)
    results = [_result(outcome, done.at, wanted.dry_run) for outcome in done.outcomes]
    posted = sum(isinstance(outcome, Posting) for outcome in done.outcomes)
    reply = TransferBatchReply(
        mode=wanted.mode, dry_run=wanted.dry_run, posted=posted, failed=len(results) - posted, results=results
    )
    cause = planning.cause(done.outcomes) if wanted.mode is BatchMode.atomic else None
    return reply if cause is None else domain_problem(request, cause, reply.model_dump(mode="json"))


async def _joined(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        yield piece


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
