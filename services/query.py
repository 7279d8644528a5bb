"""Lists that clients may filter and sort: an allow-list of fields and operators, and keyset pages."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import sqlalchemy
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import ARRAY, ColumnElement, any_, func, literal, literal_column, true, tuple_, union_all
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from services import cursors
from services.errors import BadQuery
from services.filters import COMPARE, EXACT, RANGES, VALUES, Filter, Filterable, Operator
from services.searching import soon_found
from services.totals import MAX_COUNTED, Count, Total, counted, estimated

ItemT = TypeVar("ItemT")
ShownT = TypeVar("ShownT")

MAX_IN_VALUES = 100

EXAMINED = 2000
"""The most rows that a page examines for filters without an index. A page that finds fewer than its limit among them
ends there, and the next one continues."""

_SIZES = (51, 201, 1001)
"""How many keys are read for a page: few numbers, since each makes another prepared statement."""

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
class Members:
    """The rows of a list that another table assigns to one owner, with an index by owner and key."""

    key: Any
    """The column of that table that holds the list's key."""
    condition: ColumnElement[bool]

    def has(self, key: Any) -> ColumnElement[bool]:
        """Whether the row with this key is one of them."""
        is_one: ColumnElement[bool] = key.in_(sqlalchemy.select(self.key).where(self.condition))
        return is_one


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
        order, another one first finds the last row to examine. If the page then ends there with too few rows, and an
        index without the order may know that few match, those are found and sorted (`_few`). A total takes one
        more: it counts the rows of the first pages, and examines no more than `MAX_COUNTED`.
        """
        sort = self._sort(wanted.sort)
        filters = [*(self._filter(one) for one in wanted.filters), *([] if search is None else [search])]
        walk = _Walk.of(self, sort, filters, within, members)
        after = None if wanted.cursor is None else self._place(wanted, sort)
        if walk.split is not None:
            await session.exec(_CUSTOM_PLAN)
        total = None
        if wanted.count is Count.exact:
            few = await self._few(session, walk, within)
            walk = walk if few is None else replace(_Walk.of(self, sort, filters, within, members, few), finders=())
            total = counted(*(await session.exec(walk.number(MAX_COUNTED + 1))).one())
        elif wanted.count is Count.estimate:
            every = [*within, *(one.condition for one in filters)]
            every += [] if members is None else [members.has(self.key.column)]
            # Without what is joined to show a row: a filter may look it up in the same table.
            total = await estimated(session, sqlalchemy.select(self.key.column).where(*every))
        rows = await self._read(session, statement, wanted, walk, after)
        if rows.has_more and len(rows.data) < wanted.limit:
            few = await self._few(session, walk, within)
            if few is not None:
                walk = _Walk.of(self, sort, filters, within, members, few)
                rows = await self._read(session, statement, wanted, walk, after)
        return replace(rows, total=total)

    async def _read(
        self,
        session: AsyncSession,
        statement: SelectOfScalar[ItemT],
        wanted: PageQuery,
        walk: "_Walk",
        after: tuple[Any, Any] | None,
    ) -> Rows[ItemT]:
        """The page, as one walk finds it."""
        end = (await session.exec(walk.end(after))).all() if walk.others else []
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
        sort = self._sort(wanted.sort)
        if len(rows) > wanted.limit:
            return Rows(page, True, self.cursor_after(page[-1], wanted))
        if len(end) == 2:
            return Rows(page, True, cursors.encode(self._scope(wanted, sort), tuple(end[0])))
        return Rows(page, False, None)

    def cursor_after(self, row: ItemT, wanted: PageQuery) -> str:
        """The cursor of the page that begins after this row."""
        sort = self._sort(wanted.sort)
        by = self.sorts[sort.removeprefix("-")].column
        return cursors.encode(self._scope(wanted, sort), [getattr(row, by.key), getattr(row, self.key.column.key)])

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
        self, session: AsyncSession, walk: "_Walk", within: Sequence[ColumnElement[bool]]
    ) -> Sequence[Any] | None:
        """The keys of all rows that match one of the filters; None if an index does not soon find that they are few.

        It may be wrong about a row that does not match the others, or what the list is `within`.
        """
        for one in walk.finders:
            keys = await soon_found(session, self._finder(one, within), EXAMINED)
            if keys is not None:
                return keys
        return None

    def _finder(self, one: Filter, within: Sequence[ColumnElement[bool]]) -> Any:
        """The keys of rows that match the filter, `EXAMINED` and one more at most, by no index but the filter's."""
        key, column, most = self.key.column, one.field.column, _constant(EXAMINED + 1)
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

    def _scope(self, wanted: PageQuery, sort: str) -> list[str]:
        """What a cursor belongs to. The order of the filters makes no difference."""
        return [str(self.key.column), wanted.scope, sort, *sorted(set(wanted.filters))]

    def _place(self, wanted: PageQuery, sort: str) -> tuple[Any, Any]:
        """The place of the cursor: a value of the sort, and a key."""
        found = cursors.decode(self._scope(wanted, sort), wanted.cursor or "")
        by = self.sorts[sort.removeprefix("-")]
        try:
            sort_value, key = found
            return TypeAdapter(by.type).validate_python(sort_value), TypeAdapter(self.key.type).validate_python(key)
        except (ValueError, TypeError) as error:
            raise cursors.not_issued() from error


@dataclass(frozen=True, slots=True)
class _Walk:
    """How the keys of a page are read from an index in the order of the sort, and no more of them than necessary.

    The statements leave PostgreSQL no choice that depends on its estimates: the keys come from one table, by conditions
    that an index supports, up to a limit that is a constant, and rows to examine are looked up one by one.
    """

    by: Any
    key: Any
    descending: bool
    conditions: Sequence[ColumnElement[bool]]
    """What the index supports."""
    split: tuple[Any, Sequence[Any]] | None
    """A column of which the index has the rows of each value in order, and the values that are wanted."""
    others: Sequence[Filter]
    """What each row has to be examined for."""
    owner: Any
    """See `Listing.owner`."""
    row: tuple[Any, Sequence[ColumnElement[bool]]]
    """The key of the row with the values to examine, and further conditions that make it unique."""
    finders: Sequence[Filter]
    """Those of the others whose rows an index has, in another order or in none."""

    @classmethod
    def of(
        cls,
        listing: Listing[Any],
        sort: str,
        filters: Sequence[Filter],
        within: Sequence[ColumnElement[bool]],
        members: Members | None,
        few: Sequence[Any] | None = None,
    ) -> "_Walk":
        """With `few`, among the rows with these keys, of which there are `EXAMINED` at most."""
        name, key = sort.removeprefix("-"), listing.key.column
        by, conditions = listing.sorts[name].column, list(within)
        others: list[Filter] = []
        # Only one: with two, all rows of one of them could be read to find those of the other.
        chosen = next((one for one in filters if name in one.field.indexed and one.operator in VALUES), None)
        if few is not None:
            chosen, conditions = None, []
        if members is not None and chosen is None and few is None:
            by = key = members.key
            conditions = [members.condition]
        elif members is not None:
            is_member = sqlalchemy.select(literal(True)).where(members.key == key, members.condition).scalar_subquery()
            others.append(Filter(Filterable(is_member, bool, EXACT), Operator.eq, [True]))
        for one in filters:
            bounds = one.field.bounds
            if few is None and bounds is not None and (bound := bounds(key, one.operator, one.values)) is not None:
                conditions.append(bound)
            if few is None and one.field.column is by and one.operator in RANGES:
                conditions.append(one.condition)
            elif one is not chosen:
                others.append(one)
        if few is not None:
            by, key = _among(few, by, key, within)
        return cls(
            by,
            key,
            sort.startswith("-"),
            conditions,
            None if chosen is None else (chosen.field.column, chosen.values),
            others,
            listing.owner,
            (listing.key.column, within),
            [one for one in others if one.by_trigrams or one.by_value],
        )

    def order(self, by: Any, key: Any) -> list[ColumnElement[Any]]:
        """The order of the sort, on these columns."""
        columns = [key] if self.by is self.key else [by, key]
        return [column.desc() if self.descending else column.asc() for column in columns]

    def page(self, most: int, after: Any, until: Any) -> Any:
        """The first rows, `most` or a few more, with the columns `sort` and `key`."""
        most = next((size for size in _SIZES if size >= most), most)
        if not self.others:
            return self._keys(most, after).subquery("page")
        # With room for rows that were added after `until` was read.
        near = self._keys(2 * EXAMINED, after, until).subquery("near")
        rows, matches = self._looked_up(near)
        found = sqlalchemy.select(*near.c).select_from(rows).where(*matches)
        return found.order_by(*self.order(near.c.sort, near.c.key)).limit(_constant(most)).subquery("page")

    def number(self, most: int) -> Any:
        """How many rows there are to examine, `most` at most, and how many of those match."""
        near = self._keys(most, None).subquery("near")
        rows, matches = self._looked_up(near) if self.others else (near, ())
        return sqlalchemy.select(func.count(), func.count().filter(true(), *matches)).select_from(rows)

    def _looked_up(self, near: Any) -> tuple[Any, Sequence[ColumnElement[bool]]]:
        """These keys with the values to examine, and the conditions on those."""
        key, conditions = self.row
        columns = [one.field.column.label(f"value_{number}") for number, one in enumerate(self.others)]
        # One row each time, whatever is cheaper by PostgreSQL's estimate.
        row = sqlalchemy.select(*columns).where(key == near.c.key, *conditions).limit(_constant(1)).lateral("row")
        matches = [one.on(column) for one, column in zip(self.others, row.c, strict=True)]
        return near.join(row, true()), matches

    def end(self, after: Any) -> Any:
        """The last row to examine and the one after it; fewer rows if all that are left may be examined."""
        near = self._keys(EXAMINED + 1, after).subquery("near")
        order = self.order(near.c.sort, near.c.key)
        return sqlalchemy.select(near.c.sort, near.c.key).order_by(*order).offset(_constant(EXAMINED - 1))

    def _keys(self, limit: int, after: Any, until: Any = None) -> Any:
        owner = [] if self.owner is None else [self.owner.label("owner")]
        found = sqlalchemy.select(self.by.label("sort"), self.key.label("key"), *owner).where(*self.conditions)
        if after is not None:
            found = found.where(self._after(after))
        if until is not None:
            found = found.where(self._up_to(until))
        found = found.order_by(*self.order(self.by, self.key)).limit(_constant(limit))
        if self.split is None:
            return found
        column, values = self.split
        if len(values) == 1:
            return found.where(column == values[0])
        # Each in order, and merged: the rows of several values together would have to be sorted.
        parts = [found.where(column == value).subquery() for value in values]
        merged = union_all(*(sqlalchemy.select(part) for part in parts)).subquery()
        return sqlalchemy.select(merged).order_by(*self.order(merged.c.sort, merged.c.key)).limit(_constant(limit))

    def _after(self, place: Any) -> ColumnElement[bool]:
        return COMPARE[Operator.lt if self.descending else Operator.gt](*self._places(place))

    def _up_to(self, place: Any) -> ColumnElement[bool]:
        return COMPARE[Operator.gte if self.descending else Operator.lte](*self._places(place))

    def _places(self, place: Any) -> tuple[Any, Any]:
        """The place of a row and that of the given one, to be compared."""
        sort, key = place
        if self.by is self.key:
            return self.key, literal(key, self.key.type)
        there = tuple_(literal(sort, self.by.type), literal(key, self.key.type))
        return tuple_(self.by, self.key), there


def _among(few: Sequence[Any], by: Any, key: Any, within: Sequence[ColumnElement[bool]]) -> tuple[Any, Any]:
    """The columns of the sort and the key, of the rows with these keys. They are looked up, and sorted afterwards."""
    is_one = key == any_(literal(list(few), ARRAY(key.type)))
    # With the limit, PostgreSQL cannot read all rows in the order of the sort instead.
    rows = sqlalchemy.select(by.label("sort"), key.label("key")).where(is_one, *within).limit(_constant(EXAMINED))
    found = rows.subquery("few")
    return (found.c.key if by is key else found.c.sort), found.c.key


def _constant(number: int) -> Any:
    """A number in the SQL itself: for a parameter, a plan for any values assumes a tenth of the table."""
    return literal_column(str(number))


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(sorted(fields))
