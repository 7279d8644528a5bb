"""What the staff searches orders by."""

from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field

from services.cursors import LONGEST
from services.fields import Instant, RequestBody, StrictId, storable
from services.orders.models import OrderStatus, Reference


class OrderSearch(RequestBody):
    """Which orders: those that match all given fields. `cursor` is the `next_cursor` of the page before."""

    id: UUID | None = None
    buyer_id: StrictId | None = None
    buyer_email: Annotated[str, Field(min_length=1, max_length=254), AfterValidator(storable)] | None = None
    reference: Reference | None = None
    status: Annotated[list[OrderStatus], Field(min_length=1, max_length=len(OrderStatus))] | None = None
    placed_from: Instant | None = None
    placed_before: Instant | None = None
    limit: Annotated[int, Field(strict=True, ge=1, le=200)] = 50
    cursor: Annotated[str, Field(max_length=LONGEST)] | None = None
