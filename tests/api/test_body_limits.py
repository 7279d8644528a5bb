"""Each route reads no more of a body than it has a use for, in bytes and in values, and only of its own type."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from services.api.bodies import AS_MUCH_AS_ANY, DEFAULT, KIB, BodyLimit, limit_of
from services.api.checked import FORM, JSON, CheckedRoute
from services.settings import Settings
from tests.api.client import FRESH, Api, assert_problem
from tests.factories import make_admin, make_operator, make_user

LARGER = {
    "POST /v1/products": BodyLimit(128 * KIB, 500),
    "PATCH /v1/products/{product_id}": BodyLimit(128 * KIB, 500),
    "POST /v1/orders": BodyLimit(128 * KIB, 5000),
    "POST /v1/orders/{order_id}/refunds": BodyLimit(128 * KIB, 5000),
    # It may have a cursor.
    "POST /v1/operations/orders/search": BodyLimit(32 * KIB, DEFAULT.values),
    "POST /v1/transfers/batch": BodyLimit(AS_MUCH_AS_ANY, 5000),
    "PUT /v1/products": BodyLimit(AS_MUCH_AS_ANY, 10_000),
}
"""What a route accepts, if that is more than `DEFAULT`."""

LONGEST_CHARACTER = "\U0001f600"
"""12 bytes of JSON if it is escaped."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_body_bytes": 300 * KIB})


OF_ADMINS = "DELETE /v1/users/{user_id}/personal-data"
"""The only one of these routes that operators may not call."""


def routes_of(api: Api) -> dict[str, APIRoute]:
    """All routes of ours, each as its method and path."""
    found: dict[str, APIRoute] = {}
    for context in iter_route_contexts(api.app.routes):
        if isinstance(context.original_route, APIRoute):
            found |= {f"{method} {context.path}": context.original_route for method in context.methods or ()}
    return found


def with_body(api: Api, below: str = "/v1/") -> dict[str, APIRoute]:
    """The routes whose paths begin with this, and that take a body."""
    found = routes_of(api)
    return {name: found[name] for name in found if f" {below}" in name and found[name].body_field is not None}


def target(name: str) -> tuple[str, str]:
    """The method, and the path with some value for each parameter."""
    method, path = name.split()
    path = re.sub(r"\{(order|transfer|event)_id\}", str(uuid4()), path.replace("{event_type}", "order.placed"))
    return method, re.sub(r"\{\w+\}", "1", path)


async def send(api: Api, name: str, content: Any, content_type: str | None = None, **more: Any) -> Any:
    method, path = target(name)
    headers = {"Content-Type": content_type or (FORM if name == "POST /v1/token" else JSON)}
    return await api.request(method, path, content=content, headers=headers, key=FRESH, version=1, **more)


def test_every_route_checks_its_requests(api: Api) -> None:
    routes = routes_of(api)
    assert [name for name, route in routes.items() if not isinstance(route, CheckedRoute)] == []
    assert len(routes) > 60


def test_the_limit_of_every_body_is_known_here(api: Api) -> None:
    limits = {name: limit_of(route.endpoint) for name, route in with_body(api, "/").items()}
    assert {name: limit for name, limit in limits.items() if limit != DEFAULT} == LARGER
    assert len(limits) > 25


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_is_read_up_to_the_limit_of_its_route(api: Api, announced: bool) -> None:
    operator = await make_operator(api.database)
    for name in with_body(api):
        size = min(LARGER.get(name, DEFAULT).size, api.settings.max_body_bytes)
        for beyond in (0, 1):
            taken = 0

            async def pieces(size: int) -> AsyncIterator[bytes]:
                nonlocal taken
                for start in range(0, size, 1024):
                    taken = start
                    yield b" " * min(1024, size - start)
                # What is never asked for.
                for start in range(size, 2**20, 1024):
                    taken = start
                    yield b" " * 1024

            content: Any = b" " * (size + beyond) if announced else pieces(size + 1)
            if not announced and not beyond:
                continue
            reply = await send(api, name, content, by=operator)
            if beyond:
                problem = assert_problem(reply, 413, "body_too_large")
                assert problem["detail"] == f"the body is larger than {size} bytes"
                assert taken <= size
            else:
                assert reply.status_code in (400, 401, 422), f"{name}: {reply.text}"


async def test_a_body_is_refused_if_it_has_more_values_than_its_route_has_a_use_for(api: Api) -> None:
    operator, admin = await make_operator(api.database), await make_admin(api.database)
    for name in with_body(api):
        by = admin if name == OF_ADMINS else operator
        most = LARGER.get(name, DEFAULT).values
        if name == "POST /v1/token":
            fits, exceeds = b"&".join([b"a=1"] * most), b"&".join([b"a=1"] * (most + 1))
        else:
            fits, exceeds = json.dumps([1] * most).encode(), json.dumps([1] * (most + 1)).encode()
        assert_problem(await send(api, name, exceeds, by=by), 413, "body_too_large")
        assert (await send(api, name, fits, by=by)).status_code in (400, 401, 422)


def longest(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A value of this schema with every field, each as long as it may be."""
    if "$ref" in schema:
        return longest(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    for options in (schema.get("anyOf"), schema.get("allOf")):
        if options:
            return max((longest(one, document) for one in options), key=lambda value: len(json.dumps(value)))
    match schema.get("type"):
        case "object":
            return {name: longest(one, document) for name, one in schema["properties"].items()}
        case "array":
            return [longest(schema["items"], document)] * schema["maxItems"]
        case "string" if "enum" in schema:
            return max(schema["enum"], key=len)
        case "string":
            # Formats and patterns allow no more than this.
            return LONGEST_CHARACTER * schema.get("maxLength", 20)
        case "integer" | "number":
            return schema.get("maximum", 2**63)
    return None


def test_the_longest_body_that_is_described_fits_the_limit_of_its_route(api: Api) -> None:
    document = api.app.openapi()
    for name in with_body(api):
        method, path = name.split()
        content = document["paths"][path][method.lower()]["requestBody"]["content"]
        if JSON not in content:
            continue
        value = longest(content[JSON]["schema"], document)
        limit = LARGER.get(name, DEFAULT)
        assert len(json.dumps(value)) <= limit.size, name
        number = sum(json.dumps(value).count(character) for character in ",[{")
        assert number <= limit.values, name


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/xml", "multipart/form-data; boundary=x", "application/octet-stream", "?", " "],
)
async def test_a_body_of_another_type_is_refused_by_every_route_with_the_right_one(api: Api, content_type: str) -> None:
    operator = await make_operator(api.database)
    before = await api.everything()
    for name in with_body(api):
        wanted, other = (FORM, JSON) if name == "POST /v1/token" else (JSON, FORM)
        for kind in (content_type, other):
            reply = await send(api, name, b'{"name": "Lamps"}', kind, by=operator)
            problem = assert_problem(reply, 415, "unsupported_media_type")
            assert reply.headers["accept"] == wanted
            assert wanted in problem["detail"]
    assert await api.everything() == before


async def test_a_form_of_the_console_is_read_no_further_and_only_as_a_form(api: Api) -> None:
    await make_operator(api.database)
    before = await api.everything()
    names = with_body(api, "/console/")
    assert len(names) > 20
    for name in names:
        method, path = target(name)
        for content, kind, status in (
            (b"a=" + b"x" * DEFAULT.size, FORM, 413),
            (b"&".join([b"a=1"] * (DEFAULT.values + 1)), FORM, 413),
            (b'{"a": 1}', JSON, 415),
        ):
            reply = await api.client.request(method, path, content=content, headers={"Content-Type": kind})
            assert reply.status_code == status, f"{name}: {reply.text}"
            assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert await api.everything() == before


async def test_a_body_that_does_not_state_its_type_is_refused(api: Api) -> None:
    user = await make_user(api.database)
    reply = await api.post("/v1/transfers", by=user, content=b'{"to_user_id": 1, "amount": "1"}')
    assert "content-type" not in reply.request.headers
    problem = assert_problem(reply, 415, "unsupported_media_type")
    assert problem["detail"] == "the body must be application/json, but it has no Content-Type"


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"]
)
async def test_json_may_be_written_in_other_words(api: Api, kind: str) -> None:
    operator = await make_operator(api.database)
    reply = await send(api, "POST /v1/categories", json.dumps({"name": f"Lamps {kind}"}).encode(), kind, by=operator)
    assert reply.status_code == 201, reply.text


async def test_a_route_with_an_optional_body_needs_no_type_without_one(api: Api) -> None:
    user = await make_user(api.database)
    for kind in ({}, {"Content-Type": "text/plain"}):
        reply = await api.post(f"/v1/orders/{uuid4()}/cancel", by=user, headers=kind)
        assert_problem(reply, 404, "not_found")


async def test_a_key_that_occurs_twice_is_refused_with_its_name(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    before = await api.everything()
    body = b'{"to_user_id": %d, "amount": "1", "amount": "9"}' % receiver.id
    reply = await api.post("/v1/transfers", by=sender, content=body, headers={"Content-Type": JSON})
    problem = assert_problem(reply, 400, "malformed_body")
    assert 'the key "amount" occurs twice in one object' in problem["detail"]
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0


async def test_a_form_with_a_field_twice_is_refused_with_its_name(api: Api) -> None:
    form = b"username=a@b.example&password=one&password=two"
    reply = await api.client.post("/v1/token", content=form, headers={"Content-Type": FORM})
    assert assert_problem(reply, 400, "malformed_body")["detail"] == "the field 'password' is given more than once"


async def test_the_two_paths_of_a_request_refuse_a_body_with_the_same_bytes(api: Api) -> None:
    user = await make_user(api.database)
    bodies = [b"{", b'{"amount": 1, "amount": 2}', b"[" * 300, b"\xff", b"NaN", b" " * 20_000, b"[" * 600, b'{"x": 1}']
    for body in bodies:
        replies = []
        for are_open in (True, False):
            api.app.state.waybill.groups.are_open = are_open
            sent = {"Content-Type": JSON, "X-Request-Id": "r1"}
            reply = await api.post("/v1/transfers", by=user, content=body, headers=sent)
            headers = sorted((name, value) for name, value in reply.headers.raw if name != b"ratelimit")
            replies.append((reply.status_code, headers, reply.content))
        assert replies[0] == replies[1]
        assert 400 <= replies[0][0] < 500
