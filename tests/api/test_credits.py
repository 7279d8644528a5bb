"""Balances, statements, top-ups and transfers over HTTP."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, make_operator, make_user


async def test_a_top_up_issues_credits_and_shows_on_the_statement(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)

    reply = await api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "12.5", "note": "welcome"})

    assert reply.status_code == 201
    top_up = reply.json()
    assert (top_up["kind"], top_up["state"], top_up["amount"]) == ("top_up", "posted", "12.50")
    account = (await api.get("/v1/accounts/me", by=user)).json()
    assert account == {"posted": "12.50", "held": "0.00", "available": "12.50", "version": 1, "closed_at": None}
    statement = (await api.get("/v1/accounts/me/statement", by=user)).json()
    [entry] = statement["data"]
    assert (entry["version"], entry["amount"], entry["balance"]) == (1, "12.50", "12.50")
    assert entry["transfer"] == {"id": top_up["id"], "kind": "top_up", "order_id": None, "note": "welcome"}
    assert await api.scalar("SELECT type FROM events") == "credits.moved"
    await api.assert_books_balance()


async def test_missing_or_held_credits_cannot_be_sent(api: Api) -> None:
    buyer, seller, product = await api.shop(credits="15")
    await api.place(buyer, (product, 1))
    before = await api.everything()
    reply = await api.post("/v1/transfers", by=buyer, json={"to_user_id": seller.id, "amount": "5.01"})
    assert_problem(reply, 402, "insufficient_credits")
    assert await api.everything() == before
    account = (await api.get("/v1/accounts/me", by=buyer)).json()
    assert (account["posted"], account["held"], account["available"]) == ("15.00", "10.00", "5.00")


async def test_unknown_or_deleted_users_cannot_be_topped_up(api: Api) -> None:
    closed = await make_user(api.database)
    inactive = await make_user(api.database, is_active=False)
    operator = await make_operator(api.database)
    await api.delete("/v1/users/me", by=closed, json=CONFIRMED)
    before = await api.everything()
    for user_id in (closed.id, inactive.id, 2**62):
        reply = await api.post("/v1/top-ups", by=operator, json={"user_id": user_id, "amount": "1"})
        assert_problem(reply, 422, "invalid_input", pointers=["#/user_id"])
    assert await api.everything() == before


@pytest.mark.parametrize("note", ["x" * 201, "a\x00b", 1, None])
async def test_a_note_that_cannot_be_stored_is_refused(api: Api, note: Any) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    wanted = {"user_id": user.id, "amount": "1", "note": note}
    reply = await api.post("/v1/top-ups", by=operator, json=wanted)
    assert_problem(reply, 422, "invalid_input", pointers=["#/note"])


async def test_more_credits_than_an_account_can_hold_are_refused(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    user = await make_user(api.database)
    wanted = {"user_id": user.id, "amount": "9999999999999999.99", "note": "all"}
    await api.approve(await api.post("/v1/top-ups", by=operator, json=wanted), second)
    before = await api.everything()
    reply = await api.post("/v1/top-ups", by=operator, json=wanted | {"amount": "1.00"})
    assert_problem(reply, 422, "amount_invalid")
    assert await api.everything() == before


async def test_simultaneous_transfers_never_spend_a_credit_twice(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database, credits="10")
    there = [api.post("/v1/transfers", by=sender, json={"to_user_id": receiver.id, "amount": "3"}) for _ in range(10)]
    back = [api.post("/v1/transfers", by=receiver, json={"to_user_id": sender.id, "amount": "4"}) for _ in range(10)]

    replies = await asyncio.gather(*there, *back)

    assert {reply.status_code for reply in replies} <= {201, 402}
    sent = sum(reply.status_code == 201 for reply in replies[:10])
    returned = sum(reply.status_code == 201 for reply in replies[10:])
    balance = Decimal(10) - 3 * sent + 4 * returned
    assert (await api.credits_of(sender))[0] == balance >= 0
    assert (await api.credits_of(receiver))[0] == 20 - balance >= 0
    await api.assert_books_balance()


async def test_a_statement_is_read_page_by_page_without_gap_or_repeat(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    for _ in range(6):
        await api.post("/v1/transfers", by=sender, json={"to_user_id": receiver.id, "amount": "1"})
    for sort, expected in (("version", [1, 2, 3, 4, 5, 6, 7]), ("-version", [7, 6, 5, 4, 3, 2, 1])):
        versions, cursor = [], ""
        while True:
            page = (await api.get(f"/v1/accounts/me/statement?limit=2&sort={sort}{cursor}", by=sender)).json()
            versions += [entry["version"] for entry in page["data"]]
            if not page["has_more"]:
                break
            assert len(versions) <= 10, "the pages go round in circles"
            cursor = f"&cursor={page['next_cursor']}"
        assert versions == expected
