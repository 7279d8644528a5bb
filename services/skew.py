"""How far this host's clock is from the database's: measured, warned about, and refused above a limit."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from time import monotonic

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services import clock
from services.errors import CannotStart
from services.shielding import end

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between measurements."""

WORTH_A_WARNING = 1.0
"""Seconds of skew above which a warning is logged."""

_WELL_AGAIN = 0.5
"""Seconds of skew below which the warning may be logged again: a clock near the limit must not flood the log."""

_PATIENCE = 5.0
"""Time limit for a measurement, in seconds."""

_TRIPS = 3
"""The most reads of the database's clock for one measurement. The shortest round trip is the most precise."""

_PRECISE = 0.002
"""Seconds of precision after which it is not read again."""

_DATABASE_TIME = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")


class ClockSkewed(CannotStart):
    """This host's clock is further from the database's than the settings allow. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds that the host's clock is ahead of the database's (negative: behind), give or take `precision`."""

    skew: float
    precision: float


async def database_time(connection: AsyncConnection) -> datetime:
    """The current time of the database's clock."""
    at: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return at


async def measure(connection: AsyncConnection) -> Measured:
    """Compare the two clocks, allowing for the round trip; from now on this process follows the database's."""
    found: list[tuple[float, float, float, float]] = []
    for _ in range(_TRIPS):
        host, sent = clock.host_time(), monotonic()
        database = float((await connection.execute(_DATABASE_TIME)).scalar_one())
        half = (monotonic() - sent) / 2
        found.append((half, host + half - database, database, sent + half))
        if half <= _PRECISE:
            break
    precision, skew, database, at = min(found)
    clock.CLOCK.follow(database, at, precision)
    return Measured(skew, precision)


async def follow_database(engine: AsyncEngine) -> None:
    """Have this process follow the database's clock, measured once: for short-lived commands."""
    async with engine.connect() as connection:
        await measure(connection)


class _Level(IntEnum):
    well = 0
    warned = 1
    refused = 2


class Skew:
    """What this process knows about its host's clock. `limit` is the allowed skew, in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._level = _Level.well
        self.seconds = 0.0
        """How far the host's clock was ahead of the database's at the last measurement."""

    @property
    def complaint(self) -> str | None:
        """Why this process should not be used; None if the skew is within the limit."""
        return self._describe() if self._level is _Level.refused else None

    async def look(self, connection: AsyncConnection, *, at_start: bool = False) -> None:
        """Measure, and log if the skew has become worse or is small again. Database errors propagate.

        Above the limit it raises `ClockSkewed` at start, and sets `complaint` later.
        """
        before = self._level
        measured = await measure(connection)
        self.seconds, self._level = measured.skew, self._rate(measured)
        if at_start and self.complaint is not None:
            raise ClockSkewed(self.complaint)
        if self._level > before:
            logger.log(logging.ERROR if self._level is _Level.refused else logging.WARNING, "%s", self._describe())
        elif self._level is _Level.well and before is not _Level.well:
            logger.warning("this host's clock agrees with the database's again")

    def _rate(self, measured: Measured) -> _Level:
        # A skew that a slow round trip may explain does not count.
        certain = abs(measured.skew) - measured.precision
        if certain > self._limit:
            return _Level.refused
        least = WORTH_A_WARNING if self._level is _Level.well else _WELL_AGAIN
        return _Level.warned if certain > least else _Level.well

    def _describe(self) -> str:
        side = "ahead of" if self.seconds > 0 else "behind"
        allowed = f" and WAYBILL_MAX_CLOCK_SKEW allows {self._limit:g} s" if self._level is _Level.refused else ""
        return (
            f"this host's clock is {abs(self.seconds):,.1f} s {side} the database's{allowed}: "
            "correct the wrong one (is NTP running on both hosts?)"
        )


async def check_clock(engine: AsyncEngine, limit: float) -> Skew:
    """Measure at start. Raises `ClockSkewed` above the limit (seconds)."""
    skew = Skew(limit)
    async with engine.connect() as connection:
        await skew.look(connection, at_start=True)
    return skew


@asynccontextmanager
async def watched_clock(engine: AsyncEngine, limit: float) -> AsyncIterator[Skew]:
    """`check_clock`, then measure every few seconds until exit."""
    skew = await check_clock(engine, limit)
    watching = asyncio.create_task(_watch(engine, skew), name="clock")
    try:
        yield skew
    finally:
        await end(watching)


async def _watch(engine: AsyncEngine, skew: Skew) -> None:
    silent = False
    while True:
        await asyncio.sleep(INTERVAL)
        try:
            async with asyncio.timeout(_PATIENCE), engine.connect() as connection:
                await skew.look(connection)
            silent = False
        except Exception as error:  # noqa: BLE001  (whatever it is, the next measurement may succeed)
            if not silent:
                logger.warning("could not compare this host's clock with the database's: %r", error)
            silent = True
