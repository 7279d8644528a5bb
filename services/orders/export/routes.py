"""HTTP routes for exports of orders."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from services.acting import Action
from services.api.attachments import attachment, record_export
from services.api.dependencies import CurrentUser, State, Work, filters_of
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.exports import Format, documented
from services.orders.export.service import export, of_side
from services.orders.repository import ORDERS
from services.orders.schemas import Side
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["orders"])

_SIDE = "`seller`: what the caller sold of each order. `everybody` needs the scope `orders:read_all`."

OfSide = Annotated[Side, Query(alias="as", description=_SIDE)]

Filters = Annotated[list[str], filters_of(ORDERS)]


@router.get(
    "/orders.csv",
    response_class=StreamingResponse,
    responses={**documented(Format.csv), **responses(400, 401, 403, 422)},
)
@needs(Scope.orders_read)
@rate_class(RateClass.export)
async def export_orders_as_csv(
    caller: CurrentUser,
    request: Request,
    uow: Work,
    state: State,
    side: OfSide = Side.buyer,
    filters: Filters = [],  # noqa: B006  (FastAPI copies it)
) -> StreamingResponse:
    """Export the caller's orders as CSV (RFC 4180), in the order in which they were placed.

    An export of all orders is recorded in the audit log.
    """
    return await _export(Format.csv, caller, request, uow, state, side, filters)


@router.get(
    "/orders.ndjson",
    response_class=StreamingResponse,
    responses={**documented(Format.ndjson), **responses(400, 401, 403, 422)},
)
@needs(Scope.orders_read)
@rate_class(RateClass.export)
async def export_orders_as_json(
    caller: CurrentUser,
    request: Request,
    uow: Work,
    state: State,
    side: OfSide = Side.buyer,
    filters: Filters = [],  # noqa: B006  (FastAPI copies it)
) -> StreamingResponse:
    """Export the caller's orders as one JSON object a line, in the order in which they were placed.

    An export of all orders is recorded in the audit log.
    """
    return await _export(Format.ndjson, caller, request, uow, state, side, filters)


async def _export(
    form: Format, caller: SignedIn, request: Request, uow: UnitOfWork, state: State, side: Side, filters: list[str]
) -> StreamingResponse:
    wanted = of_side(caller, side)
    # The connection goes back to the pool: the export takes one only briefly for each piece.
    await uow.rollback()
    if side is Side.everybody:
        # A bad filter is refused before anything is recorded.
        ORDERS.conditions(filters)
        await record_export(request, Action.orders_exported, "orders", form, list(map(_recorded, filters)))
    # Pieces are read where the newest order is, so that none is missing.
    position = await state.reads.position()
    pieces = export(lambda read: state.reads.run(read, position), form, filters, wanted)
    return await attachment(pieces, "orders", form)


def _recorded(one: str) -> str:
    """A filter as the audit log keeps it permanently: without the reference, which a buyer has written."""
    name, _, rest = one.partition(":")
    return f"{name}:{rest.partition(':')[0]}:..." if name == "reference" else one
