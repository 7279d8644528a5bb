"""Why an event waits: which event it waits for, what is wrong with that one, and since when."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.errors import NotFound
from services.outbox.control.service import last_line, position_of
from services.outbox.models import MAX_POSITION
from services.outbox.subscription import AnySubscription, TransactionT
from services.sql import Row
from services.transaction import Transaction

_FIRST = 20
"""How many rows of an aggregate are explained."""


class State(StrEnum):
    """The state of an event."""

    ready = "ready"
    """The next claim may take it."""
    locked = "locked"
    """A running transaction has locked it, usually a worker that is processing it."""
    retry = "retry"
    """It failed, and waits for its next attempt."""
    behind = "behind"
    """It waits for an earlier event of its aggregate."""
    deferred = "deferred"
    """Its writer asked for a later time."""
    begun = "begun"
    """An attempt has begun. If it is due, the process that tried it was killed, and it is tried again on its own."""
    unknown = "unknown"
    """No live worker has a handler for its type and version."""
    paused = "paused"
    """An operator has paused its type."""
    slots_full = "slots_full"
    """The maximum number of batches of its type, set by an operator, is running."""
    no_worker = "no_worker"
    """It is ready, and no live worker handles its type."""
    dead = "dead"
    """Its attempts are used up."""


@dataclass(frozen=True, slots=True)
class Why:
    """The state of one event; `because` explains it in words.

    `since` is when it entered that state, if known; `until` is when the state ends by itself. `error` is the last error
    it failed with. `blocker` is the event that it waits for.
    """

    position: int
    event_id: UUID
    aggregate: str
    type: str
    state: State
    because: str
    since: datetime | None
    until: datetime | None
    attempts: int
    error: str | None
    blocker: "Why | None" = None


async def of_any(
    work: TransactionT, what: str, subscriptions: Sequence[AnySubscription[TransactionT]] = ()
) -> list[Why]:
    """Explain the event with this id or position, or the events of this aggregate (`order/ID`, or just its id).

    Raises `NotFound` if nothing is waiting under any of these.
    """
    with suppress(NotFound):
        if what.isascii() and what.isdecimal() and len(what) < 20 and 0 < int(what) <= MAX_POSITION:
            return [await of_position(work, int(what))]
        if (event_id := _uuid(what)) is not None:
            return [await of_event(work, event_id)]
    return await of_aggregate(work, what, subscriptions)


async def of_event(work: Transaction, event_id: UUID) -> Why:
    """Explain an event. Raises `NotFound` if it is neither in the outbox nor a dead letter."""
    return await of_position(work, await position_of(work, event_id))


async def of_position(work: Transaction, position: int) -> Why:
    """Explain the event at a position. Raises `NotFound` if no outbox row or dead letter has this position."""
    row = await work.control.row(position)
    found = await _dead(work, position) if row is None else await _explain(work, row)
    if found is None:
        raise NotFound(
            f"no event waits at position {position}: it was processed, discarded or cancelled, or never existed"
        )
    return found


async def of_aggregate(
    work: TransactionT, aggregate: str, subscriptions: Sequence[AnySubscription[TransactionT]] = ()
) -> list[Why]:
    """Explain the first waiting events of an aggregate, dead letters first. Raises `NotFound` if there are none.

    That error then says what the subscriptions know about the aggregate (`explain`). An id without a kind stands for
    the aggregates of every kind with that id.
    """
    if "/" in aggregate:
        found = await _of_one(work, aggregate)
        if not found:
            told = await _told(work, aggregate, subscriptions)
            raise NotFound("; ".join((f"no event of {aggregate} is waiting", *told)))
        return found
    name = _uuid(aggregate) or aggregate
    found = [one for kind in await work.control.kinds() for one in await _of_one(work, f"{kind}/{name}")]
    if not found:
        if not aggregate.isdecimal() and _uuid(aggregate) is None:
            why = "it is not an event id, a position or an aggregate (kind/id)"
        else:
            why = "it was processed, discarded or cancelled, or never existed"
        told = await _told(work, aggregate, subscriptions)
        raise NotFound(f"no waiting event matches {aggregate!r}: {'; '.join(told) or why}")
    return found


async def _told(
    work: TransactionT, aggregate: str, subscriptions: Sequence[AnySubscription[TransactionT]]
) -> list[str]:
    told = [await one.explain(work, aggregate) for one in subscriptions if one.explain is not None]
    return [said for said in told if said is not None]


async def _of_one(work: Transaction, aggregate: str) -> list[Why]:
    letters = await work.control.dead_letters_of(aggregate, _FIRST)
    dead = [found for found in [await _dead(work, position) for position in letters] if found is not None]
    return dead + [await _explain(work, row) for row in await work.control.rows_of(aggregate, _FIRST)]


def _uuid(what: str) -> UUID | None:
    try:
        return UUID(what)
    except ValueError:
        return None


async def _dead(work: Transaction, position: int) -> Why | None:
    found = await work.control.dead_letter(position)
    if found is None:
        return None
    letter, _ = found
    later = "later events of its aggregate wait for it" if letter.blocks else "later events do not wait for it"
    return Why(
        position,
        letter.event_id,
        letter.aggregate,
        letter.type,
        State.dead,
        f"dead letter after {_times(letter.attempts)}: replay or discard it; {later}",
        letter.died_at,
        None,
        letter.attempts,
        last_line(letter.error),
    )


async def _explain(work: Transaction, row: Row) -> Why:
    blocker = await _blocker(work, row)
    if blocker is None or row["pid"] is not None:
        return _alone(row)
    because = f"behind position {blocker.position}: {blocker.because}"
    return _why(row, State.behind, because, blocker.since, blocker.until, blocker)


async def _blocker(work: Transaction, row: Row) -> Why | None:
    """The first event before it that is itself waiting or dead; otherwise the first event before it."""
    waiting = [position for position in (row["dead_before"], row["waiting_before"]) if position is not None]
    for position in (*sorted(waiting), row["ready_before"]):
        if position is None:
            continue
        before = await work.control.row(position)
        found = await _dead(work, position) if before is None else _alone(before)
        if found is not None:
            return found
    return None


def _alone(row: Row) -> Why:
    """The state of the row, ignoring the events before it."""
    if row["pid"] is not None:
        because = (
            f"locked by a running transaction of {row['application'] or 'an unnamed client'}"
            f" (server process {row['pid']})"
        )
        return _why(row, State.locked, because, row["locked_at"])
    if row["paused"]:
        because = f"{row['type']} is paused by {row['changed_by']}"
        return _why(row, State.paused, because, row["changed_at"])
    if not row["due"]:
        return _later(row)
    if row["max_batches"] is not None and row["batches"] >= row["max_batches"]:
        running = "1 batch of {} is" if row["batches"] == 1 else f"{row['batches']} batches of {{}} are"
        because = f"{running.format(row['type'])} running, and at most {row['max_batches']} may"
        return _why(row, State.slots_full, because, None)
    if row["waits"] == "unknown":
        return _why(row, State.unknown, last_line(row["error"] or ""), row["occurred_at"])
    if row["waits"] == "begun":
        return _why(row, State.begun, "its worker process was killed; the next claim tries it on its own", row["until"])
    if not row["handled"]:
        return _why(row, State.no_worker, f"no live worker handles {row['type']}", row["occurred_at"])
    return _why(row, State.ready, "ready: the next claim may take it", row["until"] or row["occurred_at"])


def _later(row: Row) -> Why:
    until: datetime | None = row["until"]
    match row["waits"]:
        case "asked":
            return _why(row, State.deferred, f"deferred until {until}", row["occurred_at"], until)
        case "retry":
            return _why(
                row, State.retry, f"failed {_times(row['attempts'])}, next attempt at {until}", _failed(row), until
            )
        case "begun":
            because = f"an attempt has begun; if its process is killed, the next one is at {until}"
            return _why(row, State.begun, because, None, until)
        case "unknown":
            return _why(row, State.unknown, last_line(row["error"] or ""), _failed(row), until)
        case _:
            return _why(row, State.behind, "waits to be woken by the event before it", None)


def _why(
    row: Row,
    state: State,
    because: str,
    since: datetime | None,
    until: datetime | None = None,
    blocker: Why | None = None,
) -> Why:
    error = None if row["error"] is None else last_line(row["error"])
    return Why(
        row["position"],
        row["event_id"],
        row["aggregate"],
        row["type"],
        state,
        because,
        since,
        until,
        row["attempts"],
        error,
        blocker,
    )


def _failed(row: Row) -> datetime | None:
    at: str | None = row["failed_at"]
    return None if at is None else datetime.fromisoformat(at)


def _times(number: int) -> str:
    return "one attempt" if number == 1 else f"{number} attempts"
