"""An order whose event is discarded is cancelled together with it; nothing is left pending with its credits held."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.connections import NotYours
from services.fields import new_id
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection
from services.outbox.subscription import Discarded, Subscription
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.audited import corrupt
from tests.api.client import Api, assert_problem
from tests.api.later import assert_nothing_differs
from tests.concurrency.ticks import Tick, TickHandler
from tests.factories import make_operator

DIE = (
    "WITH dead AS (DELETE FROM outbox RETURNING *)"
    " INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
    " SELECT position, event_id, aggregate, type, 8, 'ValueError: no' FROM dead"
)
WAIT = "UPDATE outbox SET waits = 'retry', available_at = now() + interval '1 hour'"
BECAUSE = {"reason": "cannot be repaired"}


async def placed(api: Api, orders: int = 1) -> tuple[User, list[str]]:
    buyer, _, product = await api.shop(price="10.00", stock=20)
    return buyer, [(await api.place(buyer, (product, 1)))["id"] for _ in range(orders)]


async def balance(api: Api, buyer: User) -> dict[str, Any]:
    found = (await api.get("/v1/accounts/me", by=buyer)).json()
    return {name: Decimal(found[name]) for name in ("available", "held")}


async def assert_cancelled(api: Api, buyer: User, order_ids: Sequence[str]) -> None:
    for order_id in order_ids:
        order = (await api.get(f"/v1/orders/{order_id}", by=buyer)).json()
        assert order["status"] == "cancelled"
        last = order["transitions"][-1]
        assert (last["from_status"], last["to_status"], last["reason"]) == (
            "pending",
            "cancelled",
            "could not be processed",
        )
        recorded = (
            "SELECT count(*) FROM events WHERE type = 'order.cancelled' AND aggregate = 'order/' || CAST(:id AS text)"
        )
        assert await api.scalar(recorded, id=order_id) == 1
    assert await balance(api, buyer) == {"available": Decimal(1000), "held": Decimal(0)}
    assert await api.scalar("SELECT count(*) FROM outbox_actions WHERE action = 'discard'") == len(order_ids)
    await assert_nothing_differs(api.database)


async def run(*arguments: str, code: int = 0) -> str:
    """Run a command in a thread: it has an event loop of its own."""
    result = await asyncio.to_thread(partial(CliRunner().invoke, app, ["outbox", *arguments]))
    assert result.exit_code == code, result.output
    return result.output


async def test_discarding_dead_letters_over_http_cancels_their_orders(api: Api) -> None:
    buyer, orders = await placed(api, 3)
    await corrupt(api.database, DIE)
    operator = await make_operator(api.database)
    planned = await api.post(
        "/v1/operations/discard", by=operator, json={"type": "order.placed", "dry_run": True, **BECAUSE}
    )
    assert planned.json()["matching"] == 3
    assert (await balance(api, buyer))["held"] == 30

    reply = await api.post("/v1/operations/discard", by=operator, json={"type": "order.placed", **BECAUSE})

    assert reply.json()["done"] == 3
    await assert_cancelled(api, buyer, orders)


async def test_discarding_a_waiting_event_over_http_cancels_its_order(api: Api) -> None:
    buyer, orders = await placed(api)
    await corrupt(api.database, WAIT)
    operator = await make_operator(api.database)
    position = await api.scalar("SELECT position FROM outbox")
    reply = await api.post(f"/v1/operations/waiting/{position}/discard", by=operator, json=BECAUSE)
    assert reply.status_code == 204, reply.text
    await assert_cancelled(api, buyer, orders)


@pytest.mark.usefixtures("_settings_of_commands")
async def test_discarding_dead_letters_on_the_command_line_cancels_their_orders(api: Api) -> None:
    buyer, orders = await placed(api, 2)
    await corrupt(api.database, DIE)
    said = await run("discard", "--type", "order.placed", "--reason", "cannot be repaired", "--yes")
    assert "2 dead letters" in said
    await assert_cancelled(api, buyer, orders)


@pytest.mark.usefixtures("_settings_of_commands")
async def test_discarding_a_waiting_event_on_the_command_line_cancels_its_order(api: Api) -> None:
    buyer, orders = await placed(api)
    await corrupt(api.database, WAIT)
    position = await api.scalar("SELECT position FROM outbox")
    await run("discard", str(position), "--waiting", "--reason", "cannot be repaired", "--yes")
    await assert_cancelled(api, buyer, orders)


async def test_an_order_that_is_no_longer_pending_stays_as_it_is(api: Api) -> None:
    buyer, (order_id,) = await placed(api)
    await corrupt(api.database, DIE)
    assert (await api.post(f"/v1/orders/{order_id}/cancel", by=buyer, json={"reason": "changed my mind"})).is_success
    operator = await make_operator(api.database)
    assert (await api.post("/v1/operations/discard", by=operator, json={"type": "order.placed", **BECAUSE})).is_success
    order = (await api.get(f"/v1/orders/{order_id}", by=buyer)).json()
    assert [move["reason"] for move in order["transitions"] if move["to_status"] == "cancelled"] == ["changed my mind"]


async def test_if_the_reaction_fails_the_event_is_not_discarded(api: Api) -> None:
    async def fails(_: UnitOfWork, discarded: Sequence[Discarded]) -> None:
        raise ValueError(discarded[0].aggregate)

    subscription = Subscription(Tick, TickHandler(), on_discard=fails)
    async with UnitOfWork(api.database.write) as uow:
        event_id = uow.record(Tick(name="a"))
        await uow.commit()
    await corrupt(api.database, DIE)
    async with UnitOfWork(api.database.write) as uow:
        with pytest.raises(ValueError, match="tick/a"):
            await control.discard(uow, Selection(event_id=event_id), By("an operator", "because"), [subscription])
    assert await api.scalar("SELECT count(*) FROM dead_letters") == 1


async def test_a_reaction_cannot_commit_a_part_of_the_discard(api: Api) -> None:
    async def commits(uow: UnitOfWork, _: Sequence[Discarded]) -> None:
        await uow.commit()

    subscription = Subscription(Tick, TickHandler(), on_discard=commits)
    async with UnitOfWork(api.database.write) as uow:
        event_id = uow.record(Tick(name="a"))
        await uow.commit()
    await corrupt(api.database, DIE)
    async with UnitOfWork(api.database.write) as uow:
        with pytest.raises(NotYours):
            await control.discard(uow, Selection(event_id=event_id), By("an operator", "because"), [subscription])
    assert await api.scalar("SELECT count(*) FROM dead_letters") == 1


async def test_why_says_what_will_happen_to_an_order_without_an_event(api: Api) -> None:
    _, (order_id,) = await placed(api)
    operator = await make_operator(api.database)

    async def why(what: dict[str, str]) -> str:
        reply = await api.get("/v1/operations/why", by=operator, params=what)
        return str(assert_problem(reply, 404, "not_found")["detail"])

    await corrupt(api.database, "DELETE FROM outbox")
    for asked in ({"aggregate": f"order/{order_id}"}, {"event_id": order_id}):
        said = await why(asked)
        assert (
            f"order {order_id} is pending, but has no event left; it stays pending until its hold expires at 2" in said
        )
        assert "UTC or you cancel it" in said
    await corrupt(api.database, "UPDATE transfers SET state = 'voided', resolved_at = now() WHERE state = 'pending'")
    assert "has no event left; it stays pending until you cancel it" in await why({"aggregate": f"order/{order_id}"})
    await corrupt(api.database, "UPDATE orders SET status = 'awaiting_payment', expires_at = now()")
    assert "awaits payment until 2" in await why({"aggregate": order_id})
    await corrupt(api.database, "UPDATE orders SET status = 'rejected', expires_at = NULL")
    assert f"order {order_id} is rejected" in await why({"aggregate": order_id})
    assert "never existed" in await why({"event_id": str(new_id())})
