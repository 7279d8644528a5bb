"""The doorbell: a best-effort wake-up through Redis after a commit. Losing it costs latency, never an event."""

import asyncio
import logging
from contextlib import AbstractContextManager
from time import monotonic

from opentelemetry.trace import Span, SpanKind
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services import tracing
from services.logs import RateLimitedLogger

logger = logging.getLogger(__name__)

RINGS_KEPT = 4
"""A burst of commits wakes a few idle workers, and rings do not pile up while no worker is running."""


_QUIET = 0.002
"""The shortest time between two rings, in seconds."""

_QUIET_IF_UNHEARD = 0.05
"""The same after a ring that found as many as are kept: no worker is idle, and the next one that is finds those."""

_GRACE = 0.5
"""How late Redis may be in ending a wait, in seconds."""

_PATIENCE = 2.0
"""The timeout for one ring, in seconds."""


class Doorbell:
    """Wakes the workers that listen at `key`, without delaying the request.

    Rings in quick succession are merged into one.
    """

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key
        self._wanted = asyncio.Event()
        self._ringer: asyncio.Task[None] | None = None
        self._log = RateLimitedLogger(logger)
        self._closing = False
        self._quiet_until = 0.0
        self._asked: list[str] = []
        """The spans that have asked for the next ring, if there are spans."""

    async def __aenter__(self) -> "Doorbell":
        self._ringer = asyncio.create_task(self._ring_when_wanted(), name="doorbell")
        return self

    async def __aexit__(self, *_: object) -> None:
        # Asked to stop, not cancelled: redis-py swallows a cancellation that arrives while it is connecting.
        self._closing = True
        self._wanted.set()
        if self._ringer is not None:
            # If the task has already failed, its error is not raised again here.
            await asyncio.gather(self._ringer, return_exceptions=True)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The task that rings; it runs until the context manager exits."""
        return [self._ringer] if self._ringer is not None else []

    def ring(self) -> None:
        """Request a ring. Returns immediately and never fails."""
        if tracing.is_on() and len(self._asked) < tracing.MOST_LINKS:
            self._asked.append(tracing.traceparent_of(tracing.current().get_span_context()))
        self._wanted.set()

    async def _ring_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            if self._closing:
                return
            self._wanted.clear()
            try:
                # A woken worker drains the outbox, so a ring a few milliseconds after another adds nothing.
                await asyncio.sleep(self._quiet_until - monotonic())
                with self._span():
                    async with asyncio.timeout(_PATIENCE):
                        was_unheard = await self._ring_now()
                self._quiet_until = monotonic() + (_QUIET_IF_UNHEARD if was_unheard else _QUIET)
            except (RedisError, OSError, TimeoutError) as error:
                self._log.warning("cannot ring the doorbell, workers fall back to polling: %s", error)

    def _span(self) -> AbstractContextManager[Span]:
        links, self._asked = tracing.links_to(self._asked), []
        return tracing.span("ring the doorbell", SpanKind.PRODUCER, is_root=True, links=links)

    async def _ring_now(self) -> bool:
        """Ring. Returns whether no worker has heard the last few rings."""
        # While workers listen, the list stays short, and one command is cheaper than a pipeline.
        if await self._redis.lpush(self._key, b"1") <= RINGS_KEPT:  # type: ignore[misc]
            return False
        await self._redis.ltrim(self._key, 0, RINGS_KEPT - 1)  # type: ignore[misc]
        return True


class DoorbellListener:
    """The worker's end of the doorbell: waits for a ring, up to a timeout."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most for `seconds`, and return whether it rang. Without Redis, wait for `seconds`."""
        try:
            # Redis ends the wait; our timeout is for a Redis that does not answer. It is longer, because cutting a
            # wait short would cost the connection.
            async with asyncio.timeout(seconds + _GRACE):
                try:
                    # A raw command, because the typed method accepts whole seconds only. A timeout of 0 means forever.
                    rang = await self._redis.execute_command("BLPOP", self._key, max(seconds, 0.001))  # type: ignore[no-untyped-call]
                    return rang is not None
                except (RedisError, OSError):
                    await asyncio.sleep(seconds)
        except TimeoutError:
            pass
        return False
