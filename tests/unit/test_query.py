"""Filters, sorts and cursors that a client may send to a list, without a database."""

import pkgutil
from collections.abc import Iterator, Sequence
from decimal import Decimal
from importlib import import_module
from string import ascii_letters, digits
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlmodel import col, select

import services
from services import cursors
from services.catalog.models import Product
from services.errors import BadQuery
from services.fields import Id, Text
from services.filters import EXACT, ORDERED, TEXT, Filterable, Operator
from services.orders.models import Order
from services.query import Listing, PageQuery, Sortable

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


def issued(place: Any, sort: str = "id", filters: Sequence[str] = (), scope: str = "") -> str:
    return cursors.encode(LISTING._scope(PageQuery(filters, sort, scope=scope)), place)


def place(cursor: str, sort: str = "id", filters: Sequence[str] = (), scope: str = "") -> Any:
    return LISTING._place(PageQuery(filters, sort, cursor=cursor, scope=scope))


@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price"])
@given(key=st.integers(1, 2**63 - 1), price=st.decimals(0, 10**6, places=2))
def test_a_cursor_gives_back_what_it_was_made_of(sort: str, key: int, price: Decimal) -> None:
    value: Any = price if "price" in sort else key
    cursor = issued((value, key), sort)
    assert place(cursor, sort) == (value, key)
    assert cursor == "".join(cursor.split())


def test_a_cursor_of_another_list_sort_filter_or_search_is_refused() -> None:
    filters = ["id:gt:1", "name:like:a"]
    cursor = issued((1, 1), "price", filters, "/v1/products?q=lamp")
    assert place(cursor, "price", filters[::-1], "/v1/products?q=lamp") == (1, 1), "filters have no order"
    for sort, given_filters, scope in (
        ("id", filters, "/v1/products?q=lamp"),
        ("-price", filters, "/v1/products?q=lamp"),
        ("price", filters[:1], "/v1/products?q=lamp"),
        ("price", ["id:gt:2", "name:like:a"], "/v1/products?q=lamp"),
        ("price", filters, "/v1/products?q=chair"),
    ):
        with pytest.raises(BadQuery, match="was not issued by this list with this sort and these filters; omit it"):
            place(cursor, sort, given_filters, scope)
    other = Listing[Order](filters={}, sorts={"price": KEY}, key=Sortable(col(Order.id), Id), default="price")
    with pytest.raises(BadQuery, match="was not issued by this list"):
        other._place(PageQuery(filters, cursor=cursor, scope="/v1/products?q=lamp"))


@given(text=st.text(max_size=200))
def test_any_text_for_a_cursor_is_a_bad_query(text: str) -> None:
    with pytest.raises(BadQuery):
        place(text)


@given(key=st.integers(1, 2**63 - 1), price=st.decimals(0, 10**6, places=2), data=st.data())
def test_a_cursor_that_was_changed_is_a_bad_query(key: int, price: Decimal, data: st.DataObject) -> None:
    cursor = issued((price, key), "price")
    # The last character may have bits that mean nothing.
    at = data.draw(st.integers(0, len(cursor) - 2))
    other = data.draw(st.sampled_from(ascii_letters + digits + "-_.").filter(lambda one: one != cursor[at]))
    with pytest.raises(BadQuery):
        place(cursor[:at] + other + cursor[at + 1 :], "price")
    with pytest.raises(BadQuery):
        place(cursor[:at], "price")


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
    )
)
def test_any_made_up_place_is_a_bad_query_or_a_place(value: Any) -> None:
    try:
        _, key = place(issued(value))
    except BadQuery:
        return
    assert isinstance(key, int)


def listings() -> Iterator[Listing[Any]]:
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if module.name.endswith(".repository"):
            yield from (one for one in vars(import_module(module.name)).values() if isinstance(one, Listing))


def test_the_longest_text_that_can_be_stored_fits_into_a_cursor() -> None:
    texts = {
        (listing.key.column.table.name, name): sort.column.type.length
        for listing in listings()
        for name, sort in listing.sorts.items()
        if getattr(sort.column.type, "length", None)
    }
    assert texts == {
        ("categories", "name"): 200,
        ("outbox", "aggregate"): 100,
        ("products", "name"): 200,
        ("users", "email"): 254,
    }
    # JSON writes one of these as six characters; no character takes more bytes.
    for longest in texts.values():
        assert len(issued(("\x01" * longest, 2**63 - 1))) <= cursors.LONGEST
