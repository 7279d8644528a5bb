"""The application under test, with its lifespan running."""

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from services import database, replica
from services.app import create_app
from services.database import Database
from services.settings import Settings
from tests.api.client import Api
from tests.api.grouped import Gate
from tests.concurrency.groups.watch import Watch
from tests.replicated import Pair, replicated_servers


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    """The application on this test's database. An error it does not handle is a 500 here, as over a socket."""
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        app.state.waybill.passwords.refusal_delay = 0.0
        yield Api(app, client, settings, database)


@pytest.fixture
def alone(api: Api) -> None:
    """Each request is handled alone, as with WAYBILL_GROUP_COMMIT=false."""
    api.app.state.waybill.groups.are_open = False


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Makes groups, and notes what becomes of their requests."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch()
        watch.install(patch)
        yield watch


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Decides which requests are in one group."""
    return Gate(monkeypatch)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A primary of its own, with a streaming replica."""
    with replicated_servers(tmp_path_factory.mktemp("pair")) as servers:
        yield servers


@pytest.fixture
def replicated(pair: Pair, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings for a database on this primary, with the replica. It is looked at often, so that tests wait less."""
    monkeypatch.setattr(replica, "INTERVAL", 0.05)
    # On a busy machine, an answer may take longer than a healthy server needs.
    monkeypatch.setattr(replica, "PATIENCE", 10.0)
    monkeypatch.setattr(replica, "_POSITION_PATIENCE", 10.0)
    monkeypatch.setattr(database, "PATIENCE", 10.0)
    with pair.settings(redis_url) as made:
        yield made
