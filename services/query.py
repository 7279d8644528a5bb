"""Lists that clients may filter and sort: an allow-list of fields and operators, and keyset pages."""

import base64
import binascii
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from sqlalchemy import ColumnElement, tuple_
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from services.errors import BadQuery

ItemT = TypeVar("ItemT")

MAX_IN_VALUES = 100


class Page(BaseModel, Generic[ItemT]):
    """One page of a list. `next_cursor` asks for the next one and is null on the last."""

    data: list[ItemT]
    has_more: bool
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Rows(Generic[ItemT]):
    """One page of rows, as a repository reads it; a route shows it as a `Page` of the domain's public schema."""

    data: list[ItemT]
    has_more: bool
    next_cursor: str | None


class Operator(StrEnum):
    """How a filter compares."""

    eq = "eq"
    ne = "ne"
    gt = "gt"
    gte = "gte"
    lt = "lt"
    lte = "lte"
    like = "like"
    in_ = "in"
    is_null = "is_null"


_COMPARE: Mapping[Operator, Callable[[Any, Any], ColumnElement[bool]]] = {
    Operator.eq: operator.eq,
    Operator.ne: operator.ne,
    Operator.gt: operator.gt,
    Operator.gte: operator.ge,
    Operator.lt: operator.lt,
    Operator.lte: operator.le,
}

EXACT = frozenset({Operator.eq, Operator.ne, Operator.in_})
ORDERED = EXACT | {Operator.gt, Operator.gte, Operator.lt, Operator.lte}
TEXT = EXACT | {Operator.like}


@dataclass(frozen=True, slots=True)
class Filterable:
    """A column that a client may filter by: what its values look like and which operators it takes."""

    column: Any
    type: Any
    operators: frozenset[Operator]

    def parse(self, name: str, text: str) -> Any:
        """Raises `BadQuery` when the text is no value of this field."""
        try:
            return TypeAdapter(self.type).validate_python(text)
        except ValidationError as error:
            raise BadQuery(f"filter on '{name}': {error.errors()[0]['msg']}") from error


@dataclass(frozen=True, slots=True)
class Sortable:
    """A column, never null, that a list may be sorted by."""

    column: Any
    type: Any


class QueryBuilder(Generic[ItemT]):
    """Adds a client's filters, sort and page to a statement.

    Filters are written `field:operator:value`, such as `price:gte:10.00`, `status:in:pending,confirmed` or
    `name:like:lamp` (contains, any case; `%` and `_` mean themselves). Sorts are a field's name, with `-` in front for
    descending. What is not on the lists raises `BadQuery` naming what is.
    """

    def __init__(
        self,
        statement: SelectOfScalar[ItemT],
        *,
        filters: Mapping[str, Filterable],
        sorts: Mapping[str, Sortable],
        key: Sortable,
        default_sort: str,
    ) -> None:
        self._statement = statement
        self._filters = filters
        self._sorts = sorts
        self._key = key
        self._sort = default_sort

    def filter(self, expressions: Sequence[str]) -> "QueryBuilder[ItemT]":
        for expression in expressions:
            self._statement = self._statement.where(self._condition(expression))
        return self

    def sort(self, expression: str | None) -> "QueryBuilder[ItemT]":
        if expression is not None:
            if expression.removeprefix("-") not in self._sorts:
                raise BadQuery(
                    f"cannot sort by '{expression}'; allowed: {_names(self._sorts)}, with '-' for descending"
                )
            self._sort = expression
        return self

    async def page(self, session: AsyncSession, *, limit: int, cursor: str | None) -> Rows[ItemT]:
        """Up to `limit` rows after the cursor, with one statement (and one for each `selectinload` option)."""
        name = self._sort.removeprefix("-")
        descending = self._sort.startswith("-")
        by = self._sorts[name]
        statement = self._statement
        if cursor is not None:
            after = tuple_(by.column, self._key.column)
            last = tuple_(*self._decode(cursor))
            statement = statement.where(after < last if descending else after > last)
        order = [column.desc() if descending else column.asc() for column in (by.column, self._key.column)]
        # One row more than asked for tells whether there is a next page.
        rows = (await session.exec(statement.order_by(*order).limit(limit + 1))).all()
        page, has_more = list(rows[:limit]), len(rows) > limit
        next_cursor = None
        if has_more:
            last_row = page[-1]
            next_cursor = self._encode(getattr(last_row, by.column.key), getattr(last_row, self._key.column.key))
        return Rows(page, has_more, next_cursor)

    def _condition(self, expression: str) -> ColumnElement[bool]:
        name, _, rest = expression.partition(":")
        operator_name, _, value = rest.partition(":")
        field = self._filters.get(name)
        if field is None:
            raise BadQuery(f"cannot filter by '{name}'; allowed: {_names(self._filters)}, written field:operator:value")
        if operator_name not in {known.value for known in field.operators}:
            allowed = ", ".join(sorted(known.value for known in field.operators))
            raise BadQuery(f"'{name}' has no operator '{operator_name}'; allowed: {allowed}")
        column: ColumnElement[Any] = field.column
        match Operator(operator_name):
            case Operator.like:
                return column.icontains(field.parse(name, value), autoescape=True)
            case Operator.in_:
                values = value.split(",")
                if len(values) > MAX_IN_VALUES:
                    raise BadQuery(f"filter on '{name}': at most {MAX_IN_VALUES} values")
                return column.in_([field.parse(name, text) for text in values])
            case Operator.is_null:
                if value not in ("true", "false"):
                    raise BadQuery(f"filter on '{name}': is_null takes true or false")
                return column.is_(None) if value == "true" else column.is_not(None)
            case comparison:
                return _COMPARE[comparison](column, field.parse(name, value))

    def _encode(self, sort_value: Any, key: Any) -> str:
        return base64.urlsafe_b64encode(to_json([self._sort, sort_value, key])).decode().rstrip("=")

    def _decode(self, cursor: str) -> tuple[Any, Any]:
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            sort, sort_value, key = from_json(raw)
            if sort != self._sort:
                raise BadQuery(f"this cursor belongs to the sort '{sort}', not to '{self._sort}'")
            by = self._sorts[self._sort.removeprefix("-")]
            return TypeAdapter(by.type).validate_python(sort_value), TypeAdapter(self._key.type).validate_python(key)
        except (binascii.Error, ValueError, TypeError) as error:
            raise BadQuery("the cursor is not one that this list gave out; leave it out to start again") from error


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(sorted(fields))
