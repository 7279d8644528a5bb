"""`python -m tests.faults.job_worker SECONDS`: the product's worker with one job, due at its start, and short leases.

The job writes into the table `beginnings` when it begins, and into `endings` after so many seconds.
"""

import asyncio
import os
import sys
from functools import partial
from typing import Any

import worker.context
import worker.schedules
from services.sql import Sql, Statement
from worker.context import WorkerContext
from worker.job_loop import JobLoop
from worker.jobs.schedule import Schedule, ScheduledJob

LEASE = 2.0


def main(seconds: float) -> None:
    async def note(worker_context: WorkerContext, table: str) -> None:
        async with worker_context.open_unit_of_work() as uow:
            await Sql.of(uow.session).run(Statement(f"INSERT INTO {table} VALUES (:pid)"), pid=os.getpid())
            await uow.commit()

    async def slow(ctx: dict[str, Any]) -> None:
        await note(ctx["worker"], "beginnings")
        await asyncio.sleep(seconds)
        await note(ctx["worker"], "endings")

    jobs = (ScheduledJob(slow, Schedule(hour=0, minute=10), at_start=True),)
    vars(worker.schedules)["scheduled_jobs"] = lambda _: jobs
    vars(worker.context)["JobLoop"] = partial(JobLoop, lease=LEASE)
    # Imported here, because it takes the jobs as they are at that time.
    from worker.__main__ import main as work

    work()


if __name__ == "__main__":
    main(float(sys.argv[1]))
