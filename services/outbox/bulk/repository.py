"""All SQL about bulk actions: their rows, and the walks over the events that they are about."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy
from sqlalchemy import ARRAY, BigInteger, ColumnElement, Select, and_, any_, func, literal, true, tuple_
from sqlmodel import col

from services.fields import Instant
from services.filters import EXACT, ORDERED, Filterable, made_then
from services.outbox.bulk import queries
from services.outbox.bulk.models import BulkAction, BulkKind, BulkState
from services.outbox.bulk.schemas import (
    SELECTABLE,
    Bound,
    BulkFilter,
    Claimed,
    Examined,
    Place,
    Progress,
    Sample,
    Taken,
)
from services.outbox.models import DeadLetter, OutboxRow, Waits
from services.query import Listing, Sortable
from services.repository import Repository
from services.totals import MAX_COUNTED, Precision, Total, estimated

_SHOWN = 500
"""How much of the end of an error is read for a sample."""


class BulkRepository(Repository[BulkAction]):
    """Bulk actions, and the events that they select."""

    model = BulkAction

    async def plan_by_index(self, *, only: bool) -> None:
        """Until the transaction ends, or this is called again, have statements read tables by their indexes only."""
        await self.sql.fetch(queries.PLAN, value="off" if only else "on")

    async def bound(self, kind: BulkKind) -> Place:
        """How far an action that is started now reaches."""
        (row,) = await self.sql.fetch(queries.LAST_LETTER if kind.of_letters else queries.LAST_WAITING)
        return Place(**row)

    async def total(self, kind: BulkKind, wanted: BulkFilter) -> Total:
        """How many events match: counted if an index finds soon that they are few, otherwise estimated."""
        walk = _walk(kind, wanted, Place(), None, MAX_COUNTED + 1).subquery()
        counts = sqlalchemy.select(func.count(), func.count().filter(walk.c.matches))
        found = await self.session.exec(counts)  # type: ignore[call-overload]
        examined, matching = found.one()
        if examined <= MAX_COUNTED:
            return Total(value=matching, precision=Precision.exact)
        table: Any = DeadLetter if kind.of_letters else OutboxRow
        every = sqlalchemy.select(table.position).where(*_scope(kind, wanted, None), *_conditions(kind, wanted, None))
        total = await estimated(self.session, every)
        return Total(value=max(matching, total.value), precision=Precision.estimate)

    async def sample(self, kind: BulkKind, wanted: BulkFilter, most: int) -> list[Sample]:
        """The first of the events that match, if they are among the first `MAX_COUNTED` that are examined."""
        walk = _walk(kind, wanted, Place(), None, MAX_COUNTED).subquery()
        first = sqlalchemy.select(walk.c.position).where(walk.c.matches).limit(most)
        # A statement of their own: together, the planner might read the whole table to find these few.
        positions = (await self.session.exec(first)).scalars().all()  # type: ignore[call-overload]
        table: Any = DeadLetter if kind.of_letters else OutboxRow
        error: Any = DeadLetter.error if kind.of_letters else func.coalesce(OutboxRow.last_error, "")
        kind_of_error: Any = DeadLetter.fingerprint if kind.of_letters else _FINGERPRINT
        shown = sqlalchemy.select(
            table.position, table.event_id, table.aggregate, table.type, kind_of_error, func.right(error, _SHOWN)
        )
        found = await self.session.exec(  # type: ignore[call-overload]
            shown.where(_among(table, positions)).order_by(*_order(kind))
        )
        return [Sample(*row) for row in found]

    async def examine(self, claimed: Claimed, most: int, examined: int) -> Examined:
        """Walk on from the action's place: up to `most` events that match, among up to `examined`."""
        walk = _walk(claimed.kind, claimed.filter, claimed.place, claimed.bound, examined)
        rows: Sequence[Any] = (await self.session.exec(walk)).all()  # type: ignore[call-overload]
        matching: list[int] = []
        for number, row in enumerate(rows, start=1):
            if row.matches:
                matching.append(row.position)
            if len(matching) == most and number < len(rows):
                return Examined(number, matching, Place(row.position, row.aggregate))
        last = rows[-1] if len(rows) == examined else None
        return Examined(len(rows), matching, None if last is None else Place(last.position, last.aggregate))

    async def lock(self, claimed: Claimed, positions: Sequence[int]) -> list[Taken]:
        """Lock those of the events that still match, until the transaction ends.

        It waits for transactions that are parking events behind a dead letter; waiting events that are locked are being
        processed, and are left out.
        """
        table: Any = DeadLetter if claimed.kind.of_letters else OutboxRow
        statement = (
            sqlalchemy.select(table.position, table.event_id, table.aggregate, table.type)
            .where(_among(table, positions))
            .where(*_scope(claimed.kind, claimed.filter, None))
            .where(*_conditions(claimed.kind, claimed.filter, claimed.bound))
            .order_by(*_order(claimed.kind))
            .with_for_update(skip_locked=not claimed.kind.of_letters)
        )
        return [Taken(*row) for row in await self.session.exec(statement)]  # type: ignore[call-overload]

    async def take(self) -> Claimed | None:
        """Lock the action that has waited longest for its next chunk; None if none is due, or others run them all."""
        kinds = [kind.value for kind in BulkKind]
        for row in await self.sql.fetch(queries.TAKE, kinds=kinds):
            return Claimed(
                row["id"],
                BulkKind(row["action"]),
                BulkFilter.of(json.loads(row["filter"])),
                row["reason"],
                row["actor"],
                row["acting"],
                row["user_id"],
                row["tries"],
                Place(row["after_position"], row["after_aggregate"]),
                Bound(Place(row["last_position"], row["last_aggregate"]), row["created_at"]),
            )
        return None

    async def advance(self, claimed: Claimed, progress: Progress, worker_id: UUID) -> dict[str, int]:
        """Move a locked action to its next place, and add to its counters; returns these."""
        place = progress.place or claimed.bound.place
        (row,) = await self.sql.fetch(
            queries.ADVANCE,
            id=claimed.id,
            ended=progress.place is None,
            examined=progress.examined,
            done=progress.done,
            failed=progress.failed,
            skipped=progress.skipped,
            error=progress.error,
            position=place.position,
            aggregate=place.aggregate,
            worker_id=worker_id,
        )
        return dict(row)

    async def put_off(self, action_id: UUID, error: str, delay: float, worker_id: UUID) -> None:
        """Count a chunk that failed; the next one may begin in `delay` seconds."""
        await self.sql.run(queries.PUT_OFF, id=action_id, error=error, delay=delay, worker_id=worker_id)


_FINGERPRINT: Any = col(OutboxRow.failures)[-1]["fingerprint"].astext


def _among(table: Any, positions: Sequence[int]) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = table.position == any_(literal(list(positions), ARRAY(BigInteger)))
    return condition


def _order(kind: BulkKind) -> list[Any]:
    """The order of the walk, in which an index has the events. Events of one aggregate are in their own order."""
    return [col(DeadLetter.position)] if kind.of_letters else [OutboxRow.aggregate, OutboxRow.position]


def _walk(kind: BulkKind, wanted: BulkFilter, after: Place, bound: Bound | None, examined: int) -> Select[Any]:
    """The next events in the order of an index, each with whether it matches.

    What an index supports is in the WHERE clause, and everything else is examined: so the statement reads `examined`
    rows at most, however few of them match.
    """
    table: Any = DeadLetter if kind.of_letters else OutboxRow
    matches = and_(true(), *_conditions(kind, wanted, bound)).label("matches")
    walk: Select[Any] = sqlalchemy.select(table.position, table.aggregate, matches)
    if kind.of_letters:
        walk = walk.where(table.position > after.position)
    else:
        place = tuple_(literal(after.aggregate), literal(after.position, BigInteger))
        walk = walk.where(tuple_(table.aggregate, table.position) > place)
    return walk.where(*_scope(kind, wanted, bound)).order_by(*_order(kind)).limit(examined)


def _scope(kind: BulkKind, wanted: BulkFilter, bound: Bound | None) -> list[ColumnElement[bool]]:
    """The conditions that an index supports in the order of the walk. One filter is among them, if an index has it."""
    within: list[ColumnElement[bool]] = []
    if not kind.of_letters:
        within.append(OutboxRow.available_at.is_not(None))
        if wanted.aggregate is not None:
            within.append(OutboxRow.aggregate == wanted.aggregate)
        elif bound is not None:
            within.append(OutboxRow.aggregate <= bound.place.aggregate)
        return within
    if bound is not None:
        within.append(col(DeadLetter.position) <= bound.place.position)
    for column, value in (
        (col(DeadLetter.aggregate), wanted.aggregate),
        (col(DeadLetter.fingerprint), wanted.fingerprint),
        (col(DeadLetter.type), wanted.type),
        (col(DeadLetter.reason), wanted.failure_reason),
    ):
        if value is not None:
            within.append(column == value)
            break
    return within


def _conditions(kind: BulkKind, wanted: BulkFilter, bound: Bound | None) -> list[ColumnElement[bool]]:
    """What an event must meet."""
    table: Any = DeadLetter if kind.of_letters else OutboxRow
    given = [(name, value) for name in ("aggregate", "type") if (value := getattr(wanted, name)) is not None]
    conditions: list[ColumnElement[bool]] = [getattr(table, name) == value for name, value in given]
    if wanted.fingerprint is not None:
        kind_of_error: Any = DeadLetter.fingerprint if kind.of_letters else _FINGERPRINT
        conditions.append(kind_of_error == wanted.fingerprint)
    if kind.of_letters:
        died_at = col(DeadLetter.died_at)
        if wanted.died_from is not None:
            conditions.append(died_at >= wanted.died_from)
        if wanted.failure_reason is not None:
            conditions.append(col(DeadLetter.reason) == wanted.failure_reason)
        before = [wanted.died_before, None if bound is None else bound.at]
        return [*conditions, *(died_at < at for at in before if at is not None)]
    waits = [wanted.waits] if wanted.waits is not None else sorted(SELECTABLE - {Waits.asked})
    conditions.append(col(OutboxRow.waits).in_(waits))
    if kind is BulkKind.retry_now:
        conditions.append(OutboxRow.available_at > func.statement_timestamp())
    if bound is not None:
        conditions.append(OutboxRow.position <= bound.place.position)
    return conditions


_ID = Sortable(col(BulkAction.id), UUID)

BULK_ACTIONS = Listing[BulkAction](
    filters={
        "action": Filterable(col(BulkAction.action), BulkKind, EXACT, indexed=frozenset({"id"})),
        "state": Filterable(col(BulkAction.state), BulkState, EXACT, indexed=frozenset({"id"})),
        "created_at": Filterable(col(BulkAction.created_at), Instant, ORDERED, bounds=made_then),
    },
    sorts={"id": _ID},
    key=_ID,
    default="-id",
)
