"""Consumers of the log: what is new to each one, and how far behind it is."""

from collections.abc import Sequence

from services.outbox.log import queries
from services.outbox.log.schemas import Cursor, Lag, LoggedEvent, Opened
from services.sql import SqlAccess

NOTHING_SEEN = "1:1:"
"""A snapshot in which no transaction has ended yet."""


class LogRepository(SqlAccess):
    """The log and its consumers."""

    async def create(self, name: str, seen: str) -> bool:
        """Add a consumer. Returns False if there is already one of that name."""
        return await self.sql.run(queries.CREATE, name=name, seen=seen) == 1

    async def reset(self, name: str, seen: str) -> bool:
        """Set a consumer back to `seen`, after any running read. Returns False if there is no consumer of that name."""
        return await self.sql.run(queries.RESET, name=name, seen=seen) == 1

    async def delete(self, name: str) -> bool:
        """Delete a consumer, after any running read. Returns False if there is no consumer of that name."""
        return await self.sql.run(queries.DELETE, name=name) == 1

    async def exists(self, name: str) -> bool:
        return len(await self.sql.fetch(queries.EXISTS, name=name)) == 1

    async def lock(self, name: str) -> Cursor | None:
        """Lock the consumer until the transaction ends. None if it is locked already, or nothing is new to it."""
        rows = await self.sql.fetch(queries.LOCK, name=name)
        return Cursor(**rows[0]) if rows else None

    async def open(self, seen: str) -> Opened:
        """What is new since the snapshot `seen`."""
        return Opened(**(await self.sql.fetch(queries.OPEN, seen=seen, nothing=NOTHING_SEEN))[0])

    async def page(self, cursor: Cursor, until: int, types: Sequence[str] | None, limit: int) -> list[LoggedEvent]:
        """The next events that are visible in `reading` but not in `seen`, by position."""
        rows = await self.sql.fetch(
            queries.PAGE,
            after=cursor.position,
            until=until,
            seen=cursor.seen,
            reading=cursor.reading,
            types=None if types is None else list(types),
            limit=limit,
        )
        return [LoggedEvent(**row) for row in rows]

    async def advance(self, name: str, cursor: Cursor) -> None:
        moved = await self.sql.run(
            queries.ADVANCE,
            name=name,
            seen=cursor.seen,
            reading=cursor.reading,
            position=cursor.position,
            until=cursor.until,
        )
        assert moved == 1, "a locked consumer has disappeared"

    async def lags(self, most: int) -> list[Lag]:
        """The lag of every consumer, by name; at most `most` events are counted for each."""
        return [Lag(**row) for row in await self.sql.fetch(queries.LIST, most=most)]
