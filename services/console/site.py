"""The console's pages."""

from fastapi import APIRouter

from services.console.pages import bulk, entry, failures, overview, waiting

PAGES: tuple[APIRouter, ...] = (entry.router, overview.router, waiting.router, failures.router, bulk.router)
