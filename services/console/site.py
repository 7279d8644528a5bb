"""The console as a part of the application."""

from fastapi import APIRouter, FastAPI

from services.console import errors
from services.console.pages import consumers, entry, log, orders, overview, workers
from services.console.pages import credits as credits_

PAGES: tuple[APIRouter, ...] = (
    entry.router,
    overview.router,
    orders.router,
    credits_.router,
    consumers.router,
    workers.router,
    log.router,
)


def install(app: FastAPI) -> None:
    """Add the console to the application, whose handlers of errors are installed."""
    for router in PAGES:
        app.include_router(router)
    errors.install(app)
