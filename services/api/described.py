"""The OpenAPI document: what FastAPI knows of each route, and everything that holds for all routes of a kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.api import idempotency, problems
from services.api.declared import DeclaredRoute, describe_limits, describe_scopes, operations
from services.api.dependencies import needs_version, reads_replica
from services.api.examples import describe_examples
from services.api.kept import REPLAYED_HEADER, is_kept
from services.api.problems import codes_of
from services.api.rate_classes import RateClass
from services.api.reads import LAG_HEADER, POSITION_HEADER
from services.api.rights import scope_of
from services.api.schemes import describe_keys
from services.exports import MEDIA_TYPES
from services.users.rights import PROFILE

TAGS = {
    "health": "Whether a process is alive and can serve requests, and its metrics. No limits apply here.",
    "orders": "Orders, their payment, fulfilment, cancellation and refunds, and exports of them.",
    "credits": "Accounts, statements, transfers and holds, and the corrections that operators make.",
    "catalogue": "Categories, products and their stock.",
    "users": "Registration, profiles, passwords, second factors and roles.",
    "sessions": "Signing in and out.",
    "API keys": "Keys for programs.",
    "operations": "For the staff: the outbox and its workers, audits, and the audit log.",
    "reports": "Sales by day, read from the analytics database. Off unless it is configured.",
}

_DESCRIPTION = """\
Errors are `application/problem+json` (RFC 9457) with a stable `code`. Each operation lists the codes that it may have.

Any request may also be answered with 404 `not_found` or 405 `method_not_allowed`, if no operation has its path or
method. The server answers 400 `malformed_request`, 408 `request_timeout`, 431 `headers_too_large` and 503 `overloaded`
before it knows the operation, and then closes the connection."""

HEADERS: Mapping[str, Mapping[str, Any]] = {
    "X-Request-Id": {
        "description": "The request's id: the one it was sent with, or a new one.",
        "required": True,
        "schema": {"type": "string", "maxLength": 128},
    },
    "ETag": {
        "description": "The version, for `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Location": {
        "description": "The address of what was created.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Retry-After": {
        "description": "Seconds after which to send the request again.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750).",
        "required": True,
        "schema": {"type": "string"},
    },
    "Accept": {"description": "The media type of the body.", "required": True, "schema": {"type": "string"}},
    "Content-Disposition": {
        "description": "The name of the file.",
        "required": True,
        "schema": {"type": "string"},
    },
    REPLAYED_HEADER: {
        "description": "`true` if the request had taken effect before, and this is its stored reply.",
        "schema": {"const": "true"},
    },
    POSITION_HEADER: {
        "description": "Sent if there is a read replica: with this header, later reads include the write.",
        "schema": {"type": "string"},
    },
    LAG_HEADER: {
        "description": "Sent if the reply was read from the replica: at most this many seconds old.",
        "schema": {"type": "string", "pattern": r"^[0-9]+\.[0-9]$"},
    },
    "RateLimit": {
        "description": "The number of requests left within each limit (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "The limits that apply (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string"},
    },
}
"""Every header of replies that the document describes. Those on every reply, such as `Cache-Control`, are left out."""

FILES = {media_type.partition(";")[0] for media_type in MEDIA_TYPES.values()}

_MAYBE = {("Retry-After", 409), ("WWW-Authenticate", 403)}
"""Headers that these statuses have with some codes only."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=_DESCRIPTION,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    components = document.setdefault("components", {})
    template = "#/components/schemas/{model}"
    fault = problems.ProblemFault.model_json_schema(ref_template=template)
    problem = problems.Problem.model_json_schema(ref_template=template)
    problem.pop("$defs", None)
    components.setdefault("schemas", {}).update(Problem=problem, ProblemFault=fault)
    components["headers"] = {name: dict(described) for name, described in HEADERS.items()}
    describe_scopes(app, document)
    describe_limits(app, document)
    describe_keys(document)
    for described in described_routes(app, document):
        _require_headers(described)
        _describe_problems(described)
        _describe_headers(described, components["schemas"])
    describe_examples(document)
    return document


@dataclass(frozen=True, slots=True)
class Described:
    """A route, and the operation that describes it in the document."""

    route: DeclaredRoute
    method: str
    operation: dict[str, Any]

    @property
    def is_limited(self) -> bool:
        """Whether the requests count towards the limits of their callers. Those to health and metrics do not."""
        return self.route.rate_class is not RateClass.internal

    @property
    def takes_key(self) -> bool:
        return self.route.takes(idempotency.accepted) or self.route.takes(idempotency.required)

    @property
    def takes_input(self) -> bool:
        """Whether there is something whose value can be wrong."""
        return "requestBody" in self.operation or "parameters" in self.operation


def described_routes(app: FastAPI, document: dict[str, Any]) -> list[Described]:
    """All routes that the document describes."""
    return [Described(*one) for one in operations(app, document)]


def _require_headers(described: Described) -> None:
    """Headers that are refused with a code of their own if they are missing, and are therefore optional to FastAPI."""
    required = set()
    if described.route.takes(idempotency.required):
        required.add(idempotency.HEADER)
    if described.route.takes(needs_version):
        required.add("If-Match")
    for parameter in described.operation.get("parameters", ()):
        if parameter["name"] in required:
            parameter["required"] = True
            parameter["schema"] = {"type": "string"}


def _describe_problems(described: Described) -> None:
    """Add the problems that the handler need not declare."""
    replies = described.operation["responses"]
    for status, codes in _implied(described).items():
        found = replies.get(str(status))
        if found is None or codes_of(found):
            codes |= codes_of(found or {})
            replies[str(status)] = problems.documented(status, codes)
    described.operation["responses"] = dict(sorted(replies.items()))


def _implied(described: Described) -> dict[int, set[str]]:
    codes = {400: {"bad_query"}, 413: {"body_too_large"}, 500: {"internal_error"}}
    scope = scope_of(described.route.endpoint)
    if scope is not None:
        codes[401] = {"unauthenticated"}
        codes[403] = {"forbidden"} | (set() if scope in PROFILE else {"second_factor_missing"})
    if "requestBody" in described.operation:
        codes[400] |= {"malformed_body"}
        codes[415] = {"unsupported_media_type"}
    if described.takes_input:
        codes[422] = {"invalid_input"}
    if described.route.takes(needs_version):
        codes |= {412: {"stale_version"}, 428: {"version_required"}}
    if described.takes_key:
        codes[400] |= {"idempotency_key_invalid"}
        codes[403] |= {"replay_forbidden"}
        codes[409] = {"request_in_flight"}
        codes[422] |= {"idempotency_key_reused"}
    if described.is_limited:
        codes[429] = {"rate_limited"}
        codes[503] = {"busy", "outcome_unknown", "overloaded", "unavailable"}
    return codes


def _describe_headers(described: Described, schemas: Mapping[str, Any]) -> None:
    for status, reply in described.operation["responses"].items():
        names = set(_headers(described, int(status), reply)) | reply.get("headers", {}).keys()
        names |= set(_shown_with(reply.get("content", {}), schemas))
        reply["headers"] = {name: _header(name, int(status)) for name in sorted(names)}


def _header(name: str, status: int) -> dict[str, Any]:
    if (name, status) in _MAYBE:
        return {**HEADERS[name], "required": False}
    return {"$ref": f"#/components/headers/{name}"}


def _headers(described: Described, status: int, reply: Mapping[str, Any]) -> Iterator[str]:
    """The headers of this reply, but for those that only the handler knows of."""
    yield "X-Request-Id"
    if described.is_limited:
        yield from ("RateLimit", "RateLimit-Policy")
    if described.takes_key and is_kept(status):
        yield REPLAYED_HEADER
    if status < 400:
        if described.is_limited and described.method != "GET":
            yield POSITION_HEADER
        if described.route.takes(reads_replica):
            yield LAG_HEADER
    elif status in (429, 503) or "request_in_flight" in codes_of(reply):
        yield "Retry-After"
    elif status in (401, 403):
        yield "WWW-Authenticate"
    elif status == 415:
        yield "Accept"


def _shown_with(content: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    """The headers of a reply with this content."""
    for media_type, medium in content.items():
        name = medium.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if media_type == "application/json":
            # What has a version has it in its ETag as well.
            if {"id", "version"} <= schemas.get(name, {}).get("properties", {}).keys():
                yield "ETag"
        elif media_type in FILES:
            yield "Content-Disposition"
