"""Outside development, a role changes once a second admin approves it."""

import asyncio
from collections import Counter
from typing import Any

import httpx2
import pytest

from services.settings import Environment, Settings
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_user


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"environment": Environment.production, "approver_tenure": 0, "totp_required": False}
    )


async def admins(api: Api, number: int = 2) -> list[User]:
    return [await make_user(api.database, role=Role.admin) for _ in range(number)]


async def ask(api: Api, by: User, user: User, role: str = "operator", **more: Any) -> httpx2.Response:
    version = await api.scalar("SELECT version FROM users WHERE id = :id", id=user.id)
    return await api.patch(f"/v1/users/{user.id}", by=by, version=version, json={"role": role, **more})


async def decide(api: Api, by: User, asked: httpx2.Response, verb: str = "approve") -> httpx2.Response:
    assert asked.status_code == 202, asked.text
    return await api.post(f"{asked.headers['location']}/{verb}", by=by)


async def role_of(api: Api, user: User) -> str:
    return str(await api.scalar("SELECT role FROM users WHERE id = :id", id=user.id))


async def test_a_role_is_given_once_another_admin_approves_it(api: Api) -> None:
    first, second = await admins(api)
    user = await make_user(api.database)

    asked = await ask(api, first, user)

    request = asked.json()
    assert (asked.status_code, asked.headers["location"]) == (202, f"/v1/role-requests/{request['id']}")
    assert (request["user_id"], request["role"], request["state"]) == (user.id, "operator", "pending")
    assert (request["requested_by"], request["decided_by"], request["decided_at"]) == (first.id, None, None)
    assert await role_of(api, user) == "customer"
    assert (await api.get(asked.headers["location"], by=second)).json() == request
    assert (await api.get("/v1/role-requests", by=second)).json()["data"] == [request]
    approved = await decide(api, second, asked)
    assert (approved.status_code, approved.json()["state"]) == (200, "approved")
    assert approved.json()["decided_by"] == second.id
    assert await role_of(api, user) == "operator"
    assert (await api.get("/v1/adjustments", by=user)).status_code == 200


async def test_a_rejected_role_is_not_given(api: Api) -> None:
    first, second = await admins(api)
    user = await make_user(api.database)
    asked = await ask(api, first, user)
    assert (await decide(api, second, asked, "reject")).json()["state"] == "rejected"
    assert await role_of(api, user) == "customer"
    for verb in ("approve", "reject"):
        problem = assert_problem(await decide(api, second, asked, verb), 409, "role_request_decided")
        assert "rejected" in problem["detail"]
    assert (await ask(api, first, user)).status_code == 202


async def test_one_admin_alone_gives_no_role(api: Api) -> None:
    first, second = await admins(api)
    puppet = await make_user(api.database)
    asked = await ask(api, first, puppet, "admin")
    for verb in ("approve", "reject"):
        assert_problem(await decide(api, first, asked, verb), 403, "own_request")
    for role in ("operator", "customer"):
        assert_problem(await ask(api, first, first, role), 422, "invalid_input")
    # Whose role it is does not decide on it either, and has no say in losing it.
    demoting = await ask(api, first, second, "customer")
    for verb in ("approve", "reject"):
        assert_problem(await decide(api, second, demoting, verb), 403, "own_role")
    assert await role_of(api, puppet) == "customer"
    assert await role_of(api, second) == "admin"


async def test_operators_change_no_role_and_decide_on_none(api: Api) -> None:
    first, _ = await admins(api)
    operator, user = await make_operator(api.database), await make_user(api.database)
    assert_problem(await ask(api, operator, user), 403, "forbidden")
    asked = await ask(api, first, user)
    for verb in ("approve", "reject"):
        assert_problem(await decide(api, operator, asked, verb), 403, "forbidden")
    assert (await api.get(asked.headers["location"], by=operator)).status_code == 200
    assert_problem(await api.get(asked.headers["location"], by=user), 403, "forbidden")


async def test_a_new_admin_approves_nothing_before_their_time(api: Api) -> None:
    first, second = await admins(api)
    user = await make_user(api.database)
    state = api.app.state.waybill
    asked = await ask(api, first, user)
    settings = state.settings.model_copy(update={"approver_tenure": None})
    object.__setattr__(state, "settings", settings)
    problem = assert_problem(await decide(api, second, asked), 403, "approver_too_new")
    assert "admin" in problem["detail"]
    await api.execute("UPDATE users SET role_since = role_since - interval '25 h' WHERE id = :id", id=second.id)
    assert (await decide(api, second, asked)).status_code == 200


async def test_nobody_decides_on_a_request_after_its_time(api: Api) -> None:
    first, second = await admins(api)
    user = await make_user(api.database)
    asked = await ask(api, first, user)
    assert_problem(await ask(api, second, user, "seller"), 409, "role_request_pending")
    await api.execute("UPDATE role_requests SET expires_at = now()")
    assert (await api.get(asked.headers["location"], by=second)).json()["state"] == "expired"
    problem = assert_problem(await decide(api, second, asked), 409, "role_request_expired")
    assert "again" in problem["detail"]
    again = await ask(api, second, user, "seller")
    assert (await decide(api, first, again)).json()["state"] == "approved"
    assert await role_of(api, user) == "seller"
    assert await api.scalar("SELECT state FROM role_requests WHERE role = 'operator'") == "expired"


async def test_a_role_is_requested_alone_and_for_the_version_that_was_read(api: Api) -> None:
    first, _ = await admins(api)
    user = await make_user(api.database)
    assert_problem(await ask(api, first, user, full_name="Ada"), 422, "role_alone")
    stale = await api.patch(f"/v1/users/{user.id}", by=first, version=9, json={"role": "operator"})
    assert_problem(stale, 412, "stale_version")
    # What the user already is needs no approval.
    assert (await ask(api, first, user, "customer", full_name="Ada")).json()["full_name"] == "Ada"
    assert await api.scalar("SELECT count(*) FROM role_requests") == 0


async def test_of_many_decisions_at_once_one_counts(api: Api) -> None:
    first, *others = await admins(api, 5)
    user = await make_user(api.database)
    asked = await ask(api, first, user)
    verbs = ["approve", "reject", "approve", "reject"]
    replies = await asyncio.gather(*(decide(api, by, asked, verb) for by, verb in zip(others, verbs, strict=True)))
    assert Counter(reply.status_code for reply in replies) == {200: 1, 409: 3}
    [decided] = [reply.json() for reply in replies if reply.status_code == 200]
    assert await role_of(api, user) == ("operator" if decided["state"] == "approved" else "customer")


async def test_of_many_requests_at_once_for_one_user_one_waits(api: Api) -> None:
    some = await admins(api, 4)
    user = await make_user(api.database)
    replies = await asyncio.gather(*(ask(api, admin, user) for admin in some))
    assert Counter(reply.status_code for reply in replies) == {202: 1, 409: 3}


async def test_the_last_admin_and_the_last_operator_keep_their_role(api: Api) -> None:
    first, second = await admins(api)
    operator = await make_operator(api.database)
    asked = await ask(api, first, operator, "customer")
    assert_problem(await decide(api, second, asked), 409, "conflict")
    assert await role_of(api, operator) == "operator"


@pytest.mark.parametrize("back", ["restored", "active again"])
async def test_a_member_of_the_staff_who_comes_back_is_a_customer(api: Api, back: str) -> None:
    first, second = await admins(api)
    await make_operator(api.database)
    puppet = await make_operator(api.database)
    if back == "restored":
        assert (await api.delete(f"/v1/users/{puppet.id}", by=first)).status_code == 204
        reply = await api.post(f"/v1/users/{puppet.id}/restore", by=first)
    else:
        for active in (False, True):
            version = await api.scalar("SELECT version FROM users WHERE id = :id", id=puppet.id)
            path = f"/v1/users/{puppet.id}"
            reply = await api.patch(path, by=first, version=version, json={"is_active": active})
    assert (reply.status_code, reply.json()["role"]) == (200, "customer")
    assert (await decide(api, second, await ask(api, first, puppet))).status_code == 200
    assert await role_of(api, puppet) == "operator"


async def test_operators_do_not_choose_who_else_may_approve(api: Api) -> None:
    await admins(api)
    operator, other = await make_operator(api.database), await make_operator(api.database)
    gone = await make_operator(api.database)
    await api.execute("UPDATE users SET deleted_at = now() WHERE id = :id", id=gone.id)
    for reply in (
        await api.patch(f"/v1/users/{other.id}", by=operator, version=1, json={"is_active": False}),
        await api.delete(f"/v1/users/{other.id}", by=operator),
        await api.post(f"/v1/users/{gone.id}/restore", by=operator),
    ):
        assert_problem(reply, 403, "forbidden")
    assert await api.scalar("SELECT count(*) FROM users WHERE is_active AND deleted_at IS NULL") == 4


async def test_nobody_changes_the_address_with_which_another_member_of_the_staff_signs_in(api: Api) -> None:
    first, second = await admins(api)
    for user in (second, await make_operator(api.database)):
        reply = await api.patch(f"/v1/users/{user.id}", by=first, version=1, json={"email": "mine@example.com"})
        problem = assert_problem(reply, 403, "staff_address")
        assert "/v1/users/me" in problem["detail"]


async def test_in_development_one_admin_decides(api: Api) -> None:
    state = api.app.state.waybill
    settings = state.settings.model_copy(update={"environment": Environment.development})
    object.__setattr__(state, "settings", settings)
    first, _ = await admins(api)
    user = await make_user(api.database)
    reply = await ask(api, first, user, full_name="Olga")
    assert (reply.status_code, reply.json()["role"], reply.json()["full_name"]) == (200, "operator", "Olga")
    assert await api.scalar("SELECT count(*) FROM role_requests") == 0
