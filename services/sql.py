"""Plain SQL inside a unit of work."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import CursorResult, Executable
from sqlmodel.ext.asyncio.session import AsyncSession


class SqlAccess:
    """What every repository has: the unit of work's session, and plain SQL on its connection."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def _execute(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> CursorResult[Any]:
        """Run a Core statement on the session's connection: the hot paths need no ORM round it."""
        connection = await self.session.connection()
        return await connection.execute(statement, parameters)
