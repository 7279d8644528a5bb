"""A storm: events of many kinds about a few aggregates, and a handler that fails as a seed decides.

A decision depends on the seed and its subject, not on a sequence, so it is the same in whatever order things happen.
"""

import asyncio
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.database import open_database
from services.outbox.engine import service as engine_service
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Event
from services.outbox.policy import OnDeath, RetryPolicy
from services.outbox.subscription import AnySubscription, Subscription, Verdicts
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import drain

# `drops` counts what was written of each aggregate, `effects` what happened because of it.
TABLES = (
    "CREATE TABLE drops (name text PRIMARY KEY, number integer NOT NULL DEFAULT 0)",
    """
    CREATE TABLE effects (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, number integer, type text,
        at timestamptz DEFAULT clock_timestamp(), CONSTRAINT once UNIQUE (name, number) DEFERRABLE INITIALLY DEFERRED
    )
    """,
    "CREATE TABLE pardons (name text, number integer, PRIMARY KEY (name, number))",
)


class Drop(Event):
    """The `number`-th event about `name`."""

    queued: ClassVar[bool] = True

    name: str
    number: int

    @property
    def aggregate(self) -> str:
        return f"drop/{self.name}"


class Rain(Drop):
    """Fails often and never dies."""

    type: ClassVar[str] = "storm.rain"


class Sleet(Drop):
    """Its handler returns verdicts."""

    type: ClassVar[str] = "storm.sleet"


class Snow(Drop):
    """Becomes a dead letter at its second failure; later events wait."""

    type: ClassVar[str] = "storm.snow"


class Hail(Drop):
    """Becomes a dead letter at its second failure; later events do not wait."""

    type: ClassVar[str] = "storm.hail"


class Dew(Drop):
    """Deferred: nothing waits for it."""

    type: ClassVar[str] = "storm.dew"


KINDS: Sequence[type[Drop]] = (Rain, Sleet, Snow, Hail)
ALL_KINDS: Sequence[type[Drop]] = (*KINDS, Dew)

LIMIT = 1.0
"""Seconds that a handler may take for one batch."""

AWAY = frozenset({"40P01", "57P01", "3D000", "55000", None})
"""SQLSTATEs of a deadlock's victim, and of a database that is being replaced by an earlier state of itself."""

_FOR_EVER = RetryPolicy(max_attempts=100, base=0.002, cap=0.05)
_TWICE = RetryPolicy(max_attempts=2, base=0.002, cap=0.05)


def chance(seed: int, *about: object) -> float:
    """A number from 0 to below 1, always the same for the same seed and subject."""
    digest = hashlib.sha256(repr((seed, *about)).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise asyncio.CancelledError

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class DropHandler:
    """Writes an effect for each event, and fails for some in one of several ways: a few of them kill the process."""

    seed: int
    verdicts: bool = False

    async def __call__(self, uow: UnitOfWork, events: Sequence[Claimed[Drop]]) -> Verdicts:
        connection = await uow.session.connection()
        pardons = {(row[0], row[1]) for row in await connection.execute(text("SELECT name, number FROM pardons"))}
        failing = {
            claimed.position: chance(self.seed, "how", claimed.event.name, claimed.event.number)
            for claimed in events
            if (claimed.event.name, claimed.event.number) not in pardons
            and chance(self.seed, "fails", claimed.event.name, claimed.event.number, claimed.attempts) < 0.12
        }
        if self.verdicts:
            return await self._judge(connection, events, failing)
        await self._write(connection, events)
        for claimed in events:
            how = failing.get(claimed.position)
            if how is None:
                continue
            if how < 0.03:
                os.kill(os.getpid(), signal.SIGKILL)
            if how < 0.06:
                sys.exit("a handler exits")
            if how < 0.12:
                raise asyncio.CancelledError
            if how < 0.18:
                raise Unspeakable
            if how < 0.24:
                await uow.commit()
            if how < 0.3:
                # More than its share of the time limit.
                await asyncio.sleep(0.4 * LIMIT)
                continue
            if how < 0.32:
                await asyncio.sleep(60.0)
            if how < 0.45:
                await connection.execute(text("SELECT 1 / 0"))
            if how < 0.6:
                # Fails only at the commit.
                await self._write(connection, [claimed])
            else:
                raise ValueError(f"{claimed.event!r} fails")
        return None

    async def _judge(
        self, connection: Any, events: Sequence[Claimed[Drop]], failing: dict[int, float]
    ) -> list[Exception | None]:
        verdicts: list[Exception | None] = []
        failed: set[str] = set()
        for claimed in events:
            if claimed.position in failing or claimed.aggregate in failed:
                failed.add(claimed.aggregate)
                verdicts.append(ValueError(f"{claimed.event!r} is not done"))
            else:
                verdicts.append(None)
        done = [claimed for claimed, verdict in zip(events, verdicts, strict=True) if verdict is None]
        if done:
            await self._write(connection, done)
        return verdicts

    async def _write(self, connection: Any, events: Sequence[Claimed[Drop]]) -> None:
        rows = [
            {"name": claimed.event.name, "number": claimed.event.number, "type": claimed.event.type}
            for claimed in events
        ]
        await connection.execute(text("INSERT INTO effects (name, number, type) VALUES (:name, :number, :type)"), rows)


def subscriptions(seed: int) -> list[AnySubscription[UnitOfWork]]:
    fails = DropHandler(seed)
    return [
        Subscription(Rain, fails, retry=_FOR_EVER),
        Subscription(Sleet, DropHandler(seed, verdicts=True), retry=_FOR_EVER, plain_sql=True),
        Subscription(Snow, fails, retry=_TWICE, plain_sql=True),
        Subscription(Hail, fails, retry=_TWICE, on_death=OnDeath.park_and_continue),
        Subscription(Dew, fails, retry=_FOR_EVER),
    ]


def is_away(error: BaseException) -> bool:
    """Whether the error comes from a deadlock, or from the database being replaced."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError)
    state = getattr(error.orig, "sqlstate", None)
    # Class 08 is that of connection exceptions: a connection may end between two statements.
    return error.connection_invalidated or state in AWAY or str(state).startswith("08")


async def work(settings: Settings, seed: int, *, wary: bool) -> None:
    """Process the outbox until killed, as a poll loop does."""
    # What would be seconds in operation.
    engine_service._DIED_AGAIN = 0.1
    async with open_database(settings, "storm") as database:
        engine = Processor[UnitOfWork](
            lambda: UnitOfWork(database.write),
            subscriptions(seed),
            retry=_FOR_EVER,
            batch_size=30,
            time_limit=LIMIT,
        )
        if wary:
            engine.be_wary()
        while True:
            try:
                await drain(engine)
            except (DBAPIError, OSError) as error:
                # The transaction is tried again; nothing else may get here.
                assert is_away(error), error  # noqa: PT017
            await asyncio.sleep(0.005)


def run(settings: Settings, seed: int, wary: bool) -> None:
    """The main function of a worker process; `wary` if the one before it was killed."""
    logging.disable()
    asyncio.run(work(settings, seed, wary=wary))
