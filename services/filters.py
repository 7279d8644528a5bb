"""What a client may filter a list by: fields with their operators, and what an index knows of each."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, literal

from services.errors import BadQuery
from services.fields import made_around


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


COMPARE: Mapping[Operator, Callable[[Any, Any], ColumnElement[bool]]] = {
    Operator.eq: operator.eq,
    Operator.ne: operator.ne,
    Operator.gt: operator.gt,
    Operator.gte: operator.ge,
    Operator.lt: operator.lt,
    Operator.lte: operator.le,
}

VALUES = frozenset({Operator.eq, Operator.in_})
RANGES = frozenset({Operator.eq, Operator.gt, Operator.gte, Operator.lt, Operator.lte})

EXACT = frozenset({Operator.eq, Operator.ne, Operator.in_})
ORDERED = EXACT | {Operator.gt, Operator.gte, Operator.lt, Operator.lte}
TEXT = EXACT | {Operator.like}


_THREE_TOGETHER = re.compile(r"[^\W_]{3}")


@dataclass(frozen=True, slots=True)
class Filterable:
    """A column that a client may filter by: what its values look like and which operators it takes.

    Without more, a page examines rows in the order of its sort, `EXAMINED` at most. A comparison with the column of the
    sort itself reads only rows that match.
    """

    column: Any
    type: Any
    operators: frozenset[Operator]
    indexed: frozenset[str] = frozenset()
    """The sorts for which an index has the rows of each value in order, so that `eq` and `in` read only those."""
    trigrams: bool = False
    """Whether a trigram index finds what `like` looks for, if few rows have it."""
    bounds: "Bounds | None" = None
    """A condition that holds for all rows that match, and that an index supports in the order of each sort."""

    @property
    def operator_names(self) -> str:
        """The operators that it takes, for people."""
        return ", ".join(sorted(known.value for known in self.operators))

    def parse(self, name: str, text: str) -> Any:
        """Raises `BadQuery` if the text is not a valid value of this field."""
        try:
            return TypeAdapter(self.type).validate_python(text)
        except ValidationError as error:
            raise BadQuery(f"filter on '{name}': {error.errors()[0]['msg']}") from error


Bounds: TypeAlias = Callable[[Any, Operator, Sequence[Any]], ColumnElement[bool] | None]
"""What is known of the key, or of other columns of its table, if a filter has this operator and these values."""


def made_then(key: Any, operator: Operator, values: Sequence[Any]) -> ColumnElement[bool] | None:
    """The `bounds` of the time at which rows were made, if their key is an id from the same moment."""
    if operator not in RANGES:
        return None
    first, last = made_around(values[0])
    condition: ColumnElement[bool]
    match operator:
        case Operator.eq:
            condition = key.between(first, last)
        case Operator.gt | Operator.gte:
            condition = key >= first
        case _:
            condition = key <= last
    return condition


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that a client sent."""

    field: Filterable
    operator: Operator
    values: Sequence[Any]

    @property
    def by_trigrams(self) -> bool:
        """Whether a trigram index finds the rows. It knows sequences of three letters or digits."""
        return (
            self.field.trigrams
            and self.operator is Operator.like
            and _THREE_TOGETHER.search(self.values[0]) is not None
        )

    @property
    def by_value(self) -> bool:
        """Whether an index has the rows of each of the values, in one order or another."""
        return bool(self.field.indexed) and self.operator in VALUES

    @property
    def condition(self) -> ColumnElement[bool]:
        return self.on(self.field.column)

    def on(self, column: Any) -> ColumnElement[bool]:
        """The condition on a column with the field's values."""
        condition: ColumnElement[bool]
        match self.operator:
            case Operator.in_:
                condition = column.in_(self.values)
            case Operator.is_null:
                condition = column.is_(None) if self.values[0] else column.is_not(None)
            case Operator.like:
                condition = column.icontains(self.values[0], autoescape=True)
            case comparison:
                condition = COMPARE[comparison](column, self.values[0])
        return condition


@dataclass(frozen=True, slots=True)
class Similar(Filter):
    """A search for similar words, by `pg_trgm`'s word similarity. Clients do not write it as a filter."""

    schema: str = ""
    """Where the extension is, quoted: it is not in the search path."""

    @property
    def by_trigrams(self) -> bool:
        """Whether there is a letter or a digit: words are compared by their trigrams, and those have a beginning."""
        return any(character.isalnum() for character in self.values[0])

    def on(self, column: Any) -> ColumnElement[bool]:
        # `<%` is the operator that the trigram index supports.
        return literal(self.values[0]).op(f"OPERATOR({self.schema}.<%)", is_comparison=True)(column)
