"""Streams of what the console shows: the numbers are read once for all who watch, and streams end with the server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from fastapi import Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.api.stopping import told_to_stop
from services.errors import Overloaded
from services.operations.overview import service
from services.operations.overview.schemas import Overview
from services.unit_of_work import OpenUnitOfWork

MOST = 50
"""Streams of one process at the same time."""

LASTS = 60.0
"""Seconds after which a stream ends. The browser asks for another one, and is refused if its session has ended."""

INTERVAL = 5.0
"""Seconds between two messages."""

_KEPT = 2.0
"""Seconds for which what was read is shown to everyone."""

_PATIENCE = 5.0

_NOT_READ = "the database did not answer in time; load the page again"


def live_of(request: Request) -> "Live":
    """What this application shows live."""
    live: Live = request.app.state.live
    return live


class Live:
    """What this process shows live. A stream holds no connection of the pool while it waits."""

    def __init__(self, open_unit_of_work: OpenUnitOfWork) -> None:
        self._open = open_unit_of_work
        self._stopping = asyncio.Event()
        self._reading = asyncio.Lock()
        self._read: Overview | None = None
        self._read_at = 0.0
        self._failed_at = 0.0
        self.streams = 0

    @contextmanager
    def served(self) -> Iterator["Live"]:
        """Its streams end at the end of the block, or when the server stops."""
        with told_to_stop(self._stopping.set):
            try:
                yield self
            finally:
                self._stopping.set()

    async def overview(self) -> Overview:
        """How the service goes, read at most two seconds ago.

        Raises what the database raises, and `Overloaded` if it does not answer in time.
        """
        asked_at = monotonic()
        async with self._reading:
            if self._read is None or monotonic() - self._read_at >= _KEPT:
                if self._failed_at >= asked_at:
                    # One after another, fifty streams would wait for minutes, and pages behind them.
                    raise Overloaded(_NOT_READ)
                self._read = await self._read_now()
                self._read_at = monotonic()
            return self._read

    async def _read_now(self) -> Overview:
        try:
            async with asyncio.timeout(_PATIENCE), self._open() as uow:
                return await service.overview(uow)
        except TimeoutError as error:
            self._failed_at = monotonic()
            raise Overloaded(_NOT_READ) from error
        except (DBAPIError, PoolTimeout, OSError):
            self._failed_at = monotonic()
            raise

    def check_room(self) -> None:
        """Raises `Overloaded` if this process has as many streams as it may have."""
        if self.streams >= MOST or self._stopping.is_set():
            raise Overloaded("too many pages show live numbers; reload the page to see newer ones")

    async def messages(self, show: Callable[[Overview | None], bytes]) -> AsyncIterator[bytes]:
        """What `show` makes of the overview, every few seconds; of None while it cannot be read."""
        self.streams += 1
        try:
            ends_at = monotonic() + LASTS
            while monotonic() < ends_at and not self._stopping.is_set():
                try:
                    found = await self.overview()
                except (DBAPIError, PoolTimeout, OSError, Overloaded):
                    found = None
                yield show(found)
                try:
                    async with asyncio.timeout(INTERVAL):
                        await self._stopping.wait()
                except TimeoutError:
                    pass
        finally:
            self.streams -= 1
