"""The doorbell: a best-effort wake-up through Redis after a commit. Losing it costs latency, never an event."""

import asyncio
import logging
from time import monotonic

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.logs import RateLimitedLogger

logger = logging.getLogger(__name__)

KEY = "waybill:doorbell"
RINGS_KEPT = 4
"""So that a burst wakes a few idle workers, and a long absence of workers leaves no pile of rings."""


_QUIET = 0.002
"""Seconds after a ring before the next."""

_GRACE = 0.5
"""Seconds that Redis may be late to end a wait."""

_PATIENCE = 2.0
"""Seconds that one ring may take."""


class Doorbell:
    """Rings for the workers, off the request's path. Rings in quick succession become one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._wanted = asyncio.Event()
        self._ringer: asyncio.Task[None] | None = None
        self._log = RateLimitedLogger(logger)
        self._closing = False
        self._quiet_until = 0.0

    async def __aenter__(self) -> "Doorbell":
        self._ringer = asyncio.create_task(self._ring_when_wanted(), name="doorbell")
        return self

    async def __aexit__(self, *_: object) -> None:
        # Asked to end, not cancelled: redis-py swallows a cancellation that meets it while it connects.
        self._closing = True
        self._wanted.set()
        if self._ringer is not None:
            # An error that has already ended it is not raised again here.
            await asyncio.gather(self._ringer, return_exceptions=True)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The task that rings; it does not end before the exit."""
        return [self._ringer] if self._ringer is not None else []

    def ring(self) -> None:
        """Ask for a ring; returns at once and never fails."""
        self._wanted.set()

    async def _ring_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            if self._closing:
                return
            self._wanted.clear()
            try:
                # A worker that was woken drains what is there: a ring a few milliseconds after another tells nothing.
                await asyncio.sleep(self._quiet_until - monotonic())
                async with asyncio.timeout(_PATIENCE):
                    await self._ring_now()
                self._quiet_until = monotonic() + _QUIET
            except (RedisError, OSError, TimeoutError) as error:
                self._log.warning("doorbell is silent, workers fall back to polling: %s", error)

    async def _ring_now(self) -> None:
        # Where workers listen, the list is short: one command, and not the cost of a pipeline.
        if await self._redis.lpush(KEY, b"1") > RINGS_KEPT:  # type: ignore[misc]
            await self._redis.ltrim(KEY, 0, RINGS_KEPT - 1)  # type: ignore[misc]


class DoorbellListener:
    """A worker's ear: waits for a ring, at most for a while."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def wait(self, seconds: float) -> bool:
        """Return at a ring or after `seconds`, and whether it rang; without Redis, after `seconds`."""
        try:
            # Redis ends the wait; ours is for a Redis that does not answer. Cut short, it would cost the connection.
            async with asyncio.timeout(seconds + _GRACE):
                try:
                    # As a raw command: the typed method promises whole seconds only. A timeout of 0 means for ever.
                    rang = await self._redis.execute_command("BLPOP", KEY, max(seconds, 0.001))  # type: ignore[no-untyped-call]
                    return rang is not None
                except (RedisError, OSError):
                    await asyncio.sleep(seconds)
        except TimeoutError:
            pass
        return False
