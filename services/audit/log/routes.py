"""HTTP routes for the audit log."""

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from services.acting import Action
from services.api.attachments import attachment, record_export
from services.api.dependencies import CurrentUser, ReplicaWork, State, Work, filters_of, page_of
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.state import ApiState
from services.api.transaction import TransactionRoute
from services.audit.log.models import AuditLogRow
from services.audit.log.repository import AUDIT_LOG
from services.audit.log.schemas import ActPublic
from services.audit.log.service import export
from services.exports import Format, documented
from services.query import Page, PageQuery, Rows
from services.unit_of_work import UnitOfWork
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"])

Filters = Annotated[list[str], filters_of(AUDIT_LOG)]
_REFUSED = responses(400, 401, 403, 422)


@router.get("/audit-log", response_model=Page[ActPublic], responses=_REFUSED)
@needs(Scope.audit_read)
async def list_acts(
    _: CurrentUser, page: Annotated[PageQuery, page_of(AUDIT_LOG)], uow: ReplicaWork
) -> Rows[AuditLogRow]:
    """List who did what, newest first. Refused requests are counted: `number` says how many a row stands for."""
    return await uow.audit_log.list_page(AUDIT_LOG, page)


@router.get("/audit-log.csv", response_class=StreamingResponse, responses={**documented(Format.csv), **_REFUSED})
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def export_acts_as_csv(
    _: CurrentUser,
    request: Request,
    uow: Work,
    state: State,
    filters: Filters = [],  # noqa: B006  (FastAPI copies it)
) -> StreamingResponse:
    """Export the audit log as CSV (RFC 4180), oldest first. The export is itself recorded."""
    return await export_log(Format.csv, request, uow, state, filters)


@router.get("/audit-log.ndjson", response_class=StreamingResponse, responses={**documented(Format.ndjson), **_REFUSED})
@needs(Scope.audit_read)
@rate_class(RateClass.export)
async def export_acts_as_json(
    _: CurrentUser,
    request: Request,
    uow: Work,
    state: State,
    filters: Filters = [],  # noqa: B006  (FastAPI copies it)
) -> StreamingResponse:
    """Export the audit log as one JSON object a line, oldest first. The export is itself recorded."""
    return await export_log(Format.ndjson, request, uow, state, filters)


async def export_log(
    form: Format, request: Request, uow: UnitOfWork, state: ApiState, filters: list[str]
) -> StreamingResponse:
    """The audit log as a file. The export is recorded as an act of the caller. Raises `BadQuery`."""
    # A bad filter is refused before anything is recorded.
    AUDIT_LOG.conditions(filters)
    # The connection goes back to the pool: the export takes one only briefly for each piece.
    await uow.rollback()
    await record_export(request, Action.log_exported, "audit-log", form, filters)
    position = await state.reads.position()
    pieces = export(lambda read: state.reads.run(read, position), form, filters)
    return await attachment(pieces, "audit-log", form)
