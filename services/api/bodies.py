"""A request's body: how much of it is read, what type it must have, and what it says as JSON."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jiter
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

ModelT = TypeVar("ModelT", bound=BaseModel)
HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

KIB = 1024
AS_MUCH_AS_ANY = sys.maxsize
"""As many bytes as `WAYBILL_MAX_BODY_BYTES` allows."""

_LIMIT = "body_limit"
_BOM = b"\xef\xbb\xbf"
_REASONS = (
    (re.compile("Detected duplicate key (.*) at (line .*)", re.DOTALL), r"the key \1 occurs twice in one object (\2)"),
    (re.compile("recursion limit exceeded at .*"), "lists and objects are nested too deeply"),
    (
        re.compile("(?:lone leading surrogate in|unexpected end of) hex escape at (.*)"),
        r"a text contains half of a surrogate pair (\1)",
    ),
)
"""What the parser says, and what we say instead."""


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """The largest body of a route: its bytes, and the keys with their values, and elements of lists, in it.

    The second number bounds the work that a body makes: a short one can have a field, all of them wrong, every 6 bytes.
    """

    size: int
    values: int


MOST_FIELDS = 500
"""The most fields of one object. Each may be an unknown one, and thus a fault."""

DEFAULT = BodyLimit(16 * KIB, MOST_FIELDS)
"""Enough for a few texts of 200 characters, even if each character is written as an escaped surrogate pair."""


def body_limit(size: int, *, values: int = DEFAULT.values) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler: its body may be larger than `DEFAULT`. `WAYBILL_MAX_BODY_BYTES` limits all bodies."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _LIMIT, BodyLimit(size, values))
        return handler

    return mark


def limit_of(handler: Callable[..., Any]) -> BodyLimit:
    """The largest body that the handler's route accepts."""
    limit: BodyLimit = getattr(handler, _LIMIT, DEFAULT)
    return limit


async def read_whole(request: Request) -> bytes:
    """The whole body. Raises `HTTPException` if it is too large or the client disconnects before its end."""
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise HTTPException(400, "the connection was closed before the whole body arrived") from error


class JsonRequest(Request):
    """A request whose body has been parsed within its limits. FastAPI, which gets it, does not parse it again."""

    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


def is_json(content_type: str) -> bool:
    """Whether the type is JSON (`application/json`, `application/merge-patch+json`), with any parameters."""
    main, _, kind = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and (kind == "json" or (kind.endswith("+json") and "/" not in kind))


def parse(body: bytes, limit: BodyLimit) -> Any:
    """The body as JSON (RFC 8259, in UTF-8). Raises `HTTPException` if it is not, or has too many values.

    A key that occurs twice in an object is an error: programs that read the same text disagree about its value.
    """
    # Few bodies have so many of these characters, and need a second look without those in strings.
    if _begun(body) > limit.values and _begins_more_than(limit.values, body):
        raise too_many(limit)
    try:
        # Without a cache of strings, which would keep passwords in memory.
        parsed = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        if body.startswith(_BOM):
            return parse(body.removeprefix(_BOM), limit)
        raise HTTPException(400, f"the body is not valid JSON in UTF-8: {_reason(str(error))}") from error
    if limit.values > MOST_FIELDS and _has_large_object(parsed):
        raise HTTPException(413, f"an object in the body has more than {MOST_FIELDS} fields")
    return parsed


def too_many(limit: BodyLimit) -> HTTPException:
    """For a body with too many values."""
    return HTTPException(413, f"the body has more than {limit.values} fields and elements of lists")


def _begins_more_than(values: int, body: bytes) -> bool:
    """Whether more than this many values begin outside strings.

    Each step is one pass at the speed of C: a regular expression that finds the strings would take ten times as long.
    """
    if b"\\" in body:
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    # A value has at most two strings, of which one is its key.
    most = 4 * (values + 1)
    pieces = body.split(b'"', most)
    outside = b"".join(pieces[::2])
    return len(pieces) > most or _begun(outside) > values


def _begun(text: bytes) -> int:
    """How many characters begin a value of a list or an object, or the list or object itself."""
    return len(text) - len(text.translate(None, b",[{"))


def _has_large_object(parsed: Any) -> bool:
    inside = [parsed]
    while inside:
        one = inside.pop()
        if isinstance(one, dict):
            if len(one) > MOST_FIELDS:
                return True
            inside += [value for value in one.values() if isinstance(value, dict | list)]
        elif isinstance(one, list):
            inside += [value for value in one if isinstance(value, dict | list)]
    return False


def _reason(said: str) -> str:
    for pattern, reason in _REASONS:
        if matched := pattern.fullmatch(said):
            return matched.expand(reason)
    return said


async def read_body(request: Request, model: type[ModelT]) -> ModelT | None:
    """The parsed body as this model: what FastAPI passes to a route whose only body parameter is a `model`.

    None if it is not valid; FastAPI, which then gets the request, says what is wrong.
    """
    try:
        # As FastAPI does. Parsing and validating in one step accepts some values that this does not, and vice versa.
        read: ModelT = model.__pydantic_validator__.validate_python(await request.json(), from_attributes=True)
    except ValidationError:
        return None
    return read
