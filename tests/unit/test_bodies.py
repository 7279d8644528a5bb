"""Bodies that are read before FastAPI reads them are read as FastAPI would."""

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import Message

from services.api import problems
from services.api.bodies import read_body
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


async def read(model: type[BaseModel], body: bytes, content_type: str | None = JSON) -> Read:
    """Send the body to a route that reads it in both ways."""
    both = Read()
    app = FastAPI()
    problems.install(app)

    async def take(wanted: Any) -> None:
        both.by_fastapi = wanted

    take.__annotations__["wanted"] = model
    app.post("/", status_code=204)(take)

    @app.middleware("http")
    async def before(request: Request, call_next: Any) -> Any:
        both.by_us = await read_body(request, model)
        return await call_next(request)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            both.status = message["status"]

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
@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", "Application/JSON ;a=b"])
async def test_a_valid_body_is_read_as_fastapi_reads_it(model: type[BaseModel], content_type: str) -> None:
    both = await read(model, json.dumps(BODIES[model]).encode(), content_type)
    assert both.status == 204
    assert both.by_us is not None
    assert both.by_us == both.by_fastapi
    assert both.by_us.model_fields_set == both.by_fastapi.model_fields_set


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"items": ' + b"9" * 5000 + b"}",
        b'{"items": [{"product_id": 1.0, "quantity": 1}]}',
        b'{"items": [{"product_id": "1", "quantity": 1}]}',
        b'{"items": [{"product_id": 1, "quantity": NaN}]}',
        b'{"items": [{"product_id": 1, "quantity": 1}], "reference": "\\u0000"}',
        b'{"items": [{"product_id": 1, "quantity": 1}], "reference": "\\ud800"}',
        b'{"items": [{"product_id": 1, "quantity": 1}], "total": "1.00"}',
        b'{"items": [{"product_id": 1, "quantity": 1}], "items": []}',
    ],
)
async def test_a_body_that_fastapi_refuses_is_not_read(body: bytes) -> None:
    both = await read(OrderCreate, body)
    assert both.status in (400, 422)
    assert both.by_fastapi is None
    assert both.by_us is None


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application"])
async def test_a_body_without_a_label_or_with_a_wrong_one_is_not_read(content_type: str | None) -> None:
    both = await read(OrderCreate, json.dumps(ORDER).encode(), content_type)
    assert (both.status, both.by_us) == (422, None)


async def test_a_rare_label_is_left_to_fastapi() -> None:
    both = await read(OrderCreate, json.dumps(ORDER).encode(), "application/vnd.shop+json")
    assert (both.status, both.by_us) == (204, None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
async def test_every_encoding_that_fastapi_reads_is_read(encoding: str) -> None:
    both = await read(OrderCreate, json.dumps(ORDER).encode(encoding))
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
