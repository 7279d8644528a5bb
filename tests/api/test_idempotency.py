"""The same idempotency key takes effect once; its outcome is replayed."""

import asyncio
from collections import Counter
from uuid import uuid4

import pytest
from httpx2 import Response

from benchmarks.sessions import session_of
from services.idempotency.repository import Free, RequestKey
from services.unit_of_work import UnitOfWork
from services.users.rights import Role
from tests.api.client import FRESH, Api, assert_problem, order_of
from tests.conftest import BOTH_PATHS
from tests.factories import make_operator, make_user

pytestmark = BOTH_PATHS

KEPT = ("content-type", "location", "etag")


async def test_a_repeated_request_gets_the_first_answer(api: Api) -> None:
    buyer, _, product = await api.shop()
    body = order_of((product, 2))
    first = await api.post("/v1/orders", by=buyer, key="k-1", json=body)
    before = await api.everything()

    again = await api.post("/v1/orders", by=buyer, key="k-1", json=body)

    assert first.status_code == again.status_code == 201
    assert again.content == first.content
    assert {name: again.headers[name] for name in KEPT} == {name: first.headers[name] for name in KEPT}
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert await api.everything() == before


async def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    buyer, _, product = await api.shop()
    first = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 1)))
    before = await api.everything()

    reply = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 2)))

    assert_problem(reply, 422, "idempotency_key_reused")
    assert await api.everything() == before
    again = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 1)))
    assert again.content == first.content, "the refusal did not take the stored reply's place"


async def test_a_key_belongs_to_one_caller_one_method_and_one_path(api: Api) -> None:
    buyer, _, product = await api.shop()
    other = await make_user(api.database, credits="100")
    first = await api.place(buyer, (product, 1))
    second = await api.place(buyer, (product, 1))
    body = order_of((product, 1))

    replies = [
        await api.post("/v1/orders", by=buyer, key="k-1", json=body),
        await api.post("/v1/orders", by=other, key="k-1", json=body),
        await api.post(f"/v1/orders/{first['id']}/cancel", by=buyer, key="k-1"),
        await api.post(f"/v1/orders/{second['id']}/cancel", by=buyer, key="k-1"),
    ]

    assert [reply.status_code for reply in replies] == [201, 201, 200, 200]
    assert not any("idempotency-replayed" in reply.headers for reply in replies)


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/top-ups", "/v1/transfers", "/v1/transfers/batch"])
async def test_requests_that_move_credits_need_a_key(api: Api, path: str) -> None:
    operator = await make_operator(api.database)
    reply = await api.post(path, by=operator, key=None, json={})
    # The body is wrong too: the key comes first.
    assert_problem(reply, 400, "idempotency_key_invalid")


@pytest.mark.parametrize("move", ["pay", "cancel"])
async def test_order_actions_that_move_credits_need_a_key(api: Api, move: str) -> None:
    buyer, _, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    reply = await api.post(f"/v1/orders/{placed['id']}/{move}", by=buyer, key=None)
    assert_problem(reply, 400, "idempotency_key_invalid")


ANONYMOUS = {
    "/v1/token",
    "/v1/users",
    "/v1/password-resets",
    "/v1/password-resets/confirm",
    "/v1/email-verifications/confirm",
}
"""No user is signed in here; docs/decisions/ says why these take no key."""

SECRET = {
    "/v1/api-keys",
    "/v1/api-keys/{key_id}/rotate",
    "/v1/api-keys/current/rotate",
    "/v1/users/me/totp",
    "/v1/users/me/totp/confirm",
    "/v1/users/me/totp/recovery-codes",
}
"""Their replies contain secrets, which must not be stored."""

READS = {"/v1/operations/orders/search"}
"""They change nothing: they are a POST so that no address has personal data."""

FOR_ADMINS = "/v1/role-requests/"


async def test_every_post_takes_a_key_and_those_that_move_credits_require_it(api: Api) -> None:
    operator, admin = await make_operator(api.database), await make_user(api.database, role=Role.admin)
    document = (await api.get("/openapi.json")).json()
    paths = {path for path, operations in document["paths"].items() if "post" in operations}
    takes: set[str] = set()
    requires: set[str] = set()
    for path in paths:
        # An id that does not exist: whatever else is wrong, the key is checked first.
        target = path
        for parameter in document["paths"][path]["post"].get("parameters", []):
            if parameter["in"] == "path":
                value = str(uuid4()) if parameter["schema"].get("format") == "uuid" else "987654321"
                target = target.replace(f"{{{parameter['name']}}}", value)
        for found, key in ((takes, "not a key"), (requires, None)):
            by = admin if path.startswith(FOR_ADMINS) else operator
            reply = await api.post(target, by=by, key=key, json={})
            if reply.status_code == 400 and reply.json()["code"] == "idempotency_key_invalid":
                found.add(path)

    assert paths - takes == ANONYMOUS | SECRET | READS
    assert requires >= {
        "/v1/orders",
        "/v1/orders/{order_id}/pay",
        "/v1/orders/{order_id}/cancel",
        "/v1/top-ups",
        "/v1/transfers",
        "/v1/transfers/batch",
    }
    movers = ("transfers", "holds", "top-ups", "adjustments", "refund", "reverse")
    assert {path for path in paths if any(word in path for word in movers)} <= requires


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "schlüssel", "tab\there", "\x7f"], ids=repr)
async def test_a_malformed_key_is_refused(api: Api, key: str) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()
    headers = [
        (b"Authorization", f"Bearer {api.tokens.make(session_of(buyer.id))}".encode()),
        (b"Idempotency-Key", key.encode()),
    ]

    reply = await api.client.post("/v1/orders", headers=headers, json=order_of((product, 1)))

    assert_problem(reply, 400, "idempotency_key_invalid")
    assert await api.everything() == before


async def test_a_key_as_long_as_allowed_is_taken(api: Api) -> None:
    buyer, _, product = await api.shop()
    reply = await api.post("/v1/orders", by=buyer, key="~" * 255, json=order_of((product, 1)))
    assert reply.status_code == 201


async def test_a_refusal_is_replayed_even_when_it_would_succeed_now(api: Api) -> None:
    buyer, _, product = await api.shop(credits="0")
    body = order_of((product, 1), on_insufficient_credits="refuse")
    first = await api.post("/v1/orders", by=buyer, key="k-1", json=body)
    operator = await make_operator(api.database)
    await api.post("/v1/top-ups", by=operator, json={"user_id": buyer.id, "amount": "50.00"})

    again = await api.post("/v1/orders", by=buyer, key="k-1", json=body)

    assert first.status_code == again.status_code == 402
    assert again.content == first.content
    assert again.headers["content-type"] == "application/problem+json"
    assert again.headers["idempotency-replayed"] == "true"
    fresh = await api.post("/v1/orders", by=buyer, key=FRESH, json=body)
    assert fresh.status_code == 201


async def test_a_refusal_for_lack_of_permission_is_not_stored(api: Api) -> None:
    buyer, seller, product = await api.shop()
    await api.place(buyer, (product, 1))
    wanted = {"user_id": buyer.id, "amount": "5.00"}

    refused = await api.post("/v1/top-ups", by=seller, key="k-1", json=wanted)
    assert_problem(refused, 403, "forbidden")

    assert await api.scalar("SELECT count(*) FROM idempotency_keys WHERE key = 'k-1'") == 0


async def test_a_caller_who_lost_the_scope_gets_neither_a_new_reply_nor_the_stored_one(api: Api) -> None:
    """The scope is checked before the key is looked at: one with another body is not told that the key was used."""
    buyer, seller, product = await api.shop()
    transfer = {"to_user_id": seller.id, "amount": "1.00"}
    sent = (
        ("/v1/orders", "orders:write", order_of((product, 1)), order_of((product, 2))),
        ("/v1/transfers", "credits:write", transfer, transfer | {"note": "other"}),
    )
    for path, _, body, _ in sent:
        assert (await api.post(path, by=buyer, key="k-1", json=body)).status_code == 201
    await api.execute("UPDATE users SET role = 'auditor' WHERE id = :id", id=buyer.id)
    before = await api.everything()

    for path, scope, body, other in sent:
        for key, wanted in (("k-1", body), ("k-1", other), ("k-2", body)):
            refused = await api.post(path, by=buyer, key=key, json=wanted, headers={"X-Request-Id": "r"})
            problem = assert_problem(refused, 403, "forbidden")
            assert problem == {
                "type": "about:blank",
                "title": "Forbidden",
                "status": 403,
                "code": "forbidden",
                "detail": f"this needs the scope {scope}, which you do not have",
                "request_id": "r",
                "errors": [],
            }
            assert refused.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'
            assert "idempotency-replayed" not in refused.headers
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 2


@pytest.mark.parametrize(
    ("before", "now", "code"),
    [
        ("operator", "customer", "replay_forbidden"),
        ("operator", "seller", "replay_forbidden"),
        ("operator", "support", "replay_forbidden"),
        ("operator", "admin", "replay_forbidden"),
        ("operator", "auditor", "forbidden"),
        ("support", "customer", "replay_forbidden"),
        ("support", "admin", "replay_forbidden"),
        ("admin", "operator", "replay_forbidden"),
        ("admin", "customer", "replay_forbidden"),
        ("customer", "auditor", "forbidden"),
        ("seller", "customer", None),
        ("support", "operator", None),
        *(("customer", role, None) for role in ("seller", "support", "operator", "admin")),
    ],
)
async def test_a_reply_is_shown_to_roles_with_all_the_scopes_it_was_made_for(
    api: Api, before: str, now: str, code: str | None
) -> None:
    _, seller, _ = await api.shop()
    caller = await make_user(api.database, credits="10", role=Role(before))
    body = {"to_user_id": seller.id, "amount": "1.00"}
    first = await api.post("/v1/transfers", by=caller, key="k-1", json=body)
    assert first.status_code == 201
    await api.execute("UPDATE users SET role = :role WHERE id = :id", role=now, id=caller.id)
    again = await api.post("/v1/transfers", by=caller, key="k-1", json=body)
    if code is None:
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotency-replayed"] == "true"
    else:
        assert_problem(again, 403, code)
        assert "idempotency-replayed" not in again.headers
    assert await api.scalar("SELECT count(*) FROM transfers WHERE kind = 'transfer'") == 1


async def test_a_hundred_simultaneous_posts_with_one_key_take_effect_once(api: Api) -> None:
    buyer, _, product = await api.shop()
    body = order_of((product, 1))

    replies = await asyncio.gather(*[api.post("/v1/orders", by=buyer, key="k-1", json=body) for _ in range(100)])

    statuses = Counter(reply.status_code for reply in replies)
    assert set(statuses) <= {201, 409}, statuses
    assert len({reply.json()["id"] for reply in replies if reply.status_code == 201}) == 1
    assert sum("idempotency-replayed" not in reply.headers for reply in replies if reply.status_code == 201) == 1
    for reply in replies:
        if reply.status_code == 409:
            assert_problem(reply, 409, "request_in_flight")
    assert await api.scalar("SELECT count(*) FROM orders") == 1
    assert await api.scalar("SELECT count(*) FROM events WHERE type = 'order.placed'") == 1
    assert await api.scalar("SELECT held FROM accounts WHERE user_id = :id", id=buyer.id) == 10
    final = await api.post("/v1/orders", by=buyer, key="k-1", json=body)
    assert final.status_code == 201


async def test_a_hundred_simultaneous_transfers_with_one_key_take_effect_once(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="100"), await make_user(api.database)
    body = {"to_user_id": receiver.id, "amount": "1.00"}

    async def until_it_is_answered() -> Response:
        while True:
            reply = await api.post("/v1/transfers", by=sender, key="k-1", json=body)
            if reply.status_code != 409:
                return reply
            assert_problem(reply, 409, "request_in_flight")
            assert reply.headers["retry-after"] == "1"
            await asyncio.sleep(0.05)

    replies = await asyncio.gather(*[until_it_is_answered() for _ in range(100)])

    assert {reply.status_code for reply in replies} == {201}
    assert len({reply.content for reply in replies}) == 1
    assert sum("idempotency-replayed" not in reply.headers for reply in replies) == 1
    assert await api.scalar("SELECT count(*) FROM transfers WHERE kind = 'transfer'") == 1
    assert (await api.credits_of(receiver))[0] == 1
    await api.assert_books_balance()


async def test_a_hundred_simultaneous_refusals_with_one_key_are_one_refusal(api: Api) -> None:
    buyer, _, product = await api.shop(credits="0")
    body = order_of((product, 1), on_insufficient_credits="refuse")

    replies = await asyncio.gather(*[api.post("/v1/orders", by=buyer, key="k-1", json=body) for _ in range(100)])

    assert {reply.status_code for reply in replies} <= {402, 409}
    final = await api.post("/v1/orders", by=buyer, key="k-1", json=body)
    assert final.status_code == 402
    assert final.headers["idempotency-replayed"] == "true"
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 1


async def test_a_request_whose_duplicate_is_in_flight_is_told_to_retry(api: Api) -> None:
    buyer, _, product = await api.shop()
    twin = RequestKey(caller_id=buyer.id, method="POST", path="/v1/orders", key="k-1", fingerprint=b"")
    before = await api.everything()

    async with UnitOfWork(api.database.write) as elsewhere:
        assert isinstance(await elsewhere.idempotency.take(twin), Free)
        reply = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 1)))
        assert_problem(reply, 409, "request_in_flight")
        assert reply.headers["retry-after"] == "1"
        assert await api.everything() == before

    reply = await api.post("/v1/orders", by=buyer, key="k-1", json=order_of((product, 1)))
    assert reply.status_code == 201, "'in flight' is no outcome, so it is not stored"


async def test_an_optional_key_works_the_same(api: Api) -> None:
    operator = await make_operator(api.database)

    first = await api.post("/v1/categories", by=operator, key="k-1", json={"name": "Lamps"})
    again = await api.post("/v1/categories", by=operator, key="k-1", json={"name": "Lamps"})
    other = await api.post("/v1/categories", by=operator, key="k-1", json={"name": "Chairs"})
    without = await api.post("/v1/categories", by=operator, key=None, json={"name": "Lamps"})

    assert (first.status_code, again.status_code) == (201, 201)
    assert (again.content, again.headers["location"]) == (first.content, first.headers["location"])
    assert_problem(other, 422, "idempotency_key_reused")
    assert_problem(without, 409, "already_exists", pointers=["#/name"])


async def test_a_key_on_an_unknown_order_keeps_its_404(api: Api) -> None:
    buyer, _, _ = await api.shop()
    path = f"/v1/orders/{uuid4()}/cancel"
    first = await api.post(path, by=buyer, key="k-1")
    again = await api.post(path, by=buyer, key="k-1")
    assert (first.status_code, again.content) == (404, first.content)
