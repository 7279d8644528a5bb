"""API keys in groups: read in the group's trip, and never remembered as valid."""

import asyncio

import pytest

from tests.api.client import Api, assert_problem, order_of
from tests.api.grouped import Gate, together
from tests.api.programs import make_key, order_with, rotate, with_key
from tests.factories import make_user, plain_sql


async def test_requests_with_a_key_are_carried_out_in_groups_from_the_first_one_on(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    made = await make_key(api, buyer)
    body = order_of((product, 1))
    trips = []
    for number in range(2):
        with plain_sql(monkeypatch) as ran:
            assert (await order_with(api, made, body)).status_code == 201
        assert gate.attempts == [1] * (number + 1)
        trips.append(len(ran))
    assert trips[0] == trips[1] + 1, "whose key it is is asked once"


async def test_tokens_and_keys_are_carried_out_in_one_group_and_read_in_one_trip(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, seller, product = await api.shop()
    other = await make_user(api.database, credits="100")
    keys = [await make_key(api, one) for one in (buyer, other, seller)]
    for made in keys:
        assert (await api.get("/v1/orders", headers=with_key(made))).status_code == 200
    body = order_of((product, 1))
    with plain_sql(monkeypatch) as ran:
        replies = await together(
            gate,
            order_with(api, keys[0], body),
            api.post("/v1/orders", by=buyer, json=body),
            order_with(api, keys[1], body),
            order_with(api, keys[2], body),
            api.post("/v1/orders", by=other, json=body),
        )
    assert [reply.status_code for reply in replies] == [201, 201, 201, 422, 201]
    assert gate.attempts == [5]
    assert len([sql for sql in ran if "api_keys" in sql]) == 1
    buyers = "SELECT string_agg(buyer_id::text, ' ' ORDER BY buyer_id) FROM orders"
    assert await api.scalar(buyers) == f"{buyer.id} {buyer.id} {other.id} {other.id}"


async def test_a_key_that_is_revoked_while_its_request_waits_refuses_it_and_leaves_its_neighbours_alone(
    api: Api, gate: Gate
) -> None:
    buyer, _, product = await api.shop()
    other = await make_user(api.database, credits="100")
    made, others = await make_key(api, buyer), await make_key(api, other)
    body = order_of((product, 1))
    for one in (made, others):
        assert (await order_with(api, one, body)).status_code == 201
    async with gate.holding(2):
        held = asyncio.create_task(order_with(api, made, body, key="k"))
        neighbour = asyncio.create_task(order_with(api, others, body, key="k"))
        await gate.until(2)
        assert (await api.delete(f"/v1/api-keys/{made['id']}", by=buyer)).status_code == 204
    assert_problem(await held, 401, "unauthenticated")
    assert (await neighbour).status_code == 201
    assert gate.attempts == [1, 1, 2]
    assert await api.scalar("SELECT count(*) FROM orders") == 3
    assert await api.scalar("SELECT string_agg(caller_id::text, ' ') FROM idempotency_keys WHERE key = 'k'") == str(
        other.id
    )


async def test_two_keys_of_one_user_share_a_turn_and_an_idempotency_key(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop()
    old = await make_key(api, buyer)
    new = await rotate(api, old)
    for one in (old, new):
        assert (await api.get("/v1/orders", headers=with_key(one))).status_code == 200
    body = order_of((product, 1))
    async with gate.holding(2):
        tasks = [asyncio.create_task(order_with(api, one, body, key="k")) for one in (old, new)]
        await gate.until(2)
    first, second = await asyncio.gather(*tasks)
    assert (first.status_code, second.content) == (201, first.content)
    assert gate.attempts == [1, 1], "the same key of the same user waits for the next group"
    assert await api.scalar("SELECT count(*) FROM orders") == 1
