"""All SQL of the canaries."""

from uuid import UUID

from services.sql import SqlAccess, Statement


class CanaryRepository(SqlAccess):
    """The canaries' rows."""

    async def write(self, canary_id: UUID, host: str, pid: int, number: int) -> None:
        """Write the canary's row, and delete rows that have not been written for a day."""
        await self.sql.run(_WRITE, id=canary_id, host=host, pid=pid, number=number)

    async def read(self, canary_id: UUID) -> int | None:
        """The number that the canary wrote last; None if it has no row."""
        rows = await self.sql.fetch(_READ, id=canary_id)
        return rows[0]["number"] if rows else None


# A process that stops leaves its row behind; a later one deletes it.
_WRITE = Statement("""
    WITH gone AS (
        DELETE FROM canaries WHERE id IN (
            SELECT id FROM canaries WHERE id <> :id AND written_at < now() - interval '1 day' FOR UPDATE SKIP LOCKED
        )
    )
    INSERT INTO canaries (id, host, pid, number, written_at) VALUES (:id, :host, :pid, :number, now())
    ON CONFLICT (id) DO UPDATE SET number = excluded.number, written_at = excluded.written_at
""")

_READ = Statement("SELECT number FROM canaries WHERE id = :id")
