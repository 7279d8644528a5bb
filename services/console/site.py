"""The console's pages."""

from fastapi import APIRouter

from services.console.pages import bulk, consumers, entry, failures, log, orders, overview, waiting, workers
from services.console.pages import credits as credits_

PAGES: tuple[APIRouter, ...] = (
    entry.router,
    overview.router,
    waiting.router,
    failures.router,
    bulk.router,
    orders.router,
    credits_.router,
    consumers.router,
    workers.router,
    log.router,
)
