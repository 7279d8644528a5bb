"""Orders: the search, and what happened to one."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import Form, Request, Response
from pydantic import Field, ValidationError

from services.api.dependencies import Work
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.console.pages.forms import moment
from services.console.rendering import render
from services.console.route import PageForm, page_router
from services.console.staff import Staff
from services.cursors import LONGEST
from services.fields import typed_id
from services.orders.models import OrderStatus
from services.orders.search import service as searching
from services.orders.search.schemas import OrderSearch
from services.orders.timeline import service as timelines
from services.orders.timeline.schemas import EACH
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn
from services.users.rights import Scope

router = page_router()

SHOWN = 50

_LONGEST_FIELD = 300


class SearchForm(PageForm):
    """What is searched for, as it was typed; empty fields are left out."""

    id: str = Field(default="", max_length=_LONGEST_FIELD)
    buyer: str = Field(default="", max_length=_LONGEST_FIELD)
    reference: str = Field(default="", max_length=_LONGEST_FIELD)
    status: str = Field(default="", max_length=_LONGEST_FIELD)
    placed_from: str = Field(default="", max_length=_LONGEST_FIELD)
    placed_before: str = Field(default="", max_length=_LONGEST_FIELD)
    cursor: str = Field(default="", max_length=LONGEST)

    def search(self) -> OrderSearch:
        """Raises `ValidationError`."""
        given: dict[str, Any] = {"limit": SHOWN}
        for name in ("id", "reference", "cursor"):
            given[name] = getattr(self, name).strip() or None
        buyer = self.buyer.strip()
        given["buyer_id"] = typed_id(buyer)
        if given["buyer_id"] is None:
            given["buyer_email"] = buyer or None
        given["status"] = [self.status] if self.status else None
        for name in ("placed_from", "placed_before"):
            given[name] = moment(getattr(self, name)) or None
        return OrderSearch.model_validate(given)


@router.get("/orders")
@needs(Scope.orders_read_all)
@rate_class(RateClass.search)
async def show_orders(request: Request, staff: Staff, uow: Work) -> Response:
    """The newest orders, and the form to search others."""
    return await _found(request, staff, uow, SearchForm())


@router.post("/orders")
@needs(Scope.orders_read_all)
@rate_class(RateClass.search)
async def search_orders_here(
    form: Annotated[SearchForm, Form()], request: Request, staff: Staff, uow: Work
) -> Response:
    """Orders that match. What is searched for is in the body of the request, and so in no address."""
    return await _found(request, staff, uow, form)


@router.get("/orders/{order_id}")
@needs(Scope.orders_read_all)
@rate_class(RateClass.search)
async def show_order(order_id: UUID, request: Request, staff: Staff, uow: Work) -> Response:
    """What happened to an order."""
    timeline = await timelines.timeline(uow, order_id, staff.may)
    return render(request, "order.html", {"timeline": timeline, "most": EACH})


async def _found(request: Request, staff: SignedIn, uow: UnitOfWork, form: SearchForm) -> Response:
    page, message = None, ""
    try:
        page = await searching.search(uow, staff, form.search())
    except ValidationError as error:
        first = error.errors()[0]
        message = f"{first['loc'][0]}: {first['msg']}"
    values = {"form": form, "page": page, "message": message, "statuses": list(OrderStatus)}
    return render(request, "orders.html", values, status=200 if page is not None else 422)
