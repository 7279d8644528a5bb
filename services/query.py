"""Lists that clients may filter and sort: an allow-list of fields and operators, and keyset pages."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import sqlalchemy
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import ColumnElement, func, union_all
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from services import cursors, walks
from services.errors import BadQuery
from services.filters import Filter, Filterable, Operator
from services.searching import soon_found
from services.totals import MAX_COUNTED, Count, Total, counted, estimated
from services.walks import Members, SortOrder, Walk, constant

ItemT = TypeVar("ItemT")
ShownT = TypeVar("ShownT")

MAX_IN_VALUES = 100

_CUSTOM_PLAN = select(func.set_config("plan_cache_mode", "force_custom_plan", True))
"""For this transaction. A plan for any value would be wrong for some: rare ones are found by an index on the column,
and common ones by looking at each row."""


class Page(BaseModel, Generic[ItemT]):
    """One page of a list. `next_cursor` asks for the next one and is null on the last.

    With filters, a page may have fewer items than its limit, or none, although `has_more` is true.
    """

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

    def shown(self, show: Callable[[ItemT], ShownT]) -> Page[ShownT]:
        """The page, with each row as `show` shows it."""
        data = [show(one) for one in self.data]
        return Page(data=data, has_more=self.has_more, next_cursor=self.next_cursor, total=self.total)


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
    scope: str = ""
    """What else the client asked for, such as a search: a cursor is good only for the same."""


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
    owner: Any = None
    """The column that makes a row unique together with the key, if the key alone does not."""

    def describe_filters(self) -> str:
        """One sentence for the documentation: each field with its operators."""
        if not self.filters:
            return "This list takes no filters."
        fields = (f"`{name}` ({self.filters[name].operator_names})" for name in sorted(self.filters))
        return f"`field:operator:value`; all must match. Fields: {', '.join(fields)}."

    def describe_sorts(self) -> str:
        """One sentence for the documentation: what the list may be sorted by."""
        fields = ", ".join(f"`{name}`" for name in sorted(self.sorts))
        return f"One of {fields}; `-` in front for descending. Default: `{self.default}`."

    def conditions(self, filters: Sequence[str]) -> list[ColumnElement[bool]]:
        """What these filters ask for."""
        return [self._filter(one).condition for one in filters]

    async def page(
        self,
        session: AsyncSession,
        statement: SelectOfScalar[ItemT],
        wanted: PageQuery,
        *within: ColumnElement[bool],
        members: Members | None = None,
        search: Filter | None = None,
    ) -> Rows[ItemT]:
        """Up to `limit` rows after the cursor.

        `statement` selects rows with what is shown of them. The list has those that match `within`, conditions on the
        table of the key, and are among the `members`. An index must have them in the order of each sort: their keys are
        read first, no more than the page needs, and only these rows are then looked up and joined.

        It takes one statement, and one for each `selectinload` option. With filters that no index supports in this
        order, another one first finds the last row to examine. If an index without the order may know that few match,
        it may take more: see `_found`. A total takes one more: it counts the rows of the first pages, and examines no
        more than `MAX_COUNTED`.
        """
        sort = self._order(wanted)
        filters = [*(self._filter(one) for one in wanted.filters), *([] if search is None else [search])]
        walk = Walk.of(sort, filters, within, members)
        after = None if wanted.cursor is None else self._place(wanted)
        if walk.split is not None:
            await session.exec(_CUSTOM_PLAN)

        def among(few: Sequence[Any]) -> Walk:
            return replace(Walk.of(sort, filters, within, members, few), finders=())

        total = None
        if wanted.count is Count.exact:
            few = await self._few(session, walk, within)
            walk = replace(walk, finders=()) if few is None else among(few)
            total = counted(*(await session.exec(walk.number(MAX_COUNTED + 1))).one())
        elif wanted.count is Count.estimate:
            every = [*within, *(one.condition for one in filters)]
            every += [] if members is None else [members.has(self.key.column)]
            # Without what is joined to show a row: a filter may look it up in the same table.
            total = await estimated(session, sqlalchemy.select(self.key.column).where(*every))

        async def read(walk: Walk) -> Rows[ItemT]:
            return await self._read(session, statement, wanted, walk, after)

        async def read_few() -> Rows[ItemT] | None:
            few = await self._few(session, walk, within)
            if few is None:
                return None
            return await read(among(few)) if few else Rows([], False, None)

        return replace(await _found(walk, wanted.limit, read, read_few), total=total)

    async def _read(
        self,
        session: AsyncSession,
        statement: SelectOfScalar[ItemT],
        wanted: PageQuery,
        walk: Walk,
        after: tuple[Any, Any] | None,
    ) -> Rows[ItemT]:
        """The page, as one walk finds it."""
        end = (await session.exec(walk.end(after))).all() if walk.may_end_early else []
        page_keys = walk.page(wanted.limit + 1, after, until=end[0] if len(end) == 2 else None)
        is_on_it = page_keys.c.key == self.key.column
        if self.owner is not None:
            # With a fixed owner instead, PostgreSQL might read all its rows up to the page, if it expects few.
            is_on_it &= page_keys.c.owner == self.owner
        statement = statement.join(page_keys, is_on_it)
        # One extra row shows whether there is a next page.
        statement = statement.order_by(*walk.order(page_keys.c.sort, page_keys.c.key)).limit(wanted.limit + 1)
        rows = (await session.exec(statement)).all()
        await asyncio.sleep(0)  # Loading a large page takes some milliseconds, and so does what comes next.
        page = list(rows[: wanted.limit])
        if len(rows) > wanted.limit:
            return Rows(page, True, self.cursor_after(page[-1], wanted))
        if len(end) == 2:
            return Rows(page, True, cursors.encode(self._scope(wanted), tuple(end[0])))
        return Rows(page, False, None)

    def cursor_after(self, row: ItemT, wanted: PageQuery) -> str:
        """The cursor of the page that begins after this row."""
        by = self._order(wanted).column
        return cursors.encode(self._scope(wanted), [getattr(row, by.key), getattr(row, self.key.column.key)])

    def within(self, rows: Rows[ItemT], wanted: PageQuery, weights: Sequence[int], most: int) -> Rows[ItemT]:
        """As many of the page's first rows as have this weight together at most, and one in any case.

        Each row has its weight: what a reply spends on what belongs to it, such as a number of lines.
        """
        fitting = sum(total <= most for total in accumulate(weights))
        kept = rows.data[: max(1, fitting)]
        if len(kept) == len(rows.data):
            return rows
        return Rows(kept, True, self.cursor_after(kept[-1], wanted), rows.total)

    async def _few(
        self, session: AsyncSession, walk: Walk, within: Sequence[ColumnElement[bool]]
    ) -> Sequence[Any] | None:
        """The keys of all rows that match one of the filters; None if an index does not soon find that they are few.

        It may be wrong about a row that does not match the others, or what the list is `within`.
        """
        for one in walk.finders:
            keys = await soon_found(session, self._finder(one, within), walks.EXAMINED)
            if keys is not None:
                return keys
        return None

    def _finder(self, one: Filter, within: Sequence[ColumnElement[bool]]) -> Any:
        """The keys of rows that match the filter, `EXAMINED` and one more at most, by no index but the filter's."""
        key, column, most = self.key.column, one.field.column, constant(walks.EXAMINED + 1)
        if one.by_trigrams:
            # The index has all rows of the table. Conditions on them could lead the planner to another index, which it
            # would have to read from end to end.
            return sqlalchemy.select(key).where(one.condition).limit(most)
        # As ranges, in their order: for a common value, the planner would read an index of another order, and leave out
        # the other rows.
        rows = sqlalchemy.select(key, column).where(*within).order_by(column).limit(most)
        parts = [rows.where(column.between(value, value)) for value in one.values]
        return parts[0] if len(parts) == 1 else union_all(*parts).limit(most)

    def _sort(self, wanted: str | None) -> str:
        if wanted is None:
            return self.default
        if wanted.removeprefix("-") not in self.sorts:
            raise BadQuery(f"cannot sort by '{wanted}'; allowed: {_names(self.sorts)}, with '-' for descending")
        return wanted

    def _filter(self, expression: str) -> Filter:
        name, _, rest = expression.partition(":")
        operator_name, _, value = rest.partition(":")
        field = self.filters.get(name)
        if field is None:
            raise BadQuery(f"cannot filter by '{name}'; allowed: {_names(self.filters)}, written field:operator:value")
        if operator_name not in {known.value for known in field.operators}:
            raise BadQuery(f"'{name}' has no operator '{operator_name}'; allowed: {field.operator_names}")
        match Operator(operator_name):
            case Operator.in_ as chosen:
                texts = value.split(",")
                if len(texts) > MAX_IN_VALUES:
                    raise BadQuery(f"filter on '{name}': at most {MAX_IN_VALUES} values")
                return Filter(field, chosen, list(dict.fromkeys(field.parse(name, text) for text in texts)))
            case Operator.is_null as chosen:
                if value not in ("true", "false"):
                    raise BadQuery(f"filter on '{name}': is_null takes true or false")
                return Filter(field, chosen, [value == "true"])
            case chosen:
                return Filter(field, chosen, [field.parse(name, value)])

    def _order(self, wanted: PageQuery) -> SortOrder:
        """What the page is sorted by."""
        sort = self._sort(wanted.sort)
        name = sort.removeprefix("-")
        return SortOrder(name, sort.startswith("-"), self.sorts[name].column, self.key.column, self.owner)

    def _scope(self, wanted: PageQuery) -> list[str]:
        """What a cursor belongs to. The order of the filters makes no difference."""
        return [str(self.key.column), wanted.scope, self._sort(wanted.sort), *sorted(set(wanted.filters))]

    def _place(self, wanted: PageQuery) -> tuple[Any, Any]:
        """The place of the cursor: a value of the sort, and a key."""
        found = cursors.decode(self._scope(wanted), wanted.cursor or "")
        by = self.sorts[self._order(wanted).name]
        try:
            sort_value, key = found
            return TypeAdapter(by.type).validate_python(sort_value), TypeAdapter(self.key.type).validate_python(key)
        except (ValueError, TypeError) as error:
            raise cursors.not_issued() from error


async def _found(
    walk: Walk,
    limit: int,
    read: Callable[[Walk], Awaitable[Rows[ItemT]]],
    read_few: Callable[[], Awaitable[Rows[ItemT] | None]],
) -> Rows[ItemT]:
    """The page that `read` finds by this walk, or `read_few` among the few rows that match a filter, if they are few.

    If none of the first rows matches, few rows may match. An index then finds them sooner than this walk would end.
    """
    if walk.finders:
        rows = await read(walk.at_a_glance())
        if not rows.has_more or len(rows.data) == limit:
            return rows
        if not rows.data:
            if (found := await read_few()) is not None:
                return found
            walk = replace(walk, finders=())
    rows = await read(walk)
    if rows.has_more and len(rows.data) < limit and walk.finders and (found := await read_few()) is not None:
        return found
    return rows


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(sorted(fields))
