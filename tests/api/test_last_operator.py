"""An installation keeps an operator and an admin: the only one of either cannot leave."""

import asyncio
from typing import Any

import pytest

from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, make_admin, make_operator, make_user

LEFT = "SELECT count(*) FROM users WHERE role = 'operator' AND is_active AND deleted_at IS NULL"


def assert_refused(reply: Any) -> None:
    assert reply.status_code in (409, 422), f"{reply.status_code}: {reply.text}"
    assert_problem(reply, reply.status_code, {409: "conflict", 422: "invalid_input"}[reply.status_code])


async def test_the_only_operator_cannot_delete_themselves_unless_there_is_a_second_one(api: Api) -> None:
    operator = await make_operator(api.database)
    await make_user(api.database)
    before = await api.everything()

    assert_refused(await api.delete("/v1/users/me", by=operator, json=CONFIRMED))
    assert await api.everything() == before
    assert (await api.get("/v1/users", by=operator)).status_code == 200

    second = await make_operator(api.database)
    assert (await api.delete("/v1/users/me", by=operator, json=CONFIRMED)).status_code == 204
    assert_refused(await api.delete("/v1/users/me", by=second, json=CONFIRMED))
    assert await api.scalar(LEFT) == 1


async def test_operators_who_cannot_sign_in_do_not_count(api: Api) -> None:
    operator, deleted = await make_operator(api.database), await make_operator(api.database)
    admin = await make_admin(api.database)
    await make_user(api.database, role=Role.operator, is_active=False)
    assert (await api.delete(f"/v1/users/{deleted.id}", by=admin)).status_code == 204

    assert_refused(await api.delete("/v1/users/me", by=operator, json=CONFIRMED))
    assert await api.scalar(LEFT) == 1


async def test_if_all_operators_delete_themselves_at_once_one_remains(api: Api) -> None:
    operators = [await make_operator(api.database) for _ in range(4)]
    replies = await asyncio.gather(*[api.delete("/v1/users/me", by=operator, json=CONFIRMED) for operator in operators])
    refused = [reply for reply in replies if reply.status_code != 204]
    assert len(refused) == 1
    assert_refused(refused[0])
    assert await api.scalar(LEFT) == 1


async def test_customers_can_delete_themselves_whoever_else_exists(api: Api) -> None:
    customer = await make_user(api.database)
    assert (await api.delete("/v1/users/me", by=customer, json=CONFIRMED)).status_code == 204


async def count(api: Api, role: Role) -> int:
    counted = "SELECT count(*) FROM users WHERE role = :role AND is_active AND deleted_at IS NULL"
    return int(await api.scalar(counted, role=role.value))


@pytest.mark.parametrize("role", [Role.operator, Role.admin])
async def test_the_last_one_of_a_role_is_neither_demoted_deactivated_nor_deleted(api: Api, role: Role) -> None:
    admin, last = await make_admin(api.database), await make_user(api.database, role=role)
    if role is Role.admin:
        await api.execute("UPDATE users SET is_active = false WHERE id = :id", id=admin.id)
        assert_refused(await api.delete("/v1/users/me", by=last, json=CONFIRMED))
        assert await count(api, role) == 1
        return
    before = await api.everything()
    path = f"/v1/users/{last.id}"
    for changes in ({"is_active": False}, {"role": "customer"}, {"role": "admin"}):
        problem = assert_problem(await api.patch(path, by=admin, version=1, json=changes), 409, "conflict")
        assert problem["detail"] == "this is the last operator; give another user the role operator first"
    assert_refused(await api.delete(path, by=admin))
    assert await api.everything() == before
    assert (await api.patch(path, by=admin, version=1, json={"role": "operator"})).status_code == 200


@pytest.mark.parametrize("role", [Role.operator, Role.admin])
async def test_if_all_of_a_role_demote_each_other_at_once_one_remains(api: Api, role: Role) -> None:
    admins = [await make_admin(api.database) for _ in range(4)]
    others = admins if role is Role.admin else [await make_operator(api.database) for _ in range(4)]
    replies = await asyncio.gather(
        *[
            api.patch(f"/v1/users/{other.id}", by=admin, version=1, json={"role": "customer"})
            for admin, other in zip(admins, others[1:] + others[:1], strict=True)
        ]
    )
    demoted = sum(reply.status_code == 200 for reply in replies)
    assert await count(api, role) == 4 - demoted > 0
    if role is Role.operator:
        assert demoted == 3, [reply.text for reply in replies]
    # An admin whom another one was faster to demote is no longer one.
    assert {reply.status_code for reply in replies} <= {200, 409, 403 if role is Role.admin else 409}
