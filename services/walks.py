"""How the keys of a page are read from an index in the order of its sort, and no more of them than necessary."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy
from sqlalchemy import ARRAY, ColumnElement, any_, func, literal, literal_column, true, tuple_, union_all

from services.filters import COMPARE, EXACT, RANGES, VALUES, Filter, Filterable, Operator

EXAMINED = 2000
"""The most rows that a page examines for filters without an index. A page that finds fewer than its limit among them
ends there, and the next one continues."""

_GLANCE = 10
"""The part of these rows, one in ten, that is examined before an index is asked whether few match."""

_SIZES = (51, 201, 1001)
"""How many keys are read for a page: few numbers, since each makes another prepared statement."""


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
class SortOrder:
    """What a list is sorted by."""

    name: str
    """As clients call it."""
    descending: bool
    column: Any
    key: Any
    """A column that makes the order total."""
    owner: Any
    """The column that makes a row unique together with the key, if the key alone does not."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The statements that read the keys.

    They leave PostgreSQL no choice that depends on its estimates: the keys come from one table, by conditions that an
    index supports, up to a limit that is a constant, and rows to examine are looked up one by one.
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
    """As in `SortOrder`."""
    row: tuple[Any, Sequence[ColumnElement[bool]]]
    """The key of the row with the values to examine, and further conditions that make it unique."""
    finders: Sequence[Filter]
    """Those of the others whose rows an index has, in another order or in none."""
    examined: int
    """How many rows are examined at most."""
    may_end_early: bool
    """Whether there may be more rows to examine."""

    @classmethod
    def of(
        cls,
        sort: SortOrder,
        filters: Sequence[Filter],
        within: Sequence[ColumnElement[bool]],
        members: Members | None,
        few: Sequence[Any] | None = None,
    ) -> "Walk":
        """With `few`, among the rows with these keys, of which there are `EXAMINED` at most."""
        by, key, conditions = sort.column, sort.key, list(within)
        others: list[Filter] = []
        # Only one: with two, all rows of one of them could be read to find those of the other.
        chosen = next((one for one in filters if sort.name in one.field.indexed and one.operator in VALUES), None)
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
            sort.descending,
            conditions,
            None if chosen is None else (chosen.field.column, chosen.values),
            others,
            sort.owner,
            (sort.key, within),
            [one for one in others if one.by_trigrams or one.by_value],
            EXAMINED,
            bool(others) and few is None,
        )

    def at_a_glance(self) -> "Walk":
        """The same, but it ends sooner."""
        return replace(self, examined=-(-self.examined // _GLANCE))

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
        near = self._keys(2 * self.examined, after, until).subquery("near")
        rows, matches = self._looked_up(near)
        found = sqlalchemy.select(*near.c).select_from(rows).where(*matches)
        return found.order_by(*self.order(near.c.sort, near.c.key)).limit(constant(most)).subquery("page")

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
        row = sqlalchemy.select(*columns).where(key == near.c.key, *conditions).limit(constant(1)).lateral("row")
        matches = [one.on(column) for one, column in zip(self.others, row.c, strict=True)]
        return near.join(row, true()), matches

    def end(self, after: Any) -> Any:
        """The last row to examine and the one after it; fewer rows if all that are left may be examined."""
        near = self._keys(self.examined + 1, after).subquery("near")
        order = self.order(near.c.sort, near.c.key)
        return sqlalchemy.select(near.c.sort, near.c.key).order_by(*order).offset(constant(self.examined - 1))

    def _keys(self, limit: int, after: Any, until: Any = None) -> Any:
        owner = [] if self.owner is None else [self.owner.label("owner")]
        found = sqlalchemy.select(self.by.label("sort"), self.key.label("key"), *owner).where(*self.conditions)
        if after is not None:
            found = found.where(self._after(after))
        if until is not None:
            found = found.where(self._up_to(until))
        found = found.order_by(*self.order(self.by, self.key)).limit(constant(limit))
        if self.split is None:
            return found
        column, values = self.split
        if len(values) == 1:
            return found.where(column == values[0])
        # Each in order, and merged: the rows of several values together would have to be sorted.
        parts = [found.where(column == value).subquery() for value in values]
        merged = union_all(*(sqlalchemy.select(part) for part in parts)).subquery()
        return sqlalchemy.select(merged).order_by(*self.order(merged.c.sort, merged.c.key)).limit(constant(limit))

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
    rows = sqlalchemy.select(by.label("sort"), key.label("key")).where(is_one, *within).limit(constant(EXAMINED))
    found = rows.subquery("few")
    return (found.c.key if by is key else found.c.sort), found.c.key


def constant(number: int) -> Any:
    """A number in the SQL itself: for a parameter, a plan for any values assumes a tenth of the table."""
    return literal_column(str(number))
