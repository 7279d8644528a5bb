"""What operators do to the engine: replay, discard, cancel, pause, limit, list live workers. The caller commits."""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any
from uuid import UUID

from services.acting import Action
from services.errors import Conflict, Fault, InvalidInput, NotFound
from services.outbox.control.repository import COUNTED, REASONS_COUNTED
from services.outbox.control.schemas import By, Head, Letter, Selection, Slice, TypeState, Waiting, WorkerState
from services.outbox.engine.schemas import first_positions
from services.outbox.events import defined
from services.outbox.models import Waits, WorkerWish
from services.outbox.subscription import AnySubscription, Discarded, TransactionT, lent_to
from services.sql import Row
from services.transaction import Transaction

_OF_WISH = {
    WorkerWish.quiet: Action.worker_quieted,
    WorkerWish.stop: Action.worker_stopped,
    None: Action.worker_resumed,
}

SLICE = 500
"""The most dead letters in one transaction, which holds their locks and wakes what waits behind each of them."""

SILENT = 20.0
"""Seconds without a heartbeat after which a worker counts as gone. It sends one every five seconds."""

_PATIENCE = 30.0
"""Seconds beyond its time limit that a worker's batch may take before it counts as stuck."""

_FAILING = 30.0
"""Seconds of consecutive failures after which a worker counts as unhealthy."""

_LISTED = 20
"""The most event types that a refusal lists."""

_FROM_DRIVER = re.compile(r"^sqlalchemy\.exc\.\w+: \([\w.]*?(\w+)\) (?:<class '[\w.]+'>: )?(.*)$", re.MULTILINE)


async def replay(
    work: Transaction, selection: Selection, by: By, *, after: int = 0, limit: int = SLICE, dry_run: bool = False
) -> Slice:
    """Put dead letters back in their old places. A dry run writes nothing."""
    _check_selection(selection)
    counted, letters = await _take(work, selection, after, limit, dry_run)
    if letters and not dry_run:
        await work.control.replay([letter.position for letter in letters], by.actor, by.reason)
        _record_letters(work, Action.letters_replayed, letters, by)
    return _slice(counted, letters, limit)


async def discard(
    work: TransactionT,
    selection: Selection,
    by: By,
    subscriptions: Sequence[AnySubscription[TransactionT]] = (),
    *,
    after: int = 0,
    limit: int = SLICE,
    dry_run: bool = False,
) -> Slice:
    """Delete dead letters and wake the events that waited behind them. A dry run writes nothing.

    What the subscriptions declare for discarded events (`on_discard`) is done in the same transaction. Raises
    `InvalidInput` if there is no reason.
    """
    _check_selection(selection)
    _check_reason(by)
    counted, letters = await _take(work, selection, after, limit, dry_run)
    if letters and not dry_run:
        await throw_away(work, letters, by, subscriptions)
        _record_letters(work, Action.letters_discarded, letters, by)
    return _slice(counted, letters, limit)


async def throw_away(
    work: TransactionT,
    letters: Sequence[Letter],
    by: By,
    subscriptions: Sequence[AnySubscription[TransactionT]],
    bulk: UUID | None = None,
) -> None:
    """Delete locked dead letters, wake what waited behind them, and do what the subscriptions declare.

    `bulk` is the id of the bulk action that does it.
    """
    await work.control.discard([letter.position for letter in letters], by.actor, by.reason, bulk)
    # A separate statement after the lock, so it sees events that were parked just before.
    await work.outbox.wake(first_positions((letter.aggregate, letter.position) for letter in letters))
    await _react(work, subscriptions, [Discarded(one.type, one.event_id, one.aggregate) for one in letters])


async def heads(work: Transaction, selection: Selection, after: int, limit: int) -> list[Head]:
    """The first `limit` selected dead letters with a position after `after`."""
    return [_head(row) for row in await work.control.heads(selection, after, limit)]


async def cancel(work: Transaction, event_id: UUID, by: By) -> bool:
    """Cancel a deferred event that has not been tried yet. Returns False if it is too late, or there is none.

    Services may call it, too: it is part of their unit of work, and is rolled back with it.
    """
    return await work.control.cancel(event_id, by.actor, by.reason) is not None


async def cancel_or_refuse(
    work: TransactionT, event_id: UUID, by: By, subscriptions: Sequence[AnySubscription[TransactionT]] = ()
) -> None:
    """Cancel a deferred event, and do what the subscriptions declare for discarded events.

    Raises `NotFound` or `Conflict` with the reason if that is not possible.
    """
    cancelled = await work.control.cancel(event_id, by.actor, by.reason)
    if cancelled is not None:
        _record(work, Action.event_cancelled, f"event/{event_id}", by)
        await _react(work, subscriptions, [_discarded(cancelled)])
        return
    await position_of(work, event_id)
    raise Conflict(f"event {event_id} is no longer just deferred; use `why` to see what it waits for")


async def retry_now(work: Transaction, position: int, by: By) -> None:
    """Make an event due that waits for its next attempt, for a worker that knows its type, or for a later time.

    Raises `NotFound`, or `Conflict` if it is not waiting, is being processed, or waits behind another event.
    """
    locked = await _take_waiting(work, position)
    if locked["waits"] == "behind" and (row := await work.control.row(position)) is not None:
        before = [found for found in (row["dead_before"], row["waiting_before"]) if found is not None]
        if before:
            raise Conflict(f"the event at position {position} waits behind position {min(before)}; act on that one")
    await work.control.retry_now([position], by.actor, by.reason)
    _record(work, Action.event_retried, f"event/{locked['event_id']}", by)


async def bury_waiting(work: Transaction, position: int, by: By) -> None:
    """Turn an event that waits into a dead letter: the later events of its aggregate wait for an operator.

    Raises `NotFound`, or `Conflict` if it is not waiting or is being processed.
    """
    row = await _take_waiting(work, position)
    await work.control.bury_waiting([position], by.actor, by.reason)
    _record(work, Action.event_buried, f"event/{row['event_id']}", by)


async def discard_waiting(
    work: TransactionT, position: int, by: By, subscriptions: Sequence[AnySubscription[TransactionT]] = ()
) -> None:
    """Delete an event that waits, and wake the events that waited behind it.

    What the subscriptions declare for discarded events is done in the same transaction. Raises `InvalidInput` if there
    is no reason, `NotFound`, or `Conflict` if it is not waiting or is being processed.
    """
    _check_reason(by)
    row = await _take_waiting(work, position)
    await work.control.discard_waiting(position, by.actor, by.reason)
    _record(work, Action.event_discarded, f"event/{row['event_id']}", by)
    # A separate statement after the lock, so it sees events that were parked just before.
    await work.outbox.wake({row["aggregate"]: position})
    await _react(work, subscriptions, [_discarded(row)])


async def position_of(work: Transaction, event_id: UUID) -> int:
    """The position of an event in the outbox or among the dead letters. Raises `NotFound`."""
    position = await work.control.position_of(event_id)
    if position is None:
        raise NotFound(
            f"event {event_id} is not waiting: it does not exist, or it was processed, discarded or cancelled"
        )
    return position


async def pause(work: Transaction, event_type: str, by: By, *, paused: bool = True) -> None:
    """Stop claiming events of this type, or resume. Batches that are already running finish normally.

    Raises `NotFound` if there is no such type.
    """
    await _check_type(work, event_type)
    await work.control.pause(event_type, paused, by.actor, by.reason)
    _record(work, Action.type_paused if paused else Action.type_resumed, f"type/{event_type}", by)
    if not paused:
        await work.control.look_again()


async def limit(work: Transaction, event_type: str, max_batches: int | None, by: By) -> None:
    """Limit how many transactions, across all workers, process this type at the same time; None removes the limit.

    Raises `NotFound` if there is no such type.
    """
    await _check_type(work, event_type)
    await work.control.limit(event_type, max_batches, by.actor, by.reason)
    _record(work, Action.type_limited, f"type/{event_type}", by, max_batches=max_batches)
    await work.control.look_again()


async def types(work: Transaction, counted: int = REASONS_COUNTED) -> list[TypeState]:
    """Every event type that is in the outbox, dead, handled by a live worker, or under an operator's control.

    The counts by reason stop at `counted`.
    """
    rows = await work.control.types()
    waiting = {one.type: one for one in await work.control.waiting(counted)}
    found = []
    for row in rows:
        counts = {name: min(row[name], COUNTED) for name in ("ready", "waiting", "dead_letters")}
        more = {f"{name}_is_more": row[name] > COUNTED for name in counts}
        why = waiting.get(row["type"], Waiting(row["type"], {}, 0))
        # As in the other lists; a metric has the word of the rows.
        reasons = {"deferred" if reason == Waits.asked else reason: n for reason, n in why.reasons.items()}
        found.append(TypeState(**{**row, **counts}, **more, reasons=reasons, due=why.due))
    return found


async def workers(work: Transaction, host: str | None = None) -> list[WorkerState]:
    """The workers of a host, or all, and whether they are healthy."""
    found: list[WorkerState] = []
    for row in await work.control.workers(host):
        report = json.loads(row["report"])
        complaint = _complaint(row["silent_seconds"], row["stuck_seconds"], float(report.get("time_limit", 0.0)))
        complaint = (
            complaint
            or _persistent(report.get("failing"))
            or report.get("clock_complaint")
            or report.get("tables_complaint")
        )
        asked = None if row["asked"] is None else WorkerWish(row["asked"])
        found.append(WorkerState(**{**row, "report": report, "asked": asked}, complaint=complaint))
    return found


async def ask(work: Transaction, worker_id: UUID, wish: WorkerWish | None, by: By) -> None:
    """Ask a worker to take nothing new or to stop, or take that back. It obeys at its next heartbeat.

    Raises `NotFound` if it has left, and `Conflict` if it has already been asked to stop.
    """
    known = next((one for one in await workers(work) if one.id == worker_id), None)
    if known is None:
        raise NotFound(f"there is no worker {worker_id}: it has stopped, or never existed")
    if known.asked is WorkerWish.stop:
        raise Conflict(f"the worker {worker_id} was asked to stop, and is shutting down")
    await work.control.ask(worker_id, wish, by.actor)
    _record(work, _OF_WISH[wish], f"worker/{worker_id}", by, host=known.host, pid=known.pid)


def last_line(error: str) -> str:
    """The last line of a stored error, which is its summary.

    Errors stored before there was a summary may end with SQLAlchemy's link to its manual instead.
    """
    last = next((line for line in reversed(error.splitlines()) if line.strip()), "")
    if last.startswith("(Background on this error"):
        found = _FROM_DRIVER.findall(error)
        return ": ".join(part for part in found[-1] if part) if found else last
    return last


def _complaint(silent: float, stuck: float, time_limit: float) -> str | None:
    if silent > SILENT:
        return f"no heartbeat for {silent:.0f} s: it is gone, or its event loop is blocked"
    if stuck > time_limit + _PATIENCE:
        return f"no progress for {stuck:.0f} s: a batch may take {time_limit:g} s"
    return None


def _persistent(failing: dict[str, Any] | None) -> str | None:
    """The complaint about a part that has failed for too long; None if there is none."""
    if failing is None or failing["seconds"] < _FAILING:
        return None
    return f"{failing['part']} has failed for {failing['seconds']:.0f} s; the last error: {failing['error']}"


def _record(work: Transaction, action: Action, what: str, by: By, **details: Any) -> None:
    work.record_act(action, what, reason=by.reason, by=by.actor, **details)


def _record_letters(work: Transaction, action: Action, letters: Sequence[Head], by: By) -> None:
    """One act, whatever the number of letters: `outbox_actions` has each of them."""
    positions = [letter.position for letter in letters]
    _record(work, action, f"dead-letters/{positions[0]}", by, letters=len(letters), last=positions[-1])


def _check_selection(selection: Selection) -> None:
    if selection.is_everything:
        fault = Fault("select dead letters by position, event, type, aggregate, fingerprint, reason or time", "#")
        raise InvalidInput(fault.detail, [fault])


def _check_reason(by: By) -> None:
    if not by.reason.strip():
        fault = Fault("a reason is required: discarded events never take effect", "#/reason")
        raise InvalidInput(fault.detail, [fault])


async def _react(
    work: TransactionT, subscriptions: Sequence[AnySubscription[TransactionT]], discarded: Sequence[Discarded]
) -> None:
    for subscription in subscriptions:
        mine = [one for one in discarded if one.type == subscription.event.type]
        if mine and subscription.on_discard is not None:
            async with lent_to(work, f"the on_discard of {subscription.event.type!r}"):
                await subscription.on_discard(work, mine)


def _discarded(row: Row) -> Discarded:
    return Discarded(row["type"], row["event_id"], row["aggregate"])


async def _take_waiting(work: Transaction, position: int) -> Row:
    locked = await work.control.lock_waiting(position)
    if locked is not None:
        return locked
    if await work.control.dead_letter(position) is not None:
        raise Conflict(f"the event at position {position} is a dead letter: replay or discard it")
    row = await work.control.row(position)
    if row is None:
        raise NotFound(
            f"no event waits at position {position}: it was processed, discarded or cancelled, or never existed"
        )
    if row["waits"] is None:
        raise Conflict(f"the event at position {position} is ready or being processed; it does not wait")
    raise Conflict(f"another transaction has locked the event at position {position}; try again")


async def _check_type(work: Transaction, event_type: str) -> None:
    """A type is known if this process defines it, a live worker handles it, or the database has it."""
    known = {kind.type for kind in defined()} | await work.control.type_names()
    if event_type in known:
        return
    hint = f"known types: {', '.join(sorted(known)[:_LISTED]) or 'none'}"
    for nearest in get_close_matches(event_type, sorted(known), n=1):
        hint = f"did you mean {nearest!r}?"
    raise NotFound(f"there is no event type {event_type!r}; {hint}")


async def _take(
    work: Transaction, selection: Selection, after: int, limit: int, dry_run: bool
) -> tuple[tuple[int, bool], list[Head]]:
    counted = await work.control.count(selection)
    read = work.control.heads if dry_run else work.control.lock
    return counted, [_head(row) for row in await read(selection, after, limit)]


def _head(row: Row) -> Head:
    told = {name: value for name, value in row.items() if name != "error"}
    return Head(**told, message=last_line(row["error"]))


def _slice(counted: tuple[int, bool], letters: Sequence[Head], limit: int) -> Slice:
    return Slice(*counted, len(letters), letters, len(letters) == limit, letters[-1].position if letters else 0)
