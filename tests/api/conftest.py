"""The application under test, with its lifespan running."""

from collections.abc import AsyncIterator

import httpx2
import pytest

from services.app import create_app
from services.database import Database
from services.settings import Settings
from tests.api.client import Api


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    """The application on this test's database. An error it does not handle is a 500 here, as over a socket."""
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        yield Api(app, client, settings, database)
