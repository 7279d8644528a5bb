"""API keys: how they are made, listed and revoked, and what a program can do with one."""

import asyncio
import hashlib
import logging
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from services.api.schemes import describe_keys
from services.fields import now
from services.orders.routes import place_order
from services.unit_of_work import UnitOfWork
from services.users.keys.secret import new_secret
from services.users.keys.service import ended_keys
from services.users.models import User
from services.users.rights import SCOPES, Role, Scope
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import PLACING, is_valid, make_key, order_with, rotate, with_key
from tests.conftest import BOTH_PATHS
from tests.factories import CONFIRMED, make_user, plain_sql


@pytest.fixture
async def owner(api: Api) -> User:
    return await make_user(api.database)


def wanted(*scopes: str, **more: Any) -> dict[str, Any]:
    return {"name": "a program", "scopes": list(scopes) or PLACING, **CONFIRMED, **more}


async def test_a_key_is_shown_once_and_only_its_sha256_is_stored(
    api: Api, owner: User, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    reply = await api.post("/v1/api-keys", by=owner, key=None, json=wanted())
    made = reply.json()
    assert (reply.status_code, reply.headers["cache-control"]) == (201, "no-store")
    assert reply.headers["location"] == f"/v1/api-keys/{made['id']}"
    key = made.pop("key")
    assert made["hint"] == f"{key[:8]}…{key[-4:]}"
    assert await is_valid(api, key)
    listed = (await api.get("/v1/api-keys", by=owner)).json()["data"]
    assert listed == [made] == [(await api.get(f"/v1/api-keys/{made['id']}", by=owner)).json()]
    assert await api.scalar("SELECT hash FROM api_keys") == hashlib.sha256(key.encode()).digest()
    everywhere = "SELECT string_agg(one::text, ' ') FROM {} AS one"
    stored = [await api.scalar(everywhere.format(table)) for table in ("api_keys", "events", "idempotency_keys")]
    assert key[4:-6] not in " ".join(str(one) for one in stored)
    assert key[4:-6] not in caplog.text


async def test_a_repeated_request_for_a_key_stores_no_reply(api: Api, owner: User) -> None:
    first, second = [await api.post("/v1/api-keys", by=owner, key="k", json=wanted()) for _ in range(2)]
    rotated = await api.post("/v1/api-keys/current/rotate", headers=with_key(first.json()), key="k", json={})
    assert [first.status_code, second.status_code, rotated.status_code] == [201, 201, 201]
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0, "the key would be in a stored reply"


async def test_a_key_needs_the_password(api: Api, owner: User) -> None:
    made = await make_key(api, owner)
    before = await api.scalar("SELECT count(*) FROM api_keys")
    for path, body in (("/v1/api-keys", wanted()), (f"/v1/api-keys/{made['id']}/rotate", {})):
        body = {**body, "current_password": "a wrong password"}
        assert_problem(await api.post(path, by=owner, key=None, json=body), 403, "wrong_password")
        del body["current_password"]
        refused = await api.post(path, by=owner, key=None, json=body)
        assert_problem(refused, 422, "invalid_input", pointers=["#/current_password"])
    assert await api.scalar("SELECT count(*) FROM api_keys") == before


async def test_guesses_at_the_password_are_counted(api: Api, owner: User) -> None:
    guesses = [
        (await api.post("/v1/api-keys", by=owner, key=None, json=wanted(current_password=f"guess {n}"))).status_code
        for n in range(api.settings.sign_in_attempts + 1)
    ]
    assert guesses[:-1] == [403] * api.settings.sign_in_attempts
    assert guesses[-1] == 429
    refused = await api.post("/v1/api-keys", by=owner, key=None, json=wanted())
    assert_problem(refused, 429, "too_many_attempts")


@pytest.mark.parametrize("role", Role)
async def test_a_key_can_have_the_scopes_of_its_owners_role_that_are_not_for_people_only(api: Api, role: Role) -> None:
    owner = await make_user(api.database, role=role)
    personal = {"profile:read", "profile:write", "keys:write", "roles:write"}
    for scope in Scope:
        reply = await api.post("/v1/api-keys", by=owner, key=None, json=wanted(scope.value))
        if scope in SCOPES[role] and scope.value not in personal:
            assert reply.status_code == 201, reply.text
            path = f"/v1/api-keys/{reply.json()['id']}"
            assert (await api.delete(path, by=owner)).status_code == 204
        else:
            assert_problem(reply, 422, "invalid_input", pointers=["#/scopes/0"])


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"scopes": []}, "#/scopes"),
        ({"scopes": ["orders:read", "orders:read"]}, "#/scopes"),
        ({"scopes": ["orders:everything"]}, "#/scopes/0"),
        ({"scopes": "orders:read"}, "#/scopes"),
        ({"name": ""}, "#/name"),
        ({"name": "  "}, "#/name"),
        ({"name": "x" * 201}, "#/name"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "#/expires_at"),
        ({"expires_at": "2199-01-01T00:00:00Z"}, "#/expires_at"),
        ({"hash": "x"}, "#/hash"),
    ],
    ids=str,
)
async def test_a_key_that_cannot_be_is_refused(api: Api, owner: User, given: dict[str, Any], pointer: str) -> None:
    refused = await api.post("/v1/api-keys", by=owner, key=None, json=wanted(**given))
    assert_problem(refused, 422, "invalid_input", pointers=[pointer])
    assert await api.scalar("SELECT count(*) FROM api_keys") == 0


async def test_the_database_refuses_scopes_for_people(api: Api, owner: User) -> None:
    await make_key(api, owner)
    for scopes in ([], ["profile:read"], ["orders:read", "keys:write"]):
        with pytest.raises(IntegrityError, match="ck_api_keys_"):
            await api.execute("UPDATE api_keys SET scopes = CAST(:scopes AS text[])", scopes=scopes)


async def test_a_user_has_so_many_keys_and_no_more(api: Api, owner: User) -> None:
    most = api.settings.api_keys_per_user
    first = await make_key(api, owner)
    await api.execute(
        "INSERT INTO api_keys (id, user_id, name, hash, hint, scopes, expires_at) SELECT gen_random_uuid(), user_id,"
        " 'x', sha256(n::text::bytea), 'wbk_', scopes, expires_at FROM api_keys, generate_series(3, :most) AS n",
        most=most,
    )
    replies = await asyncio.gather(*[api.post("/v1/api-keys", by=owner, key=None, json=wanted()) for _ in range(4)])
    assert sorted(reply.status_code for reply in replies) == [201, 409, 409, 409]
    refused = next(reply for reply in replies if reply.status_code == 409)
    assert f"{most} are allowed" in assert_problem(refused, 409, "conflict")["detail"]
    # A full house can still be rotated, and another user's keys do not count.
    await rotate(api, first)
    assert await make_key(api, await make_user(api.database))
    assert (await api.delete(f"/v1/api-keys/{first['id']}", by=owner)).status_code == 204, "its overlap lasts"
    assert_problem(await api.post("/v1/api-keys", by=owner, key=None, json=wanted()), 409, "conflict")


async def test_a_key_waits_for_a_transaction_that_makes_another_key_of_its_owner(api: Api, owner: User) -> None:
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql("SELECT FROM users FOR NO KEY UPDATE")
        making = asyncio.create_task(api.post("/v1/api-keys", by=owner, key=None, json=wanted()))
        done, _ = await asyncio.wait({making}, timeout=0.8)
        assert not done, "otherwise both would count the same keys"
    assert (await making).status_code == 201


async def test_a_program_that_rotates_in_a_loop_is_stopped(api: Api, owner: User) -> None:
    first = made = await make_key(api, owner)
    most = api.settings.api_keys_per_user
    for _ in range(2 * most - 1):
        made = await rotate(api, made)
    refused = await api.post("/v1/api-keys/current/rotate", key=None, headers=with_key(made), json={})
    assert "overlap" in assert_problem(refused, 409, "conflict")["detail"]
    assert await is_valid(api, made)
    assert await is_valid(api, first)
    assert len((await api.get("/v1/api-keys", by=owner)).json()["data"]) == 2 * most


async def test_a_key_of_another_user_is_not_found(api: Api, owner: User) -> None:
    made, stranger = await make_key(api, owner), await make_user(api.database)
    path = f"/v1/api-keys/{made['id']}"
    unknown = f"/v1/api-keys/{uuid4()}"
    details = set()
    for of in (path, unknown):
        replies = [
            await api.get(of, by=stranger),
            await api.delete(of, by=stranger),
            await api.post(f"{of}/rotate", by=stranger, key=None, json=CONFIRMED),
        ]
        for reply in replies:
            details.add(assert_problem(reply, 404, "not_found")["detail"].replace(of[-36:], "ID"))
    assert len(details) == 1, "nothing tells a key of another user from one that does not exist"
    assert (await api.get("/v1/api-keys", by=stranger)).json() == {"data": []}
    assert await is_valid(api, made)


async def test_an_admin_lists_and_revokes_the_keys_of_others(api: Api, owner: User) -> None:
    made, admin = await make_key(api, owner), await make_user(api.database, role=Role.admin)
    path = f"/v1/users/{owner.id}/api-keys"
    for other in (owner, await make_user(api.database, role=Role.operator)):
        assert_problem(await api.get(path, by=other), 403, "forbidden")
        assert_problem(await api.delete(f"{path}/{made['id']}", by=other), 403, "forbidden")
    (listed,) = (await api.get(path, by=admin)).json()["data"]
    assert listed["id"] == made["id"]
    assert "key" not in listed
    assert_problem(await api.delete(f"/v1/users/{admin.id}/api-keys/{made['id']}", by=admin), 404, "not_found")
    assert await is_valid(api, made)
    assert (await api.delete(f"{path}/{made['id']}", by=admin)).status_code == 204
    assert not await is_valid(api, made)
    assert_problem(await api.get("/v1/users/987654321/api-keys", by=admin), 404, "not_found")


@pytest.mark.parametrize("form", ["wbk_", "wbk_x", "wbk_{0:0<49}", "{}x", "{:.52}", "wbk-{:.49}"])
async def test_a_malformed_key_is_refused_without_the_database(
    api: Api, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    given = form.format(new_secret())
    with plain_sql(monkeypatch) as ran:
        for reply in (await api.get("/v1/orders", headers=with_key(given)), await order_with(api, given, order_of())):
            assert_problem(reply, 401, "unauthenticated")
            assert reply.headers["www-authenticate"] == "Bearer"
    assert ran == []


@BOTH_PATHS
async def test_a_key_that_was_never_issued_is_refused(api: Api, owner: User) -> None:
    await make_key(api, owner)
    unknown = new_secret()
    for _ in range(2):
        assert not await is_valid(api, unknown)
        assert_problem(await order_with(api, unknown, order_of()), 401, "unauthenticated")


ENDINGS = {
    "expired": "UPDATE api_keys SET created_at = now() - interval '2 s', expires_at = now()",
    "retired": "UPDATE api_keys SET retires_at = now()",
    "revoked": "UPDATE api_keys SET revoked_at = now()",
    "deactivated": "UPDATE users SET is_active = false WHERE full_name = 'Bea Buyer'",
    "deleted": "UPDATE users SET deleted_at = now() WHERE full_name = 'Bea Buyer'",
}


@BOTH_PATHS
@pytest.mark.parametrize("how", ENDINGS)
async def test_a_key_ends_at_once(api: Api, group_commit: bool, how: str) -> None:
    buyer, _, product = await api.shop()
    made = await make_key(api, buyer)
    body = order_of((product, 1))
    placed = [await order_with(api, made, body) for _ in range(2)]
    assert [reply.status_code for reply in placed] == [201, 201]
    await api.execute(ENDINGS[how])
    refused = await order_with(api, made, body)
    assert "unknown, expired or revoked" in assert_problem(refused, 401, "unauthenticated")["detail"]
    assert not await is_valid(api, made)
    assert await api.scalar("SELECT count(*) FROM orders") == 2


@BOTH_PATHS
async def test_a_revoked_key_gets_no_replay(api: Api, group_commit: bool) -> None:
    buyer, _, product = await api.shop()
    made = await make_key(api, buyer)
    body = order_of((product, 1))
    for _ in range(2):
        assert (await order_with(api, made, body, key="k")).status_code == 201
    assert (await api.delete(f"/v1/api-keys/{made['id']}", by=buyer)).status_code == 204
    assert_problem(await order_with(api, made, body, key="k"), 401, "unauthenticated")
    assert_problem(await api.delete(f"/v1/api-keys/{made['id']}", by=buyer), 404, "not_found")


async def test_deleting_or_deactivating_a_user_revokes_their_keys(api: Api, owner: User) -> None:
    other, operator = await make_user(api.database), await make_user(api.database, role=Role.operator)
    made, others = await make_key(api, owner), await make_key(api, other)
    assert (await api.request("DELETE", "/v1/users/me", by=owner, json=CONFIRMED)).status_code == 204
    reply = await api.patch(f"/v1/users/{other.id}", by=operator, version=1, json={"is_active": False})
    assert reply.status_code == 200, reply.text
    await api.execute("UPDATE users SET is_active = true, deleted_at = NULL")
    assert [await is_valid(api, one) for one in (made, others)] == [False, False], "they stay revoked"
    assert await api.scalar("SELECT count(*) FROM api_keys WHERE revoked_at IS NULL") == 0


async def test_a_key_is_not_made_for_a_user_who_is_deleted_meanwhile(
    api: Api, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.users.keys import service

    lock = service._lock_owner

    async def deleted_before(uow: UnitOfWork, user_id: int) -> None:
        await api.execute("UPDATE users SET deleted_at = now() WHERE id = :id", id=user_id)
        await lock(uow, user_id)

    monkeypatch.setattr(service, "_lock_owner", deleted_before)
    assert_problem(await api.post("/v1/api-keys", by=owner, key=None, json=wanted()), 401, "unauthenticated")
    assert await api.scalar("SELECT count(*) FROM api_keys") == 0


async def test_a_key_may_do_only_what_its_scopes_say(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_order, "needed_scope", Scope.orders_write, raising=False)
    buyer, _, product = await api.shop()
    reading, listing = await make_key(api, buyer, "orders:read"), await make_key(api, buyer, "keys:read")
    refused = await order_with(api, reading, order_of((product, 1)))
    assert_problem(refused, 403, "forbidden")
    assert_problem(await api.get("/v1/api-keys", headers=with_key(reading)), 403, "forbidden")
    assert len((await api.get("/v1/api-keys", headers=with_key(listing))).json()["data"]) == 2
    for method, path in (("POST", "/v1/api-keys"), ("DELETE", f"/v1/api-keys/{reading['id']}")):
        reply = await api.request(method, path, headers=with_key(listing), json=wanted())
        assert_problem(reply, 403, "forbidden")
    assert_problem(await api.post("/v1/api-keys/current/rotate", headers=with_key(reading), key=None), 403, "forbidden")


async def test_a_demoted_owners_key_loses_what_the_role_had(api: Api) -> None:
    admin = await make_user(api.database, role=Role.admin)
    path = f"/v1/users/{admin.id}/api-keys"
    made = await make_key(api, admin, "keys:manage", "keys:read")
    assert (await api.get(path, headers=with_key(made))).status_code == 200
    await api.execute("UPDATE users SET role = 'customer' WHERE id = :id", id=admin.id)
    assert_problem(await api.get(path, headers=with_key(made)), 403, "forbidden")
    assert (await api.get("/v1/api-keys", headers=with_key(made))).status_code == 200, "customers have this one, too"
    await api.execute("UPDATE users SET role = 'admin' WHERE id = :id", id=admin.id)
    assert (await api.get(path, headers=with_key(made))).status_code == 200


async def test_who_acts_is_the_key(api: Api, owner: User) -> None:
    made = await make_key(api, owner)
    async with UnitOfWork(api.database.write) as uow:
        caller = await uow.users.with_key(hashlib.sha256(made["key"].encode()).digest(), require_totp=False)
    assert caller is not None
    assert (caller.id, caller.actor, caller.session_id) == (owner.id, f"key:{made['id']}", None)
    assert [scope for scope in Scope if caller.may(scope)] == [Scope.keys_rotate, Scope.orders_read, Scope.orders_write]


async def test_scopes_of_the_next_release_are_ignored(api: Api, owner: User) -> None:
    made = await make_key(api, owner)
    await api.execute("UPDATE api_keys SET scopes = scopes || CAST('moon:write' AS text)")
    assert await is_valid(api, made)
    following = await rotate(api, made)
    assert following["scopes"] == [*PLACING, "moon:write"]
    assert await is_valid(api, following)


async def test_keys_that_ended_long_ago_are_deleted(api: Api, owner: User) -> None:
    retention = timedelta(days=1)
    revoked, expired, retired, lately, living = [await make_key(api, owner) for _ in range(5)]
    await rotate(api, retired)
    for made, column in ((revoked, "revoked_at"), (expired, "expires_at"), (retired, "retires_at")):
        await api.execute(
            f"UPDATE api_keys SET created_at = now() - interval '9 days', {column} = now() - interval '25 hours'"
            " WHERE id = CAST(:id AS uuid)",
            id=made["id"],
        )
    await api.execute("UPDATE api_keys SET revoked_at = now() WHERE id = CAST(:id AS uuid)", id=lately["id"])
    sweep = ended_keys(retention)
    async with UnitOfWork(api.database.write) as uow:
        found = await sweep.find(uow, None, 2)
        found = [*found, *await sweep.find(uow, found[-1], 2)]
        ended = await sweep.end(uow, found)
        await uow.commit()
    assert set(ended) == {revoked["id"], expired["id"], retired["id"]} == {one.subject for one in found}
    left = await api.scalar("SELECT count(*) FROM api_keys")
    assert left == 3, "the one revoked lately, the living one, and the one that replaced another"
    assert await is_valid(api, living)
    assert await api.scalar("SELECT count(*) FROM api_keys WHERE replaces IS NOT NULL") == 0


async def test_a_key_lasts_as_long_as_its_owner_wants_within_the_limit(api: Api, owner: User) -> None:
    longest, until = await make_key(api, owner), now() + timedelta(hours=5)
    short = await make_key(api, owner, expires_at=until.isoformat())
    assert short["expires_at"] == until.isoformat().replace("+00:00", "Z")
    lasts = "SELECT extract(epoch FROM expires_at - created_at) FROM api_keys WHERE id = CAST(:id AS uuid)"
    assert abs(await api.scalar(lasts, id=longest["id"]) - api.settings.api_key_max_ttl) < 60


async def test_the_openapi_document_says_which_operations_take_a_key(api: Api) -> None:
    document = api.app.openapi()
    scheme = document["components"]["securitySchemes"]["ApiKey"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    placing = document["paths"]["/v1/orders"]["post"]["security"]
    assert [list(one) for one in placing] == [["OAuth2PasswordBearer"], ["ApiKey"]], "either of them"
    assert "security" not in document["paths"]["/v1/token"]["post"]


def test_operations_for_people_take_no_key() -> None:
    of = {scope: {"security": [{"OAuth2PasswordBearer": [scope]}]} for scope in ("profile:write", "orders:read")}
    document: dict[str, Any] = {"components": {}, "paths": {scope: {"get": one} for scope, one in of.items()}}
    describe_keys(document)
    assert of["profile:write"]["security"] == [{"OAuth2PasswordBearer": ["profile:write"]}]
    assert of["orders:read"]["security"] == [{"OAuth2PasswordBearer": ["orders:read"]}, {"ApiKey": ["orders:read"]}]
