"""Bodies: what is refused before a handler sees it, and that groups read the others as FastAPI would."""

import json
import tracemalloc
from time import thread_time
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Message

from services.api import problems
from services.api.bodies import DEFAULT, MOST_FIELDS, BodyLimit, is_json, parse, read_body
from services.api.checked import CheckedRoute, Handle
from services.api.headers import Protection
from services.api.middleware import RequestMiddleware
from services.api.rate_classes import RateClass, rate_class
from services.api.refusals import Refusals
from services.api.request_times import RequestTimes
from services.api.rights import public
from services.credits.schemas import TransferCreate
from services.orders.schemas import OrderCreate

ORDER = {"items": [{"product_id": 7, "quantity": 2}], "reference": "A-1"}
TRANSFER = {"to_user_id": 7, "amount": "12.30", "note": "rent", "dry_run": False}
BODIES: dict[type[BaseModel], Any] = {OrderCreate: ORDER, TransferCreate: TRANSFER}
JSON = "application/json"


class Read(BaseModel):
    """What FastAPI and we read from one body: None if it was refused."""

    by_fastapi: BaseModel | None = None
    by_us: BaseModel | None = None
    status: int = 0
    said: bytes = b""


async def read(model: type[BaseModel], body: bytes, content_type: str | None = JSON) -> Read:
    """Send the body to a route that reads it in both ways."""
    both = Read()

    class BothWays(CheckedRoute):
        def handler(self, handle: Handle) -> Handle:
            async def read_before(request: Request) -> Response:
                both.by_us = await read_body(request, model)
                return await handle(request)

            return read_before

    async def take(wanted: Any) -> None:
        both.by_fastapi = wanted

    take.__annotations__["wanted"] = model
    app, router = FastAPI(), APIRouter(route_class=BothWays)
    problems.install(app)
    router.post("/", status_code=204)(public(rate_class(RateClass.internal)(take)))
    app.include_router(router)
    app.add_middleware(
        RequestMiddleware, limit=1_000_000, times=RequestTimes(), protection=Protection(), refusals=Refusals()
    )

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            both.status = message["status"]
        both.said += message.get("body", b"")

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
    }
    await app(scope, receive, send)
    return both


@pytest.mark.parametrize("model", BODIES)
@pytest.mark.parametrize(
    "content_type", [JSON, "application/json; charset=utf-8", "Application/JSON ;a=b", "application/vnd.shop+json"]
)
async def test_a_valid_body_is_read_as_fastapi_reads_it(model: type[BaseModel], content_type: str) -> None:
    both = await read(model, json.dumps(BODIES[model]).encode(), content_type)
    assert both.status == 204
    assert both.by_us is not None
    assert both.by_us == both.by_fastapi
    assert both.by_us.model_fields_set == both.by_fastapi.model_fields_set


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 499, 400),
        (b"[" * 100_000, 413),
        (b'{"items": ' + b"9" * 5000 + b"}", 400),
        (b'{"items": [{"product_id": 1.0, "quantity": 1}]}', 422),
        (b'{"items": [{"product_id": "1", "quantity": 1}]}', 422),
        (b'{"items": [{"product_id": 1, "quantity": NaN}]}', 400),
        (b'{"items": [{"product_id": 1e999, "quantity": 1}]}', 422),
        (b'{"items": [{"product_id": 1, "quantity": 1}], "reference": "\\u0000"}', 422),
        (b'{"items": [{"product_id": 1, "quantity": 1}], "reference": "\\ud800"}', 400),
        (b'{"items": [{"product_id": 1, "quantity": 1}], "total": "1.00"}', 422),
        (b'{"items": [{"product_id": 1, "quantity": 1}], "items": []}', 400),
        (json.dumps(ORDER).encode("utf-16"), 400),
        (json.dumps(ORDER).encode("utf-32"), 400),
    ],
)
async def test_a_body_that_fastapi_refuses_is_not_read(body: bytes, status: int) -> None:
    both = await read(OrderCreate, body)
    assert both.status == status, both.said
    assert both.by_fastapi is None
    assert both.by_us is None


@pytest.mark.parametrize(
    "content_type", [None, "", "?", "text/plain", "application/x-www-form-urlencoded", "application", "text/json"]
)
async def test_a_body_without_a_type_or_of_another_one_is_not_read(content_type: str | None) -> None:
    both = await read(OrderCreate, json.dumps(ORDER).encode(), content_type)
    assert (both.status, both.by_us, both.by_fastapi) == (415, None, None)


@given(content_type=st.lists(st.sampled_from(["application", "/", "json", "+json", ";", " ", "a", "A=b", ","])))
async def test_what_counts_as_json_counts_for_fastapi_too(content_type: list[str]) -> None:
    both = await read(OrderCreate, json.dumps(ORDER).encode(), "".join(content_type))
    assert both.status == (204 if is_json("".join(content_type)) else 415)


async def test_a_byte_order_mark_is_ignored() -> None:
    both = await read(OrderCreate, json.dumps(ORDER).encode("utf-8-sig"))
    assert both.by_us is not None
    assert both.by_us == both.by_fastapi


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just("1e3")
)


@given(model=st.sampled_from(list(BODIES)), data=st.data())
async def test_a_body_with_a_strange_value_is_read_as_fastapi_reads_it(
    model: type[BaseModel], data: st.DataObject
) -> None:
    body = json.loads(json.dumps(BODIES[model]))
    place = body["items"][0] if "items" in body and data.draw(st.booleans()) else body
    place[data.draw(st.sampled_from([*place, "other"]))] = data.draw(_VALUES)
    both = await read(model, json.dumps(body).encode())
    assert both.by_us == both.by_fastapi


# What is said about a body that is not JSON


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"amount": "1", "amount": "9"}', 'the key "amount" occurs twice in one object (line 1 column '),
        (b'{"items": [{"a": 1}, {"\\u0061": 1, "a": 2}]}', 'the key "a" occurs twice in one object'),
        (b'{"\\n": 1, "\\n": 2}', "occurs twice in one object"),
        (b"[" * 400 + b"]" * 400, "nested too deeply"),
        (b"NaN", "expected value at line 1 column 1"),
        (b"{} {}", "trailing characters at line 1 column 4"),
        (b'"\xff"', "invalid unicode code point at line 1 column 2"),
        (b"9" * 5000, "number out of range"),
    ],
    ids=lambda one: one.decode("latin-1")[:30] if isinstance(one, bytes) else "",
)
def test_a_body_that_is_not_json_is_refused_with_the_reason(body: bytes, said: str) -> None:
    with pytest.raises(HTTPException) as refused:
        parse(body, DEFAULT)
    assert refused.value.status_code == 400
    assert said in refused.value.detail


_CHARACTERS = st.characters(codec="utf-8")
"""Without surrogates, which stand for no character and are refused."""

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(_CHARACTERS),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(_CHARACTERS), inner),
)


@given(value=JSON_VALUES, escaped=st.booleans())
def test_any_json_is_read_as_it_was_meant(value: Any, escaped: bool) -> None:
    limit = BodyLimit(2**20, 10_000)
    assert parse(json.dumps(value, ensure_ascii=escaped).encode(), limit) == value


@given(value=JSON_VALUES)
def test_values_are_counted_whatever_the_texts_contain(value: Any) -> None:
    def size(one: Any) -> int:
        """Lists, objects, and the commas between what they have."""
        inside = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else None
        return 0 if inside is None else 1 + max(0, len(inside) - 1) + sum(map(size, inside))

    body, number = json.dumps(value).encode(), size(value)
    assert parse(body, BodyLimit(2**20, number)) == value
    if number:
        with pytest.raises(HTTPException) as refused:
            parse(body, BodyLimit(2**20, number - 1))
        assert refused.value.status_code == 413


@pytest.mark.parametrize("body", [{}, {"items": [{}]}, {"a": {"b": [[{}]]}}])
def test_an_object_with_too_many_fields_is_refused(body: dict[str, Any]) -> None:
    limit = BodyLimit(2**20, 10_000)

    def filled(one: Any, number: int) -> Any:
        if isinstance(one, list):
            return [filled(each, number) for each in one]
        return {name: filled(value, number) for name, value in one.items()} or dict.fromkeys(map(str, range(number)), 1)

    assert parse(json.dumps(filled(body, MOST_FIELDS)).encode(), limit) == filled(body, MOST_FIELDS)
    with pytest.raises(HTTPException) as refused:
        parse(json.dumps(filled(body, MOST_FIELDS + 1)).encode(), limit)
    assert (refused.value.status_code, refused.value.detail) == (413, "an object in the body has more than 500 fields")


def test_counting_ends_when_there_are_too_many() -> None:
    body = b"[" + b'"",' * 300_000 + b"1]"
    tracemalloc.start()
    try:
        with pytest.raises(HTTPException):
            parse(body, BodyLimit(2**20, 500))
        # Each of the texts would be an object of its own.
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b'\\"' * 500_000,
        b'"' + b"," * 1_000_000,
        b'",' * 500_000,
        b'"\\' * 500_000,
        b"\\" * 1_000_000,
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b",[{" * 300_000,
        b"{" + b",".join(b'"%d":1' % number for number in range(110_000)) + b"}",
    ],
    ids=lambda body: body[:12].decode(),
)
def test_counting_takes_time_in_proportion_to_the_body(body: bytes) -> None:
    def seconds(part: bytes) -> float:
        started = thread_time()
        with pytest.raises(HTTPException):
            parse(part, BodyLimit(2**20, 500))
        return thread_time() - started

    whole = min(seconds(body) for _ in range(3))
    # Ten times as long, not a hundred times. The floor keeps noise out.
    assert whole < 40 * max(0.001, min(seconds(body[: len(body) // 10]) for _ in range(3))), whole
