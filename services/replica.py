"""The read replica: whether it may be read, how far it is behind the primary, and what it has replayed.

`docs/decisions/0028-a-read-replica-that-is-compared-with-the-primary.md` explains each rule.
"""

import asyncio
import logging
import math
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Literal, Self, TypeAlias

from sqlalchemy import Row, TextClause, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.connections import PoolGuard, on_a_live_connection
from services.logs import RateLimitedLogger
from services.shielding import end

logger = logging.getLogger(__name__)
outage = RateLimitedLogger(logger)

ReplicaState: TypeAlias = Literal["ok", "pending", "unreachable", "behind", "diverged", "primary", "other_cluster"]

INTERVAL = 0.5
"""Seconds between looks at the replica."""

PATIENCE = 1.0
"""Time limit for a look at the replica, and for a new connection to it, in seconds."""

_POSITION_PATIENCE = 0.5
"""Time limit for the primary's answer, in seconds."""

_STEP = 0.01
"""Seconds between two looks at what is replayed, while a read waits for it."""

_SAMPLES = 1000
"""Positions of the primary that are remembered while the replica is behind them."""

_MISCONFIGURED = frozenset({"primary", "other_cluster"})

# With asynchronous commits, a commit is acknowledged before its record is written, so only the insert position is
# certain to be beyond it. That may be the start of an empty page, which no replica reports before something is written.
_POSITION = text("""
    SELECT system_identifier AS system, left(pg_walfile_name(lsn), 8) AS timeline,
        CAST(lsn - CAST('0/0' AS pg_lsn) AS bigint) AS lsn
    FROM pg_control_system(), (
        SELECT CASE current_setting('synchronous_commit')
            WHEN 'off' THEN pg_current_wal_insert_lsn() ELSE pg_current_wal_flush_lsn()
        END AS lsn
    ) AS now
""")

# Only a role that may read statistics sees the timeline that is being received; the control file follows a bit later.
_STANDBY = text("""
    SELECT pg_is_in_recovery() AS is_standby, system_identifier AS system,
        coalesce(
            (SELECT received_tli FROM pg_stat_wal_receiver),
            greatest(checkpoint.timeline_id, recovery.min_recovery_end_timeline)
        ) AS timeline,
        CAST(pg_last_wal_replay_lsn() - CAST('0/0' AS pg_lsn) AS bigint) AS lsn,
        CAST(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) AS double precision) AS behind
    FROM pg_control_system(), pg_control_checkpoint() AS checkpoint, pg_control_recovery() AS recovery
""")

_REPLAYED = text("SELECT CAST(pg_last_wal_replay_lsn() - CAST('0/0' AS pg_lsn) AS bigint)")


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the write-ahead log of one cluster and timeline. `lsn` counts bytes.

    Places of different clusters or timelines cannot be compared: after a failover the same numbers mean other bytes.
    """

    system: int
    timeline: int
    lsn: int

    @classmethod
    def parse(cls, written: str) -> Self | None:
        """The position that `str` wrote; None if this is not one."""
        matched = _WRITTEN.fullmatch(written)
        return None if matched is None else cls(int(matched[1]), int(matched[2]), int(matched[3], 16))

    def __str__(self) -> str:
        return f"{self.system}-{self.timeline}-{self.lsn:X}"

    def has_history_of(self, other: "Position") -> bool:
        """Whether the two can be compared."""
        return (self.system, self.timeline) == (other.system, other.timeline)


_WRITTEN = re.compile(r"([0-9]{1,20})-([0-9]{1,10})-([0-9A-F]{1,16})", re.ASCII)

UNKNOWN = Position(0, 0, 0)
"""Where the primary's position could not be found out. No replica ever has it."""


class Positions:
    """The primary's position. Callers at the same time share a look, which begins after the last of them has called."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._running: asyncio.Task[Position | None] | None = None
        self._next: asyncio.Task[Position | None] | None = None

    async def now(self) -> Position | None:
        """A position beyond every commit that was acknowledged before the call; None if the primary does not say.

        Takes at most a second.
        """
        if self._next is None:
            # The look that is under way may have been answered before the caller's commit.
            self._next = asyncio.create_task(self._look_after(self._running), name="position")
        looking = self._next
        await asyncio.wait({looking}, timeout=2 * _POSITION_PATIENCE)
        return looking.result() if looking.done() and not looking.cancelled() else None

    async def close(self) -> None:
        """End the looks that are under way."""
        await end(*(task for task in (self._running, self._next) if task is not None))

    async def _look_after(self, other: "asyncio.Task[Position | None] | None") -> Position | None:
        if other is not None:
            await asyncio.wait({other})
        self._running, self._next = self._next, None
        try:
            found = await self._ask()
        except Exception as error:  # noqa: BLE001  (callers have committed: whatever it is, it must not fail their reply)
            outage.warning("the primary did not say its position in the write-ahead log: %r", error)
            # It may be a standby now, and another server the primary.
            PoolGuard.of(self._engine.sync_engine).distrust()
            return None
        return Position(_unsigned(found.system), int(found.timeline, 16), found.lsn)

    async def _ask(self) -> Row[Any]:
        return await _ask(self._engine, _POSITION, _POSITION_PATIENCE)


class Replica:
    """The replica's connections, and what the last look has found. Reads go there while it `is_fit`.

    A look compares the replica with the primary. If the replica does not answer, its connections are cut, so that what
    waits for it can be read from the primary.
    """

    def __init__(self, engine: AsyncEngine, watching: AsyncEngine, primary: AsyncEngine, max_lag: float) -> None:
        self.engine = engine
        self.positions = Positions(primary)
        self.state: ReplicaState = "pending"
        self.position: Position | None = None
        """What it had replayed at the last look; None if it did not answer, or is not a standby."""
        self._watching = watching
        self._guard = PoolGuard.of(engine.sync_engine)
        self._max_lag = max_lag
        self._primary: Position | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self.current_at = -math.inf
        """It has everything that was committed until then (monotonic clock); minus infinity if that is unknown."""

    @property
    def lag(self) -> float:
        """The replica has everything that was committed until so many seconds ago; infinite if that is unknown."""
        return monotonic() - self.current_at

    @property
    def is_fit(self) -> bool:
        """Whether reads that may lag should go there."""
        return self.state == "ok" and self.lag <= self._max_lag

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Look now, and then every half second until exit."""
        await self.look()
        watching = asyncio.create_task(self._watch(), name="replica")
        try:
            yield
        finally:
            await end(watching)

    async def look(self) -> None:
        """Compare the replica with the primary, and log if its state has changed. Takes at most two seconds."""
        asked = monotonic()
        primary = await self.positions.now()
        if primary is not None:
            self._sample(asked, primary)
        try:
            found = await _ask(self._watching, _STANDBY, PATIENCE)
        except (SQLAlchemyError, OSError) as error:
            self.position = None
            self._note("unreachable", f"it cannot be reached or does not answer ({error!r})")
            self._guard.cut()
            return
        self._note(*self._judge(found))

    async def replays(self, connection: AsyncConnection, wanted: Position, patience: float) -> bool:
        """Whether later statements on this connection to the replica see everything before `wanted`.

        Waits up to `patience` seconds for it. What the server raises propagates.
        """
        last_look = monotonic() + patience
        while self.position is not None and self.position.has_history_of(wanted):
            # Asked on the connection itself: a replica that was restarted begins again a little earlier. On one that
            # was promoted, the number no longer grows.
            replayed: int | None = (await connection.execute(_REPLAYED)).scalar_one()
            if replayed is not None and replayed >= wanted.lsn:
                return True
            if replayed is None or monotonic() >= last_look:
                return False
            await asyncio.sleep(_STEP)
        return False

    async def close(self) -> None:
        """End what is under way. The engines belong to the caller."""
        await self.positions.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001  (whatever it is, the next look may succeed)
                self._note("unreachable", f"the look at it failed ({error!r})")

    def _sample(self, asked: float, primary: Position) -> None:
        if self._primary is None or not self._primary.has_history_of(primary):
            self._samples.clear()
        self._primary = primary
        self._samples.append((asked, primary.lsn))

    def _judge(self, found: Row[Any]) -> tuple[ReplicaState, str]:
        """Its state, and why it is not used."""
        self.position = Position(_unsigned(found.system), found.timeline, found.lsn or 0) if found.is_standby else None
        primary = self._primary
        if primary is None:
            return "pending", "the primary has not answered yet, so the two cannot be compared"
        if _unsigned(found.system) != primary.system:
            return "other_cluster", (
                "WAYBILL_DATABASE_REPLICA_URL points to another cluster: its system identifier is "
                f"{_unsigned(found.system)}, the primary's {primary.system}"
            )
        if self.position is None:
            return "primary", (
                "the server at WAYBILL_DATABASE_REPLICA_URL is not a standby (is that the primary's address, or was "
                "the replica promoted?)"
            )
        if not self.position.has_history_of(primary):
            return "diverged", (
                f"it follows timeline {self.position.timeline}, but the primary is on timeline {primary.timeline}: if "
                "this lasts, rebuild the replica from the primary"
            )
        self._compare(self.position.lsn, found.behind)
        if self.lag > self._max_lag:
            return "behind", (
                f"it is {_seconds(self.lag)} behind, and WAYBILL_DATABASE_REPLICA_MAX_LAG allows {self._max_lag:g} s"
            )
        return "ok", ""

    def _compare(self, replayed: int, behind: float | None) -> None:
        """Find out up to which time the replica has everything."""
        samples = self._samples
        while len(samples) > 1 and samples[1][1] <= replayed:
            samples.popleft()
        if samples and samples[0][1] <= replayed:
            self.current_at = samples[0][0]
        else:
            # Behind the first position that is remembered: all that is known is the time of the last replayed commit.
            self.current_at = -math.inf if behind is None else monotonic() - max(behind, 0.0)

    def _note(self, state: ReplicaState, reason: str) -> None:
        before, self.state = self.state, state
        # Otherwise each read that waited for a connection while the replica fell silent would try it for itself.
        self._guard.is_closed = state == "unreachable"
        if state == before:
            return
        if state == "ok":
            logger.warning("the read replica is in use%s", "" if before == "pending" else " again")
        else:
            level = logging.ERROR if state in _MISCONFIGURED else logging.WARNING
            logger.log(level, "the read replica is not in use, and the primary is read instead: %s", reason)


async def _ask(engine: AsyncEngine, statement: TextClause, patience: float) -> Row[Any]:
    """The one row that the statement returns. Raises `TimeoutError` after `patience` seconds."""
    asking = asyncio.create_task(on_a_live_connection(partial(_row, engine, statement)), name="look")
    try:
        await asyncio.wait({asking}, timeout=patience)
        if not asking.done():
            # A cancelled statement would wait two more seconds for a silent server.
            PoolGuard.of(engine.sync_engine).cut()
            raise TimeoutError(f"no answer within {patience:g} s")
        return asking.result()
    finally:
        await end(asking)


async def _row(engine: AsyncEngine, statement: TextClause) -> Row[Any]:
    async with engine.connect() as connection:
        # Without a transaction, one round trip is enough, and no rollback waits for a silent server.
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        return (await connection.execute(statement)).one()


def _unsigned(identifier: int) -> int:
    """PostgreSQL shows an identifier of 64 bits as a signed number."""
    return identifier % 2**64


def _seconds(lag: float) -> str:
    return "an unknown time" if math.isinf(lag) else f"{lag:.1f} s"
