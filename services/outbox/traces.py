"""The spans of events: of a batch, linked to the spans that wrote its events, and of each event in its own trace."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from opentelemetry.trace import Link, Span, SpanKind

from services import tracing
from services.outbox.engine.schemas import Batch, ClaimedRow
from services.outbox.policy import is_locked

_CONSUMER = SpanKind.CONSUMER


class Traced(Protocol):
    """An event of the log."""

    @property
    def traceparent(self) -> str | None: ...


def of_batch(rows: Sequence[ClaimedRow], began: int) -> AbstractContextManager[Span]:
    """The span of a batch. It belongs to the trace of none of its events: they may come from many requests.

    `began` is when the claim was sent, in nanoseconds since the epoch.
    """
    if not tracing.is_on():
        return tracing.NO_SPAN
    return tracing.span(
        "process events",
        _CONSUMER,
        is_root=True,
        links=tracing.links_to(row.traceparent for row in rows),
        attributes={**_counted(len(rows)), "waybill.event.types": sorted({row.type for row in rows})},
        start_time=began,
    )


def of_log_batch(consumer: str, events: Sequence[Traced]) -> AbstractContextManager[Span]:
    """The same for a batch of a consumer of the log."""
    if not tracing.is_on():
        return tracing.NO_SPAN
    links = tracing.links_to(one.traceparent for one in events)
    return tracing.span(f"consume {consumer}", _CONSUMER, is_root=True, links=links, attributes=_counted(len(events)))


def rolled_back(error: Exception) -> None:
    """Note in the span of a batch that nothing of it takes effect."""
    if tracing.is_on():
        tracing.fail(tracing.current(), error)


def committed(batch: Batch) -> None:
    """Note in the span of a batch what was committed, and give each event a span in the trace of its request.

    Only at its first attempt, so that a request has one such span for each of its events: later attempts, which are not
    what the request waited for, are linked. It lasts as long as the batch.
    """
    span = tracing.current()
    if not tracing.is_on() or not span.is_recording():
        return
    span.set_attributes({"waybill.events.processed": len(batch.done), "waybill.events.failed": len(batch.failed)})
    first = [(row, None) for row in batch.done]
    first += [(row, error) for row, error in batch.failed if not is_locked(error)]  # type: ignore[misc]
    few = [one for one in first if one[0].attempts == 0 and _is_sampled(one[0])][: tracing.MOST_LINKS]
    began: Any = getattr(span, "start_time", None)
    links = [Link(span.get_span_context())]
    for row, error in few:
        parent = tracing.context_of(row.traceparent)
        attributes = {"waybill.event.id": str(row.event_id), "waybill.aggregate": row.aggregate}
        with tracing.span(
            f"process {row.type}", _CONSUMER, parent=parent, links=links, attributes=attributes, start_time=began
        ) as one:
            if error is not None:
                tracing.fail(one, error)


def _is_sampled(row: ClaimedRow) -> bool:
    context = tracing.context_of(row.traceparent)
    return context is not None and bool(context.trace_flags.sampled)


def _counted(number: int) -> dict[str, Any]:
    return {"messaging.operation.type": "process", "messaging.batch.message_count": number}
