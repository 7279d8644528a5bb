"""Tracing that is asked for and cannot be had keeps a process from starting, and says why."""

import logging
import sys

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from services import tracing
from services.errors import CannotStart
from services.sampling import Chosen
from services.settings import Environment, Settings

ASKED_FOR = Settings(_env_file=None, environment=Environment.development, tracing=True)


async def test_a_process_without_the_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "services.sampling")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.sampling", None)
    with pytest.raises(CannotStart, match=r"pip install 'waybill\[otel\]'"):
        async with tracing.tracing(ASKED_FOR, "api"):
            pass
    assert not tracing.is_on()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
async def test_an_exporter_that_is_not_supported_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(CannotStart, match=f"{name} is {value}"):
        async with tracing.tracing(ASKED_FOR, "api"):
            pass
    assert not tracing.is_on()


async def test_the_standard_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with tracing.tracing(ASKED_FOR, "api"):
        assert not tracing.is_on()


def decided(sampler: Chosen, kind: SpanKind, *flags: int) -> Decision:
    links = [Link(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(one))) for one in flags]
    return sampler.should_sample(None, 9, "span", kind, None, links).decision


def test_what_is_linked_is_recorded_if_one_of_its_causes_is() -> None:
    for sampler in (Chosen(ALWAYS_ON), Chosen(ALWAYS_OFF)):
        assert decided(sampler, SpanKind.CONSUMER, 0, 1) is Decision.RECORD_AND_SAMPLE
        assert decided(sampler, SpanKind.CONSUMER, 0, 0) is Decision.DROP
        assert decided(sampler, SpanKind.CLIENT) is Decision.DROP
    assert decided(Chosen(ALWAYS_ON), SpanKind.CONSUMER) is Decision.RECORD_AND_SAMPLE
    assert decided(Chosen(ALWAYS_OFF), SpanKind.CONSUMER) is Decision.DROP


@pytest.mark.parametrize("given", [None, "", "x" * 55, f"00-{0:032x}-{1:016x}-01", f"00-{1:032x}-{0:016x}-01"])
def test_a_traceparent_that_names_no_span_is_no_parent(given: str | None) -> None:
    assert tracing.context_of(given) is None


def test_a_traceparent_is_read_as_it_was_written() -> None:
    written = f"00-{7:032x}-{8:016x}-01"
    context = tracing.context_of(written)
    assert context is not None
    assert tracing.traceparent_of(context) == written


def test_a_collector_that_is_away_is_logged_once_a_minute() -> None:
    seldom = tracing._Seldom()
    records = [logging.makeLogRecord({"msg": "away, retrying in %.2fs", "args": (one,)}) for one in (1.0, 2.0, 4.0)]
    assert [seldom.filter(one) for one in records] == [True, False, False]
