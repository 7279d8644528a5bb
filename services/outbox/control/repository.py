"""What operators read and write: dead letters, deferred events, event types, why an event waits, workers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, literal_column
from sqlmodel import col, select

from services.fields import Id, Instant, Moment, Text
from services.filters import EXACT, ORDERED, Filterable
from services.outbox.control import queries
from services.outbox.control.schemas import NOT_TO_USE, Beat, OtherWorker, Selection, Waiting, waiting_of
from services.outbox.counting import queries as counting
from services.outbox.models import ASKED, DeadLetter, EventRow, FailureReason, OutboxRow, WorkerWish
from services.query import Listing, PageQuery, Rows, Sortable
from services.sql import Row, SqlAccess

COUNTED = 10_000
"""The most rows that a count reads. Above this the count is a lower bound, so ten million rows cost no more."""

REASONS_COUNTED = 2000
"""The most events of a type that an overview of types counts by reason: no index has it, so each row is read."""


class ControlRepository(SqlAccess):
    """What operators read from the engine and do to it. Every change gets an entry in the audit trail."""

    async def dead_letter(self, position: int) -> tuple[DeadLetter, EventRow | None] | None:
        """A dead letter with its event from the log (None if the log no longer has it)."""
        statement = (
            select(DeadLetter, EventRow)
            .outerjoin(EventRow, col(EventRow.id) == col(DeadLetter.event_id))
            .where(col(DeadLetter.position) == position)
        )
        found = (await self.session.exec(statement)).first()
        return None if found is None else (found[0], found[1])

    async def count(self, selection: Selection) -> tuple[int, bool]:
        """How many dead letters are selected, and whether there are more: the count stops at `COUNTED`."""
        (row,) = await self.sql.fetch(queries.COUNT, **asdict(selection), most=COUNTED + 1)
        number = int(row["number"])
        return min(number, COUNTED), number > COUNTED

    async def heads(self, selection: Selection, after: int, limit: int) -> Sequence[Row]:
        """The first `limit` selected dead letters with a position after `after`."""
        return await self.sql.fetch(queries.HEADS, **asdict(selection), after=after, slice=limit)

    async def lock(self, selection: Selection, after: int, limit: int) -> Sequence[Row]:
        """Like `heads`, but locks them: until the transaction ends, no one can replay, discard or park behind them."""
        return await self.sql.fetch(queries.LOCK, **asdict(selection), after=after, slice=limit)

    async def replay(self, positions: Sequence[int], actor: str, reason: str, bulk: UUID | None = None) -> int:
        """Put locked dead letters back in their old places, due now and with no attempts; return their number.

        `bulk` is the id of the bulk action that does it.
        """
        return await self.sql.run(
            queries.REPLAY, positions=list(positions), actor=actor, reason=reason, bulk=_text(bulk)
        )

    async def discard(self, positions: Sequence[int], actor: str, reason: str, bulk: UUID | None = None) -> None:
        """Delete locked dead letters. The caller wakes the events that waited behind them. `bulk` as for `replay`."""
        await self.sql.fetch(queries.DISCARD, positions=list(positions), actor=actor, reason=reason, bulk=_text(bulk))

    async def backlog(self, *, retrying: bool = True) -> dict[str, Any]:
        """How many events wait, are retried or are dead, and how long the oldest due event has waited.

        The counts stop at `COUNTED`; `waiting_is_more`, `retrying_is_more` and `dead_letters_is_more` say that there
        are more. Those that are retried cost most, and are only counted if `retrying`.
        """
        await self.sql.fetch(counting.PLAN_BY_INDEX, names=["enable_bitmapscan", "enable_sort"])
        found: dict[str, Any] = {}
        if retrying:
            found |= (await self.sql.fetch(counting.RETRYING, counted=COUNTED))[0]
        found |= (await self.sql.fetch(counting.BACKLOG, counted=COUNTED))[0]
        del found["planned"]
        for name in found.keys() & {"waiting", "retrying", "dead_letters"}:
            found[f"{name}_is_more"] = found[name] > COUNTED
            found[name] = min(found[name], COUNTED)
        return found

    async def waiting(self, most: int = COUNTED) -> list[Waiting]:
        """How many events of each type wait for each reason, and how many of these a worker can process now.

        Each count stops at `most`. It sets how this transaction's later statements are planned.
        """
        await self.sql.fetch(counting.PLAN_BY_INDEX, names=["enable_bitmapscan", "enable_sort"])
        return waiting_of(await self.sql.fetch(counting.WAITING, counted=most))

    async def dead_letters(self, wanted: PageQuery) -> Rows[DeadLetter]:
        """Events whose attempts are used up."""
        return await DEAD_LETTERS.page(self.session, select(DeadLetter), wanted)

    async def deferred(self, wanted: PageQuery) -> Rows[OutboxRow]:
        """Events that were deferred by their writers and have not been tried yet."""
        waits: list[ColumnElement[bool]] = [literal_column(ASKED), col(OutboxRow.available_at).is_not(None)]
        return await DEFERRED.page(self.session, select(OutboxRow), wanted, *waits)

    async def cancel(self, event_id: UUID, actor: str, reason: str) -> Row | None:
        """Delete a deferred event's outbox row, and return its `type`, `event_id` and `aggregate`.

        Returns None if there is none, or a worker is processing it.
        """
        for row in await self.sql.fetch(queries.LOCK_DEFERRED, event_id=event_id):
            await self.sql.run(queries.CANCEL, position=row["position"], actor=actor, reason=reason)
            return row
        return None

    async def lock_waiting(self, position: int) -> Row | None:
        """Lock an event that waits, until the transaction ends. None if there is none, or another transaction has it.

        The row has `waits`, `type`, `event_id` and `aggregate`.
        """
        return next(iter(await self.sql.fetch(queries.LOCK_WAITING, position=position)), None)

    async def retry_now(self, positions: Sequence[int], actor: str, reason: str, bulk: UUID | None = None) -> None:
        """Make locked events due. `bulk` as for `replay`."""
        await self.sql.run(queries.RETRY_NOW, positions=list(positions), actor=actor, reason=reason, bulk=_text(bulk))

    async def bury_waiting(self, positions: Sequence[int], actor: str, reason: str, bulk: UUID | None = None) -> None:
        """Turn locked events into dead letters, with the attempts and the errors that they have. `bulk` as before."""
        await self.sql.run(
            queries.BURY_WAITING, positions=list(positions), actor=actor, reason=reason, bulk=_text(bulk)
        )

    async def discard_waiting(self, position: int, actor: str, reason: str) -> None:
        """Delete a locked event. The caller wakes the events that waited behind it."""
        await self.sql.run(queries.DISCARD_WAITING, position=position, actor=actor, reason=reason, bulk=None)

    async def audit_consumer(self, consumer: str, action: str, actor: str, reason: str) -> None:
        """Record what an operator did to a consumer of the log."""
        await self.sql.run(queries.AUDIT_CONSUMER, consumer=consumer, action=action, actor=actor, reason=reason)

    async def pause(self, event_type: str, paused: bool, actor: str, reason: str) -> None:
        action = "pause" if paused else "resume"
        await self.sql.run(queries.PAUSE, type=event_type, paused=paused, actor=actor, action=action, reason=reason)

    async def limit(self, event_type: str, max_batches: int | None, actor: str, reason: str) -> None:
        """Set the maximum number of simultaneous transactions for an event type; None means no limit."""
        await self.sql.run(
            queries.LIMIT, type=event_type, max_batches=max_batches, actor=actor, action="limit", reason=reason
        )

    async def look_again(self) -> int:
        """Make due, for each type, up to 10,000 events that wait behind another one; return their number."""
        return await self.sql.run(queries.LOOK_AGAIN)

    async def types(self) -> Sequence[Row]:
        """Every event type that is in the outbox, handled, controlled or dead; counts stop at `COUNTED` + 1.

        It sets how this transaction's later statements are planned.
        """
        await self.sql.fetch(counting.PLAN_BY_INDEX, names=NOT_TO_USE)
        return await self.sql.fetch(counting.TYPES, counted=COUNTED)

    async def type_names(self) -> set[str]:
        """Every event type that is in the outbox, at the end of the log, handled, controlled or dead."""
        return {row["type"] for row in await self.sql.fetch(counting.NAMES)}

    async def kinds(self) -> list[str]:
        """The kinds of aggregates that have an event in the outbox or a dead letter."""
        return [row["kind"] for row in await self.sql.fetch(counting.KINDS)]

    async def row(self, position: int) -> Row | None:
        """What is known about an outbox row: what it waits for, which transaction has locked it, what is before it."""
        return next(iter(await self.sql.fetch(queries.ROW, position=position)), None)

    async def rows_of(self, aggregate: str, limit: int) -> Sequence[Row]:
        """The same as `row`, for the aggregate's first `limit` rows."""
        return await self.sql.fetch(queries.ROWS_OF_AGGREGATE, aggregate=aggregate, slice=limit)

    async def dead_letters_of(self, aggregate: str, limit: int) -> list[int]:
        """The positions of an aggregate's first dead letters."""
        rows = await self.sql.fetch(queries.LETTERS_OF, aggregate=aggregate, slice=limit)
        return [row["position"] for row in rows]

    async def position_of(self, event_id: UUID) -> int | None:
        """The position of an event in the outbox or among the dead letters."""
        return next((row["position"] for row in await self.sql.fetch(queries.POSITION, event_id=event_id)), None)

    async def beat(
        self, worker_id: UUID, host: str, pid: int, age: float, stuck: float, report: str, *, everywhere: bool
    ) -> Beat:
        """Write a worker's row, and return what it has to know; of other workers, those of its host, or of all hosts.

        `age` is the number of seconds since it started, `stuck` the number without progress; `report` is JSON, to which
        is added whether the worker was asked to be quiet.
        """
        rows = await self.sql.fetch(
            queries.BEAT, id=worker_id, host=host, pid=pid, age=age, stuck=stuck, report=report, everywhere=everywhere
        )
        others = [
            OtherWorker(row["id"], row["host"], row["pid"], json.loads(row["process"] or "null"), row["silent_seconds"])
            for row in rows
            if row["id"] is not None
        ]
        asked = rows[0]["asked"]
        return Beat(others, None if asked is None else WorkerWish(asked), rows[0]["bulk_actions"])

    async def ask(self, worker_id: UUID, wish: WorkerWish | None, actor: str) -> bool:
        """Ask something of a worker, or take that back; False if there is no such worker."""
        return await self.sql.run(queries.ASK, id=worker_id, wish=wish and wish.value, actor=actor) == 1

    async def leave(self, worker_id: UUID) -> None:
        """Delete a worker's row."""
        await self.sql.run(queries.LEAVE, id=worker_id)

    async def clear(self, ids: Sequence[UUID]) -> None:
        """Delete the rows of dead workers that are not locked."""
        if ids:
            await self.sql.run(queries.CLEAR, ids=list(ids))

    async def lost_workers(self, after: UUID | None, limit: int) -> list[UUID]:
        """Up to `limit` workers that have not been heard from for a day and come after `after`."""
        rows = await self.sql.fetch(queries.LOST, after=after or UUID(int=0), limit=limit)
        return [row["id"] for row in rows]

    async def forget_workers(self, ids: Sequence[UUID]) -> list[UUID]:
        """Delete the rows of lost workers that are not locked; return the ids of the deleted ones."""
        return [row["id"] for row in await self.sql.fetch(queries.FORGET, ids=list(ids))]

    async def workers(self, host: str | None) -> Sequence[Row]:
        """The workers of one host, or all, with the seconds since their last heartbeat and their last progress."""
        return await self.sql.fetch(queries.WORKERS, host=host)


def _text(bulk: UUID | None) -> str | None:
    return None if bulk is None else str(bulk)


_LETTER = Sortable(col(DeadLetter.position), Id)

DEAD_LETTERS = Listing[DeadLetter](
    filters={
        "aggregate": Filterable(col(DeadLetter.aggregate), Text, EXACT, indexed=frozenset({"position"})),
        "fingerprint": Filterable(col(DeadLetter.fingerprint), Text, EXACT, indexed=frozenset({"position"})),
        "reason": Filterable(col(DeadLetter.reason), FailureReason, EXACT, indexed=frozenset({"position"})),
        "type": Filterable(col(DeadLetter.type), Text, EXACT, indexed=frozenset({"position"})),
        "died_at": Filterable(col(DeadLetter.died_at), Instant, ORDERED),
    },
    sorts={"position": _LETTER},
    key=_LETTER,
    default="position",
)

_PLACE = Sortable(OutboxRow.position, Id)

DEFERRED = Listing[OutboxRow](
    filters={
        "aggregate": Filterable(OutboxRow.aggregate, Text, EXACT, indexed=frozenset({"position"})),
        "type": Filterable(OutboxRow.type, Text, EXACT, indexed=frozenset({"position"})),
        "available_at": Filterable(OutboxRow.available_at, Instant, ORDERED),
    },
    sorts={"position": _PLACE, "available_at": Sortable(OutboxRow.available_at, Moment)},
    key=_PLACE,
    default="position",
)
