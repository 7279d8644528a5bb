"""Every posted transfer is recorded by one event: `credits.moved`, or that of the order that it belongs to."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from services.credits.events import CreditsMoved
from services.credits.models import TransferKind
from services.orders.events import OrderConfirmed, OrderRefunded
from services.outbox.events import Event
from services.users.models import User
from tests.api.client import Api
from tests.api.test_holds import held, resolve
from tests.factories import make_operator, make_product, make_user

TOLD_BY: dict[TransferKind, type[Event]] = {
    TransferKind.top_up: CreditsMoved,
    TransferKind.transfer: CreditsMoved,
    TransferKind.reversal: CreditsMoved,
    TransferKind.adjustment: CreditsMoved,
    TransferKind.order: OrderConfirmed,
    TransferKind.refund: OrderRefunded,
}

POSTED = "SELECT id::text, kind, order_id::text, posted_amount FROM transfers WHERE state = 'posted'"
EVENTS = "SELECT payload FROM events WHERE type = :type"


async def done(request: Awaitable[Any]) -> dict[str, Any]:
    reply = await request
    assert reply.status_code in (200, 201), reply.text
    body: dict[str, Any] = reply.json()
    return body


async def funded(api: Api) -> User:
    """A user with 100 credits that came through the API."""
    user, operator = await make_user(api.database), await make_operator(api.database)
    await done(api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "100.00"}))
    return user


async def top_up(api: Api) -> None:
    await funded(api)


async def transfer(api: Api) -> None:
    """A transfer, two of a batch, and a partly posted hold."""
    payer, payee = await funded(api), await make_user(api.database)
    wanted = {"to_user_id": payee.id, "amount": "2.50"}
    await done(api.post("/v1/transfers", by=payer, json=wanted))
    batch = {"mode": "independent", "transfers": [wanted, {**wanted, "amount": "1000.00"}, wanted]}
    await done(api.post("/v1/transfers/batch", by=payer, json=batch))
    await done(resolve(api, await held(api, payer, payee, "5.00"), "post", payee, amount="3.00"))
    await done(resolve(api, await held(api, payer, payee, "5.00"), "void", payee))


async def reversal(api: Api) -> None:
    payer, payee = await funded(api), await make_user(api.database)
    moved = await done(api.post("/v1/transfers", by=payer, json={"to_user_id": payee.id, "amount": "2.50"}))
    operator = await make_operator(api.database)
    await done(api.post(f"/v1/transfers/{moved['id']}/reverse", by=operator, json={"reason": "by mistake"}))


async def adjustment(api: Api) -> None:
    user, operator = await funded(api), await make_operator(api.database)
    for amount in ("3.00", "-4.00"):
        wanted = {"user_id": user.id, "amount": amount, "reason": "counted again"}
        await done(api.post("/v1/adjustments", by=operator, json=wanted))


async def order(api: Api) -> None:
    """An order that pays two sellers, and one that is rejected."""
    buyer = await funded(api)
    products = [await make_product(api.database, price="5.00", stock=3) for _ in range(2)]
    await api.place(buyer, (products[0], 2), (products[1], 1))
    await api.place(buyer, (products[0], 3))
    await api.process()


async def refund(api: Api) -> None:
    """One of two sellers gives something back, then the order is cancelled."""
    buyer = await funded(api)
    products = [await make_product(api.database, price="5.00") for _ in range(2)]
    placed = await api.place(buyer, (products[0], 2), (products[1], 1))
    await api.process()
    operator, path = await make_operator(api.database), f"/v1/orders/{placed['id']}"
    wanted = {"lines": [{"line": 1, "quantity": 1}], "reason": "broken"}
    await done(api.post(f"{path}/refunds", by=operator, json=wanted))
    await done(api.post(f"{path}/cancel", by=buyer))


SCENARIOS: dict[TransferKind, Callable[[Api], Awaitable[None]]] = {
    TransferKind.top_up: top_up,
    TransferKind.transfer: transfer,
    TransferKind.reversal: reversal,
    TransferKind.adjustment: adjustment,
    TransferKind.order: order,
    TransferKind.refund: refund,
}


async def payloads(api: Api, event: type[Event]) -> list[dict[str, Any]]:
    async with api.database.engine.connect() as connection:
        return list(await connection.scalars(text(EVENTS), {"type": event.type}))


@pytest.mark.parametrize("kind", TransferKind)
async def test_every_posted_transfer_is_recorded_by_the_event_of_its_kind(api: Api, kind: TransferKind) -> None:
    await SCENARIOS[kind](api)

    async with api.database.engine.connect() as connection:
        posted = (await connection.execute(text(POSTED))).all()
    assert kind in {TransferKind(one.kind) for one in posted}
    moved = [(one.id, one.kind, one.posted_amount) for one in posted if TOLD_BY[TransferKind(one.kind)] is CreditsMoved]
    told = [(one["transfer_id"], one["kind"], Decimal(one["amount"])) for one in await payloads(api, CreditsMoved)]
    assert sorted(told) == sorted(moved)
    for event, amount in ((OrderConfirmed, "total"), (OrderRefunded, "amount")):
        paid: dict[str, Decimal] = {}
        for one in posted:
            if TOLD_BY[TransferKind(one.kind)] is event:
                paid[one.order_id] = paid.get(one.order_id, Decimal(0)) + one.posted_amount
        said: dict[str, Decimal] = {}
        for payload in await payloads(api, event):
            said[payload["order_id"]] = said.get(payload["order_id"], Decimal(0)) + Decimal(payload[amount])
        assert said == paid
