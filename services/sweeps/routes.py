"""HTTP routes for rows that sweeps could not end."""

from collections.abc import Sequence

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, Work
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.sweeps.models import SweepFailure
from services.sweeps.schemas import SweepFailurePublic
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")

_SHOWN = 200


@router.get("/sweep-failures", response_model=list[SweepFailurePublic], responses=responses(401, 403))
@needs(Scope.operations_read)
async def list_sweep_failures(_: CurrentUser, uow: Work) -> Sequence[SweepFailure]:
    """List the latest 200 rows, such as orders and holds, that are due but that the database refuses to end."""
    return await uow.sweeps.newest(_SHOWN)
