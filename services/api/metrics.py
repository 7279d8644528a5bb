"""`GET /metrics` for Prometheus, and `GET /internal/scaling` for autoscalers.

The backlog and the last audit's findings are read from the database; the rest is this process's own.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from services import exposition
from services.api import group_metrics, kept, pressure, rate_metrics
from services.api.canary import Canary
from services.api.checked import CheckedRoute
from services.api.dependencies import State
from services.api.problems import documented, responses
from services.api.rate_classes import RateClass, rate_class
from services.api.reads import Outcome, Reads
from services.api.rights import public
from services.api.state import ApiState
from services.api.waiting import PATIENCE
from services.audit.models import LedgerAudit
from services.audit.schemas import DifferenceKind
from services.clock import CLOCK
from services.errors import NotFound, Unauthenticated
from services.fields import Schema
from services.outbox.control.schemas import Waiting
from services.outbox.log.schemas import Lag
from services.unit_of_work import UnitOfWork

_MOST_COUNTED = 10_000

_REASONS = ("ready", "retry", "behind", "paused", "unknown", "asked", "begun")
"""Why events wait; `services/outbox/models.py` says what each means. A paused type's ready events are `paused`."""

router = APIRouter(route_class=CheckedRoute)
_bearer = HTTPBearer(auto_error=False, scheme_name="MetricsToken", description="`WAYBILL_METRICS_TOKEN`")


class Scaling(Schema):
    """How many events workers can process now: `events` for each type, counted up to 10,000, and `total` for all.

    Left out are events that are deferred, wait for their next attempt or behind another event, or are of a paused type.
    More workers would not help them.
    """

    total: int
    events: dict[str, int]


async def _scraped(state: State, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> ApiState:
    """Raises `NotFound` if metrics are disabled, `Unauthenticated` if the token is missing or wrong."""
    match exposition.refusal(state.settings, None if given is None else given.credentials):
        case 404:
            raise NotFound(exposition.NOT_AVAILABLE)
        case 401:
            raise Unauthenticated(exposition.SEND_IT)
    return state


@router.get("/metrics", tags=["health"], response_class=PlainTextResponse, responses=responses(401, 404))
@public
@rate_class(RateClass.internal)
async def read_metrics(state: Annotated[ApiState, Depends(_scraped)]) -> PlainTextResponse:
    """Metrics in Prometheus' text format: the database's gauges, the same in every process, and this process's own.

    If the database does not answer, its gauges are missing and `waybill_database_up` is 0.
    """
    return PlainTextResponse(await _render(state), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/internal/scaling",
    tags=["health"],
    responses=responses(401, 404) | {503: documented(503, ("overloaded", "unavailable"))},
)
@public
@rate_class(RateClass.internal)
async def read_scaling(state: Annotated[ApiState, Depends(_scraped)]) -> Scaling:
    """How many events wait for a worker, by type, at most 5 seconds ago: for KEDA's `metrics-api` scaler.

    The token is that of `/metrics`.
    """
    events = {one.type: one.due for one in await state.waiting.read()}
    return Scaling(total=sum(events.values()), events=events)


def rendering(state: ApiState) -> Callable[[], bytes]:
    """A function that renders the same as `/metrics`, to be called in another thread. It raises `TimeoutError`."""
    loop = asyncio.get_running_loop()
    return lambda: asyncio.run_coroutine_threadsafe(_render(state), loop).result(2 * PATIENCE)


async def _render(state: ApiState) -> bytes:
    own = [*exposition.registry.collect(), *state.request_times.registry.collect(), *pressure.registry.collect()]
    own += [*group_metrics.registry.collect(), *kept.registry.collect()]
    own += [*rate_metrics.registry.collect(), _pools(state), *_canary(state.canary), *_replica(state.reads)]
    own.append(exposition.clock_skew(state.skew.seconds))
    explained = "Requests that are ready to continue, and wait for their turn on the event loop."
    own.append(_gauge("waybill_turns_waiting", explained, state.run_queue.waiting))
    return exposition.rendered([*own, *await _read_database(state)])


async def _read_database(state: ApiState) -> list[Metric]:
    explained = "Whether the database answers."
    try:
        waiting = await state.waiting.read()
        async with (
            asyncio.timeout(PATIENCE),
            state.probe.scraping,
            UnitOfWork(state.probe.sessions, name="a scrape") as uow,
        ):
            backlog = await uow.control.backlog()
            audit, good = await uow.audits.latest(), await uow.audits.latest(good=True)
            refused = await uow.sweeps.count()
            lags = await uow.log.lags(_MOST_COUNTED)
    except (SQLAlchemyError, OSError, TimeoutError):
        return [_gauge("waybill_database_up", explained, 0)]
    gauges = [_gauge("waybill_database_up", explained, 1), *_waiting(waiting)]
    explained = "Events that used up their attempts, counted up to 10,000."
    gauges.append(_gauge("waybill_dead_letters", explained, backlog["dead_letters"]))
    if backlog["oldest_due_seconds"] > 0:
        explained = "Since when the most overdue event has been due; missing if none is."
        since = CLOCK.time() - backlog["oldest_due_seconds"]
        gauges.append(_gauge("waybill_outbox_oldest_due_timestamp_seconds", explained, since))
    explained = "Due rows that cannot be expired because the database refuses to update them."
    gauges += [_gauge("waybill_sweep_failures", explained, refused), *_consumers(lags)]
    return [*gauges, *_audit(audit, good)]


def _waiting(waiting: Iterable[Waiting]) -> Iterable[Metric]:
    explained = "Events waiting in the outbox, by type and reason, each counted up to 10,000."
    family = GaugeMetricFamily("waybill_outbox_waiting_events", explained, labels=("type", "reason"))
    for one in waiting:
        for reason in _REASONS:
            family.add_metric((one.type, reason), one.reasons.get(reason, 0))
    return [family]


def _audit(audit: LedgerAudit | None, good: LedgerAudit | None) -> Iterable[Metric]:
    if audit is None:
        return
    yield _gauge("waybill_audit_differences", "Differences that the last finished audit found.", audit.differences)
    found = [one["found"] for one in audit.sample if one.get("kind") == DifferenceKind.ledger_sum]
    explained = "What all entries of the ledger summed to in the last finished audit; 0 if the books balance."
    yield _gauge("waybill_ledger_imbalance_credits", explained, float(found[0]) if found else 0.0)
    explained = "When the last finished audit began."
    yield _gauge("waybill_audit_last_timestamp_seconds", explained, audit.started_at.timestamp())
    if good is not None:
        explained = "When the last audit began that found no difference; missing if there was none."
        yield _gauge("waybill_audit_last_good_timestamp_seconds", explained, good.started_at.timestamp())
    yield _gauge("waybill_audit_duration_seconds", "How long the last finished audit took.", audit.seconds)
    yield _gauge("waybill_audit_rows_checked", "Rows that the last finished audit checked.", audit.rows_checked)


def _consumers(lags: Iterable[Lag]) -> list[Metric]:
    described = {
        "events": ("waybill_log_consumer_unread_events", "Unread events of the log, counted up to 10,000."),
        "seconds": ("waybill_log_consumer_lag_seconds", "Age of the oldest unread event of the log."),
        "failed_in_a_row": ("waybill_log_consumer_failures", "How often the consumer's next event has failed."),
    }
    families = {
        name: GaugeMetricFamily(metric, explained, labels=("consumer",))
        for name, (metric, explained) in described.items()
    }
    for lag in lags:
        for name, family in families.items():
            family.add_metric((lag.name,), getattr(lag, name))
    return list(families.values())


def _pools(state: ApiState) -> Metric:
    """Connections of this process. The replica's pool is `read`; reports use `analytics`."""
    engines: dict[str, AsyncEngine] = {"write": state.database.engine, "probe": state.probe.engine}
    if state.database.replica is not None:
        engines["read"] = state.database.replica.engine
    if state.analytics is not None:
        engines["analytics"] = state.analytics.engine
    return exposition.pool_connections(engines)


def _canary(canary: Canary) -> Iterable[Metric]:
    explained = "When the canary's last write was read back; before the first time, when the process started."
    yield _gauge("waybill_canary_last_success_timestamp_seconds", explained, CLOCK.time() - canary.age)
    yield CounterMetricFamily("waybill_canary_failures", "Failed attempts of the canary.", value=canary.failures)


def _replica(reads: Reads) -> Iterable[Metric]:
    """What this process knows about the replica; nothing if none is configured."""
    if reads.replica is None:
        return
    yield _gauge("waybill_replica_used", "Whether reads that may lag go to the replica.", reads.replica.is_fit)
    explained = "The replica has everything that was committed until so long ago."
    yield _gauge("waybill_replica_lag_seconds", explained, reads.replica.lag)
    family = CounterMetricFamily(
        "waybill_replica_reads", "Reads that may lag, by where they went and why.", labels=("outcome",)
    )
    for outcome in Outcome:
        family.add_metric((outcome.value,), reads.outcomes[outcome])
    yield family


def _gauge(name: str, explained: str, value: float) -> Metric:
    return GaugeMetricFamily(name, explained, value=value)
