"""All SQL about scheduled jobs. All times are by the database's clock."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from services.jobs import queries
from services.jobs.schemas import Ended, Seen, Taken
from services.sql import Row, SqlAccess


class JobRepository(SqlAccess):
    """The rows of scheduled jobs: announced by workers, claimed, and controlled by operators."""

    async def now(self) -> datetime:
        """The database's clock."""
        (row,) = await self.sql.fetch(queries.NOW)
        found: datetime = row["now"]
        return found

    async def announce(self, name: str, schedule: str, due_at: datetime, lease: float) -> None:
        """Create a job's row, due at `due_at`. An existing row keeps its time unless that is later.

        Its lease, if any, ends in `lease` seconds at the latest.
        """
        await self.sql.run(queries.ANNOUNCE, name=name, schedule=schedule, due_at=due_at, lease=lease)

    async def look(self) -> list[Seen]:
        """All rows, including those that are unknown to this worker."""
        return [Seen(**row) for row in await self.sql.fetch(queries.LOOK)]

    async def claim(self, name: str, owner: UUID, lease: float) -> Taken | None:
        """Take a due job for `lease` seconds.

        Returns None if it is not due, is leased, or is being claimed by another worker.
        """
        rows = await self.sql.fetch(queries.CLAIM, name=name, owner=owner, lease=lease)
        return next((Taken(**row) for row in rows), None)

    async def renew(self, name: str, owner: UUID, lease: float) -> bool:
        """Keep the job for `lease` seconds from now; False if another worker has it."""
        return await self.sql.run(queries.RENEW, name=name, owner=owner, lease=lease) == 1

    async def release(self, name: str, owner: UUID) -> None:
        """Give up the lease; the job is still due."""
        await self.sql.run(queries.RELEASE, name=name, owner=owner)

    async def finish(self, name: str, owner: UUID, ended: Ended, due_at: datetime) -> bool:
        """Record how the run ended and when the next one is due; False if another worker has the job."""
        return (
            await self.sql.run(
                queries.FINISH, name=name, owner=owner, due_at=due_at, seconds=ended.seconds, error=ended.error
            )
            == 1
        )

    async def request(self, name: str, actor: str) -> bool:
        """Request a run as soon as a worker is free; False if there is no such job."""
        return await self.sql.run(queries.REQUEST, name=name, actor=actor) == 1

    async def pause(self, name: str, actor: str, reason: str) -> bool:
        """Keep workers from claiming it on its schedule; False if there is no such job."""
        return await self.sql.run(queries.PAUSE, name=name, actor=actor, reason=reason) == 1

    async def resume(self, name: str) -> bool:
        """Let workers claim it again; False if there is no such job."""
        return await self.sql.run(queries.RESUME, name=name) == 1

    async def states(self) -> Sequence[Row]:
        """Every job, who runs it, and whether a live worker knows it (assumed while none is alive)."""
        return await self.sql.fetch(queries.LIST)
