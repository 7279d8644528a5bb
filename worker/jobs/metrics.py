"""What the ARQ jobs of one worker did, and a line in the log for each that failed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from time import monotonic
from typing import Any, TypeAlias, cast

import structlog
from arq import Retry
from arq.typing import WorkerCoroutine

from services.fields import now

logger = structlog.get_logger(__name__)

Job: TypeAlias = Callable[..., Awaitable[Any]]


@dataclass(slots=True)
class JobRuns:
    """One function's runs since the worker started. One that asked to be tried again is a run, and no failure."""

    runs: int = 0
    failures: int = 0
    last_at: datetime | None = None
    last_seconds: float = 0.0
    last_error: str | None = None


@dataclass(slots=True)
class JobMetrics:
    """Of all functions of one worker, by name."""

    functions: dict[str, JobRuns] = field(default_factory=dict)

    def of(self, name: str) -> JobRuns:
        return self.functions.setdefault(name, JobRuns())


def watched(job: Job) -> WorkerCoroutine:
    """The job, with its runs counted in `ctx["jobs"]`. What it raises is logged, and still ARQ's to settle."""
    name = job.__name__

    @wraps(job)
    async def run(ctx: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        runs: JobRuns = ctx["jobs"].of(name)
        started = monotonic()
        try:
            return await job(ctx, *arguments, **named)
        except Retry:
            raise
        except (Exception, asyncio.CancelledError) as error:
            runs.failures += 1
            runs.last_error = repr(error)[:500]
            logger.error(
                "job failed",
                function=name,
                job_id=ctx.get("job_id"),
                attempt=ctx.get("job_try"),
                seconds=round(monotonic() - started, 3),
                error=repr(error),
            )
            raise
        finally:
            runs.runs += 1
            runs.last_at, runs.last_seconds = now(), monotonic() - started

    return cast(WorkerCoroutine, run)
