"""The event that is used to measure the engine, and the rows of many waiting ones."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

import psycopg

from benchmarks.rows import INTO_LOG, queue
from services.outbox.events import Event

WATCHED = 0
"""The key of the aggregate that is measured separately: the hot one, or the one that fails."""

_ROWS_A_STEP = 500_000
_IDS_A_MILLISECOND = 4096

# `n` counts the events from 0. The id is a UUIDv7 made from it, so that ids ascend as events do.
_ID = """(lpad(to_hex(%(millisecond)s + n / 4096), 12, '0') || '7' || lpad(to_hex(n %% 4096), 3, '0')
    || '8' || substr(md5(n::text), 1, 15))::uuid"""
_LOG = """
    SELECT id, {type}, 1, 'ping/' || key, jsonb_build_object('key', key, 'number', n, 'text', 'ping ' || n),
        'benchmark-' || n
    FROM (
        SELECT n, {id} AS id, {key} AS key FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
    ) AS new ORDER BY n
"""
_SOME = "SELECT id, aggregate, type, version FROM events WHERE id >= %s AND id < %s ORDER BY id"


class Ping(Event):
    """The `number`-th event; it is about the aggregate `key`."""

    type: ClassVar[str] = "benchmark.ping"
    queued: ClassVar[bool] = True

    key: int
    number: int
    text: str

    @property
    def aggregate(self) -> str:
        return f"ping/{self.key}"


class SecondPing(Ping):
    type: ClassVar[str] = "benchmark.second_ping"


class ThirdPing(Ping):
    type: ClassVar[str] = "benchmark.third_ping"


class FourthPing(Ping):
    type: ClassVar[str] = "benchmark.fourth_ping"


class FifthPing(Ping):
    type: ClassVar[str] = "benchmark.fifth_ping"


PINGS: tuple[type[Ping], ...] = (Ping, SecondPing, ThirdPing, FourthPing, FifthPing)
"""The event types, the same but for their names. Scenarios with one type have only the first."""


@dataclass(frozen=True, slots=True)
class Events:
    """The waiting events: `number` of them, distributed randomly over `aggregates` except for the watched aggregate's.

    The watched aggregate has `watched` events: one block that begins with the `block_at`-th event, or, if that is None,
    the same number spread evenly over all. The events are of the first `types` of `PINGS`, at random, those of one
    aggregate as well.
    """

    number: int
    aggregates: int
    watched: int = 0
    block_at: int | None = None
    types: int = 1

    def type(self) -> str:
        """SQL for the type of event `n`; it does not depend on the aggregate."""
        names = ", ".join(f"'{ping.type}'" for ping in PINGS[: self.types])
        return f"(ARRAY[{names}])[1 + abs(hashint8extended(n, 1) % {self.types})]"

    def key(self) -> str:
        """SQL for the aggregate of event `n`: 1 or higher, or `WATCHED`."""
        other = f"1 + abs(hashint8(n)::bigint) % {self.aggregates}"
        if not self.watched:
            return other
        if self.block_at is None:
            return f"CASE WHEN n % {self.number // self.watched} = 0 THEN {WATCHED} ELSE {other} END"
        end = self.block_at + self.watched
        return f"CASE WHEN n >= {self.block_at} AND n < {end} THEN {WATCHED} ELSE {other} END"


@dataclass(frozen=True, slots=True)
class Log:
    """Events in the log, which can be released to the workers any number of times."""

    number: int
    millisecond: int

    def release(self, connection: psycopg.Connection[tuple[object, ...]], first: int, number: int) -> None:
        """Insert the outbox rows of `number` events, starting with the `first`, in one commit."""
        queue(connection, _SOME, (self._id_from(first), self._id_from(first + number)))

    def _id_from(self, n: int) -> UUID:
        millisecond = self.millisecond + n // _IDS_A_MILLISECOND
        return UUID(int=millisecond << 80 | 7 << 76 | n % _IDS_A_MILLISECOND << 64)


def write_log(connection: psycopg.Connection[tuple[object, ...]], events: Events, at: datetime | None = None) -> Log:
    """Write the events to the log, with nothing in the outbox yet. Their ids are of that time, or of now."""
    log = Log(events.number, int((at or datetime.now(UTC)).timestamp() * 1000))
    select = _LOG.format(id=_ID, key=events.key().replace("%", "%%"), type=events.type().replace("%", "%%"))
    for first in range(0, events.number, _ROWS_A_STEP):
        last = min(first + _ROWS_A_STEP, events.number) - 1
        values = {"millisecond": log.millisecond, "first": first, "last": last}
        with connection.transaction():
            connection.execute((INTO_LOG + select).encode(), values)
    return log


def fill(url: str, events: Events) -> Log:
    """Write the events to the log and the outbox, and vacuum and analyze, as after some time of normal operation."""
    with psycopg.connect(url, autocommit=True) as connection:
        log = write_log(connection, events)
        for first in range(0, events.number, _ROWS_A_STEP):
            log.release(connection, first, min(_ROWS_A_STEP, events.number - first))
        tidy(connection)
        connection.execute("CHECKPOINT")
    return log


def tidy(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Vacuum and analyze tables that are not empty: a plan for an empty table does not suit a full one."""
    for table in ("events", "outbox"):
        if connection.execute(f"SELECT FROM {table} LIMIT 1".encode()).fetchone() is not None:
            connection.execute(f"VACUUM ANALYZE {table}".encode())
