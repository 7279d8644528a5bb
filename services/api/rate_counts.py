"""Counting requests against limits that all API processes share, mostly without a trip to Redis.

Each process owns a small part of every limit, so that most callers cost no trip. Of the rest, which they share, it
takes another such part from Redis at a time, and gives it out by itself. So the processes together never let through
more than the limit while Redis answers. While it does not, each process gives out its share of each limit.
`docs/decisions/0047-limits-per-caller.md` says why.
"""

import asyncio
import logging
from collections import OrderedDict
from math import ceil
from time import monotonic
from typing import Any, NamedTuple
from zlib import crc32

from limits.aio.storage import RedisStorage
from redis.asyncio import BlockingConnectionPool

from services.api import rate_metrics as metrics
from services.clock import CLOCK
from services.logs import RateLimitedLogger
from services.settings import Settings

logger = logging.getLogger(__name__)
trouble = RateLimitedLogger(logger)

WINDOW = 60
"""Seconds for which the limit is counted. Then the count begins again."""

PARTS = 40
"""Into how many parts a limit is divided, and each of these among the processes.

What the processes own or have taken last and do not use is lost to the others: at most two parts in total, 5 % of the
limit.
"""

PATIENCE = 0.1
"""Seconds that a request waits for Redis. A healthy one answers in less than a millisecond."""

PAUSE = 5.0
"""Seconds for which Redis is left alone after it has not answered."""

_CONNECTIONS = 4
_MOST_CALLERS = 50_000
"""The most callers whose counts are kept, times the classes that they use: about 20 MiB."""


class Quota(NamedTuple):
    """A limit on the requests of each caller."""

    name: str
    most: int
    """The requests in a window."""


class Taken(NamedTuple):
    """Whether one more request is within the limit, how many there may be after it, and when the count begins again."""

    granted: bool
    left: int
    resets_in: int
    """In seconds, rounded up."""


class _Count:
    """What this process knows of one caller's requests of one class, in one window."""

    __slots__ = ("granted", "rest", "trip", "used", "waiting", "window")

    def __init__(self, window: int, own: int, shared: int) -> None:
        self.window = window
        self.used = 0
        """The requests that this process has let through."""
        self.granted = own
        """How many it may let through: what it owns, and what it has taken from Redis."""
        self.rest = shared
        """What was left in Redis when it last answered."""
        self.trip: asyncio.Task[None] | None = None
        self.waiting = 0


class Counts:
    """The counts of one process, from entry to exit. `processes` is how many processes share the limits."""

    def __init__(self, redis_url: str, prefix: str, processes: int) -> None:
        self._processes = processes
        # A pool of its own: other users of Redis have more patience.
        self._pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=_CONNECTIONS,
            timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            socket_timeout=PATIENCE,
        )
        options: dict[str, Any] = {"connection_pool": self._pool}
        self._storage = RedisStorage("redis://", implementation="redispy", key_prefix=prefix, **options)
        self._counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()
        self._trips: set[asyncio.Task[None]] = set()
        self._silent_until: float | None = None
        """None while Redis answers; otherwise when it is asked again, in the time of `monotonic`."""

    @classmethod
    def from_settings(cls, settings: Settings, prefix: str) -> "Counts":
        return cls(settings.redis_url, prefix, settings.api_processes)

    async def __aenter__(self) -> "Counts":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._trips, return_exceptions=True)
        await self._pool.disconnect()

    async def take(self, quota: Quota, caller: str) -> Taken:
        """Count a request of this caller, unless it is beyond the limit. It never fails, and rarely waits."""
        # Callers begin their windows at different times, so that not all of them come back in the same second.
        at = CLOCK.time() + crc32(caller.encode()) % WINDOW
        window = int(at // WINDOW)
        resets_in = max(1, ceil((window + 1) * WINDOW - at))
        count = self._count_of(quota, caller, window)
        while count.used >= count.granted:
            if count.rest <= 0:
                return Taken(False, 0, resets_in)
            if self._silent_until is not None:
                self._try_again(quota, caller, count)
                return self._take_share(quota, count, resets_in)
            await self._wait(self._trip(quota, caller, count), count)
        count.used += 1
        return Taken(True, count.rest + count.granted - count.used, resets_in)

    def _take_share(self, quota: Quota, count: _Count, resets_in: int) -> Taken:
        """Without Redis: what this process may let through if all get the same number of requests."""
        most = max(count.granted, ceil(quota.most / self._processes))
        if count.used >= most:
            return Taken(False, 0, resets_in)
        count.used += 1
        return Taken(True, most - count.used, resets_in)

    def _part_of(self, quota: Quota) -> int:
        """What each process owns of the limit, and takes of the rest at a time if it is not 0."""
        return quota.most // (PARTS * self._processes)

    def _count_of(self, quota: Quota, caller: str, window: int) -> _Count:
        name = quota.name, caller
        count = self._counts.get(name)
        if count is None or count.window != window:
            own = self._part_of(quota)
            count = self._counts[name] = _Count(window, own, quota.most - own * self._processes)
            if len(self._counts) > _MOST_CALLERS:
                self._counts.popitem(last=False)
        self._counts.move_to_end(name)
        return count

    def _trip(self, quota: Quota, caller: str, count: _Count) -> asyncio.Task[None]:
        """The trip that is under way for this count, or a new one."""
        if count.trip is None:
            count.trip = asyncio.create_task(self._ask(quota, caller, count), name="rate limit")
            self._trips.add(count.trip)
            count.trip.add_done_callback(self._trips.discard)
        return count.trip

    async def _wait(self, trip: asyncio.Task[None], count: _Count) -> None:
        count.waiting += 1
        try:
            # Not `timeout`: a trip is for all who wait, and redis-py may swallow a cancellation.
            done, _ = await asyncio.wait((trip,), timeout=PATIENCE)
        finally:
            count.waiting -= 1
        if not done:
            self._note_silence("no answer")

    async def _ask(self, quota: Quota, caller: str, count: _Count) -> None:
        """Take a part of the limit, and what was let through without Redis. All who wait share the part."""
        own = self._part_of(quota)
        shared = quota.most - own * self._processes
        amount = max(1, own, count.waiting) + max(0, count.used - count.granted)
        metrics.trips.inc()
        try:
            total = await self._storage.incr(f"{quota.name}:{caller}:{count.window}", 2 * WINDOW, amount)
        except Exception as error:  # noqa: BLE001  (whatever it is, requests are counted without Redis)
            self._note_silence(error)
            return
        finally:
            count.trip = None
        count.granted += min(amount, max(0, shared - (total - amount)))
        count.rest = max(0, shared - total)
        if self._silent_until is not None:
            logger.info("rate limits: Redis answers again, and the processes count together")
            self._silent_until = None
            metrics.shared.set(1)

    def _try_again(self, quota: Quota, caller: str, count: _Count) -> None:
        """After a pause, ask Redis once more, while requests continue without it."""
        assert self._silent_until is not None
        if monotonic() >= self._silent_until:
            self._silent_until = monotonic() + PAUSE
            self._trip(quota, caller, count)

    def _note_silence(self, why: object) -> None:
        trouble.warning("rate limits: Redis does not answer, and each process counts alone: %r", why)
        self._silent_until = monotonic() + PAUSE
        metrics.shared.set(0)
