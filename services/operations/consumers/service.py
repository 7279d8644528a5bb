"""Pause, resume, reset and delete consumers of the event log, with a record of who did it. The caller commits."""

from uuid import UUID

from services.acting import Action
from services.fields import new_id
from services.outbox.control.schemas import By
from services.outbox.log import service as log
from services.outbox.log.schemas import Extent, Lease, Start
from services.unit_of_work import UnitOfWork

REBUILD_LEASE = 60.0
"""Seconds after which workers continue a rebuild if the process that began it has ended."""


async def pause(uow: UnitOfWork, consumer: str, by: By) -> None:
    """Stop running a consumer in workers. A batch that is under way is rolled back. Raises `NotFound`."""
    await log.pause(uow, consumer, by.actor)
    await _record(uow, Action.consumer_paused, "pause_consumer", consumer, by)


async def resume(uow: UnitOfWork, consumer: str, by: By) -> None:
    """Run a consumer in workers again, immediately even if it waits after a failure. Raises `NotFound`."""
    await log.resume(uow, consumer)
    await _record(uow, Action.consumer_resumed, "resume_consumer", consumer, by)


async def reset(uow: UnitOfWork, consumer: str, to: Start, by: By) -> None:
    """Move a consumer to the beginning of the log or to now. Raises `NotFound`, `RebaseNeeded` and `Conflict`."""
    await log.reset(uow, consumer, to)
    await _record(uow, Action.consumer_reset, f"reset_to_{to}", consumer, by)


async def restart(uow: UnitOfWork, consumer: str, by: By) -> tuple[UUID, Lease, Extent]:
    """Begin to count the reports of this consumer again, as `restart_sink` does. From the commit on, no worker counts.

    If this process ends before it has begun, workers continue after `REBUILD_LEASE`.
    """
    restarted = await log.restart_sink(uow, consumer, new_id(), REBUILD_LEASE)
    await uow.control.audit_consumer(consumer, "rebuild", by.actor, by.reason)
    uow.record_act(Action.reports_rebuilt, f"consumer/{consumer}", reason=by.reason, by=by.actor)
    return restarted


async def delete(uow: UnitOfWork, consumer: str, by: By) -> None:
    """Delete a consumer: the log no longer keeps events for it. Raises `NotFound`."""
    await log.delete(uow, consumer)
    await _record(uow, Action.consumer_deleted, "delete_consumer", consumer, by)


async def _record(uow: UnitOfWork, act: Action, done: str, consumer: str, by: By) -> None:
    await uow.control.audit_consumer(consumer, done, by.actor, by.reason)
    uow.record_act(act, f"consumer/{consumer}", reason=by.reason, by=by.actor, done=done)
