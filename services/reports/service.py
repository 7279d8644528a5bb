"""Reports: how events become sums in the analytics database, and what sellers and operators read there."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, timedelta
from uuid import UUID

from services.analytics import AnalyticsWork
from services.errors import Fault, Forbidden, InvalidInput
from services.exports import CsvLines
from services.fields import now, time_of
from services.orders.days.schemas import OrderDayPublic, Tally
from services.orders.days.service import COUNTED
from services.orders.events import OrderConfirmed, OrderRefunded
from services.outbox.log.service import Page
from services.outbox.sink import Gathered, SinkConsumer
from services.reports.models import WHOLE
from services.reports.queries import WITHIN
from services.reports.schemas import By, Period, Report, RowT, SalesRow, Summed, WaitRow
from services.sql import Row
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope

CONSUMER = "reports"
"""The name of the consumer of the event log."""

MOST_DAYS = 366
MOST_ROWS = 2000
"""The most rows of a report as JSON, and of a piece of one as CSV."""

_TYPES = {"confirmed": OrderConfirmed.type, "refunded": OrderRefunded.type}

_COLUMN = {By.day: "day", By.seller: "seller_id", By.product: "product_id"}

HEADINGS = tuple(SalesRow.model_fields)


def consumer(open_analytics: Callable[[], AnalyticsWork]) -> SinkConsumer[UnitOfWork, AnalyticsWork, Summed]:
    """The consumer of the event log that fills the reports."""
    return SinkConsumer(
        CONSUMER,
        types=tuple(COUNTED.values()),
        gather=_gather,
        open_sink=open_analytics,
        apply=_apply,
        mend="run `waybill reports rebuild`",
    )


async def _gather(uow: UnitOfWork, page: Page, types: Sequence[str], limit: int) -> Gathered[Summed]:
    number, last, summed = await uow.happened.gather(page.cursor, page.until, types, limit, **_TYPES)
    return Gathered(summed, number, last)


async def _apply(work: AnalyticsWork, summed: Summed) -> None:
    await work.reports.add(CONSUMER, summed)


async def start_over(work: AnalyticsWork, series: UUID, oldest: UUID | None) -> date | None:
    """Delete the days that the log covers, from its `oldest` event on; they are counted again as another series.

    The day of an event is that of its id, as its month is. Months are dropped whole, so no day is covered in part.
    Returns the oldest day that is kept; None if there is none.
    """
    return await work.reports.start_over(CONSUMER, series, None if oldest is None else time_of(oldest).date())


def period_of(first: date | None, last: date | None) -> Period:
    """The days of a report: by default the last 31, today (UTC) included. Raises `InvalidInput`."""
    end = last or (first + timedelta(days=30) if first and first <= date.max - timedelta(days=30) else now().date())
    start = first or max(date.min + timedelta(days=30), end) - timedelta(days=30)
    if start > end:
        raise InvalidInput("last must not be before first", [Fault("is before first", "query/last")])
    if (end - start).days >= MOST_DAYS:
        raise InvalidInput(
            f"a report covers at most {MOST_DAYS} days", [Fault(f"is more than {MOST_DAYS} days", "query/first")]
        )
    return Period(start, end)


def seller_of(caller: Caller, seller_id: int | None) -> int | None:
    """Whose sales the caller sees: with `reports:read_all` anyone's, or all (None); otherwise their own.

    Raises `Forbidden` for those of another seller.
    """
    if caller.may(Scope.reports_read_all):
        return seller_id
    if seller_id not in (None, caller.id):
        scope = Scope.reports_read_all.value
        raise Forbidden(f"reports of other sellers need the scope {scope}, which you do not have", scope=scope)
    return caller.id


async def sales(
    work: AnalyticsWork, by: Sequence[By], period: Period, seller_id: int | None, product_id: int | None
) -> Report[SalesRow]:
    """What was sold and refunded. Raises `InvalidInput` if that is too much for one reply."""
    rows = await _sales(work, by, period, seller_id, product_id, None, MOST_ROWS + 1)
    if len(rows) > MOST_ROWS:
        raise InvalidInput(
            f"the report has more than {MOST_ROWS} rows: ask for fewer days, for one seller or product, or for CSV"
        )
    return await _report(work, SalesRow, period, rows)


async def sales_csv(
    open_analytics: Callable[[], AbstractAsyncContextManager[AnalyticsWork]],
    by: Sequence[By],
    period: Period,
    seller_id: int | None,
    product_id: int | None,
) -> AsyncIterator[bytes]:
    """The heading and all rows, in pieces. Each is read in its own transaction, which ends before it is yielded.

    What is counted while the report is read is in its later rows only.
    """
    after: SalesRow | None = None
    text = CsvLines(HEADINGS)
    while True:
        async with open_analytics() as work:
            rows = await _sales(work, by, period, seller_id, product_id, after, MOST_ROWS)
        yield text.piece(map(_cells, rows))
        if len(rows) < MOST_ROWS:
            return
        after = rows[-1]


async def statuses(work: AnalyticsWork, period: Period, seller_id: int | None) -> Report[OrderDayPublic]:
    """What happened to orders on each day; days on which nothing happened are left out."""
    found: dict[date, dict[str, Tally]] = {}
    for row in await work.reports.statuses(period, WHOLE if seller_id is None else seller_id):
        found.setdefault(row["day"], {})[row["type"]] = Tally(orders=row["orders"], amount=row["amount"])
    days = [
        OrderDayPublic(day=day, **{name: tallies.get(event.type, Tally()) for name, event in COUNTED.items()})
        for day, tallies in found.items()
    ]
    return await _report(work, OrderDayPublic, period, days)


async def waits(work: AnalyticsWork, period: Period, seller_id: int | None) -> Report[WaitRow]:
    """How long the orders that were confirmed on each day had waited."""
    found = await work.reports.waits(period, WHOLE if seller_id is None else seller_id)
    return await _report(work, WaitRow, period, [_wait(row) for row in found])


async def _report(work: AnalyticsWork, kind: type[RowT], period: Period, rows: Sequence[RowT]) -> Report[RowT]:
    progress = await work.reports.progress(CONSUMER)
    return Report[kind](  # type: ignore[valid-type]  # the class that FastAPI documents
        first=period.first,
        last=period.last,
        counted_until=progress.counted_until,
        rebuilding=progress.rebuilding,
        data=list(rows),
    )


async def _sales(
    work: AnalyticsWork,
    by: Sequence[By],
    period: Period,
    seller_id: int | None,
    product_id: int | None,
    after: SalesRow | None,
    limit: int,
) -> list[SalesRow]:
    columns = [_COLUMN[one] for one in By if one in by]
    rows = await work.reports.sales(
        columns,
        period,
        seller_id=seller_id,
        product_id=product_id,
        types=_TYPES,
        after=None if after is None else after.model_dump(),
        limit=limit,
    )
    return [
        SalesRow(
            **{name: row[name] for name in columns},
            orders=row["confirmed_orders"],
            pieces=row["confirmed_pieces"],
            revenue=row["confirmed_amount"],
            refunds=row["refunded_orders"],
            refunded_pieces=row["refunded_pieces"],
            refunded=row["refunded_amount"],
            net=row["confirmed_amount"] - row["refunded_amount"],
        )
        for row in rows
    ]


def _cells(row: SalesRow) -> list[object]:
    return ["" if value is None else value for value in row.model_dump(mode="json").values()]


def _wait(row: Row) -> WaitRow:
    return WaitRow(
        day=row["day"],
        orders=row["orders"],
        average_seconds=round(row["milliseconds"] / row["orders"] / 1000, 3),
        slowest_seconds=row["slowest"] / 1000,
        **{name: row[name] for name in WITHIN},
    )
