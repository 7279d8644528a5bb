"""Credits held for another user: posted whole or in part, voided or expired, once."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from services.fields import now
from services.users.models import User
from tests.api.client import Api, amounts, assert_problem
from tests.api.later import assert_nothing_differs, let_the_time_run_out, sweep
from tests.factories import make_operator, make_user


async def hold(api: Api, payer: User, payee: User, amount: str = "10.00", **more: Any) -> httpx2.Response:
    wanted = {"to_user_id": payee.id, "amount": amount, "expires_at": (now() + timedelta(hours=1)).isoformat(), **more}
    return await api.post("/v1/holds", by=payer, json=wanted)


async def held(api: Api, payer: User, payee: User, amount: str = "10.00") -> str:
    reply = await hold(api, payer, payee, amount)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


async def resolve(api: Api, transfer_id: object, verb: str, by: User, **body: Any) -> httpx2.Response:
    return await api.post(f"/v1/transfers/{transfer_id}/{verb}", by=by, json=body or None)


async def parties(api: Api) -> tuple[User, User]:
    return await make_user(api.database, credits="25"), await make_user(api.database)


async def test_a_hold_sets_credits_aside_and_says_until_when(api: Api) -> None:
    payer, payee = await parties(api)
    until = now() + timedelta(hours=1)

    reply = await hold(api, payer, payee, "10.50", note="deposit", expires_at=until.isoformat())

    assert reply.status_code == 201
    transfer = reply.json()
    assert reply.headers["location"] == f"/v1/transfers/{transfer['id']}"
    assert (transfer["kind"], transfer["state"], transfer["amount"]) == ("transfer", "pending", "10.50")
    assert (transfer["from_user_id"], transfer["to_user_id"], transfer["note"]) == (payer.id, payee.id, "deposit")
    assert datetime.fromisoformat(transfer["expires_at"]) == until
    assert (transfer["posted_amount"], transfer["resolved_at"]) == (None, None)
    assert await api.credits_of(payer) == amounts("25.00", "10.50")
    assert await api.scalar("SELECT count(*) FROM entries WHERE transfer_id = :id", id=transfer["id"]) == 0
    assert await api.scalar("SELECT type FROM events WHERE aggregate LIKE 'transfer/%'") == "credits.held"
    await assert_nothing_differs(api.database)


async def test_held_credits_cannot_be_spent_or_held_again(api: Api) -> None:
    payer, payee = await parties(api)
    await held(api, payer, payee, "20.00")
    assert_problem(await hold(api, payer, payee, "5.01"), 402, "insufficient_credits", pointers=["#/amount"])
    spent = await api.post("/v1/transfers", by=payer, json={"to_user_id": payee.id, "amount": "5.01"})
    assert_problem(spent, 402, "insufficient_credits")
    assert (await hold(api, payer, payee, "5.00")).status_code == 201


async def test_a_hold_is_posted_in_full(api: Api) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)

    reply = await resolve(api, transfer_id, "post", payee)

    assert reply.status_code == 200
    assert (reply.json()["state"], reply.json()["posted_amount"]) == ("posted", "10.00")
    assert await api.credits_of(payer) == amounts("15")
    assert await api.credits_of(payee) == amounts("10")
    moved = "SELECT payload ->> 'amount' FROM events WHERE type = 'credits.moved'"
    assert await api.scalar(moved) == "10.00"
    await assert_nothing_differs(api.database)


async def test_holds_of_all_credits_are_posted(api: Api) -> None:
    payer, payee = await parties(api)
    first, second = await held(api, payer, payee, "15.00"), await held(api, payer, payee, "10.00")
    for transfer_id in (first, second):
        assert (await resolve(api, transfer_id, "post", payee)).status_code == 200
    assert await api.credits_of(payer) == amounts("0.00")
    assert await api.credits_of(payee) == amounts("25.00")
    await assert_nothing_differs(api.database)


async def test_a_part_is_posted_and_the_remainder_released(api: Api) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)

    reply = await resolve(api, transfer_id, "post", payee, amount="3.99")

    assert (reply.json()["state"], reply.json()["amount"], reply.json()["posted_amount"]) == ("posted", "10.00", "3.99")
    assert await api.credits_of(payer) == amounts("21.01")
    assert await api.credits_of(payee) == amounts("3.99")
    statement = (await api.get("/v1/accounts/me/statement", by=payee)).json()
    assert [(entry["amount"], entry["balance"]) for entry in statement["data"]] == [("3.99", "3.99")]
    await assert_nothing_differs(api.database)


async def test_no_more_than_is_held_can_be_posted(api: Api) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)
    before = await api.everything()
    too_much = await resolve(api, transfer_id, "post", payee, amount="10.01")
    assert_problem(too_much, 422, "amount_invalid", pointers=["#/amount"])
    for amount in ("0", "-1", "1.001", "1e1", "NaN", 1):
        reply = await resolve(api, transfer_id, "post", payee, amount=amount)
        assert_problem(reply, 422, "amount_invalid", pointers=["#/amount"])
    assert await api.everything() == before


async def test_a_voided_hold_frees_the_credits(api: Api) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)

    reply = await resolve(api, transfer_id, "void", payee)

    assert (reply.status_code, reply.json()["state"], reply.json()["posted_amount"]) == (200, "voided", None)
    assert await api.credits_of(payer) == amounts("25")
    assert await api.credits_of(payee) == amounts("0")
    assert await api.scalar("SELECT payload ->> 'state' FROM events WHERE type = 'credits.released'") == "voided"
    await assert_nothing_differs(api.database)


@pytest.mark.parametrize("again", ["post", "void"])
@pytest.mark.parametrize(
    ("first", "code"),
    [("post", "transfer_already_posted"), ("void", "transfer_already_voided"), ("expire", "transfer_expired")],
)
async def test_resolving_a_hold_again_says_how_it_was_resolved(api: Api, first: str, code: str, again: str) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)
    if first == "expire":
        await let_the_time_run_out(api.database)
        assert await sweep(api.database) == (0, 1)
    else:
        assert (await resolve(api, transfer_id, first, payee)).status_code == 200
    before = await api.everything()

    assert_problem(await resolve(api, transfer_id, again, payee), 409, code)

    assert await api.everything() == before


@pytest.mark.parametrize("verb", ["post", "void"])
async def test_after_its_time_a_hold_has_expired_even_before_it_is_swept(api: Api, verb: str) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)
    await let_the_time_run_out(api.database)

    assert_problem(await resolve(api, transfer_id, verb, payee), 409, "transfer_expired")

    assert await api.credits_of(payer) == amounts("25", "10")
    assert await sweep(api.database) == (0, 1)
    assert await api.credits_of(payer) == amounts("25")
    assert (await api.get(f"/v1/transfers/{transfer_id}", by=payer)).json()["state"] == "expired"
    assert await api.scalar("SELECT payload ->> 'state' FROM events WHERE type = 'credits.released'") == "expired"
    await assert_nothing_differs(api.database)


async def test_the_payer_sees_a_hold_but_cannot_take_it_back(api: Api) -> None:
    payer, payee = await parties(api)
    transfer_id = await held(api, payer, payee)
    assert (await api.get(f"/v1/transfers/{transfer_id}", by=payer)).status_code == 200
    for verb in ("post", "void"):
        assert_problem(await resolve(api, transfer_id, verb, payer), 403, "forbidden")
    assert await api.credits_of(payer) == amounts("25", "10")


async def test_an_operator_resolves_holds_of_others(api: Api) -> None:
    operator, (payer, payee) = await make_operator(api.database), await parties(api)
    posted, voided = await held(api, payer, payee, "5.00"), await held(api, payer, payee, "6.00")
    assert (await resolve(api, posted, "post", operator)).status_code == 200
    assert (await resolve(api, voided, "void", operator)).status_code == 200
    assert await api.credits_of(payer) == amounts("20")


async def test_other_users_cannot_tell_whether_a_transfer_exists(api: Api) -> None:
    payer, payee = await parties(api)
    stranger = await make_user(api.database)
    transfer_id = await held(api, payer, payee)

    async def told(foreign: object) -> set[str]:
        replies = [await api.get(f"/v1/transfers/{foreign}", by=stranger)]
        replies += [await resolve(api, foreign, verb, stranger) for verb in ("post", "void")]
        return {assert_problem(reply, 404, "not_found")["detail"].replace(str(foreign), "ID") for reply in replies}

    assert await told(transfer_id) == await told(uuid4())


async def test_a_hold_for_an_order_can_only_be_resolved_by_the_order(api: Api) -> None:
    buyer, seller, product = await api.shop()
    order = await api.place(buyer, (product, 1))
    transfer_id = await api.scalar("SELECT id FROM transfers WHERE state = 'pending'")
    seen = (await api.get(f"/v1/transfers/{transfer_id}", by=seller)).json()
    assert (seen["kind"], seen["order_id"]) == ("order", order["id"])
    for verb in ("post", "void"):
        assert_problem(await resolve(api, transfer_id, verb, seller), 409, "transfer_of_order")
    await api.process()
    assert await api.status_of(order["id"]) == "confirmed"


async def test_an_invalid_hold_is_refused(api: Api) -> None:
    payer, payee = await parties(api)
    before = await api.everything()
    longest = timedelta(seconds=api.settings.transfer_hold_max)
    for until in (now() - timedelta(seconds=1), now() + longest + timedelta(minutes=1)):
        reply = await hold(api, payer, payee, expires_at=until.isoformat())
        assert_problem(reply, 422, "invalid_input", pointers=["#/expires_at"])
    for never in ("tomorrow", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00Z", 10**30, None):
        assert_problem(await hold(api, payer, payee, expires_at=never), 422, "invalid_input", pointers=["#/expires_at"])
    assert_problem(await hold(api, payer, payer), 422, "same_account", pointers=["#/to_user_id"])
    unknown = await hold(api, payer, payee, to_user_id=10**9)
    assert_problem(unknown, 422, "unknown_recipient", pointers=["#/to_user_id"])
    assert_problem(await hold(api, payer, payee, "0.00"), 422, "amount_invalid", pointers=["#/amount"])
    assert await api.everything() == before


async def test_requests_that_move_credits_need_a_key_and_take_effect_once_with_it(api: Api) -> None:
    payer, payee = await parties(api)
    wanted = {"to_user_id": payee.id, "amount": "4.00", "expires_at": (now() + timedelta(hours=1)).isoformat()}
    assert_problem(await api.post("/v1/holds", by=payer, key=None, json=wanted), 400, "idempotency_key_invalid")
    replies = [await api.post("/v1/holds", by=payer, key="one", json=wanted) for _ in range(2)]
    assert replies[0].json() == replies[1].json()
    path = f"/v1/transfers/{replies[0].json()['id']}"
    for verb in ("post", "void"):
        assert_problem(await api.post(f"{path}/{verb}", by=payee, key=None), 400, "idempotency_key_invalid")
    posted = [await api.post(f"{path}/post", by=payee, key="two") for _ in range(2)]
    assert [reply.status_code for reply in posted] == [200, 200]
    assert await api.credits_of(payer) == amounts("21")
