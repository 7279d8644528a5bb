"""Compares every reply that the application makes in this process with the OpenAPI document.

`tests/conftest.py` installs it for all tests: whatever a test is about, the reply to each of its requests has a status
that its operation lists, the headers and nothing else, a body that fits the schema, and in a problem a listed code.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import jsonschema_rs
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from services.api.headers import PROTECTIVE
from services.api.methods import allowed
from services.api.middleware import RequestMiddleware
from services.api.problems import MEDIA_TYPE
from services.api.request_times import route_path
from services.app import create_app
from services.console.errors import is_console
from services.settings import Environment, Settings

EVERYWHERE = {
    *PROTECTIVE,
    "strict-transport-security",
    "content-type",
    "content-length",
    "date",
    "server",
    "connection",
}
"""Headers that are not described for each operation."""

BODYLESS = (204, 304)
_LARGEST = 2 * 1024 * 1024
"""Bytes of a body beyond which it is not looked at."""


@cache
def document() -> dict[str, Any]:
    """The document of the application. The same for all settings."""
    return create_app(Settings(_env_file=None, environment=Environment.development)).openapi()


def resolved(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is described here, or in the component that this refers to."""
    if "$ref" not in described:
        return described
    _, _, kind, name = described["$ref"].split("/")
    found: Mapping[str, Any] = document()["components"][kind][name]
    return found


@cache
def validator(path: str, method: str, status: str, media_type: str) -> Any:
    """Of the body of this reply; None if nothing is said of it."""
    reply = resolved(document()["paths"][path][method]["responses"][status])
    schema = reply["content"][media_type].get("schema", {})
    return compiled(schema) if schema else None


@cache
def problem_validator() -> Any:
    return compiled({"$ref": "#/components/schemas/Problem"})


def compiled(schema: Mapping[str, Any]) -> Any:
    """A validator for a schema that refers to the document's components."""
    whole = {**schema, "components": {"schemas": document()["components"]["schemas"]}}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def differences(path: str, method: str, status: int, headers: Mapping[str, str], body: bytes | None) -> Iterator[str]:
    """What the document does not say of this reply, or says otherwise. `body` is None if it is not to be looked at."""
    operation = document()["paths"][path][method]
    if str(status) not in operation["responses"]:
        yield f"the status {status} is not documented"
        return
    reply = resolved(operation["responses"][str(status)])
    yield from _of_headers(reply.get("headers", {}), headers)
    media_type = headers.get("content-type", "").partition(";")[0]
    content = reply.get("content", {})
    if status in BODYLESS or (not content and not body):
        return
    if media_type not in content:
        yield f"the type {media_type!r} is not documented for {status}"
        return
    validate = validator(path, method, str(status), media_type)
    if body is not None and validate is not None and "json" in media_type and media_type != "application/x-ndjson":
        error = next(validate.iter_errors(json.loads(body)), None)
        if error is not None:
            yield f"the body of {status} does not fit: {error.message[:300]} at {list(error.instance_path)}"


def _of_headers(described: Mapping[str, Any], headers: Mapping[str, str]) -> Iterator[str]:
    known = {name.lower(): resolved(header) for name, header in described.items()}
    for name in headers.keys() - known.keys() - EVERYWHERE:
        yield f"the header {name} is not documented"
    for name, header in known.items():
        if name not in headers:
            if header.get("required"):
                yield f"the header {name} is missing"
        elif not _header_validator(json.dumps(header["schema"])).is_valid(headers[name]):
            yield f"the header {name} does not fit: {headers[name]}"


@cache
def _header_validator(schema: str) -> Any:
    return jsonschema_rs.Draft202012Validator(json.loads(schema), validate_formats=True)


class Comparison:
    """Notes where replies and the document differ."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.compared = 0

    def take(self) -> list[str]:
        """What has been noted since the last time."""
        taken, self.found = self.found, []
        return taken

    def compare(self, scope: Scope, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        method, path = scope["method"].lower(), self._path(scope)
        if method == "head":
            method, body = "get", None
        if path is None:
            if status in (404, 405):
                self._compare_unmatched(scope, status, headers, body)
            return
        self.compared += 1
        said = differences(path, method, status, headers, body)
        self.found += [f"{method.upper()} {path}: {difference}" for difference in said]

    def _path(self, scope: Scope) -> str | None:
        """The path of the operation in the document; None if it does not have it, such as a test's own route."""
        # Not that of a 405, whose path belongs to other methods.
        method = "get" if scope["method"] == "HEAD" else scope["method"].lower()
        path = re.sub(r":\w+\}", "}", route_path(scope))
        return path if method in document()["paths"].get(path, {}) else None

    def _compare_unmatched(self, scope: Scope, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        place = f"{scope['method']} {scope['path'][:100]}"
        if is_console(Request(scope)) and headers.get("content-type", "").startswith("text/html"):
            # Its errors are pages, unless it is turned off.
            return
        if headers.get("content-type") != MEDIA_TYPE:
            self.found.append(f"{place}: {status} is not a problem")
        elif body and not problem_validator().is_valid(json.loads(body)):
            self.found.append(f"{place}: the problem does not fit its schema")
        if status == 405 and headers.get("allow") != allowed(Request(scope)):
            self.found.append(f"{place}: Allow is {headers.get('allow')}")


COMPARISON = Comparison()


@contextmanager
def compared_replies() -> Iterator[None]:
    """Compare all replies of all applications in this process with the document, from here on."""
    handle = RequestMiddleware.__call__

    async def handle_and_compare(self: RequestMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await handle(self, scope, receive, send)
            return
        began: dict[str, Any] = {}
        body = bytearray()

        async def look(message: Message) -> None:
            if message["type"] == "http.response.start":
                began.update(message)
            elif message["type"] == "http.response.body" and len(body) <= _LARGEST:
                body.extend(message.get("body", b""))
            await send(message)

        try:
            await handle(self, scope, receive, look)
        finally:
            if began:
                headers = {name.decode().lower(): value.decode("latin-1") for name, value in began["headers"]}
                whole = len(body) == int(headers.get("content-length", -1)) and len(body) <= _LARGEST
                COMPARISON.compare(scope, began["status"], headers, bytes(body) if whole else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RequestMiddleware, "__call__", handle_and_compare)
        yield
