"""What the log's readers do: consumers, what is new to one of them, how far behind they are."""

from collections.abc import Sequence

from services.outbox.log import queries
from services.outbox.log.schemas import Cursor, Lag, LoggedEvent, Opened
from services.sql import SqlAccess

NOTHING_SEEN = "1:1:"
"""A snapshot in which no transaction has ended."""


class LogRepository(SqlAccess):
    """The log and its consumers."""

    async def create(self, name: str, seen: str) -> bool:
        """False if there is one of that name."""
        return await self.sql.run(queries.CREATE, name=name, seen=seen) == 1

    async def reset(self, name: str, seen: str) -> bool:
        """Waits for whoever is reading; False if there is no consumer of that name."""
        return await self.sql.run(queries.RESET, name=name, seen=seen) == 1

    async def delete(self, name: str) -> bool:
        """Waits for whoever is reading; False if there is no consumer of that name."""
        return await self.sql.run(queries.DELETE, name=name) == 1

    async def exists(self, name: str) -> bool:
        return len(await self.sql.fetch(queries.EXISTS, name=name)) == 1

    async def lock(self, name: str) -> Cursor | None:
        """Take the consumer until the transaction ends; None if another has it or nothing is new to it."""
        rows = await self.sql.fetch(queries.LOCK, name=name)
        return Cursor(**rows[0]) if rows else None

    async def open(self, seen: str) -> Opened:
        """What is new to who has seen `seen`."""
        return Opened(**(await self.sql.fetch(queries.OPEN, seen=seen, nothing=NOTHING_SEEN))[0])

    async def page(self, cursor: Cursor, until: int, types: Sequence[str] | None, limit: int) -> list[LoggedEvent]:
        """The next events that `reading` shows and `seen` does not, by position."""
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
        assert moved == 1, "a consumer's row went away under its lock"

    async def lags(self, most: int) -> list[Lag]:
        """Every consumer by name; at most `most` events are counted for each."""
        return [Lag(**row) for row in await self.sql.fetch(queries.LIST, most=most)]
