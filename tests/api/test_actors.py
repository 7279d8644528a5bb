"""Rows and events say who did it: a user, the handler of an event, a job or a command."""

from typing import Any

import pytest
from sqlalchemy import text

from services.acting import acting_as
from services.orders.expiry.service import UNPAID
from services.outbox.events import Trace
from services.unit_of_work import UnitOfWork, background
from services.users.events import UserEmailChanged
from tests.api.client import Api, order_of
from tests.conftest import BOTH_PATHS
from tests.factories import make_operator, make_user
from worker.jobs.sweeping import run_sweeps

pytestmark = BOTH_PATHS


async def rows(api: Api, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    async with api.database.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(statement), parameters)]


async def events(api: Api) -> list[tuple[str, str | None]]:
    return [(kind, actor) for kind, actor in await rows(api, "SELECT type, actor FROM events ORDER BY position")]


async def test_an_order_says_who_placed_it_and_which_handler_confirmed_it(api: Api) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    await api.process()

    handler = "job:order.placed"
    assert await events(api) == [("order.placed", buyer.actor), ("order.confirmed", handler)]
    moves = await rows(api, "SELECT to_status, actor FROM order_transitions ORDER BY id")
    assert moves == [("pending", buyer.actor), ("confirmed", handler)]
    assert await rows(api, "SELECT actor FROM transfers WHERE kind = 'order'") == [(buyer.actor,)]


async def test_a_handler_names_itself_and_keeps_the_request_that_caused_it(api: Api) -> None:
    buyer, _, product = await api.shop()
    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))
    await api.process()
    found = await rows(api, "SELECT request_id, actor FROM events WHERE type = 'order.confirmed'")
    assert found == [(reply.headers["X-Request-Id"], "job:order.placed")]


async def test_what_an_operator_does_to_an_order_says_so(api: Api) -> None:
    buyer, _, product = await api.shop()
    operator = await make_operator(api.database)
    placed = await api.place(buyer, (product, 2))
    await api.process()
    done = await api.post(f"/v1/orders/{placed['id']}/fulfil", by=operator)
    assert done.status_code == 200, done.text
    lines = {"lines": [{"line": 1, "quantity": 1}], "reason": "broken"}
    assert (await api.post(f"/v1/orders/{placed['id']}/refunds", by=operator, json=lines)).status_code == 201

    assert (await events(api))[2:] == [("order.fulfilled", operator.actor), ("order.refunded", operator.actor)]
    assert await rows(api, "SELECT actor FROM order_transitions WHERE to_status = 'fulfilled'") == [(operator.actor,)]
    assert await rows(api, "SELECT actor FROM transfers WHERE kind = 'refund'") == [(operator.actor,)]
    movements = await rows(api, "SELECT kind, actor FROM stock_movements WHERE order_id IS NOT NULL ORDER BY id")
    assert movements == [("shipped", operator.actor), ("returned", operator.actor)]


async def test_each_sender_of_transfers_is_named(api: Api) -> None:
    senders = [await make_user(api.database, credits="100") for _ in range(3)]
    recipient = await make_user(api.database)
    wanted = {"to_user_id": recipient.id, "amount": "1.00"}
    for sender in senders:
        assert (await api.post("/v1/transfers", by=sender, json=wanted)).status_code == 201
    batch = {"mode": "atomic", "transfers": [wanted]}
    assert (await api.post("/v1/transfers/batch", by=senders[1], json=batch)).status_code == 200

    expected = [(one.actor,) for one in (*senders, senders[1])]
    assert await rows(api, "SELECT actor FROM transfers WHERE kind = 'transfer' ORDER BY id") == expected
    assert await rows(api, "SELECT actor FROM events WHERE type = 'credits.moved' ORDER BY position") == expected


async def test_holds_top_ups_and_closed_accounts_say_who_made_them(api: Api) -> None:
    payer, payee, operator = [
        await make_user(api.database, credits="100"),
        await make_user(api.database),
        await make_operator(api.database),
    ]
    until = await api.scalar("SELECT now() + interval '1 hour'")
    wanted = {"to_user_id": payee.id, "amount": "5.00", "expires_at": until.isoformat()}
    held = await api.post("/v1/holds", by=payer, json=wanted)
    assert held.status_code == 201, held.text
    assert (await api.post(f"/v1/transfers/{held.json()['id']}/post", by=payee)).status_code == 200
    top_up = {"user_id": payee.id, "amount": "7.00"}
    assert (await api.post("/v1/top-ups", by=operator, json=top_up)).status_code == 201
    assert (await api.post(f"/v1/accounts/{payee.id}/close", by=operator)).status_code == 200

    assert await events(api) == [
        ("credits.held", payer.actor),
        ("credits.moved", payee.actor),
        ("credits.moved", operator.actor),
        ("account.closed", operator.actor),
    ]
    made = await rows(api, "SELECT kind, actor FROM transfers WHERE actor IS NOT NULL ORDER BY id")
    assert made == [("transfer", payer.actor), ("top_up", operator.actor)]


async def test_changes_of_stock_and_price_say_who_made_them(api: Api) -> None:
    _, seller, product = await api.shop()
    operator = await make_operator(api.database)
    path = f"/v1/products/{product.id}"
    assert (await api.post(f"{path}/stock", by=seller, json={"change": 5})).status_code == 200
    assert (await api.patch(path, by=operator, version=1, json={"price": "12.00"})).status_code == 200
    stocked = await rows(api, "SELECT pieces, actor FROM stock_movements WHERE kind = 'stocked'")
    assert stocked == [(5, seller.actor)]
    assert await events(api) == [("product.updated", operator.actor)]


async def test_what_a_job_does_names_the_job(api: Api) -> None:
    buyer, _, product = await api.shop(credits="1")
    await api.place(buyer, (product, 1))
    await api.execute("UPDATE orders SET expires_at = now() - interval '1 minute'")
    with acting_as("job:expire"):
        await run_sweeps(lambda: UnitOfWork(api.database.write), [UNPAID], slice_size=10)
    assert (await events(api))[1:] == [("order.cancelled", "job:expire")]
    assert await rows(api, "SELECT actor FROM order_transitions WHERE to_status = 'cancelled'") == [("job:expire",)]


async def test_an_actor_cannot_be_changed(api: Api) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    for table in ("events", "transfers", "order_transitions"):
        with pytest.raises(Exception, match="what is written stays"):
            await api.execute(f"UPDATE {table} SET actor = 'user:0'")
    # Not even with the one change that a transfer may have.
    voided = "UPDATE transfers SET state = 'voided', resolved_at = now()"
    with pytest.raises(Exception, match="what is written stays"):
        await api.execute(f"{voided}, actor = 'user:0'")
    await api.execute(f"{voided} WHERE state = 'pending'")


async def test_an_unauthenticated_request_names_no_actor(api: Api) -> None:
    wanted = {"email": "new@example.com", "full_name": "New", "password": "correct horse battery"}
    with acting_as("command:api"):
        reply = await api.client.post("/v1/users", json=wanted)
    assert reply.status_code == 201, reply.text
    assert await events(api) == [("user.registered", None)]


async def test_a_log_consumer_and_a_command_name_themselves(api: Api) -> None:
    user = await make_user(api.database)
    with acting_as("command:outbox pause"):
        async with background(lambda: UnitOfWork(api.database.write)) as uow:
            uow.record(UserEmailChanged(user_id=user.id))
            uow.act_as("job:order_days")
            uow.record(UserEmailChanged(user_id=user.id), Trace("request-1"))
    found = await rows(api, "SELECT request_id, actor FROM events ORDER BY position")
    assert found == [(None, "command:outbox pause"), ("request-1", "job:order_days")]
