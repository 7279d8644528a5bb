"""Generic create, read, update and delete over one model; the domains' repositories build on it."""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, Generic, TypeVar

import sqlalchemy
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import ARRAY, ColumnElement, any_, func, inspect, literal, update
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.base import ExecutableOption
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel, select
from sqlmodel.sql.expression import SelectOfScalar

from services.errors import StaleVersion
from services.fields import SoftDeletable, Versioned, now, picked
from services.filters import Filter
from services.query import Listing, PageQuery, Rows
from services.sql import SqlAccess
from services.walks import Members

ModelT = TypeVar("ModelT", bound=SQLModel)
DeletableT = TypeVar("DeletableT", bound=SoftDeletable)


class Lock(Enum):
    """A lock on rows that are read; it is held until the transaction ends, and the rows are read again under it."""

    change = "change"
    """`FOR NO KEY UPDATE`: no one else changes them. Rows that refer to them can still be inserted."""
    keep = "keep"
    """`FOR SHARE`: they stay as they are. Others may lock them in the same way."""


class Repository(SqlAccess, Generic[ModelT]):
    """One SQLModel table with a single-column primary key. Nothing here commits.

    What goes into a row is validated by the table's own fields, whatever has been validated before. A value that they
    refuse raises `pydantic.ValidationError`.
    """

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

    def _select(self) -> SelectOfScalar[ModelT]:
        """The rows, with what every read needs to have joined."""
        return select(self.model)

    def _locked(self, statement: SelectOfScalar[ModelT], lock: Lock | None) -> SelectOfScalar[ModelT]:
        if lock is None:
            return statement
        statement = statement.with_for_update(of=self.model, read=lock is Lock.keep, key_share=lock is Lock.change)
        return statement.execution_options(populate_existing=True)

    async def get(
        self, key: Any, *, options: Sequence[ExecutableOption] = (), lock: Lock | None = None
    ) -> ModelT | None:
        """The row with this key, or None."""
        statement = self._select().where(self._key == key, *self._visible()).options(*options)
        return (await self.session.exec(self._locked(statement, lock))).one_or_none()

    async def get_many(
        self, keys: Sequence[Any], *, options: Sequence[ExecutableOption] = (), lock: Lock | None = None
    ) -> list[ModelT]:
        """The rows with these keys, ordered by key, in which order they are locked; missing ones are left out."""
        statement = self._select().where(self._among(keys), *self._visible()).options(*options).order_by(self._key)
        return list(await self.session.exec(self._locked(statement, lock)))

    async def list_page(
        self,
        listing: Listing[ModelT],
        wanted: PageQuery,
        *conditions: ColumnElement[bool],
        members: Members | None = None,
        search: Filter | None = None,
        options: Sequence[ExecutableOption] = (),
    ) -> Rows[ModelT]:
        """One page of the rows that match the conditions, the search and the client's filters."""
        statement = self._select().options(*options)
        within = *conditions, *self._visible()
        return await listing.page(self.session, statement, wanted, *within, members=members, search=search)

    async def count(self, *conditions: ColumnElement[bool]) -> int:
        """How many rows match. It reads all of them."""
        statement = select(func.count()).select_from(self.model).where(*conditions, *self._visible())
        return int((await self.session.exec(statement)).one())

    async def exists(self, *conditions: ColumnElement[bool], hidden: bool = False) -> bool:
        """Whether any row matches; with `hidden`, rows that no read shows count as well."""
        visible = () if hidden else self._visible()
        statement = select(literal(True)).select_from(self.model).where(*conditions, *visible).limit(1)
        return (await self.session.exec(statement)).first() is not None

    async def create(self, wanted: BaseModel, *, without: Collection[str] = (), **more: Any) -> ModelT:
        """Write one row; its key and server defaults are read back. See `bulk_create`."""
        (row,) = await self.bulk_create([wanted], without=without, **more)
        return row

    async def bulk_create(
        self, wanted: Sequence[BaseModel], *, without: Collection[str] = (), **more: Any
    ) -> list[ModelT]:
        """Write many rows in the given order, about a thousand per statement. `more` is the same for all.

        `without` names the fields that are not stored as they are. Any other one that the table does not have raises
        `TypeError`: it would be lost.
        """
        for kind in {type(one) for one in wanted}:
            self._check_fields(kind.__name__, kind.model_fields.keys() - set(without))
        rows: list[ModelT] = [self.model.model_validate(one, update=more) for one in wanted]
        self.session.add_all(rows)
        await self.session.flush()
        return rows

    def _check_fields(self, source: str, names: Iterable[str]) -> None:
        lost = sorted(set(names) - self.model.model_fields.keys())
        if lost:
            raise TypeError(f"{self.model.__name__} cannot store {', '.join(lost)} of {source}; say `without` them")

    async def update(
        self, row: ModelT, changes: BaseModel | None = None, *, without: Collection[str] = (), **more: Any
    ) -> bool:
        """Set the fields that are set on the schema, and more. Returns whether any value is another one now.

        If none is, nothing is written, and the version stays. `without` is that of `bulk_create`. Raises
        `StaleDataError` if a versioned row has changed since it was read.
        """
        values = dict(more)
        if changes is not None:
            given = changes.model_fields_set - set(without)
            self._check_fields(type(changes).__name__, given)
            values = {**picked(changes, given), **more}
        row.sqlmodel_update(_validated(self.model, values))
        changed = self.session.is_modified(row)
        await self.session.flush()
        return changed

    async def bulk_update(self, changes: Mapping[Any, Mapping[str, Any]]) -> int:
        """Set values by key, the same fields of each row, with one statement; versions grow. Returns the row count.

        Rows that were read before are read again, without their relationships. To lock in a certain order, use
        `get_many` first.
        """
        if not changes:
            return 0
        columns = self._mapper.columns
        values = [_validated(self.model, one) for one in changes.values()]
        arrays = {name: _array([one[name] for one in values], columns[name].type) for name in values[0]}
        named = [sqlalchemy.column(f"new_{name}", columns[name].type) for name in arrays]
        rows = func.unnest(_array(list(changes), self._key.type), *arrays.values())
        given = rows.table_valued("key", *named, name="given").render_derived()
        new: dict[str, Any] = {name: given.c[f"new_{name}"] for name in arrays}
        version = self._mapper.version_id_col
        if version is not None:
            new[str(version.key)] = version + 1
        statement = (
            update(self.model)
            .where(self._key == given.c.key, *self._visible())
            .values(**new)
            .execution_options(synchronize_session=False)
        )
        result = await self.session.exec(statement)
        await self._read_again(list(changes))
        return result.rowcount

    async def _read_again(self, keys: Sequence[Any]) -> None:
        """Refresh the session's objects. SQLAlchemy would expire them, and an expired attribute cannot be awaited."""
        among = set(keys)
        held = [row for row in self.session.identity_map.values() if isinstance(row, self.model)]
        stale = [key for row in held if (key := self._mapper.primary_key_from_instance(row)[0]) in among]
        if stale:
            statement = select(self.model).where(self._among(stale))
            (await self.session.exec(statement.execution_options(populate_existing=True))).all()

    async def stream(
        self, columns: Sequence[Any], *conditions: ColumnElement[bool], after: Any = None, batch: int = 1000
    ) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """Every matching row after the key `after`, ordered by key, as its key and these columns.

        `batch` rows are in memory at a time. Each batch is a statement of its own that continues after the last key, so
        the caller may end the transaction between two batches, or stop and continue in another one: then a slow reader
        of the stream holds neither a connection nor a snapshot. A row that is changed meanwhile is shown as its batch
        finds it.
        """
        while True:
            following = () if after is None else (self._key > after,)
            statement = sqlalchemy.select(self._key, *columns).where(*conditions, *self._visible(), *following)
            found = await self.session.exec(statement.order_by(self._key).limit(batch))  # type: ignore[call-overload]
            rows = found.all()
            if rows:
                yield rows
            if len(rows) < batch:
                return
            after = rows[-1][0]


class SoftDeleteRepository(Repository[DeletableT]):
    """A repository over a model with `deleted_at`: reads, counts and bulk updates ignore deleted rows."""

    def _visible(self) -> Sequence[ColumnElement[bool]]:
        return (self._deleted_at.is_(None),)

    @property
    def _deleted_at(self) -> ColumnElement[Any]:
        return self._mapper.columns["deleted_at"]

    async def get_deleted(self, key: Any) -> DeletableT | None:
        """The row with this key if it is deleted, locked until the transaction ends."""
        statement = self._select().where(self._key == key, self._deleted_at.is_not(None))
        return (await self.session.exec(self._locked(statement, Lock.change))).one_or_none()

    async def soft_delete(self, row: DeletableT, **more: Any) -> None:
        """Hide the row from every read; `restore` brings it back. Sets more fields as well."""
        await self.update(row, deleted_at=now(), **more)

    async def restore(self, row: DeletableT, **more: Any) -> None:
        """Show a deleted row again. Sets more fields as well."""
        await self.update(row, deleted_at=None, **more)


def check_version(row: Versioned, version: int) -> None:
    """Raises `StaleVersion` if this is not the version that the caller has read.

    The row is not locked: if two edits start from the same version, the second write raises `StaleDataError`, which is
    the same to a client.
    """
    if row.version != version:
        (key,) = inspect(row).identity
        name = f"{type(row).__name__.lower()} {key}"
        raise StaleVersion(f"{name} is now at version {row.version}, not {version}; fetch it and try again")


@lru_cache
def _type_of(model: type[SQLModel], name: str) -> TypeAdapter[Any]:
    """Validates one field of a table, with all that its definition says."""
    return TypeAdapter(model.model_fields[name].rebuild_annotation())


def _validated(model: type[SQLModel], values: Mapping[str, Any]) -> dict[str, Any]:
    # Each field alone: what was valid when the rest of the row was written may not be today.
    return {name: _type_of(model, name).validate_python(value) for name, value in values.items()}


def _array(values: Sequence[Any], kind: TypeEngine[Any]) -> ColumnElement[Any]:
    """An array parameter of a column's values. They are valid: a cast to the column's type cuts none of them short."""
    return literal(values, ARRAY(kind))
