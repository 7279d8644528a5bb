"""The timeline of an order: everything that happened to it, for those of the staff who may see it."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from services.orders.events import OrderPlaced
from services.orders.timeline import repository, service
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.api.programs import make_key
from tests.conftest import BOTH_PATHS
from tests.factories import make_operator, make_user

pytestmark = BOTH_PATHS


def path_of(order_id: Any) -> str:
    return f"/v1/operations/orders/{order_id}/timeline"


async def read(api: Api, order_id: str, by: User | None = None) -> dict[str, Any]:
    reply = await api.get(path_of(order_id), by=by or await make_operator(api.database))
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def of(found: dict[str, Any], kind: str, field: str = "what") -> list[Any]:
    return [one[field] for one in found["entries"] if one["kind"] == kind]


async def returned(api: Api) -> tuple[str, User, User]:
    """An order that was placed, confirmed, fulfilled and refunded in part; its buyer and its seller."""
    buyer, seller, product = await api.shop(credits="100", price="2.50", stock=10)
    order = await api.place(buyer, (product, 4), reference="INV-1")
    await api.process()
    path = f"/v1/orders/{order['id']}"
    assert (await api.post(f"{path}/fulfil", by=seller)).status_code == 200
    wanted = {"lines": [{"line": 1, "quantity": 1}], "reason": "scratched"}
    assert (await api.post(f"{path}/refunds", by=seller, json=wanted)).status_code == 201
    return order["id"], buyer, seller


async def test_a_timeline_has_everything_that_happened_to_an_order_in_order_of_time(api: Api) -> None:
    order_id, buyer, seller = await returned(api)
    found = await read(api, order_id)
    assert (found["order"]["id"], found["order"]["status"], found["order"]["refunded"]) == (
        order_id,
        "fulfilled",
        "2.50",
    )
    assert (found["hidden"], found["cut"], found["not_found"]) == ([], [], [])
    assert of(found, "transition") == ["placed as pending", "pending to confirmed", "confirmed to fulfilled"]
    assert of(found, "transition", "actor")[0::2] == [f"user:{buyer.id}", f"user:{seller.id}"]
    assert of(found, "event") == ["order.placed", "order.confirmed", "order.fulfilled", "order.refunded"]
    assert of(found, "event", "state") == ["processed", "logged", "logged", "logged"]
    assert of(found, "hold", "state") == ["pending", "posted"]
    assert of(found, "hold", "amount") == ["10.00", "10.00"]
    assert sorted(of(found, "entry", "amount")) == ["-10.00", "-2.50", "10.00", "2.50"]
    assert of(found, "movement", "state") == ["shipped", "returned"]
    assert (of(found, "refund"), of(found, "refund", "amount")) == (["1 piece refunded"], ["2.50"])
    assert of(found, "refund", "reason") == ["scratched"]
    verbs = [what.split(" with")[0].rpartition("/")[2] for what in of(found, "request")]
    assert verbs == ["orders", "fulfil", "refunds"]
    assert of(found, "request", "state") == ["201", "200", "201"]
    assert all(of(found, "request", "request_id"))
    times = [one["at"] for one in found["entries"]]
    assert times == sorted(times)
    # Whoever reads it twice sees the same.
    assert (await read(api, order_id))["entries"] == found["entries"]


async def test_entries_of_the_same_moment_keep_the_order_of_their_kinds(api: Api) -> None:
    order_id, _, _ = await returned(api)
    entries = (await read(api, order_id))["entries"]
    kinds = [one["kind"] for one in entries if one["at"] == entries[0]["at"]]
    assert kinds[:2] == ["request", "transition"]


async def broken(_: UnitOfWork, events: list[Claimed[OrderPlaced]]) -> None:
    raise ValueError(f"no stock of <{len(events)}>")


async def fail(api: Api, attempts: int) -> None:
    """Let a worker with a broken handler try what is due, so often that it gives up."""
    subscriptions = (Subscription(OrderPlaced, broken, plain_sql=True),)  # type: ignore[arg-type]
    for _ in range(attempts):
        await api.execute("UPDATE outbox SET available_at = now() WHERE available_at IS NOT NULL")
        processor = Processor[UnitOfWork](
            lambda: UnitOfWork(api.database.write),
            subscriptions,
            retry=RetryPolicy(max_attempts=attempts, base=100.0, cap=100.0),
            batch_size=10,
        )
        await processor.run_once()


async def test_failed_attempts_and_what_operators_did_are_in_it(api: Api) -> None:
    buyer, _, product = await api.shop(credits="100")
    order = await api.place(buyer, (product, 1))
    await fail(api, 2)
    operator = await make_operator(api.database)
    found = await read(api, order["id"], operator)
    assert of(found, "event", "state") == ["dead"]
    assert of(found, "event")[0].startswith("order.placed: dead letter after 2 attempts")
    assert of(found, "failure") == ["attempt 1 failed", "attempt 2 failed"]
    assert all("no stock of <1>" in error for error in of(found, "failure", "error"))
    wanted = {"aggregate": f"order/{order['id']}", "reason": "the handler is mended"}
    assert (await api.post("/v1/operations/replay", by=operator, json=wanted)).status_code == 200
    found = await read(api, order["id"], operator)
    assert (of(found, "action"), of(found, "action", "reason")) == (["replay order.placed"], ["the handler is mended"])
    assert of(found, "action", "actor") == [f"user/{operator.id}"]
    assert of(found, "event", "state") != ["dead"]


async def test_a_discarded_event_is_not_said_to_be_processed(api: Api) -> None:
    buyer, _, product = await api.shop(credits="100")
    order = await api.place(buyer, (product, 1))
    await fail(api, 1)
    wanted = {"aggregate": f"order/{order['id']}", "reason": "the product is gone"}
    assert (await api.post("/v1/operations/discard", by=await make_operator(api.database), json=wanted)).is_success
    found = await read(api, order["id"])
    assert dict(zip(of(found, "event"), of(found, "event", "state"), strict=True)) == {
        "order.placed": "discarded",
        "order.cancelled": "logged",
    }
    assert of(found, "hold", "state") == ["pending", "voided"]


async def test_support_sees_no_errors_and_no_acts_on_events(api: Api) -> None:
    buyer, _, product = await api.shop(credits="100")
    order = await api.place(buyer, (product, 1))
    await fail(api, 1)
    found = await read(api, order["id"], await make_user(api.database, role=Role.support))
    assert found["hidden"] == ["failure", "action"]
    assert (of(found, "event"), of(found, "event", "error"), of(found, "failure")) == (["order.placed"], [None], [])
    assert of(found, "hold")


async def test_an_auditor_sees_all_of_it(api: Api) -> None:
    order_id, _, _ = await returned(api)
    assert await read(api, order_id, await make_user(api.database, role=Role.auditor)) == await read(api, order_id)


async def test_a_key_sees_the_credits_and_the_stock_only_with_the_scopes_for_them(api: Api) -> None:
    order_id, _, _ = await returned(api)
    operator = await make_operator(api.database)
    key = await make_key(api, operator, scopes=["orders:read_all"])
    reply = await api.client.get(path_of(order_id), headers={"Authorization": f"Bearer {key['key']}"})
    assert reply.json()["hidden"] == ["hold", "entry", "movement", "failure", "action"]
    assert not {"hold", "entry", "movement"} & {one["kind"] for one in reply.json()["entries"]}


async def test_the_parties_of_an_order_may_not_read_its_timeline(api: Api) -> None:
    order_id, buyer, seller = await returned(api)
    for party in (buyer, seller):
        assert_problem(await api.get(path_of(order_id), by=party), 403, "forbidden")
    assert_problem(await api.get(path_of(uuid4()), by=await make_operator(api.database)), 404, "not_found")


async def test_an_event_that_the_log_has_dropped_is_named(api: Api) -> None:
    order_id, _, _ = await returned(api)
    await api.execute("ALTER TABLE events DISABLE TRIGGER USER")
    await api.execute("DELETE FROM events WHERE type = 'order.confirmed'")
    found = await read(api, order_id)
    assert found["not_found"] == ["order.confirmed"]
    assert of(found, "event") == ["order.placed", "order.fulfilled", "order.refunded"]


async def test_an_event_written_long_after_the_time_expected_is_found(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id, _, _ = await returned(api)
    monkeypatch.setattr(service, "AROUND", (timedelta(0), timedelta(seconds=60)))
    assert (await read(api, order_id))["not_found"] == []


async def test_more_entries_than_are_shown_of_a_kind_are_cut_and_named(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id, _, _ = await returned(api)
    monkeypatch.setattr(service, "EACH", 2)
    monkeypatch.setattr(repository, "_MOST", 3)
    found = await read(api, order_id)
    assert set(found["cut"]) == {"request", "transition", "entry", "event"}
    assert of(found, "transition") == ["placed as pending", "pending to confirmed"]
