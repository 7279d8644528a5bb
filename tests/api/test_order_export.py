"""Orders as CSV and as newline-delimited JSON: everything that matches, in pieces."""

import asyncio
import csv
import io
import json
from typing import Any

import httpx2
import pytest

from services.orders.models import OrderBase
from services.orders.repository import EXPORTED
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_order, make_product, make_user

PATHS = ["/v1/orders.csv", "/v1/orders.ndjson"]

MANY = """
    INSERT INTO orders (id, buyer_id, status, total, item_count)
    SELECT uuidv7(interval '-1 hour' + n * interval '1 millisecond'), :buyer, 'pending', n, 1
    FROM generate_series(1, :number) AS n
"""


def lines(reply: httpx2.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    if reply.headers["content-type"].startswith("text/csv"):
        return list(csv.DictReader(io.StringIO(reply.text, newline=""), strict=True))
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.content == b"" or reply.content.endswith(b"\n")
    return [json.loads(line) for line in reply.content.splitlines()]


async def with_orders(api: Api, number: int) -> User:
    buyer = await make_user(api.database)
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql(MANY.replace(":buyer", str(buyer.id)).replace(":number", str(number)))
    return buyer


@pytest.mark.parametrize("path", PATHS)
async def test_an_export_has_what_the_list_shows_oldest_first(api: Api, path: str) -> None:
    buyer, _, product = await api.shop()
    for reference in ("=1+1", 'say "hi", please', None):
        await api.place(buyer, (product, 2), reference=reference)
    listed = (await api.get("/v1/orders?sort=id", by=buyer)).json()["data"]

    reply = await api.get(path, by=buyer)

    assert "attachment" in reply.headers["content-disposition"]
    exported = lines(reply)
    assert tuple(exported[0]) == EXPORTED
    assert OrderBase.model_fields.keys() <= set(EXPORTED)
    for line, order in zip(exported, listed, strict=True):
        shown: dict[str, Any] = {**order, "buyer_id": order["buyer"]["id"]}
        for name in EXPORTED:
            wanted = shown[name]
            if path.endswith("csv"):
                wanted = "" if wanted is None else str(wanted)
                wanted = f"'{wanted}" if wanted.startswith("=") else wanted
            assert line[name] == wanted, name


@pytest.mark.parametrize("path", PATHS)
async def test_an_export_has_the_orders_of_the_side_that_was_asked_for(api: Api, path: str) -> None:
    buyer, seller, product = await api.shop()
    other, operator = await make_user(api.database), await make_operator(api.database)
    mine = await make_order(api.database, buyer=buyer, lines=[(product, 1)])
    elsewhere = await make_order(api.database, buyer=other, lines=[(await make_product(api.database), 1)])

    async def ids(by: User, query: str = "") -> list[str]:
        return [line["id"] for line in lines(await api.get(f"{path}{query}", by=by))]

    assert await ids(buyer) == await ids(seller, "?as=seller") == [str(mine.id)]
    assert await ids(seller) == []
    assert await ids(operator, "?as=everybody") == [str(mine.id), str(elsewhere.id)]
    assert await ids(operator, f"?as=everybody&filter=buyer_id:eq:{other.id}") == [str(elsewhere.id)]
    assert await ids(buyer, "?filter=status:eq:cancelled") == []
    recorded = """
        SELECT string_agg(concat_ws(' ', actor, object, details ->> 'format', details ->> 'filters'), ', ' ORDER BY id)
        FROM audit_log WHERE action = 'orders.exported'
    """
    form = path.rpartition(".")[2]
    first = f"{operator.actor} orders {form}"
    # Whoever exports what is theirs leaves no act, and neither does an export that is refused.
    assert_problem(await api.get(f"{path}?as=everybody&filter=nothing:eq:1", by=operator), 400, "bad_query")
    assert await api.scalar(recorded) == f"{first} , {first} buyer_id:eq:{other.id}"
    assert_problem(await api.get(f"{path}?as=everybody", by=buyer), 403, "forbidden")
    assert_problem(await api.get(f"{path}?filter=colour:eq:red", by=buyer), 400, "bad_query")
    assert_problem(await api.get(path), 401, "unauthenticated")


@pytest.mark.parametrize("number", [0, 999, 1000, 2500])
async def test_an_export_has_each_order_once_whatever_their_number(api: Api, number: int) -> None:
    buyer = await with_orders(api, number)
    for path in PATHS:
        totals = [float(line["total"]) for line in lines(await api.get(path, by=buyer))]
        assert totals == [float(one) for one in range(1, number + 1)]
    if number == 0:
        assert (await api.get(PATHS[0], by=buyer)).text == ",".join(EXPORTED) + "\r\n"


async def test_an_export_has_what_a_process_whose_clock_is_ahead_has_just_placed(api: Api) -> None:
    buyer = await with_orders(api, 1)
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO orders (id, buyer_id, status, total, item_count)"
            f" VALUES (uuidv7(interval '1 second'), {buyer.id}, 'pending', 2, 1)"
        )
    assert [line["total"] for line in lines(await api.get(PATHS[1], by=buyer))] == ["1.00", "2.00"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_slow_reader_holds_no_connection_and_new_orders_are_left_out(api: Api, path: str) -> None:
    buyer = await with_orders(api, 2500)
    product = await make_product(api.database)
    reads, goes_on = asyncio.Event(), asyncio.Event()
    sizes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def send_slowly(message: Any) -> None:
            if message["type"] == "http.response.body":
                sizes.append(len(message.get("body", b"")))
                reads.set()
                await goes_on.wait()
            await send(message)

        await api.app(scope, receive, send_slowly if scope["path"] == path else send)

    api.client._transport.app = app  # type: ignore[attr-defined]
    exporting = asyncio.create_task(api.get(path, by=buyer))
    await asyncio.wait_for(reads.wait(), 10)
    assert api.app.state.waybill.database.engine.pool.checkedout() == 0
    busy = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND application_name LIKE 'waybill-api%' AND (state <> 'idle' OR xact_start IS NOT NULL)
    """
    assert await api.scalar(busy) == 0
    await make_order(api.database, buyer=buyer, lines=[(product, 1)])
    goes_on.set()
    exported = lines(await asyncio.wait_for(exporting, 10))
    assert len(exported) == 2500
    assert len(sizes) >= 3, "it came in pieces"
    assert max(sizes) < 400_000, "a piece is a thousand orders"
