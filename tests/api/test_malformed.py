"""Malformed requests: whatever is sent, to whichever route, the answer is a 4xx problem."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.sessions import session_of
from tests.api.client import FRESH, Api, assert_problem
from tests.factories import make_admin, make_operator, make_product

JSON = {"Content-Type": "application/json"}

BODIES = {
    "nothing": b"",
    "broken": b'{"items": [',
    "no JSON": b"items=1",
    "two values": b"{} {}",
    "single quotes": b"{'items': []}",
    "a comment": b"{} // nothing",
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "NUL byte": b'{"name": "a\x00b"}',
    "escaped NUL": b'{"name": "a\\u0000b", "full_name": "\\u0000", "note": "\\u0000", "reason": "\\u0000"}',
    "NUL in a name": b'{"\\u0000": 1}',
    "lone surrogate": b'{"name": "\\ud800", "full_name": "\\udfff", "note": "\\ud800", "reason": "\\ud800"}',
    "lone surrogate in a name": b'{"\\ud800": 1}',
    "NaN": b'{"amount": NaN, "price": NaN, "change": NaN, "reason": NaN}',
    "infinity": b'{"amount": Infinity, "price": -Infinity, "change": Infinity, "reason": Infinity}',
    "huge integer": b'{"amount": ' + b"9" * 5000 + b', "change": ' + b"9" * 5000 + b"}",
    "integer beyond 64 bits": b'{"amount": 18446744073709551616, "change": 18446744073709551616, "reason": 1}',
    "huge exponent": b'{"amount": 1e999999, "price": 1e999999, "change": 1e999999, "reason": 1e999999}',
    "deeply nested lists": b"[" * 400 + b"]" * 400,
    "deeply nested objects": b'{"a":' * 400 + b"1" + b"}" * 400,
    "lists without an end": b"[" * 10_000,
    "a key twice": b'{"name": "a", "name": "b"}',
    "unknown field": b'{"is_admin": true}',
    "prototype": b'{"__proto__": {"role": "operator"}, "__class__": "User"}',
}

OF_ADMINS = "/v1/users/1/personal-data"
"""The only one of these routes that operators may not call."""

WITH_BODY = [
    ("POST", "/v1/users"),
    ("POST", "/v1/password-resets"),
    ("POST", "/v1/password-resets/confirm"),
    ("POST", "/v1/email-verifications/confirm"),
    ("PATCH", "/v1/users/me"),
    ("DELETE", "/v1/users/me"),
    ("DELETE", "/v1/users/me/personal-data"),
    ("DELETE", OF_ADMINS),
    ("POST", "/v1/users/me/totp"),
    ("POST", "/v1/users/me/totp/confirm"),
    ("POST", "/v1/users/me/totp/recovery-codes"),
    ("DELETE", "/v1/users/me/totp"),
    ("PATCH", "/v1/users/1"),
    ("POST", "/v1/api-keys"),
    ("POST", "/v1/api-keys/current/rotate"),
    ("POST", f"/v1/api-keys/{uuid4()}/rotate"),
    ("POST", "/v1/categories"),
    ("PATCH", "/v1/categories/1"),
    ("POST", "/v1/products"),
    ("PUT", "/v1/products"),
    ("PATCH", "/v1/products/1"),
    ("POST", "/v1/products/1/stock"),
    ("POST", "/v1/orders"),
    ("POST", f"/v1/orders/{uuid4()}/cancel"),
    ("POST", f"/v1/orders/{uuid4()}/refunds"),
    ("POST", "/v1/top-ups"),
    ("POST", "/v1/transfers"),
    ("POST", "/v1/transfers/batch"),
    ("POST", "/v1/holds"),
    ("POST", f"/v1/transfers/{uuid4()}/post"),
    ("POST", f"/v1/transfers/{uuid4()}/reverse"),
    ("POST", "/v1/adjustments"),
    ("POST", "/v1/operations/replay"),
    ("POST", "/v1/operations/discard"),
    ("POST", "/v1/operations/orders/search"),
    ("POST", "/v1/operations/consumers/orders-by-day/reset"),
    ("POST", "/v1/operations/types/order.placed/limit"),
    ("POST", "/v1/operations/bulk-actions"),
]
BODY_IS_OPTIONAL = ("/cancel", "/post", "/current/rotate")

WITH_A_REASON = {
    ("POST", "/v1/operations/types/{event_type}/pause"),
    ("POST", "/v1/operations/types/{event_type}/resume"),
    ("POST", "/v1/operations/deferred/{event_id}/cancel"),
    ("POST", "/v1/operations/waiting/{position}/retry-now"),
    ("POST", "/v1/operations/waiting/{position}/bury"),
    ("POST", "/v1/operations/waiting/{position}/discard"),
    ("POST", "/v1/operations/bulk-actions/{action_id}/cancel"),
    ("POST", "/v1/operations/workers/{worker_id}/quiet"),
    ("POST", "/v1/operations/workers/{worker_id}/resume"),
    ("POST", "/v1/operations/workers/{worker_id}/stop"),
    ("POST", "/v1/operations/consumers/{consumer}/pause"),
    ("POST", "/v1/operations/consumers/{consumer}/resume"),
    ("POST", "/v1/operations/jobs/{job}/run"),
    ("POST", "/v1/operations/jobs/{job}/pause"),
    ("POST", "/v1/operations/jobs/{job}/resume"),
}
"""An empty object is enough there: `test_outbox_control.py` and `test_bulk_actions.py` try them."""


def routes_with_body(api: Api) -> set[tuple[str, str]]:
    paths: dict[str, Any] = api.app.openapi()["paths"]
    return {
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }


async def test_every_route_that_takes_a_body_is_tried_here(api: Api) -> None:
    found = {
        (
            method,
            re.sub(r"\{(user|category|product)_id\}", "1", path)
            .replace("{event_type}", "order.placed")
            .replace("{consumer}/reset", "orders-by-day/reset"),
        )
        for method, path in routes_with_body(api)
    }
    listed = {(method, re.sub("[0-9a-f-]{36}", "ID", path)) for method, path in WITH_BODY}
    known = found - {(method, path.replace("{event_type}", "order.placed")) for method, path in WITH_A_REASON}
    assert listed == {(method, re.sub(r"\{(order|transfer|key)_id\}", "ID", path)) for method, path in known}


@pytest.mark.parametrize("name", BODIES)
async def test_a_malformed_body_is_refused_by_every_route(api: Api, name: str) -> None:
    operator = await make_operator(api.database)
    admin = await make_admin(api.database)
    await make_product(api.database, seller=operator)
    before = await api.everything()

    for method, path in WITH_BODY:
        by = admin if path == OF_ADMINS else operator
        reply = await api.request(method, path, by=by, key=FRESH, version=1, content=BODIES[name], headers=JSON)
        optional = path.endswith(BODY_IS_OPTIONAL) and name == "nothing"
        expected = {404} if optional else {400, 413, 422}
        assert reply.status_code in expected, f"{method} {path}: {reply.status_code} {reply.text}"
        problem = assert_problem(reply, reply.status_code, reply.json()["code"])
        assert optional or reply.status_code in (400, 413) or problem["errors"], f"{method} {path}: {problem}"
    assert await api.everything() == before


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_the_limit_is_refused_by_every_route(api: Api, announced: bool) -> None:
    operator = await make_operator(api.database)
    admin = await make_admin(api.database)
    before = await api.everything()
    size = api.settings.max_body_bytes + 1

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(0, size, 65_536):
            yield b" " * 65_536

    for method, path in [*WITH_BODY, ("POST", "/v1/token"), ("POST", f"/v1/orders/{uuid4()}/fulfil")]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if path == "/v1/token" else JSON
        content: Any = b" " * size if announced else pieces()
        by = admin if path == OF_ADMINS else operator
        reply = await api.request(method, path, by=by, key=FRESH, version=1, content=content, headers=headers)
        assert_problem(reply, 413, "body_too_large")
    assert await api.everything() == before


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"username=a@b.example",
        b"password=x",
        b"username=%00&password=x",
        b"username=a%00@b.example&password=x",
        b"username=a@b.example&password=%00",
        b"username=%ff%fe&password=%ff",
        b"username=\xff&password=\xfe",
        b"username=%ed%a0%80&password=x",
        b"username=a&username=b&password=x",
        b"username=" + b"x" * 100_000 + b"&password=x",
        b"grant_type=refresh&username=a&password=x",
        b"&&&===",
    ],
    ids=lambda form: form[:40].decode("latin-1").replace("\x00", "0") or "nothing",
)
async def test_a_malformed_sign_in_form_is_refused(api: Api, form: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await api.client.post("/v1/token", content=form, headers=headers)
    assert reply.status_code in (400, 401, 413, 422), reply.text
    assert_problem(reply, reply.status_code, reply.json()["code"])


IDS = {
    "/v1/users/{}": "path/user_id",
    "/v1/products/{}": "path/product_id",
    "/v1/categories/{}": "path/category_id",
    "/v1/orders/{}": "path/order_id",
}
ODD_VALUES = ["0", "-1", "1.5", "x", "%00", "1%00", "%ff", "%ed%a0%80", str(2**63), "9" * 5000, "%2e%2e", "1%2F2", "💡"]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: value[:20])
async def test_an_invalid_id_in_the_path_is_refused(api: Api, value: str) -> None:
    operator = await make_operator(api.database)
    for path, pointer in IDS.items():
        reply = await api.get(path.format(value), by=operator)
        if value in ("%2e%2e", "1%2F2"):
            assert_problem(reply, reply.status_code, "not_found" if reply.status_code == 404 else "invalid_input")
        else:
            assert_problem(reply, 422, "invalid_input", pointers=[pointer])


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: value[:20])
@pytest.mark.parametrize(
    "path",
    [
        "/v1/orders/{}/pay",
        "/v1/orders/{}/cancel",
        "/v1/orders/{}/fulfil",
        "/v1/users/{}/restore",
    ],
)
async def test_an_invalid_id_is_refused_even_with_an_idempotency_key(api: Api, path: str, value: str) -> None:
    operator = await make_operator(api.database)
    reply = await api.post(path.format(value), by=operator)
    assert reply.status_code in (404, 422), f"{reply.status_code} {reply.text}"
    problem = assert_problem(reply, reply.status_code, reply.json()["code"])
    assert reply.status_code == 404 or problem["errors"], problem


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=201",
        "limit=x",
        "limit=1.5",
        f"limit={2**64}",
        "limit=",
        "limit=%00",
        "cursor=" + "x" * 2201,
        "sort=" + "x" * 65,
        "&".join(["filter=id:eq:1"] * 21),
    ],
    ids=lambda query: query[:20],
)
@pytest.mark.parametrize("path", ["/v1/products", "/v1/orders", "/v1/users", "/v1/accounts/me/statement"])
async def test_an_invalid_page_is_refused(api: Api, path: str, query: str) -> None:
    operator = await make_operator(api.database)
    reply = await api.get(f"{path}?{query}", by=operator)
    assert_problem(reply, 422, "invalid_input", pointers=[f"query/{query.partition('=')[0]}"])


@pytest.mark.parametrize("word", ["x", "y" * 101, "%00%00", "a%00b", ""], ids=lambda word: word[:10])
async def test_an_invalid_search_is_refused(api: Api, word: str) -> None:
    reply = await api.get(f"/v1/products?q={word}")
    assert_problem(reply, 422, "invalid_input", pointers=["query/q"])


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1", "/v1/orders/", "/v1/orders/%00/x", "//", "/v1/../etc"])
async def test_an_unknown_path_is_answered_with_a_problem(api: Api, path: str) -> None:
    assert_problem(await api.client.request("GET", f"http://api.test{path}"), 404, "not_found")


async def test_an_unsupported_method_is_refused_with_the_supported_ones(api: Api) -> None:
    reply = await api.request("PUT", "/v1/orders")
    assert_problem(reply, 405, "method_not_allowed")
    assert reply.headers["allow"]


async def test_odd_headers_do_no_harm(api: Api) -> None:
    operator = await make_operator(api.database)
    for name in ("Authorization", "Idempotency-Key", "If-Match", "X-Request-Id", "traceparent", "Accept"):
        for value in (b"", b"\xff\xfe", b"a" * 10_000, b"%00", b"{}", b"Bearer", b"Bearer  ", b"Bearer \xff.\xff.\xff"):
            token = f"Bearer {api.tokens.make(session_of(operator.id))}".encode()
            headers = [(b"Authorization", token), (name.encode(), value)]
            headers = headers[1:] if name == "Authorization" else headers
            reply = await api.client.patch("/v1/users/me", json={}, headers=headers)
            assert reply.status_code in (401, 422, 428), f"{name}: {value[:20]!r}: {reply.status_code}"
            assert_problem(reply, reply.status_code, reply.json()["code"])


async def test_a_client_that_leaves_before_its_request_is_complete_leaves_nothing(api: Api) -> None:
    buyer, _, _ = await api.shop()
    before = await api.everything()
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": b'{"items"', "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    token = api.tokens.make(session_of(buyer.id))
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"idempotency-key", b"gone")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/orders",
        "raw_path": b"/v1/orders",
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("api.test", 80),
    }
    async with asyncio.timeout(5):
        await api.app(scope, receive, send)

    assert all(message["status"] < 500 for message in sent if message["type"] == "http.response.start"), sent
    assert await api.everything() == before


async def test_every_route_asks_for_a_token_unless_it_is_open_to_all(api: Api) -> None:
    open_to_all = {
        ("POST", "/v1/token"),
        ("POST", "/v1/users"),
        ("POST", "/v1/password-resets"),
        ("POST", "/v1/password-resets/confirm"),
        ("POST", "/v1/email-verifications/confirm"),
        ("GET", "/v1/categories"),
        ("GET", "/v1/categories/{category_id}"),
        ("GET", "/v1/products"),
        ("GET", "/v1/products/{product_id}"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        # Outside development it requires its own token (test_metrics.py).
        ("GET", "/metrics"),
        ("GET", "/internal/scaling"),
    }
    asked = set()
    paths: dict[str, Any] = api.app.openapi()["paths"]
    for path, operations in paths.items():
        for method in operations:
            if (method.upper(), path) in open_to_all:
                continue
            target = path.replace("{order_id}", str(uuid4())).replace("{position}", "1")
            target = target.replace("{user_id}", "1").replace("{product_id}", "1")
            body: dict[str, Any] = {"json": {}} if "requestBody" in operations[method] else {}
            reply = await api.request(method.upper(), target, key=FRESH, version=1, **body)
            assert_problem(reply, 401, "unauthenticated")
            asked.add((method, path))
    assert len(asked) > 15
