"""`GET /metrics` for Prometheus: the backlog, the last audit's findings, and the requests of this process."""

import asyncio
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from services.api import group_metrics, pressure, rate_metrics
from services.api.canary import Canary
from services.api.checked import CheckedRoute
from services.api.dependencies import State
from services.api.problems import responses
from services.api.rate_classes import RateClass, rate_class
from services.api.reads import Outcome, Reads
from services.api.rights import public
from services.api.state import ApiState
from services.errors import NotFound, Unauthenticated
from services.fields import now
from services.outbox.log.schemas import Lag
from services.unit_of_work import UnitOfWork

_PATIENCE = 5.0
"""Time limit for the database, in seconds; by default Prometheus gives up on a scrape after ten."""

_MOST_COUNTED = 10_000

_BACKLOG = {
    "waiting": ("waybill_outbox_waiting_events", "Events waiting in the outbox, counted up to 10,000."),
    "retrying": ("waybill_outbox_retrying_events", "Waiting events that have failed before, counted up to 10,000."),
    "oldest_due_seconds": ("waybill_outbox_oldest_due_seconds", "How long the most overdue event has been due."),
    "dead_letters": ("waybill_dead_letters", "Events that used up their attempts, counted up to 10,000."),
}

router = APIRouter(route_class=CheckedRoute, tags=["health"])
_bearer = HTTPBearer(auto_error=False, scheme_name="MetricsToken", description="`WAYBILL_METRICS_TOKEN`")


async def _scraped(state: State, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> ApiState:
    """Raises `NotFound` if metrics are disabled, `Unauthenticated` if the token is missing or wrong."""
    token = state.settings.metrics_token
    if token is None:
        if not state.settings.is_development:
            raise NotFound("metrics are not available here")
    elif given is None or not hmac.compare_digest(given.credentials.encode(), token.get_secret_value().encode()):
        raise Unauthenticated("the metrics token is required: Authorization: Bearer TOKEN")
    return state


@router.get("/metrics", response_class=PlainTextResponse, responses=responses(401, 404))
@public
@rate_class(RateClass.internal)
async def read_metrics(state: Annotated[ApiState, Depends(_scraped)]) -> PlainTextResponse:
    """Metrics in Prometheus' text format: the database's gauges, the same in every process, and this process's own.

    If the database does not answer, its gauges are missing and `waybill_database_up` is 0.
    """
    explained = "How far this host's clock is ahead of the database's."
    skew = _gauge("waybill_clock_skew_seconds", explained, state.skew.seconds)
    own = [*state.request_times.registry.collect(), *pressure.registry.collect()]
    own += [*group_metrics.registry.collect(), *rate_metrics.registry.collect()]
    own += [skew, _pools(state), *_canary(state.canary), *_replica(state.reads)]
    scrape = _Scrape([*own, *await _read_database(state)])
    return PlainTextResponse(generate_latest(scrape), media_type=CONTENT_TYPE_LATEST)


class _Scrape(Collector):
    """The metrics of one scrape."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def _read_database(state: ApiState) -> list[Metric]:
    try:
        # Not through the request pool: the database is not down just because that pool is exhausted.
        async with (
            asyncio.timeout(_PATIENCE),
            state.probe.scraping,
            UnitOfWork(state.probe.sessions, name="a scrape") as uow,
        ):
            backlog = await uow.control.backlog()
            audit = await uow.audits.latest()
            refused = await uow.sweeps.count()
            lags = await uow.log.lags(_MOST_COUNTED)
    except (SQLAlchemyError, OSError, TimeoutError):
        return [_gauge("waybill_database_up", "Whether the database answers.", 0)]
    gauges = [_gauge("waybill_database_up", "Whether the database answers.", 1)]
    gauges += [_gauge(name, explained, backlog[key]) for key, (name, explained) in _BACKLOG.items()]
    gauges.append(
        _gauge("waybill_sweep_failures", "Due rows that cannot be expired because the database refuses.", refused)
    )
    gauges += _consumers(lags)
    if audit is not None:
        age = (now() - audit.started_at).total_seconds()
        gauges += [
            _gauge("waybill_audit_differences", "Differences that the last finished audit found.", audit.differences),
            _gauge("waybill_audit_age_seconds", "Time since the last finished audit began.", age),
            _gauge("waybill_audit_duration_seconds", "How long the last finished audit took.", audit.seconds),
            _gauge("waybill_audit_rows_checked", "Rows that the last finished audit checked.", audit.rows_checked),
        ]
    return gauges


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
    family = GaugeMetricFamily(
        "waybill_database_pool_connections", "Connections of this process by pool.", labels=("pool", "state")
    )
    engines: dict[str, AsyncEngine] = {"write": state.database.engine, "probe": state.probe.engine}
    if state.database.replica is not None:
        engines["read"] = state.database.replica.engine
    if state.analytics is not None:
        engines["analytics"] = state.analytics.engine
    for name, engine in engines.items():
        pool = engine.pool
        assert isinstance(pool, QueuePool)
        family.add_metric((name, "in_use"), pool.checkedout())
        family.add_metric((name, "idle"), pool.checkedin())
    return family


def _canary(canary: Canary) -> Iterable[Metric]:
    yield _gauge("waybill_canary_age_seconds", "Time since the canary's last write was read back.", canary.age)
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
