"""Consumers of the log: what is new to each one, and how far behind it is."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from uuid import UUID

from services.fields import id_at
from services.outbox.log import queries
from services.outbox.log.schemas import Cursor, Extent, Lag, Lease, LoggedEvent, Look, Opened, Place, SinkState
from services.outbox.models import NOTHING_SEEN
from services.sql import SqlAccess


class LogRepository(SqlAccess):
    """The log and its consumers."""

    async def create(self, name: str, seen: str) -> bool:
        """Add a consumer. Returns False if there is already one of that name."""
        return await self.sql.run(queries.CREATE, name=name, seen=seen) == 1

    async def reset(self, name: str, seen: str, *, is_sink: bool = False) -> bool:
        """Set a consumer back to `seen`, after any running read. Returns False if there is none of that name and kind.

        `is_sink` is whether its place is kept in another database.
        """
        return await self.sql.run(queries.RESET, name=name, seen=seen, is_sink=is_sink) == 1

    async def delete(self, name: str) -> bool:
        """Delete a consumer, after any running read. Returns False if there is no consumer of that name."""
        return await self.sql.run(queries.DELETE, name=name) == 1

    async def exists(self, name: str) -> bool:
        return len(await self.sql.fetch(queries.EXISTS, name=name)) == 1

    async def lock(self, name: str) -> Cursor | None:
        """Lock the consumer until the transaction ends. None if it is locked already, or nothing is new to it."""
        rows = await self.sql.fetch(queries.LOCK, name=name)
        return Cursor(**rows[0]) if rows else None

    async def look(self, name: str, lease: Lease) -> Look | None:
        """Where the consumer is, without locking it. None if the lease has been taken away; it may have expired."""
        rows = await self.sql.fetch(queries.LOOK, name=name, owner=lease.owner, token=lease.token)
        return Look(**rows[0]) if rows else None

    async def open(self, seen: str) -> Opened:
        """What is new since the snapshot `seen`."""
        return Opened(**(await self.sql.fetch(queries.OPEN, seen=seen, nothing=NOTHING_SEEN))[0])

    async def page(self, cursor: Cursor, until: int, types: Sequence[str] | None, limit: int) -> list[LoggedEvent]:
        """The next events that are visible in `reading` but not in `seen`, by position."""
        rows = await self.sql.fetch(
            queries.READ_PAGE,
            after=cursor.position,
            until=until,
            seen=cursor.seen,
            reading=cursor.reading,
            types=None if types is None else list(types),
            limit=limit,
        )
        return [LoggedEvent(**row) for row in rows]

    async def look_from_memory(self, seen: str) -> tuple[bool, str]:
        """Whether there may be events that are not visible in the snapshot `seen`, and the server's timeline."""
        (row,) = await self.sql.fetch(queries.LOOK_FROM_MEMORY, seen=seen)
        return row["news"], row["timeline"]

    async def tail(
        self, seen: str, looked: int, types: Sequence[str] | None, aggregate: str | None, limit: int
    ) -> list[LoggedEvent]:
        """The last events that are visible in the snapshot `seen`, among the last `looked` of them, by position."""
        rows = await self.sql.fetch(
            queries.TAIL,
            seen=seen,
            looked=looked,
            types=None if types is None else list(types),
            aggregate=aggregate,
            limit=limit,
        )
        return [LoggedEvent(**row) for row in reversed(rows)]

    async def advance(self, name: str, cursor: Cursor) -> None:
        moved = await self.sql.run(queries.ADVANCE, name=name, **asdict(cursor))
        assert moved == 1, "a locked consumer has disappeared"

    async def own(self) -> str:
        """The id of this transaction, which it gets now if it has none."""
        (row,) = await self.sql.fetch(queries.OWN)
        return str(row["own"])

    async def advance_leased(self, name: str, stored: Cursor, cursor: Cursor, lease: Lease, own: str) -> bool:
        """Advance, and renew the lease; False if it is lost, or if `own` is not this transaction.

        Also False if the place is not `stored` any more: a commit that this worker gave up took effect after all.
        """
        moved = await self.sql.run(
            queries.ADVANCE_LEASED,
            name=name,
            **asdict(cursor),
            stored=[stored.seen, stored.reading, str(stored.position)],
            owner=lease.owner,
            token=lease.token,
            seconds=lease.seconds,
            own=own,
        )
        return moved == 1

    async def look_at_sink(self, name: str, lease: Lease, cursor: Cursor) -> SinkState | None:
        """What was handed out to the sink at this place. None if the lease is lost, or nothing was ever handed out."""
        rows = await self.sql.fetch(
            queries.LOOK_AT_SINK,
            name=name,
            owner=lease.owner,
            token=lease.token,
            seen=cursor.seen,
            reading=cursor.reading,
        )
        return SinkState(**rows[0]) if rows else None

    async def add_sink(self, name: str) -> None:
        """Note that the consumer's place is kept in another database."""
        await self.sql.run(queries.ADD_SINK, name=name)

    async def hand_out(
        self, name: str, lease: Lease, state: SinkState, place: Place, *, read_id: UUID | None, clear: bool
    ) -> tuple[int, bool] | None:
        """Move the consumer to the sink's place, and count a read if it has an id; None if it has changed, or is lost.

        Returns the number of the last read, and whether every event that was dropped comes before the place. `clear`
        ends a series of failures.
        """
        rows = await self.sql.fetch(
            queries.HAND_OUT,
            name=name,
            **asdict(place.cursor),
            number=place.number,
            owner=lease.owner,
            token=lease.token,
            seconds=lease.seconds,
            series=state.series,
            reads=state.reads,
            stored=state.stored,
            read_id=read_id,
            clear=clear,
        )
        return next(((int(row["reads"]), bool(row["whole"])) for row in rows), None)

    async def restart_sink(self, name: str) -> UUID:
        """Begin another series; returns it."""
        (row,) = await self.sql.fetch(queries.RESTART_SINK, name=name)
        series: UUID = row["series"]
        return series

    async def extent(self) -> Extent:
        """What the log holds."""
        return Extent(**(await self.sql.fetch(queries.EXTENT))[0])

    async def written_since(self, at: datetime, most: int) -> int:
        """How many events were made since then, up to `most`."""
        (row,) = await self.sql.fetch(queries.WRITTEN, first=id_at(at), most=most)
        return int(row["events"])

    async def claim(self, name: str, owner: UUID, seconds: float) -> Lease | None:
        """Take the lease. None if another worker has it, or the consumer is paused or waits after a failure.

        The owner may take it again: its transactions under the lease before can no longer commit then.
        """
        rows = await self.sql.fetch(queries.CLAIM, name=name, owner=owner, seconds=seconds)
        return next((Lease(owner, int(row["token"]), seconds) for row in rows), None)

    async def holds(self, name: str, lease: Lease) -> bool:
        """Whether the lease has not been taken away; it may have expired."""
        return len(await self.sql.fetch(queries.HOLDS, name=name, owner=lease.owner, token=lease.token)) == 1

    async def renew(self, name: str, lease: Lease) -> bool:
        """Keep the lease for its time from now; False if it is lost."""
        return await self.sql.run(queries.RENEW, name=name, **asdict(lease)) == 1

    async def release(self, name: str, lease: Lease) -> None:
        """Give up the lease."""
        await self.sql.run(queries.RELEASE, name=name, owner=lease.owner, token=lease.token)

    async def fail(self, name: str, lease: Lease, error: str) -> None:
        """Note a failure and give up the lease; any worker may try again after a time that grows to five minutes."""
        await self.sql.run(queries.FAIL, name=name, owner=lease.owner, token=lease.token, error=error)

    async def pause(self, name: str, actor: str) -> bool:
        """Take the lease away, and let no worker claim it; False if no worker has ever run a consumer of that name."""
        return await self.sql.run(queries.PAUSE, name=name, actor=actor) == 1

    async def resume(self, name: str) -> bool:
        """Let workers claim it again, immediately; False if there is no consumer of that name."""
        return await self.sql.run(queries.RESUME, name=name) == 1

    async def oldest(self) -> UUID | None:
        """The lowest event id of the log."""
        rows = await self.sql.fetch(queries.OLDEST)
        return next((row["id"] for row in rows), None)

    async def lags(self, most: int) -> list[Lag]:
        """The lag of every consumer, by name; at most `most` events are counted for each."""
        await self.sql.run(queries.WITHOUT_SORTING)
        rows = await self.sql.fetch(queries.LIST, most=most)
        await self.sql.run(queries.SORTING)
        return [Lag(**row) for row in rows]
