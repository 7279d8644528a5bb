"""A closed account neither sends nor receives, whichever way credits would move; its balance stays."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest

from services.fields import now
from services.users.models import User
from tests.api.client import Api, amounts, assert_problem, order_of
from tests.api.later import assert_nothing_differs, let_the_time_run_out, sweep
from tests.api.test_holds import held, resolve
from tests.factories import make_operator, make_product, make_user


async def close(api: Api, user: User) -> httpx2.Response:
    return await api.post(f"/v1/accounts/{user.id}/close", by=await make_operator(api.database))


async def closed(api: Api, user: User) -> None:
    reply = await close(api, user)
    assert reply.status_code == 200, reply.text


async def reopen(api: Api, user: User) -> httpx2.Response:
    return await api.post(f"/v1/accounts/{user.id}/reopen", by=await make_operator(api.database))


@pytest.mark.parametrize("what", ["close", "reopen"])
async def test_operators_neither_close_nor_reopen_their_own_account(api: Api, what: str) -> None:
    operator = await make_operator(api.database)
    if what == "reopen":
        await closed(api, operator)
    before = await api.everything()
    refused = await api.post(f"/v1/accounts/{operator.id}/{what}", by=operator)
    assert_problem(refused, 403, "own_account")
    assert await api.everything() == before


async def test_an_account_is_closed_with_its_balance_and_opened_again(api: Api) -> None:
    user = await make_user(api.database, credits="12.50", full_name="Ada")

    reply = await close(api, user)

    assert reply.status_code == 200
    account = reply.json()
    assert account["user"] == {"id": user.id, "full_name": "Ada"}
    assert (account["posted"], account["held"], account["available"]) == ("12.50", "0.00", "12.50")
    assert account["closed_at"] is not None
    assert (await api.get("/v1/accounts/me", by=user)).json()["closed_at"] == account["closed_at"]
    assert_problem(await close(api, user), 409, "conflict")
    opened = await reopen(api, user)
    assert (opened.status_code, opened.json()["closed_at"], opened.json()["posted"]) == (200, None, "12.50")
    assert_problem(await reopen(api, user), 409, "conflict")
    recorded = "SELECT array_agg(type ORDER BY id) FROM events WHERE aggregate LIKE 'account/%'"
    assert await api.scalar(recorded) == ["account.closed", "account.reopened"]
    await assert_nothing_differs(api.database)


async def test_an_account_with_held_credits_cannot_be_closed_until_they_are_free(api: Api) -> None:
    payer, payee = await make_user(api.database, credits="20"), await make_user(api.database)
    await held(api, payer, payee)
    assert_problem(await close(api, payer), 409, "conflict")
    await let_the_time_run_out(api.database)
    await sweep(api.database)
    assert (await close(api, payer)).status_code == 200


@pytest.mark.parametrize("verb", ["close", "reopen"])
async def test_only_operators_can_close_accounts_and_only_those_of_users(api: Api, verb: str) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    assert_problem(await api.post(f"/v1/accounts/{user.id}/{verb}", by=user), 403, "forbidden")
    assert_problem(await api.post(f"/v1/accounts/{10**9}/{verb}", by=operator), 404, "not_found")
    for not_an_id in ("0", "-1", "issuance", "9223372036854775808"):
        assert_problem(await api.post(f"/v1/accounts/{not_an_id}/{verb}", by=operator), 422, "invalid_input")


@pytest.mark.parametrize("side", ["sender", "recipient"])
async def test_no_transfer_top_up_hold_or_adjustment_moves_credits_of_a_closed_account(api: Api, side: str) -> None:
    operator = await make_operator(api.database)
    sender, recipient = await make_user(api.database, credits="20"), await make_user(api.database, credits="20")
    moved = await api.post("/v1/transfers", by=sender, json={"to_user_id": recipient.id, "amount": "5"})
    shut = sender if side == "sender" else recipient
    await closed(api, shut)
    before = await api.everything()
    until = (now() + timedelta(hours=1)).isoformat()
    to = {"to_user_id": recipient.id, "amount": "1.00"}
    for by, path, wanted in (
        (sender, "/v1/transfers", to),
        (sender, "/v1/holds", {**to, "expires_at": until}),
        (operator, "/v1/top-ups", {"user_id": shut.id, "amount": "1.00"}),
        (operator, "/v1/adjustments", {"user_id": shut.id, "amount": "1.00", "reason": "x"}),
        (operator, "/v1/adjustments", {"user_id": shut.id, "amount": "-5000.00", "reason": "x"}),
        (operator, f"/v1/transfers/{moved.json()['id']}/reverse", {"reason": "x"}),
    ):
        body: dict[str, Any] = wanted
        # That someone else's account is closed is told to operators only.
        told = (422, "unknown_recipient") if by is sender and side == "recipient" else (409, "account_closed")
        assert_problem(await api.post(path, by=by, json=body), *told)
    assert await api.everything() == before


async def test_a_closed_account_is_reported_before_insufficient_credits(api: Api) -> None:
    """The same order for a reversal and an order's refund."""
    operator, third = await make_operator(api.database), await make_user(api.database)
    buyer, seller, product = await api.shop(credits="50")
    moved = await api.post("/v1/transfers", by=buyer, json={"to_user_id": seller.id, "amount": "5.00"})
    order = await api.place(buyer, (product, 1))
    await api.process()
    spent = await api.post("/v1/transfers", by=seller, json={"to_user_id": third.id, "amount": "15.00"})
    assert spent.status_code == 201
    await closed(api, buyer)
    for by, path, wanted in (
        (operator, f"/v1/transfers/{moved.json()['id']}/reverse", {"reason": "x"}),
        (seller, f"/v1/orders/{order['id']}/refunds", {"reason": "x"}),
    ):
        problem = assert_problem(await api.post(path, by=by, json=wanted), 409, "account_closed")
        assert problem["detail"] == f"the account of user {buyer.id} is closed"


async def test_a_hold_for_a_closed_account_is_voided_or_expires_but_not_posted(api: Api) -> None:
    payer, payee = await make_user(api.database, credits="20"), await make_user(api.database)
    voided, expired = await held(api, payer, payee, "5.00"), await held(api, payer, payee, "6.00")
    await closed(api, payee)
    assert_problem(await resolve(api, voided, "post", payee), 409, "account_closed")
    assert (await resolve(api, voided, "void", payee)).status_code == 200
    await let_the_time_run_out(api.database)
    assert await sweep(api.database) == (0, 1)
    assert (await api.get(f"/v1/transfers/{expired}", by=payer)).json()["state"] == "expired"
    assert await api.credits_of(payer) == amounts("20")
    await assert_nothing_differs(api.database)


async def test_an_adjustment_is_not_approved_for_an_account_closed_meanwhile(api: Api) -> None:
    first, second, user = (
        await make_operator(api.database),
        await make_operator(api.database),
        await make_user(api.database),
    )
    wanted = {"user_id": user.id, "amount": "5000.00", "reason": "x"}
    adjustment = (await api.post("/v1/adjustments", by=first, json=wanted)).json()
    await closed(api, user)
    path = f"/v1/adjustments/{adjustment['id']}"
    assert_problem(await api.post(f"{path}/approve", by=second), 409, "account_closed")
    assert (await reopen(api, user)).status_code == 200
    assert (await api.post(f"{path}/approve", by=second)).json()["state"] == "applied"


@pytest.mark.parametrize("credits", ["0", "50"])
async def test_no_order_is_placed_by_a_closed_account(api: Api, credits: str) -> None:  # noqa: A002
    buyer, _, product = await api.shop(credits=credits)
    await closed(api, buyer)
    before = await api.everything()
    problem = assert_problem(await api.post("/v1/orders", by=buyer, json=order_of((product, 1))), 409, "account_closed")
    assert problem["detail"] == f"the account of user {buyer.id} is closed"
    assert await api.everything() == before


@pytest.mark.parametrize("credits", ["0", "50"])
async def test_products_of_a_closed_account_are_not_for_sale(api: Api, credits: str) -> None:  # noqa: A002
    buyer, seller, product = await api.shop(credits=credits)
    other = await make_product(api.database)
    await closed(api, seller)
    before = await api.everything()
    wanted = order_of((other, 1), (product, 1))
    problem = assert_problem(await api.post("/v1/orders", by=buyer, json=wanted), 422, "invalid_input")
    assert problem["errors"] == [{"detail": f"product {product.id} is not for sale", "pointer": "#/items/1/product_id"}]
    assert await api.everything() == before
    assert (await reopen(api, seller)).status_code == 200
    assert (await api.post("/v1/orders", by=buyer, json=wanted)).status_code == 201


@pytest.mark.parametrize("side", ["buyer", "seller"])
async def test_no_order_is_paid_by_or_to_a_closed_account(api: Api, side: str) -> None:
    buyer, seller, product = await api.shop(credits="5")
    other = await make_user(api.database, credits="10")
    order = await api.place(buyer, (product, 1))
    assert (await api.post("/v1/transfers", by=other, json={"to_user_id": buyer.id, "amount": "5"})).status_code == 201
    shut = buyer if side == "buyer" else seller
    await closed(api, shut)
    path = f"/v1/orders/{order['id']}/pay"
    assert_problem(await api.post(path, by=buyer), 409, "account_closed")
    assert (await reopen(api, shut)).status_code == 200
    assert (await api.post(path, by=buyer)).status_code == 200


async def test_a_worker_rejects_an_order_whose_seller_was_closed_meanwhile(api: Api) -> None:
    buyer, seller, product = await api.shop(credits="50", stock=2)
    order = await api.place(buyer, (product, 2))
    await closed(api, seller)

    await api.process()

    assert await api.status_of(order["id"]) == "rejected"
    reason = await api.scalar("SELECT payload ->> 'reason' FROM events WHERE type = 'order.rejected'")
    assert reason == "a seller's account is closed"
    assert await api.credits_of(buyer) == amounts("50")
    assert await api.stock_of(product) == (2, 0)
    await assert_nothing_differs(api.database)


async def test_a_payment_is_not_refunded_by_or_to_a_closed_account(api: Api) -> None:
    buyer, seller, product = await api.shop(credits="50")
    order = await api.place(buyer, (product, 1))
    await api.process()
    for shut in (seller, buyer):
        await closed(api, shut)
        before = await api.everything()
        assert_problem(await api.post(f"/v1/orders/{order['id']}/cancel", by=buyer), 409, "account_closed")
        assert await api.everything() == before
        assert (await reopen(api, shut)).status_code == 200
    assert (await api.post(f"/v1/orders/{order['id']}/cancel", by=buyer)).status_code == 200
