"""An ARQ worker that survives Redis outages: its loops start before Redis answers, and keep running without it."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import fields
from typing import Any

from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

from services.shielding import end
from worker.context import REDIS_PATIENCE
from worker.guard import Guard

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
"""The most seconds between two attempts to reach Redis."""


def read_redis_url(url: str) -> RedisSettings:
    """ARQ's settings for the Redis at `url`, parsed as the worker's own client parses it.

    ARQ's `from_dsn` does not unquote the password. Options of the URL that ARQ does not know are left out.
    """
    given: dict[str, Any] = dict(parse_url(url))
    names = {"db": "database", "path": "unix_socket_path", "socket_connect_timeout": "conn_timeout"}
    known = {field.name for field in fields(RedisSettings)}
    chosen = {names.get(name, name): value for name, value in given.items() if names.get(name, name) in known}
    return RedisSettings(**chosen, ssl=given.get("connection_class") is SSLConnection)


class ReconnectingWorker(Worker):
    """A worker that keeps running whatever Redis does. Only the jobs on ARQ's queue depend on Redis.

    ARQ's own loop ends at the first Redis error, and waits forever if Redis does not answer. This one limits the wait.
    """

    def __init__(self, redis_url: str, **options: Any) -> None:
        """`options` are those of ARQ's `Worker`."""
        super().__init__(**options)
        self._redis_url = redis_url

    async def serve(self) -> None:
        """Run until SIGTERM or SIGINT; then stop the jobs and shut down.

        Raises `CannotStart`, and `WorkerBroken` if a task of the worker has ended.
        """
        try:
            with suppress(asyncio.CancelledError):
                await self.async_run()
        finally:
            await self.close()

    async def main(self) -> None:
        if self.on_startup:
            await self.on_startup(self.ctx)
        guard: Guard = self.ctx["guard"]
        polling = asyncio.create_task(self._poll_for_ever(), name="arq")
        guard.look_after([polling])
        try:
            await guard.broken()
        finally:
            guard.leave()
            await end(polling)

    async def close(self) -> None:
        await end(*self.tasks.values())
        # ARQ would delete the queue's health key here, but other workers still use it.
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        await self._disconnect()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start the readable jobs. Unreadable ones would end ARQ's loop, so they are removed from the queue."""
        readable = []
        for job_id in job_ids:
            try:
                job_id.decode()
            except UnicodeDecodeError as error:
                await self.pool.zrem(self.queue_name, job_id)
                logger.error("removed a job whose id is not UTF-8 from the queue: %r (%s)", job_id[:200], error)
            else:
                readable.append(job_id)
        await super().start_jobs(readable)

    async def run_job(self, job_id: str, score: int) -> None:
        """Run a job; remove it from the queue if ARQ cannot read its content."""
        try:
            await super().run_job(job_id, score)
        except (RedisError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  (it would end ARQ's loop, and then the next worker's)
            await self.finish_failed_job(job_id, None)
            logger.error("removed a job that cannot be run from the queue: %r (%r)", job_id[:200], error)

    async def _poll_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                if self._pool is None:
                    self._connect()
                await self._poll_iteration()
            except Exception as error:
                failures += 1
                wait = min(_LONGEST_WAIT, self.poll_delay_s * 2 ** min(failures, 10))
                if failures == 1 and isinstance(error, RedisError | OSError):
                    logger.warning("Redis is unreachable; ARQ's jobs wait and the outbox is polled: %s", error)
                elif failures == 1:
                    logger.exception("cannot read ARQ's queue")
                await self._start_over()
            else:
                if failures:
                    logger.warning("Redis is reachable again; ARQ's jobs resume")
                failures = 0
                wait = self.poll_delay_s
            await asyncio.sleep(wait)

    async def _start_over(self) -> None:
        """Discard the connections and ARQ's count of running jobs.

        ARQ counts a job before it takes it, and never frees its slot if the connection is lost in between.
        """
        # First wait for the jobs that were taken, so that each frees its slot.
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        self.job_counter = 0
        self.sem = asyncio.BoundedSemaphore(self.max_jobs + 1)
        await self._disconnect()

    def _connect(self) -> None:
        connections = ConnectionPool.from_url(self._redis_url, socket_connect_timeout=1, socket_timeout=REDIS_PATIENCE)
        self._pool = self.ctx["redis"] = ArqRedis(
            connections,
            job_serializer=self.job_serializer,
            job_deserializer=self.job_deserializer,
            default_queue_name=self.queue_name,
        )

    async def _disconnect(self) -> None:
        if self._pool is not None:
            with suppress(RedisError, OSError):
                await self._pool.aclose(close_connection_pool=True)
            self._pool = None
