"""Bounded shares of the connection pool: requests that write do not block reads, and neither blocks group commit."""

import asyncio
from collections.abc import Iterable
from contextvars import ContextVar
from enum import Enum
from time import monotonic
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only


class Use(Enum):
    """What a connection is for."""

    read = "a read"
    write = "a write"
    """Of a request that may wait for a lock."""
    commit = "a group"
    """Requests of many callers, carried out together."""


use: ContextVar[Use] = ContextVar("use", default=Use.read)

_KEPT = 2
"""Connections that are reserved for group commit: one for orders, one for transfers."""


class SharingPool(AsyncAdaptedQueuePool):
    """A pool of which everything but group commit may use all but two connections, and writes three quarters of these.

    In a small pool, fewer are reserved: at most a quarter. Requests hold a place only with a connection. Raises
    SQLAlchemy's `TimeoutError` if no place is free within the pool's timeout. Places are given out in the order of the
    requests for them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        whole = self.size() + self._max_overflow
        count = whole - min(_KEPT, whole // 4)
        everyone = _Share(count)
        self._shares = {Use.read: [everyone], Use.write: [_Share(max(1, count * 3 // 4)), everyone], Use.commit: []}

    def _do_get(self) -> ConnectionPoolEntry:
        wanted = use.get()
        taken: list[_Share] = []
        deadline = monotonic() + self.timeout()
        # The pool may call this method again, for the same connection.
        without_another = use.set(Use.commit)
        try:
            for share in self._shares[wanted]:
                await_only(share.take(wanted, deadline, self.timeout()))
                taken.append(share)
            entry = super()._do_get()
        except BaseException:
            _give_back(taken)
            raise
        finally:
            use.reset(without_another)
        # Kept apart from the connection, which may be replaced while it is in use.
        entry.record_info["places"] = taken  # type: ignore[index]
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.record_info:
            _give_back(record.record_info.pop("places", ()))
        super()._do_return_conn(record)


class _Share:
    """How many connections may be used for something at the same time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._places = asyncio.Semaphore(count)

    async def take(self, wanted: Use, deadline: float, seconds: float) -> None:
        """Raises SQLAlchemy's `TimeoutError` if no place is free by the deadline. `seconds` is the whole time limit."""
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(deadline - monotonic()):
                await self._places.acquire()
        except TimeoutError as error:
            message = f"no connection for {wanted.value} within {seconds:g} s: {self._count} are in use"
            raise PoolTimeout(message) from error

    def give_back(self) -> None:
        self._places.release()


def _give_back(shares: Iterable[_Share]) -> None:
    for share in shares:
        share.give_back()
