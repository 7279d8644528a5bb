"""The console as a part of the application."""

from fastapi import APIRouter, FastAPI

from services.console import errors
from services.console.pages import bulk, entry, failures, overview, waiting

PAGES: tuple[APIRouter, ...] = (entry.router, overview.router, waiting.router, failures.router, bulk.router)


def install(app: FastAPI) -> None:
    """Add the console to the application, whose handlers of errors are installed."""
    for router in PAGES:
        app.include_router(router)
    errors.install(app)
