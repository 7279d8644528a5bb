"""Which spans are recorded. Imported only if tracing is on, since OpenTelemetry's SDK is an extra."""

from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

_DROPPED = SamplingResult(Decision.DROP)


class Chosen(Sampler):
    """Asks another sampler, but not about what begins a trace without being a request or a job.

    - Statements and commands that belong to no span begin no trace: workers send some every second.
    - What is linked to other spans, such as a batch to those that wrote its events, is recorded if one of them is.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
        **more: Any,
    ) -> SamplingResult:
        if not trace.get_current_span(parent_context).get_span_context().is_valid:
            if kind is SpanKind.CLIENT:
                return _DROPPED
            if links:
                sampled = any(link.context.trace_flags.sampled for link in links)
                return SamplingResult(Decision.RECORD_AND_SAMPLE if sampled else Decision.DROP, attributes)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state, **more)

    def get_description(self) -> str:
        return f"Chosen({self._sampler.get_description()})"
