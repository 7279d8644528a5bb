"""The OpenAPI document is complete. That it is true is what `tests/documented.py` finds out, in every test."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from services.api.described import TAGS, Described, described_routes
from services.api.problems import MEDIA_TYPE, codes_of, responses
from services.api.rights import scope_of
from services.app import create_app
from services.errors import AccountClosed, Conflict, OtpRequired
from services.settings import Environment, Settings
from tests.documented import COMPARISON, compiled, differences, document, resolved
from tests.unit.test_problems import STATUSES

PINNED = Path(__file__).with_name("operations.txt")

OF_THE_EDGE = {
    "body_too_large": 413,
    "busy": 503,
    "internal_error": 500,
    "malformed_body": 400,
    "outcome_unknown": 503,
    "rate_limited": 429,
    "unavailable": 503,
    "unsupported_media_type": 415,
}
"""Codes that belong to no domain error, with their status."""


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(_env_file=None, environment=Environment.development))


@pytest.fixture(scope="module")
def described(app: FastAPI) -> list[Described]:
    return described_routes(app, app.openapi())


def test_operations_keep_their_ids() -> None:
    """Generated clients name their methods after these ids. `WRITE_OPERATIONS=1` writes the list; read the diff."""
    lines = [
        f"{operation['operationId']} {method.upper()} {path}"
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    ]
    if os.environ.get("WRITE_OPERATIONS"):
        PINNED.write_text("\n".join(sorted(lines)) + "\n")
    assert sorted(lines) == PINNED.read_text().splitlines()
    assert len({line.partition(" ")[0] for line in lines}) == len(lines)


def test_each_operation_has_a_tag_and_each_tag_a_description(described: list[Described]) -> None:
    shown = {tag["name"]: tag["description"] for tag in document()["tags"]}
    assert shown == TAGS
    assert all(TAGS.values())
    assert {tag for one in described for tag in one.operation["tags"]} == set(TAGS)


def test_each_code_of_the_document_is_one_of_its_status(described: list[Described]) -> None:
    known = STATUSES | OF_THE_EDGE
    found = set()
    for one in described:
        for status, reply in one.operation["responses"].items():
            if status >= "4" and MEDIA_TYPE in reply["content"]:
                codes = codes_of(reply)
                assert codes, f"{one.operation['operationId']} {status} lists no codes"
                assert {known[code] for code in codes} == {int(status)}, f"{one.operation['operationId']} {status}"
                found |= codes
    # A batch answers with `linked_failed` for its items only.
    assert set(known) - found == {"linked_failed"}


def test_a_route_documents_the_code_of_an_error_that_it_names() -> None:
    documented = responses(409, AccountClosed, OtpRequired)
    assert documented.keys() == {409, 401}
    assert codes_of(documented[409]) == {Conflict.code, AccountClosed.code}
    assert codes_of(documented[401]) == {OtpRequired.code}


def test_what_must_be_sent_is_required(described: list[Described]) -> None:
    for one in described:
        headers = {header["name"]: header for header in one.operation.get("parameters", ()) if header["in"] == "header"}
        replies = one.operation["responses"]
        for name, status, code in (("Idempotency-Key", "400", "idempotency_key_invalid"), ("If-Match", "428", "")):
            if name in headers:
                assert not code or code in codes_of(replies[status])
        assert ("428" in replies) == ("If-Match" in headers)
        assert "If-Match" not in headers or headers["If-Match"]["required"]
    required = {
        one.operation["operationId"]
        for one in described
        for header in one.operation.get("parameters", ())
        if header["name"] == "Idempotency-Key" and header["required"]
    }
    assert {"place_order", "pay_order", "create_transfer", "create_hold", "create_top_up"} <= required
    assert not required & {"create_product", "fulfil_order"}


def test_limits_and_outages_are_documented_wherever_they_apply(described: list[Described]) -> None:
    for one in described:
        replies = one.operation["responses"]
        if one.operation["tags"] == ["health"]:
            assert "429" not in replies
            continue
        assert "rate_limited" in codes_of(replies["429"])
        assert codes_of(replies["503"]) >= {"unavailable", "busy", "overloaded", "outcome_unknown"}
        for status, reply in replies.items():
            assert {"RateLimit", "RateLimit-Policy", "X-Request-Id"} <= reply["headers"].keys()
            if status in ("429", "503"):
                assert resolved(reply["headers"]["Retry-After"])["required"]


def test_each_operation_names_who_may_call_it(described: list[Described]) -> None:
    for one in described:
        scope = scope_of(one.route.endpoint)
        if scope is not None:
            assert [scope.value] in [list(*way.values()) for way in one.operation["security"]]
            assert "unauthenticated" in codes_of(one.operation["responses"]["401"])
            assert "forbidden" in codes_of(one.operation["responses"]["403"])


def media(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for medium in operation.get("requestBody", {}).get("content", {}).values():
        yield "request", medium
    for status, reply in operation["responses"].items():
        for media_type, medium in reply.get("content", {}).items():
            if status < "4" and media_type == "application/json" and medium["schema"]:
                yield status, medium


def test_each_body_has_an_example_that_fits_its_schema(described: list[Described]) -> None:
    checked = 0
    for one in described:
        for what, medium in media(one.operation):
            place = f"{one.operation['operationId']} {what}"
            assert "example" in medium, place
            errors = [
                f"{error.message} at {error.instance_path}"
                for error in compiled(medium["schema"]).iter_errors(medium["example"])
            ]
            assert not errors, f"{place}: {errors}"
            checked += 1
    assert checked > 120


def test_the_application_accepts_the_examples_of_requests(described: list[Described]) -> None:
    accepted = 0
    for one in described:
        field = one.route.body_field
        if field is None:
            continue
        [medium] = one.operation["requestBody"]["content"].values()
        _, errors = field.validate(medium["example"], {}, loc=("body",))
        assert not errors, f"{one.operation['operationId']}: {errors}"
        assert medium["example"], f"{one.operation['operationId']} has an empty example"
        accepted += 1
    assert accepted > 35


ORDER = ("/v1/orders", "post", 409)
HEADERS = {"content-type": MEDIA_TYPE, "x-request-id": "r1"}


def body(**changed: Any) -> bytes:
    problem = {"title": "Conflict", "status": 409, "code": "account_closed", "detail": "closed", "errors": []}
    return json.dumps(problem | changed).encode()


def test_a_reply_that_is_documented_is_found_in_order() -> None:
    assert list(differences(*ORDER, HEADERS, body())) == []


@pytest.mark.parametrize(
    ("status", "headers", "content", "said"),
    [
        (418, {}, body(), "the status 418 is not documented"),
        (409, {"x-secret": "1"}, body(), "the header x-secret is not documented"),
        (409, {"retry-after": "soon"}, body(), "the header retry-after does not fit"),
        (409, {"content-type": "application/json"}, body(), "the type 'application/json' is not documented"),
        (409, {}, body(code="transfer_expired"), "the body of 409 does not fit"),
        (409, {}, body(detail=None), "the body of 409 does not fit"),
        (503, {}, body(status=503, code="busy"), "the header retry-after is missing"),
        (201, {}, None, "the header location is missing"),
    ],
)
def test_a_reply_that_is_not_documented_is_found(
    status: int, headers: dict[str, str], content: bytes | None, said: str
) -> None:
    found = list(differences("/v1/orders", "post", status, HEADERS | headers, content))
    assert any(one.startswith(said) for one in found), found


async def test_every_reply_of_an_application_in_a_test_is_compared(app: FastAPI) -> None:
    before = COMPARISON.compared
    async with AsyncClient(transport=ASGITransport(app), base_url="http://api.test") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert COMPARISON.compared == before + 1
        assert COMPARISON.take() == []
        document_of_health = document()["paths"]["/healthz"]["get"]["responses"]
        kept = document_of_health.pop("200")
        try:
            await client.get("/healthz")
        finally:
            document_of_health["200"] = kept
    assert COMPARISON.take() == ["GET /healthz: the status 200 is not documented"]
