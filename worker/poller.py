"""The poll loops of one worker: they wait for the doorbell or a timer, then drain the outbox."""

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from services.fields import now
from services.logs import RateLimitedLogger
from services.outbox.doorbell import DoorbellListener
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.shielding import end
from services.unit_of_work import UnitOfWork
from worker import metrics
from worker.failures import Failures

logger = logging.getLogger(__name__)

_MAX_BACKOFF = 10.0
"""The most seconds between attempts while the database cannot be reached."""

_BLOCKED_AGAIN = 0.01
"""Seconds until the next attempt at events that another worker's transaction blocks; doubled each time."""

_BLOCKED_LONG = 1.0
"""The most seconds until the next attempt at blocked events."""

_SHARED = 0.02
"""Seconds that a call waits for the first loop before another loop takes it."""

_SOONEST = 10
"""The most timed checks per poll interval, while each finds events for which the doorbell did not ring."""

_UPKEEP = 15.0
"""Seconds between checks for events that no worker of this release can process."""


@dataclass(slots=True)
class Progress:
    """What the poll loops have done since the worker started. Durations are seconds."""

    batches: int = 0
    processed: int = 0
    retried: int = 0
    buried: int = 0
    rolled_back: int = 0
    last_batch_at: datetime | None = None
    last_batch_seconds: float = 0.0
    rung: int = 0
    """How often the doorbell led to a look at the outbox."""
    polled: int = 0
    """How often a timed look found events for which it had not rung."""
    alive_at: dict[str, float] = field(default_factory=dict)
    """When each loop last began a round, by the monotonic clock, which is never stepped."""
    failures: Failures = field(default_factory=Failures)

    def add(self, outcome: Outcome, seconds: float) -> None:
        self.processed += outcome.processed
        self.retried += outcome.retried
        self.buried += outcome.buried
        if outcome.processed or outcome.retried or outcome.buried:
            self.batches += 1
            metrics.batch_events.observe(outcome.processed + outcome.retried + outcome.buried)
            metrics.batch_seconds.observe(seconds)
            self.last_batch_at, self.last_batch_seconds = now(), seconds


class Poller:
    """Drains the outbox when the doorbell rings, or at the latest after the poll interval (seconds).

    Each processor has its own loop; one listener, the ear, calls them all. The first loop answers the calls; the others
    help if it finds more than it can take in one batch, or is busy for long. A few events are best left to one loop,
    which takes those that arrive meanwhile together and waits for no one else's locks. Polling needs only the database:
    without Redis it relies on the timer, and polls faster while there are events. While there is nothing to do, it
    queries the database once per interval.
    """

    def __init__(
        self, processors: Sequence[Processor[UnitOfWork]], listener: DoorbellListener, poll_interval: float
    ) -> None:
        self._processors = processors
        self._listener = listener
        self._interval = poll_interval
        self._stopping = asyncio.Event()
        self._quiet = False
        # Whether each loop has been called. Two calls are as good as one: a loop takes all there is.
        self._called = [asyncio.Event() for _ in processors]
        self._sharing: asyncio.TimerHandle | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._helpers: list[asyncio.Task[None]] = []
        self._log = RateLimitedLogger(logger)
        self.progress = Progress()

    def start(self) -> None:
        self._call()
        for number, processor in enumerate(self._processors):
            name = f"outbox-{number}"
            self._loops.append(asyncio.create_task(self._run(processor, number, name), name=name))
        self._helpers.append(asyncio.create_task(self._listen(self._processors[0]), name="outbox-ear"))
        self._helpers.append(asyncio.create_task(self._keep_up(self._processors[0]), name="outbox-upkeep"))

    async def stop(self, grace: float) -> None:
        """Let the running batches finish for `grace` seconds; then roll them back."""
        self._stopping.set()
        for called in self._called:
            called.set()
        await end(*self._helpers)
        if not self._loops:
            return
        _, running = await asyncio.wait(self._loops, timeout=grace)
        if running:
            logger.warning("the running batch took longer than %.1f s to finish; it is rolled back", grace)
        await end(*self._loops)

    def be_quiet(self, quiet: bool) -> None:
        """Take no more events after the running batches, or take them again."""
        self._quiet = quiet
        if not quiet:
            self._call()

    def be_wary(self) -> None:
        """Another worker was killed: process the next batches as if one of their events had killed it."""
        for processor in self._processors:
            processor.be_wary()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The tasks started by `start`; none of them ends before `stop`."""
        return [*self._loops, *self._helpers]

    def _call(self) -> None:
        """Have a loop check the outbox, immediately or as soon as one is free."""
        self._called[0].set()
        if self._sharing is None and len(self._processors) > 1:
            self._sharing = asyncio.get_running_loop().call_later(_SHARED, self._share)

    def _share(self) -> None:
        self._sharing = None
        if self._called[0].is_set():
            self._called[1].set()

    async def _listen(self, processor: Processor[UnitOfWork]) -> None:
        """Call when the doorbell rings, and when a timed check finds something.

        If such checks lead to batches, the doorbell is silent and more events may arrive without a ring: the time to
        the next check is halved each time, until one finds nothing.
        """
        soonest = self._interval / _SOONEST
        wait = self._interval
        batches = 0
        while True:
            self._mark("ear")
            if await self._listener.wait(wait):
                metrics.wakeups_by_doorbell.inc()
                self.progress.rung += 1
                self._call()
                wait = self._interval
                continue
            flowing, batches = self.progress.batches > batches, self.progress.batches
            try:
                ready, due_in = await processor.look()
            except Exception:  # noqa: BLE001  (a loop will get the same error, and logs it)
                ready, due_in, flowing = True, None, False
            if ready or (due_in is not None and due_in <= 0):
                metrics.wakeups_by_poll.inc()
                self.progress.polled += 1
                self._call()
                wait = max(soonest, wait / 2) if flowing else self._interval
            else:
                metrics.empty_polls.inc()
                wait = self._interval if due_in is None else min(self._interval, due_in)

    async def _run(self, processor: Processor[UnitOfWork], number: int, name: str) -> None:
        failures = blocked = 0
        while not self._stopping.is_set():
            if self._quiet:
                await self._rest(number, name)
                continue
            self._mark(name)
            before = self.progress.processed
            try:
                outcome = await self._drain(processor, number, name)
                failures = 0
                if outcome.blocked:
                    blocked = blocked + 1 if self.progress.processed == before else 0
                    await self._pause(min(_BLOCKED_LONG, _BLOCKED_AGAIN * 2.0 ** min(blocked, 20)))
                    continue
                blocked = 0
                if outcome.retried or outcome.postponed:
                    await self._call_when_due(processor)
            except (Exception, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    raise
                # The batch was rolled back; its events are still there.
                failures += 1
                self.progress.rolled_back += 1
                metrics.rolled_back.inc()
                self.progress.failures.failed(_every_batch_of(name), error)
                backoff = min(_MAX_BACKOFF, 0.05 * 2 ** min(failures, 20)) * random.uniform(0.5, 1.0)  # noqa: S311
                self._log.warning("outbox batch rolled back, next attempt in %.2f s: %r", backoff, error)
                await self._pause(backoff)
                continue
            await self._rest(number, name)

    async def _rest(self, number: int, name: str) -> None:
        """Wait for a call. Meanwhile the loop is not expected to make progress."""
        self.progress.alive_at.pop(name, None)
        await self._called[number].wait()
        self._called[number].clear()

    async def _drain(self, processor: Processor[UnitOfWork], number: int, name: str) -> Outcome:
        while True:
            started = monotonic()
            outcome = await processor.run_once()
            seconds = monotonic() - started
            self.progress.add(outcome, seconds)
            self.progress.failures.succeeded(_every_batch_of(name))
            self._mark(name)
            if outcome.processed or outcome.retried or outcome.buried:
                logger.debug(
                    "batch: %d processed, %d to retry, %d buried, %.1f ms",
                    outcome.processed,
                    outcome.retried,
                    outcome.buried,
                    seconds * 1000,
                )
            if not outcome.more or self._stopping.is_set() or self._quiet:
                return outcome
            # There is more than one loop can take: the next one helps.
            if number + 1 < len(self._called):
                self._called[number + 1].set()

    async def _call_when_due(self, processor: Processor[UnitOfWork]) -> None:
        _, due_in = await processor.look()
        if due_in is not None and due_in < self._interval:
            asyncio.get_running_loop().call_later(max(0.0, due_in), self._call)

    async def _keep_up(self, processor: Processor[UnitOfWork]) -> None:
        while True:
            await asyncio.sleep(_UPKEEP)
            try:
                await processor.park_unknown()
            except Exception as error:  # noqa: BLE001  (the next time will do)
                self._log.warning("could not look for events of unknown types: %r", error)

    def _mark(self, name: str) -> None:
        self.progress.alive_at[name] = monotonic()

    async def _pause(self, seconds: float) -> None:
        """Wait this long, or until the stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def _every_batch_of(loop: str) -> str:
    return f"every batch of {loop}"


def _is_cancelled(error: BaseException) -> bool:
    """Whether the error is the cancellation of this task, and not one that came out of something it awaited."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
