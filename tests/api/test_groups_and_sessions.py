"""Whether callers may still use their tokens is decided when their group is carried out, not when it is joined."""

import asyncio

from tests.api.client import Api, assert_problem, order_of
from tests.api.grouped import Gate


async def test_a_session_that_ends_while_its_request_waits_refuses_it_and_leaves_its_key_and_its_neighbour_alone(
    api: Api, gate: Gate
) -> None:
    buyer, seller, product = await api.shop()
    body = order_of((product, 1))
    async with gate.holding(2):
        held = asyncio.create_task(api.post("/v1/orders", by=buyer, key="k", json=body))
        neighbour = asyncio.create_task(api.post("/v1/orders", by=seller, key="k", json=body))
        await gate.until(2)
        assert (await api.delete("/v1/sessions", by=buyer)).status_code == 204
    assert_problem(await held, 401, "unauthenticated")
    assert_problem(await neighbour, 422, "invalid_input")
    assert gate.attempts == [2]
    assert await api.scalar("SELECT count(*) FROM orders") == 0
    kept = "SELECT string_agg(concat_ws(' ', caller_id, status), ', ') FROM idempotency_keys"
    assert await api.scalar(kept) == f"{seller.id} 422"
