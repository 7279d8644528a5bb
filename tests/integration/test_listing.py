"""`Listing`: each operator, and keyset pages that visit every row exactly once."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import pytest
from pydantic import Field
from sqlalchemy import func, text
from sqlmodel import col, select

from services import query, totals, walks
from services.catalog.models import Category, Product
from services.catalog.repository import PRODUCTS, CategoryRepository
from services.database import Database
from services.fields import Id, Text
from services.filters import ORDERED, TEXT, Filterable, Operator, Similar
from services.orders.models import Order
from services.query import Listing, PageQuery, Rows, Sortable
from services.totals import Count, Precision, Total
from services.unit_of_work import UnitOfWork
from tests.factories import count_statements, make_category, make_order, make_product, make_user
from tests.rounds import Rounds

EVERYTHING = frozenset(Operator)
NAME = Filterable(col(Category.name), Text, EVERYTHING)
KEY = Sortable(col(Category.id), Id)


@pytest.fixture
async def uow(database: Database) -> AsyncIterator[UnitOfWork]:
    async with UnitOfWork(database.write) as opened:
        yield opened


async def names(uow: UnitOfWork, *filters: str) -> list[str]:
    listing = Listing[Category](filters={"name": NAME}, sorts={"id": KEY}, key=KEY, default="id")
    return [row.name for row in (await listing.page(uow.session, select(Category), PageQuery(filters))).data]


async def test_loading_a_page_and_what_comes_next_are_steps_of_their_own(
    uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded_in: list[int] = []
    execute = uow.session.exec

    async def execute_and_note(*arguments: Any, **options: Any) -> Any:
        result = await execute(*arguments, **options)
        loaded_in.append(rounds.number)
        return result

    monkeypatch.setattr(uow.session, "exec", execute_and_note)
    with Rounds() as rounds:
        await names(uow)
        # Whatever else was ready came before the next step.
        assert rounds.number > loaded_in[-1]


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ("name:eq:b", ["b"]),
        ("name:eq:B", []),
        ("name:ne:b", ["a", "c", "50% _x_", "50 xxx"]),
        ("name:gt:b", ["c"]),
        ("name:gte:b", ["b", "c"]),
        ("name:lt:b", ["a", "50% _x_", "50 xxx"]),
        ("name:lte:b", ["a", "b", "50% _x_", "50 xxx"]),
        ("name:in:a,c,zebra", ["a", "c"]),
        ("name:like:C", ["c"]),
        ("name:like:0%", ["50% _x_"]),
        ("name:like:_X_", ["50% _x_"]),
        ("name:like:%", ["50% _x_"]),
        ("name:like:\\", []),
        ("name:like:", ["a", "b", "c", "50% _x_", "50 xxx"]),
        ("name:is_null:true", []),
        ("name:is_null:false", ["a", "b", "c", "50% _x_", "50 xxx"]),
        ("name:eq:", []),
        ("name:eq:'; DROP TABLE users; --", []),
    ],
)
async def test_each_operator_compares_as_it_says(
    database: Database, uow: UnitOfWork, filter_: str, found: list[str]
) -> None:
    for name in ("a", "b", "c", "50% _x_", "50 xxx"):
        await make_category(database, name)
    assert await names(uow, filter_) == found


async def test_is_null_finds_what_is_missing(database: Database, uow: UnitOfWork) -> None:
    buyer, product = await make_user(database), await make_product(database)
    without = await make_order(database, buyer=buyer, lines=[(product, 1)])
    with_one = await make_order(database, buyer=buyer, lines=[(product, 1)], reference="INV:1")

    async def found(*filters: str) -> list[Any]:
        page = await uow.orders.page(PageQuery(filters, limit=9))
        return [order.id for order in page.data]

    assert await found("reference:is_null:true") == [without.id]
    assert await found("reference:is_null:false") == [with_one.id]
    assert await found("reference:eq:INV:1") == [with_one.id], "only the first two colons part the filter"


async def test_all_filters_must_hold(database: Database, uow: UnitOfWork) -> None:
    for name in ("ab", "bc", "ac"):
        await make_category(database, name)
    assert await names(uow, "name:like:a", "name:like:c") == ["ac"]


def products(uow: UnitOfWork, sort: str, limit: int, cursor: str | None) -> Any:
    return uow.products.page(PageQuery(sort=sort, limit=limit, cursor=cursor))


async def visit(uow: UnitOfWork, sort: str, limit: int) -> list[Product]:
    rows: list[Product] = []
    cursor = None
    while True:
        page: Rows[Product] = await products(uow, sort, limit, cursor)
        rows += page.data
        assert len(rows) <= 100, "the pages go round in circles"
        assert page.has_more == (page.next_cursor is not None)
        if page.next_cursor is None:
            return rows
        assert len(page.data) == limit
        cursor = page.next_cursor


async def fill(database: Database, prices: Sequence[str]) -> list[int]:
    seller, category = await make_user(database), await make_category(database)
    return [
        (await make_product(database, seller=seller, category=category, price=price, name=f"N{price}")).id
        for price in prices
    ]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 11, 50])
@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price", "name", "-name", "created_at", "-created_at"])
async def test_pages_visit_every_row_once_in_order_even_if_values_are_equal(
    database: Database, uow: UnitOfWork, sort: str, limit: int
) -> None:
    ids = await fill(database, ["2.00", "1.00", "2.00", "2.00", "1.00", "3.00", "2.00"])
    async with database.engine.begin() as connection:
        await connection.execute(
            text("UPDATE products SET created_at = '2026-01-01 00:00:00.123456+00' WHERE id % 2 = 0")
        )
    rows = await visit(uow, sort, limit)
    assert sorted(row.id for row in rows) == sorted(ids)
    name = sort.removeprefix("-")
    expected = sorted(rows, key=lambda row: (getattr(row, name), row.id), reverse=sort.startswith("-"))
    assert [row.id for row in rows] == [row.id for row in expected]


@pytest.mark.parametrize("sort", ["price", "-price"])
async def test_rows_added_meanwhile_neither_repeat_nor_hide_others(
    database: Database, uow: UnitOfWork, sort: str
) -> None:
    ids = await fill(database, ["2.00"] * 4 + ["3.00"] * 2)
    seen: list[int] = []
    cursor = None
    for turn in range(20):
        page = await products(uow, sort, 2, cursor)
        seen += [row.id for row in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
        if turn < 3:
            # One before, one at and one after the reader's place.
            await fill(database, ["1.00", "2.00", "4.00"])
    assert len(seen) == len(set(seen))
    assert set(ids) <= set(seen)


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price"])
@pytest.mark.parametrize(
    ("filters", "matching"),
    [
        (["price:ne:1.00"], {"2.00", "3.00"}),
        (["price:in:1.00,3.00"], {"1.00", "3.00"}),
        (["price:eq:3.00"], {"3.00"}),
        (["price:gt:1.00", "price:ne:2.00"], {"3.00"}),
        (["price:gt:9.00"], set()),
        (["created_at:lt:2020-01-01T00:00:00Z"], set()),
    ],
)
async def test_pages_that_may_examine_few_rows_visit_every_match_once_in_order(
    database: Database,
    uow: UnitOfWork,
    monkeypatch: pytest.MonkeyPatch,
    filters: list[str],
    matching: set[str],
    sort: str,
    limit: int,
) -> None:
    monkeypatch.setattr(walks, "EXAMINED", 3)
    await fill(database, ["1.00"] * 7 + ["3.00"] + ["1.00"] * 4 + ["2.00", "3.00", "3.00", "1.00", "2.00"])
    rows: list[Product] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = await uow.products.page(PageQuery(filters, sort, limit, cursor))
        assert len(page.data) <= limit
        rows, cursor, pages = [*rows, *page.data], page.next_cursor, pages + 1
        assert pages < 40, "the pages go round in circles"
    everything = await visit(uow, sort, 50)
    assert [row.id for row in rows] == [row.id for row in everything if str(row.price) in matching]


async def test_a_page_without_matches_says_that_there_is_more_to_examine(
    database: Database, uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "EXAMINED", 3)
    await fill(database, ["1.00"] * 5 + ["2.00"])
    first = await uow.products.page(PageQuery(["price:ne:1.00"], "id"))
    assert (first.data, first.has_more) == ([], True)
    second = await uow.products.page(PageQuery(["price:ne:1.00"], "id", cursor=first.next_cursor))
    assert ([str(row.price) for row in second.data], second.has_more) == (["2.00"], False)


@pytest.mark.parametrize("sort", ["id", "-id", "price", "-price", "name"])
async def test_a_filter_by_several_values_merges_their_rows_in_order(
    database: Database, uow: UnitOfWork, sort: str
) -> None:
    seller, other, nobody = [await make_user(database) for _ in range(3)]
    category = await make_category(database)
    for number, price in enumerate(["3.00", "1.00", "2.00", "2.00", "1.00", "3.00"]):
        owner = (seller, other, nobody)[number % 3]
        await make_product(database, seller=owner, category=category, price=price, name=f"N{price}")
    among = f"seller_id:in:{seller.id},{other.id},{other.id}"
    seen: list[int] = []
    cursor = None
    for _ in range(9):
        page = await uow.products.page(PageQuery([among], sort, 2, cursor))
        seen += [row.id for row in page.data]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == [row.id for row in await visit(uow, sort, 50) if row.seller_id != nobody.id]
    assert len(seen) == 4


NAMES = ["oak lamp", "tin lamp", "oak box", "tin box", "oak bowl", "tin bowl", "oak chair", "brass lamp", "oak bed"]


@pytest.mark.parametrize("limit", [1, 2, 50])
@pytest.mark.parametrize("sort", ["id", "-id", "name", "-name", "price", "-created_at"])
async def test_a_search_finds_every_match_once_in_order_whether_few_rows_match_or_many(
    database: Database, uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch, sort: str, limit: int
) -> None:
    monkeypatch.setattr(walks, "EXAMINED", 3)
    seller, category = await make_user(database), await make_category(database)
    for number, name in enumerate(NAMES):
        price = f"{number % 3 + 1}.00"
        await make_product(database, seller=seller, category=category, name=name, price=price, sku=f"S{number}")
    await make_product(database, seller=seller, category=category, name="oak lamp", is_active=False)
    everything = await visit(uow, sort, 50)

    async def found(*filters: str, words: str | None = None) -> list[str]:
        names: list[str] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = await uow.products.page(PageQuery(filters, sort, limit, cursor), words)
            names, cursor, pages = [*names, *(row.name for row in page.data)], page.next_cursor, pages + 1
            assert pages < 40, "the pages go round in circles"
        return names

    def expected(*wanted: str) -> list[str]:
        return [row.name for row in everything if all(one in row.name for one in wanted)]

    assert await found("name:like:LAMP") == expected("lamp")
    assert await found("name:like:oak") == expected("oak"), "more than may be examined"
    assert await found("name:like:la") == expected("la"), "too short for trigrams"
    assert await found("name:like:lamp", "name:like:oak") == ["oak lamp"]
    assert await found("sku:in:S0,S4") == [name for name in expected("oak") if name in (NAMES[0], NAMES[4])]
    assert await found(words="chair") == ["oak chair"]
    assert await found("price:gt:1.00", words="lamp") == [name for name in expected("lamp") if name != "oak lamp"]
    assert await found(words="oak") == expected("oak")
    assert await found(words="%%") == []
    at_once = await uow.products.page(PageQuery(["name:like:chair"], sort, limit))
    assert [row.name for row in at_once.data] == ["oak chair"]
    assert limit == 1 or not at_once.has_more, "a full page does not look for more, and there may be some"


@pytest.mark.parametrize(
    ("lamps", "asked", "examined"),
    [
        pytest.param(range(25, 26), 1, 3, id="rare"),
        pytest.param(range(5, 40), 1, 30, id="none at first, but many"),
        pytest.param(range(2, 26, 23), 1, 30, id="one at first, and few"),
        pytest.param(range(40), 0, 3, id="everything"),
    ],
)
async def test_an_index_is_asked_for_few_rows_as_soon_as_a_glance_finds_none(
    database: Database, uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch, lamps: range, asked: int, examined: int
) -> None:
    monkeypatch.setattr(walks, "EXAMINED", 30)
    seller, category = await make_user(database), await make_category(database)
    for number in range(40):
        name = f"{'lamp' if number in lamps else 'chair'} {number}"
        await make_product(database, seller=seller, category=category, name=name)
    with count_statements(database.engine) as sent:
        page = await uow.products.page(PageQuery(sort="id", limit=3), "lamp")
    assert [row.name for row in page.data] == [f"lamp {number}" for number in lamps[:3]]
    walked = [one for one in sent.statements if "AS near" in one and "AS few" not in one]
    ends = [int(found) for one in walked for found in re.findall(r"OFFSET (\d+)", one)]
    assert max(ends) + 1 == examined
    assert sum("AS near" not in one and "LIMIT 31" in one for one in sent.statements) == asked


async def test_a_total_of_a_search_is_exact_if_few_rows_match(
    database: Database, uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "EXAMINED", 3)
    for module in (query, totals):
        monkeypatch.setattr(module, "MAX_COUNTED", 5)
    for name in NAMES:
        await make_product(database, name=name)
    few = await uow.products.page(PageQuery(["name:like:lamp"], count=Count.exact, limit=1))
    many = await uow.products.page(PageQuery(["name:like:oak"], count=Count.exact, limit=1))
    assert few.total == Total(value=3, precision=Precision.exact)
    assert many.total == Total(value=3, precision=Precision.at_least)


class _Slow(Similar):
    """Looking it up in an index takes longer than a page may."""

    @property
    def condition(self) -> Any:
        return func.pg_sleep(30).is_not(None)

    def on(self, column: Any) -> Any:
        return column == self.values[0]


async def test_a_search_that_takes_too_long_is_stopped_and_the_page_ends_early(
    database: Database, uow: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "EXAMINED", 3)
    for name in NAMES:
        await make_product(database, name=name)

    async def shown() -> list[str]:
        connection = await uow.session.connection()
        names = ("enable_seqscan", "statement_timeout")
        return [str((await connection.execute(text(f"SHOW {name}"))).scalar_one()) for name in names]

    before = await shown()
    search = _Slow(PRODUCTS.filters["name"], Operator.like, ["oak chair"])
    active: Any = col(Product.is_active)
    pages: list[Rows[Product]] = []
    for _ in range(3):
        cursor = pages[-1].next_cursor if pages else None
        wanted = PageQuery(sort="id", limit=2, cursor=cursor)
        pages.append(await uow.products.list_page(PRODUCTS, wanted, active, search=search))
    assert [[row.name for row in page.data] for page in pages] == [[], [], ["oak chair"]]
    assert [page.has_more for page in pages] == [True, True, False]
    assert await shown() == before


async def test_orders_of_a_seller_are_filtered_by_what_the_seller_sees(database: Database, uow: UnitOfWork) -> None:
    buyer, other, seller = [await make_user(database) for _ in range(3)]
    product, foreign = await make_product(database, seller=seller), await make_product(database)
    mine = await make_order(database, buyer=buyer, lines=[(product, 1), (product, 2)])
    both = await make_order(database, buyer=other, lines=[(foreign, 1), (product, 1)])
    await make_order(database, buyer=buyer, lines=[(foreign, 1)])

    async def found(*filters: str) -> list[Any]:
        page = await uow.orders.page(PageQuery(filters, "id"), seller_id=seller.id)
        return [order.id for order in page.data]

    assert await found() == [mine.id, both.id]
    assert await found(f"buyer_id:eq:{buyer.id}") == [mine.id]
    assert await found("status:eq:pending", f"buyer_id:eq:{other.id}") == [both.id]
    assert await found("status:eq:confirmed") == []
    moment = both.created_at.isoformat().replace("+00:00", "Z")
    assert await found(f"created_at:eq:{moment}") == [both.id]
    assert await found(f"created_at:lt:{moment}") == [mine.id]
    assert await found(f"created_at:gte:{moment}", f"buyer_id:eq:{other.id}") == [both.id]


async def test_an_empty_list_is_one_empty_page(uow: UnitOfWork) -> None:
    page = await products(uow, "id", 10, None)
    assert (page.data, page.has_more, page.next_cursor) == ([], False, None)


async def test_pages_of_uuid_keys_continue_where_they_stopped(database: Database, uow: UnitOfWork) -> None:
    buyer, product = await make_user(database), await make_product(database)
    made = [(await make_order(database, buyer=buyer, lines=[(product, 1)])).id for _ in range(5)]
    seen: list[Any] = []
    cursor = None
    while True:
        wanted = PageQuery(sort="id", limit=2, cursor=cursor)
        page: Rows[Order] = await uow.orders.page(wanted, buyer_id=buyer.id)
        seen += [order.id for order in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(seen) <= 10, "the pages go round in circles"
    assert seen == sorted(made)


def test_only_listed_operators_are_supported() -> None:
    number = Filterable(col(Category.id), Annotated[int, Field(ge=1)], ORDERED)
    assert Operator.like not in number.operators
    assert Operator.gt not in TEXT
    assert CategoryRepository.model is Category
