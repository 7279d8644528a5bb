"""Operators adjust balances; above a set amount a second one decides."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from services.users.models import User
from tests.api.client import Api, amounts, assert_problem
from tests.api.later import assert_nothing_differs
from tests.factories import make_operator, make_user

ABOVE = "1000.01"


async def adjust(api: Api, by: User, user: User, amount: Any, reason: Any = "found in the till") -> httpx2.Response:
    return await api.post("/v1/adjustments", by=by, json={"user_id": user.id, "amount": amount, "reason": reason})


async def decide(api: Api, by: User, adjustment: dict[str, Any], verb: str) -> httpx2.Response:
    return await api.post(f"/v1/adjustments/{adjustment['id']}/{verb}", by=by)


async def events(api: Api) -> Any:
    return await api.scalar("SELECT array_agg(type ORDER BY id) FROM events WHERE aggregate LIKE 'adjustment/%'")


@pytest.mark.parametrize(("amount", "after"), [("12.50", "32.50"), ("-12.50", "7.50"), ("-20.00", "0.00")])
async def test_a_small_adjustment_takes_effect_immediately(api: Api, amount: str, after: str) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database, credits="20", full_name="Ada")

    reply = await adjust(api, operator, user, amount)

    assert reply.status_code == 201
    adjustment = reply.json()
    assert reply.headers["location"] == f"/v1/adjustments/{adjustment['id']}"
    assert (adjustment["state"], adjustment["amount"], adjustment["needs_approval"]) == ("applied", amount, False)
    assert adjustment["user"] == {"id": user.id, "full_name": "Ada"}
    assert (adjustment["requested_by"], adjustment["decided_by"]) == (operator.id, None)
    assert await api.credits_of(user) == amounts(after)
    statement = (await api.get("/v1/accounts/me/statement?filter=kind:eq:adjustment", by=user)).json()
    [entry] = statement["data"]
    assert (entry["amount"], entry["balance"]) == (amount, after)
    assert (entry["transfer"]["id"], entry["transfer"]["note"]) == (adjustment["transfer_id"], "")
    assert await events(api) == ["adjustment.applied"]
    await assert_nothing_differs(api.database)


@pytest.mark.parametrize(("amount", "after"), [(ABOVE, "6000.01"), (f"-{ABOVE}", "3999.99")])
async def test_a_large_adjustment_waits_for_a_second_operator(api: Api, amount: str, after: str) -> None:
    first, second = await make_operator(api.database), await make_operator(api.database)
    user = await make_user(api.database, credits="5000")

    adjustment = (await adjust(api, first, user, amount)).json()

    assert (adjustment["state"], adjustment["needs_approval"]) == ("pending", True)
    assert (adjustment["transfer_id"], adjustment["decided_at"]) == (None, None)
    assert await api.credits_of(user) == amounts("5000")
    for verb in ("approve", "reject"):
        assert_problem(await decide(api, first, adjustment, verb), 403, "own_request")
    approved = await decide(api, second, adjustment, "approve")
    assert approved.status_code == 200
    assert (approved.json()["state"], approved.json()["decided_by"]) == ("applied", second.id)
    assert await api.credits_of(user) == amounts(after)
    assert (await api.get(f"/v1/adjustments/{adjustment['id']}", by=first)).json() == approved.json()
    assert await events(api) == ["adjustment.requested", "adjustment.applied"]
    await assert_nothing_differs(api.database)


async def test_an_adjustment_of_exactly_the_set_amount_needs_no_approval(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    assert (await adjust(api, operator, user, "1000.00")).json()["state"] == "applied"


async def test_a_rejected_adjustment_has_no_effect(api: Api) -> None:
    first, second = await make_operator(api.database), await make_operator(api.database)
    user = await make_user(api.database)
    adjustment = (await adjust(api, first, user, ABOVE)).json()
    rejected = await decide(api, second, adjustment, "reject")
    assert (rejected.status_code, rejected.json()["state"], rejected.json()["transfer_id"]) == (200, "rejected", None)
    assert await api.credits_of(user) == amounts("0")
    assert await events(api) == ["adjustment.requested", "adjustment.rejected"]
    await assert_nothing_differs(api.database)


@pytest.mark.parametrize("decision", ["approve", "reject"])
async def test_an_adjustment_cannot_be_decided_twice(api: Api, decision: str) -> None:
    first, second = await make_operator(api.database), await make_operator(api.database)
    adjustment = (await adjust(api, first, await make_user(api.database), ABOVE)).json()
    assert (await decide(api, second, adjustment, decision)).status_code == 200
    before = await api.everything()
    for verb in ("approve", "reject"):
        problem = assert_problem(await decide(api, second, adjustment, verb), 409, "conflict")
        assert ("applied" if decision == "approve" else "rejected") in problem["detail"]
    assert await api.everything() == before


async def test_an_adjustment_cannot_take_credits_that_are_not_there(api: Api) -> None:
    first, second = await make_operator(api.database), await make_operator(api.database)
    user = await make_user(api.database, credits="20")
    assert_problem(await adjust(api, first, user, "-20.01"), 402, "insufficient_credits")
    large = (await adjust(api, first, user, f"-{ABOVE}")).json()
    assert_problem(await decide(api, second, large, "approve"), 402, "insufficient_credits")
    assert (await api.get(f"/v1/adjustments/{large['id']}", by=first)).json()["state"] == "pending"
    assert await api.credits_of(user) == amounts("20")
    await assert_nothing_differs(api.database)


async def test_adjustments_are_listed_by_state_and_user_page_by_page(api: Api) -> None:
    operator = await make_operator(api.database)
    users = [await make_user(api.database), await make_user(api.database)]
    made = [(await adjust(api, operator, users[n % 2], ABOVE if n < 2 else f"{n}.00")).json()["id"] for n in range(6)]

    async def listed(*asked: str) -> str:
        found, cursor = "", ""
        while cursor is not None:
            query = "&".join(["limit=2", *asked, *([f"cursor={cursor}"] if cursor else [])])
            page = (await api.get(f"/v1/adjustments?{query}", by=operator)).json()
            found += "".join(str(made.index(one["id"])) for one in page["data"])
            cursor = page["next_cursor"]
        return found

    assert await listed() == "543210"
    assert await listed("sort=id") == "012345"
    assert await listed("filter=state:eq:pending") == "10"
    assert await listed(f"filter=user_id:eq:{users[0].id}", "filter=state:eq:applied") == "42"


async def test_an_invalid_adjustment_is_refused(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    before = await api.everything()
    for amount in ("0", "-0", "-0.00", "+1", "--1", "- 1", "1.001", "1e2", "NaN", "-Infinity", "9" * 17, 1, -1.5, None):
        reply = await adjust(api, operator, user, amount)
        assert_problem(reply, 422, "amount_invalid", pointers=["#/amount"])
    for reason in ("", " ", "x" * 201, None):
        assert_problem(await adjust(api, operator, user, "1", reason), 422, "invalid_input", pointers=["#/reason"])
    user.id = 10**9
    assert_problem(await adjust(api, operator, user, "1"), 422, "unknown_recipient", pointers=["#/user_id"])
    unknown = {"id": str(uuid4())}
    assert_problem(await api.get(f"/v1/adjustments/{unknown['id']}", by=operator), 404, "not_found")
    for verb in ("approve", "reject"):
        assert_problem(await decide(api, operator, unknown, verb), 404, "not_found")
    assert await api.everything() == before
