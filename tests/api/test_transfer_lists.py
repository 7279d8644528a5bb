"""Transfers and holds are listed by those who pay them and by those who receive them, and by nobody else."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from services.fields import now
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_user

PATHS = ["/v1/transfers", "/v1/holds"]


async def send(api: Api, path: str, by: User, to: User, amount: str, note: str = "") -> str:
    wanted = {"to_user_id": to.id, "amount": amount, "note": note}
    if path == "/v1/holds":
        wanted["expires_at"] = (now() + timedelta(hours=1)).isoformat()
    made = await api.post(path, by=by, json=wanted)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def listed(
    api: Api, path: str, by: User, query: str = "", key: Callable[[Any], Any] = lambda one: one["id"]
) -> Any:
    reply = await api.get(f"{path}{query}", by=by)
    assert reply.status_code == 200, reply.text
    return [key(one) for one in reply.json()["data"]]


@pytest.mark.parametrize("path", PATHS)
async def test_both_parties_list_them_the_newest_first_and_no_one_else(api: Api, path: str) -> None:
    payer, payee, other = [await make_user(api.database, credits="50") for _ in range(3)]
    first, second = [await send(api, path, payer, payee, amount, "SECRET") for amount in ("3.00", "4.00")]
    back = await send(api, path, payee, payer, "1.00")
    elsewhere = await send(api, path, payer, other, "2.00")
    top_up = 1 if path == "/v1/transfers" else 0

    assert await listed(api, path, payer) == [elsewhere, second, first]
    assert await listed(api, path, payer, "?as=payer&sort=id") == [first, second, elsewhere]
    assert (await listed(api, path, payee, "?as=recipient"))[: 2 + top_up][:2] == [second, first]
    assert len(await listed(api, path, payee, "?as=recipient")) == 2 + top_up
    assert await listed(api, path, payee) == [back]
    assert await listed(api, path, other) == []
    assert "SECRET" not in (await api.get(f"{path}?as=recipient", by=other)).text
    for query, wanted in (
        ("amount:gte:3.00", [second, first]),
        (f"to_user_id:eq:{other.id}", [elsewhere]),
        (f"to_user_id:eq:{payee.id}", [second, first]),
        ("created_at:gt:2999-01-01T00:00:00Z", []),
        ("state:eq:voided", []),
    ):
        assert await listed(api, path, payer, f"?filter={query}") == wanted, query
    assert await listed(api, path, payer, f"?as=recipient&filter=from_user_id:eq:{payee.id}") == [back]
    # What is listed is what each one says by itself.
    for one in (await api.get(path, by=payer)).json()["data"]:
        assert (await api.get(f"/v1/transfers/{one['id']}", by=payer)).json() == one
    pages = (await api.get(f"{path}?limit=2", by=payer)).json()
    rest = (await api.get(f"{path}?limit=2&cursor={pages['next_cursor']}", by=payer)).json()
    assert [one["id"] for one in (*pages["data"], *rest["data"])] == [elsewhere, second, first]
    # A cursor of one side is good for that side only.
    refused = await api.get(f"{path}?as=recipient&limit=2&cursor={pages['next_cursor']}", by=payer)
    assert_problem(refused, 400, "bad_query")
    assert_problem(await api.get(f"{path}?as=everybody", by=payer), 422, "invalid_input", pointers=["query/as"])
    assert_problem(await api.get(path), 401, "unauthenticated")


async def test_a_hold_stays_listed_whatever_becomes_of_it(api: Api) -> None:
    payer, payee = await make_user(api.database, credits="50"), await make_user(api.database)
    posted, voided, pending = [await send(api, "/v1/holds", payer, payee, "3.00") for _ in range(3)]
    await api.post(f"/v1/transfers/{posted}/post", by=payee, json={"amount": "2.00"})
    await api.post(f"/v1/transfers/{voided}/void", by=payee)
    at_once = await send(api, "/v1/transfers", payer, payee, "1.00")
    for by, side in ((payer, "payer"), (payee, "recipient")):
        states = await listed(api, "/v1/holds", by, f"?as={side}", lambda one: (one["id"], one["state"]))
        assert states == [(pending, "pending"), (voided, "voided"), (posted, "posted")]
        assert await listed(api, "/v1/holds", by, f"?as={side}&filter=state:eq:pending") == [pending]
        assert await listed(api, "/v1/holds", by, f"?as={side}&filter=expires_at:gt:2999-01-01T00:00:00Z") == []
        assert await listed(api, "/v1/transfers", by, f"?as={side}") == [at_once, pending, voided, posted]


async def test_what_orders_pay_and_hold_is_seen_with_the_orders(api: Api) -> None:
    buyer, seller, product = await api.shop()
    await api.place(buyer, (product, 1))
    await api.process()
    await api.place(buyer, (product, 1))
    for by, side in ((buyer, "payer"), (seller, "recipient")):
        for path in PATHS:
            assert await listed(api, path, by, f"?as={side}") == []


async def test_why_the_staff_moved_credits_is_shown_to_the_staff_only(api: Api) -> None:
    operator = await make_operator(api.database)
    sender, user = await make_user(api.database, credits="50"), await make_user(api.database)
    moved = await send(api, "/v1/transfers", sender, user, "5.00", "WORDS OF THE SENDER")
    topped = {"user_id": user.id, "amount": "1.00", "note": "WORDS FOR THE USER"}
    assert (await api.post("/v1/top-ups", by=operator, json=topped)).status_code == 201
    corrected = {"user_id": user.id, "amount": "2.00", "reason": "REASON OF AN ADJUSTMENT"}
    assert (await api.post("/v1/adjustments", by=operator, json=corrected)).status_code == 201
    reversal = await api.post(f"/v1/transfers/{moved}/reverse", by=operator, json={"reason": "REASON OF A REVERSAL"})
    assert reversal.status_code == 201

    for by in (sender, user):
        seen = ""
        for path in ("/v1/transfers", "/v1/transfers?as=recipient", "/v1/accounts/me/statement"):
            seen += (await api.get(path, by=by)).text
        seen += (await api.get("/v1/accounts/me/statement.csv", by=by)).text
        seen += (await api.get(f"/v1/transfers/{reversal.json()['id']}", by=by)).text
        assert "REASON" not in seen
        assert "WORDS OF THE SENDER" in seen
        assert ("WORDS FOR THE USER" in seen) == (by is user)
    shown = (await api.get(f"/v1/transfers/{reversal.json()['id']}", by=operator)).json()
    assert shown["note"] == "REASON OF A REVERSAL"
