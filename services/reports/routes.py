"""HTTP routes for reports."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.analytics import HOW_TO_TURN_ON, Analytics, AnalyticsWork, TablesMissing
from services.api.attachments import attachment
from services.api.dependencies import CurrentUser, State, Work
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.errors import ReportsOff, ReportsUnavailable
from services.exports import Format
from services.fields import Id
from services.logs import RateLimitedLogger
from services.orders.days.schemas import OrderDayPublic
from services.reports import service
from services.reports.schemas import By, Period, Report, SalesRow, WaitRow
from services.users.rights import Scope

outage = RateLimitedLogger(logging.getLogger(__name__))

PATIENCE = 12.0
"""Time limit for a report, in seconds: somewhat more than the default limit of a statement."""

router = APIRouter(route_class=TransactionRoute, tags=["reports"], prefix="/reports")

_ANSWERS = responses(401, 403, 422, ReportsOff, ReportsUnavailable)


@dataclass(frozen=True, slots=True)
class Asked:
    """What every report is asked for. `seller_id` is None for the whole shop."""

    analytics: Analytics
    days: Period
    seller_id: int | None


async def _asked(
    state: State,
    user: CurrentUser,
    uow: Work,
    first: Annotated[date | None, Query(description="The first day, UTC. Default: 30 days before the last.")] = None,
    last: Annotated[date | None, Query(description="The last day, UTC, included. Default: today.")] = None,
    seller_id: Annotated[
        Id | None,
        Query(description="Only this seller; another needs `reports:read_all`. Default: all, or the caller."),
    ] = None,
) -> Asked:
    """Raises `Forbidden`, `InvalidInput` and `ReportsOff`."""
    seller_id, days = service.seller_of(user, seller_id), service.period_of(first, last)
    if state.analytics is None:
        raise ReportsOff(f"reports are off on this server; to turn them on, {HOW_TO_TURN_ON}")
    # A slow analytics database must not keep the primary's connections from others.
    await uow.rollback()
    return Asked(state.analytics, days, seller_id)


Wanted = Annotated[Asked, Depends(_asked)]
Product = Annotated[Id | None, Query(description="Only this product.")]
Grouping = Annotated[
    list[By], Query(min_length=1, max_length=3, description="What to group by; give it several times to combine.")
]


@asynccontextmanager
async def reading(analytics: Analytics) -> AsyncIterator[AnalyticsWork]:
    """A transaction of the analytics database. Raises `ReportsUnavailable` if that cannot be used."""
    try:
        async with asyncio.timeout(PATIENCE), analytics.open() as work:
            await work.check_tables()
            yield work
    except (DBAPIError, PoolTimeout, OSError, TablesMissing) as error:
        outage.warning("reports are unavailable: %s", error)
        raise ReportsUnavailable(
            "reports are unavailable, since the analytics database cannot be used now; everything else works"
        ) from error


@router.get("/sales", responses=_ANSWERS)
@needs(Scope.reports_read)
@rate_class(RateClass.export)
async def report_sales(
    wanted: Wanted,
    by: Grouping = [By.day],  # noqa: B006  (FastAPI copies it)
    product_id: Product = None,
) -> Report[SalesRow]:
    """Report what was sold and refunded, by day, seller, product or a combination of them.

    Sellers see their own sales; those of all sellers need `reports:read_all`. Groups without sales and refunds are left
    out.
    """
    async with reading(wanted.analytics) as work:
        return await service.sales(work, by, wanted.days, wanted.seller_id, product_id)


@router.get(
    "/sales.csv",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **_ANSWERS},
)
@needs(Scope.reports_read)
@rate_class(RateClass.export)
async def export_sales(
    wanted: Wanted,
    by: Grouping = [By.day],  # noqa: B006  (FastAPI copies it)
    product_id: Product = None,
) -> StreamingResponse:
    """Export the report of sales as CSV (RFC 4180), with any number of rows."""
    pieces = service.sales_csv(lambda: reading(wanted.analytics), by, wanted.days, wanted.seller_id, product_id)
    return await attachment(pieces, "sales", Format.csv)


@router.get("/statuses", responses=_ANSWERS)
@needs(Scope.reports_read)
@rate_class(RateClass.export)
async def report_statuses(wanted: Wanted) -> Report[OrderDayPublic]:
    """Report what became of orders on each day: how many were placed, confirmed, rejected and so on.

    For a seller, an order counts with the seller's lines only.
    """
    async with reading(wanted.analytics) as work:
        return await service.statuses(work, wanted.days, wanted.seller_id)


@router.get("/confirmation-times", responses=_ANSWERS)
@needs(Scope.reports_read)
@rate_class(RateClass.export)
async def report_confirmation_times(wanted: Wanted) -> Report[WaitRow]:
    """Report how long the orders that were confirmed on each day had waited since their credits were held."""
    async with reading(wanted.analytics) as work:
        return await service.waits(work, wanted.days, wanted.seller_id)
