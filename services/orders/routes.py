"""HTTP routes for orders."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from services.api.bodies import KIB, body_limit
from services.api.dependencies import CurrentUser, ReplicaWork, State, Work, etag, page_of
from services.api.groups import Kind
from services.api.headers import located
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED, IDEMPOTENCY_KEY_REQUIRED
from services.api.intents import in_groups
from services.api.problems import responses
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.credits.approval.rules import Limits
from services.credits.ledger.rules import REFUSALS
from services.errors import AlreadyExists, ApprovalNeeded, OwnAccount, QuotaExceeded
from services.orders import service
from services.orders.export.routes import OfSide
from services.orders.export.service import of_side
from services.orders.models import LINES_A_PAGE, Refund
from services.orders.placing import service as placing
from services.orders.refunds.repository import REFUNDS
from services.orders.repository import ORDERS
from services.orders.schemas import (
    Include,
    OrderCancel,
    OrderCreate,
    OrderDetail,
    OrderListed,
    OrderPublic,
    RefundCreate,
    RefundPublic,
    Side,
)
from services.orders.viewing import service as viewing
from services.query import Page, PageQuery
from services.users.rights import Scope

Including = Annotated[
    tuple[Include, ...],
    Query(
        max_length=5,
        description=f"`items`: the lines of each order. A page then has at most {LINES_A_PAGE:,} of them: it may have "
        "fewer orders than its limit although `has_more` is true.",
    ),
]

router = APIRouter(route_class=TransactionRoute, tags=["orders"])


def _placed(order: OrderPublic) -> Response:
    """The reply to a placed order, whether it was placed alone or in a group."""
    headers = {"Location": f"/v1/orders/{order.id}", "ETag": etag(order.version)}
    return Response(order.model_dump_json(), 201, headers, "application/json")


_PLACING: Kind[OrderCreate, OrderPublic] = Kind(
    schema=OrderCreate,
    reads=placing.reads,
    carry_out=lambda uow, asked, found, settings: placing.place_all(
        uow, asked, found, service.Patience.from_settings(settings)
    ),
    reply=_placed,
    made=lambda order: order.id,
    weight=lambda wanted: len(wanted.items),
    name=lambda wanted: wanted.reference,
)


@router.post(
    "/orders",
    status_code=201,
    response_model=OrderPublic,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 413, 422, AlreadyExists, QuotaExceeded, *REFUSALS) | located(201),
)
@needs(Scope.orders_write)
@body_limit(128 * KIB, values=5000)
@in_groups(_PLACING)
async def place_order(wanted: OrderCreate, buyer: CurrentUser, uow: Work, state: State) -> Response:
    """Place an order: `pending` if the caller's credits cover it, otherwise `awaiting_payment`, or 402 if requested."""
    return _placed(await service.place(uow, buyer, wanted, service.Patience.from_settings(state.settings)))


@router.get("/orders", responses=responses(400, 401, 403, 422))
@needs(Scope.orders_read)
async def list_orders(
    caller: CurrentUser,
    page: Annotated[PageQuery, page_of(ORDERS)],
    uow: ReplicaWork,
    side: OfSide = Side.buyer,
    include: Including = (),
) -> Page[OrderListed]:
    """List the caller's orders, newest first.

    With `as=seller`, an order has the caller's lines only, `total`, `refunded` and `item_count` are of these, and
    `reference` is null. It can then not be filtered by `total` and `reference`.
    """
    return await service.listed(uow, page, with_items=Include.items in include, **of_side(caller, side))


@router.get("/orders/{order_id}", responses=responses(401, 404, 422))
@needs(Scope.orders_read)
async def read_order(order_id: UUID, caller: CurrentUser, response: Response, uow: Work) -> OrderDetail:
    """Get an order with its history, for its buyer, its sellers and callers with `orders:read_all`.

    A seller sees their own lines only: `total`, `refunded` and `item_count` are of these, and `reference` is null. The
    reasons of the staff are empty for its buyer and sellers.
    """
    order = await service.get(uow, caller, order_id)
    response.headers["ETag"] = etag(order.version)
    return order


@router.post(
    "/orders/{order_id}/pay",
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 409, 422, *REFUSALS),
)
@needs(Scope.orders_write)
async def pay_order(order_id: UUID, buyer: CurrentUser, response: Response, uow: Work, state: State) -> OrderDetail:
    """Pay for an order that awaits payment."""
    order = await service.pay(uow, buyer, order_id, service.Patience.from_settings(state.settings))
    response.headers["ETag"] = etag(order.version)
    return order


@router.post(
    "/orders/{order_id}/cancel",
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 409, 413, 422, OwnAccount, ApprovalNeeded, *REFUSALS),
)
@needs(Scope.orders_write)
async def cancel_order(
    order_id: UUID,
    caller: CurrentUser,
    response: Response,
    uow: Work,
    state: State,
    wanted: OrderCancel | None = None,
) -> OrderDetail:
    """Cancel an order that is not fulfilled. Held credits are released, payments refunded.

    The reason of the buyer or the seller is shown to both, that of an operator to the staff only.
    """
    reason = wanted.reason if wanted else ""
    order = await service.cancel(uow, caller, order_id, reason, Limits.of(state.settings))
    response.headers["ETag"] = etag(order.version)
    return order


@router.post(
    "/orders/{order_id}/refunds",
    status_code=201,
    response_model=RefundPublic,
    dependencies=[IDEMPOTENCY_KEY_REQUIRED],
    responses=responses(400, 401, 403, 404, 409, 413, 422, OwnAccount, ApprovalNeeded, *REFUSALS),
)
@needs(Scope.sales_write)
@body_limit(128 * KIB, values=5000)
async def refund_order(order_id: UUID, wanted: RefundCreate, caller: CurrentUser, uow: Work, state: State) -> Refund:
    """Refund pieces of a paid order, for their sellers and operators. Without `lines`, refund all that is left.

    The reason of a seller is shown to the buyer, that of an operator to the staff only.
    """
    return await service.refund(uow, caller, order_id, wanted, Limits.of(state.settings))


@router.get("/orders/{order_id}/refunds", responses=responses(400, 401, 404, 422))
@needs(Scope.orders_read)
async def list_refunds(
    order_id: UUID, caller: CurrentUser, page: Annotated[PageQuery, page_of(REFUNDS)], primary: Work, uow: ReplicaWork
) -> Page[RefundPublic]:
    """List the refunds of an order, oldest first, for those who may see the order.

    A seller sees those of their own lines, with these lines and what was paid for them. The reasons of the staff are
    empty for its buyer and sellers.
    """
    _, sight = await service.find(primary, caller, order_id)
    # Its connection goes back to the pool.
    await primary.rollback()
    return await viewing.refunds(uow, order_id, sight, page)


@router.post(
    "/orders/{order_id}/fulfil",
    dependencies=[IDEMPOTENCY_KEY_ACCEPTED],
    responses=responses(400, 401, 403, 404, 409, 422),
)
@needs(Scope.sales_write)
async def fulfil_order(order_id: UUID, caller: CurrentUser, response: Response, uow: Work) -> OrderDetail:
    """Mark a confirmed order as shipped, for the seller of all its lines and operators."""
    order = await service.fulfil(uow, caller, order_id)
    response.headers["ETag"] = etag(order.version)
    return order
