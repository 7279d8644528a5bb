"""What operators read: dead letters by kind, and the events that wait."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, literal_column
from sqlmodel import select

from services.fields import Id, Moment, Text
from services.filters import EXACT, Filterable
from services.outbox.control.schemas import NOT_TO_USE
from services.outbox.counting.queries import PLAN_BY_INDEX
from services.outbox.inspection import queries
from services.outbox.inspection.schemas import Kind
from services.outbox.models import FailureReason, OutboxRow, Waits
from services.query import Listing, PageQuery, Rows, Sortable
from services.sql import Row, SqlAccess

MOST_KINDS = 1000
"""The most kinds of errors that are looked at."""


class InspectionRepository(SqlAccess):
    """Reads that cost the same however many events wait or are dead."""

    async def now(self) -> datetime:
        """The time, by the database's clock."""
        (row,) = await self.sql.fetch(queries.NOW)
        at: datetime = row["at"]
        return at

    async def is_paused(self, event_type: str) -> bool:
        """Whether an operator has paused this type."""
        return bool(await self.sql.fetch(queries.PAUSED, type=event_type))

    async def kinds(self) -> list[Kind]:
        """Every kind of dead letters, up to `MOST_KINDS` and one more."""
        return [_kind(row) for row in await self.sql.fetch(queries.KINDS, most=MOST_KINDS + 1)]

    async def kind(self, fingerprint: str) -> Kind | None:
        """The kind with this fingerprint; None if no dead letter has it."""
        return next((_kind(row) for row in await self.sql.fetch(queries.KIND, fingerprint=fingerprint)), None)

    async def groups(
        self, kinds: Sequence[Kind], starts_at: datetime, span: timedelta, *, counted: int, most: int
    ) -> Sequence[Row]:
        """The counts of these kinds, in their order.

        Of each, `counted` letters and one more are counted, and `most` in each of the spans of time from `starts_at`.
        It sets how this transaction's later statements are planned.
        """
        await self.sql.fetch(PLAN_BY_INDEX, names=NOT_TO_USE)
        return await self.sql.fetch(
            queries.GROUPS,
            fingerprints=[one.fingerprint for one in kinds],
            positions=[one.position for one in kinds],
            starts_at=starts_at,
            span=span,
            counted=counted,
            most=most,
        )

    async def ready(self, event_type: str, wanted: PageQuery) -> Rows[OutboxRow]:
        """The ready events of a type, the oldest first."""
        within: list[ColumnElement[bool]] = [OutboxRow.type == event_type, OutboxRow.available_at.is_(None)]
        return await READY.page(self.session, select(OutboxRow), wanted, *within)

    async def timed(self, event_type: str, wanted: PageQuery) -> Rows[OutboxRow]:
        """The events of a type that wait until a time, the next one first."""
        within: list[ColumnElement[bool]] = [OutboxRow.type == event_type, literal_column("available_at < 'infinity'")]
        return await TIMED.page(self.session, select(OutboxRow), wanted, *within)

    async def waiting(self, wanted: PageQuery) -> Rows[OutboxRow]:
        """The events that wait for a time or behind another event, by aggregate."""
        return await BY_AGGREGATE.page(self.session, select(OutboxRow), wanted, OutboxRow.available_at.is_not(None))


def _kind(row: Row) -> Kind:
    reason = None if row["reason"] is None else FailureReason(row["reason"])
    return Kind(row["fingerprint"], row["position"], row["type"], reason, row["last_at"])


_PLACE = Sortable(OutboxRow.position, Id)
_WAITS = Filterable(OutboxRow.waits, Waits, EXACT)

READY = Listing[OutboxRow](filters={}, sorts={"position": _PLACE}, key=_PLACE, default="position")

TIMED = Listing[OutboxRow](
    filters={"waits": _WAITS},
    sorts={"available_at": Sortable(OutboxRow.available_at, Moment)},
    key=_PLACE,
    default="available_at",
)

# What waits until another event is out of the way has no time, and no index has its type.
BY_AGGREGATE = Listing[OutboxRow](
    filters={"type": Filterable(OutboxRow.type, Text, EXACT), "waits": _WAITS},
    sorts={"aggregate": Sortable(OutboxRow.aggregate, Text)},
    key=_PLACE,
    default="aggregate",
)
