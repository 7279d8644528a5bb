"""Bulk actions: preview, start and cancel them, and what a worker does in one chunk. The caller commits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from services.acting import Action
from services.errors import Conflict, Fault, InvalidInput, NotFound
from services.fields import made_storable, now
from services.outbox.bulk.models import BulkAction, BulkKind, BulkState
from services.outbox.bulk.schemas import (
    OF_LETTERS,
    OF_WAITING,
    SELECTABLE,
    BulkFilter,
    BulkWanted,
    Claimed,
    Place,
    Preview,
    Progress,
    Taken,
)
from services.outbox.control.schemas import By
from services.outbox.control.service import last_line, throw_away
from services.outbox.policy import RetryPolicy, is_contention, is_of_the_server
from services.outbox.subscription import AnySubscription, TransactionT
from services.outbox.summary import summary
from services.repository import Lock
from services.transaction import SAVEPOINT_BUDGET, Transaction

CHUNK = 500
"""The most events that one chunk deals with. Its transaction holds their locks."""

EXAMINED = 2000
"""The most events that one chunk looks at, however few of them match."""

SAMPLE = 20
"""The most events that a preview shows."""

PATIENCE = 5
"""So many times a chunk is tried again because of a lock, before a locked event counts as failed."""

AGAIN = RetryPolicy(max_attempts=2**31, base=0.5, cap=30.0)
"""The backoff after chunks that failed."""

_LONGEST_ERROR = 500


async def preview(work: Transaction, kind: BulkKind, wanted: BulkFilter, *, everything: bool = False) -> Preview:
    """How many events the action would be about, and the first of them. Raises `InvalidInput` like `start`."""
    _check_filter(kind, wanted, everything=everything)
    await work.bulk.plan_by_index(only=True)
    total = await work.bulk.total(kind, wanted)
    sample = await work.bulk.sample(kind, wanted, SAMPLE)
    await work.bulk.plan_by_index(only=False)
    return Preview(total, [replace(one, message=last_line(one.message)) for one in sample])


async def start(
    work: Transaction, kind: BulkKind, wanted: BulkFilter, by: By, *, everything: bool = False
) -> BulkAction:
    """Have workers do this to all events that match now. It begins within seconds if a worker is running.

    Raises `InvalidInput` without a reason, for a field that does not fit the action, and without any field unless
    `everything` says that this is meant.
    """
    _check_filter(kind, wanted, everything=everything)
    if not by.reason.strip():
        fault = Fault("a reason is required for a bulk action", "#/reason")
        raise InvalidInput(fault.detail, [fault])
    await work.bulk.plan_by_index(only=True)
    bound = await work.bulk.bound(kind)
    total = await work.bulk.total(kind, wanted)
    await work.bulk.plan_by_index(only=False)
    action = await work.bulk.create(
        BulkWanted(action=kind, filter=wanted.stored(), reason=by.reason),
        actor=by.actor,
        acting=work.acting.actor,
        user_id=work.acting.user_id,
        estimate=total.value,
        precision=total.precision,
        last_position=bound.position,
        last_aggregate=bound.aggregate,
    )
    _record(work, Action.bulk_started, action.id, by, kind=kind.value, filter=action.filter, estimate=total.value)
    return action


async def get(work: Transaction, action_id: UUID) -> BulkAction:
    """The action as it stands. Raises `NotFound`."""
    return _known(await work.bulk.get(action_id), action_id)


async def cancel(work: Transaction, action_id: UUID, by: By) -> BulkAction:
    """End the action where it is; what it has done so far stays. It waits for the chunk that is running.

    Raises `NotFound`, or `Conflict` if it has ended.
    """
    action = _known(await work.bulk.get(action_id, lock=Lock.change), action_id)
    if not action.state.is_active:
        raise Conflict(f"bulk action {action_id} is already {action.state.value}")
    await work.bulk.update(
        action, state=BulkState.cancelled, ended_at=now(), cancelled_by=by.actor, cancel_reason=by.reason
    )
    counts = {"done": action.done, "failed": action.failed, "skipped": action.skipped}
    _record(work, Action.bulk_cancelled, action_id, by, **counts)
    return action


@dataclass(slots=True)
class _Chunk:
    """What became of the events of a chunk."""

    done: int = 0
    failed: list[tuple[Taken, Exception]] = field(default_factory=list)
    untried: list[Taken] = field(default_factory=list)
    """Events for which the savepoints did not suffice: always the last ones of the chunk."""
    savepoints: int = 0


async def advance(
    work: TransactionT, claimed: Claimed, subscriptions: Sequence[AnySubscription[TransactionT]], worker_id: UUID
) -> Progress:
    """Do the next chunk of an action that this transaction has locked with `take`, and move the action forward.

    A chunk that fails is split in halves, each in a savepoint, until the events at fault are isolated: they stay as
    they were, and are counted. After a failed chunk, the next one is smaller. Raises `DBAPIError` if the server cannot
    work, or if another transaction has locked something: then the chunk is to be tried again.
    """
    size = max(1, CHUNK >> claimed.tries)
    await work.bulk.plan_by_index(only=True)
    found = await work.bulk.examine(claimed, size, EXAMINED)
    taken = await work.bulk.lock(claimed, found.matching) if found.matching else []
    await work.bulk.plan_by_index(only=False)
    job, chunk = work.acting, _Chunk()
    if claimed.acting is not None:
        work.act_as(claimed.acting, claimed.user_id)
    await _do(work, claimed, taken, subscriptions, chunk)
    if job.actor is not None:
        work.act_as(job.actor, job.user_id)
    examined, matching, place = found.number, len(found.matching), found.last
    if chunk.untried:
        # The next chunk begins with them. At least one event has been dealt with.
        before = taken[taken.index(chunk.untried[0]) - 1]
        examined = matching = found.matching.index(before.position) + 1
        place = Place(before.position, before.aggregate)
    progress = Progress(
        examined,
        chunk.done,
        len(chunk.failed),
        matching - chunk.done - len(chunk.failed),
        _told_of(chunk.failed),
        place,
    )
    counts = await work.bulk.advance(claimed, progress, worker_id)
    if progress.place is None:
        _record(work, Action.bulk_finished, claimed.id, By(claimed.actor, claimed.reason), **counts)
    return progress


async def put_off(work: Transaction, claimed: Claimed, error: BaseException, worker_id: UUID) -> None:
    """Note that a chunk failed as a whole, and was rolled back. It is tried again after a while."""
    said = made_storable(summary(error))[:_LONGEST_ERROR]
    await work.bulk.put_off(claimed.id, said, AGAIN.delay(claimed.tries), worker_id)


async def _do(
    work: TransactionT,
    claimed: Claimed,
    taken: Sequence[Taken],
    subscriptions: Sequence[AnySubscription[TransactionT]],
    chunk: _Chunk,
) -> None:
    if not taken:
        return
    if chunk.savepoints >= SAVEPOINT_BUDGET:
        chunk.untried += taken
        return
    chunk.savepoints += 1
    try:
        # Checks that would fail at the commit must fail here, where the event at fault can be found.
        async with work.savepoint(check=True):
            await _act(work, claimed, taken, subscriptions)
    except Exception as error:
        if is_of_the_server(error) or (is_contention(error) and claimed.tries < PATIENCE):
            raise
        if len(taken) == 1:
            chunk.failed.append((taken[0], error))
            return
        middle = len(taken) // 2
        await _do(work, claimed, taken[:middle], subscriptions, chunk)
        await _do(work, claimed, taken[middle:], subscriptions, chunk)
    else:
        chunk.done += len(taken)


async def _act(
    work: TransactionT,
    claimed: Claimed,
    taken: Sequence[Taken],
    subscriptions: Sequence[AnySubscription[TransactionT]],
) -> None:
    by, positions = By(claimed.actor, claimed.reason), [one.position for one in taken]
    match claimed.kind:
        case BulkKind.replay:
            await work.control.replay(positions, by.actor, by.reason, claimed.id)
        case BulkKind.discard:
            await throw_away(work, taken, by, subscriptions, claimed.id)
        case BulkKind.retry_now:
            await work.control.retry_now(positions, by.actor, by.reason, claimed.id)
        case BulkKind.bury:
            await work.control.bury_waiting(positions, by.actor, by.reason, claimed.id)


def _check_filter(kind: BulkKind, wanted: BulkFilter, *, everything: bool) -> None:
    fits, given = (OF_LETTERS if kind.of_letters else OF_WAITING), wanted.given
    what = "dead letters" if kind.of_letters else "events that wait"
    faults = [
        Fault(f"does not select {what}; allowed: {', '.join(sorted(fits))}", f"#/{name}")
        for name in sorted(given.keys() - fits)
    ]
    if wanted.waits is not None and wanted.waits not in SELECTABLE:
        allowed = ", ".join(sorted(SELECTABLE))
        faults.append(Fault(f"must be one of {allowed}: other events depend on another one", "#/waits"))
    if faults:
        raise InvalidInput(f"the filter does not fit the action {kind.value}", faults)
    if not given and not everything:
        fault = Fault(f"is empty; to select all {what}, say so with everything", "#")
        raise InvalidInput(f"the filter {fault.detail}", [fault])


def _record(work: Transaction, action: Action, action_id: UUID, by: By, **details: Any) -> None:
    work.record_act(action, f"bulk_action/{action_id}", reason=by.reason, by=by.actor, **details)


def _known(action: BulkAction | None, action_id: UUID) -> BulkAction:
    if action is None:
        raise NotFound(f"there is no bulk action {action_id}")
    return action


def _told_of(failed: Sequence[tuple[Taken, Exception]]) -> str | None:
    if not failed:
        return None
    event, error = failed[-1]
    return made_storable(f"position {event.position}: {summary(error)}")[:_LONGEST_ERROR]
