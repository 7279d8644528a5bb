"""The loop that runs bulk actions in one worker, chunk by chunk. It needs only the database."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from uuid import UUID

from services.acting import acting_as
from services.logs import RateLimitedLogger
from services.outbox.bulk import service as bulk
from services.outbox.bulk.schemas import Claimed, Progress
from services.outbox.subscription import AnySubscription
from services.shielding import end
from services.unit_of_work import OpenUnitOfWork, UnitOfWork, background
from worker.failures import Failures

logger = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks for an action while others run all that there are, or none is due."""

_PATIENCE = 5.0
"""Time limit for writing that a chunk failed, in seconds."""

_LONGEST_WAIT = 10.0
"""The most seconds between two attempts while the database cannot be reached."""

_CHUNKS = "every chunk of a bulk action"


class BulkRunner:
    """Runs bulk actions, from `start` to `stop`.

    Each chunk is one transaction, which locks the action's row: no other worker runs the same action meanwhile. If this
    worker is killed, the server rolls the chunk back and releases the row, and any worker continues from there.
    """

    def __init__(
        self,
        open_unit_of_work: OpenUnitOfWork,
        subscriptions: Sequence[AnySubscription[UnitOfWork]],
        owner: UUID,
        *,
        time_limit: float = 30.0,
        failures: Failures | None = None,
    ) -> None:
        """A chunk that takes longer than `time_limit` seconds is rolled back, and the next one is smaller.

        `failures` is what the worker's health check reports.
        """
        self._open = open_unit_of_work
        self._subscriptions = subscriptions
        self._owner = owner
        self._health = failures or Failures()
        self._time_limit = time_limit
        self._log = RateLimitedLogger(logger)
        self._stopping = asyncio.Event()
        self._expected = asyncio.Event()
        self._expected.set()
        self._quiet = False
        self._chunks = 0
        self._resting = True
        self.task: asyncio.Task[None] | None = None

    def signs(self) -> dict[str, object]:
        """A value that changes with each chunk, unless the loop waits for the next one."""
        return {} if self._resting else {"bulk actions": self._chunks}

    def start(self) -> None:
        self.task = asyncio.create_task(self._run(), name="bulk actions")

    def be_quiet(self, quiet: bool) -> None:
        """Leave the next chunks to other workers, or take them again."""
        self._quiet = quiet

    def expect(self, there_are: bool) -> None:
        """Look for actions, or stop looking until this is called again. The heartbeat knows whether there are any."""
        if there_are or self._stopping.is_set():
            self._expected.set()
        else:
            self._expected.clear()

    async def stop(self, grace: float) -> None:
        """Let the running chunk finish for `grace` seconds; after that it is rolled back."""
        self._stopping.set()
        self._expected.set()
        if self.task is None:
            return
        await asyncio.wait({self.task}, timeout=grace)
        await end(self.task)

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._resting = False
            try:
                with acting_as("job:bulk_actions"):
                    wait = 0.0 if not self._quiet and await self._chunk() else _LOOK
                failures = 0
                self._health.succeeded(_CHUNKS)
            except Exception as error:  # noqa: BLE001  (whatever it is, the next chunk may succeed)
                failures += 1
                wait = min(_LONGEST_WAIT, 0.25 * 2.0 ** min(failures, 10))
                self._health.failed(_CHUNKS, error)
                self._log.warning("a chunk of a bulk action failed, next attempt in %.2f s: %r", wait, error)
            self._chunks += 1
            self._resting = True
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()
            # A failure stays in the worker's health report until a look succeeds.
            if not failures:
                await self._expected.wait()

    async def _chunk(self) -> bool:
        """Do one chunk; returns False if no action is due, or other workers run them all."""
        claimed: Claimed | None = None
        started = monotonic()
        try:
            async with asyncio.timeout(self._time_limit), background(self._open) as uow:
                claimed = await uow.bulk.take()
                if claimed is None:
                    return False
                progress = await bulk.advance(uow, claimed, self._subscriptions, self._owner)
        except Exception as error:
            if claimed is not None:
                late = TimeoutError(f"the chunk did not end within {self._time_limit:g} s")
                await self._put_off(claimed, late if isinstance(error, TimeoutError) else error)
            raise
        if progress.place is None:
            logger.info("bulk action finished", extra={"bulk_action": str(claimed.id), "kind": claimed.kind.value})
        self._tell(claimed, progress, monotonic() - started)
        return True

    async def _put_off(self, claimed: Claimed, error: Exception) -> None:
        # If the database cannot be reached, the action stays due.
        with suppress(Exception):
            async with asyncio.timeout(_PATIENCE), background(self._open) as uow:
                await bulk.put_off(uow, claimed, error, self._owner)

    def _tell(self, claimed: Claimed, progress: Progress, seconds: float) -> None:
        if progress.failed:
            logger.error(
                "a bulk action could not be carried out on some events",
                extra={"bulk_action": str(claimed.id), "events": progress.failed, "error": progress.error},
            )
        logger.debug("chunk of a bulk action: %d events in %.2f s", progress.done, seconds)
