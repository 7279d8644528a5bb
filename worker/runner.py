"""An ARQ worker that outlives Redis: the poll loop starts before Redis answers, and goes on while it is away."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import fields
from typing import Any

from arq.connections import RedisSettings, create_pool
from arq.worker import Worker
from redis.asyncio.connection import SSLConnection, parse_url
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
"""Seconds between two tries to reach Redis at most."""


class DatabaseAway(Exception):
    """The worker cannot start: the database does not take it."""


def read_redis_url(url: str) -> RedisSettings:
    """ARQ's settings for the Redis at `url`, read as the worker's own client reads it.

    ARQ's `from_dsn` takes a quoted password as it stands. Options of the URL that ARQ does not know are left out.
    """
    given: dict[str, Any] = dict(parse_url(url))
    names = {"db": "database", "path": "unix_socket_path", "socket_connect_timeout": "conn_timeout"}
    known = {field.name for field in fields(RedisSettings)}
    chosen = {names.get(name, name): value for name, value in given.items() if names.get(name, name) in known}
    return RedisSettings(**chosen, ssl=given.get("connection_class") is SSLConnection)


class ReconnectingWorker(Worker):
    """ARQ's own loop ends at the first error of Redis. This one waits and goes on, for ever."""

    async def serve(self) -> None:
        """Run until SIGTERM or SIGINT; then stop the jobs and shut down."""
        try:
            with suppress(asyncio.CancelledError):
                await self.async_run()
        finally:
            await self.close()

    async def main(self) -> None:
        if self.on_startup:
            await self.on_startup(self.ctx)
        failures = 0
        while True:
            try:
                await self._connect()
                await self._poll_iteration()
            except (RedisError, OSError) as error:
                failures += 1
                wait = min(_LONGEST_WAIT, self.poll_delay_s * 2 ** min(failures, 10))
                if failures == 1:
                    logger.warning("Redis is away, jobs wait and the outbox is polled: %s", error)
            else:
                if failures:
                    logger.warning("Redis is back, jobs run again")
                failures = 0
                wait = self.poll_delay_s
            await asyncio.sleep(wait)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        # ARQ would delete the queue's health key here, which the other workers still report under.
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        if self._pool is not None:
            with suppress(RedisError, OSError):
                await self._pool.close(close_connection_pool=True)
            self._pool = None

    async def _connect(self) -> None:
        if self._pool is not None:
            return
        assert self.redis_settings is not None
        self.redis_settings.conn_retries = 0
        self._pool = await create_pool(
            self.redis_settings,
            job_serializer=self.job_serializer,
            job_deserializer=self.job_deserializer,
            default_queue_name=self.queue_name,
        )
        self.ctx["redis"] = self._pool
