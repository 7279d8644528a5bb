"""The HTTP application."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from redis.asyncio import Redis

from services.analytics import open_analytics
from services.api import health, metrics, pages, problems
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
from services.api.request_times import RequestTimes
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
from services.console import site as console
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
from services.operations.outbox import routes as outbox_routes
from services.orders import routes as orders
from services.orders.days import routes as order_days
from services.orders.export import routes as order_export
from services.outbox.doorbell import Doorbell
from services.outbox.origin import service as origin
from services.reports import routes as reports
from services.settings import Settings, get_settings
from services.skew import watched_clock
from services.startup import check_role, check_schema, plain_connecting
from services.subscriptions import SUBSCRIPTIONS
from services.sweeps import routes as sweeps
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
                probe=probe,
                waiting=WaitingEvents(probe, [one.event.type for one in SUBSCRIPTIONS]),
                canary=canary,
                skew=skew,
            )
            await enter(LoopLag())
            stack.enter_context(MetricsServer(settings, settings.api_metrics_port, metrics.rendering(state)))
            yield

    app = FastAPI(
        title="Waybill",
        version=VERSION,
        summary="Orders and prepaid credits. Nothing lost, nothing counted twice.",
        lifespan=lifespan,
        redirect_slashes=False,
        # Names of handlers are unique, and do not change with a path.
        generate_unique_id_function=lambda route: route.name,
        # FastAPI's own route renders the document for each request; `pages` has another one.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        RequestMiddleware,
        limit=settings.max_body_bytes,
        times=request_times,
        protection=Protection(settings.http_hsts),
        refusals=refusals,
    )
    problems.install(app)
    app.include_router(health.router)
    app.include_router(metrics.router)
    if settings.http_docs:
        app.include_router(pages.router)
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
        audit,
        audit_log,
        sweeps,
        order_days,
        order_export,
        reports,
    ):
        app.include_router(domain.router, prefix="/v1")
    if settings.console:
        console.install(app)
    look_up_paths(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def serve_app() -> FastAPI:
    """The application for a server process, with logging set up: `uvicorn --factory services.app:serve_app`."""
    configure_logging(get_settings(), "api")
    app = create_app()
    spare_what_stays()
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return app.openapi_schema
