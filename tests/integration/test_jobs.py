"""Jobs are rows: missed runs are caught up once, no job runs twice at a time, a lost worker's job is taken over."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest

from services.database import Database
from services.fields import new_id
from services.jobs import service as jobs
from services.jobs.schemas import JobState
from services.outbox.control.schemas import By
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.logs import capture_logs
from tests.roles import superuser_of
from worker.job_loop import JobLoop
from worker.jobs.metrics import JobMetrics
from worker.jobs.schedule import Job, Schedule, ScheduledJob

DAILY = Schedule(hour=0, minute=10)
LEASE = 0.6


def noted(into: list[str], name: str, seconds: float = 0.0) -> Job:
    """A job of that name that notes its beginning and its end."""

    async def work(_: dict[str, Any]) -> None:
        into.append(f"{name} begins")
        await asyncio.sleep(seconds)
        into.append(f"{name} ends")

    work.__name__ = name
    return work


async def hang(_: dict[str, Any]) -> None:
    await asyncio.Event().wait()


async def broken(_: dict[str, Any]) -> None:
    raise ValueError("no")


@asynccontextmanager
async def looping(
    database: Database, *scheduled: ScheduledJob, owner: UUID | None = None, lease: float = LEASE
) -> AsyncIterator[JobLoop]:
    loop = JobLoop(lambda: UnitOfWork(database.write), scheduled, JobMetrics(), owner or new_id(), lease=lease)
    loop.start(None)
    try:
        yield loop
    finally:
        await loop.stop(5.0)


async def act(database: Database, work: Callable[[UnitOfWork], Any]) -> Any:
    async with UnitOfWork(database.write) as uow:
        done = await work(uow)
        await uow.commit()
    return done


async def state(database: Database, name: str) -> JobState:
    found = await act(database, lambda uow: jobs.job(uow, name))
    assert isinstance(found, JobState)
    return found


async def until(database: Database, name: str, condition: Callable[[JobState], bool]) -> JobState:
    """The job's state as soon as the condition holds."""
    for _ in range(400):
        if (await listed(database, name)) and condition(found := await state(database, name)):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within 20 s: {await rows(database, 'SELECT to_json(jobs) FROM jobs')}")


async def listed(database: Database, name: str) -> bool:
    return bool(await rows(database, "SELECT 1 FROM jobs WHERE name = :name", name=name))


async def announce(database: Database, *scheduled: ScheduledJob, due: str = "now() - interval '9 hours'") -> None:
    """Create the rows with this due time, as a worker that has stopped would leave them."""
    async with looping(database, *scheduled):
        for one in scheduled:
            await until(database, one.name, lambda _: True)
    await rows(database, f"UPDATE jobs SET due_at = {due}")


async def test_after_a_night_without_workers_each_schedule_runs_once(database: Database) -> None:
    said: list[str] = []
    scheduled = [
        ScheduledJob(noted(said, "quarters"), Schedule(minute=35)),
        ScheduledJob(noted(said, "hourly"), Schedule(minute=40)),
        ScheduledJob(noted(said, "daily"), DAILY),
    ]
    await announce(database, *scheduled)
    async with looping(database, *scheduled):
        for one in scheduled:
            found = await until(database, one.name, lambda now: now.runs > 0)
            assert found.due_at > (await rows(database, "SELECT now()"))[0]
        await asyncio.sleep(0.3)
    assert sorted(said) == sorted(f"{one.name} {what}" for one in scheduled for what in ("begins", "ends"))


async def test_a_new_job_waits_for_its_time_unless_it_is_due_at_the_start(database: Database) -> None:
    said: list[str] = []
    at_start = ScheduledJob(noted(said, "at_start"), DAILY, at_start=True)
    async with looping(database, ScheduledJob(noted(said, "waits"), DAILY), at_start):
        await until(database, "at_start", lambda now: now.runs == 1)
        waits = await state(database, "waits")
    assert said == ["at_start begins", "at_start ends"]
    assert (waits.runs, waits.state, waits.late_seconds) == (0, "waiting", 0.0)
    assert waits.schedule == "each day, at 00:10 UTC"


async def test_a_job_acts_under_its_own_name(database: Database) -> None:
    actors: list[str | None] = []

    async def job(_: dict[str, Any]) -> None:
        actors.append(UnitOfWork(database.write).trace.actor)

    await announce(database, ScheduledJob(job, DAILY))
    async with looping(database, ScheduledJob(job, DAILY)) as loop:
        # Whether or not it has run already, because it was due.
        await act(database, lambda uow: jobs.run_now(uow, "job", By("test")))
        loop.wake()
        await until(database, "job", lambda now: now.runs >= 1)
    assert set(actors) == {"job:job"}


async def test_two_workers_never_run_a_job_at_the_same_time(database: Database) -> None:
    said: list[str] = []
    scheduled = ScheduledJob(noted(said, "job", seconds=0.03), DAILY)
    await announce(database, scheduled)
    async with looping(database, scheduled) as one, looping(database, scheduled) as other:
        for _ in range(30):
            await act(database, lambda uow: jobs.run_now(uow, "job", By("test")))
            one.wake()
            other.wake()
            await asyncio.sleep(0.02)
        await until(database, "job", lambda now: now.state == "waiting" and now.requested_at is None)
    assert len(said) > 20
    assert said == ["job begins", "job ends"] * (len(said) // 2)


async def test_a_run_that_is_longer_than_its_lease_keeps_it(database: Database) -> None:
    said: list[str] = []
    scheduled = ScheduledJob(noted(said, "long", seconds=3 * LEASE), DAILY)
    await announce(database, scheduled)
    async with looping(database, scheduled) as one, looping(database, scheduled) as other:
        for _ in range(500):
            if said[-1:] == ["long ends"]:
                break
            one.wake()
            other.wake()
            await asyncio.sleep(0.02)
        found = await until(database, "long", lambda now: now.runs > 0)
    assert said == ["long begins", "long ends"]
    assert (found.runs, found.ok) == (1, True)
    assert found.seconds is not None
    assert found.seconds > 2 * LEASE


async def test_the_job_of_a_lost_worker_is_taken_over_when_its_lease_expires(database: Database) -> None:
    said: list[str] = []
    scheduled = ScheduledJob(noted(said, "job"), DAILY)
    await announce(database, scheduled)
    taken = await act(database, lambda uow: uow.jobs.claim("job", new_id(), LEASE))
    assert taken.failed == 0
    async with looping(database, scheduled):
        found = await until(database, "job", lambda now: now.runs == 2)
    assert said == ["job begins", "job ends"]
    # The lost run counts as one that failed.
    assert (found.failures, found.failed_in_a_row, found.ok) == (1, 0, True)


async def test_a_job_whose_lease_was_taken_over_is_cancelled_and_its_row_is_left_to_the_new_owner(
    database: Database,
) -> None:
    scheduled, other = ScheduledJob(hang, DAILY), new_id()
    await announce(database, scheduled)
    # Paused, so that it is not taken over again while the test looks.
    taken = (
        "UPDATE jobs SET lease_owner = :id, lease_until = now() + interval '1 s', paused_at = now(), paused_by = 'x'"
    )
    async with looping(database, scheduled):
        await until(database, "hang", lambda now: now.state == "running")
        with capture_logs() as logged:
            await rows(database, taken, id=other)
            for _ in range(100):
                if any(line["event"] == "job failed" for line in logged):
                    break
                await asyncio.sleep(0.05)
        failed = [line for line in logged if line["event"] == "job failed"]
        assert [("lease" in line["error"], line["job"]) for line in failed] == [(True, "hang")]
    found = await state(database, "hang")
    assert (found.worker_id, found.runs) == (other, 0)


async def test_a_job_that_takes_too_long_is_cancelled_and_counts_as_failed(database: Database) -> None:
    scheduled = ScheduledJob(hang, DAILY, time_limit=0.2)
    await announce(database, scheduled)
    async with looping(database, scheduled):
        found = await until(database, "hang", lambda now: now.runs > 0)
    assert (found.ok, found.failures, found.error) == (False, 1, "it did not end within 0.2 s")


async def test_a_failed_job_is_retried_before_its_next_time_and_reported_when_it_fails_again(
    database: Database,
) -> None:
    scheduled = ScheduledJob(broken, DAILY)
    await announce(database, scheduled)
    async with looping(database, scheduled) as loop:
        first = await until(database, "broken", lambda now: now.runs == 1)
        assert (first.error, first.complaint) == ("ValueError('no')", None)
        assert await rows(database, "SELECT due_at < now() + interval '31 s' FROM jobs") == [True]
        await rows(database, "UPDATE jobs SET due_at = now()")
        loop.wake()
        second = await until(database, "broken", lambda now: now.runs == 2)
    assert second.complaint == "its last 2 runs failed: ValueError('no')"
    metrics = loop._metrics.of("broken")
    assert (metrics.runs, metrics.failures, metrics.last_error) == (2, 2, "ValueError('no')")


async def test_a_worker_that_leaves_gives_its_jobs_back_as_they_were(database: Database) -> None:
    scheduled = ScheduledJob(hang, DAILY)
    await announce(database, scheduled)
    async with looping(database, scheduled, lease=60.0):
        await until(database, "hang", lambda now: now.state == "running")
    found = await state(database, "hang")
    assert (found.worker_id, found.runs, found.state) == (None, 0, "waiting")
    assert found.late_seconds > 3600


async def test_a_paused_job_runs_only_on_request_until_it_is_resumed(database: Database) -> None:
    said: list[str] = []
    scheduled = ScheduledJob(noted(said, "job"), DAILY)
    await announce(database, scheduled)
    await act(database, lambda uow: jobs.pause(uow, "job", By("ops", "the disk is full")))
    # This includes a worker that looked before the pause.
    assert await act(database, lambda uow: uow.jobs.claim("job", new_id(), LEASE)) is None
    async with looping(database, scheduled) as loop:
        await asyncio.sleep(0.3)
        paused = await state(database, "job")
        assert (paused.state, paused.runs, paused.late_seconds, paused.complaint) == ("paused", 0, 0.0, None)
        assert (paused.paused_by, paused.paused_reason) == ("ops", "the disk is full")
        await loop.request("job", By("ops"))
        await until(database, "job", lambda now: now.runs == 1)
        await rows(database, "UPDATE jobs SET due_at = now()")
        await act(database, lambda uow: jobs.resume(uow, "job", By("ops")))
        loop.wake()
        resumed = await until(database, "job", lambda now: now.runs == 2)
    assert (resumed.paused_at, resumed.paused_by, resumed.paused_reason) == (None, None, None)


async def test_a_job_of_another_release_is_left_alone(database: Database) -> None:
    said: list[str] = []
    await announce(database, ScheduledJob(noted(said, "old"), DAILY))
    async with looping(database, ScheduledJob(noted(said, "new"), DAILY, at_start=True)):
        await until(database, "new", lambda now: now.runs == 1)
    assert said == ["new begins", "new ends"]
    assert (await state(database, "old")).runs == 0


async def test_a_locked_row_does_not_hold_up_other_jobs(database: Database, settings: Settings) -> None:
    said: list[str] = []
    locked, free = (ScheduledJob(noted(said, name), DAILY, at_start=True) for name in ("locked", "free"))
    await announce(database, locked, free)
    said.clear()
    with psycopg.connect(superuser_of(settings)) as someone:
        someone.execute("SELECT 1 FROM jobs WHERE name = 'locked' FOR UPDATE")
        before = (await state(database, "free")).runs
        async with looping(database, locked, free) as loop:
            await until(database, "free", lambda now: now.runs > before)
            assert said == ["free begins", "free ends"]
            someone.rollback()
            loop.wake()
            await until(database, "locked", lambda now: now.late_seconds == 0.0 and now.state == "waiting")
    assert said[2:] == ["locked begins", "locked ends"]


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM jobs",
        "UPDATE jobs SET due_at = now() + interval '2 h'",
        "UPDATE jobs SET due_at = now(), lease_owner = gen_random_uuid(), lease_until = now() + interval '2 h'",
    ],
    ids=["a row that was deleted", "a time of a clock that was set back", "a lease of a clock that was set back"],
)
async def test_a_wrong_row_is_corrected(database: Database, harm: str) -> None:
    said: list[str] = []
    scheduled = ScheduledJob(noted(said, "job"), Schedule(second=frozenset(range(60))))
    await announce(database, scheduled, due="now()")
    async with looping(database, scheduled) as loop:
        await until(database, "job", lambda now: now.runs > 0)
        await rows(database, harm)
        before: Sequence[int] = await rows(database, "SELECT runs FROM jobs") or [0]
        loop.wake()
        await until(database, "job", lambda now: now.runs > before[0] and now.state == "waiting")
