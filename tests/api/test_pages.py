"""What a page costs is bounded by what it shows of each row, too: lines, refunded lines, descriptions."""

from typing import Any

import pytest

from services.catalog import repository as catalog
from services.orders import service as orders
from services.orders.models import LINES_A_PAGE, MAX_ITEMS
from services.orders.refunds import repository as refunds
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.factories import make_category, make_order, make_product, make_user


async def pages(api: Api, path: str, by: User | None = None) -> list[dict[str, Any]]:
    """All pages of a list."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["has_more"]:
        cursor = f"&cursor={found[-1]['next_cursor']}" if found else ""
        reply = await api.get(path + cursor, by=by)
        assert reply.status_code == 200, reply.text
        found.append(reply.json())
        assert found[-1]["has_more"] is (found[-1]["next_cursor"] is not None)
        assert len(found) < 20, "the pages go round in circles"
    return found


async def test_a_list_of_orders_shows_their_lines_only_if_asked(api: Api) -> None:
    buyer, _, product = await api.shop()
    placed = await api.place(buyer, (product, 1), (product, 2))
    (plain,) = (await api.get("/v1/orders", by=buyer)).json()["data"]
    (full,) = (await api.get("/v1/orders?include=items", by=buyer)).json()["data"]
    assert plain == {**placed, "items": None}
    assert full == placed
    refused = await api.get("/v1/orders?include=lines", by=buyer)
    assert_problem(refused, 422, "invalid_input", pointers=["query/include/0"])


@pytest.mark.parametrize("sort", ["id", "-id"])
async def test_a_page_ends_before_it_has_too_many_lines(api: Api, monkeypatch: pytest.MonkeyPatch, sort: str) -> None:
    assert LINES_A_PAGE >= MAX_ITEMS
    monkeypatch.setattr(orders, "LINES_A_PAGE", 5)
    buyer, product = await make_user(api.database), await make_product(api.database)
    for number in (2, 3, 1, 7, 4, 1):
        await make_order(api.database, buyer=buyer, lines=[(product, 1)] * number)
    path = f"/v1/orders?sort={sort}&limit=4"
    with_lines = await pages(api, f"{path}&include=items&count=exact", buyer)
    shown = [[len(order["items"]) for order in page["data"]] for page in with_lines]
    # The one order that is too much alone is a page of its own.
    assert shown == ([[2, 3], [1], [7], [4, 1]] if sort == "id" else [[1, 4], [7], [1, 3], [2]])
    assert {page["total"]["value"] for page in with_lines} == {6}
    plain = await pages(api, path, buyer)
    assert [len(page["data"]) for page in plain] == [4, 2]
    ids = [[order["id"] for page in found for order in page["data"]] for found in (plain, with_lines)]
    assert ids[0] == ids[1]


async def test_a_page_of_refunds_ends_before_it_has_too_many_lines(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refunds, "LINES_A_PAGE", 3)
    monkeypatch.setattr(refunds, "MAX_ITEMS", 4)
    buyer, seller, product = await api.shop()
    order = await api.place(buyer, *[(product, 9)] * 4)
    await api.process()
    path = f"/v1/orders/{order['id']}/refunds"
    for lines in (1, 2, 1, 4, 3):
        body = {"lines": [{"line": line + 1, "quantity": 1} for line in range(lines)]}
        reply = await api.post(path, by=seller, json=body)
        assert reply.status_code == 201, reply.text
    for sort, expected in (("id", [[1, 2], [1], [4], [3]]), ("-id", [[3], [4], [1, 2], [1]])):
        found = await pages(api, f"{path}?limit=200&sort={sort}", buyer)
        numbers = [[[line["line"] for line in refund["lines"]] for refund in page["data"]] for page in found]
        assert [[len(lines) for lines in page] for page in numbers] == expected
        assert all(lines == sorted(lines) for page in numbers for lines in page)


async def test_a_page_of_products_ends_before_its_descriptions_are_too_long(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "TEXT_A_PAGE", 100)
    seller, category = await make_user(api.database), await make_category(api.database)
    for length in (60, 40, 1, 300, 0, 100):
        body = {"sku": f"S{length}", "name": "Lamp", "price": "1.00", "category_id": category.id}
        reply = await api.post("/v1/products", by=seller, json={**body, "description": "x" * length})
        assert reply.status_code == 201, reply.text
    found = await pages(api, "/v1/products?sort=id&limit=200")
    shown = [[len(product["description"]) for product in page["data"]] for page in found]
    assert shown == [[60, 40], [1], [300], [0, 100]]


async def test_one_order_is_shown_with_all_of_its_lines(api: Api) -> None:
    buyer, _, product = await api.shop(credits="100000", stock=MAX_ITEMS)
    reply = await api.post("/v1/orders", by=buyer, json=order_of(*[(product, 1)] * MAX_ITEMS))
    order = reply.json()
    read = (await api.get(f"/v1/orders/{order['id']}", by=buyer)).json()
    (listed,) = (await api.get("/v1/orders?include=items", by=buyer)).json()["data"]
    assert len(order["items"]) == MAX_ITEMS
    assert read["items"] == listed["items"] == order["items"]
