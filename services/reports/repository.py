"""All SQL about reports."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from services.outbox.log.schemas import Cursor, Place
from services.outbox.models import NOTHING_SEEN
from services.reports import queries
from services.reports.schemas import Period, Progress, Summed
from services.sql import Read, Results, Row, SqlAccess


class HappenedRepository(SqlAccess):
    """What happened, in the primary's event log and the lines of its orders."""

    async def gather(
        self, cursor: Cursor, until: int, types: Sequence[str], limit: int, *, confirmed: str, refunded: str
    ) -> tuple[int, int | None, Summed]:
        """What the next events come to: their number, the position of the last one, and their sums.

        `confirmed` and `refunded` are the types of the events by which an order is confirmed and pieces are refunded.
        """
        parameters = {
            "after": cursor.position,
            "until": until,
            "seen": cursor.seen,
            "reading": cursor.reading,
            "types": list(types),
            "limit": limit,
            "confirmed": confirmed,
            "refunded": refunded,
        }
        (found,) = await self.sql.read(Read(queries.GATHER, parameters, _summed))
        return found


class ReportRepository(SqlAccess):
    """Reports, and how far the log has been read for them, in the analytics database."""

    async def revision(self) -> str | None:
        """The revision of the tables."""
        (row,) = await self.sql.fetch(queries.REVISION)
        found: str | None = row["revision"]
        return found

    async def place(self, consumer: str) -> Place | None:
        """How far the consumer has come; None if it has read nothing."""
        for row in await self.sql.fetch(queries.PLACE, name=consumer):
            cursor = Cursor(row["seen"], row["reading"], row["position"], row["until"])
            return Place(row["series"], row["number"], row["read_id"], cursor)
        return None

    async def move(self, consumer: str, before: Place | None, after: Place) -> bool:
        """Store the place, and lock it. Returns False if it is not `before` any more."""
        values = {
            "name": consumer,
            "series": after.series,
            "number": after.number,
            "read_id": after.read_id,
            **asdict(after.cursor),
        }
        if before is None:
            return await self.sql.run(queries.BEGIN, **values) == 1
        return await self.sql.run(queries.MOVE, **values, before=before.number) == 1

    async def add(self, consumer: str, summed: Summed) -> None:
        """Add the sums to those that are there. The caller has moved the consumer's place in this transaction."""
        if summed.days:
            names = ("seller_ids", "days", "product_ids", "types", "orders", "pieces", "amounts")
            await self.sql.run(queries.ADD_DAYS, **_columns(names, summed.days))
        if summed.waits:
            waits = _columns(("seller_id", "day", "orders", "milliseconds", "slowest", *queries.WITHIN), summed.waits)
            await self.sql.run(queries.ADD_WAITS, **waits)
        await self.sql.run(queries.NOTE_NEWEST, name=consumer, newest=summed.newest)

    async def start_over(self, consumer: str, series: UUID, day: date | None) -> date | None:
        """Delete this day and all later ones, and read another series from its beginning.

        Returns the oldest day that is kept; None if there is none.
        """
        await self.sql.run(queries.START_OVER, name=consumer, series=series, seen=NOTHING_SEEN)
        if day is not None:
            await self.sql.run(queries.FORGET_DAYS, day=day)
            await self.sql.run(queries.FORGET_WAITS, day=day)
        (row,) = await self.sql.fetch(queries.OLDEST_DAY)
        found: date | None = row["day"]
        return found

    async def progress(self, consumer: str) -> Progress:
        """How far the events have been counted."""
        for row in await self.sql.fetch(queries.PROGRESS, name=consumer, nothing=NOTHING_SEEN):
            return Progress(row["newest"], row["rebuilding"])
        return Progress(None, rebuilding=False)

    async def sales(
        self,
        by: Sequence[str],
        period: Period,
        *,
        seller_id: int | None,
        product_id: int | None,
        types: Mapping[str, str],
        after: Mapping[str, Any] | None,
        limit: int,
    ) -> Sequence[Row]:
        """Sales by these columns, in their order; only groups behind `after`.

        `types` has the types of events of what is `confirmed` and `refunded`.
        """
        of_products = product_id is not None or "product_id" in by
        of_sellers = seller_id is not None or "seller_id" in by
        statement = queries.sales(tuple(by), of_products=of_products, of_sellers=of_sellers)
        return await self.sql.fetch(
            statement,
            **asdict(period),
            **types,
            seller_id=seller_id,
            product_id=product_id,
            from_the_start=after is None,
            **{f"after_{name}": None if after is None else after[name] for name in by},
            limit=limit,
        )

    async def statuses(self, period: Period, seller_id: int) -> Sequence[Row]:
        """What happened to orders of the seller, or of the whole shop, by day and type."""
        return await self.sql.fetch(queries.STATUSES, **asdict(period), seller_id=seller_id)

    async def waits(self, period: Period, seller_id: int) -> Sequence[Row]:
        """How long orders of the seller, or of the whole shop, waited to be confirmed, by day."""
        return await self.sql.fetch(queries.WAITS, **asdict(period), seller_id=seller_id)


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _summed(results: Results) -> tuple[int, int | None, Summed]:
    ((number, last, newest),), days, waits = results
    at = None if newest is None else datetime.fromtimestamp(newest / 1000, UTC)
    return number, last, Summed(days, waits, at)
