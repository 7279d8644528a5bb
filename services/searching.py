"""Whether few rows match a condition, as an index finds out within a fixed time, whatever the planner expects."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError
from sqlmodel.ext.asyncio.session import AsyncSession

from services.sql import CANCELED, Sql, Statement, sqlstate

MILLISECONDS = 250
"""How long the index may take to tell. A trigram index must read all rows with a sequence of letters that is common."""

_BEFORE = (
    Statement("SAVEPOINT before_searching"),
    # The planner would read the table if it expected to find enough rows soon, and read all of it if it was wrong.
    Statement("SET LOCAL enable_seqscan = off"),
    Statement(f"SET LOCAL statement_timeout = {MILLISECONDS}"),
)
# It undoes the settings as well.
_AFTER = (Statement("ROLLBACK TO SAVEPOINT before_searching"), Statement("RELEASE SAVEPOINT before_searching"))


async def soon_found(session: AsyncSession, statement: "Select[Any]", most: int) -> Sequence[Any] | None:
    """The values of the statement's first column, if they are `most` or fewer and found in time; otherwise None.

    The statement has a limit above `most`.
    """
    await Sql.of(session).run_together(*_BEFORE)
    found: Sequence[Any] | None = None
    try:
        result = await session.exec(statement)  # type: ignore[call-overload]
        found = cast("Sequence[Any]", result.scalars().all())
    except DBAPIError as error:
        if sqlstate(error) != CANCELED:
            raise
    await Sql.of(session).run_together(*_AFTER)
    return None if found is None or len(found) > most else found
