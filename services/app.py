"""The HTTP application."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from redis.asyncio import Redis
from starlette.routing import BaseRoute

from services.analytics import open_analytics
from services.api import health, metrics, pages, problems, start
from services.api.canary import Canary
from services.api.described import describe
from services.api.groups import Groups
from services.api.headers import Protection
from services.api.middleware import RequestMiddleware
from services.api.paths import look_up_paths
from services.api.probe import open_probe
from services.api.rate_counts import Counts
from services.api.rate_limits import RateLimits
from services.api.reads import Reads
from services.api.refusals import Refusals
from services.api.request_log import RequestLog
from services.api.request_times import RequestTimes
from services.api.run_queue import RunQueue
from services.api.seen_keys import SeenKeys
from services.api.shares import SharingPool
from services.api.state import ApiState
from services.api.tokens import Tokens
from services.api.waiting import WaitingEvents
from services.audit import routes as audit
from services.audit.log import routes as audit_log
from services.budget import check_pool_budget, check_replica_budget
from services.catalog import routes as catalog
from services.collector import spare_what_stays
from services.console import errors, site
from services.console.live import Live
from services.credits.corrections import routes as corrections
from services.credits.holds import routes as holds
from services.credits.ledger import routes as ledger
from services.credits.statement import routes as statement
from services.credits.transfers import routes as transfers
from services.database import Limits, open_database
from services.exposition import LoopLag, MetricsServer
from services.keys import Keys
from services.logs import configure_logging
from services.operations import routes as operations
from services.operations.bulk import routes as bulk_routes
from services.operations.consumers import routes as consumers
from services.operations.jobs import routes as jobs
from services.operations.outbox import routes as outbox_routes
from services.operations.overview import routes as overview
from services.orders import routes as orders
from services.orders.days import routes as order_days
from services.orders.export import routes as order_export
from services.orders.search import routes as order_search
from services.orders.timeline import routes as order_timeline
from services.outbox.doorbell import Doorbell
from services.outbox.origin import service as origin
from services.reports import routes as reports
from services.settings import Settings, get_settings
from services.skew import watched_clock
from services.startup import check_role, check_schema, plain_connecting
from services.subscriptions import SUBSCRIPTIONS
from services.sweeps import routes as sweeps
from services.tracing import tracing
from services.unit_of_work import UnitOfWork
from services.users import routes as users
from services.users.keys import routes as api_keys
from services.users.passwords import Passwords
from services.users.personal import routes as personal
from services.users.resets import routes as resets
from services.users.roles import routes as roles
from services.users.sessions import routes as sessions
from services.users.totp import routes as totp

VERSION = "0.1.0"


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. Its engines and its Redis client are created and disposed of in the lifespan."""
    settings = settings or get_settings()
    request_times = RequestTimes()
    refusals = Refusals()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = Redis.from_url(settings.redis_url, socket_connect_timeout=1, socket_timeout=1)
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            await enter(tracing(settings, "api"))
            with plain_connecting(settings):
                database = await enter(open_database(settings, "api", Limits.of_requests(settings), SharingPool))
                schema = await check_schema(database.engine, settings, may_wait=True)
                await check_role(database.engine, settings)
                skew = await enter(watched_clock(database.engine, settings.max_clock_skew))
                await check_pool_budget(database.engine, settings)
                if schema.complaint is None:
                    await origin.check_start(database.engine)
            if database.replica is not None:
                await enter(database.replica.watched())
                await check_replica_budget(database.replica, settings)
            size = settings.analytics_pool_size
            analytics = await enter(open_analytics(settings, "api", Limits.of_requests(settings), size))
            await enter(redis)
            doorbell = await enter(Doorbell(redis, Keys.of(settings).doorbell))
            seen_keys = await enter(SeenKeys(database.write))
            counts = await enter(Counts.from_settings(settings, Keys.of(settings).rates))
            tokens = Tokens.from_settings(settings)
            groups = await enter(Groups(settings, database.write, doorbell))
            probe = await enter(open_probe(settings, redis, schema))
            canary = await enter(Canary(database.write, probe.sessions, settings.canary_interval))
            await enter(refusals.written(database.write))
            app.state.waybill = state = ApiState(
                settings=settings,
                database=database,
                reads=Reads(database, settings.database_statement_timeout),
                groups=groups,
                analytics=analytics,
                redis=redis,
                doorbell=doorbell,
                passwords=Passwords(settings),
                tokens=tokens,
                seen_keys=seen_keys,
                rate_limits=RateLimits(settings, counts, tokens, seen_keys),
                request_times=request_times,
                run_queue=RunQueue(lambda: groups.waited),
                probe=probe,
                waiting=WaitingEvents(probe, [one.event.type for one in SUBSCRIPTIONS]),
                canary=canary,
                skew=skew,
            )
            app.state.live = stack.enter_context(
                Live(lambda: UnitOfWork(database.write, name="the console's overview")).served()
            )
            await enter(LoopLag())
            stack.enter_context(MetricsServer(settings, settings.api_metrics_port, metrics.rendering(state)))
            yield

    app = FastAPI(
        title="Waybill",
        version=VERSION,
        summary="Orders and prepaid credits. Nothing lost, nothing counted twice.",
        lifespan=lifespan,
        routes=list(_routes(docs=settings.http_docs, console=settings.console)),
        redirect_slashes=False,
        # FastAPI's own route renders the document for each request; `pages` has another one.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # Its spans would contain the path and the query; see `services/api/spans.py`.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(
        RequestMiddleware,
        limit=settings.max_body_bytes,
        times=request_times,
        protection=Protection(settings.http_hsts),
        refusals=refusals,
        log=RequestLog.from_settings(settings),
    )
    problems.install(app)
    if settings.console:
        errors.install(app)
    start.note_links(app, settings)
    look_up_paths(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@cache
def _routes(*, docs: bool, console: bool) -> list[BaseRoute]:
    """All routes. FastAPI takes 0.1 s to prepare them, and they are the same in each application of a process."""
    # Names of handlers are unique, and do not change with a path.
    router = APIRouter(generate_unique_id_function=lambda route: route.name)
    router.include_router(health.router)
    router.include_router(metrics.router)
    router.include_router(start.router)
    if docs:
        router.include_router(pages.router)
    # The busiest first: those whose paths have parameters are matched one after another.
    for domain in (
        orders,
        transfers,
        ledger,
        statement,
        holds,
        catalog,
        users,
        personal,
        sessions,
        api_keys,
        resets,
        roles,
        totp,
        corrections,
        operations,
        outbox_routes,
        bulk_routes,
        overview,
        consumers,
        jobs,
        audit,
        audit_log,
        sweeps,
        order_days,
        order_export,
        order_search,
        order_timeline,
        reports,
    ):
        router.include_router(domain.router, prefix="/v1")
    if console:
        for page in site.PAGES:
            router.include_router(page)
    return router.routes


def serve_app() -> FastAPI:
    """The application for a server process, with logging set up: `uvicorn --factory services.app:serve_app`."""
    configure_logging(get_settings(), "api")
    app = create_app()
    # A request leaves no cycles behind, so this costs little.
    spare_what_stays(short_pauses=True)
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return app.openapi_schema
