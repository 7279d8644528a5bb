"""The poll loop of one worker: doorbell or timer, then drain."""

import asyncio
import logging
import random
from contextlib import suppress
from time import monotonic

from services.outbox.doorbell import DoorbellListener
from services.outbox.processor import Processor
from services.unit_of_work import UnitOfWork

logger = logging.getLogger(__name__)

_MAX_BACKOFF = 10.0
"""Seconds between tries at most while the database cannot be reached."""


class Poller:
    """Drains the outbox on a ring of the doorbell, or at the latest after the poll interval (seconds).

    It needs only the database: without Redis it goes on by the timer.
    """

    def __init__(self, processor: Processor[UnitOfWork], listener: DoorbellListener, poll_interval: float) -> None:
        self._processor = processor
        self._listener = listener
        self._interval = poll_interval
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.processed = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="outbox-poller")

    async def stop(self, grace: float) -> None:
        """Let the running batch finish for `grace` seconds; then roll it back."""
        self._stopping.set()
        if self._task is None:
            return
        _, running = await asyncio.wait([self._task], timeout=grace)
        if running:
            logger.warning("the running batch took longer than %.1f s to finish; it is rolled back", grace)
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._drain()
                failures = 0
                await self._pause(self._interval)
            except Exception as error:  # noqa: BLE001  (whatever it is, the loop must go on)
                # The batch was rolled back; its events are still there.
                failures += 1
                backoff = min(_MAX_BACKOFF, 0.05 * 2 ** min(failures, 20)) * random.uniform(0.5, 1.0)  # noqa: S311
                logger.warning("outbox batch rolled back, next try in %.2f s: %r", backoff, error)
                await self._pause(backoff, ring=False)

    async def _drain(self) -> None:
        more = True
        while more and not self._stopping.is_set():
            started = monotonic()
            outcome = await self._processor.run_once()
            self.processed += outcome.processed
            more = outcome.more
            if outcome.processed or outcome.retried or outcome.buried:
                logger.debug(
                    "batch: %d processed, %d to retry, %d buried, %.1f ms",
                    outcome.processed,
                    outcome.retried,
                    outcome.buried,
                    (monotonic() - started) * 1000,
                )

    async def _pause(self, seconds: float, *, ring: bool = True) -> None:
        """Wait for the doorbell, for `seconds`, or for the stop, whichever is first."""
        stopping = asyncio.create_task(self._stopping.wait())
        sleeping = asyncio.create_task(self._listener.wait(seconds) if ring else asyncio.sleep(seconds))
        try:
            await asyncio.wait([stopping, sleeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, sleeping):
                task.cancel()
            await asyncio.gather(stopping, sleeping, return_exceptions=True)
