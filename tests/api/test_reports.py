"""Reports over HTTP: sales, statuses and confirmation times, for sellers and operators."""

import csv
import io
from datetime import UTC, datetime
from typing import Any

import pytest

from services.analytics import Analytics
from services.settings import Settings
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_product, make_user
from tests.reporting import Reporter

BASE = "/v1/reports"


@pytest.fixture
def settings(settings: Settings, analytics_url: str) -> Settings:
    """Reports are on."""
    return settings.model_copy(update={"analytics_url": analytics_url})


def today() -> str:
    return datetime.now(UTC).date().isoformat()


async def report(api: Api, name: str, reader: User, **query: Any) -> list[dict[str, Any]]:
    reply = await api.get(f"{BASE}/{name}", by=reader, params=query)
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["data"]
    return found


def sold(row: dict[str, Any]) -> list[Any]:
    names = ("orders", "pieces", "revenue", "refunds", "refunded_pieces", "refunded", "net")
    return [row[name] for name in names]


class Shop:
    """Two sellers, three products and a buyer; orders that were confirmed, refunded, cancelled and rejected."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def open(self) -> "Shop":
        api = self.api
        self.operator = await make_operator(api.database)
        self.buyer = await make_user(api.database, credits="1000")
        self.ann = await make_user(api.database)
        self.bob = await make_user(api.database)
        self.pen = await make_product(api.database, seller=self.ann, price="2.50")
        self.ink = await make_product(api.database, seller=self.ann, price="10.00")
        self.cup = await make_product(api.database, seller=self.bob, price="4.00", stock=3)
        return self

    async def trade(self) -> None:
        api = self.api
        both = await api.place(self.buyer, (self.pen, 4), (self.ink, 1), (self.cup, 2))
        await api.place(self.buyer, (self.pen, 2))
        await api.place(self.buyer, (self.cup, 2))  # rejected: only three
        await api.place(self.buyer, (self.ink, 500))  # awaits payment
        cancelled = await api.place(self.buyer, (self.cup, 1))
        assert (await api.process()).processed == 4
        lines = {"lines": [{"line": 1, "quantity": 3}]}
        assert (await api.post(f"/v1/orders/{both['id']}/refunds", by=self.ann, json=lines)).status_code == 201
        assert (await api.post(f"/v1/orders/{cancelled['id']}/cancel", by=self.buyer, json={})).status_code == 200


@pytest.fixture
async def shop(api: Api) -> Shop:
    return await Shop(api).open()


@pytest.mark.parametrize("limit", [1, 3, 5000])
async def test_sales_are_reported_by_day_seller_and_product(
    api: Api, shop: Shop, analytics: Analytics, limit: int
) -> None:
    await shop.trade()
    await Reporter(api.database, analytics).catch_up(limit)
    (whole,) = await report(api, "sales", shop.operator)
    # An order of two sellers is one order, and so is one of two products.
    assert (whole["day"], whole["seller_id"]) == (today(), None)
    assert sold(whole) == [3, 10, "37.00", 2, 4, "11.50", "25.50"]
    of_ann, of_bob = await report(api, "sales", shop.operator, by="seller")
    assert (of_ann["seller_id"], sold(of_ann)) == (shop.ann.id, [2, 7, "25.00", 1, 3, "7.50", "17.50"])
    assert (of_bob["seller_id"], sold(of_bob)) == (shop.bob.id, [2, 3, "12.00", 1, 1, "4.00", "8.00"])
    by_product = await report(api, "sales", shop.operator, by=["product", "day"])
    assert [(one["day"], one["product_id"], sold(one)) for one in by_product] == [
        (today(), shop.pen.id, [2, 6, "15.00", 1, 3, "7.50", "7.50"]),
        (today(), shop.ink.id, [1, 1, "10.00", 0, 0, "0.00", "10.00"]),
        (today(), shop.cup.id, [2, 3, "12.00", 1, 1, "4.00", "8.00"]),
    ]
    (pens,) = await report(api, "sales", shop.operator, product_id=shop.pen.id, seller_id=shop.ann.id)
    assert sold(pens) == sold(by_product[0])


async def test_sellers_see_their_own_and_nothing_else(api: Api, shop: Shop, analytics: Analytics) -> None:
    await shop.trade()
    await Reporter(api.database, analytics).catch_up()
    (own,) = await report(api, "sales", shop.bob)
    assert sold(own) == [2, 3, "12.00", 1, 1, "4.00", "8.00"]
    assert {row["seller_id"] for row in await report(api, "sales", shop.bob, by=["seller", "product"])} == {shop.bob.id}
    assert await report(api, "sales", shop.bob, by="product", product_id=shop.pen.id) == []
    assert await report(api, "sales", shop.buyer) == []
    (statuses,) = await report(api, "statuses", shop.bob)
    assert statuses["placed"] == {"orders": 3, "amount": "20.00"}
    assert [row["orders"] for row in await report(api, "confirmation-times", shop.bob)] == [2]
    for name in ("sales", "sales.csv", "statuses", "confirmation-times"):
        other = await api.get(f"{BASE}/{name}", by=shop.bob, params={"seller_id": shop.ann.id})
        assert_problem(other, 403, "forbidden")
        assert (await api.get(f"{BASE}/{name}", by=shop.bob, params={"seller_id": shop.bob.id})).status_code == 200
        assert_problem(await api.get(f"{BASE}/{name}"), 401, "unauthenticated")


async def test_statuses_and_confirmation_times_by_day(api: Api, shop: Shop, analytics: Analytics) -> None:
    await shop.trade()
    await Reporter(api.database, analytics).catch_up(2)
    (day,) = await report(api, "statuses", shop.operator)
    assert day == {
        "day": today(),
        "placed": {"orders": 4, "amount": "45.00"},
        "awaiting_payment": {"orders": 1, "amount": "5000.00"},
        "confirmed": {"orders": 3, "amount": "37.00"},
        "rejected": {"orders": 1, "amount": "8.00"},
        "cancelled": {"orders": 1, "amount": "4.00"},
        "fulfilled": {"orders": 0, "amount": "0.00"},
        "refunded": {"orders": 2, "amount": "11.50"},
    }
    (waits,) = await report(api, "confirmation-times", shop.operator)
    assert (waits["day"], waits["orders"], waits["within_1h"]) == (today(), 3, 3)
    assert 0 < waits["average_seconds"] <= waits["slowest_seconds"] < 60
    assert waits["within_1s"] <= waits["within_10s"] <= waits["within_1m"] <= waits["within_10m"] <= 3


async def test_csv_has_the_same_rows_in_any_number(
    api: Api, shop: Shop, analytics: Analytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.trade()
    await Reporter(api.database, analytics).catch_up()
    monkeypatch.setattr("services.reports.service.MOST_ROWS", 2)
    query = {"by": ["product", "seller", "day"]}
    reply = await api.get(f"{BASE}/sales.csv", by=shop.operator, params=query)
    assert reply.headers["content-type"].startswith("text/csv; charset=utf-8")
    assert "\r\n" in reply.text
    found = list(csv.DictReader(io.StringIO(reply.text)))
    assert [int(row["product_id"]) for row in found] == [shop.pen.id, shop.ink.id, shop.cup.id]
    assert found[0] | {"net": "7.50"} == found[0]
    assert found[0]["day"] == today()
    too_many = await api.get(f"{BASE}/sales", by=shop.operator, params=query)
    assert "more than 2 rows" in assert_problem(too_many, 422, "invalid_input")["detail"]
    empty = await api.get(f"{BASE}/sales.csv", by=shop.buyer)
    assert empty.text == ",".join(found[0]) + "\r\n"


async def test_a_report_is_about_at_most_a_year_and_says_which_days(api: Api, shop: Shop) -> None:
    for query, where in (
        ({"first": "2024-01-01", "last": "2025-01-01"}, "query/first"),
        ({"first": "2024-01-02", "last": "2024-01-01"}, "query/last"),
        ({"first": "yesterday"}, "query/first"),
        ({"by": "buyer"}, "query/by/0"),
        ({"seller_id": 0}, "query/seller_id"),
    ):
        reply = await api.get(f"{BASE}/sales", by=shop.operator, params=query)
        assert_problem(reply, 422, "invalid_input", pointers=[where])
    for query, days in (
        ({"first": "2024-01-01", "last": "2024-12-31"}, ["2024-01-01", "2024-12-31"]),
        ({"first": "2024-01-01"}, ["2024-01-01", "2024-01-31"]),
        ({"last": "2024-01-31"}, ["2024-01-01", "2024-01-31"]),
        ({"first": "9999-12-31"}, None),
        ({"last": "0001-01-01"}, None),
    ):
        reply = await api.get(f"{BASE}/sales", by=shop.operator, params=query)
        assert reply.status_code in (200, 422), reply.text
        if days is not None:
            assert [reply.json()["first"], reply.json()["last"]] == days


async def test_a_report_says_how_far_it_has_been_counted(api: Api, shop: Shop, analytics: Analytics) -> None:
    await shop.trade()
    reporter = Reporter(api.database, analytics)
    reply = await api.get(f"{BASE}/sales", by=shop.operator)
    assert (reply.json()["counted_until"], reply.json()["rebuilding"]) == (None, False)
    await reporter.step(2)
    half = (await api.get(f"{BASE}/sales", by=shop.operator)).json()
    assert half["rebuilding"] is True
    await reporter.catch_up()
    whole = (await api.get(f"{BASE}/sales", by=shop.operator)).json()
    assert whole["rebuilding"] is False
    assert half["counted_until"] < whole["counted_until"]
