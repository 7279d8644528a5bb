"""ARQ's `WorkerSettings`: functions, cron jobs, start-up and shutdown.

`python -m worker` runs it with a worker that outlives Redis (`worker/runner.py`); the plain
`arq worker.settings.WorkerSettings` works too, and ends at the first error of Redis.
"""

import json
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from arq import cron
from arq.cron import CronJob
from sqlalchemy.exc import DBAPIError

from services.settings import get_settings
from worker.context import open_worker
from worker.jobs.audit import audit_ledger
from worker.jobs.reports import report_backlog
from worker.jobs.retention import ensure_event_partitions, prune_idempotency_keys
from worker.runner import DatabaseAway, read_redis_url

QUEUE = "waybill:jobs"


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
        ctx["worker"] = await stack.enter_async_context(open_worker(settings))
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
    functions: ClassVar = [ensure_event_partitions, prune_idempotency_keys, report_backlog, audit_ledger]
    cron_jobs: ClassVar[list[CronJob]] = [
        cron(ensure_event_partitions, hour=0, minute=10, second=0, run_at_startup=True),
        cron(prune_idempotency_keys, minute=25, second=0),
        cron(report_backlog, second={0, 15, 30, 45}),
        # It ends itself, in good order, at its time limit.
        cron(audit_ledger, minute=40, second=0, timeout=get_settings().audit_time_limit + 60),
    ]
    on_startup = startup
    on_shutdown = shutdown
    job_serializer = serialize
    job_deserializer = deserialize
    # A job id is taken until its result expires; without results, the next run can use it at once.
    keep_result = 0
    max_jobs = 10
    job_timeout = 300
    poll_delay = 0.5
