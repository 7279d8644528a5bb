"""HTTP for credits."""

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, Operator, PageParams, Work
from services.api.idempotency import IDEMPOTENCY_KEY_REQUIRED
from services.api.problems import responses
from services.api.transaction import TransactionRoute
from services.credits import service
from services.credits.models import Entry, Transfer
from services.credits.schemas import AccountPublic, EntryPublic, TopUpCreate, TransferCreate, TransferPublic
from services.query import Page, Rows

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


@router.get("/accounts/me", responses=responses(401))
async def read_account(user: CurrentUser, uow: Work) -> AccountPublic:
    """The caller's credits."""
    account = await service.account_of(uow, user.id)
    return AccountPublic(
        posted=account.posted, held=account.held, available=account.posted - account.held, version=account.version
    )


@router.get("/accounts/me/statement", response_model=Page[EntryPublic], responses=responses(400, 401, 422))
async def read_statement(user: CurrentUser, page: PageParams, uow: Work) -> Rows[Entry]:
    """What came in and went out, the newest first, with the balance after each. Filter: created_at."""
    account = await service.account_of(uow, user.id)
    return await uow.ledger.entries(
        account.id, filters=page.filters, sort=page.sort, limit=page.limit, cursor=page.cursor
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
    response_model=TransferPublic,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 402, 409, 413, 422),
)
async def create_transfer(wanted: TransferCreate, sender: CurrentUser, uow: Work) -> Transfer:
    """Move the caller's credits to another user."""
    return await service.transfer(uow, sender, wanted)
