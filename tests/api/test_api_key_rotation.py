"""A program replaces its API key without a failed request."""

import asyncio
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from services.fields import now
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import PLACING, is_valid, make_key, order_with, rotate, with_key
from tests.conftest import BOTH_PATHS
from tests.factories import CONFIRMED, make_user

RETIRES = "SELECT extract(epoch FROM retires_at - now()) FROM api_keys WHERE id = CAST(:id AS uuid)"


@pytest.fixture
async def owner(api: Api) -> User:
    return await make_user(api.database)


async def test_the_old_key_can_be_used_until_the_overlap_has_passed(api: Api, owner: User) -> None:
    old = await make_key(api, owner)
    new = await rotate(api, old)
    assert new["key"] != old["key"]
    assert (new["name"], new["scopes"], new["replaces"]) == (old["name"], old["scopes"], old["id"])
    assert [await is_valid(api, one) for one in (old, new)] == [True, True]
    assert abs(await api.scalar(RETIRES, id=old["id"]) - 86_400) < 60, "a day, unless it is said"
    listed = {one["id"]: one["retires_at"] for one in (await api.get("/v1/api-keys", by=owner)).json()["data"]}
    assert listed[new["id"]] is None
    assert listed[old["id"]] is not None
    await api.execute("UPDATE api_keys SET retires_at = now() WHERE retires_at IS NOT NULL")
    assert [await is_valid(api, one) for one in (old, new)] == [False, True]


async def test_without_an_overlap_the_old_key_ends_at_once(api: Api, owner: User) -> None:
    old = await make_key(api, owner)
    new = await rotate(api, old, overlap=0)
    assert [await is_valid(api, one) for one in (old, new)] == [False, True]


@pytest.mark.parametrize("overlap", [-1, 604_801, "60", 1.5, None])
async def test_the_overlap_has_bounds(api: Api, owner: User, overlap: Any) -> None:
    made = await make_key(api, owner)
    own = await api.post("/v1/api-keys/current/rotate", headers=with_key(made), key=None, json={"overlap": overlap})
    body = {"overlap": overlap, **CONFIRMED}
    others = await api.post(f"/v1/api-keys/{made['id']}/rotate", by=owner, key=None, json=body)
    for refused in (own, others):
        assert_problem(refused, 422, "invalid_input", pointers=["#/overlap"])
    assert await api.scalar("SELECT count(*) FROM api_keys") == 1


async def test_a_person_rotates_a_key_by_its_id(api: Api, owner: User) -> None:
    old = await make_key(api, owner)
    path = f"/v1/api-keys/{old['id']}/rotate"
    reply = await api.post(path, by=owner, key=None, json={"overlap": 60, **CONFIRMED})
    assert reply.status_code == 201, reply.text
    assert 0 < await api.scalar(RETIRES, id=old["id"]) <= 60
    assert await is_valid(api, reply.json())
    # A second rotation does not lengthen the overlap.
    assert (await api.post(path, by=owner, key=None, json=CONFIRMED)).status_code == 201
    assert await api.scalar(RETIRES, id=old["id"]) <= 60


async def test_only_a_program_has_a_current_key_and_only_a_person_a_current_session(api: Api, owner: User) -> None:
    refused = await api.post("/v1/api-keys/current/rotate", by=owner, key=None)
    assert_problem(refused, 404, "not_found")
    made = await make_key(api, owner)
    reply = await api.delete("/v1/sessions/current", headers=with_key(made))
    assert reply.status_code in (403, 404), reply.text
    assert (await api.get("/v1/orders", by=owner)).status_code == 200


async def test_the_new_key_lasts_as_long_as_the_old_one_did(api: Api, owner: User) -> None:
    old = await make_key(api, owner, expires_at=(now() + timedelta(days=10)).isoformat())
    await api.execute(
        "UPDATE api_keys SET created_at = created_at - interval '9 days', expires_at = expires_at - interval '9 days'"
    )
    second = await rotate(api, await rotate(api, old, overlap=60), overlap=60)
    lasts = "SELECT extract(epoch FROM expires_at - now()) FROM api_keys WHERE id = CAST(:id AS uuid)"
    assert abs(await api.scalar(lasts, id=second["id"]) - 10 * 86_400) < 60
    await api.execute("UPDATE api_keys SET expires_at = created_at + interval '20 years' WHERE retires_at IS NULL")
    third = await rotate(api, second)
    assert abs(await api.scalar(lasts, id=third["id"]) - api.settings.api_key_max_ttl) < 60


async def test_a_key_that_has_ended_cannot_be_rotated(api: Api, owner: User) -> None:
    made = await make_key(api, owner)
    assert (await api.delete(f"/v1/api-keys/{made['id']}", by=owner)).status_code == 204
    refused = await api.post("/v1/api-keys/current/rotate", headers=with_key(made), key=None)
    assert_problem(refused, 401, "unauthenticated")
    by_id = await api.post(f"/v1/api-keys/{made['id']}/rotate", by=owner, key=None, json=CONFIRMED)
    assert_problem(by_id, 404, "not_found")
    assert await api.scalar("SELECT count(*) FROM api_keys") == 1


async def test_a_program_that_got_no_reply_rotates_again(api: Api, owner: User) -> None:
    old = await make_key(api, owner)
    lost, got = await rotate(api, old), await rotate(api, old)
    assert [await is_valid(api, one) for one in (old, lost, got)] == [True, True, True]


async def test_each_of_several_simultaneous_rotations_gives_a_key_that_works(api: Api, owner: User) -> None:
    old = await make_key(api, owner)
    made = await asyncio.gather(*[rotate(api, old, overlap=60) for _ in range(5)])
    assert len({one["key"] for one in made}) == 5
    assert all([await is_valid(api, one) for one in (old, *made)])
    assert {one["replaces"] for one in made} == {old["id"]}


async def test_simultaneous_rotations_stay_within_the_number_of_keys(api: Api, owner: User) -> None:
    old, most = await make_key(api, owner), api.settings.api_keys_per_user
    requests = [
        api.post("/v1/api-keys/current/rotate", headers=with_key(old), key=None, json={}) for _ in range(most + 3)
    ]
    replies = await asyncio.gather(*requests)
    assert sorted(reply.status_code for reply in replies) == [201] * most + [409] * 3


async def test_a_rotation_and_a_revocation_at_once_leave_the_old_key_revoked(api: Api, owner: User) -> None:
    old = await make_key(api, owner)
    await asyncio.gather(
        api.post("/v1/api-keys/current/rotate", headers=with_key(old), key=None, json={}),
        api.delete(f"/v1/api-keys/{old['id']}", by=owner),
    )
    assert not await is_valid(api, old)


@BOTH_PATHS
async def test_a_repeated_request_has_one_outcome_whichever_key_it_is_sent_with(api: Api, group_commit: bool) -> None:
    buyer, _, product = await api.shop()
    old = await make_key(api, buyer)
    body = order_of((product, 1))
    first = await order_with(api, old, body, key="k")
    new = await rotate(api, old, overlap=0)
    again = [await order_with(api, new, body, key="k") for _ in range(2)]
    assert [reply.content for reply in again] == [first.content] * 2
    assert [reply.headers["idempotency-replayed"] for reply in again] == ["true"] * 2
    assert await api.scalar("SELECT count(*) FROM orders") == 1


@BOTH_PATHS
async def test_a_program_that_places_orders_meanwhile_sees_no_failed_request(api: Api, group_commit: bool) -> None:
    """Six clients of one program place orders, each twice, while it rotates its key eight times."""
    buyer, _, product = await api.shop(credits="100000", stock=10_000)
    key = await make_key(api, buyer)
    statuses: list[int] = []
    stopped = asyncio.Event()
    numbers = count()

    async def place() -> None:
        while not stopped.is_set():
            number = next(numbers)
            for _ in range(2):
                reply = await order_with(api, key, order_of((product, 1)), key=f"order-{number}")
                statuses.append(reply.status_code)

    clients = [asyncio.create_task(place()) for _ in range(6)]
    for _ in range(8):
        before = len(statuses)
        # What the program does: it rotates, and uses the new key from then on. Requests with the old one are under way.
        key = await rotate(api, key, overlap=30)
        while len(statuses) < before + 12:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    stopped.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {201}
    assert await api.scalar("SELECT count(*) FROM orders") == len(statuses) / 2
    assert key["scopes"] == PLACING
