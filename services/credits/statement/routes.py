"""HTTP routes for the statement of an account."""

from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from services.api.attachments import attachment
from services.api.dependencies import CurrentUser, ReplicaWork, State, Work, filters_of, page_of
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.ledger import service
from services.credits.models import Entry
from services.credits.schemas import EntryPublic
from services.credits.statement.repository import ENTRIES
from services.credits.statement.service import statement_csv
from services.exports import Format
from services.fields import Id
from services.query import Page, PageQuery, Rows
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["credits"])


@router.get("/accounts/me/statement", response_model=Page[EntryPublic], responses=responses(400, 401, 422))
@needs(Scope.credits_read)
async def read_statement(
    user: CurrentUser, page: Annotated[PageQuery, page_of(ENTRIES)], uow: ReplicaWork
) -> Rows[Entry]:
    """List the entries of the caller's account, newest first, each with the balance after it."""
    return await uow.statements.page(user.id, page)


@router.get("/accounts/{user_id}/statement", response_model=Page[EntryPublic], responses=responses(400, 401, 403, 422))
@needs(Scope.credits_read_all)
async def read_statement_of(
    user_id: Id, _: CurrentUser, page: Annotated[PageQuery, page_of(ENTRIES)], uow: ReplicaWork
) -> Rows[Entry]:
    """List the entries of a user's account, newest first, each with the balance after it."""
    return await uow.statements.page(user_id, page)


@router.get(
    "/accounts/me/statement.csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **responses(400, 401, 422)},
)
@needs(Scope.credits_read)
@rate_class(RateClass.export)
async def export_statement(
    user: CurrentUser,
    uow: Work,
    state: State,
    filters: Annotated[list[str], filters_of(ENTRIES)] = [],  # noqa: B006  (FastAPI copies it)
) -> StreamingResponse:
    """Export the caller's whole statement as CSV (RFC 4180), oldest entry first."""
    account = await service.account_of(uow, user.id)
    # The connection goes back to the pool: the export takes one only briefly for each piece.
    await uow.rollback()
    # Pieces are read where the account's newest entry is, so that none is missing.
    position = await state.reads.position()
    pieces = statement_csv(lambda read: state.reads.run(read, position), account.id, account.version, filters)
    return await attachment(pieces, "statement", Format.csv)
