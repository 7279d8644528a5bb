"""`waybill reports`: rebuild the reports in the analytics database from the event log."""

import asyncio
from uuid import UUID

import typer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.analytics import HOW_TO_TURN_ON, Analytics, open_analytics
from services.cli.console import CommandError, plain_errors, say
from services.cli.progress import Display, open_display
from services.cli.run import Actor, Reason, Yes, who
from services.database import Database, Limits, open_database
from services.errors import DomainError
from services.fields import time_of
from services.operations.consumers import service as consumers
from services.outbox.consumers import LeaseLost
from services.outbox.control.schemas import By
from services.outbox.log.schemas import Extent, Lease
from services.outbox.sink import SinkUnusable, run
from services.reports import service
from services.settings import ANALYTICS_WORKER_CONNECTIONS, Settings, get_settings
from services.skew import follow_database
from services.startup import check_schema, plain_connecting, reason_of
from services.unit_of_work import UnitOfWork, background

reports = typer.Typer(no_args_is_help=True, help="Rebuild the reports in the analytics database from the event log.")


@reports.callback()
def _group() -> None:
    """Rebuild the reports in the analytics database from the event log."""


@reports.command()
def rebuild(yes: Yes = False, actor: Actor = None, reason: Reason = "") -> None:
    """Count all events of the log again. The days before the oldest event of the log are kept as they are.

    Meanwhile reports show what has been counted so far, and workers may run. If it is interrupted, a worker continues.
    """
    settings = get_settings_plainly()
    if not yes:
        typer.confirm("delete the reports of the days that the log still holds, and count them again?", abort=True)
    with plain_errors(), open_display(quiet=False) as display:
        try:
            said = asyncio.run(_rebuild(settings, display, who(actor), reason))
        except (DomainError, SinkUnusable) as error:
            raise CommandError(str(error)) from error
        except LeaseLost as error:
            raise CommandError(
                "the rebuild was stopped because the consumer was paused or rebuilt elsewhere"
            ) from error
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise CommandError(
                f"a database does not answer: {reason_of(error)}. Workers continue the rebuild, if it has begun"
            ) from error
    say(said)


def get_settings_plainly() -> Settings:
    """The settings, of an installation that has reports. Exits with a message if they are off."""
    with plain_errors():
        settings = get_settings()
        if settings.analytics_url is None:
            raise CommandError(f"reports are off; to turn them on, {HOW_TO_TURN_ON}")
        return settings


async def _rebuild(settings: Settings, display: Display, actor: str, reason: str) -> str:
    async with (
        open_database(settings, "cli") as database,
        open_analytics(settings, "cli", Limits.of_jobs(), ANALYTICS_WORKER_CONNECTIONS) as analytics,
    ):
        assert analytics is not None, "checked before"
        with plain_connecting(settings):
            await check_schema(database.engine, settings)
            await follow_database(database.engine)
        async with analytics.open() as work:
            await work.check_tables()
        series, lease, extent = await _restart(database, actor, reason)
        try:
            async with background(analytics.open) as work:
                kept = await service.start_over(work, series, extent.oldest)
            await _count(database, analytics, lease, extent, display)
        finally:
            async with background(lambda: UnitOfWork(database.write)) as uow:
                await uow.log.release(service.CONSUMER, lease)
    if extent.oldest is None:
        return "The log holds no events; what was counted before is kept."
    begin = f"The reports are rebuilt from the events since {time_of(extent.oldest):%Y-%m-%d}, the oldest in the log."
    return begin if kept is None else f"{begin} The days from {kept} to the one before that are kept as they were."


async def _restart(database: Database, actor: str, reason: str) -> tuple[UUID, Lease, Extent]:
    """From its commit on, the log keeps all that it holds, and no worker counts."""
    async with background(lambda: UnitOfWork(database.write)) as uow:
        return await consumers.restart(uow, service.CONSUMER, By(actor, reason))


async def _count(database: Database, analytics: Analytics, lease: Lease, extent: Extent, display: Display) -> None:
    """Read the log once, and then what was written meanwhile, unless that never ends."""
    if extent.first is None or extent.last is None:
        return
    consumer = service.consumer(analytics.open)
    advance = display.phase("events", extent.last - extent.first + 1)
    done = extent.first - 1
    reading = True
    while reading:
        batch = await run(lambda: UnitOfWork(database.write), consumer, lease, consumer.batch)
        position = extent.last if batch.next is None else min(batch.next.position, extent.last)
        advance(position - done)
        done = position
        reading = batch.next is not None and batch.next.reading is not None
    # The log's row of the consumer follows the place.
    await run(lambda: UnitOfWork(database.write), consumer, lease, consumer.batch)
