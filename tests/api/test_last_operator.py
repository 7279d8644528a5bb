"""An installation keeps an operator: the only one cannot delete themselves."""

import asyncio
from typing import Any

from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, make_operator, make_user

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
    await make_user(api.database, role=Role.operator, is_active=False)
    assert (await api.delete(f"/v1/users/{deleted.id}", by=operator)).status_code == 204

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
