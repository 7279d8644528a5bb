"""Traces with OpenTelemetry: off unless `WAYBILL_TRACING=true`, and then at the cost of one comparison for each span.

Spans contain no values of statements, no paths, queries or headers of requests, and of an error only its type.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, Tracer

from services.errors import CannotStart
from services.logs import Repeats
from services.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

MOST_LINKS = 128
"""The most links of a span. The SDK would keep as many, and only the last ones."""

_FLUSH_SECONDS = 2.0
"""How long a process that stops waits, at most, until its last spans have been exported."""

_LONGEST_TEXT = 1000
"""Characters of a statement in its span."""

_MOST_NAMED = 12
"""How many of a statement's writes the name of its span lists."""

_VERBS = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM)\s+([a-z_]+)")
_SOURCE = re.compile(r"\bFROM\s+([a-z_]+)")
NO_SPAN: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)
"""What a block runs in that has no span, such as every block while tracing is off."""

_NO_PARENT = Context()

_tracer: Tracer | None = None


def is_on() -> bool:
    """Whether this process makes spans."""
    return _tracer is not None


def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: SpanContext | None = None,
    is_root: bool = False,
    links: Sequence[Link] = (),
    attributes: Mapping[str, Any] | None = None,
    start_time: int | None = None,
) -> AbstractContextManager[Span]:
    """While the block runs, what it does belongs to this span; one that records nothing if tracing is off.

    It is a child of the current span, unless it has another `parent` or `is_root`. `start_time` is in nanoseconds since
    the epoch, if that is not now. If the block raises, the span has failed.
    """
    if _tracer is None:
        return NO_SPAN
    context = _NO_PARENT if is_root else None
    if parent is not None:
        context = trace.set_span_in_context(NonRecordingSpan(parent), _NO_PARENT)
    started = _tracer.start_span(name, context, kind, attributes, links, start_time)
    return _current(started)


@contextmanager
def _current(started: Span) -> Iterator[Span]:
    with trace.use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield started
        except BaseException as error:
            fail(started, error)
            raise


def fail(failed: Span, error: BaseException) -> None:
    """Mark the span as failed with an error of this type. What the error says may be personal."""
    failed.set_attribute("error.type", type(error).__qualname__)
    failed.set_status(StatusCode.ERROR)


def statement(text: str) -> AbstractContextManager[Span]:
    """The span of a statement that is sent to PostgreSQL. Its text has parameters instead of values."""
    return NO_SPAN if _tracer is None else span(_summary(text), SpanKind.CLIENT, attributes=_described(text))


def begun_statement(text: str) -> Span | None:
    """The same for what cannot be a block. The caller ends it."""
    return (
        None
        if _tracer is None
        else _tracer.start_span(_summary(text), kind=SpanKind.CLIENT, attributes=_described(text))
    )


def _described(text: str) -> dict[str, str]:
    return {"db.system.name": "postgresql", "db.query.text": text[:_LONGEST_TEXT].strip()}


@lru_cache(maxsize=1024)
def _summary(text: str) -> str:
    """What the statement writes, such as `INSERT events, INSERT outbox`, or else from where it reads."""
    if written := list(dict.fromkeys(f"{verb.split()[0]} {table}" for verb, table in _VERBS.findall(text))):
        return ", ".join(written[:_MOST_NAMED])
    verb = text.split(maxsplit=1)[0].upper() if text.strip() else "statement"
    if source := _SOURCE.search(text):
        return f"SELECT {source[1]}"
    return verb


def current() -> Span:
    """The span that the running code belongs to; one that records nothing if there is none."""
    return trace.get_current_span()


def traceparent_of(context: SpanContext) -> str:
    """The context of a span as it is stored with an event (W3C Trace Context, version 00)."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def context_of(traceparent: str | None) -> SpanContext | None:
    """The context of the span that is named there; None if there is none, or it is not well formed."""
    if traceparent is None or len(traceparent) != 55:
        return None
    try:
        _, trace_id, span_id, flags = traceparent.split("-")
        context = SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
        )
    except ValueError:
        return None
    return context if context.is_valid else None


def links_to(traceparents: Iterable[str | None]) -> list[Link]:
    """Links to these spans, each once; those that are sampled first, if there are too many."""
    if _tracer is None:
        return []
    contexts = [found for one in dict.fromkeys(traceparents) if (found := context_of(one)) is not None]
    contexts.sort(key=lambda one: not one.trace_flags.sampled)
    return [Link(one) for one in contexts[:MOST_LINKS]]


@asynccontextmanager
async def tracing(settings: Settings, process: str, exporter: "SpanExporter | None" = None) -> AsyncIterator[None]:
    """Make spans while the block runs, if the settings say so or there is an `exporter`, and export what is left.

    Where to and how much is in the standard variables `OTEL_...`. A collector that is slow or away costs spans, but no
    request and no event: they wait in a queue of limited size, and a thread sends them. Raises `CannotStart` if
    OpenTelemetry is not installed, or the variables ask for what is not supported.
    """
    global _tracer
    if exporter is None and (not settings.tracing or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"):
        yield
        return
    before = _tracer
    provider = _provider(settings, process, exporter)
    instrumentor = _instrument_redis(provider)
    _tracer = provider.get_tracer("waybill")
    try:
        yield
    finally:
        _tracer = before
        instrumentor.uninstrument()
        # A thread of its own, which the end of the process does not wait for: an exporter may hang.
        last = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _FLUSH_SECONDS)


def _provider(settings: Settings, process: str, exporter: "SpanExporter | None") -> "TracerProvider":
    try:
        # Imported here: they are installed with an extra.
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        from services.sampling import Chosen
    except ImportError as error:
        raise CannotStart(
            f"WAYBILL_TRACING is set, but OpenTelemetry is not installed ({error.name}); pip install 'waybill[otel]'"
        ) from error
    attributes = {"deployment.environment.name": settings.environment.value}
    named = f"{os.environ.get('OTEL_SERVICE_NAME', '')},{os.environ.get('OTEL_RESOURCE_ATTRIBUTES', '')}"
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
        attributes["service.name"] = f"waybill-{process}"
    limits = SpanLimits(max_links=MOST_LINKS)
    provider = TracerProvider(resource=Resource.create(attributes), span_limits=limits, shutdown_on_exit=False)
    provider.sampler = Chosen(provider.sampler)
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    elif os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none":
        provider.add_span_processor(BatchSpanProcessor(_otlp()))
    return provider


class _Seldom(logging.Filter):
    """Lets each kind of message through once a minute: a collector that is away would cause one every few seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        return self._repeats.left_out(record.msg) is not None


def _otlp() -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    supported = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    supported["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    for name, only in supported.items():
        if (given := os.environ.get(name, "").strip() or only) != only:
            raise CannotStart(f"{name} is {given}, but spans are exported with {only} only; unset it")
    noisy = logging.getLogger(OTLPSpanExporter.__module__.removesuffix(".__init__"))
    if not any(isinstance(one, _Seldom) for one in noisy.filters):
        noisy.addFilter(_Seldom())
    return OTLPSpanExporter()


def _instrument_redis(provider: "TracerProvider") -> Any:
    from opentelemetry.instrumentation.redis import RedisInstrumentor

    instrumentor = RedisInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument(tracer_provider=provider)
    return instrumentor
