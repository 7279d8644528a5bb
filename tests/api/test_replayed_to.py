"""Whose stored reply is replayed: the one of the same path, and only to a caller who may still see it."""

from urllib.parse import quote
from uuid import UUID

import pytest

from services.database import Database
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import PLACING, make_key, order_with, rotate, with_key
from tests.concurrency.ticks import rows
from tests.factories import make_admin, make_operator, make_user

LONG = "€" * 40
"""The beginning of an event type. Each character takes nine in a path."""


def path_of(number: int) -> str:
    """Paths that differ only after their first 200 characters."""
    return f"/v1/operations/types/{quote(LONG)}{number}/pause"


@pytest.fixture
async def operator(api: Api) -> User:
    """An operator, who may pause the types of these paths."""
    await rows(
        api.database, "INSERT INTO outbox_types (type) SELECT :type || n FROM generate_series(1, 2) AS n", type=LONG
    )
    return await make_operator(api.database)


async def pauses(api: Api) -> int:
    return int(await api.scalar("SELECT count(*) FROM outbox_actions WHERE action = 'pause'"))


async def give_role(database: Database, user: User, role: Role) -> None:
    await rows(database, "UPDATE users SET role = :role WHERE id = :id", role=role.value, id=user.id)


async def test_a_key_belongs_to_the_whole_path(api: Api, operator: User) -> None:
    replies = [await api.post(path_of(number), by=operator, key="k-1", json={}) for number in (1, 2, 1, 2)]
    assert [reply.status_code for reply in replies] == [204] * 4, [reply.text for reply in replies]
    assert ["idempotency-replayed" in reply.headers for reply in replies] == [False, False, True, True]
    assert await pauses(api) == 2
    assert await api.scalar("SELECT max(length(path)) FROM idempotency_keys") == 200


async def test_a_long_path_that_the_release_before_stored_is_still_replayed(api: Api, operator: User) -> None:
    first = await api.post(path_of(1), by=operator, key="k-1", json={"reason": "slow"})
    # As that release stores it: the beginning of the path, and no role.
    await rows(api.database, "UPDATE idempotency_keys SET path = :path, role = NULL", path=path_of(1)[:200])

    again = await api.post(path_of(1), by=operator, key="k-1", json={"reason": "slow"})
    other = await api.post(path_of(1), by=operator, key="k-1", json={"reason": "another"})

    assert first.status_code == again.status_code == 204
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in other.headers, "with another body, it may be of another path"
    assert await pauses(api) == 2


async def test_a_demoted_operator_gets_no_reply_that_was_made_for_an_operator(api: Api) -> None:
    buyer, _, product = await api.shop()
    operator, admin = await make_operator(api.database), await make_admin(api.database)
    await make_operator(api.database)
    placed = await api.place(buyer, (product, 1))
    sent = [
        (f"/v1/orders/{placed['id']}/cancel", {"reason": "secret"}),
        ("/v1/top-ups", {"user_id": buyer.id, "amount": "5.00"}),
        ("/v1/orders", order_of((product, 1), on_insufficient_credits="refuse")),
    ]
    firsts = [await api.post(path, by=operator, key="k-1", json=body) for path, body in sent]
    assert [reply.status_code for reply in firsts] == [200, 201, 402]
    before = await api.everything()
    reply = await api.patch(f"/v1/users/{operator.id}", by=admin, version=1, json={"role": "customer"})
    assert reply.status_code == 200, reply.text

    for path, body in sent:
        refused = await api.post(path, by=operator, key="k-1", json=body)
        if path == "/v1/top-ups":
            problem = assert_problem(refused, 403, "forbidden")
            assert problem["detail"] == "this needs the scope corrections:write, which you do not have"
        else:
            problem = assert_problem(refused, 403, "replay_forbidden")
            assert problem["detail"] == (
                "this request was processed when you had the role operator; its reply is not shown to the role customer"
            )
        assert "idempotency-replayed" not in refused.headers
    after = await api.everything()
    assert {name for name in before if before[name] != after[name]} == {"users"}

    # The reply is still there for a user who becomes an operator again.
    await give_role(api.database, operator, Role.operator)
    for (path, body), first in zip(sent, firsts, strict=True):
        again = await api.post(path, by=operator, key="k-1", json=body)
        assert (again.status_code, again.content) == (first.status_code, first.content)


async def test_a_promoted_customer_still_gets_the_reply(api: Api) -> None:
    buyer, _, product = await api.shop()
    first = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 1)))
    await give_role(api.database, buyer, Role.operator)
    again = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 1)))
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(("stored", "status"), [(None, 201), ("customer", 201), ("operator", 403), ("auditor", 403)])
async def test_a_role_that_is_unknown_here_is_not_the_callers(api: Api, stored: str | None, status: int) -> None:
    """The release before stores none, and one to come may store another."""
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    body = {"to_user_id": receiver.id, "amount": "1.00"}
    first = await api.post("/v1/transfers", by=sender, key="k-1", json=body)
    assert UUID(first.json()["id"])
    await rows(api.database, "UPDATE idempotency_keys SET role = :role", role=stored)
    again = await api.post("/v1/transfers", by=sender, key="k-1", json=body)
    assert again.status_code == status


async def test_an_api_key_gets_no_reply_that_was_made_for_its_owner_in_person(api: Api) -> None:
    buyer, _, product = await api.shop()
    narrow = await make_key(api, buyer)
    body = order_of((product, 1))
    first = await api.post("/v1/orders", by=buyer, key="k-1", json=body)
    assert first.status_code == 201

    refused = assert_problem(await order_with(api, narrow, body, key="k-1"), 403, "replay_forbidden")

    assert refused["detail"].startswith("this request was processed for someone who may do more than this API key")
    assert await api.scalar("SELECT count(*) FROM orders") == 1
    assert (await api.post("/v1/orders", by=buyer, key="k-1", json=body)).content == first.content


async def test_an_api_key_gets_the_reply_of_another_one_only_if_it_has_all_its_scopes(api: Api) -> None:
    buyer, _, product = await api.shop()
    wide, narrow = await make_key(api, buyer, *PLACING, "credits:read"), await make_key(api, buyer)
    body = order_of((product, 1))
    by_wide = await order_with(api, wide, body, key="k-1")
    by_narrow = await order_with(api, narrow, body, key="k-2")
    assert (by_wide.status_code, by_narrow.status_code) == (201, 201)

    assert_problem(await order_with(api, narrow, body, key="k-1"), 403, "replay_forbidden")

    for made in (wide, await rotate(api, wide)):
        assert (await order_with(api, made, body, key="k-1")).content == by_wide.content
        assert (await order_with(api, made, body, key="k-2")).content == by_narrow.content
    assert (await api.post("/v1/orders", by=buyer, key="k-1", json=body)).content == by_wide.content, "in person"


async def test_a_key_with_the_scope_of_a_route_gets_no_reply_made_for_its_owner_in_person_there(api: Api) -> None:
    """The path that takes no groups."""
    operator, user = await make_operator(api.database), await make_user(api.database)
    narrow = await make_key(api, operator, "corrections:write")
    body = {"user_id": user.id, "amount": "5.00", "note": "thanks"}
    assert (await api.post("/v1/top-ups", by=operator, key="k-1", json=body)).status_code == 201

    refused = await api.post("/v1/top-ups", headers=with_key(narrow), key="k-1", json=body)

    assert_problem(refused, 403, "replay_forbidden")
    assert await api.scalar("SELECT count(*) FROM transfers WHERE kind = 'top_up'") == 1
