"""What people do leaves its row in the audit log, in the same transaction; refusals are counted there."""

import asyncio
import json
import logging
from typing import Any

import pytest
from sqlalchemy import text

from services.acting import Acting
from services.api import refusals as security_events
from services.api.refusals import MOST_KEYS, Refusals
from services.audit.log.repository import EXPORTED
from services.database import Database
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import make_key, with_key
from tests.conftest import BOTH_PATHS
from tests.factories import CONFIRMED, PASSWORD, make_admin, make_operator, make_product, make_user

NEW = "another very good password"


@pytest.fixture
async def operator(api: Api) -> User:
    return await make_operator(api.database)


async def acts(api: Api, where: str = "action NOT LIKE 'request.%'") -> list[tuple[Any, ...]]:
    """Who did what to which object."""
    statement = f"SELECT actor, action, object FROM audit_log WHERE {where} ORDER BY id"
    return await read(api.database, statement)


async def read(database: Database, statement: str) -> list[tuple[Any, ...]]:
    async with database.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(statement))]


async def account(api: Api, user: User) -> str:
    return f"account/{await api.scalar('SELECT id FROM accounts WHERE user_id = :id', id=user.id)}"


async def test_who_topped_up_an_account_and_from_where(api: Api, operator: User) -> None:
    user = await make_user(api.database)
    wanted = {"user_id": user.id, "amount": "25.00", "note": "refund of a broken pen"}
    reply = await api.post("/v1/top-ups", by=operator, json=wanted)
    assert reply.status_code == 201, reply.text

    assert await acts(api) == [(operator.actor, "credits.top_up", await account(api, user))]
    found = "SELECT concat_ws(' ', user_id, reason, request_id, address, details ->> 'amount', number) FROM audit_log"
    request_id = reply.headers["X-Request-Id"]
    expected = f"{operator.id} refund of a broken pen {request_id} 127.0.0.1 25.00 1"
    assert await api.scalar(found) == expected
    transfer = reply.json()["id"]
    assert await api.scalar("SELECT details ->> 'transfer' FROM audit_log") == transfer


async def test_closing_and_reopening_an_account(api: Api, operator: User) -> None:
    user = await make_user(api.database)
    for what in ("close", "reopen"):
        assert (await api.post(f"/v1/accounts/{user.id}/{what}", by=operator)).status_code == 200
    subject = await account(api, user)
    assert await acts(api) == [
        (operator.actor, "account.closed", subject),
        (operator.actor, "account.reopened", subject),
    ]


async def test_corrections(api: Api, operator: User) -> None:
    user, second = await make_user(api.database, credits="10"), await make_operator(api.database)
    large = {"user_id": user.id, "amount": "9000.00", "reason": "goodwill"}
    approved, rejected = [(await api.post("/v1/adjustments", by=operator, json=large)).json()["id"] for _ in range(2)]
    assert (await api.post(f"/v1/adjustments/{approved}/approve", by=second)).status_code == 200
    assert (await api.post(f"/v1/adjustments/{rejected}/reject", by=second)).status_code == 200
    paid = await api.post("/v1/transfers", by=user, json={"to_user_id": second.id, "amount": "1.00"})
    transfer = paid.json()["id"]
    undone = await api.post(f"/v1/transfers/{transfer}/reverse", by=operator, json={"reason": "a mistake"})
    assert undone.status_code == 201, undone.text
    assert await acts(api) == [
        (operator.actor, "adjustment.requested", f"adjustment/{approved}"),
        (operator.actor, "adjustment.requested", f"adjustment/{rejected}"),
        (second.actor, "adjustment.approved", f"adjustment/{approved}"),
        (second.actor, "adjustment.rejected", f"adjustment/{rejected}"),
        (operator.actor, "transfer.reversed", f"transfer/{transfer}"),
    ]


async def test_what_is_done_with_api_keys(api: Api) -> None:
    owner, admin = await make_user(api.database), await make_user(api.database, role=Role.admin)
    made = await make_key(api, owner)
    rotated = await api.post("/v1/api-keys/current/rotate", headers=with_key(made), key=None, json={})
    assert rotated.status_code == 201, rotated.text
    second = rotated.json()["id"]
    assert (await api.delete(f"/v1/users/{owner.id}/api-keys/{second}", by=admin)).status_code == 204
    assert await acts(api) == [
        (owner.actor, "key.made", f"key/{made['id']}"),
        (f"key:{made['id']}", "key.rotated", f"key/{made['id']}"),
        (admin.actor, "key.revoked", f"key/{second}"),
    ]
    details = "SELECT concat_ws(' ', user_id, details ->> 'replaced_by') FROM audit_log WHERE action = 'key.rotated'"
    assert await api.scalar(details) == f"{owner.id} {second}"
    everything = str(await read(api.database, "SELECT row_to_json(audit_log)::text FROM audit_log"))
    assert made["key"][4:-6] not in everything


async def test_what_users_do_with_their_sign_in(api: Api) -> None:
    wanted = {"email": "new@example.com", "full_name": "New", "password": NEW}
    made = await api.client.post("/v1/users", json=wanted)
    assert made.status_code == 201, made.text
    token = (await api.sign_in("new@example.com", NEW)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    change = {"password": "yet another good password", "current_password": NEW}
    changed = await api.patch("/v1/users/me", version=1, headers=headers, json=change)
    assert changed.status_code == 200, changed.text
    moved = {"email": "moved@example.com", "current_password": change["password"]}
    assert (await api.patch("/v1/users/me", version=2, headers=headers, json=moved)).status_code == 200
    assert (await api.delete("/v1/sessions", headers=headers)).status_code == 204

    user = f"user/{await api.scalar('SELECT id FROM users')}"
    actor = user.replace("/", ":")
    assert await acts(api) == [
        (None, "user.registered", user),
        (actor, "user.signed_in", user),
        (actor, "user.password_changed", user),
        (actor, "user.email_changed", user),
        (actor, "user.signed_out_everywhere", user),
    ]
    assert await api.scalar("SELECT count(*) FROM audit_log WHERE address = '127.0.0.1'") == 5


async def test_neither_the_audit_log_nor_a_line_of_the_log_contains_a_secret(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    user = await make_user(api.database)
    wrong = "a wrong password, by mistake that of another site"
    assert (await api.sign_in(user.email, wrong)).status_code == 401
    signed_in = (await api.sign_in(user.email)).json()
    headers = {"Authorization": f"Bearer {signed_in['access_token']}"}
    key = (await make_key(api, user))["key"]
    assert (await api.get("/v1/orders", headers=with_key(key))).status_code == 200
    assert (await api.get("/v1/users", headers=headers)).status_code == 403
    assert (await api.get("/v1/orders", headers=with_key(key[:-1]))).status_code == 401
    form = {"grant_type": "refresh_token", "refresh_token": signed_in["refresh_token"]}
    refreshed = (await api.client.post("/v1/token", data=form)).json()
    change = {"password": NEW, **CONFIRMED}
    assert (await api.patch("/v1/users/me", version=1, headers=headers, json=change)).status_code == 200
    await written(api, 3)

    acts = await read(api.database, "SELECT row_to_json(audit_log)::text FROM audit_log")
    said = f"{acts} {caplog.text} {[vars(record) for record in caplog.records]}"
    assert "user.sign_in_refused" in said
    tokens = [one[name] for one in (signed_in, refreshed) for name in ("access_token", "refresh_token")]
    # Of a key, the beginning and the end are shown to people.
    secrets = [wrong, PASSWORD, NEW, key[8:-4], *tokens]
    assert [secret for secret in secrets if secret in said] == []


async def test_a_refresh_token_that_is_used_twice(api: Api) -> None:
    user = await make_user(api.database)
    token = (await api.sign_in(user.email)).json()["refresh_token"]
    form = {"grant_type": "refresh_token", "refresh_token": token}
    follower = (await api.client.post("/v1/token", data=form)).json()["refresh_token"]
    assert (await api.client.post("/v1/token", data={**form, "refresh_token": follower})).status_code == 200
    await api.execute("UPDATE refresh_tokens SET used_at = now() - interval '1 hour' WHERE used_at IS NOT NULL")
    assert (await api.client.post("/v1/token", data=form)).status_code == 401
    assert (None, "session.token_reused", f"user/{user.id}") in await acts(api)


async def test_what_admins_do_to_users(api: Api) -> None:
    admin, user = await make_admin(api.database), await make_user(api.database)
    # The last operator could not be removed.
    await make_operator(api.database)
    path = f"/v1/users/{user.id}"
    for version, change in enumerate(({"role": "operator"}, {"is_active": False}, {"is_active": True}), start=1):
        reply = await api.patch(path, by=admin, version=version, json=change)
        assert reply.status_code == 200, reply.text
    assert (await api.delete(path, by=admin)).status_code == 204
    assert (await api.post(f"{path}/restore", by=admin)).status_code == 200
    expected = ["user.role_changed", "user.deactivated", "user.activated", "user.deleted", "user.restored"]
    assert await acts(api) == [(admin.actor, action, f"user/{user.id}") for action in expected]
    changed = "SELECT details ->> 'was' || ' ' || (details ->> 'now') FROM audit_log WHERE action = 'user.role_changed'"
    assert await api.scalar(changed) == "customer operator"


async def test_deleting_oneself(api: Api) -> None:
    user = await make_user(api.database)
    assert (await api.delete("/v1/users/me", by=user, json=CONFIRMED)).status_code == 204
    assert await acts(api) == [(user.actor, "user.deleted", f"user/{user.id}")]


async def test_prices_and_stock(api: Api) -> None:
    seller = await make_user(api.database)
    product, other = [await make_product(api.database, seller=seller) for _ in range(2)]
    path = f"/v1/products/{product.id}"
    assert (await api.patch(path, by=seller, version=1, json={"price": "12.00"})).status_code == 200
    assert (await api.patch(path, by=seller, version=2, json={"name": "Another name"})).status_code == 200
    assert (await api.post(f"{path}/stock", by=seller, json={"change": -3})).status_code == 200
    wanted = {"sku": other.sku, "name": other.name, "price": "99.00", "category_id": other.category_id, "stock": 7}
    written = await api.request("PUT", "/v1/products", by=seller, json={"products": [wanted]})
    assert written.status_code == 200, written.text
    assert await acts(api) == [
        (seller.actor, "product.price_changed", f"product/{product.id}"),
        (seller.actor, "product.stock_changed", f"product/{product.id}"),
        (seller.actor, "product.price_changed", f"product/{other.id}"),
        (seller.actor, "product.stock_changed", f"product/{other.id}"),
    ]
    details = "SELECT string_agg(details::text, ' ' ORDER BY id) FROM audit_log"
    assert await api.scalar(details) == (
        '{"now": "12.00", "was": "10.00"} {"pieces": -3} {"now": "99.00", "was": "10.00"} {"pieces": -93}'
    )


async def test_what_operators_do_to_the_outbox(api: Api, operator: User) -> None:
    types = "/v1/operations/types/order.placed"
    reason = {"reason": "too many errors"}
    for what, body in (("pause", reason), ("resume", reason), ("limit", {**reason, "max_batches": 2})):
        reply = await api.post(f"{types}/{what}", by=operator, json=body)
        assert reply.status_code == 204, (what, reply.text)
    actions = ("outbox.type_paused", "outbox.type_resumed", "outbox.type_limited")
    assert await acts(api) == [(operator.actor, action, "type/order.placed") for action in actions]
    assert await api.scalar("SELECT bool_and(reason = 'too many errors') FROM audit_log")


async def test_an_act_is_undone_with_what_was_done(api: Api, operator: User) -> None:
    user = await make_user(api.database, credits="5")
    await api.execute("UPDATE accounts SET held = 5 WHERE user_id = :id", id=user.id)
    assert_problem(await api.post(f"/v1/accounts/{user.id}/close", by=operator), 409, "conflict")
    # The commit fails: a deferred constraint objects to what was done.
    await api.execute(
        "CREATE FUNCTION object() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'no' USING ERRCODE = '23514'; END $$"
    )
    await api.execute(
        "CREATE CONSTRAINT TRIGGER object AFTER INSERT ON entries DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION object()"
    )
    reply = await api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "1.00"})
    assert reply.status_code >= 400
    assert await acts(api) == []


async def written(api: Api, number: int) -> list[tuple[Any, ...]]:
    """The security events, once they have been written."""
    statement = """
        SELECT actor, action, object, details ->> 'code', number, address FROM audit_log
        WHERE action LIKE 'request.%' OR action = 'user.sign_in_refused' ORDER BY id
    """
    for _ in range(200):
        found = await read(api.database, statement)
        if sum(row[4] for row in found) >= number:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError(f"only {found} were written")


async def test_refusals_name_who_tried_what(api: Api) -> None:
    user = await make_user(api.database)
    for _ in range(3):
        reply = await api.post("/v1/top-ups", by=user, json={"user_id": user.id, "amount": "5.00"})
        assert_problem(reply, 403, "forbidden")
    assert_problem(await api.get("/v1/users/me"), 401, "unauthenticated")
    found = await written(api, 4)
    assert {(*row[:4], row[5]) for row in found} == {
        (user.actor, "request.forbidden", "POST /v1/top-ups", "forbidden", "127.0.0.1"),
        (None, "request.unauthenticated", "GET /v1/users/me", "unauthenticated", "127.0.0.1"),
    }
    assert await api.scalar("SELECT user_id FROM audit_log WHERE action = 'request.forbidden' LIMIT 1") == user.id


@BOTH_PATHS
async def test_who_may_not_place_orders_is_named(api: Api) -> None:
    buyer, _, product = await api.shop()
    reader = await make_key(api, buyer, "orders:read")
    auditor = await make_user(api.database, role=Role.auditor)
    body = order_of((product, 1))
    assert_problem(await api.post("/v1/orders", by=auditor, json=body), 403, "forbidden")
    assert_problem(await api.post("/v1/orders", headers=with_key(reader), json=body), 403, "forbidden")
    found = await written(api, 2)
    assert {row[:3] for row in found} == {
        (actor, "request.forbidden", "POST /v1/orders") for actor in (auditor.actor, f"key:{reader['id']}")
    }


@pytest.mark.parametrize("path", ["/v1/users/%5Cu0000", "/v1/users/%00", "/v1/users/%ED%A0%80", "/v1/users/%5Cud800"])
async def test_no_path_keeps_refusals_from_being_written(api: Api, path: str) -> None:
    assert_problem(await api.get(path), 401, "unauthenticated")
    assert_problem(await api.get("/v1/sessions"), 401, "unauthenticated")
    objects = {row[2] for row in await written(api, 2)}
    assert objects == {"GET /v1/users/{user_id}", "GET /v1/sessions"}


async def test_no_filter_keeps_an_export_from_being_recorded(api: Api, operator: User) -> None:
    for said in ("%5Cu0000", "a%5Cu0000b%5C", "%5Cud800"):
        reply = await api.get(f"/v1/audit-log.ndjson?filter=object:eq:{said}", by=operator)
        assert reply.status_code == 200, reply.text
    statement = "SELECT details ->> 'filters' FROM audit_log WHERE action = 'audit_log.exported' ORDER BY id"
    assert await read(api.database, statement) == [
        ("object:eq:\\u0000",),
        ("object:eq:a\\u0000b\\",),
        ("object:eq:\\ud800",),
    ]


async def test_the_second_operator_who_is_the_first_is_seen(api: Api, operator: User) -> None:
    user = await make_user(api.database)
    large = {"user_id": user.id, "amount": "9000.00", "reason": "goodwill"}
    adjustment = (await api.post("/v1/adjustments", by=operator, json=large)).json()["id"]
    tried = f"/v1/adjustments/{adjustment}/approve"
    assert (await api.post(tried, by=operator)).status_code == 403
    ((actor, _, route, _, _, _),) = await written(api, 1)
    assert (actor, route) == (operator.actor, "POST /v1/adjustments/{adjustment_id}/approve")
    assert await api.scalar("SELECT details ->> 'path' FROM audit_log WHERE action = 'request.forbidden'") == tried


async def test_refused_sign_ins_name_the_account(api: Api) -> None:
    user = await make_user(api.database)
    assert_problem(await api.sign_in(user.email, "wrong"), 401, "unauthenticated")
    assert_problem(await api.sign_in("nobody@example.com", "wrong"), 401, "unauthenticated")
    found = await written(api, 2)
    assert {row[:3] for row in found} == {
        (None, "user.sign_in_refused", f"user/{user.id}"),
        (None, "user.sign_in_refused", "user"),
    }


def refused(refusals: Refusals, number: int, *, status: int, by: Acting, code: str = "refused") -> None:
    for _ in range(number):
        state = {"acting": by, "refused_with": code, "request_id": "request-1"}
        refusals.add({"method": "GET", "path": "/v1/users", "state": state}, status)


async def test_a_flood_leaves_one_row_a_minute_with_the_number_of_refusals(database: Database) -> None:
    refusals = Refusals()
    stranger = Acting(address="192.0.2.1")
    for second in range(0, 181, 2):
        refused(refusals, 10, status=401, by=stranger)
        await refusals.write(database.write, float(second))
    rows = await read(database, "SELECT number, address, actor FROM audit_log ORDER BY id")
    # At once, and then each minute.
    assert rows == [(number, "192.0.2.1", None) for number in (10, 300, 300, 300)]


async def test_a_flood_from_many_places_leaves_a_bounded_number_of_rows_and_hides_no_others(database: Database) -> None:
    refusals = Refusals()
    for number in range(10_000):
        refused(refusals, 1, status=401, by=Acting(address=f"2001:db8::{number:x}"))
        refused(refusals, 1, status=403, by=Acting(f"user:{number}", number, "192.0.2.1"))
    refused(refusals, 2, status=403, by=Acting("user:7", 7, "192.0.2.7"), code="second_person")
    for second in range(0, 60, 2):
        await refusals.write(database.write, float(second))
    rows = await read(database, "SELECT action, object = 'others', sum(number), count(*) FROM audit_log GROUP BY 1, 2")
    assert sorted(rows) == [
        ("request.forbidden", False, MOST_KEYS + 2, MOST_KEYS + 1),
        ("request.forbidden", True, 10_000 - MOST_KEYS, 1),
        ("request.unauthenticated", False, MOST_KEYS, MOST_KEYS),
        ("request.unauthenticated", True, 10_000 - MOST_KEYS, 1),
    ]
    # After a minute of silence, nothing is remembered.
    await refusals.write(database.write, 60.0)
    assert not refusals.counted


async def test_refusals_that_cannot_be_written_are_written_later(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_events, "_PATIENCE", 0.2)
    async with api.database.engine.connect() as connection:
        await connection.execute(text("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE"))
        await api.get("/v1/users/me")
        await asyncio.sleep(2.5)
    assert [row[4] for row in await written(api, 1)] == [1]


async def test_the_audit_log_is_read_by_those_who_may(api: Api, operator: User) -> None:
    user, auditor = await make_user(api.database), await make_user(api.database, role=Role.auditor)
    assert (await api.post(f"/v1/accounts/{user.id}/close", by=operator)).status_code == 200
    assert (await api.post(f"/v1/accounts/{user.id}/reopen", by=operator)).status_code == 200
    for path in ("/v1/audit-log", "/v1/audit-log.csv", "/v1/audit-log.ndjson"):
        assert_problem(await api.get(path), 401, "unauthenticated")
        assert_problem(await api.get(path, by=user), 403, "forbidden")

    first = (await api.get("/v1/audit-log?filter=action:eq:account.closed", by=auditor)).json()
    (act,) = first["data"]
    assert act.keys() == set(EXPORTED)
    assert (act["actor"], act["user_id"], act["object"]) == (operator.actor, operator.id, await account(api, user))
    page = (await api.get(f"/v1/audit-log?filter=actor:eq:{operator.actor}&limit=1", by=auditor)).json()
    rest = f"/v1/audit-log?filter=actor:eq:{operator.actor}&limit=1&cursor={page['next_cursor']}"
    actions = [page["data"][0]["action"], (await api.get(rest, by=auditor)).json()["data"][0]["action"]]
    assert actions == ["account.reopened", "account.closed"]
    assert_problem(await api.get("/v1/audit-log?filter=action:eq:nothing", by=auditor), 400, "bad_query")


async def test_an_export_has_every_act_and_is_recorded_itself(api: Api, operator: User) -> None:
    user = await make_user(api.database)
    for what in ("close", "reopen", "close"):
        wanted = f"/v1/accounts/{user.id}/{what}"
        assert (await api.post(wanted, by=operator)).status_code == 200
    reply = await api.get("/v1/audit-log.ndjson?filter=action:eq:account.closed", by=operator)
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert [(line["action"], line["actor"]) for line in lines] == [("account.closed", operator.actor)] * 2
    table = (await api.get("/v1/audit-log.csv", by=operator)).text.split("\r\n")
    assert table[0] == ",".join(EXPORTED)
    # The export has its own act as well.
    assert len(table) == 1 + 3 + 2 + 1
    exports = await acts(api, "action = 'audit_log.exported'")
    assert exports == [(operator.actor, "audit_log.exported", "audit-log")] * 2
    said = "SELECT details ->> 'filters' FROM audit_log WHERE action = 'audit_log.exported' ORDER BY id LIMIT 1"
    assert await api.scalar(said) == "action:eq:account.closed"
    before = len(exports)
    assert_problem(await api.get("/v1/audit-log.csv?filter=nothing:eq:1", by=operator), 400, "bad_query")
    assert len(await acts(api, "action = 'audit_log.exported'")) == before
