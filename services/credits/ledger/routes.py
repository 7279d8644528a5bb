"""HTTP routes for accounts."""

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, Work
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.ledger import service
from services.credits.models import Account
from services.credits.schemas import AccountPublic, AccountStatus
from services.errors import OwnAccount
from services.fields import Id
from services.users.rights import Scope
from services.users.schemas import UserSummary

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


@router.get("/accounts/me", responses=responses(401))
@needs(Scope.credits_read)
async def read_account(user: CurrentUser, uow: Work) -> AccountPublic:
    """Get the caller's account."""
    account = await service.account_of(uow, user.id)
    return AccountPublic(
        posted=account.posted,
        held=account.held,
        available=account.posted - account.held,
        version=account.version,
        closed_at=account.closed_at,
    )


@router.get("/accounts/{user_id}", responses=responses(401, 403, 404, 422))
@needs(Scope.credits_read_all)
async def read_account_of(user_id: Id, _: CurrentUser, uow: Work) -> AccountStatus:
    """Get a user's account."""
    return _status(await service.account_with_user(uow, user_id))


@router.post(
    "/accounts/{user_id}/close",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422, OwnAccount),
)
@needs(Scope.corrections_write)
async def close_account(user_id: Id, operator: CurrentUser, uow: Work) -> AccountStatus:
    """Close another user's account that holds no credits: it can neither send nor receive."""
    service.check_of_another(operator, user_id)
    return _status(await service.close_account(uow, user_id))


@router.post(
    "/accounts/{user_id}/reopen",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422, OwnAccount),
)
@needs(Scope.corrections_write)
async def reopen_account(user_id: Id, operator: CurrentUser, uow: Work) -> AccountStatus:
    """Reopen another user's closed account: it can send and receive again."""
    service.check_of_another(operator, user_id)
    return _status(await service.reopen_account(uow, user_id))


def _status(account: Account) -> AccountStatus:
    return AccountStatus(
        user=_owner(account),
        posted=account.posted,
        held=account.held,
        available=account.posted - account.held,
        version=account.version,
        closed_at=account.closed_at,
    )


def _owner(account: Account) -> UserSummary:
    assert account.user is not None, "a system account has no user"
    return UserSummary(id=account.user.id, full_name=account.user.full_name)
