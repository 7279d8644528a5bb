"""Generic create, read, update and delete over one model; the domains' repositories build on it."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import ARRAY, ColumnElement, any_, func, inspect, literal, update
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import select

from services.fields import now
from services.sql import SqlAccess

ModelT = TypeVar("ModelT")


class Repository(SqlAccess, Generic[ModelT]):
    """One model with a single-column primary key. Nothing here commits."""

    model: ClassVar[type[Any]]

    @property
    def _mapper(self) -> Mapper[Any]:
        mapper: Mapper[Any] = inspect(self.model)
        return mapper

    @property
    def _key(self) -> ColumnElement[Any]:
        return self._mapper.primary_key[0]

    def _among(self, keys: Sequence[Any]) -> ColumnElement[bool]:
        # One array: a statement takes at most 32,767 parameters.
        condition: ColumnElement[bool] = self._key == any_(literal(list(keys), ARRAY(self._key.type)))
        return condition

    def _visible(self) -> Sequence[ColumnElement[bool]]:
        """Conditions that apply to every read."""
        return ()

    async def get(self, key: Any, *, options: Sequence[ExecutableOption] = (), lock: bool = False) -> ModelT | None:
        """The row with this key, or None. `lock` locks it until the transaction ends and reads it again.

        The lock is `FOR NO KEY UPDATE`: rows that refer to this one can still be inserted.
        """
        statement = select(self.model).where(self._key == key, *self._visible()).options(*options)
        if lock:
            statement = statement.with_for_update(of=self.model, key_share=True)
            statement = statement.execution_options(populate_existing=True)
        found: ModelT | None = (await self.session.exec(statement)).one_or_none()
        return found

    async def get_many(self, keys: Sequence[Any], *, options: Sequence[ExecutableOption] = ()) -> list[ModelT]:
        """The rows with these keys, ordered by key; missing ones are left out."""
        statement = select(self.model).where(self._among(keys), *self._visible()).options(*options).order_by(self._key)
        return list(await self.session.exec(statement))

    async def count(self, *conditions: ColumnElement[bool]) -> int:
        statement = select(func.count()).select_from(self.model).where(*conditions, *self._visible())
        return int((await self.session.exec(statement)).one())

    async def exists(self, *conditions: ColumnElement[bool]) -> bool:
        statement = select(literal(True)).select_from(self.model).where(*conditions, *self._visible()).limit(1)
        return (await self.session.exec(statement)).first() is not None

    async def create(self, schema: BaseModel, **more: Any) -> ModelT:
        """Write one row from a validated schema; its key and server defaults are read back."""
        row: ModelT = self.model(**schema.model_dump(), **more)
        self.session.add(row)
        await self.session.flush()
        return row

    async def bulk_create(self, schemas: Sequence[BaseModel], **more: Any) -> list[ModelT]:
        """Write many rows in the given order, about a thousand per statement."""
        rows: list[ModelT] = [self.model(**schema.model_dump(), **more) for schema in schemas]
        self.session.add_all(rows)
        await self.session.flush()
        return rows

    async def update(self, row: ModelT, changes: BaseModel, **more: Any) -> ModelT:
        """Set the fields that are set on the schema. Raises `StaleDataError` if a versioned row has changed since."""
        for name, value in {**changes.model_dump(exclude_unset=True), **more}.items():
            setattr(row, name, value)
        await self.session.flush()
        return row

    async def bulk_update(self, keys: Sequence[Any], **values: Any) -> int:
        """Set the same values on many rows with one statement, and increment their versions. Returns their number."""
        version = self._mapper.version_id_col
        if version is not None:
            values[str(version.key)] = version + 1
        statement = (
            update(self.model)
            .where(self._among(keys), *self._visible())
            .values(**values)
            .execution_options(synchronize_session=False)
        )
        result = await self.session.exec(statement)
        # SQLAlchemy would expire what it cannot compute itself, and an expired attribute cannot be awaited.
        columns = [attribute.key for attribute in self._mapper.column_attrs]
        changed = set(keys)
        for row in list(self.session.identity_map.values()):
            if isinstance(row, self.model) and self._mapper.primary_key_from_instance(row)[0] in changed:
                await self.session.refresh(row, columns)
        return result.rowcount

    async def delete(self, row: ModelT) -> None:
        """Delete the row permanently."""
        await self.session.delete(row)
        await self.session.flush()

    async def stream(self, *conditions: ColumnElement[bool], batch: int = 500) -> AsyncIterator[ModelT]:
        """Every matching row, ordered by key, through a server-side cursor: `batch` rows in memory at a time."""
        statement = select(self.model).where(*conditions, *self._visible()).order_by(self._key)
        result = await self.session.stream_scalars(statement, execution_options={"yield_per": batch})
        try:
            async for row in result:
                yield row
        finally:
            await result.close()


class SoftDeleteRepository(Repository[ModelT]):
    """A repository over a model with `deleted_at`: reads, counts and bulk updates ignore deleted rows."""

    def _visible(self) -> Sequence[ColumnElement[bool]]:
        return (self._deleted_at.is_(None),)

    @property
    def _deleted_at(self) -> ColumnElement[datetime | None]:
        column: ColumnElement[datetime | None] = self._mapper.columns["deleted_at"]
        return column

    async def get_deleted(self, key: Any) -> ModelT | None:
        """The row with this key if it is deleted, locked until the transaction ends."""
        statement = select(self.model).where(self._key == key, self._deleted_at.is_not(None))
        found: ModelT | None = (await self.session.exec(statement.with_for_update(key_share=True))).one_or_none()
        return found

    async def soft_delete(self, row: ModelT) -> None:
        """Hide the row from every read; `restore` brings it back."""
        row.deleted_at = now()  # type: ignore[attr-defined]
        await self.session.flush()

    async def restore(self, row: ModelT) -> None:
        row.deleted_at = None  # type: ignore[attr-defined]
        await self.session.flush()
