"""The consumers of the event log in one worker: which of them it runs, and what happens when one fails."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from uuid import UUID

from services.fields import made_storable
from services.logs import RateLimitedLogger, Shown, bind
from services.outbox.consumers import LeaseLost, claim
from services.outbox.log import service as log
from services.outbox.log.schemas import Lease
from services.outbox.sink import AnyConsumer, SinkUnusable, run
from services.shielding import end
from services.unit_of_work import OpenUnitOfWork, UnitOfWork, background

logger = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds for which a worker holds a consumer after each batch or renewal."""

_IDLE = 1.0
"""Seconds until the first look at the log after one that found nothing new; doubled each time."""

_LONGEST_IDLE = 16
"""How many times as long the wait between two looks becomes at most."""

_GATHERINGS = 4
"""The most reads of the log in `_IDLE` seconds by a consumer that keeps up."""

_CLAIM = 5.0
"""Seconds between two attempts to take a consumer that another worker runs, that is paused, or that has failed."""

_LONGEST_WAIT = 10.0
"""The most seconds between two attempts while the database cannot be reached."""

_PATIENCE = 5.0
"""Time limit for one transaction on a consumer's row, in seconds."""

_LONGEST_ERROR = 500


class Follower:
    """Runs consumers, from `start` to `stop`; each has its own task, so one that fails or hangs stops no other.

    A consumer is claimed by a lease on its row. A batch renews it; it is also renewed before a batch that it might not
    outlast, and given back on `stop`. A worker that was suspended for longer finds at the end of its batch that it has
    lost the lease, and rolls back.
    """

    def __init__(
        self,
        open_unit_of_work: OpenUnitOfWork,
        consumers: Sequence[AnyConsumer[UnitOfWork]],
        owner: UUID,
        *,
        lease: float = LEASE,
        processed: Callable[[], int] = lambda: 0,
    ) -> None:
        """`processed` counts what this worker has done. If it changes, the log has something new."""
        self._running = [_Running(open_unit_of_work, one, owner, lease, processed) for one in consumers]

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks started by `start`; none of them ends before `stop`."""
        return [one.task for one in self._running if one.task is not None]

    def signs(self) -> dict[str, object]:
        """For each batch that has exceeded its time limit: when it should have ended. The value stays until it ends."""
        overdue = {f"log consumer {one.name}": one.ends_at for one in self._running if one.ends_at is not None}
        return {name: ends_at for name, ends_at in overdue.items() if ends_at < monotonic()}

    def start(self) -> None:
        for one in self._running:
            one.task = asyncio.create_task(one.run(), name=f"log consumer {one.name}")

    def be_quiet(self, quiet: bool) -> None:
        """Give the consumers back after their running batches, for other workers, or claim them again."""
        for one in self._running:
            one.quiet = quiet

    async def stop(self, grace: float) -> None:
        """Let running batches finish for `grace` seconds, roll the others back, and give the leases back."""
        for one in self._running:
            one.stopping.set()
        if not self.tasks:
            return
        _, running = await asyncio.wait(self.tasks, timeout=grace)
        if running:
            logger.warning(
                "log consumers take long to finish; their batches are rolled back",
                extra={"consumers": sorted(task.get_name() for task in running)},
            )
        await end(*self.tasks)


class _Running:
    """One consumer in this worker."""

    def __init__(
        self,
        open_unit_of_work: OpenUnitOfWork,
        consumer: AnyConsumer[UnitOfWork],
        owner: UUID,
        lease: float,
        processed: Callable[[], int],
    ) -> None:
        self._open = open_unit_of_work
        self._processed = processed
        self._idle = _IDLE
        self._consumer = consumer
        self._owner = owner
        self._seconds = lease
        self._limit = consumer.batch
        self._lease: Lease | None = None
        self._held_until = 0.0
        self._log = RateLimitedLogger(logger)
        self.name = consumer.name
        self.ends_at: float | None = None
        """When the running batch must have ended, by `monotonic()`; None between batches."""
        self.stopping = asyncio.Event()
        self.quiet = False
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Follow the log until told to stop; then give the lease back. If that fails, the lease expires."""
        try:
            await self._run()
        finally:
            with suppress(Exception):
                await self._give_back()

    async def _give_back(self) -> float:
        """Let another worker have it; returns how many seconds to wait before the next step."""
        if self._lease is not None:
            async with asyncio.timeout(_PATIENCE), background(self._open) as uow:
                await uow.log.release(self.name, self._lease)
            self._lease = None
        return _CLAIM

    async def _run(self) -> None:
        failures = 0
        # This task runs nothing else.
        bind(consumer=self.name)
        while not self.stopping.is_set():
            try:
                wait = await (self._give_back() if self.quiet else self._step())
                failures = 0
            except Exception as error:  # noqa: BLE001  (whatever it is, the next round may succeed)
                failures += 1
                wait = min(_LONGEST_WAIT, 0.25 * 2.0 ** min(failures, 10))
                self._log.warning("cannot run the log consumer %s, next attempt in %.2f s: %r", self.name, wait, error)
            await self._rest(wait)

    async def _rest(self, seconds: float) -> None:
        """Wait this long, but not longer than until this worker has processed something, or is told to stop."""
        before, ends_at = self._processed(), monotonic() + seconds
        while monotonic() < ends_at and self._processed() == before and not self.stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_IDLE, ends_at - monotonic())):
                    await self.stopping.wait()

    async def _step(self) -> float:
        """Claim it, or handle a batch; returns how many seconds to wait before the next step."""
        if self._lease is None and not await self._claim():
            return _CLAIM
        if self._lease is not None and not await self._lasts():
            return 0.0
        try:
            return await self._batch()
        except LeaseLost as error:
            self._lease = None
            self._log.warning("%s", error)
            return 0.0
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            return await self._failed(error)

    async def _claim(self) -> bool:
        asked_at = monotonic()
        async with asyncio.timeout(_PATIENCE), background(self._open) as uow:
            lease = await claim(uow, self._consumer, self._owner, self._seconds)
        self._lease = lease
        self._held_until = asked_at + self._seconds
        return lease is not None

    async def _lasts(self) -> bool:
        """Renew the lease if the next batch might outlast it; returns False if it is lost."""
        assert self._lease is not None
        asked_at = monotonic()
        if self._held_until - asked_at > self._seconds / 2:
            return True
        async with asyncio.timeout(_PATIENCE), background(self._open) as uow:
            held = await log.renew(uow, self.name, self._lease)
        self._held_until = asked_at + self._seconds
        if not held:
            self._lease = None
        return held

    async def _batch(self) -> float:
        assert self._lease is not None
        asked_at = monotonic()
        self.ends_at = asked_at + self._consumer.time_limit
        try:
            async with asyncio.timeout(self._consumer.time_limit):
                batch = await run(self._open, self._consumer, self._lease, self._limit)
        finally:
            self.ends_at = None
        if batch.next is not None:
            self._held_until = asked_at + self._seconds
            self._limit = min(self._consumer.batch, 2 * self._limit)
        if batch.more or len(batch.events):
            self._idle = _IDLE
            # What arrives meanwhile is read together. A read for each event or two would take as many trips as its
            # processing, from the same process.
            return 0.0 if batch.more else _IDLE / _GATHERINGS
        wait, self._idle = self._idle, min(2 * self._idle, _LONGEST_IDLE * _IDLE)
        return wait

    async def _failed(self, error: BaseException) -> float:
        """Try a smaller batch immediately; note the failure of a single event, and give the lease back.

        It does so even if the events are not the cause.
        """
        assert self._lease is not None
        if isinstance(error, SinkUnusable):
            self._log.warning("cannot run the log consumer %s: %s", self.name, error)
        else:
            self._log.warning("the log consumer %s failed on a batch of up to %d: %r", self.name, self._limit, error)
            if self._limit > 1:
                self._limit //= 2
                return 0.0
        shown = str(error) if isinstance(error, SinkUnusable) else repr(Shown(error))
        if isinstance(error, TimeoutError):
            shown = f"it did not end within {self._consumer.time_limit:g} s"
        async with asyncio.timeout(_PATIENCE), background(self._open) as uow:
            await uow.log.fail(self.name, self._lease, made_storable(shown)[:_LONGEST_ERROR])
        self._lease = None
        return _CLAIM
