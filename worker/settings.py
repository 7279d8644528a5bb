"""ARQ's `WorkerSettings`: functions, startup and shutdown.

`python -m worker` runs it with a worker that survives Redis outages (`worker/runner.py`). Plain
`arq worker.settings.WorkerSettings` works, too, but ends at the first Redis error.
"""

import json
from contextlib import AsyncExitStack
from typing import Any, ClassVar, cast

from arq import func
from arq.typing import WorkerCoroutine
from arq.worker import Function

from services.keys import Keys
from services.outbox.control.schemas import By
from services.outbox.subscription import longest_limit
from services.settings import get_settings
from services.startup import plain_connecting
from services.subscriptions import SUBSCRIPTIONS
from worker.context import WorkerContext, open_worker
from worker.guard import Guard
from worker.runner import read_redis_url
from worker.schedules import scheduled_jobs


def _carried(name: str) -> Function:
    """An ARQ job that requests a run of the scheduled job with this name, which then runs under a lease on its row."""

    async def request(ctx: dict[str, Any]) -> None:
        worker: WorkerContext = ctx["worker"]
        await worker.jobs.request(name, By(f"arq job {ctx['job_id']}"[:200]))

    return func(cast(WorkerCoroutine, request), name=name)


def serialize(job: dict[str, Any]) -> bytes:
    """Jobs are sent as JSON, so that nothing read from Redis is ever unpickled."""
    return json.dumps(job, default=repr).encode()


def deserialize(raw: bytes) -> dict[str, Any]:
    """Raises `ValueError` for what is not a JSON object; ARQ then fails the job."""
    job = json.loads(raw)
    if not isinstance(job, dict):
        raise ValueError("a job must be a JSON object")
    return job


async def startup(ctx: dict[str, Any]) -> None:
    """Raises `CannotStart`."""
    stack = AsyncExitStack()
    ctx["stack"] = stack
    settings = get_settings()
    # A subscription's own time limit may be longer than the one in the settings.
    limit = max(settings.worker_stall_limit, 4 * longest_limit(SUBSCRIPTIONS, settings.outbox_time_limit))
    guard = ctx["guard"] = Guard(limit, max(limit, 2 * settings.worker_shutdown_grace))
    guard.start()
    with plain_connecting(settings):
        worker = await stack.enter_async_context(open_worker(settings, scheduled_jobs(settings)))
    ctx["worker"] = worker
    guard.look_after(worker.tasks, worker.signs)


async def shutdown(ctx: dict[str, Any]) -> None:
    guard: Guard | None = ctx.get("guard")
    if guard is not None:
        guard.leave()
        worker: WorkerContext | None = ctx.get("worker")
        if worker is not None and guard.is_broken:
            worker.heartbeat.leaves_row = True
    stack: AsyncExitStack | None = ctx.get("stack")
    if stack is not None:
        await stack.aclose()


class WorkerSettings:
    """Read by ARQ, which does not run the schedules: see `worker/job_loop.py`."""

    queue_name = Keys.of(get_settings()).jobs
    redis_settings = read_redis_url(get_settings().redis_url)
    functions: ClassVar = [_carried(one.name) for one in scheduled_jobs(get_settings())]
    on_startup = startup
    on_shutdown = shutdown
    job_serializer = serialize
    job_deserializer = deserialize
    # A job id is taken until its result expires; without results, the next run can reuse it immediately.
    keep_result = 0
    max_jobs = 10
    # Jobs read from Redis at a time: more would only cause contention.
    queue_read_limit = 50
    # Each only writes a row.
    job_timeout = 30
    poll_delay = 0.5
