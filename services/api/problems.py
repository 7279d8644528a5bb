"""Every error as `application/problem+json` (RFC 9457) with a stable `code` and the request's id."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from errno import EMFILE, ENFILE
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException

from services.api import pressure
from services.api.callers import note_refusal, note_sign_in
from services.api.headers import PROTECTIVE
from services.api.methods import allowed
from services.connections import ended_for_its_time
from services.database import not_committed, outcome_unknown
from services.errors import (
    MOST_FAULTS,
    AlreadyExists,
    AmountInvalid,
    BadQuery,
    Conflict,
    DomainError,
    Fault,
    Forbidden,
    IdempotencyKeyInvalid,
    InsufficientCredits,
    InvalidInput,
    NotFound,
    Overloaded,
    RateLimited,
    ReportsUnavailable,
    RequestInFlight,
    StaleVersion,
    TooManyAttempts,
    Unauthenticated,
    VersionRequired,
)
from services.logs import RateLimitedLogger
from services.sql import CANCELED, CONTENTION, LOCK_NOT_AVAILABLE, sqlstate

logger = logging.getLogger(__name__)
outage = RateLimitedLogger(logger)

_BUSY = CONTENTION | {LOCK_NOT_AVAILABLE, CANCELED}
"""SQLSTATEs of a transaction that met contention, or whose lock or statement took too long."""

MEDIA_TYPE = "application/problem+json"

LONGEST = 300
"""Characters of each text in a problem. Some repeat what the client sent, such as the name of an unknown field."""

_STATUS: Mapping[type[DomainError], int] = {
    DomainError: 422,
    BadQuery: 400,
    Conflict: 409,
    Forbidden: 403,
    IdempotencyKeyInvalid: 400,
    InsufficientCredits: 402,
    InvalidInput: 422,
    NotFound: 404,
    Overloaded: 503,
    RateLimited: 429,
    ReportsUnavailable: 503,
    StaleVersion: 412,
    TooManyAttempts: 429,
    Unauthenticated: 401,
    VersionRequired: 428,
}
"""By class; a subclass has the status of its nearest base that is listed here."""

_CODES: Mapping[int, str] = {
    400: "malformed_body",
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
"""Of errors that are raised by their status."""

_USUAL: Mapping[int, str] = {
    **_CODES,
    400: BadQuery.code,
    402: InsufficientCredits.code,
    403: Forbidden.code,
    409: Conflict.code,
    412: StaleVersion.code,
    422: InvalidInput.code,
    428: VersionRequired.code,
    429: TooManyAttempts.code,
    500: "internal_error",
    503: Overloaded.code,
}
"""The code that a route documents with a status."""


class ProblemFault(BaseModel):
    """One fault in the input, and where it is (a JSON Pointer, or `query`, `path` or `header` and the name)."""

    detail: str
    pointer: str


class Problem(BaseModel):
    """RFC 9457 problem details. `code` is stable; `detail` is for people and may change.

    `errors` lists at most 20 faults. `more_errors` is the number of the others, and missing if there are none. Of a
    list with more than 200, only those up to the element with the twentieth are counted.
    """

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str | None = None
    errors: list[ProblemFault] = Field(default=[], max_length=MOST_FAULTS)
    more_errors: int | None = Field(default=None, ge=1, exclude_if=lambda number: number is None)


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def responses(*problems: int | type[DomainError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI documentation of a route's problems: of statuses with their usual code, or of errors with their own.

    `described.py` adds those that come from what the route takes, such as a body, or from the service as a whole.
    """
    codes: dict[int | str, list[str]] = {}
    for one in problems:
        status, code = (one, _USUAL[one]) if isinstance(one, int) else (status_of(one), one.code)
        codes.setdefault(status, []).append(code)
    return {status: documented(int(status), its_codes) for status, its_codes in codes.items()}


def documented(status: int, codes: Iterable[str]) -> dict[str, Any]:
    """The OpenAPI documentation of a problem with one of these codes."""
    return {
        "description": HTTPStatus(status).phrase,
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "allOf": [{"$ref": "#/components/schemas/Problem"}],
                    "properties": {"code": {"enum": sorted(codes)}},
                }
            }
        },
    }


def codes_of(response: Mapping[str, Any]) -> set[str]:
    """The codes that the documentation of a problem lists; empty if it is that of another reply."""
    schema = response.get("content", {}).get(MEDIA_TYPE, {}).get("schema", {})
    return set(schema.get("properties", {}).get("code", {}).get("enum", ()))


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
    more_faults: int = 0,
) -> ProblemResponse:
    """A problem with the first of these faults; `more_faults` were left out before."""
    note_refusal(request, status, code)
    listed = faults[:MOST_FAULTS]
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=_cut(detail),
        request_id=getattr(request.state, "request_id", None),
        errors=[ProblemFault(detail=_cut(fault.detail), pointer=_cut(fault.pointer)) for fault in listed],
        more_errors=len(faults) - len(listed) + more_faults or None,
    )
    return ProblemResponse({**body.model_dump(), **(members or {})}, status, headers=dict(headers or {}))


def status_of(kind: type[DomainError]) -> int:
    """The status of the replies to errors of this class."""
    return next(_STATUS[base] for base in kind.__mro__ if base in _STATUS)


def domain_problem(request: Request, error: DomainError, members: Mapping[str, Any] | None = None) -> ProblemResponse:
    """The problem for a domain error; `members` are further members that this kind of problem has."""
    note_sign_in(request, error)
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Forbidden) and error.scope is not None:
        # RFC 6750, section 3.1.
        headers["WWW-Authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, RequestInFlight | ReportsUnavailable | Overloaded):
        headers["Retry-After"] = "1"
    if isinstance(error, TooManyAttempts | RateLimited):
        headers["Retry-After"] = str(error.retry_after)
    return problem(request, status_of(type(error)), error.code, error.detail, error.faults, headers, members)


def database_problem(request: Request, error: DBAPIError) -> ProblemResponse | None:
    """The problem for a value that PostgreSQL refused; None if the client is not to blame."""
    match sqlstate(error):
        case "23505":
            return problem(request, 409, AlreadyExists.code, "a record with this unique value already exists")
        case "23503":
            return problem(request, 422, InvalidInput.code, "a record that is referred to does not exist")
        case "23514" | "23502":
            return problem(request, 422, InvalidInput.code, "a value is not allowed here")
        case str(state) if state.startswith("22"):
            return problem(request, 422, InvalidInput.code, "a value is outside the range that can be stored")
    return None


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the connection was lost, or the server accepts no new one now; nothing is wrong with the request."""
    # Connection exceptions, a password or database that is not valid any more, insufficient resources, operator
    # intervention, a database that refuses connections.
    code = sqlstate(error) or ""
    return (
        error.connection_invalidated
        or isinstance(error, OperationalError | InterfaceError)
        or code.startswith(("08", "28", "3D", "53", "57P"))
        or code == "55000"
    )


async def _on_domain_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, DomainError)
    return domain_problem(request, error)


async def _on_validation_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    faults = [Fault(_message(fault), _pointer(fault["loc"])) for fault in errors[:MOST_FAULTS]]
    # A field may have its own code, which is used if nothing else that was found is wrong.
    amounts_only = all(fault["type"] == AmountInvalid.code for fault in errors)
    code = AmountInvalid.code if amounts_only else InvalidInput.code
    detail = "the request has missing or invalid fields"
    return problem(request, 422, code, detail, faults, more_faults=len(errors) - len(faults))


async def _on_http_exception(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    # The error names only the methods of the first route with this path.
    headers = {"Allow": allowed(request)} if error.status_code == 405 else error.headers
    return problem(request, error.status_code, code, str(error.detail), headers=headers)


async def _on_stale_data(request: Request, _: Exception) -> ProblemResponse:
    detail = "it was changed by someone else; fetch it and try again"
    return problem(request, 412, StaleVersion.code, detail)


async def _on_database_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, DBAPIError)
    refused = database_problem(request, error)
    if refused is not None:
        logger.warning("PostgreSQL refused a value that validation let through: %s", error.orig)
        return refused
    if outcome_unknown(error):
        return outcome_unknown_problem(request)
    if sqlstate(error) in _BUSY or ended_for_its_time(error):
        outage.warning("a statement, a lock or a transaction took too long: %s", error.orig)
        return _retry_later(
            request,
            "busy",
            "the request took too long or needs rows that are in use; nothing took effect; send it again",
        )
    if is_unavailable(error) and not not_committed(error):
        return await _on_unavailable(request, error)
    logger.error("unexpected database error", exc_info=error)
    return problem(request, 500, "internal_error", "the request failed; nothing took effect")


async def _on_unavailable(request: Request, error: Exception) -> ProblemResponse:
    outage.warning("the database is unavailable: %r", error)
    return _retry_later(
        request, "unavailable", "the database is unavailable; nothing took effect; send the request again"
    )


def outcome_unknown_problem(request: Request) -> ProblemResponse:
    """For a request whose commit was not confirmed, or not safely."""
    return _retry_later(
        request,
        "outcome_unknown",
        "the database did not confirm the commit, and the request may have taken effect; "
        "send it again with the same Idempotency-Key to find out",
    )


def _retry_later(request: Request, code: str, detail: str) -> ProblemResponse:
    return problem(request, 503, code, detail, headers={"Retry-After": "1"})


async def _on_os_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, OSError)
    if error.errno not in (EMFILE, ENFILE):
        return await _on_unavailable(request, error)
    pressure.out_of_descriptors(error)
    return overloaded(request)


def overloaded(request: Request) -> ProblemResponse:
    """For a request that this process cannot take on now."""
    return _retry_later(request, "overloaded", "the server is overloaded; send the request again")


async def _on_unexpected(request: Request, error: Exception) -> ProblemResponse:
    if isinstance(error, ResponseValidationError):
        # What is logged next shows each fault with the value.
        error._errors = [{name: fault[name] for name in ("type", "loc", "msg")} for fault in error.errors()]
    # This reply is sent outside the middleware that adds these headers to every other reply.
    headers = dict(PROTECTIVE)
    if request_id := getattr(request.state, "request_id", None):
        headers["X-Request-Id"] = request_id
    if isinstance(error, MemoryError):
        pressure.out_of_memory()
        response = overloaded(request)
        response.headers.update(headers)
        return response
    return problem(request, 500, "internal_error", "the request failed; nothing took effect", headers=headers)


def install(app: FastAPI) -> None:
    """Turn every error of the application into a problem."""
    app.add_exception_handler(DomainError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(StaleDataError, _on_stale_data)
    app.add_exception_handler(DBAPIError, _on_database_error)
    app.add_exception_handler(PoolTimeout, _on_unavailable)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_unexpected)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _message(fault: Mapping[str, Any]) -> str:
    # Pydantic gives our ValueErrors a prefix that means nothing to a client.
    return str(fault["msg"]).removeprefix("Value error, ")


def _pointer(location: Sequence[str | int]) -> str:
    place, *path = location
    if place == "body":
        return "#" + "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    return "/".join(str(part) for part in location)
