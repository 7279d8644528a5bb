"""One run of a scheduled job, under the lease that this worker holds on it."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

from services import tracing
from services.acting import acting_as
from services.fields import made_storable
from services.jobs.schemas import Ended, Taken
from services.logs import Shown, bind, unbind
from services.unit_of_work import OpenUnitOfWork, background
from worker.jobs.metrics import JobRuns
from worker.jobs.schedule import ScheduledJob

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Time limit for one transaction on a job's row, in seconds."""

_FIRST_RETRY = 30.0
_LAST_RETRY = 3600.0
"""Seconds until a failed job is retried, unless its schedule is sooner; doubled by each consecutive failure."""

_PAUSE = 1.0
"""Seconds between two attempts to write the outcome of a run."""

_LONGEST_ERROR = 500


@dataclass(frozen=True, slots=True)
class Lease:
    """The worker `owner` holds the job for `seconds` after each claim or renewal."""

    owner: UUID
    seconds: float


class JobRun:
    """Runs a claimed job. `run` returns unless the job does not end when it is cancelled."""

    def __init__(
        self,
        scheduled: ScheduledJob,
        open_unit_of_work: OpenUnitOfWork,
        lease: Lease,
        metrics: JobRuns,
        *,
        claimed_at: float,
        taken: Taken,
    ) -> None:
        """`claimed_at` is the `monotonic()` time before the claim."""
        self._scheduled = scheduled
        self._open = open_unit_of_work
        self._lease = lease
        self._metrics = metrics
        self._held_until = claimed_at + lease.seconds
        self._taken = taken
        self._began = monotonic()
        self.told_to_end_at: float | None = None
        """When the job was cancelled, by `monotonic()`; None while it may run."""

    async def run(self, context: Mapping[str, Any]) -> None:
        """Run the job and write its outcome, or release it if this task is cancelled."""
        started = monotonic()
        name = self._scheduled.name
        bound = bind(job=name)
        with acting_as(f"job:{name}"):
            work = asyncio.create_task(self._carry_out(context), name=f"job-{name}")
        try:
            error = await self._attend(work)
            ended = Ended(monotonic() - started, error)
            self._metrics.add(ended.seconds, error)
            if error is not None:
                logger.error("job failed", extra={"function": name, "seconds": round(ended.seconds, 3), "error": error})
            await self._finish(ended)
        except asyncio.CancelledError:
            await self._give_back(work)
            raise
        finally:
            unbind(bound)

    async def _carry_out(self, context: Mapping[str, Any]) -> None:
        with tracing.span(f"job {self._scheduled.name}", is_root=True):
            await self._scheduled.job(dict(context))

    async def _attend(self, work: asyncio.Task[None]) -> str | None:
        """Hold the lease until the job has ended; returns its error. Cancels it when its time or the lease runs out."""
        deadline = monotonic() + self._scheduled.time_limit
        error: str | None = None
        while True:
            wait = self._lease.seconds / 4
            if error is None:
                wait = min(wait, deadline - monotonic())
            await asyncio.wait({work}, timeout=max(0.0, wait))
            if work.done():
                return error or _error_of(work)
            await self._renew()
            if error is None and monotonic() >= deadline:
                error = f"it did not end within {self._scheduled.time_limit:g} s"
            # Early enough for the job to end within its lease.
            if error is None and monotonic() >= self._held_until - self._lease.seconds / 4:
                error = "its lease could not be renewed: another worker may run it"
            if error is not None:
                self.told_to_end_at = self.told_to_end_at or monotonic()
                work.cancel()

    async def _renew(self) -> None:
        asked_at = monotonic()
        try:
            async with asyncio.timeout(min(PATIENCE, self._lease.seconds / 4)), background(self._open) as uow:
                held = await uow.jobs.renew(self._scheduled.name, self._lease.owner, self._lease.seconds)
        except Exception as error:  # noqa: BLE001  (whatever it is, there is time for another attempt)
            logger.warning("cannot renew the lease on a job", extra={"function": self._scheduled.name, "error": error})
        else:
            self._held_until = asked_at + self._lease.seconds if held else asked_at

    async def _finish(self, ended: Ended) -> None:
        """Write the outcome. Gives up when the lease has expired: another worker then runs the job again."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE), background(self._open) as uow:
                    due_at = self._due_after(self._now(), failed=ended.error is not None)
                    await uow.jobs.finish(self._scheduled.name, self._lease.owner, ended, due_at)
                return
            except Exception as error:  # noqa: BLE001  (whatever it is, the next attempt may succeed)
                if monotonic() >= self._held_until:
                    logger.warning(
                        "cannot write the outcome of a job",
                        extra={"function": self._scheduled.name, "error": error},
                    )
                    return
            await asyncio.sleep(_PAUSE)

    def _now(self) -> datetime:
        """The database's time, without asking: no earlier than the claim, so the job is not due again at once."""
        return self._taken.at + timedelta(seconds=monotonic() - self._began)

    def _due_after(self, now: datetime, *, failed: bool) -> datetime:
        due_at = self._scheduled.schedule.next_after(now)
        if not failed:
            return due_at
        retry = min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(self._taken.failed, 20))
        return min(due_at, now + timedelta(seconds=retry))

    async def _give_back(self, work: asyncio.Task[None]) -> None:
        """End the job, and release the lease."""
        self.told_to_end_at = self.told_to_end_at or monotonic()
        work.cancel()
        await asyncio.wait({work})
        if not work.cancelled() and work.exception() is not None:
            logger.warning(
                "job failed while it was cancelled", extra={"function": self._scheduled.name, "error": _error_of(work)}
            )
        # If this fails, the lease expires.
        with suppress(Exception):
            async with asyncio.timeout(PATIENCE), background(self._open) as uow:
                await uow.jobs.release(self._scheduled.name, self._lease.owner)


def _error_of(work: asyncio.Task[None]) -> str | None:
    """The error of an ended job, as text that PostgreSQL can store."""
    if work.cancelled():
        return "it was cancelled"
    error = work.exception()
    if error is None:
        return None
    return made_storable(repr(Shown(error)))[:_LONGEST_ERROR]
