"""Operators undo posted transfers, each once."""

from typing import Any

import httpx2
import pytest

from services.users.models import User
from tests.api.client import Api, amounts, assert_problem
from tests.api.later import assert_nothing_differs
from tests.api.test_holds import held, resolve
from tests.factories import make_operator, make_user


async def reverse(api: Api, by: User, transfer_id: object, reason: Any = "sent in error") -> httpx2.Response:
    return await api.post(f"/v1/transfers/{transfer_id}/reverse", by=by, json={"reason": reason})


async def sent(api: Api, sender: User, recipient: User, amount: str) -> str:
    reply = await api.post("/v1/transfers", by=sender, json={"to_user_id": recipient.id, "amount": amount})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


async def people(api: Api) -> tuple[User, User, User]:
    return await make_operator(api.database), await make_user(api.database, credits="25"), await make_user(api.database)


async def test_a_transfer_is_undone_by_another_that_names_it(api: Api) -> None:
    operator, sender, recipient = await people(api)
    transfer_id = await sent(api, sender, recipient, "10.00")

    reply = await reverse(api, operator, transfer_id)

    assert reply.status_code == 201
    reversal = reply.json()
    assert reply.headers["location"] == f"/v1/transfers/{reversal['id']}"
    assert (reversal["kind"], reversal["state"], reversal["amount"]) == ("reversal", "posted", "10.00")
    assert (reversal["from_user_id"], reversal["to_user_id"]) == (recipient.id, sender.id)
    assert (reversal["reverses"], reversal["note"]) == (transfer_id, "sent in error")
    seen = (await api.get(f"/v1/transfers/{transfer_id}", by=sender)).json()
    assert (seen["state"], seen["reversed_by"]) == ("posted", reversal["id"])
    assert await api.credits_of(sender) == amounts("25")
    assert await api.credits_of(recipient) == amounts("0")
    recorded = "SELECT payload ->> 'reversal_id' FROM events WHERE type = 'transfer.reversed'"
    assert await api.scalar(recorded) == reversal["id"]
    await assert_nothing_differs(api.database)


async def test_the_posted_part_of_a_partly_posted_hold_is_reversed(api: Api) -> None:
    operator, sender, recipient = await people(api)
    transfer_id = await held(api, sender, recipient, "10.00")
    assert (await resolve(api, transfer_id, "post", recipient, amount="4.00")).status_code == 200
    assert (await reverse(api, operator, transfer_id)).json()["amount"] == "4.00"
    assert await api.credits_of(sender) == amounts("25")
    await assert_nothing_differs(api.database)


async def test_a_reversed_top_up_returns_the_credits_to_their_issuer(api: Api) -> None:
    operator, _, user = await people(api)
    topped = await api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "7.00"})
    reversal = (await reverse(api, operator, topped.json()["id"])).json()
    assert (reversal["from_user_id"], reversal["to_user_id"]) == (user.id, None)
    assert await api.credits_of(user) == amounts("0")
    await assert_nothing_differs(api.database)


async def test_a_transfer_cannot_be_reversed_twice(api: Api) -> None:
    operator, sender, recipient = await people(api)
    transfer_id = await sent(api, sender, recipient, "10.00")
    reversal_id = (await reverse(api, operator, transfer_id)).json()["id"]
    before = await api.everything()
    assert_problem(await reverse(api, operator, transfer_id), 409, "transfer_already_reversed")
    assert_problem(await reverse(api, operator, reversal_id), 409, "transfer_not_reversible")
    assert await api.everything() == before


async def test_a_reversal_of_credits_that_have_been_spent_is_refused(api: Api) -> None:
    operator, sender, recipient = await people(api)
    transfer_id = await sent(api, sender, recipient, "10.00")
    await sent(api, recipient, operator, "0.01")
    before = await api.everything()
    assert_problem(await reverse(api, operator, transfer_id), 402, "insufficient_credits")
    assert await api.everything() == before


async def test_an_orders_payment_and_its_refund_cannot_be_reversed(api: Api) -> None:
    operator = await make_operator(api.database)
    buyer, _, product = await api.shop()
    order = await api.place(buyer, (product, 1))
    of_kind = "SELECT id FROM transfers WHERE kind = :kind"
    assert_problem(await reverse(api, operator, await api.scalar(of_kind, kind="order")), 409, "transfer_of_order")
    await api.process()
    assert_problem(await reverse(api, operator, await api.scalar(of_kind, kind="order")), 409, "transfer_of_order")
    assert (await api.post(f"/v1/orders/{order['id']}/cancel", by=buyer)).status_code == 200
    assert_problem(await reverse(api, operator, await api.scalar(of_kind, kind="refund")), 409, "transfer_of_order")


@pytest.mark.parametrize(("verb", "code"), [("void", "transfer_already_voided"), (None, "transfer_not_reversible")])
async def test_a_transfer_that_was_not_posted_cannot_be_reversed(api: Api, verb: str | None, code: str) -> None:
    operator, sender, recipient = await people(api)
    transfer_id = await held(api, sender, recipient)
    if verb is not None:
        await resolve(api, transfer_id, verb, recipient)
    assert_problem(await reverse(api, operator, transfer_id), 409, code)


async def test_a_reason_is_required(api: Api) -> None:
    operator, sender, recipient = await people(api)
    transfer_id = await sent(api, sender, recipient, "10.00")
    for reason in ("", "   ", "x" * 201, None, "a\x00b"):
        reply = await reverse(api, operator, transfer_id, reason)
        assert_problem(reply, 422, "invalid_input", pointers=["#/reason"])
    assert_problem(await reverse(api, sender, transfer_id), 403, "forbidden")
