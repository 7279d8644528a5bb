"""All SQL about personal data."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, literal, select, text, tuple_

from services.database import metadata
from services.sql import Row, SqlAccess
from services.users.personal import queries
from services.users.personal.queries import SOURCES


class PersonalRepository(SqlAccess):
    """What is stored about a user, in all tables."""

    async def find(self, *, user_id: int | None = None, email: str | None = None) -> int | None:
        """The id of the user, even of a deleted one; None if there is none, or it was erased."""
        for row in await self.sql.fetch(queries.FIND, user_id=user_id, email=email):
            return int(row["id"])
        return None

    async def lock(self, user_id: int) -> Row | None:
        """The address of the user, and whether they are deleted, locked until the transaction ends."""
        for row in await self.sql.fetch(queries.LOCK, user_id=user_id):
            return row
        return None

    async def lock_orders(self, user_id: int) -> None:
        """Lock the user's orders that an erasure changes, until the transaction ends. Accounts are locked later."""
        await self.sql.fetch(queries.LOCK_ORDERS, user_id=user_id)

    async def account_id(self, user_id: int) -> int:
        """The account of the user; 0, which no account has, if there is none."""
        for row in await self.sql.fetch(queries.ACCOUNT, user_id=user_id):
            return int(row["id"])
        return 0

    async def blocked(self, user_id: int) -> Row:
        """The user's balance, and how much of what is not finished concerns them. The account must be locked."""
        (row,) = await self.sql.fetch(queries.BLOCKED, user_id=user_id)
        return row

    async def erase(self, user_id: int, email: str) -> None:
        """Replace or delete what identifies the user. It cannot be undone."""
        for statement in queries.ERASE:
            await self.sql.run(statement, user_id=user_id)
        await self.sql.run(queries.ERASE_ADDRESS, email=email)

    async def rows(
        self, part: str, user_id: int, account_id: int, after: Sequence[Any] | None, limit: int
    ) -> Sequence[Sequence[Any]]:
        """Up to `limit` rows of a part of an export, as `columns_of`, after the key `after`."""
        source = SOURCES[part]
        table = metadata.tables[source.table]
        key = [table.c[name] for name in source.key]
        whose = text(source.condition)
        whose = whose.bindparams(
            **{
                name: value
                for name, value in (("user_id", user_id), ("account_id", account_id))
                if f":{name}" in source.condition
            }
        )
        statement = select(*(table.c[name] for name in columns_of(part))).where(whose).order_by(*key).limit(limit)
        if after is not None:
            statement = statement.where(_beyond(key, after))
        return (await (await self.session.connection()).execute(statement)).all()


def columns_of(part: str) -> list[str]:
    """The columns that an export has of this part."""
    source = SOURCES[part]
    return [column.name for column in metadata.tables[source.table].columns if column.name not in source.without]


def _beyond(key: Sequence[ColumnElement[Any]], after: Sequence[Any]) -> ColumnElement[bool]:
    values = tuple_(*(literal(value, column.type) for column, value in zip(key, after, strict=True)))
    return tuple_(*key) > values
