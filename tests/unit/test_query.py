"""Filters, sorts and cursors that a client may send to a list, without a database."""

import base64
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json
from sqlalchemy.dialects import postgresql
from sqlmodel import col, select

from services.catalog.models import Product
from services.errors import BadQuery
from services.fields import Id, Text
from services.filters import EXACT, ORDERED, TEXT, Filterable, Operator
from services.query import Listing, Sortable, _encode

KEY = Sortable(col(Product.id), Id)
FILTERS = {
    "id": Filterable(col(Product.id), Id, ORDERED),
    "name": Filterable(col(Product.name), Text, TEXT),
    "active": Filterable(col(Product.is_active), bool, EXACT),
    "description": Filterable(col(Product.description), Text, frozenset({Operator.is_null})),
}
SORTS = {"id": KEY, "price": Sortable(col(Product.price), Decimal)}


LISTING = Listing[Product](filters=FILTERS, sorts=SORTS, key=KEY, default="id")


def sql(*filters: str) -> str:
    statement = select(Product).where(*(LISTING._filter(one).condition for one in filters))
    compiled = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})  # type: ignore[no-untyped-call]
    return str(compiled).split("WHERE", 1)[-1].strip()


@pytest.mark.parametrize(
    ("filter_", "condition"),
    [
        ("id:eq:3", "products.id = 3"),
        ("id:ne:3", "products.id != 3"),
        ("id:gt:3", "products.id > 3"),
        ("id:gte:3", "products.id >= 3"),
        ("id:lt:3", "products.id < 3"),
        ("id:lte:3", "products.id <= 3"),
        ("id:in:3,4", "products.id IN (3, 4)"),
        ("name:like:a_b", "(products.name ILIKE '%%' || 'a/_b' || '%%' ESCAPE '/')"),
        ("name:like:50%", "(products.name ILIKE '%%' || '50/%%' || '%%' ESCAPE '/')"),
        ("name:eq:a:b", "products.name = 'a:b'"),
        ("description:is_null:true", "products.description IS NULL"),
        ("description:is_null:false", "products.description IS NOT NULL"),
    ],
)
def test_a_filter_becomes_a_condition(filter_: str, condition: str) -> None:
    assert sql(filter_) == condition


@pytest.mark.parametrize("filter_", ["", ":", "::", "price:eq:1", "ID:eq:1", " id:eq:1", "version:eq:1", "id"])
def test_an_unknown_field_or_operator_is_refused_with_the_known_ones(filter_: str) -> None:
    with pytest.raises(BadQuery, match="allowed: "):
        sql(filter_)


@pytest.mark.parametrize(
    "filter_", ["id:like:1", "id:is_null:true", "name:gt:a", "active:lt:true", "description:eq:x", "id:EQ:1", "id::1"]
)
def test_an_unsupported_operator_is_refused_with_the_supported_ones(filter_: str) -> None:
    with pytest.raises(BadQuery) as refused:
        sql(filter_)
    taken = sorted(operator.value for operator in FILTERS[filter_.split(":")[0]].operators)
    assert refused.value.detail.endswith(f"allowed: {', '.join(taken)}")


@pytest.mark.parametrize(
    "filter_",
    ["id:eq:x", "id:eq:", "id:in:1,x", "id:in:" + ",".join("1" * 101), "active:eq:7", "description:is_null:1"],
)
def test_an_invalid_value_is_refused_with_the_name_of_its_field(filter_: str) -> None:
    with pytest.raises(BadQuery, match=f"filter on '{filter_.split(':')[0]}'"):
        sql(filter_)


@given(text=st.text(max_size=60))
def test_any_filter_is_a_condition_or_a_bad_query(text: str) -> None:
    for filter_ in (text, f"name:like:{text}", f"id:in:{text}", f"active:eq:{text}"):
        try:
            LISTING._filter(filter_)
        except BadQuery as refused:
            assert refused.detail  # noqa: PT017


@pytest.mark.parametrize("sort", ["", "-", "name", "--id", "id desc", "+id", "ID"])
def test_an_unknown_sort_is_refused_with_the_known_ones(sort: str) -> None:
    with pytest.raises(BadQuery, match="allowed: id, price"):
        LISTING._sort(sort)


@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price"])
@given(key=st.integers(1, 2**63 - 1), price=st.decimals(0, 10**6, places=2))
def test_a_cursor_gives_back_what_it_was_made_of(sort: str, key: int, price: Decimal) -> None:
    value: Any = price if "price" in sort else key
    cursor = _encode(sort, value, key)
    assert LISTING._decode(cursor, sort) == (value, key)
    assert cursor == "".join(cursor.split())


def test_a_cursor_of_another_sort_is_refused() -> None:
    cursor = _encode("price", Decimal("1.00"), 1)
    with pytest.raises(BadQuery, match="belongs to the sort 'price', not to 'id'"):
        LISTING._decode(cursor, "id")


@given(text=st.text(max_size=200))
def test_any_text_for_a_cursor_is_a_bad_query(text: str) -> None:
    with pytest.raises(BadQuery):
        LISTING._decode(text, "id")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
    )
)
def test_any_json_for_a_cursor_is_a_bad_query_or_a_place(value: Any) -> None:
    cursor = base64.urlsafe_b64encode(to_json(value)).decode()
    try:
        _, key = LISTING._decode(cursor, "id")
    except BadQuery:
        return
    assert isinstance(key, int)
