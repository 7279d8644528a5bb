"""What this worker did, written every ten seconds for the console's charts."""

import asyncio
import logging
from uuid import UUID

from services.history import service
from services.history.models import SLOT
from services.history.schemas import Done
from services.logs import RateLimitedLogger
from services.outbox import metrics
from services.shielding import end
from services.unit_of_work import OpenUnitOfWork, background
from worker.poller import Progress

logger = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Time limit for a write, in seconds."""


class History:
    """Writes to the history from entry to exit. What cannot be written now is written with the next row."""

    def __init__(self, open_unit_of_work: OpenUnitOfWork, progress: Progress, worker_id: UUID) -> None:
        self._open = open_unit_of_work
        self._progress = progress
        self._worker_id = worker_id
        self._written = self._done()
        self._log = RateLimitedLogger(logger)
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "History":
        self._writing = asyncio.create_task(self._write_for_ever(), name="history")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writing is not None:
            await end(self._writing)
        await self._try_to_write()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The task that writes; it runs until exit."""
        return [self._writing] if self._writing is not None else []

    async def write(self) -> None:
        """Write what was done since the last time. Database errors propagate."""
        done = self._done()
        async with background(self._open) as uow:
            await service.write(uow, self._worker_id, done.since(self._written))
        self._written = done

    def _done(self) -> Done:
        progress = self._progress
        queued, queue_seconds = metrics.queue_times()
        return Done(
            progress.processed,
            progress.retried,
            progress.buried,
            progress.batches,
            progress.rolled_back,
            progress.rung,
            progress.polled,
            queued,
            queue_seconds,
        )

    async def _write_for_ever(self) -> None:
        while True:
            await self._try_to_write()
            await asyncio.sleep(SLOT)

    async def _try_to_write(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.write()
        except Exception as error:  # noqa: BLE001  (charts must not disturb the work)
            self._log.warning("the history was not written: %r", error)
