"""A bounded share of the connection pool for requests that write, so that reads are not blocked."""

import asyncio
from contextvars import ContextVar
from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only

writes: ContextVar[bool] = ContextVar("writes", default=False)
"""Whether this is the context of a request that may write, and so may wait for a lock."""


class SharingPool(AsyncAdaptedQueuePool):
    """A pool of which requests that write may use at most three quarters. They hold a place only with a connection.

    Raises SQLAlchemy's `TimeoutError` if no place is free within the pool's timeout. Places are given out in the order
    in which they were requested.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._count = max(1, (self.size() + self._max_overflow) * 3 // 4)
        self._places = asyncio.Semaphore(self._count)

    def _do_get(self) -> ConnectionPoolEntry:
        if not writes.get():
            return super()._do_get()
        await_only(self._take_place())
        # The pool may call this method again, for the same connection.
        without_another = writes.set(False)
        try:
            entry = super()._do_get()
        except BaseException:
            self._places.release()
            raise
        finally:
            writes.reset(without_another)
        # Kept apart from the connection, which may be replaced while it is in use.
        entry.record_info["place"] = True  # type: ignore[index]
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.record_info and record.record_info.pop("place", False):
            self._places.release()
        super()._do_return_conn(record)

    async def _take_place(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(self.timeout()):
                await self._places.acquire()
        except TimeoutError as error:
            message = f"no connection for a write within {self.timeout():g} s: {self._count} are in use"
            raise PoolTimeout(message) from error
