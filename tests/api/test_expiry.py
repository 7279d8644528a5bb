"""Orders that are not completed in time are cancelled, by the scheduled job or by the worker that comes too late."""

from tests.api.client import Api, amounts, assert_problem
from tests.api.later import assert_nothing_differs, let_the_time_run_out, sweep
from tests.concurrency.ticks import rows
from tests.factories import make_operator, make_user

EVENTS = "SELECT array_agg(type || coalesce(': ' || (payload ->> 'reason'), '') ORDER BY id) FROM events"
HISTORY = "SELECT array_agg(to_status || reason ORDER BY id) FROM order_transitions"


async def test_a_pending_order_is_cancelled_with_its_holds(api: Api) -> None:
    buyer, _, product = await api.shop(credits="50")
    order = await api.place(buyer, (product, 2))
    await let_the_time_run_out(api.database)

    assert await sweep(api.database) == (1, 0)

    assert await api.status_of(order["id"]) == "cancelled"
    assert await api.credits_of(buyer) == amounts("50")
    assert await api.scalar("SELECT state FROM transfers WHERE kind = 'order'") == "expired"
    assert await api.scalar(EVENTS) == ["order.placed", "order.cancelled: expired"]
    assert await api.scalar(HISTORY) == ["pending", "cancelledexpired"]
    # The worker that finds the event now leaves the order as it is.
    assert (await api.process()).processed == 1
    assert await api.scalar(HISTORY) == ["pending", "cancelledexpired"]
    await assert_nothing_differs(api.database)


async def test_an_order_that_is_not_paid_in_time_is_cancelled_and_cannot_be_paid(api: Api) -> None:
    buyer, _, product = await api.shop(credits="5")
    order = await api.place(buyer, (product, 1))
    assert order["status"] == "awaiting_payment"
    await let_the_time_run_out(api.database)

    assert await sweep(api.database) == (1, 0)

    assert await api.status_of(order["id"]) == "cancelled"
    assert await api.scalar("SELECT expires_at FROM orders") is None
    assert await api.scalar(EVENTS) == ["order.awaiting_payment", "order.cancelled: expired"]
    assert_problem(await api.post(f"/v1/orders/{order['id']}/pay", by=buyer), 409, "conflict")
    await assert_nothing_differs(api.database)


async def test_a_worker_that_comes_too_late_cancels_instead_of_posting(api: Api) -> None:
    buyer, seller, product = await api.shop(credits="50", stock=3)
    late = await api.place(buyer, (product, 2))
    await let_the_time_run_out(api.database)
    other = await make_user(api.database, credits="50")
    in_time = await api.place(other, (product, 2))

    assert (await api.process()).processed == 2

    # The stock of the late order is available to the other.
    assert [await api.status_of(order["id"]) for order in (late, in_time)] == ["cancelled", "confirmed"]
    assert await api.credits_of(buyer) == amounts("50")
    assert await api.credits_of(seller) == amounts("20")
    assert await api.stock_of(product) == (3, 2)
    states = "SELECT array_agg(state ORDER BY id) FROM transfers WHERE kind = 'order'"
    assert await api.scalar(states) == ["expired", "posted"]
    assert await sweep(api.database) == (0, 0)
    await assert_nothing_differs(api.database)


async def test_orders_with_time_left_and_confirmed_orders_are_not_touched(api: Api) -> None:
    buyer, _, product = await api.shop(credits="30")
    confirmed = await api.place(buyer, (product, 1))
    await api.process()
    pending, unpaid = await api.place(buyer, (product, 1)), await api.place(buyer, (product, 2))
    before = await api.everything()

    assert await sweep(api.database) == (0, 0)

    assert await api.everything() == before
    statuses = [await api.status_of(order["id"]) for order in (confirmed, pending, unpaid)]
    assert statuses == ["confirmed", "pending", "awaiting_payment"]


async def test_an_order_paid_in_time_lives_as_long_as_its_hold(api: Api) -> None:
    buyer, _, product = await api.shop(credits="5")
    order = await api.place(buyer, (product, 1))
    other = await make_user(api.database, credits="10")
    assert (await api.post("/v1/transfers", by=other, json={"to_user_id": buyer.id, "amount": "5"})).status_code == 201
    assert (await api.post(f"/v1/orders/{order['id']}/pay", by=buyer)).status_code == 200
    assert await sweep(api.database) == (0, 0)
    await let_the_time_run_out(api.database)
    assert await sweep(api.database) == (1, 0)
    assert await api.status_of(order["id"]) == "cancelled"
    assert await api.credits_of(buyer) == amounts("10")


async def test_a_slice_has_the_requested_size_and_the_next_one_continues(api: Api) -> None:
    buyer, _, product = await api.shop(credits="50")
    orders = [await api.place(buyer, (product, 1)) for _ in range(5)]
    await let_the_time_run_out(api.database)
    assert [await sweep(api.database, limit=2) for _ in range(4)] == [(2, 0), (2, 0), (1, 0), (0, 0)]
    assert {await api.status_of(order["id"]) for order in orders} == {"cancelled"}
    assert await api.credits_of(buyer) == amounts("50")


async def test_operators_see_what_the_database_refuses_to_let_expire_until_it_has_expired(api: Api) -> None:
    buyer, _, product = await api.shop(credits="50")
    operator = await make_operator(api.database)
    order = await api.place(buyer, (product, 2))
    await let_the_time_run_out(api.database)
    await rows(api.database, "UPDATE accounts SET held = 0 WHERE held > 0")
    assert await sweep(api.database) == (0, 0)

    [failure] = (await api.get("/v1/operations/sweep-failures", by=operator)).json()
    assert (failure["sweep"], failure["subject"], failure["attempts"]) == ("held_orders", order["id"], 1)
    assert "ck_accounts_held" in failure["error"]
    assert failure["first_at"] == failure["last_at"] < failure["next_at"]
    assert "waybill_sweep_failures 1.0" in (await api.get("/metrics")).text

    await rows(api.database, "UPDATE accounts SET held = 20 WHERE user_id = (SELECT buyer_id FROM orders)")
    await rows(api.database, "UPDATE sweep_failures SET next_at = now()")
    assert await sweep(api.database) == (1, 0)
    assert await api.status_of(order["id"]) == "cancelled"
    assert (await api.get("/v1/operations/sweep-failures", by=operator)).json() == []
    await api.assert_books_balance()
