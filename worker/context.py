"""The objects of one worker process: its settings, database, Redis clients, poll loops and job loop."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypedDict

from redis.asyncio import Redis

from services.analytics import open_analytics
from services.budget import check_pool_budget
from services.database import (
    Database,
    Limits,
    SessionFactory,
    close,
    make_engine,
    make_session_factory,
    open_database,
)
from services.exposition import LoopLag, MetricsServer
from services.keys import Keys
from services.outbox import metrics as engine_metrics
from services.outbox.consumers import check_consumers
from services.outbox.doorbell import Doorbell, DoorbellListener
from services.outbox.engine.repository import claim_settings
from services.outbox.engine.service import Processor
from services.outbox.engine.window import Pace, Window
from services.outbox.models import WorkerWish
from services.outbox.origin import service as origin
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import check_time_limits, longest_limit
from services.settings import ANALYTICS_WORKER_CONNECTIONS, Settings
from services.skew import check_clock
from services.startup import check_role, check_schema
from services.subscriptions import SUBSCRIPTIONS, consumers_of
from services.tracing import tracing
from services.unit_of_work import UnitOfWork
from worker import metrics as worker_metrics
from worker.bulk import BulkRunner
from worker.follower import LEASE, Follower
from worker.heartbeat import Heartbeat, queue_length_of
from worker.history import History
from worker.job_loop import JobLoop
from worker.jobs.metrics import JobMetrics
from worker.jobs.schedule import ScheduledJob
from worker.poller import Poller

REDIS_PATIENCE = 2.0
"""Time limit for an answer from Redis, in seconds; a command that waits for a ring gets its waiting time as well."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Passed to every job as `ctx["worker"]`."""

    settings: Settings
    database: Database
    doorbell: Doorbell
    poller: Poller
    jobs: JobLoop
    bulk: BulkRunner
    follower: Follower
    heartbeat: Heartbeat
    history: History

    @property
    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """Everything that runs until the worker stops."""
        running = [*self.poller.tasks, *self.follower.tasks, *self.heartbeat.tasks, *self.doorbell.tasks]
        running += self.history.tasks
        return [*running, *(task for task in (self.jobs.task, self.bulk.task) if task is not None)]

    def signs(self) -> Mapping[str, object]:
        """For each busy loop, something that changes as long as it makes progress."""
        return {**self.poller.progress.alive_at, **self.jobs.signs(), **self.bulk.signs(), **self.follower.signs()}

    def open_unit_of_work(self) -> UnitOfWork:
        return UnitOfWork(self.database.write, self.doorbell, name="a job")


@asynccontextmanager
async def open_polling(settings: Settings, time_limit: float) -> AsyncIterator[SessionFactory]:
    """Sessions of the poll loops, on connections whose settings for claims are fixed when they are opened.

    `time_limit` is the longest that a batch may take, in seconds.
    """
    engine = make_engine(
        settings,
        "worker-outbox",
        limits=Limits(time_limit, settings.database_lock_timeout),
        pool_size=settings.polling_connections,
        server_settings=claim_settings(time_limit),
        keep_cancelled=True,
    )
    try:
        yield make_session_factory(engine, checks_order=settings.checks_order)
    finally:
        await close(engine)


class ProcessingOptions(TypedDict):
    """Arguments of `Processor` that are the same for all processors of one process."""

    retry: RetryPolicy
    batch_size: int
    time_limit: float
    siblings: list[Window]
    pace: Pace


def processing_options(settings: Settings) -> ProcessingOptions:
    """The settings of the processors of one process, and what these share."""
    return {
        "retry": RetryPolicy(settings.outbox_max_attempts, settings.outbox_retry_base, settings.outbox_retry_cap),
        "batch_size": settings.outbox_batch_size,
        "time_limit": settings.outbox_time_limit,
        "siblings": [],
        "pace": Pace(),
    }


@asynccontextmanager
async def open_worker(settings: Settings, scheduled: Sequence[ScheduledJob] = ()) -> AsyncIterator[WorkerContext]:
    """The worker's engines, session factories and loops, started on entry and stopped on exit.

    On exit, running batches finish, or are rolled back after `worker_shutdown_grace` seconds; jobs are cancelled.
    Raises `CannotStart` and `TimeLimitTooLong`; what the database raises propagates.
    """
    idle_limit = settings.database_idle_in_transaction_timeout
    check_time_limits(SUBSCRIPTIONS, settings.outbox_time_limit, idle_limit)
    redis = open_redis(settings)
    # The listener waits at the doorbell for a whole poll interval.
    ear = open_redis(settings, patience=settings.outbox_poll_interval + REDIS_PATIENCE)
    keys = Keys.of(settings)
    limit = longest_limit(SUBSCRIPTIONS, settings.outbox_time_limit)
    async with (
        tracing(settings, "worker"),
        open_database(settings, "worker") as database,
        open_polling(settings, limit) as polling,
        redis,
        ear,
        Doorbell(redis, keys.doorbell) as doorbell,
        # It connects when there is something to count, so that a worker starts without it.
        open_analytics(settings, "worker", Limits.of_sinks(), ANALYTICS_WORKER_CONNECTIONS) as analytics,
    ):
        consumers = consumers_of(analytics)
        check_consumers(consumers, LEASE, idle_limit)
        schema = await check_schema(database.engine, settings)
        await check_role(database.engine, settings)
        await check_pool_budget(database.engine, settings)
        skew = await check_clock(database.engine, settings.max_clock_skew)
        await origin.check_start(database.engine)
        options = processing_options(settings)
        processors = [
            Processor(
                lambda: UnitOfWork(polling, doorbell, name="a batch of events"), SUBSCRIPTIONS, prepared=True, **options
            )
            for _ in range(settings.outbox_concurrency)
        ]
        poller = Poller(processors, DoorbellListener(ear, keys.doorbell), settings.outbox_poll_interval)
        runs = JobMetrics()
        heartbeat = Heartbeat(
            lambda: UnitOfWork(database.write),
            poller.progress,
            runs,
            queue_length_of(redis, keys.jobs),
            skew,
            schema,
            versions={subscription.event.type: subscription.event.version for subscription in SUBSCRIPTIONS},
            schedules=[one.name for one in scheduled],
            time_limit=limit,
            on_death=poller.be_wary,
            on_asked=lambda wish: obey(wish, poller, jobs, bulk, follower),
            on_bulk_actions=lambda there_are: bulk.expect(there_are),
        )
        history = History(lambda: UnitOfWork(database.write, name="the history"), poller.progress, heartbeat.worker_id)
        jobs = JobLoop(
            lambda: UnitOfWork(database.write, name="a job's row"),
            scheduled,
            runs,
            heartbeat.worker_id,
            failures=poller.progress.failures,
        )
        bulk = BulkRunner(
            lambda: UnitOfWork(database.write, doorbell, name="a bulk action"),
            SUBSCRIPTIONS,
            heartbeat.worker_id,
            time_limit=limit,
            failures=poller.progress.failures,
        )
        follower = Follower(
            lambda: UnitOfWork(database.write, doorbell, name="a log consumer"),
            consumers,
            heartbeat.worker_id,
            processed=lambda: poller.progress.processed,
        )
        context = WorkerContext(settings, database, doorbell, poller, jobs, bulk, follower, heartbeat, history)
        engine_metrics.announce([subscription.event.type for subscription in SUBSCRIPTIONS])
        engines = {"write": database.engine, "polling": polling.kw["bind"]}
        if analytics is not None:
            engines["analytics"] = analytics.engine
        render = worker_metrics.rendering(runs.collect, engines, lambda: skew.seconds)
        with MetricsServer(settings, settings.worker_metrics_port, render):
            async with LoopLag(), heartbeat, history:
                poller.start()
                jobs.start(context)
                bulk.start()
                follower.start()
                grace = settings.worker_shutdown_grace
                try:
                    yield context
                finally:
                    await asyncio.gather(poller.stop(grace), jobs.stop(grace), bulk.stop(grace), follower.stop(grace))


def obey(wish: WorkerWish | None, poller: Poller, jobs: JobLoop, bulk: BulkRunner, follower: Follower) -> None:
    """Do what an operator asked of this worker."""
    for part in (poller, jobs, bulk, follower):
        part.be_quiet(wish is not None)
    if wish is WorkerWish.stop:
        os.kill(os.getpid(), signal.SIGTERM)


def open_redis(settings: Settings, *, patience: float = REDIS_PATIENCE) -> Redis:
    """A client that waits no longer than `patience` seconds for an answer."""
    client: Redis = Redis.from_url(settings.redis_url, socket_connect_timeout=1, socket_timeout=patience)
    return client
