"""An event that is only logged, and a consumer that keeps what it read, for tests of the log's readers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sqlalchemy import text

from services.database import Database
from services.outbox.events import Event
from services.outbox.log import service as log
from services.outbox.log.schemas import LoggedEvent
from services.outbox.log.service import LogBatch
from services.unit_of_work import UnitOfWork

FEED = "feed"


class Noted(Event):
    """The `number`-th event about `name`."""

    type: ClassVar[str] = "test.noted"

    name: str
    number: int = 0

    @property
    def aggregate(self) -> str:
        return f"noted/{self.name}"


class Remarked(Noted):
    """Another type, about the same aggregates."""

    type: ClassVar[str] = "test.remarked"


async def make_consumer(database: Database, name: str = FEED) -> None:
    async with UnitOfWork(database.write) as uow:
        await log.create(uow, name)
        await uow.commit()


async def note(database: Database, *events: Event) -> None:
    """Write the events in one transaction."""
    async with UnitOfWork(database.write) as uow:
        for event in events:
            uow.record(event)
        await uow.commit()


async def read_once(database: Database, limit: int = 100, consumer: str = FEED) -> LogBatch:
    """One read, committed."""
    async with UnitOfWork(database.write) as uow:
        batch = await log.read(uow, consumer, limit)
        await log.advance(uow, batch)
        await uow.commit()
    return batch


async def read_all(database: Database, limit: int = 100, consumer: str = FEED) -> list[str]:
    """What there is to read, as `name number`, in order."""
    found: list[str] = []
    more = True
    while more:
        batch = await read_once(database, limit, consumer)
        found += [told(event) for event in batch.events]
        more = batch.more
    return found


def told(event: LoggedEvent) -> str:
    return f"{event.payload['name']} {event.payload['number']}"


async def take_transaction_id(uow: UnitOfWork) -> int:
    """Assign the transaction its id now, as its first write would; return it."""
    connection = await uow.session.connection()
    return int(await connection.scalar(text("SELECT pg_current_xact_id()::text")))


async def lock(uow: UnitOfWork, name: str) -> None:
    """Take the lock under which events about `name` are written."""
    connection = await uow.session.connection()
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})


def never(_: LoggedEvent) -> bool:
    return False


@dataclass
class Telling:
    """A handler that writes each event into the table `told`, and then fails if one of them is poison."""

    name: str = "a"
    poison: Callable[[LoggedEvent], bool] = never
    sizes: list[int] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    may_go: asyncio.Event = field(default_factory=asyncio.Event)
    waits: bool = False

    async def __call__(self, uow: UnitOfWork, events: Sequence[LoggedEvent]) -> None:
        self.sizes.append(len(events))
        connection = await uow.session.connection()
        given: list[dict[str, Any]] = [{"what": told(event), "by": self.name} for event in events]
        await connection.execute(text("INSERT INTO told (what, by) VALUES (:what, :by)"), given)
        self.entered.set()
        if self.waits:
            await self.may_go.wait()
        if any(self.poison(event) for event in events):
            raise ValueError("poison\x00")
