"""A worker of ticks that harms itself at the n-th await of its processor, in its own process.

Awaits are the statements of the repository and the steps of the unit of work, before and after each, and the handler.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.database import SessionFactory, open_database
from services.outbox.engine.repository import OutboxRepository
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.settings import Settings
from services.sql import Write
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler, drain

METHODS = ("begin", "claim", "complete", "put_off", "bury", "park", "wake")


class Deed(StrEnum):
    """What happens to a worker."""

    nothing = "nothing"
    kill = "kill"
    """SIGKILL."""
    terminate = "terminate"
    """The server ends its connection."""
    stop = "stop"
    """SIGSTOP, until the test sends SIGCONT."""


@dataclass
class Steps:
    """Counts the awaits, writes their names to a file, and harms the worker at the chosen one."""

    deed: Deed
    fatal: int
    url: str
    log: Path
    number: int = 0
    pid: int | None = None

    async def step(self, name: str) -> None:
        self.number += 1
        with self.log.open("a") as log:
            print(name, file=log)
        if self.number == self.fatal:
            await self._do()

    async def _do(self) -> None:
        match self.deed:
            case Deed.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            case Deed.stop:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Deed.terminate if self.pid is not None:
                async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as other:
                    await other.execute("SELECT pg_terminate_backend(%s, 5000)", [self.pid])


class SteppingRepository(OutboxRepository):
    """Steps before and after each statement."""

    steps: Steps

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in METHODS:
            return found
        steps = self.steps

        async def stepping(*arguments: Any, **named: Any) -> Any:
            await steps.step(f"before {name}")
            result = await found(*arguments, **named)
            await steps.step(f"after {name}")
            return result

        return stepping


class SteppingUnitOfWork(UnitOfWork):
    """Steps before and after each of its own awaits."""

    def __init__(self, factory: SessionFactory, steps: Steps) -> None:
        super().__init__(factory)
        self._steps = steps

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        repository = SteppingRepository(self.session)
        repository.steps = self._steps
        self.outbox = repository
        return self

    @asynccontextmanager
    async def savepoint(self, *, plain: bool = False, check: bool = False) -> AsyncIterator[None]:
        await self._steps.step("before savepoint")
        async with super().savepoint(plain=plain, check=check):
            await self._steps.step("after savepoint")
            yield
            await self._steps.step("before release")
        await self._steps.step("after release")

    async def _write(self, *more: Write) -> int:
        if not (self.recorded or more):
            return await super()._write()
        await self._steps.step("before write")
        written = await super()._write(*more)
        await self._steps.step("after write")
        return written

    async def commit(self) -> None:
        await self._steps.step("before commit")
        await super().commit()
        await self._steps.step("after commit")


def _is_poison(claimed: Claimed[Tick]) -> bool:
    if claimed.event.number > 0:
        return False
    return claimed.event.name == "bad" or (claimed.event.name == "late" and claimed.attempts == 0)


async def work(settings: Settings, steps: Steps) -> None:
    """Process what there is, and what becomes due meanwhile."""
    ticks = TickHandler(_is_poison)

    async def handle(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        await steps.step("before handler")
        steps.pid = (await (await uow.session.connection()).execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await ticks(uow, events)
        await steps.step("after handler")

    async with open_database(settings, "steps") as database:
        engine = Processor[UnitOfWork](
            lambda: SteppingUnitOfWork(database.write, steps),
            [Subscription(Tick, handle)],
            retry=RetryPolicy(max_attempts=2, base=0.005, cap=0.005),
            batch_size=50,
        )
        due_in: float | None = 0.0
        while due_in is not None:
            await asyncio.sleep(max(0.0, due_in))
            try:
                await drain(engine)
                ready, due_in = await engine.look()
            except DBAPIError:
                continue
            due_in = 0.0 if ready else due_in


def run(settings: Settings, deed: Deed, fatal: int, log: Path) -> None:
    """The process's main function."""
    logging.disable()
    asyncio.run(work(settings, Steps(deed, fatal, settings.database_url, log)))
