"""What the parties of an order see of it: its buyer all lines, a seller their own, and neither what the staff says."""

import json
from typing import Any

import httpx2
import pytest

from services.orders.models import OrderBase
from services.orders.repository import ORDERS, SALES
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.api.programs import make_key, with_key
from tests.factories import make_operator, make_product, make_user

REFERENCE = "REFERENCE-OF-THE-BUYER"


class Shared:
    """A confirmed order of two sellers: line 1 for 2 x 10.00, line 2 for 3 x 7.00, which is the rival's."""

    def __init__(self, api: Api, buyer: User, seller: User, rival: User, order_id: str) -> None:
        self.api, self.buyer, self.seller, self.rival, self.id = api, buyer, seller, rival, order_id
        self.path = f"/v1/orders/{order_id}"

    async def seen(self, by: User, path: str = "") -> Any:
        reply = await self.api.get(f"{self.path}{path}", by=by)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def refund(self, by: User, *lines: tuple[int, int], reason: str = "") -> httpx2.Response:
        wanted = {"lines": [{"line": line, "quantity": pieces} for line, pieces in lines], "reason": reason}
        return await self.api.post(f"{self.path}/refunds", by=by, json=wanted)


@pytest.fixture
async def shared(api: Api) -> Shared:
    buyer, seller, product = await api.shop(price="10.00")
    rival = await make_user(api.database, full_name="Rita Rival")
    other = await make_product(api.database, seller=rival, price="7.00", name="Secret lamp", sku="SECRET-1")
    placed = await api.place(buyer, (product, 2), (other, 3), reference=REFERENCE)
    await api.process()
    return Shared(api, buyer, seller, rival, placed["id"])


def figures(order: dict[str, Any]) -> tuple[Any, ...]:
    return order["reference"], order["total"], order["refunded"], order["item_count"]


async def test_a_seller_sees_their_own_lines_and_what_these_come_to(shared: Shared) -> None:
    whole = (REFERENCE, "41.00", "0.00", 2)
    operator = await make_operator(shared.api.database)
    for by, wanted, lines in (
        (shared.buyer, whole, [1, 2]),
        (operator, whole, [1, 2]),
        (shared.seller, (None, "20.00", "0.00", 1), [1]),
        (shared.rival, (None, "21.00", "0.00", 1), [2]),
    ):
        order = await shared.seen(by)
        assert figures(order) == wanted
        assert [item["line"] for item in order["items"]] == lines
        assert order["buyer"] == {"id": shared.buyer.id, "full_name": shared.buyer.full_name}


async def test_lists_and_exports_of_a_seller_have_what_they_sold(shared: Shared) -> None:
    api = shared.api
    await shared.refund(shared.rival, (2, 1))
    await shared.refund(shared.seller, (1, 1))
    for by, wanted, line in (
        (shared.seller, (None, "20.00", "10.00", 1), 1),
        (shared.rival, (None, "21.00", "7.00", 1), 2),
    ):
        assert figures(await shared.seen(by)) == wanted
        for query in ("?as=seller", "?as=seller&include=items"):
            (order,) = (await api.get(f"/v1/orders{query}", by=by)).json()["data"]
            assert figures(order) == wanted
        assert [item["line"] for item in order["items"]] == [line]
        exported = json.loads((await api.get("/v1/orders.ndjson?as=seller", by=by)).text)
        assert figures(exported) == wanted
        table = (await api.get("/v1/orders.csv?as=seller", by=by)).text
        assert REFERENCE not in table
        assert wanted[1] in table
        assert "41.00" not in table
    (order,) = (await api.get("/v1/orders", by=shared.buyer)).json()["data"]
    assert figures(order) == (REFERENCE, "41.00", "17.00", 2)


@pytest.mark.parametrize("filter_", [f"reference:eq:{REFERENCE}", "reference:is_null:false", "total:gt:40.00"])
async def test_a_seller_cannot_find_out_by_filters_what_they_do_not_see(shared: Shared, filter_: str) -> None:
    for path in ("/v1/orders", "/v1/orders.csv", "/v1/orders.ndjson"):
        refused = await shared.api.get(f"{path}?as=seller&filter={filter_}", by=shared.seller)
        assert_problem(refused, 400, "bad_query")
        assert (await shared.api.get(f"{path}?filter={filter_}", by=shared.buyer)).status_code == 200
    assert ORDERS.filters.keys() - SALES.filters.keys() == {"reference", "total"}


async def test_a_page_of_a_seller_looks_at_a_limited_number_of_lines(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await make_product(shared.api.database, seller=shared.seller)
    placed = [(await shared.api.place(shared.buyer, (own, 1), (own, 1)))["id"] for _ in range(3)]
    monkeypatch.setattr("services.orders.service.LINES_EXAMINED", 4)
    path, seen = "/v1/orders?as=seller", []
    page = (await shared.api.get(path, by=shared.seller)).json()
    assert [len(page["data"]), page["has_more"]] == [2, True]
    seen += page["data"]
    seen += (await shared.api.get(f"{path}&cursor={page['next_cursor']}", by=shared.seller)).json()["data"]
    assert [order["id"] for order in seen] == [*placed[::-1], shared.id]


async def test_an_export_of_a_seller_comes_in_pieces(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    own = await make_product(shared.api.database, seller=shared.seller)
    for _ in range(4):
        await shared.api.place(shared.buyer, (own, 1))
    monkeypatch.setattr("services.orders.repository.SALES_A_PIECE", 2)
    exported = (await shared.api.get("/v1/orders.ndjson?as=seller", by=shared.seller)).text.splitlines()
    assert [json.loads(line)["total"] for line in exported] == ["20.00", *["10.00"] * 4]


async def test_the_orders_of_a_seller_who_reads_everyones_are_shown_as_to_any_seller(api: Api) -> None:
    operator = await make_operator(api.database)
    buyer, _, product = await api.shop(price="10.00")
    own = await make_product(api.database, seller=operator, price="7.00")
    await api.place(buyer, (product, 2), (own, 3), reference=REFERENCE)
    (order,) = (await api.get("/v1/orders?as=seller", by=operator)).json()["data"]
    assert figures(order) == (None, "21.00", "0.00", 1)
    (order,) = (await api.get("/v1/orders?as=everybody", by=operator)).json()["data"]
    assert figures(order) == (REFERENCE, "41.00", "0.00", 2)


async def test_a_seller_sees_the_refunds_of_their_own_lines(shared: Shared) -> None:
    operator = await make_operator(shared.api.database)
    assert (await shared.refund(shared.rival, (2, 1), reason="RIVAL'S WORDS")).status_code == 201
    assert (await shared.refund(operator, (1, 1), (2, 1), reason="STAFF'S WORDS")).status_code == 201
    assert (await shared.refund(shared.seller, (1, 1), reason="SELLER'S WORDS")).status_code == 201

    async def refunds(by: User) -> list[tuple[Any, ...]]:
        page = await shared.seen(by, "/refunds?sort=id")
        return [(one["amount"], [line["line"] for line in one["lines"]], one["reason"]) for one in page["data"]]

    assert await refunds(shared.seller) == [("10.00", [1], ""), ("10.00", [1], "SELLER'S WORDS")]
    assert await refunds(shared.rival) == [("7.00", [2], "RIVAL'S WORDS"), ("7.00", [2], "")]
    assert await refunds(shared.buyer) == [
        ("7.00", [2], "RIVAL'S WORDS"),
        ("17.00", [1, 2], ""),
        ("10.00", [1], "SELLER'S WORDS"),
    ]
    assert await refunds(operator) == [
        ("7.00", [2], "RIVAL'S WORDS"),
        ("17.00", [1, 2], "STAFF'S WORDS"),
        ("10.00", [1], "SELLER'S WORDS"),
    ]
    # Page by page, for a seller as well.
    first = await shared.seen(shared.rival, "/refunds?limit=1")
    second = await shared.seen(shared.rival, f"/refunds?limit=1&cursor={first['next_cursor']}")
    assert [one["amount"] for one in (*first["data"], *second["data"])] == ["7.00", "7.00"]
    assert second["has_more"] is False


async def cancelled(api: Api, by: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """The reasons that buyer, seller, rival and staff see, if `by` cancels an order with a reason."""
    buyer, seller, product = await api.shop()
    operator = await make_operator(api.database)
    support = await make_user(api.database)
    await api.execute("UPDATE users SET role = 'support' WHERE id = :id", id=support.id)
    placed = await api.place(buyer, (product, 2))
    caller = {"buyer": buyer, "seller": seller, "operator": operator}[by.removesuffix(" with a key")]
    more: dict[str, Any] = {"by": caller}
    if by.endswith("key"):
        managing = ["orders:manage", "orders:read_all"] if caller is operator else []
        more = {"headers": with_key(await make_key(api, caller, "orders:write", "orders:read", *managing))}
    reply = await api.post(f"/v1/orders/{placed['id']}/cancel", json={"reason": "SAID"}, **more)
    assert reply.status_code == 200, reply.text
    seen = [await api.get(f"/v1/orders/{placed['id']}", by=one) for one in (buyer, seller, operator, support)]
    told = [[one["reason"] for one in order.json()["transitions"]] for order in seen]
    return told[0], told[1], told[2], told[3]


@pytest.mark.parametrize("by", ["buyer", "seller", "buyer with a key"])
async def test_the_reason_of_a_party_is_shown_to_the_parties(api: Api, by: str) -> None:
    assert await cancelled(api, by) == (["", "SAID"], ["", "SAID"], ["", "SAID"], ["", "SAID"])


@pytest.mark.parametrize("by", ["operator", "operator with a key"])
async def test_the_reason_of_an_operator_is_shown_to_the_staff_only(api: Api, by: str) -> None:
    assert await cancelled(api, by) == (["", ""], ["", ""], ["", "SAID"], ["", "SAID"])


async def test_the_reasons_that_the_service_gives_are_shown_to_the_parties(api: Api) -> None:
    buyer, seller, product = await api.shop(stock=1)
    rejected = await api.place(buyer, (product, 2))
    await api.process()
    for by in (buyer, seller):
        order = (await api.get(f"/v1/orders/{rejected['id']}", by=by)).json()
        assert [one["reason"] for one in order["transitions"]] == ["", "out of stock"]


async def test_a_seller_sees_nothing_that_the_buyer_sets_on_an_order(shared: Shared) -> None:
    # A new field is hidden from sellers until someone decides otherwise.
    order = await shared.seen(shared.seller)
    assert {name: order[name] for name in OrderBase.model_fields} == dict.fromkeys(OrderBase.model_fields)
