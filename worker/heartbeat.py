"""A row in which each worker reports its state every few seconds, for operators and the health check."""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from time import monotonic
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.fields import new_id
from services.logs import RateLimitedLogger
from services.outbox.control.schemas import OtherWorker
from services.outbox.control.service import SILENT
from services.outbox.models import WorkerWish
from services.shielding import end
from services.skew import Skew
from services.startup import Schema
from services.unit_of_work import OpenUnitOfWork, background
from worker.jobs.metrics import JobMetrics
from worker.neighbours import identity, is_dead
from worker.poller import Progress

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between beats."""

_PATIENCE = 5.0
"""Time limit for a beat, in seconds."""

_CLOCK = 2
"""The clocks are compared at the first of this many beats."""

_SCHEMA = 6
"""The revision of the tables is compared at the first of this many beats. It changes only with a migration."""

_RATED = 60.0
"""Seconds over which rates are measured."""

QueueLength = Callable[[], Awaitable[int | None]]


class Heartbeat:
    """Writes the worker's row from entry to exit, and deletes it at exit.

    It runs on the same event loop as the poll loops: if that is blocked, there is no beat. A beat that cannot be
    written to the database is skipped.
    """

    def __init__(
        self,
        open_unit_of_work: OpenUnitOfWork,
        progress: Progress,
        jobs: JobMetrics,
        queue_length: QueueLength,
        skew: Skew,
        schema: Schema,
        *,
        versions: Mapping[str, int],
        schedules: Sequence[str] = (),
        time_limit: float,
        on_death: Callable[[], None] = lambda: None,
        on_asked: Callable[[WorkerWish | None], None] = lambda _: None,
        on_bulk_actions: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`on_asked` is called when an operator asks something of this worker, or takes it back; `on_bulk_actions` at
        each beat, with whether there are bulk actions to carry out.
        """
        self._open = open_unit_of_work
        self._progress = progress
        self._jobs = jobs
        self._queue_length = queue_length
        self._skew = skew
        self._schema = schema
        self._fixed = {
            "types": sorted(versions),
            "versions": dict(versions),
            "schedules": sorted(schedules),
            "time_limit": time_limit,
            "version": version("waybill"),
            "process": identity(),
        }
        self._on_death = on_death
        self._on_asked = on_asked
        self._on_bulk_actions = on_bulk_actions
        self._asked: WorkerWish | None = None
        self._beats = 0
        self.leaves_row = False
        """Whether the row stays at exit: this worker ends abnormally, and its successor has to find that out."""
        self._id = new_id()
        self._started = monotonic()
        self._counted: deque[tuple[float, int, int]] = deque()
        self._log = RateLimitedLogger(logger)
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Heartbeat":
        # Before the first event is processed: if a worker was killed, an event may have killed it.
        await self._try_to_beat()
        self._beating = asyncio.create_task(self._beat_for_ever(), name="heartbeat")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            await end(self._beating)
        if self.leaves_row:
            return
        try:
            async with asyncio.timeout(_PATIENCE), background(self._open) as uow:
                await uow.control.leave(self._id)
        except Exception as error:  # noqa: BLE001  (it exits anyway, and the row is deleted after a day)
            logger.warning("could not delete this worker's row: %r", error)

    @property
    def worker_id(self) -> UUID:
        """The key of this worker's row."""
        return self._id

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The task that beats; it runs until exit."""
        return [self._beating] if self._beating is not None else []

    async def beat(self) -> None:
        """Compare the clocks and the revisions, write the row, and delete those of dead workers of this host.

        Calls `on_death` if there are any, and at the first beat also if a worker of another host is silent. Database
        errors propagate.
        """
        report = await self._report()
        async with background(self._open) as uow:
            connection = await uow.session.connection()
            if self._beats % _CLOCK == 0:
                await self._skew.look(connection)
            if self._beats % _SCHEMA == 0:
                await self._schema.follow(connection)
            report |= {
                "quiet": False,
                "clock_skew": round(self._skew.seconds, 3),
                "clock_complaint": self._skew.complaint,
                "tables_complaint": self._schema.complaint,
            }
            beat = await uow.control.beat(
                self._id,
                socket.gethostname(),
                os.getpid(),
                monotonic() - self._started,
                self._stuck_seconds(),
                to_json(report).decode(),
                everywhere=self._beats == 0,
            )
            dead = self._dead_of_this_host(beat.others)
            await uow.control.clear(list(dead))
        if dead:
            logger.info("deleted the rows of dead workers of this host", extra={"pids": sorted(dead.values())})
        if dead or any(other.silent > SILENT for other in beat.others):
            self._on_death()
        self._beats += 1
        self._on_bulk_actions(beat.has_bulk_actions)
        if beat.asked is not self._asked:
            logger.info("an operator asked this worker", extra={"wish": beat.asked.value if beat.asked else "to work"})
            self._asked = beat.asked
            self._on_asked(beat.asked)

    def _dead_of_this_host(self, others: Sequence[OtherWorker]) -> dict[UUID, int]:
        """The workers of this host that have died, with their process ids: this one is their successor."""
        host = socket.gethostname()
        return {
            other.id: other.pid
            for other in others
            if other.host == host and is_dead(other.pid, other.process, other.silent)
        }

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self._try_to_beat()

    async def _try_to_beat(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.beat()
        except Exception as error:  # noqa: BLE001  (whatever it is, the next beat may succeed)
            self._log.warning("no heartbeat: %r", error)

    def _stuck_seconds(self) -> float:
        """Seconds since the last progress of the slowest busy loop."""
        signs = self._progress.alive_at.values()
        return monotonic() - min(signs) if signs else 0.0

    async def _report(self) -> dict[str, Any]:
        done = self._progress
        return {
            **self._fixed,
            "batches": done.batches,
            "processed": done.processed,
            "retried": done.retried,
            "buried": done.buried,
            "rolled_back": done.rolled_back,
            "failing": done.failures.report(),
            "rates": self._rates(),
            "last_batch": _last(done.last_batch_at, done.last_batch_seconds),
            "jobs": {name: asdict(runs) for name, runs in self._jobs.functions.items()},
            "queue_length": await self._queue_length(),
        }

    def _rates(self) -> dict[str, float]:
        """Events and batches per second, over the last minute."""
        at = monotonic()
        self._counted.append((at, self._progress.processed, self._progress.batches))
        while at - self._counted[0][0] > _RATED:
            self._counted.popleft()
        since, processed, batches = self._counted[0]
        seconds = max(at - since, INTERVAL)
        return {
            "processed": round((self._progress.processed - processed) / seconds, 2),
            "batches": round((self._progress.batches - batches) / seconds, 2),
        }


def queue_length_of(redis: Redis, queue: str) -> QueueLength:
    """Counts the waiting ARQ jobs; the result is None if Redis does not answer within a second."""

    async def ask() -> int | None:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                return int(await redis.zcard(queue))
        return None

    return ask


def _last(at: datetime | None, seconds: float) -> dict[str, Any] | None:
    return None if at is None else {"at": at, "seconds": round(seconds, 4)}
