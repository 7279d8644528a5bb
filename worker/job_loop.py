"""The job loop of one worker: finds due jobs, claims them and runs them. It needs only the database."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from services.jobs import service as jobs
from services.jobs.schemas import Seen
from services.logs import Shown
from services.outbox.control.schemas import By
from services.unit_of_work import OpenUnitOfWork, background
from worker.failures import Failures
from worker.job_run import PATIENCE, JobRun, Lease
from worker.jobs.metrics import JobMetrics
from worker.jobs.schedule import ScheduledJob

logger = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds for which a worker holds a job without renewing its lease. It renews four times as often."""

AT_ONCE = 4
"""The most jobs that one worker runs at the same time."""

_LONGEST_WAIT = 5.0
"""The most seconds until the next check, for operators' requests and the jobs of lost workers."""

_LOOKS = "every look for due jobs"

_PATIENCE_WITH_A_LOCK = 1.0
"""Time limit for writing one row while others wait, in seconds."""


class JobLoop:
    """Runs due jobs, from `start` to `stop`.

    A job is claimed by a lease on its row, committed before it runs. The lease is renewed while it runs, and ends with
    it or with this worker. `due_at` moves to the next time after the end of the run, so one run makes up for all missed
    ones.
    """

    def __init__(
        self,
        open_unit_of_work: OpenUnitOfWork,
        scheduled: Sequence[ScheduledJob],
        metrics: JobMetrics,
        owner: UUID,
        *,
        lease: float = LEASE,
        failures: Failures | None = None,
    ) -> None:
        """`failures` is what the worker's health check reports."""
        self._open = open_unit_of_work
        self._scheduled: Mapping[str, ScheduledJob] = {one.name: one for one in scheduled}
        self._metrics = metrics
        self._health = failures or Failures()
        self._lease = Lease(owner, lease)
        self._context: Mapping[str, Any] = {}
        self._at_start = {one.name for one in scheduled if one.at_start}
        self._stopping = False
        self._quiet = False
        self._woken = asyncio.Event()
        self._runs: dict[str, tuple[JobRun, asyncio.Task[None]]] = {}
        self._rounds = 0
        self._resting = False
        self._failures = 0
        self.task: asyncio.Task[None] | None = None

    def signs(self) -> dict[str, object]:
        """Values that change with progress: the loop's rounds, unless it waits for the next one; and of each cancelled
        job one that stays until it ends.
        """
        overdue = {f"job {name}": run.told_to_end_at for name, (run, _) in self._runs.items() if run.told_to_end_at}
        return {**overdue} if self._resting else {"jobs": self._rounds, **overdue}

    def start(self, context: object) -> None:
        """Run jobs with `context` as their `ctx["worker"]`."""
        self._context = {"worker": context}
        self.task = asyncio.create_task(self._run(), name="jobs")

    async def stop(self, grace: float) -> None:
        """Cancel the jobs and release them, within `grace` seconds. If a job does not end, its lease expires."""
        self._stopping = True
        self._woken.set()
        if self.task is None:
            return
        deadline = monotonic() + grace
        # The loop first, so that no run begins after the others have been cancelled.
        await asyncio.wait({self.task}, timeout=grace)
        self.task.cancel()
        tasks = [task for _, task in self._runs.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=max(0.0, deadline - monotonic()))
            if running:
                logger.warning("jobs do not end", extra={"jobs": sorted(task.get_name() for task in running)})

    def be_quiet(self, quiet: bool) -> None:
        """Claim no more jobs, or claim them again. Those that run continue."""
        self._quiet = quiet
        self.wake()

    def wake(self) -> None:
        """Look for due jobs immediately."""
        self._woken.set()

    async def request(self, name: str, by: By) -> None:
        """Request a run of the job as soon as a worker is free. Raises `NotFound`; database errors propagate."""
        async with asyncio.timeout(PATIENCE), background(self._open) as uow:
            await jobs.run_now(uow, name, by)
        self.wake()

    async def _run(self) -> None:
        while not self._stopping:
            self._rounds += 1
            self._woken.clear()
            try:
                seen = await self._look()
                wait = _LONGEST_WAIT if self._quiet else await self._claim(seen)
                self._failures = 0
                self._health.succeeded(_LOOKS)
            except Exception as error:  # noqa: BLE001  (whatever it is, the next look may succeed)
                self._health.failed(_LOOKS, error)
                if not self._failures:
                    logger.warning("cannot look for due jobs", extra={"error": error})
                self._failures += 1
                wait = min(_LONGEST_WAIT, 0.25 * 2.0 ** min(self._failures, 10))
            self._resting = True
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            self._resting = False

    async def _look(self) -> list[Seen]:
        """The rows of the jobs that this worker knows, ordered by due time. Wrong rows are corrected."""
        seen = await self._read()
        wrong = [one for one in self._scheduled.values() if self._is_wrong(one, seen.get(one.name))]
        at = next((one.now for one in seen.values()), None)
        for one in wrong:
            await self._announce(one, at)
        if wrong:
            seen = await self._read()
        return sorted(seen.values(), key=lambda one: one.due_at)

    async def _read(self) -> dict[str, Seen]:
        async with asyncio.timeout(PATIENCE), self._open() as uow:
            return {one.name: one for one in await uow.jobs.look() if one.name in self._scheduled}

    def _is_wrong(self, scheduled: ScheduledJob, seen: Seen | None) -> bool:
        """Whether the row is missing, from another release, or too far ahead as the database's clock was set back."""
        if seen is None or scheduled.name in self._at_start or seen.schedule != str(scheduled.schedule):
            return True
        leased = 0.0 if seen.lease_until is None else (seen.lease_until - seen.now).total_seconds()
        return seen.due_at > scheduled.schedule.next_after(seen.now) or leased > 2 * self._lease.seconds

    async def _announce(self, scheduled: ScheduledJob, at: datetime | None) -> None:
        """Create or correct the row; it is now `at`, by the database's clock.

        A locked row is left for the next check, and does not delay the others.
        """
        try:
            async with asyncio.timeout(_PATIENCE_WITH_A_LOCK), background(self._open) as uow:
                now = at or await uow.jobs.now()
                due_at = now if scheduled.name in self._at_start else scheduled.schedule.next_after(now)
                await uow.jobs.announce(scheduled.name, str(scheduled.schedule), due_at, 2 * self._lease.seconds)
        except (TimeoutError, DBAPIError) as error:
            logger.warning("cannot write a job's row", extra={"function": scheduled.name, "error": error})
        else:
            self._at_start.discard(scheduled.name)

    async def _claim(self, seen: Sequence[Seen]) -> float:
        """Claim due jobs while there is capacity; returns the seconds until the next one is due."""
        wait = _LONGEST_WAIT
        for one in seen:
            if one.name in self._runs or one.wanted_at is None:
                continue
            if one.wanted_at > one.now:
                wait = min(wait, (one.wanted_at - one.now).total_seconds())
            elif len(self._runs) < AT_ONCE:
                await self._take(self._scheduled[one.name])
        return wait

    async def _take(self, scheduled: ScheduledJob) -> None:
        claimed_at = monotonic()
        async with asyncio.timeout(PATIENCE), background(self._open) as uow:
            taken = await uow.jobs.claim(scheduled.name, self._lease.owner, self._lease.seconds)
        if taken is None:
            return
        metrics = self._metrics.of(scheduled.name)
        run = JobRun(scheduled, self._open, self._lease, metrics, claimed_at=claimed_at, taken=taken)
        task = asyncio.create_task(run.run(self._context), name=scheduled.name)
        self._runs[scheduled.name] = run, task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._runs[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a job's run was lost", extra={"function": task.get_name(), "error": repr(Shown(error))})
        if len(self._runs) == AT_ONCE - 1:
            # Another job may have been waiting for its place.
            self.wake()
