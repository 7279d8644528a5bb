"""A bounded share of the connection pool for one kind of request, so that the others go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.settings import Settings


class Share:
    """Places for requests that may each use a connection. They are given out in the order they were asked for."""

    def __init__(self, places: int, patience: float) -> None:
        self._places = asyncio.Semaphore(places)
        self._count = places
        self._patience = patience

    @classmethod
    def of_writes(cls, settings: Settings) -> "Share":
        """Three quarters of the pool: the rest is for reads, which wait for no one's locks."""
        connections = settings.database_pool_size + settings.database_max_overflow
        return cls(max(1, connections * 3 // 4), settings.database_pool_timeout)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place for the block. Raises SQLAlchemy's `TimeoutError` where none is free in time."""
        if self._places.locked():
            try:
                async with asyncio.timeout(self._patience):
                    await self._places.acquire()
            except TimeoutError as error:
                raise PoolTimeout(
                    f"no connection for a write within {self._patience:g} s: {self._count} are in use"
                ) from error
        else:
            await self._places.acquire()
        try:
            yield
        finally:
            self._places.release()
