"""HTTP routes for audits."""

from fastapi import APIRouter

from services.api.dependencies import CurrentUser, Work
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.audit.models import LedgerAudit
from services.audit.schemas import LedgerAuditPublic
from services.errors import NotFound
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")


@router.get("/audit", response_model=LedgerAuditPublic, responses=responses(401, 403, 404))
@needs(Scope.audit_read)
async def read_audit(_: CurrentUser, uow: Work) -> LedgerAudit:
    """Get the result of the last finished audit. Audits run hourly; this does not start one."""
    latest = await uow.audits.latest()
    if latest is None:
        raise NotFound("no audit has finished yet")
    return latest
