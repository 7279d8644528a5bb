"""Why an event waits: which one it waits for, what is wrong with that one, and since when."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.errors import NotFound
from services.outbox.control.service import last_line
from services.sql import Row
from services.transaction import Transaction

_FIRST = 20
"""Rows of an aggregate that are explained."""


class State(StrEnum):
    """Where an event stands."""

    ready = "ready"
    """The next claim may take it."""
    locked = "locked"
    """A running transaction holds it: a worker that processes it, as a rule."""
    retry = "retry"
    """It failed, and waits for its next attempt."""
    behind = "behind"
    """It waits for an earlier event of its aggregate."""
    deferred = "deferred"
    """Its writer asked for a later time."""
    unknown = "unknown"
    """No worker that looked at it has a handler for its type and version."""
    paused = "paused"
    """An operator has paused its type."""
    slots_full = "slots_full"
    """As many batches of its type are under way as an operator allows."""
    no_worker = "no_worker"
    """It is ready, and no live worker handles its type."""
    dead = "dead"
    """Its attempts are used up."""


@dataclass(frozen=True, slots=True)
class Why:
    """Where one event stands, and `because` of what, in words.

    `since` is when it came into that state, as far as that is known, `until` when that ends by itself. `error` is the
    last one it failed with. `blocker` is the event that it waits for.
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


async def of_event(work: Transaction, event_id: UUID) -> Why:
    """Raises `NotFound` where the event is neither in the outbox nor dead."""
    position = await work.control.position_of(event_id)
    if position is None:
        raise NotFound(f"event {event_id} does not wait: there is none, or it was processed, discarded or cancelled")
    return await of_position(work, position)


async def of_position(work: Transaction, position: int) -> Why:
    """Raises `NotFound` where neither an outbox row nor a dead letter has this position."""
    row = await work.control.row(position)
    found = await _dead(work, position) if row is None else await _explain(work, row)
    if found is None:
        raise NotFound(f"nothing waits at position {position}: it was processed, discarded or cancelled, or never was")
    return found


async def of_aggregate(work: Transaction, aggregate: str) -> list[Why]:
    """What waits of an aggregate, the first ones, its dead letters first. Raises `NotFound` where nothing does."""
    letters = await work.control.dead_letters_of(aggregate, _FIRST)
    dead = [found for found in [await _dead(work, position) for position in letters] if found is not None]
    waiting = [await _explain(work, row) for row in await work.control.rows_of(aggregate, _FIRST)]
    if not dead and not waiting:
        raise NotFound(f"nothing of {aggregate} waits")
    return dead + waiting


async def _dead(work: Transaction, position: int) -> Why | None:
    found = await work.control.dead_letter(position)
    if found is None:
        return None
    letter, _ = found
    later = "later events of its aggregate wait for it" if letter.blocks else "later events go on without it"
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
    """The first event that it waits for and that waits itself; else the first one before it."""
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
    """Where it stands, whatever is before it."""
    if row["pid"] is not None:
        because = f"locked by a running transaction of {row['application'] or 'somebody'} (server process {row['pid']})"
        return _why(row, State.locked, because, row["locked_at"])
    if row["paused"]:
        because = f"{row['type']} is paused by {row['changed_by']}"
        return _why(row, State.paused, because, row["changed_at"])
    if not row["due"]:
        return _later(row)
    if row["max_batches"] is not None and row["batches"] >= row["max_batches"]:
        because = f"{row['batches']} of {row['max_batches']} batches of {row['type']} are under way"
        return _why(row, State.slots_full, because, None)
    if row["waits"] == "unknown":
        return _why(row, State.unknown, last_line(row["error"] or ""), row["occurred_at"])
    if not row["handled"]:
        return _why(row, State.no_worker, f"no live worker handles {row['type']}", row["occurred_at"])
    return _why(row, State.ready, "ready: the next claim may take it", row["until"] or row["occurred_at"])


def _later(row: Row) -> Why:
    until: datetime | None = row["until"]
    match row["waits"]:
        case "asked":
            return _why(row, State.deferred, f"deferred until {until}", row["occurred_at"], until)
        case "retry":
            return _why(row, State.retry, f"failed {_times(row['attempts'])}, next try at {until}", _failed(row), until)
        case "unknown":
            return _why(row, State.unknown, last_line(row["error"] or ""), _failed(row), until)
        case _:
            return _why(row, State.behind, "waits to be woken by what was before it", None)


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
