"""HTTP routes to inspect and control the outbox."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query

from services.api.dependencies import CurrentUser, ReplicaWork, Work, page_of
from services.api.idempotency import IDEMPOTENCY_KEY_ACCEPTED
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import needs
from services.api.transaction import TransactionRoute
from services.cursors import LONGEST
from services.errors import InvalidInput, NotFound
from services.fields import Id
from services.operations.outbox.schemas import (
    Because,
    DeadLetterDetail,
    DeadLetterPublic,
    DeferredPublic,
    GroupDetail,
    LettersWanted,
    LimitChange,
    Short,
)
from services.outbox.control import service as control
from services.outbox.control import why
from services.outbox.control.repository import DEAD_LETTERS, DEFERRED
from services.outbox.control.schemas import By, Slice, TypeState, WorkerState
from services.outbox.control.why import Why
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import Group, GroupsWanted, WaitingEvent, WaitsFor, Window
from services.outbox.models import DeadLetter, FailureReason, OutboxRow, WorkerWish
from services.query import Page, PageQuery, Rows
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn
from services.users.rights import Scope

router = APIRouter(route_class=TransactionRoute, tags=["operations"], prefix="/operations")

_READ = responses(400, 401, 403, 422)
_READ_ONE = responses(400, 401, 403, 404, 422)
_ACT = responses(400, 401, 403, 409, 422)
_ACT_ON_ONE = responses(400, 401, 403, 404, 409, 422)
_ONCE = [IDEMPOTENCY_KEY_ACCEPTED]

EventType = Annotated[Short, Path(description="An event type, such as `order.placed`.")]


@router.get("/types", responses=responses(401, 403))
@needs(Scope.operations_read)
async def list_types(_: CurrentUser, uow: Work) -> list[TypeState]:
    """List event types with their backlog, pauses, limits, dead letters and live workers. Counts stop at 10,000."""
    return await control.types(uow)


@router.post("/types/{event_type}/pause", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def pause_type(event_type: EventType, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Stop claiming events of this type. Batches that are already claimed are finished."""
    await control.pause(uow, event_type, By.user(user.id, wanted.reason))


@router.post("/types/{event_type}/resume", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def resume_type(event_type: EventType, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Claim events of this type again."""
    await control.pause(uow, event_type, By.user(user.id, wanted.reason), paused=False)


@router.post("/types/{event_type}/limit", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def limit_type(event_type: EventType, wanted: LimitChange, user: CurrentUser, uow: Work) -> None:
    """Limit how many transactions of all workers process this type at the same time."""
    await control.limit(uow, event_type, wanted.max_batches, By.user(user.id, wanted.reason))


@router.get("/workers", responses=responses(401, 403))
@needs(Scope.operations_read)
async def list_workers(_: CurrentUser, uow: Work) -> list[WorkerState]:
    """List worker processes, as each last reported; `complaint` is null if a worker is healthy."""
    return await control.workers(uow)


@router.post("/workers/{worker_id}/quiet", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def quiet_worker(worker_id: UUID, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Ask a worker to finish what has begun and take nothing new. It obeys at its next heartbeat, within 5 s."""
    await control.ask(uow, worker_id, WorkerWish.quiet, By.user(user.id, wanted.reason))


@router.post("/workers/{worker_id}/resume", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def resume_worker(worker_id: UUID, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Have a quiet worker work again."""
    await control.ask(uow, worker_id, None, By.user(user.id, wanted.reason))


@router.post("/workers/{worker_id}/stop", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def stop_worker(worker_id: UUID, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Ask a worker to shut down, as after SIGTERM. What supervises it may start another one."""
    await control.ask(uow, worker_id, WorkerWish.stop, By.user(user.id, wanted.reason))


@router.get("/why", responses=_READ_ONE)
@needs(Scope.operations_read)
async def explain_wait(
    _: CurrentUser,
    uow: Work,
    event_id: Annotated[UUID | None, Query(description="An event's id, or the id of an aggregate.")] = None,
    position: Annotated[Id | None, Query()] = None,
    aggregate: Annotated[Short | None, Query(examples=["order/0193f0e4-0000-7000-8000-000000000000"])] = None,
) -> list[Why]:
    """Explain why an event or an aggregate is waiting: for which event, with which error, and since when."""
    if sum(given is not None for given in (event_id, position, aggregate)) != 1:
        raise InvalidInput("give exactly one of event_id, position and aggregate")
    if event_id is not None:
        return await why.of_any(uow, str(event_id), SUBSCRIPTIONS)
    if position is not None:
        return [await why.of_position(uow, position)]
    assert aggregate is not None
    return await why.of_aggregate(uow, aggregate, SUBSCRIPTIONS)


@router.get("/waiting", response_model=Page[WaitingEvent], responses=_READ)
@needs(Scope.operations_read)
async def list_waiting(
    _: CurrentUser,
    uow: ReplicaWork,
    type: Annotated[Short, Query(examples=["order.placed"])],  # noqa: A002  (the name of the parameter)
    reason: Annotated[WaitsFor, Query()],
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
) -> Rows[WaitingEvent]:
    """List the events of a type that wait for a reason, those that are due next first.

    Those that wait behind another event come by aggregate. A page may have fewer events than its limit, or none,
    although `has_more` is true.
    """
    return await inspection.waiting(uow, type, reason, limit, cursor)


@router.get("/dead-letter-groups", response_model=Page[Group], responses=_READ)
@needs(Scope.operations_read)
@rate_class(RateClass.search)
async def list_groups(
    _: CurrentUser,
    uow: ReplicaWork,
    type: Annotated[Short | None, Query()] = None,  # noqa: A002  (the name of the parameter)
    reason: Annotated[FailureReason | None, Query()] = None,
    window: Annotated[Window, Query(description="How far back `history` goes.")] = Window.day,
    limit: Annotated[int, Query(ge=1, le=50)] = 20,
    cursor: Annotated[str | None, Query(max_length=LONGEST)] = None,
) -> Rows[Group]:
    """List dead letters grouped by kind of error, the group that grew last first.

    The counts are bounded: the fewer groups a page has, the further each is counted. Of more than 1,000 kinds, some are
    left out.
    """
    return await inspection.groups(uow, GroupsWanted(type, reason, window), limit, cursor)


@router.get("/dead-letter-groups/{fingerprint}", responses=_READ_ONE)
@needs(Scope.operations_read)
async def read_group(
    fingerprint: Annotated[Short, Path()],
    user: CurrentUser,
    uow: ReplicaWork,
    window: Annotated[Window, Query(description="How far back `history` goes.")] = Window.day,
) -> GroupDetail:
    """Get a group of dead letters with its latest letter as a sample. Counts stop at 10,000."""
    found = await inspection.group(uow, fingerprint, window)
    return GroupDetail(group=found, sample=await _detail(uow, found.position, user))


@router.get("/dead-letters", response_model=Page[DeadLetterPublic], responses=_READ)
@needs(Scope.operations_read)
async def list_dead_letters(
    _: CurrentUser, page: Annotated[PageQuery, page_of(DEAD_LETTERS)], uow: ReplicaWork
) -> Rows[DeadLetter]:
    """List dead letters, oldest first."""
    return await uow.control.dead_letters(page)


@router.get("/dead-letters/{position}", responses=_READ_ONE)
@needs(Scope.operations_read)
async def read_dead_letter(position: Id, user: CurrentUser, uow: Work) -> DeadLetterDetail:
    """Get a dead letter with its full error, its history and its payload.

    Callers who may only read see no values of fields that are personal.
    """
    return await _detail(uow, position, user)


@router.post("/replay", dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def replay_dead_letters(wanted: LettersWanted, user: CurrentUser, uow: Work) -> Slice:
    """Put up to `limit` dead letters back into the outbox. If `more` is true, repeat with `after` set to `last`."""
    return await control.replay(
        uow,
        wanted.selection(),
        By.user(user.id, wanted.reason),
        after=wanted.after,
        limit=wanted.limit,
        dry_run=wanted.dry_run,
    )


@router.post("/discard", dependencies=_ONCE, responses=_ACT)
@needs(Scope.operations_write)
async def discard_dead_letters(wanted: LettersWanted, user: CurrentUser, uow: Work) -> Slice:
    """Discard up to `limit` dead letters permanently; events blocked behind them continue. A reason is required.

    An order whose `order.placed` is discarded is cancelled.
    """
    return await control.discard(
        uow,
        wanted.selection(),
        By.user(user.id, wanted.reason),
        SUBSCRIPTIONS,
        after=wanted.after,
        limit=wanted.limit,
        dry_run=wanted.dry_run,
    )


@router.post("/waiting/{position}/retry-now", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def retry_waiting_now(position: Id, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Make a waiting event due now: one that failed, that no worker knew, or that was deferred."""
    await control.retry_now(uow, position, By.user(user.id, wanted.reason))


@router.post("/waiting/{position}/bury", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def bury_waiting(position: Id, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Turn a waiting event into a dead letter; later events of its aggregate wait until it is replayed or discarded."""
    await control.bury_waiting(uow, position, By.user(user.id, wanted.reason))


@router.post("/waiting/{position}/discard", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def discard_waiting(position: Id, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Discard a waiting event permanently; events that waited behind it can proceed. Requires a reason.

    An order whose `order.placed` is discarded is cancelled.
    """
    await control.discard_waiting(uow, position, By.user(user.id, wanted.reason), SUBSCRIPTIONS)


@router.get("/deferred", response_model=Page[DeferredPublic], responses=_READ)
@needs(Scope.operations_read)
async def list_deferred(
    _: CurrentUser, page: Annotated[PageQuery, page_of(DEFERRED)], uow: ReplicaWork
) -> Rows[OutboxRow]:
    """List deferred events."""
    return await uow.control.deferred(page)


@router.post("/deferred/{event_id}/cancel", status_code=204, dependencies=_ONCE, responses=_ACT_ON_ONE)
@needs(Scope.operations_write)
async def cancel_deferred(event_id: UUID, wanted: Because, user: CurrentUser, uow: Work) -> None:
    """Cancel a deferred event that has not been attempted yet."""
    await control.cancel_or_refuse(uow, event_id, By.user(user.id, wanted.reason), SUBSCRIPTIONS)


async def _detail(uow: UnitOfWork, position: int, user: SignedIn) -> DeadLetterDetail:
    found = await uow.control.dead_letter(position)
    if found is None:
        raise NotFound(f"there is no dead letter {position}")
    return DeadLetterDetail.of(*found, whole=user.may(Scope.operations_write))
