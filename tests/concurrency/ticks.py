"""A minimal event, its effect in its own table, and a handler that fails when a test wants it to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sqlalchemy import text

from services.database import Database
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Event
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork

SOON = RetryPolicy(max_attempts=100, base=0.001, cap=0.002)
"""Tries again immediately, forever."""

LATER = RetryPolicy(max_attempts=100, base=3600.0, cap=3600.0)
"""Tries again long after the test is over."""

DUE_NOW = "UPDATE outbox SET available_at = now() WHERE available_at IS NOT NULL"
"""Makes every event that waits due now."""

_EFFECTS = """
    CREATE TABLE effects (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, number integer, UNIQUE (name, number)
        DEFERRABLE INITIALLY DEFERRED
    )
"""


class Tick(Event):
    """The `number`-th event about `name`."""

    type: ClassVar[str] = "test.tick"
    queued: ClassVar[bool] = True

    name: str
    number: int = 0

    @property
    def aggregate(self) -> str:
        return f"tick/{self.name}"


class Tock(Tick):
    """Follows a tick; it is not queued."""

    type: ClassVar[str] = "test.tock"
    queued: ClassVar[bool] = False


Poison = Callable[[Claimed[Tick]], bool]


def nothing(_: Claimed[Tick]) -> bool:
    return False


@dataclass
class TickHandler:
    """Writes one effect and one next event for each tick; raises after writing if one of them is poison."""

    poison: Poison = nothing
    batches: list[list[Tick]] = field(default_factory=list)

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        self.batches.append([claimed.event for claimed in events])
        connection = await uow.session.connection()
        rows = [{"name": claimed.event.name, "number": claimed.event.number} for claimed in events]
        await connection.execute(text("INSERT INTO effects (name, number) VALUES (:name, :number)"), rows)
        for claimed in events:
            uow.record(Tock(name=claimed.event.name, number=claimed.event.number))
        for claimed in events:
            if self.poison(claimed):
                raise ValueError(f"{claimed.event.name} {claimed.event.number} is poison\x00")


def processor(
    database: Database, handler: Any = None, *, retry: RetryPolicy = LATER, batch_size: int = 100
) -> Processor[UnitOfWork]:
    """A processor of ticks with its own connections."""
    return Processor(
        lambda: UnitOfWork(database.write),
        [Subscription(Tick, handler or TickHandler())],
        retry=retry,
        batch_size=batch_size,
    )


async def make_effects(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text(_EFFECTS))


async def append(database: Database, *ticks: Tick) -> None:
    """Write the events in one transaction."""
    async with UnitOfWork(database.write) as uow:
        for tick in ticks:
            uow.record(tick)
        await uow.commit()


async def drain(engine: Processor[UnitOfWork]) -> list[Outcome]:
    """What a worker does in one look at the outbox: batch after batch while there are more."""
    outcomes = [await engine.run_once()]
    while outcomes[-1].more:
        outcomes.append(await engine.run_once())
    return outcomes


async def replay_letter(uow: UnitOfWork, position: int) -> bool:
    """Replay a dead letter, as an operator does; returns False if there is none."""
    return (await control.replay(uow, Selection(position=position), By("an operator"))).done == 1


async def rows(database: Database, statement: str, **parameters: Any) -> list[Any]:
    """The rows of a query, in its own transaction; single columns as plain values."""
    async with database.engine.begin() as connection:
        result = await connection.execute(text(statement), parameters)
        found = list(result) if result.returns_rows else []
    return [row[0] if len(row) == 1 else tuple(row) for row in found]


async def damage(database: Database, statement: str, **parameters: Any) -> None:
    """Change rows that triggers keep as they are, in its own transaction and without the triggers."""
    async with database.engine.begin() as connection:
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        changed = await connection.execute(text(statement), parameters)
        assert changed.rowcount != 0, f"changes nothing: {statement}"


async def effects(database: Database) -> list[tuple[str, int]]:
    """(name, number) in the order they took effect."""
    return await rows(database, "SELECT name, number FROM effects ORDER BY id")
