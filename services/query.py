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
from services.totals import Count, Total, total_of

ItemT = TypeVar("ItemT")

MAX_IN_VALUES = 100


class Page(BaseModel, Generic[ItemT]):
    """One page of a list. `next_cursor` asks for the next one and is null on the last."""

    data: list[ItemT]
    has_more: bool
    next_cursor: str | None = None
    total: Total | None = None
    """Only if the request asks for it with `count`."""


@dataclass(frozen=True, slots=True)
class Rows(Generic[ItemT]):
    """One page of rows, as a repository reads it; a route shows it as a `Page` of the domain's public schema."""

    data: list[ItemT]
    has_more: bool
    next_cursor: str | None
    total: Total | None = None


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
        """Raises `BadQuery` if the text is not a valid value of this field."""
        try:
            return TypeAdapter(self.type).validate_python(text)
        except ValidationError as error:
            raise BadQuery(f"filter on '{name}': {error.errors()[0]['msg']}") from error


@dataclass(frozen=True, slots=True)
class Sortable:
    """A column that is never null and that a list may be sorted by."""

    column: Any
    type: Any


@dataclass(frozen=True, slots=True)
class PageQuery:
    """The page of a list that a client asks for."""

    filters: Sequence[str] = ()
    sort: str | None = None
    limit: int = 50
    cursor: str | None = None
    count: Count | None = None
    """Whether to find the total as well."""


# Without slots: a frozen generic with slots cannot be made as `Listing[Row](...)` in Python 3.11.
@dataclass(frozen=True)
class Listing(Generic[ItemT]):
    """What clients may filter and sort a list by. It builds the query and describes it in the OpenAPI document.

    Filters are written `field:operator:value`, such as `price:gte:10.00`, `status:in:pending,confirmed` or
    `name:like:lamp` (contains, case-insensitive; `%` and `_` are literal). A sort is a field's name, with `-` in front
    for descending; `default` is one of them. `key` makes the order total. Anything else raises `BadQuery`, which lists
    what is allowed.
    """

    filters: Mapping[str, Filterable]
    sorts: Mapping[str, Sortable]
    key: Sortable
    default: str

    def describe_filters(self) -> str:
        """One sentence for the documentation: each field with its operators."""
        if not self.filters:
            return "This list takes no filters."
        fields = (f"`{name}` ({_operators(self.filters[name])})" for name in sorted(self.filters))
        return f"`field:operator:value`; all must match. Fields: {', '.join(fields)}."

    def describe_sorts(self) -> str:
        """One sentence for the documentation: what the list may be sorted by."""
        fields = ", ".join(f"`{name}`" for name in sorted(self.sorts))
        return f"One of {fields}; `-` in front for descending. Default: `{self.default}`."

    def where(self, statement: SelectOfScalar[ItemT], filters: Sequence[str]) -> SelectOfScalar[ItemT]:
        """The statement with these filters."""
        return statement.where(*(self._condition(expression) for expression in filters))

    async def page(
        self,
        session: AsyncSession,
        statement: SelectOfScalar[ItemT],
        wanted: PageQuery,
        *within: ColumnElement[bool],
    ) -> Rows[ItemT]:
        """Up to `limit` rows after the cursor, of those that match `within`.

        It takes one statement, one for each `selectinload` option, and one for the total if that is wanted.
        """
        statement = self.where(statement.where(*within), wanted.filters)
        total = None if wanted.count is None else await total_of(session, statement, wanted.count)
        sort = self._sort(wanted.sort)
        by, descending = self.sorts[sort.removeprefix("-")], sort.startswith("-")
        if wanted.cursor is not None:
            after = tuple_(by.column, self.key.column)
            last = tuple_(*self._decode(wanted.cursor, sort))
            statement = statement.where(after < last if descending else after > last)
        order = [column.desc() if descending else column.asc() for column in (by.column, self.key.column)]
        # One extra row shows whether there is a next page.
        rows = (await session.exec(statement.order_by(*order).limit(wanted.limit + 1))).all()
        page, has_more = list(rows[: wanted.limit]), len(rows) > wanted.limit
        next_cursor = None
        if has_more:
            last_row = page[-1]
            next_cursor = _encode(sort, getattr(last_row, by.column.key), getattr(last_row, self.key.column.key))
        return Rows(page, has_more, next_cursor, total)

    def _sort(self, wanted: str | None) -> str:
        if wanted is None:
            return self.default
        if wanted.removeprefix("-") not in self.sorts:
            raise BadQuery(f"cannot sort by '{wanted}'; allowed: {_names(self.sorts)}, with '-' for descending")
        return wanted

    def _condition(self, expression: str) -> ColumnElement[bool]:
        name, _, rest = expression.partition(":")
        operator_name, _, value = rest.partition(":")
        field = self.filters.get(name)
        if field is None:
            raise BadQuery(f"cannot filter by '{name}'; allowed: {_names(self.filters)}, written field:operator:value")
        if operator_name not in {known.value for known in field.operators}:
            raise BadQuery(f"'{name}' has no operator '{operator_name}'; allowed: {_operators(field)}")
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

    def _decode(self, cursor: str, sort: str) -> tuple[Any, Any]:
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            given, sort_value, key = from_json(raw)
            if given != sort:
                raise BadQuery(f"this cursor belongs to the sort '{given}', not to '{sort}'")
            by = self.sorts[sort.removeprefix("-")]
            return TypeAdapter(by.type).validate_python(sort_value), TypeAdapter(self.key.type).validate_python(key)
        except (binascii.Error, ValueError, TypeError) as error:
            raise BadQuery("the cursor was not issued by this list; omit it to start from the first page") from error


def _encode(sort: str, sort_value: Any, key: Any) -> str:
    return base64.urlsafe_b64encode(to_json([sort, sort_value, key])).decode().rstrip("=")


def _operators(field: Filterable) -> str:
    return ", ".join(sorted(known.value for known in field.operators))


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(sorted(fields))
