"""The spans of requests, and of the groups in which they are carried out.

FastAPI has spans of its own. They contain the path and the query, so they are switched off (`services/app.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from starlette.types import Scope

from services import tracing
from services.api.request_log import METHODS, PROBES
from services.api.request_times import route_path
from services.api.turns import Intent

_SPAN = "span"


class Answered(Protocol):
    """What becomes of a request."""

    @property
    def status(self) -> int | None: ...

    @property
    def request_id(self) -> str: ...


def of_request(scope: Scope, exchange: Answered) -> AbstractContextManager[object]:
    """The span of a request, which continues the trace that the request is part of. Probes have none.

    From then on, the request's own `traceparent` is what its events carry.
    """
    return _of_request(scope, exchange) if tracing.is_on() and scope["path"] not in PROBES else tracing.NO_SPAN


@contextmanager
def _of_request(scope: Scope, exchange: Answered) -> Iterator[None]:
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    state: dict[str, Any] = scope["state"]
    attributes = {"http.request.method": method, "waybill.request.id": exchange.request_id}
    parent = tracing.context_of(state["traceparent"])
    with tracing.span(method, SpanKind.SERVER, parent=parent, is_root=parent is None, attributes=attributes) as span:
        state[_SPAN] = span
        state["traceparent"] = tracing.traceparent_of(span.get_span_context())
        try:
            yield
        finally:
            route = route_path(scope)
            span.update_name(f"{'HTTP' if method == '_OTHER' else method} {route}")
            span.set_attribute("http.route", route)
            if exchange.status is not None:
                span.set_attribute("http.response.status_code", exchange.status)
            if exchange.status is None or exchange.status >= 500:
                span.set_status(StatusCode.ERROR)


@contextmanager
def _of_group(intents: Sequence[Intent[Any]]) -> Iterator[Span]:
    requests = [one.request.scope["state"].get(_SPAN) for one in intents]
    links = [Link(one.get_span_context()) for one in requests if one is not None]
    links.sort(key=lambda one: not one.context.trace_flags.sampled)
    attributes = {"waybill.group.requests": len(intents)}
    with tracing.span(
        "group of requests", is_root=True, links=links[: tracing.MOST_LINKS], attributes=attributes
    ) as span:
        for one in requests:
            if one is not None:
                one.add_link(span.get_span_context())
        yield span


def of_group(intents: Sequence[Intent[Any]]) -> AbstractContextManager[Span]:
    """The span of a group. It belongs to the trace of none of its requests, but each of them and it have links."""
    return _of_group(intents) if tracing.is_on() else tracing.NO_SPAN
