"""ARQ's `WorkerSettings`: functions, cron jobs, start-up and shutdown.

`python -m worker` runs it with a worker that outlives Redis (`worker/runner.py`); the plain
`arq worker.settings.WorkerSettings` works too, and ends at the first error of Redis.
"""

import json
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from arq import cron, func
from arq.cron import CronJob
from sqlalchemy.exc import DBAPIError

from services.settings import get_settings
from worker.context import QUEUE, open_worker
from worker.jobs.audit import audit_ledger
from worker.jobs.expiry import expire
from worker.jobs.metrics import Job, watched
from worker.jobs.reports import report_backlog
from worker.jobs.retention import (
    drop_expired_events,
    ensure_event_partitions,
    forget_workers,
    prune_idempotency_keys,
)
from worker.runner import DatabaseAway, read_redis_url

LONG = 6 * 3600
"""Seconds for a job that may export a month of events; cut short, the next run begins with the same month."""

_JOBS = {
    job.__name__: watched(job)
    for job in (
        ensure_event_partitions,
        drop_expired_events,
        forget_workers,
        prune_idempotency_keys,
        expire,
        report_backlog,
        audit_ledger,
    )
}

_TIME_LIMITS = {
    drop_expired_events.__name__: LONG,
    # It ends itself, in good order, at its time limit.
    audit_ledger.__name__: get_settings().audit_time_limit + 60,
}


def _scheduled(job: Job, **when: Any) -> CronJob:
    return cron(_JOBS[job.__name__], timeout=_TIME_LIMITS.get(job.__name__), **when)


def serialize(job: dict[str, Any]) -> bytes:
    """Jobs travel as JSON: nothing that is read from Redis is ever unpickled."""
    return json.dumps(job, default=repr).encode()


def deserialize(raw: bytes) -> dict[str, Any]:
    """Raises `ValueError` for what is no JSON object; ARQ then fails the job."""
    job = json.loads(raw)
    if not isinstance(job, dict):
        raise ValueError("a job is a JSON object")
    return job


async def startup(ctx: dict[str, Any]) -> None:
    """Raises `DatabaseAway`."""
    stack = AsyncExitStack()
    ctx["stack"] = stack
    settings = get_settings()
    try:
        worker = ctx["worker"] = await stack.enter_async_context(open_worker(settings))
        ctx["jobs"] = worker.jobs
    except (OSError, DBAPIError) as error:
        address = settings.async_url().render_as_string(hide_password=True)
        reason = error.orig if isinstance(error, DBAPIError) else error
        # What is raised where nobody answers in time has no text.
        raise DatabaseAway(f"the database {address} does not take us: {str(reason) or repr(reason)}") from error


async def shutdown(ctx: dict[str, Any]) -> None:
    stack: AsyncExitStack | None = ctx.get("stack")
    if stack is not None:
        await stack.aclose()


class WorkerSettings:
    """Read by ARQ."""

    queue_name = QUEUE
    redis_settings = read_redis_url(get_settings().redis_url)
    functions: ClassVar = [func(job, timeout=_TIME_LIMITS.get(name)) for name, job in _JOBS.items()]
    cron_jobs: ClassVar[list[CronJob]] = [
        _scheduled(ensure_event_partitions, hour=0, minute=10, second=0, run_at_startup=True),
        _scheduled(drop_expired_events, hour=1, minute=40, second=0),
        _scheduled(forget_workers, minute=35, second=0),
        _scheduled(prune_idempotency_keys, minute=25, second=0),
        _scheduled(expire, second=30),
        _scheduled(report_backlog, second={0, 15, 30, 45}),
        _scheduled(audit_ledger, minute=40, second=0),
    ]
    on_startup = startup
    on_shutdown = shutdown
    job_serializer = serialize
    job_deserializer = deserialize
    # A job id is taken until its result expires; without results, the next run can use it at once.
    keep_result = 0
    max_jobs = 10
    # Jobs read from Redis at a time: more are only contended for.
    queue_read_limit = 50
    job_timeout = 300
    poll_delay = 0.5
