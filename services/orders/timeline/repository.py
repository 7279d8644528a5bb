"""All SQL about the history of an order."""

import json
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.fields import id_at
from services.orders.timeline import queries
from services.orders.timeline.schemas import EACH, Expected, FoundEvent
from services.sql import Row, SqlAccess

_EXAMINED = 5000
"""The most events on each side of a moment, entries of an account and keys of a buyer that are looked at."""

_MOST = EACH + 1


class TimelineRepository(SqlAccess):
    """What is known of an order's history: of each kind, the first `EACH` rows and one more, oldest first."""

    async def transitions(self, order_id: UUID) -> Sequence[Row]:
        return await self.sql.fetch(queries.TRANSITIONS, order_id=order_id, most=_MOST)

    async def refunds(self, order_id: UUID) -> Sequence[Row]:
        return await self.sql.fetch(queries.REFUNDS, order_id=order_id, most=_MOST)

    async def transfers(self, order_id: UUID) -> Sequence[Row]:
        """Its holds and refunds."""
        return await self.sql.fetch(queries.TRANSFERS, order_id=order_id, most=_MOST)

    async def entries(self, order_id: UUID) -> Sequence[Row]:
        """Both entries of each transfer that was posted."""
        return await self.sql.fetch(queries.ENTRIES, order_id=order_id, examined=_EXAMINED, most=_MOST)

    async def movements(self, order_id: UUID) -> Sequence[Row]:
        """What was shipped and returned."""
        return await self.sql.fetch(queries.MOVEMENTS, order_id=order_id, most=_MOST)

    async def events(self, ids: Collection[UUID]) -> list[FoundEvent]:
        """The events with these ids that the log still has."""
        rows = await self.sql.fetch(queries.EVENTS, ids=list(ids)) if ids else ()
        return [FoundEvent(**row) for row in rows]

    async def events_near(self, aggregate: str, expected: Sequence[Expected], around: timedelta) -> list[FoundEvent]:
        """Events of the aggregate that are of an expected type and were written around the time expected."""
        if not expected:
            return []
        await self.sql.run(queries.WITHOUT_SORTING)
        rows = await self.sql.fetch(
            queries.NEAR,
            aggregate=aggregate,
            types=[one.type for one in expected],
            lows=[id_at(one.at - around) for one in expected],
            middles=[id_at(one.at) for one in expected],
            highs=[id_at(one.at + around) for one in expected],
            examined=_EXAMINED,
        )
        await self.sql.run(queries.SORTING)
        return [FoundEvent(**{name: value for name, value in row.items() if name != "aggregate"}) for row in rows]

    async def failures(self, positions: Collection[int]) -> dict[UUID, list[dict[str, Any]]]:
        """The failures of the events at these positions, in the outbox or among the dead letters, oldest first."""
        rows = await self.sql.fetch(queries.FAILURES, positions=list(positions)) if positions else ()
        return {row["event_id"]: json.loads(row["failures"]) for row in rows}

    async def actions(self, event_ids: Collection[UUID]) -> Sequence[Row]:
        """What operators did to these events."""
        return await self.sql.fetch(queries.ACTIONS, ids=list(event_ids), most=_MOST) if event_ids else ()

    async def requests(
        self, order_id: UUID, buyer_id: int, caller_ids: Collection[int], verbs: Sequence[str]
    ) -> Sequence[Row]:
        """The requests with a key that placed the order, or that these users sent to do this with it."""
        location = f"/v1/orders/{order_id}"
        return await self.sql.fetch(
            queries.REQUESTS,
            caller_ids=list(caller_ids),
            paths=[f"{location}/{verb}" for verb in verbs],
            buyer_id=buyer_id,
            placed_at="/v1/orders",
            location=location,
            examined=_EXAMINED,
            most=_MOST,
        )
