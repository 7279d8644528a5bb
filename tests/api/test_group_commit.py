"""Requests that are carried out in one transaction: each gets the outcome that it would have had alone, in turn."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from httpx2 import Response
from sqlalchemy import text

from benchmarks.sessions import session_of
from services.api import groups
from services.api.turns import Intent
from services.app import create_app
from services.database import Database
from services.idempotency.repository import RequestKey
from services.settings import Settings
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, amounts, assert_problem, http_scope, order_of
from tests.api.grouped import Gate, together
from tests.concurrency.groups.watch import Watch
from tests.factories import make_product, make_user, plain_sql


async def test_requests_that_arrive_together_are_one_transaction(api: Api, gate: Gate) -> None:
    shops = [await api.shop() for _ in range(5)]
    replies = await together(
        gate,
        *[
            api.post("/v1/orders", by=buyer, json=order_of((product, 2)), headers={"X-Request-Id": f"r-{number}"})
            for number, (buyer, _, product) in enumerate(shops)
        ],
    )
    assert [reply.status_code for reply in replies] == [201] * 5
    assert gate.attempts == [5]
    for (buyer, _, product), reply in zip(shops, replies, strict=True):
        assert reply.json()["buyer"]["id"] == buyer.id
        assert reply.json()["items"][0]["product"]["id"] == product.id
        assert (await api.get(reply.headers["location"], by=buyer)).json()["status"] == "pending"
    assert await api.scalar("SELECT count(DISTINCT CAST(xmin AS text)) FROM orders") == 1
    found = await api.scalar("SELECT array_agg(request_id ORDER BY id) FROM events WHERE type = 'order.placed'")
    assert found == [f"r-{number}" for number in range(5)], "each event carries the trace of its own request"
    await api.assert_books_balance()
    assert (await api.process()).processed == 5
    await api.assert_books_balance()


async def test_a_lone_request_is_a_group_of_one_with_two_trips_between_begin_and_commit(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, seller, product = await api.shop()
    for path, wanted in (
        ("/v1/orders", order_of((product, 1))),
        ("/v1/transfers", {"to_user_id": seller.id, "amount": "1.00"}),
    ):
        with plain_sql(monkeypatch) as ran:
            assert (await api.post(path, by=buyer, json=wanted)).status_code == 201
        assert len(ran) == 2
    assert gate.attempts == [1, 1]


async def test_with_the_setting_off_every_request_goes_alone(
    settings: Settings, database: Database, gate: Gate
) -> None:
    app = create_app(settings.model_copy(update={"group_commit": False}))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client,
    ):
        api = Api(app, client, settings, database)
        buyer, _, product = await api.shop()
        await api.place(buyer, (product, 1))
    assert gate.attempts == []


def same(reply: Response) -> tuple[Any, ...]:
    """A reply without what is new in each: ids and times."""
    body = json.loads(reply.content)
    names = [name for name in ("id", "request_id", "created_at", "updated_at") if name in body]
    assert all(body[name] for name in names)
    # A refused credential counts for the address from then on, whatever the path.
    varying = ("x-request-id", "location", "ratelimit", "ratelimit-policy")
    headers = {name: value for name, value in reply.headers.items() if name not in varying}
    shape = reply.content
    for name in names:
        shape = shape.replace(json.dumps(body[name]).encode(), f'"{name}"'.encode())
    return reply.status_code, shape, len(reply.headers.get("location", "")), headers


async def test_the_same_requests_get_the_same_replies_in_a_group_as_alone(api: Api, gate: Gate) -> None:
    buyer, seller, product = await api.shop(credits="50.00", price="10.00")
    inactive = await make_product(api.database, seller=seller, is_active=False)
    closed = await make_user(api.database, credits="50.00")
    gone = await make_user(api.database)
    rich = await make_user(api.database, credits="50.00")
    auditor = await make_user(api.database, role=Role.auditor)
    async with api.database.engine.begin() as connection:
        await connection.execute(text(f"UPDATE accounts SET closed_at = now() WHERE user_id = {closed.id}"))
        await connection.execute(text(f"UPDATE users SET is_active = false WHERE id = {gone.id}"))
    await api.place(buyer, (product, 1), reference="used")
    orders: list[tuple[User, dict[str, Any]]] = [
        (buyer, order_of((product, 1))),
        (buyer, order_of((product, 1), reference='ü "quoted"')),
        (buyer, order_of((product, 9))),
        (buyer, order_of((product, 9), on_insufficient_credits="refuse")),
        (buyer, order_of((product, 1), reference="used")),
        (buyer, order_of((inactive, 1), (product, 1))),
        (seller, order_of((product, 1))),
        (closed, order_of((product, 1))),
        (gone, order_of((product, 1))),
        (auditor, order_of((product, 1))),
    ]
    transfers: list[tuple[User, dict[str, Any]]] = [
        (rich, {"to_user_id": seller.id, "amount": "1.50", "note": "ü"}),
        (rich, {"to_user_id": seller.id, "amount": "999"}),
        (rich, {"to_user_id": rich.id, "amount": "1"}),
        (rich, {"to_user_id": closed.id, "amount": "1"}),
        (rich, {"to_user_id": gone.id, "amount": "1"}),
        (rich, {"to_user_id": 999_999_999, "amount": "1"}),
        (closed, {"to_user_id": buyer.id, "amount": "1"}),
        (gone, {"to_user_id": buyer.id, "amount": "1"}),
        (auditor, {"to_user_id": buyer.id, "amount": "1"}),
    ]
    for path, wanted, statuses in (
        ("/v1/orders", orders, [201, 201, 201, 402, 409, 422, 422, 409, 401, 403]),
        ("/v1/transfers", transfers, [201, 402, 422, 422, 422, 422, 409, 401, 403]),
    ):
        gate.attempts.clear()
        grouped = await together(
            gate, *[api.post(path, by=by, key=f"g-{n}", json=one) for n, (by, one) in enumerate(wanted)]
        )
        assert gate.attempts == [len(wanted)]
        assert [reply.status_code for reply in grouped] == statuses
        again = [await api.post(path, by=by, key=f"g-{n}", json=one) for n, (by, one) in enumerate(wanted)]
        for first, second in zip(grouped, again, strict=True):
            replayed = second.headers.pop("idempotency-replayed", None)
            assert replayed == (None if first.status_code in (401, 403) else "true"), (
                "the outcome is stored under the key"
            )
            if replayed:
                assert second.content == first.content
        async with api.database.engine.begin() as connection:
            await connection.execute(text("UPDATE orders SET reference = NULL WHERE reference <> 'used'"))
        api.app.state.waybill.groups.are_open = False
        alone = [await api.post(path, by=by, key=f"a-{n}", json=one) for n, (by, one) in enumerate(wanted)]
        api.app.state.waybill.groups.are_open = True
        assert [same(reply) for reply in grouped] == [same(reply) for reply in alone]
    await api.assert_books_balance()


async def test_one_buyer_several_times_in_a_group_is_carried_out_in_turn(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop(credits="25.00", price="10.00", stock=100)
    refuse = {"on_insufficient_credits": "refuse"}
    replies = await together(
        gate,
        api.post("/v1/orders", by=buyer, json=order_of((product, 1))),
        api.post("/v1/orders", by=buyer, json=order_of((product, 2), **refuse)),
        api.post("/v1/orders", by=buyer, json=order_of((product, 1))),
        api.post("/v1/orders", by=buyer, json=order_of((product, 1))),
    )
    assert gate.attempts == [4]
    assert [reply.status_code for reply in replies] == [201, 402, 201, 201]
    assert [replies[n].json()["status"] for n in (0, 2, 3)] == ["pending", "pending", "awaiting_payment"]
    assert await api.credits_of(buyer) == amounts("25.00", "20.00")
    await api.assert_books_balance()


async def test_credits_that_arrive_in_a_group_can_be_spent_later_in_it_and_not_earlier(api: Api, gate: Gate) -> None:
    first, second, third = [await make_user(api.database, credits=given) for given in ("10", "0", "0")]
    replies = await together(
        gate,
        api.post("/v1/transfers", by=second, json={"to_user_id": third.id, "amount": "4.00"}),
        api.post("/v1/transfers", by=first, json={"to_user_id": second.id, "amount": "5.00"}),
        api.post("/v1/transfers", by=second, json={"to_user_id": third.id, "amount": "4.00"}),
    )
    assert gate.attempts == [3]
    assert [reply.status_code for reply in replies] == [402, 201, 201]
    assert [await api.credits_of(user) for user in (first, second, third)] == [amounts("5"), amounts("1"), amounts("4")]
    await api.assert_books_balance()


async def test_a_key_that_is_sent_twice_is_left_to_the_next_group_and_replayed(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop()
    wanted, other = order_of((product, 1)), order_of((product, 2))
    replies = await together(
        gate, *[api.post("/v1/orders", by=buyer, key="k", json=body) for body in (wanted, wanted, other)]
    )
    assert gate.attempts == [1, 1, 1]
    assert [reply.status_code for reply in replies] == [201, 201, 422]
    assert replies[1].content == replies[0].content
    assert replies[1].headers["idempotency-replayed"] == "true"
    assert replies[2].json()["code"] == "idempotency_key_reused"
    assert await api.scalar("SELECT count(*) FROM orders") == 1


async def test_a_reference_that_is_sent_twice_is_left_to_the_next_group_and_refused(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop()
    body = order_of((product, 1), reference="r")
    first, second = await together(gate, *[api.post("/v1/orders", by=buyer, json=body) for _ in range(2)])
    assert gate.attempts == [1, 1]
    assert first.status_code == 201
    assert_problem(second, 409, "already_exists", pointers=["#/reference"])


async def test_a_request_whose_key_is_in_flight_elsewhere_is_told_so_and_its_neighbour_is_not_affected(
    api: Api, gate: Gate
) -> None:
    buyer, _, product = await api.shop()
    body = order_of((product, 1))
    lock = "SELECT pg_advisory_xact_lock(CAST(:lock AS bigint) # hashtextextended(current_schema(), 0))"
    key = key_of(buyer, "held")
    async with api.database.engine.connect() as connection:
        await connection.execute(text(lock), {"lock": key.lock()})
        held, free = await together(
            gate, *[api.post("/v1/orders", by=buyer, key=k, json=body) for k in ("held", "free")]
        )
    assert_problem(held, 409, "request_in_flight")
    assert held.headers["retry-after"] == "1"
    assert free.status_code == 201
    assert (await api.post("/v1/orders", by=buyer, key="held", json=body)).status_code == 201


async def test_a_request_that_would_wait_too_long_is_refused_and_its_key_stays_free(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    settings = api.settings.model_copy(update={"group_commit_wait": 0.1})
    monkeypatch.setattr(api.app.state.waybill.groups, "_settings", settings)
    attempt, go_on = groups._Committer._attempt, asyncio.Event()

    async def slow(committer: groups._Committer, intents: Sequence[Intent[Any]]) -> list[Intent[Any]]:
        await go_on.wait()
        return await attempt(committer, intents)

    monkeypatch.setattr(groups._Committer, "_attempt", slow)
    body = order_of((product, 1))
    first = asyncio.create_task(api.post("/v1/orders", by=buyer, json=body))
    await asyncio.sleep(0.05)
    early = asyncio.create_task(api.post("/v1/orders", by=buyer, json=body))
    await asyncio.sleep(0.2)
    refused = await api.post("/v1/orders", by=buyer, key="late", json=body)
    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    go_on.set()
    assert [(await one).status_code for one in (first, early)] == [201, 201]
    assert (await api.post("/v1/orders", by=buyer, key="late", json=body)).status_code == 201
    assert "waybill_group_refused_total 1.0" in (await api.get("/metrics")).text


async def send(api: Api, by: User, key: str, body: Any) -> int:
    """Send a request whose client disconnects as soon as it has sent the body; returns the status."""
    headers = {
        "authorization": f"Bearer {api.tokens.make(session_of(by.id))}",
        "content-type": "application/json",
        "idempotency-key": key,
    }
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    statuses: list[int] = []

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def reply(message: Any) -> None:
        statuses.append(message.get("status", 0))

    await api.app(http_scope("POST", "/v1/orders", headers), receive, reply)
    return statuses[0]


async def test_a_client_that_leaves_before_its_group_begins_has_placed_nothing(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop()
    async with gate.holding(2):
        gone = asyncio.create_task(send(api, buyer, "gone", order_of((product, 1))))
        there = asyncio.create_task(api.post("/v1/orders", by=buyer, json=order_of((product, 1))))
        await gate.until(2)
        await asyncio.sleep(groups._LONG * 2)
    assert (await there).status_code == 201
    assert await gone == 400
    assert await api.scalar("SELECT count(*) FROM orders") == 1
    assert await api.scalar("SELECT count(*) FROM idempotency_keys WHERE key = 'gone'") == 0


async def test_a_request_that_is_cancelled_after_its_group_has_begun_is_stored_under_its_key(
    api: Api, watch: Watch
) -> None:
    buyer, _, product = await api.shop()
    body = order_of((product, 1))
    watch.close(1)
    request = asyncio.create_task(api.post("/v1/orders", by=buyer, key="k", json=body))
    await watch.until_held(1)
    request.cancel()
    watch.open()
    again = await api.post("/v1/orders", by=buyer, key="k", json=body)
    assert again.status_code == 201
    assert again.headers["idempotency-replayed"] == "true"
    assert await api.scalar("SELECT count(*) FROM orders") == 1


async def test_a_shutdown_carries_out_what_waits(settings: Settings, database: Database, gate: Gate) -> None:
    app = create_app(settings)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client:
        async with app.router.lifespan_context(app):
            api = Api(app, client, settings, database)
            buyer, _, product = await api.shop()
            async with gate.holding(3):
                tasks = [
                    asyncio.create_task(api.post("/v1/orders", by=buyer, json=order_of((product, 1)))) for _ in "abc"
                ]
        assert [(await task).status_code for task in tasks] == [201] * 3
    assert gate.attempts == [3]
    assert await api.scalar("SELECT count(DISTINCT CAST(xmin AS text)) FROM orders") == 1, "none had to go alone"


async def test_the_groups_are_in_the_metrics(api: Api) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    metrics = (await api.get("/metrics")).text
    for name in ("waybill_group_requests_bucket", "waybill_group_wait_seconds_bucket", "waybill_group_splits_total"):
        assert name in metrics


def key_of(by: User, key: str) -> RequestKey:
    return RequestKey(by.id, "POST", "/v1/orders", key, b"")
