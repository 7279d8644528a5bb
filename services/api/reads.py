"""Where requests read what may lag: on the replica while it is fit and far enough, otherwise on the primary."""

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from time import monotonic
from typing import TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.database import Database
from services.errors import Fault, InvalidInput
from services.logs import RateLimitedLogger
from services.replica import UNKNOWN, Position
from services.sql import CONTENTION, sqlstate
from services.unit_of_work import UnitOfWork

FoundT = TypeVar("FoundT")

POSITION_HEADER = "Waybill-Position"
LAG_HEADER = "Waybill-Lag"

PATIENCE = 0.1
"""Seconds that a read waits for the replica to replay what its client has written."""

FAILURES = (DBAPIError, PoolTimeout, OSError)
"""What a read may raise if its server is away, or cancels it to continue replaying."""

outage = RateLimitedLogger(logging.getLogger(__name__))


class Outcome(StrEnum):
    """Where a read went, and why."""

    replica = "replica"
    unfit = "unfit"
    not_replayed = "not_replayed"
    failed = "failed"


class Reads:
    """Chooses the server for each read, and counts the outcomes.

    What fails on the replica is repeated on the primary. What took `limit` seconds before it failed is not, since it
    would cost the primary as much and exceed its limits, too.
    """

    def __init__(self, database: Database, limit: float) -> None:
        self._database = database
        self._limit = limit
        self.replica = database.replica
        self.outcomes: Counter[Outcome] = Counter()

    async def position(self) -> Position | None:
        """A position beyond everything that is committed now; `UNKNOWN` if the primary does not say.

        None if there is no replica.
        """
        return None if self.replica is None else await self.replica.positions.now() or UNKNOWN

    def choose(self) -> float | None:
        """Until when the replica has everything (`Replica.current_at`); None if the primary is to be read.

        Counts a read for which the replica is not fit.
        """
        if self.replica is None:
            return None
        if not self.replica.is_fit:
            self.outcomes[Outcome.unfit] += 1
            return None
        return self.replica.current_at

    @asynccontextmanager
    async def open(self, wanted: Position | None) -> AsyncIterator[UnitOfWork | None]:
        """A unit of work on the replica; None if it does not have what is before `wanted` within a short time.

        What the server raises propagates.
        """
        assert self._database.replicated is not None, "there is no replica"
        async with UnitOfWork(self._database.replicated, name="a read on the replica") as uow:
            if wanted is None or await self._has_replayed(uow, wanted):
                self.outcomes[Outcome.replica] += 1
                yield uow
                return
        self.outcomes[Outcome.not_replayed] += 1
        yield None

    async def run(self, do: Callable[[UnitOfWork], Awaitable[FoundT]], wanted: Position | None) -> FoundT:
        """What `do` reads, in a transaction of its own. A read that fails on the replica is repeated on the primary."""
        started = monotonic()
        try:
            if self.choose() is not None:
                async with self.open(wanted) as uow:
                    if uow is not None:
                        return await do(uow)
        except FAILURES as error:
            if not self.may_repeat(error, started):
                raise
        async with UnitOfWork(self._database.write, name="a read") as uow:
            return await do(uow)

    def may_repeat(self, error: Exception, started: float) -> bool:
        """Whether to repeat on the primary what failed on the replica; counts and logs it."""
        self.outcomes[Outcome.failed] += 1
        outage.warning("a read failed on the replica: %r", error)
        # A replica cancels what conflicts with replaying, however long that has been running.
        in_the_way = isinstance(error, DBAPIError) and sqlstate(error) in CONTENTION
        return in_the_way or monotonic() - started < self._limit

    async def _has_replayed(self, uow: UnitOfWork, wanted: Position) -> bool:
        assert self.replica is not None
        return await self.replica.replays(await uow.session.connection(), wanted, PATIENCE)


def parse_position(given: str) -> Position:
    """The position that a client sends. Raises `InvalidInput`."""
    position = Position.parse(given.strip())
    if position is None:
        raise InvalidInput(
            f"{POSITION_HEADER} must be the value of this header in an earlier reply, such as "
            "7312500000000000000-1-16B3748",
            [Fault("is not a position", f"header/{POSITION_HEADER}")],
        )
    return position


def shown_lag(current_at: float) -> str:
    """The seconds since then for the header, rounded up: the reply lacks nothing that was committed before."""
    seconds = monotonic() - current_at
    return f"{math.ceil(seconds * 10) / 10:.1f}"
